"""Periods: hours, days and months of a time zone, over sums that are kept by hours of UTC.

An hour is a number, counted from 1970 in UTC. Where a zone's clocks are not whole hours from UTC, a day of it
begins within an hour, which is torn: part of it is of the day before.
"""

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from msgspec import Struct

from millstream.errors import InvalidRequest

HOUR = 3600
DAY = 24 * HOUR
_MOST_DAYS = 200 * 366  # that transitions of a zone are looked for in


class Shift(Struct, frozen=True):
    """From this ``hour`` on, clocks are ``ahead`` of UTC by so many seconds."""

    hour: int
    ahead: int


def zone_of(name: str) -> ZoneInfo:
    """Raises ``InvalidRequest``."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):  # a path, a folder, no name at all
        raise InvalidRequest(f"there is no time zone '{name[:64]}'; one is like Europe/Paris") from None


def shifts(zone: ZoneInfo, first: int, last: int) -> list[Shift]:
    """How the zone's clocks stand from the hour ``first`` to ``last``: one, and one more for every time that
    they are put forward or back.
    """
    found = [Shift(first, _ahead(zone, first))]
    for start in range(first, min(last, first + 24 * _MOST_DAYS), 24):
        if _ahead(zone, min(start + 24, last)) != found[-1].ahead:
            hour = next(hour for hour in range(start, start + 25) if _ahead(zone, hour) != found[-1].ahead)
            found.append(Shift(hour, _ahead(zone, hour)))
    return found


def _ahead(zone: ZoneInfo, hour: int) -> int:
    offset = datetime.fromtimestamp(hour * HOUR, zone).utcoffset() or timedelta()
    return round(offset.total_seconds())


def hour_label(zone: ZoneInfo, hour: int) -> str:
    """With its offset, as one hour of a year comes twice."""
    return datetime.fromtimestamp(hour * HOUR, zone).isoformat(timespec="minutes")


def day_label(day: int) -> str:
    """``day`` is counted from 1970, wherever that is."""
    return datetime.fromtimestamp(day * 86_400, UTC).date().isoformat()


def before(since: float, until: float, zone: ZoneInfo) -> tuple[float, float]:
    """The period before this one: as many months, where it is whole months of the zone, else as long. It does
    not begin before 1970.
    """
    start, end = (datetime.fromtimestamp(moment, zone) for moment in (since, until))
    if _begins_a_month(start) and _begins_a_month(end):
        months = (end.year - start.year) * 12 + end.month - start.month
        year, month = divmod(max(start.year * 12 + start.month - 1 - months, 1970 * 12), 12)
        return max(datetime(year, month + 1, 1, tzinfo=zone).timestamp(), 0.0), since
    return max(since - (until - since), 0.0), since


def _begins_a_month(moment: datetime) -> bool:
    return (moment.day, moment.hour, moment.minute, moment.second, moment.microsecond) == (1, 0, 0, 0, 0)
