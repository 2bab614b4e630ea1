"""Keys that nobody has made cost few look-ups, and take nothing from those who have one. spec/faults.md: A2."""

import asyncio
from collections import Counter
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import pytest
from fastapi import Depends, FastAPI

from application import Run
from asgi import get
from millstream import Millstream, Settings, get_api_key
from millstream.api_keys import new_secret
from millstream.auth import UNKNOWN_AT_ONCE, Keys
from millstream.database import Database, DatabaseAway
from millstream.errors import Overloaded, Unauthorized
from millstream.providers.scripted import ScriptedProvider


class CountedDatabase(Database):
    """Counts its reads, which may be made to fail."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.reads = 0
        self.is_away = False

    async def read(self, work: Callable[..., Any]) -> Any:
        self.reads += 1
        if self.is_away:
            raise DatabaseAway("it is away")
        return await super().read(work)


@pytest.fixture
def db(tmp_path: Path) -> Generator[CountedDatabase]:
    db = CountedDatabase(f"sqlite:///{tmp_path / 'x.db'}")
    db.migrate()
    yield db
    db.close()


async def outcome(keys: Keys, secret: str) -> str:
    try:
        await keys.verify(secret)
    except (Unauthorized, Overloaded, DatabaseAway) as error:
        return type(error).__name__
    return "verified"


async def outcomes(keys: Keys, *secrets: str) -> Counter[str]:
    return Counter(await asyncio.gather(*(outcome(keys, secret) for secret in secrets)))


async def test_unknown_keys_are_looked_up_so_often_and_then_refused_unread(db: CountedDatabase) -> None:
    keys = Keys(db)
    found = await outcomes(keys, *(new_secret() for _ in range(UNKNOWN_AT_ONCE + 2000)))
    assert found.keys() == {"Unauthorized", "Overloaded"}
    assert db.reads == found["Unauthorized"]
    assert UNKNOWN_AT_ONCE <= db.reads < UNKNOWN_AT_ONCE + 500


async def test_who_was_verified_once_is_never_refused_for_it(
    db: CountedDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even where what was verified is no longer believed, or another key is revoked."""
    monkeypatch.setattr("millstream.auth.CACHE_SECONDS", 0)
    monkeypatch.setattr("millstream.auth.UNKNOWN_PER_SECOND", 0)
    keys = Keys(db)
    _, mine = await keys.create("mine", ["chat"])
    other, _ = await keys.create("other", ["chat"])
    assert await outcome(keys, mine) == "verified"
    await outcomes(keys, *(new_secret() for _ in range(UNKNOWN_AT_ONCE + 100)))
    assert await outcome(keys, new_secret()) == "Overloaded"
    await keys.revoke(other.id)
    assert await outcomes(keys, *([mine] * 50)) == {"verified": 50}


async def test_keys_that_are_there_use_nothing_up(
    db: CountedDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millstream.auth.UNKNOWN_PER_SECOND", 0)
    keys = Keys(db)
    secrets = [(await keys.create("n", ["chat"]))[1] for _ in range(UNKNOWN_AT_ONCE + 50)]
    for start in range(0, len(secrets), 50):
        assert await outcomes(keys, *secrets[start : start + 50]) == {"verified": 50}
    assert await outcome(keys, new_secret()) == "Unauthorized"


async def test_the_same_unknown_key_is_looked_up_once_in_a_while(
    db: CountedDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody whose key was revoked, and who does not give up, leaves the look-ups to others."""
    monkeypatch.setattr("millstream.auth.UNKNOWN_PER_SECOND", 0)
    keys = Keys(db)
    key, revoked = await keys.create("n", ["chat"])
    assert await outcome(keys, revoked) == "verified"
    await keys.revoke(key.id)
    before = db.reads
    for secret in (revoked, new_secret()):
        for _ in range(UNKNOWN_AT_ONCE):
            assert await outcome(keys, secret) == "Unauthorized"
    assert db.reads - before <= 4
    monkeypatch.setattr("millstream.auth.CACHE_SECONDS", 0)
    assert await outcome(keys, revoked) == "Unauthorized"
    assert db.reads - before <= 5


async def test_there_are_look_ups_again_after_a_while(
    db: CountedDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = Keys(db)
    await outcomes(keys, *(new_secret() for _ in range(UNKNOWN_AT_ONCE + 1000)))
    _, late = await keys.create("late", ["chat"])
    async with asyncio.timeout(5):
        while await outcome(keys, late) == "Overloaded":
            await asyncio.sleep(0.01)
    assert await outcome(keys, late) == "verified"


async def test_a_database_that_is_away_uses_nothing_up(
    db: CountedDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millstream.auth.UNKNOWN_PER_SECOND", 0)
    keys = Keys(db)
    _, mine = await keys.create("mine", ["chat"])
    db.is_away = True
    for _ in range(UNKNOWN_AT_ONCE + 10):
        assert await outcome(keys, new_secret()) == "DatabaseAway"
    db.is_away = False
    assert await outcome(keys, mine) == "verified"


async def test_on_a_route_of_somebody_elses_it_is_their_kind_of_503(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millstream.auth.UNKNOWN_AT_ONCE", 0)
    millstream = Millstream(
        Settings(data_dir=tmp_path, max_lag_seconds=3600), providers={"s": ScriptedProvider()}
    )
    app = FastAPI(lifespan=millstream.lifespan)
    app.get("/theirs", dependencies=[Depends(get_api_key)])(lambda: "theirs")
    async with millstream.lifespan(app), get(app, "/theirs", new_secret()) as call:
        await call.finished()
        assert (call.status, set(call.json)) == (503, {"detail"})
        assert call.response_headers["retry-after"] == "1"


async def test_over_http_it_is_a_503_that_says_when_to_come_back(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("millstream.auth.UNKNOWN_PER_SECOND", 0)
    async with run() as app:
        async with get(app.app, "/v1/models", app.key) as call:
            assert (await call.finished()).status == 200
        for _ in range(UNKNOWN_AT_ONCE):
            with pytest.raises(Unauthorized):
                await app.millstream.keys.verify(new_secret())
        async with get(app.app, "/v1/models", new_secret()) as call:
            await call.finished()
            assert (call.status, call.json["error"]["code"]) == (503, "overloaded")
            assert call.response_headers["retry-after"] == "1"
        for credential, status in ((app.key, 200), ("ms_live_junk", 401)):
            async with get(app.app, "/v1/models", credential) as call:
                assert (await call.finished()).status == status
