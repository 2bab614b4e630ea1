"""The OpenAPI document is valid, whosever application it is of, and says what every endpoint answers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi import Depends, FastAPI
from fastapi.routing import APIRoute
from openapi_spec_validator import validate

from application import Run
from asgi import get
from millstream import Millstream, Settings, get_api_key, require_api_key, require_principal
from millstream.errors import Misuse
from millstream.server.app import create_app

# Whose answers other people describe.
FOREIGN = ("/v1/chat/completions", "/v1/messages", "/v1/responses", "/api/", "/ag-ui")


def ours(tmp_path: Path) -> dict[str, Any]:
    return create_app(Millstream(Settings(data_dir=tmp_path))).openapi()


def somebody_elses(tmp_path: Path) -> dict[str, Any]:
    millstream = Millstream(Settings(data_dir=tmp_path))
    app = FastAPI(lifespan=millstream.lifespan)
    app.include_router(millstream.router, prefix="/ai", tags=["ai"])
    return app.openapi()


@pytest.mark.parametrize("document", [ours, somebody_elses])
def test_the_document_is_valid_and_refers_to_nothing_that_is_not_there(document: Any, tmp_path: Path) -> None:
    found = document(tmp_path)
    validate(found)
    for name in {part.split(chr(34))[0] for part in json.dumps(found).split('"$ref": "#/')[1:]}:
        place: Any = found
        for key in name.split("/"):
            place = place[key]


@pytest.mark.parametrize("document", [ours, somebody_elses])
def test_every_route_but_health_asks_for_a_key(document: Any, tmp_path: Path) -> None:
    found = document(tmp_path)
    (scheme,) = found["components"]["securitySchemes"]
    for path, item in found["paths"].items():
        for operation in item.values():
            open_to_all = path in ("/healthz", "/readyz")
            assert operation.get("security", []) == ([] if open_to_all else [{scheme: []}]), path


def test_a_route_of_ones_own_asks_for_the_same_key(tmp_path: Path) -> None:
    app = FastAPI()

    for path, dependency in [
        ("/a", get_api_key),
        ("/b", require_api_key(scopes=["usage"])),
        ("/c", require_principal()),
    ]:
        app.get(path, dependencies=[Depends(dependency)])(lambda: None)
    app.include_router(Millstream(Settings(data_dir=tmp_path)).router)
    paths = app.openapi()["paths"]
    for path in ("/a", "/b", "/c"):
        assert paths[path]["get"]["security"] == paths["/v1/models"]["get"]["security"]


@pytest.mark.parametrize("name", [lambda route: route.name, lambda route: f"{route.tags[0]}-{route.name}"])
def test_an_application_may_name_operations_as_it_likes(
    tmp_path: Path, name: Callable[[APIRoute], str]
) -> None:
    """A name that is there twice is a warning, and so an error here."""
    app = FastAPI(generate_unique_id_function=name)
    app.include_router(Millstream(Settings(data_dir=tmp_path)).router)
    assert len(app.openapi()["paths"]) > 10


@pytest.mark.parametrize("require", [require_api_key, require_principal])
@pytest.mark.parametrize("scopes", ["chat", ["root"], ["chat", "root"]])
def test_scopes_that_there_are_not_are_refused_when_they_are_asked_for(require: Any, scopes: Any) -> None:
    with pytest.raises(Misuse, match="scopes are a list of chat, usage, admin, not"):
        require(scopes=scopes)


def test_every_answer_and_error_is_described(tmp_path: Path) -> None:
    for path, item in ours(tmp_path)["paths"].items():
        for method, operation in item.items():
            responses = operation["responses"]
            where = f"{method} {path}"
            assert any(status.startswith("2") for status in responses), where
            foreign = path.startswith(FOREIGN)
            if path.startswith(("/v1/", "/api/")):
                assert {"401", "500", "503"} <= responses.keys(), where
            for status, response in responses.items():
                if status == "204":
                    continue
                if foreign:
                    assert response["content"], f"{where} {status}"
                    continue
                media = next(iter(response["content"].values()))  # others are the same as a table
                if path.startswith("/v1/"):
                    said = media["schema"].get("properties") or media["schema"]["type"] == "string"
                    assert said, f"{where} {status}"
                if int(status) >= 400 and path != "/readyz":
                    assert media["schema"]["required"] == ["error"], f"{where} {status}"


async def test_it_is_served(run: Run) -> None:
    async with run() as app, get(app.app, "/openapi.json") as call:
        await call.finished()
        assert call.json["openapi"].startswith("3.1")
