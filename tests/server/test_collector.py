"""What a worker does about its memory."""

from pathlib import Path

import psutil

from millstream.database import Database
from millstream.server.process.collector import RUNNING, RUSH, Rush, give_back


def test_a_rush_is_over_once_when_most_of_its_streams_have_gone() -> None:
    rush = Rush()
    kept = [RUSH, RUSH, RUSH // 4 + 1, RUSH // 4, 0, 0, RUSH, 0]
    assert [rush.over(count, 0) for count in kept] == [False] * 3 + [True, False, False, False, True]


def test_it_is_not_over_while_many_streams_run() -> None:
    rush = Rush()
    assert not rush.over(10 * RUSH, 10 * RUSH)
    assert not rush.over(RUSH, RUNNING + 1)
    assert rush.over(RUSH, RUNNING)


def test_a_few_streams_are_not_a_rush() -> None:
    rush = Rush()
    assert not rush.over(RUSH - 1, 0)
    assert not rush.over(0, 0)


async def test_memory_is_given_back_with_connections_that_nobody_uses(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'x.db'}")
    database.migrate()
    open_before = psutil.Process().num_fds()
    await give_back(database)
    assert psutil.Process().num_fds() < open_before
    await database.read(lambda connection: None)
    database.close()
