"""A process without file descriptors: it can open nothing more."""

import os
import resource
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def no_descriptors(pid: int | None = None, *, but: int = 0) -> Generator[None]:
    """Leaves a process, or this one, with what it has open, ``but`` so many more."""
    pid = pid or os.getpid()
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    folder = Path(f"/proc/{pid}/fd")
    free = next(number for number in range(soft) if not (folder / str(number)).is_symlink())
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (free + but, hard))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
