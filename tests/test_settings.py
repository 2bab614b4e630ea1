"""What settings are read from, and what is said of one that cannot be."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from millstream import Millstream
from millstream.database import Database, missing_file
from millstream.errors import ConfigurationError
from millstream.runtime.providers import llm_service
from millstream.settings import ProviderSettings, Settings


def test_making_settings_reads_the_environment_as_loading_them_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GROQ_API_KEY", "gsk")
    monkeypatch.setenv("MILLSTREAM_PORT", "9")
    for settings in (Settings(), Settings.load()):
        assert (settings.port, list(settings.providers)) == (9, ["groq"])
        assert "OPENAI_API_KEY is not set" in settings.unready_providers["openai"]


def test_a_key_of_the_environment_goes_to_no_other_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-canary")
    (tmp_path / "millstream.toml").write_text(
        '[providers.openai]\nbase_url = "http://elsewhere.example/v1"\n'
    )
    given = {"openai": ProviderSettings(base_url="http://elsewhere.example/v1")}
    for settings in (Settings(), Settings(providers=given)):
        assert settings.providers["openai"].base_url == "http://elsewhere.example/v1"
        assert settings.providers["openai"].api_key is None


@pytest.mark.parametrize("name", ["a?b", "a#b", "a%20b", "a@b:c d", "ä"])
def test_the_database_is_in_the_data_folder_whatever_its_name(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name
    url = Settings(data_dir=folder).resolved_database_url
    assert missing_file(url) == folder / "millstream.db"
    Database(url).close()
    assert missing_file(url) == folder / "millstream.db"  # it has nothing in it
    assert (folder / "millstream.db").is_file()


@pytest.mark.parametrize(
    ("value", "origins"),
    [
        ("https://a.example,https://b.example/", ("https://a.example", "https://b.example")),
        (" https://a.example , ", ("https://a.example",)),
        ('["https://a.example/"]', ("https://a.example",)),
        ("HTTPS://App.Example:443,http://a.example:080", ("https://app.example", "http://a.example")),
        ("https://a.example:80,http://a.example:443", ("https://a.example:80", "http://a.example:443")),
        ("http://localhost:3000,http://10.0.0.1", ("http://localhost:3000", "http://10.0.0.1")),
        ("http://[0:0::1]:3000,https://[2001:DB8::]", ("http://[::1]:3000", "https://[2001:db8::]")),
        (
            "https://xn--bcher-kva.example,https://a_b.example.",
            ("https://xn--bcher-kva.example", "https://a_b.example."),
        ),
        ("*", ("*",)),
        ("", ()),
    ],
)
def test_origins_are_read_as_people_write_them(
    value: str, origins: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MILLSTREAM_CORS_ORIGINS", value)
    assert Settings.load().cors_origins == origins


@pytest.mark.parametrize(
    "value",
    [
        "a.example",
        "https://a.example/path",
        "https://a.example?",
        "https://*.example.com",
        "https://a.example,**",
        "https://a.example:*",
        "https://a.example:65536",
        "https://a.example:",
        "https://user@a.example",
        "https://bücher.example",
        "https://a.example;https://b.example",
        "https://a.example https://b.example",
        "http://[::1",
        "http://[1::2::3]",
        "https://",
        "[1",
        '{"a": 1}',
    ],
)
def test_a_wrong_origin_is_said_with_the_settings_name(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLSTREAM_CORS_ORIGINS", value)
    with pytest.raises(ConfigurationError, match="cors_origins"):
        Settings.load()


@pytest.mark.parametrize("name", ["providers", "prices"])
def test_broken_json_names_its_variable(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"MILLSTREAM_{name.upper()}", "{bad")
    with pytest.raises(ConfigurationError, match=f"MILLSTREAM_{name.upper()} is not valid JSON"):
        Settings.load()


@pytest.mark.parametrize(
    ("required", "terminal", "refused"),
    [(None, True, False), (None, False, True), (True, True, True), (False, False, False)],
)
def test_the_demo_is_served_only_where_somebody_looks_or_has_asked_for_it(
    required: bool | None, terminal: bool, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MILLSTREAM_REQUIRE_PROVIDER")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    settings = Settings(require_provider=required)
    if refused:
        with pytest.raises(ConfigurationError, match="no provider is set: set one of OPENAI_API_KEY"):
            llm_service(settings, {})
    else:
        assert llm_service(settings, {}).models is not None


def test_a_provider_is_all_that_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLSTREAM_REQUIRE_PROVIDER", "true")
    monkeypatch.setenv("MILLSTREAM_PROVIDERS", json.dumps({"p": {"type": "scripted"}}))
    assert llm_service(Settings(), {}).unready is not None


async def test_the_file_of_the_guide_says_what_it_says(tmp_path: Path) -> None:
    guide = (Path(__file__).parents[1] / "docs" / "guides" / "providers.md").read_text(encoding="utf-8")
    (tmp_path / "millstream.toml").write_text(guide.split("```toml\n")[1].split("```")[0], encoding="utf-8")
    settings = Settings.load()
    assert list(settings.providers) == ["ollama", "cluster"]
    service = llm_service(settings, {})
    (deployment,) = (await service.resolve("cluster/deepseek-r1")).deployments
    assert (deployment.provider_name, deployment.stream_seconds) == ("cluster", 600)
    assert deployment.tariff is not None
    assert settings.providers["cluster"].quirks is not None
    assert settings.providers["cluster"].quirks.quirks().ends == {"wound_up": "stop", "gave_up": "failed"}
    await service.close()


@pytest.mark.parametrize("where", ["the environment", "the file", "the call"])
async def test_a_setting_that_was_renamed_works_under_its_old_name_and_says_so(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    given: dict[str, Any] = {}
    if where == "the environment":
        monkeypatch.setenv("MILLSTREAM_LOG_MAX_BYTES", "2000000")
    elif where == "the file":
        (tmp_path / "millstream.toml").write_text("log_max_bytes = 2000000")
    else:
        given = {"log_max_bytes": 2_000_000}
    settings = Settings.load(**given)
    assert settings.journal_max_bytes == 2_000_000
    async with Millstream(settings):
        pass
    told = [record.message for record in caplog.records if "MILLSTREAM_LOG_MAX_BYTES" in record.message]
    assert told == [
        "MILLSTREAM_LOG_MAX_BYTES is now MILLSTREAM_JOURNAL_MAX_BYTES; the old name works until version 0.3"
    ]


def test_a_settings_own_name_wins_over_its_old_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLSTREAM_LOG_URL", "redis://old")
    monkeypatch.setenv("MILLSTREAM_JOURNAL_URL", "redis://new")
    assert Settings().journal_url == "redis://new"


_OF_KUBERNETES = {
    "SERVICE_HOST": "10.96.0.12",
    "SERVICE_PORT": "8000",
    "SERVICE_PORT_HTTP": "8000",
    "PORT": "tcp://10.96.0.12:8000",
    "PORT_8000_TCP": "tcp://10.96.0.12:8000",
    "PORT_8000_TCP_PROTO": "tcp",
    "PORT_8000_TCP_PORT": "8000",
    "PORT_8000_TCP_ADDR": "10.96.0.12",
}


@pytest.mark.parametrize("service", ["MILLSTREAM", "MILLSTREAM_REDIS", "MILLSTREAM_POSTGRES_0"])
def test_what_kubernetes_says_of_a_service_is_no_setting(
    service: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in _OF_KUBERNETES.items():
        monkeypatch.setenv(f"{service}_{name}", value)
    assert Settings().port == 8000
    (tmp_path / "millstream.toml").write_text("port = 9")
    assert Settings.load().port == 9


@pytest.mark.parametrize(
    "name", ["MILLSTREAM_REDIS_PORT", "MILLSTREAM_SERVICE_HOSTS", "MILLSTREAM_PORT_HTTP"]
)
def test_a_name_that_is_almost_one_of_kubernetes_is_refused(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, "6379")
    with pytest.raises(ConfigurationError, match=f"there is no setting {name}"):
        Settings.load()


@pytest.mark.parametrize("port", ["http://10.96.0.12:8000", "tcp", "8000/tcp", "70000"])
def test_a_wrong_port_is_an_error(port: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MILLSTREAM_PORT", port)
    with pytest.raises(ConfigurationError, match="setting port: "):
        Settings.load()


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("a folder", "Is a directory"),
        ("a link to nowhere", "No such file or directory: '.*elsewhere'"),
        ("a link to itself", "symbolic links"),
        ("a file in another encoding", "utf-8"),
    ],
)
def test_a_file_that_cannot_be_read_is_not_passed_over(what: str, why: str, tmp_path: Path) -> None:
    file = tmp_path / "millstream.toml"
    if what == "a folder":  # as Docker makes one of a file that is not there
        file.mkdir()
    elif what == "a link to nowhere":
        file.symlink_to(tmp_path / "elsewhere")
    elif what == "a link to itself":
        file.symlink_to(file)
    else:
        file.write_bytes(b"\xff\xfed\0")
    with pytest.raises(ConfigurationError, match=rf"^millstream\.toml cannot be read: .*{why}"):
        Settings.load()


def test_a_path_may_begin_with_the_users_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MILLSTREAM_CA_FILE", "~/ca.pem")
    (tmp_path / "millstream.toml").write_text("""
data_dir = "~/data"
recordings_dir = "~/recordings"
[providers.mine]
type = "local"
path = "~/some.gguf"
ca_file = "~/mine.pem"
[exporters.books]
type = "webhook"
url = "http://x"
secret = "whsec_"
ca_file = "~/books.pem"
""")
    settings = Settings.load()
    provider, exporter = settings.providers["mine"], settings.exporters["books"]
    folders = [settings.data_dir, settings.recordings_dir]
    files = [settings.ca_file, provider.path, provider.ca_file, exporter.ca_file]
    names = ["data", "recordings", "ca.pem", "some.gguf", "mine.pem", "books.pem"]
    assert [*folders, *files] == [tmp_path / name for name in names]
    assert settings.resolved_database_url == f"sqlite:///{tmp_path}/data/millstream.db"
    assert Settings.load(data_dir=Path("~/other")).data_dir == tmp_path / "other"


def test_an_sqlite_url_may_name_the_users_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    url = "sqlite:///~/folder/some.db"
    assert missing_file(url) == tmp_path / "folder" / "some.db"
    Database(url).close()
    assert (tmp_path / "folder" / "some.db").is_file()


def test_a_home_that_nobody_has_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="setting data_dir: ~nobody-at-all/x: it is not known where"):
        Settings.load(data_dir="~nobody-at-all/x")
    assert missing_file("sqlite:///~nobody-at-all/x.db") is None
    with pytest.raises(ConfigurationError, match=r"~nobody-at-all/x\.db cannot be made"):
        Database("sqlite:///~nobody-at-all/x.db")
