"""Private files: a database's folder and files, which other users of the machine may not read.

What is made here is private from its first moment, whatever the umask. What was there before is mended: the
files always, their folder only where it is nobody else's. /tmp, a home and the working folder stay as they
are.
"""

import os
import stat
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

_OTHERS = 0o077


def make(file: Path) -> None:
    """Makes an empty file, and the folders that are missing above it. What is there stays as it is. Raises
    ``OSError``.
    """
    _make_folder(file.parent)
    try:
        descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
    except FileExistsError:
        return
    try:
        if os.fstat(descriptor).st_mode & 0o600 != 0o600:
            os.fchmod(descriptor, 0o600)  # the umask has taken bits of its owner's, too
    finally:
        os.close(descriptor)


def _make_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    with suppress(FileExistsError):  # another process was faster, or it is a file: then nothing is made in it
        folder.mkdir(0o700)
        if folder.stat().st_mode & 0o700 != 0o700:
            folder.chmod(0o700)


def mend(files: Collection[Path], folder: Path, *, own_folder: bool) -> tuple[list[Path], list[Path]]:
    """Takes from other users what they may do with ``files``; with ``folder`` too, where that is meant for
    them alone (``own_folder``) and has nothing else in it. What was mended, and what is still open to others.

    Opens nothing: to close a file would end the locks that this process has on it.
    """
    mended: list[Path] = []
    left: list[Path] = []
    paths = list(files)
    if own_folder and _is_ours_alone(folder, files):
        paths.insert(0, folder)
    elif _may_be_replaced_in(folder):
        left.append(folder)
    for path in paths:
        with suppress(FileNotFoundError):
            found = path.lstat()
            if found.st_mode & _OTHERS and not stat.S_ISLNK(found.st_mode):
                (mended if _close(path, found) else left).append(path)
    return mended, left


def _close(path: Path, found: os.stat_result) -> bool:
    if found.st_uid != os.geteuid():
        return False
    with suppress(OSError):  # some file systems have no modes
        path.chmod(stat.S_IMODE(found.st_mode) & ~_OTHERS)
    return not path.stat().st_mode & _OTHERS


def _is_ours_alone(folder: Path, files: Collection[Path]) -> bool:
    found = folder.stat()
    if found.st_uid != os.geteuid() or found.st_mode & stat.S_ISVTX:
        return False
    return {file.name for file in files}.issuperset(path.name for path in folder.iterdir())


def _may_be_replaced_in(folder: Path) -> bool:
    mode = folder.stat().st_mode
    return bool(mode & stat.S_IWOTH and not mode & stat.S_ISVTX)
