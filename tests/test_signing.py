"""Nobody else of the machine reads the signing secret; what happens when it is replaced."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from millstream.cli import app
from millstream.database import Database
from millstream.errors import ConfigurationError

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
