"""Pressure: a worker that is late for a while takes nothing more; one that paused once goes on."""

import pytest

from millstream.errors import Overloaded
from millstream.streams.pressure import Pressure


def refuses(pressure: Pressure) -> int | None:
    """The seconds after which to try again, where it refuses."""
    try:
        pressure.check()
    except Overloaded as error:
        return error.retry_after_seconds
    return None


@pytest.mark.parametrize("seconds", [0.2, 20.0, 3600.0])
def test_a_single_pause_is_no_pressure(seconds: float) -> None:
    pressure = Pressure(0.1)
    for _ in range(100):
        pressure.note(0.002)
    pressure.note(seconds)
    assert refuses(pressure) is None


def test_being_late_for_a_second_is_and_passes() -> None:
    pressure = Pressure(0.1)
    for _ in range(6):
        pressure.note(0.3)
    assert refuses(pressure) == 3
    for _ in range(6):
        pressure.note(0.001)
    assert refuses(pressure) is None


def test_a_busy_worker_is_not_late() -> None:
    pressure = Pressure(0.1)
    for i in range(1000):
        pressure.note(0.25 if i % 20 == 0 else 0.03)
        assert refuses(pressure) is None
