"""The chat page where there is no Node to build it: the one that is built already, else that of the newest
wheel in dist/, else none. Says on standard output, after the reason that it is given, what the server has.

    python tools/page_of_a_wheel.py REASON
"""

import os
import sys
from pathlib import Path
from zipfile import BadZipFile, ZipFile

ROOT = Path(__file__).parents[1]
PAGES = "millstream/server/pages/"
INDEX = f"{PAGES}index.html"


def take(wheel: Path, into: Path) -> bool:
    """Unpacks the page of ``wheel``, if it has one."""
    try:
        with ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.startswith(PAGES)]
            if INDEX not in names:
                return False
            for name in sorted(names, key=INDEX.__eq__):  # the index last: it says that all is there
                archive.extract(name, into)
    except (OSError, BadZipFile):
        return False
    os.utime(into / INDEX, (0, 0))  # older than its sources: with Node it is built
    return True


def main(reason: str) -> None:
    """Sees to the page and says where it is from."""
    if (ROOT / "src" / INDEX).is_file():
        print(f"{reason}; the server has the page that is built already")
        return
    wheels = sorted((ROOT / "dist").glob("millstream-*.whl"), key=lambda wheel: -wheel.stat().st_mtime)
    for wheel in wheels:
        if take(wheel, ROOT / "src"):
            print(f"{reason}; the server has the page of dist/{wheel.name}")
            return
    print(f"{reason}; the server runs without the page")


if __name__ == "__main__":
    main(sys.argv[1])
