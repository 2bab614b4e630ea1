"""What is wrong with a database or a Redis, in words, and never with what is in its URL."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from redis import Redis

from millstream.database import Database
from millstream.errors import ConfigurationError
from millstream.journals.redis import RedisJournal
from services import Postgres, RedisServers, postgres_server, redis_programs, redis_server

SECRET = "hunter2"


def of_database(url: str) -> str:
    with pytest.raises(ConfigurationError) as error:
        Database(url).migrate()
    return str(error.value)


def of_redis(url: str) -> str:
    with pytest.raises(ConfigurationError) as error:
        RedisJournal(url).check()
    return str(error.value)


@pytest.fixture(scope="module")
def postgres() -> Iterator[Postgres]:
    with postgres_server() as server:
        yield server


@pytest.mark.parametrize(
    ("url", "words"),
    [
        (
            f"postgresql://u:{SECRET}@127.0.0.1:1/x",
            "127.0.0.1:1/x: it refuses connections (OperationalError)",
        ),
        (f"postgresql://u@127.0.0.1:1/x?password={SECRET}", "it refuses connections"),
        (f"postgresql://u:{SECRET}@nowhere.invalid/x", "its host is not known"),
        (f"postgresql://u@127.0.0.1:1/x?passwort={SECRET}", "its URL has an option that is unknown"),
        (f"postgresql://u:{SECRET}@127.0.0.1:port/x", "MILLSTREAM_DATABASE_URL is not a database URL"),
    ],
)
def test_of_a_postgres_that_cannot_be_reached(url: str, words: str) -> None:
    said = of_database(url)
    assert words in said
    assert SECRET not in said


def test_of_a_postgres_that_lacks_what_is_named(postgres: Postgres) -> None:
    folder = postgres.url.partition("host=")[2]
    assert "there is no such database" in of_database(f"postgresql://postgres@/nowhere?host={folder}")
    assert f"host={folder}".replace("/", "%2F") in of_database(
        f"postgresql://postgres@/nowhere?host={folder}"
    )
    said = of_database(f"postgresql://nobody:{SECRET}@/postgres?host={folder}")
    assert "there is no such user" in said
    assert SECRET not in said


def test_of_a_file_that_is_none(tmp_path: Path) -> None:
    file = tmp_path / "x.db"
    file.write_text("no database at all " * 100, encoding="utf-8")
    assert of_database(f"sqlite:///{file}").endswith("its file is damaged (DatabaseError)")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        (f"redis://:{SECRET}@127.0.0.1:1/0", "it refuses connections (ConnectionError)"),
        (f"redis://:{SECRET}@nowhere.invalid/0", "its host is not known"),
        (f"unix:///nowhere.socket?password={SECRET}", "there is no socket at its path"),
        (f"redis://:{SECRET}@127.0.0.1:port/0", "its URL is not one"),
        (f"redis://:{SECRET}@127.0.0.1:1/0?{SECRET}=1", "its URL has an option that is unknown"),
    ],
)
def test_of_a_redis_that_cannot_be_reached(url: str, words: str) -> None:
    said = of_redis(url)
    assert words in said
    assert SECRET not in said


@pytest.mark.parametrize("version", redis_programs())
def test_of_a_redis_that_refuses(redis_servers: RedisServers, version: str) -> None:
    url = redis_servers(version)
    assert "there is no such database" in of_redis(f"{url}?db=99")
    said = of_redis(url.replace("unix://", f"unix://u:{SECRET}@"))
    assert "it does not accept the password" in said
    assert SECRET not in said


def test_of_a_redis_that_wants_a_password(tmp_path: Path) -> None:
    with redis_server(tmp_path / "socket") as _, Redis(unix_socket_path=str(tmp_path / "socket")) as client:
        client.config_set("requirepass", SECRET)
        assert "it wants a password" in of_redis(f"unix://{tmp_path / 'socket'}")
