"""A slice of the nemesis: random streams, clients and faults for about a minute and a half on each set-up.

The seed is a random one and is printed where something is broken; ``NEMESIS_SEED`` sets it. The whole of it is
``make faults`` (docs/guides/nemesis.md).
"""

import os
import random
from typing import get_args

import pytest

from nemesis.plans import SetUp
from nemesis.run import Options, run, summary


@pytest.mark.timeout(400)
@pytest.mark.parametrize("set_up", get_args(SetUp))
async def test_nothing_that_happens_breaks_an_invariant(set_up: SetUp) -> None:
    seed = int(os.environ.get("NEMESIS_SEED", "0")) or random.randrange(1, 10**9)
    options = Options(set_up=set_up, streams=240, faults=8, seconds=45, seed=seed, quiet=True)
    outcome = await run(options)
    assert not outcome.violations, summary(outcome, options)
    assert len(outcome.evidence.rows) > 150
    assert len(outcome.evidence.faults) >= 4
