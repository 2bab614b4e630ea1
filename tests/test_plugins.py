"""Providers that another package brings, by an entry point."""

import sys
from pathlib import Path

import pytest

from millstream.errors import ConfigurationError
from millstream.runtime.providers import llm_service
from millstream.settings import Settings

CODE = """
from millstream.errors import ConfigurationError
from millstream.providers.scripted import ScriptedProvider

def make(name, config):
    if "broken" in config.options:
        raise RuntimeError("a secret")
    if "region" not in config.options:
        raise ConfigurationError(f"provider {name}: options.region is missing")
    return ScriptedProvider({config.options["region"]: []})
"""


@pytest.fixture(autouse=True)
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package with one plug-in, as pip leaves it."""
    (tmp_path / "plugged.py").write_text(CODE)
    info = tmp_path / "plugged-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugged\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[millstream.providers]\nmine = plugged:make\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "plugged", raising=False)


def settings(section: str) -> Settings:
    Path("millstream.toml").write_text(f"[providers.company]\n{section}")
    return Settings.load()


async def test_a_plug_in_is_a_type_of_provider() -> None:
    service = llm_service(settings('type = "mine"\noptions = {region = "eu"}'), {})
    await service.discover()
    assert service.models["eu"] == "company"
    (deployment,) = (await service.resolve("company/eu")).deployments
    assert deployment.provider_name == "company"
    await service.close()


def test_what_a_plug_in_has_against_its_section_is_said() -> None:
    with pytest.raises(ConfigurationError, match=r"options\.region is missing"):
        llm_service(settings('type = "mine"'), {})


def test_a_plug_in_that_breaks_is_named_without_its_words() -> None:
    with pytest.raises(ConfigurationError, match=r"plug-in 'mine' \(plugged:make\)") as raised:
        llm_service(settings('type = "mine"\noptions = {broken = true}'), {})
    assert "secret" not in str(raised.value)


def test_a_type_that_nobody_has_is_said_with_those_there_are() -> None:
    with pytest.raises(ConfigurationError, match=r"no type 'other': it is one of openai, .*, mine"):
        settings('type = "other"')
