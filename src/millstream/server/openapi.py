"""The OpenAPI document: what routes say of themselves beyond their signatures."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel


def body(model: type[BaseModel]) -> dict[str, Any]:
    """A request body that the route reads itself."""
    schema = {"schema": model.model_json_schema()}
    return {"requestBody": {"required": True, "content": {"application/json": schema}}}


STREAMED: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer as Server-Sent Events, ended by `[DONE]` or an error frame.",
        "content": {"text/event-stream": {"itemSchema": {"type": "object"}}},
    }
}


def schema(app: FastAPI) -> dict[str, Any]:
    """The document of the application that is all ours."""
    if app.openapi_schema is None:
        made = get_openapi(title=app.title, version=app.version, routes=app.routes)
        made.setdefault("components", {})["securitySchemes"] = {
            "key": {"type": "http", "scheme": "bearer", "description": "An API key"}
        }
        for path, item in made["paths"].items():
            for operation in item.values():
                operation["security"] = [{"key": []}] if path.startswith("/v1/") else []
        app.openapi_schema = made
    return app.openapi_schema
