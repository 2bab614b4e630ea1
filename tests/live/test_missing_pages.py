"""``millstream serve`` without a built chat page. spec/faults.md: P11."""

import shutil
import urllib.error
import urllib.request
from pathlib import Path

import pytest

import millstream
from live.conftest import running


def test_the_banner_says_that_the_page_is_not_built(tmp_path: Path) -> None:
    copy = tmp_path / "copy" / "millstream"
    shutil.copytree(
        Path(millstream.__file__).parent, copy, ignore=shutil.ignore_patterns("pages", "__pycache__")
    )
    demo = '{"demo": {"type": "scripted"}}'
    with running(tmp_path / "server", PYTHONPATH=str(copy.parent), MILLSTREAM_PROVIDERS=demo) as server:
        assert "the chat page is not built: make web" in server.printed
        assert "/#key=" not in server.printed
        assert server.key
        with pytest.raises(urllib.error.HTTPError, match="404") as refused:
            urllib.request.urlopen(f"{server.url}/assets/index.js", timeout=10)
        refused.value.close()
        assert server.terminate() == 0
        assert "Traceback" not in server.printed
