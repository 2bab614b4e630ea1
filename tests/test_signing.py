"""Nobody else of the machine reads the signing secret; what happens when it is replaced."""

import asyncio
import os
import re
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from pydantic import SecretStr
from typer.testing import CliRunner

from application import Run
from asgi import get, post
from millstream import database, schema
from millstream.cli import app
from millstream.database import Database
from millstream.errors import ConfigurationError, Unauthorized
from millstream.settings import Settings
from millstream.signing import SigningSecrets
from millstream.tickets import Signer

FILE = "millstream.db"
FILES = (FILE, f"{FILE}-wal", f"{FILE}-shm")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def modes(folder: Path) -> dict[str, int]:
    return {path.name: mode(path) for path in folder.iterdir()}


def opened(file: Path, *, own_folder: bool = False) -> Database:
    """A database of which a connection is open, so that all its files are there."""
    db = Database(f"sqlite:///{file}", own_folder=own_folder)
    db.migrate()
    return db


@pytest.fixture
def as_an_older_version_left_it(tmp_path: Path) -> Iterator[Path]:
    """A folder with a database in use, all of it open to all."""
    folder = tmp_path / "data"
    db = opened(folder / FILE)
    folder.chmod(0o755)
    for name in FILES:
        (folder / name).chmod(0o644)
    yield folder
    db.close()


# -- the files of SQLite ---------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o777])
def test_the_folder_and_the_files_of_sqlite_are_private_whatever_the_umask(
    tmp_path: Path, umask: int
) -> None:
    before = os.umask(umask)
    try:
        db = opened(tmp_path / "outer" / "inner" / FILE)
    finally:
        os.umask(before)
    assert (mode(tmp_path / "outer"), mode(tmp_path / "outer" / "inner")) == (0o700, 0o700)
    assert modes(tmp_path / "outer" / "inner") == dict.fromkeys(FILES, 0o600)
    db.close()


def test_they_are_private_from_their_first_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("it was open before")

    for name in ("chmod", "fchmod"):
        monkeypatch.setattr(os, name, never)
    before = os.umask(0)
    try:
        db = opened(tmp_path / "data" / FILE)
    finally:
        os.umask(before)
    assert mode(tmp_path / "data") == 0o700
    assert modes(tmp_path / "data") == dict.fromkeys(FILES, 0o600)
    db.close()


def test_what_an_older_version_left_open_is_mended_with_one_warning(
    as_an_older_version_left_it: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = as_an_older_version_left_it
    opened(folder / FILE, own_folder=True).close()
    assert mode(folder) == 0o700
    assert modes(folder) == dict.fromkeys(FILES, 0o600)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    for path in (folder, *(folder / name for name in FILES)):
        assert str(path) in record.getMessage()
    assert "millstream secret rotate --now" in record.getMessage()
    caplog.clear()
    opened(folder / FILE, own_folder=True).close()
    assert caplog.records == []


@pytest.mark.parametrize("why", ["the URL names it", "it has more in it", "it is for all, as /tmp"])
def test_a_folder_that_is_not_millstreams_alone_stays_as_it_is(
    as_an_older_version_left_it: Path, caplog: pytest.LogCaptureFixture, why: str
) -> None:
    folder = as_an_older_version_left_it
    if why == "it has more in it":
        (folder / "other").touch(0o644)
    if why == "it is for all, as /tmp":
        folder.chmod(0o1777)
    before = mode(folder)
    opened(folder / FILE, own_folder=why != "the URL names it").close()
    assert mode(folder) == before
    assert {name: mode(folder / name) for name in FILES} == dict.fromkeys(FILES, 0o600)
    (record,) = caplog.records
    assert f"{folder}," not in record.getMessage()


def test_a_file_of_another_user_is_left_to_that_user_with_a_warning(
    as_an_older_version_left_it: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, me = as_an_older_version_left_it, os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: me + 1)
    opened(folder / FILE, own_folder=True).close()
    assert mode(folder) == 0o755
    assert set(modes(folder).values()) == {0o644}
    (record,) = caplog.records
    assert str(folder / FILE) in record.getMessage()


def test_a_folder_in_which_anybody_may_replace_the_database_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(0o777)
    opened(folder / FILE).close()
    assert mode(folder) == 0o777
    (record,) = caplog.records
    assert str(folder) in record.getMessage()


def test_a_link_leads_to_a_file_that_is_private(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir(0o700)
    (tmp_path / FILE).symlink_to(tmp_path / "elsewhere" / "real.db")
    before = os.umask(0)
    try:
        db = opened(tmp_path / FILE)
    finally:
        os.umask(before)
    assert set(modes(tmp_path / "elsewhere")) == {"real.db", "real.db-wal", "real.db-shm"}
    assert set(modes(tmp_path / "elsewhere").values()) == {0o600}
    db.close()


@pytest.mark.parametrize("place", ["a-file/x.db", "folder"])
def test_what_cannot_be_a_database_is_refused_by_name(tmp_path: Path, place: str) -> None:
    (tmp_path / "a-file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigurationError, match=place):
        opened(tmp_path / place)


def test_an_address_in_sqlites_own_form_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="needs a file"):
        Database("sqlite:///file:x.db?uri=true")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("by_url", [False, True])
def test_the_command_line_keeps_files_private_too(
    as_an_older_version_left_it: Path, monkeypatch: pytest.MonkeyPatch, by_url: bool
) -> None:
    folder = as_an_older_version_left_it
    options = [] if by_url else ["--data-dir", str(folder)]
    if by_url:
        monkeypatch.setenv("MILLSTREAM_DATABASE_URL", f"sqlite:///{folder / FILE}")
    done = CliRunner().invoke(app, ["keys", "create", "--name", "n", *options])
    assert done.exit_code == 0
    assert mode(folder) == (0o755 if by_url else 0o700)
    assert set(modes(folder).values()) == {0o600}


# -- the secret in the database --------------------------------------------------------------------


def signed(signer: Signer, key_id: str = "k") -> str:
    return signer.token(key_id, user=None, models=(), max_streams=1, max_tokens=None, seconds=600)[0]


def test_the_command_line_replaces_the_secret(tmp_path: Path) -> None:
    def rotate(*options: str) -> str:
        done = CliRunner().invoke(app, ["secret", "rotate", "--data-dir", str(tmp_path / "data"), *options])
        assert done.exit_code == 0
        return done.stdout

    db = opened(tmp_path / "data" / FILE)
    text = signed(asyncio.run(SigningSecrets(db).signer()))
    assert re.search(r"until \d{4}-\d\d-\d\d \d\d:\d\d UTC", rotate())
    assert asyncio.run(SigningSecrets(db).signer()).check_token(text)
    assert "refused" in rotate("--now")
    with pytest.raises(Unauthorized):
        asyncio.run(SigningSecrets(db).signer()).check_token(text)
    db.close()


def test_the_secret_of_an_older_version_goes_on_to_sign(tmp_path: Path) -> None:
    file, secret = tmp_path / FILE, os.urandom(32)
    engine = sa.create_engine(f"sqlite:///{file}")
    config = Config()
    config.set_main_option("script_location", str(Path(database.__file__).parent / "migrations"))
    config.attributes["engine"] = engine
    command.upgrade(config, "0003")
    with engine.begin() as connection:
        statement = sa.text("INSERT INTO secrets (name, value) VALUES ('signing', :value)")
        connection.execute(statement, {"value": secret})
    engine.dispose()
    db = opened(file)
    assert asyncio.run(SigningSecrets(db).signer()).check_token(signed(Signer([secret])))
    assert Signer([secret]).check_token(signed(asyncio.run(SigningSecrets(db).signer())))
    db.close()


def test_a_signer_signs_with_the_first_of_its_secrets_and_believes_all() -> None:
    new, old, other = (os.urandom(32) for _ in range(3))
    signer = Signer([new, old])
    assert Signer([new]).check_token(signed(signer))
    for secret in (new, old):
        assert signer.check_token(signed(Signer([secret])))
        assert signer.check_ticket(Signer([secret]).ticket("s", "k", "cancel", 60), "s", "cancel") == "k"
    for text in (signed(Signer([other])), signed(signer)[:-4] + "AAAA", "eyJ", "eyJ.x.y"):
        with pytest.raises(Unauthorized):
            signer.check_token(text)


# -- the secret in the settings --------------------------------------------------------------------


async def test_secrets_of_the_settings_take_the_place_of_the_one_in_the_database(run: Run) -> None:
    new, old, stored = (secrets.token_hex(32) for _ in range(3))
    async with run(signing_secret=f"{new}, {old}\n") as running:
        async with post(running.app, "/v1/tokens", {}, running.key) as call:
            text = (await call.finished()).json["token"]
        assert Signer([new.encode()]).check_token(text).key_id == running.key_id
        for secret, status in ((new, 200), (old, 200), (stored, 401)):
            signer = Signer([secret.encode()])
            text = signed(signer, running.key_id)
            async with get(running.app, "/v1/models", text) as call:
                assert (await call.finished()).status == status
        rows = await running.millstream.database.read(lambda c: c.execute(sa.select(schema.secrets)).all())
        assert rows == []


@pytest.mark.parametrize("value", ["", "x" * 31, "é" * 15, "{good},", "{good},short", ",{good}"])
def test_a_secret_that_can_be_guessed_is_refused_and_not_shown(
    monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    good = secrets.token_hex(16)
    value = value.format(good=good)
    monkeypatch.setenv("MILLSTREAM_SIGNING_SECRET", value)
    with pytest.raises(ConfigurationError) as refused:
        Settings.load()
    assert "setting signing_secret" in str(refused.value)
    assert "at least 32 bytes" in str(refused.value)
    monkeypatch.delenv("MILLSTREAM_SIGNING_SECRET")
    with pytest.raises(ValueError, match="at least 32 bytes") as shown:
        Settings(signing_secret=SecretStr(value))
    for part in filter(None, value.split(",")):
        assert part not in str(refused.value)
        assert part not in str(shown.value)


def test_settings_do_not_show_their_secrets() -> None:
    secret = secrets.token_hex(32)
    settings = Settings(signing_secret=SecretStr(secret))
    assert settings.signing_secrets == (secret.encode(),)
    assert secret not in f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"


def test_the_command_line_does_not_replace_a_secret_that_does_not_sign(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = secrets.token_hex(32)
    monkeypatch.setenv("MILLSTREAM_SIGNING_SECRET", secret)
    assert CliRunner().invoke(app, ["keys", "create", "--name", "n"]).exit_code == 0
    done = CliRunner().invoke(app, ["secret", "rotate"])
    assert isinstance(done.exception, ConfigurationError)
    assert "MILLSTREAM_SIGNING_SECRET" in str(done.exception)
    assert secret not in str(done.exception)
