"""Clocks of a provider's silence."""

import asyncio
from types import SimpleNamespace

from millstream.providers.clocks import Clocks, Silence


async def test_after_a_pause_it_is_looked_at_when_it_is_due() -> None:
    """Also where the deadline has come during the pause, which has set another."""
    now = began = asyncio.get_running_loop().time()
    silence = Silence(Clocks(idle=100.0), began + 1000, lambda: None)
    silence._loop = SimpleNamespace(time=lambda: now)  # type: ignore[assignment]  # noqa: SLF001
    silence.content()
    now += 90
    silence.pause()
    now += 20
    silence._look()  # noqa: SLF001
    silence.resume()
    assert silence._timer.when() <= began + 120  # noqa: SLF001
    silence.stop()
