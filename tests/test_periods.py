"""Periods: what is compared with what."""

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from millstream.ledger.periods import before, hour_label, shifts

PARIS = ZoneInfo("Europe/Paris")


def moment(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=PARIS).timestamp()


@pytest.mark.parametrize(
    ("since", "until", "start"),
    [
        ("2026-03-01", "2026-04-01", "2026-02-01"),
        ("2026-01-01", "2026-02-01", "2025-12-01"),
        ("2026-01-01", "2027-01-01", "2025-01-01"),
        ("2026-03-01", "2026-06-01", "2025-12-01"),
        ("2026-02-08", "2026-02-15", "2026-02-01"),
        ("1980-01-01", "2000-01-01", "1970-01-01T01:00"),
        ("1980-01-02", "9998-12-31", "1970-01-01T01:00"),
        ("2026-02-08T12:00", "2026-02-08T18:00", "2026-02-08T06:00"),
    ],
)
def test_months_are_compared_with_months_and_all_else_with_what_is_as_long(
    since: str, until: str, start: str
) -> None:
    assert before(moment(since), moment(until), PARIS) == (moment(start), moment(since))


def test_the_clocks_of_a_year_are_changed_twice() -> None:
    first, last = (int(moment(day)) // 3600 for day in ("2026-01-01", "2027-01-01"))
    found = shifts(PARIS, first, last)
    assert [shift.ahead for shift in found] == [3600, 7200, 3600]
    assert [hour_label(PARIS, shift.hour) for shift in found[1:]] == [
        "2026-03-29T03:00+02:00",
        "2026-10-25T02:00+01:00",
    ]
