"""`GET /openapi.json`: the API described by its own route table and structs, so that it cannot drift from them.

Built once, when the app is made. It describes what this server serves, not all that the contract knows; rules that a
schema cannot say (who may send what, and when) are in the error messages.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.metadata import version
from typing import TypeAlias

import msgspec
from starlette.responses import Response

from corral.api.admission import Endpoint
from corral.api.call import Call
from corral.api.errors import ErrorEnvelope

Json: TypeAlias = dict[str, object]

REFERENCE = "#/components/schemas/{name}"


def endpoint(endpoints: Sequence[Endpoint]) -> Endpoint:
    """The endpoint that shows the document of the others."""
    document = msgspec.json.encode(_document(endpoints))

    async def show(call: Call) -> Response:
        return Response(document, media_type="application/json")

    return Endpoint("GET", "/openapi.json", show, "This document", beta=None, is_open=True)


def _document(endpoints: Sequence[Endpoint]) -> Json:
    named = [shape for each in endpoints for shape in (each.body, each.answer) if shape is not None]
    queries = [each.query for each in endpoints if each.query is not None]
    unique = list(dict.fromkeys([*named, *queries, ErrorEnvelope]))
    schemas, components = msgspec.json.schema_components(unique, schema_hook=_any, ref_template=REFERENCE)
    schema_of = dict(zip(unique, schemas, strict=True))
    paths: dict[str, Json] = {}
    for each in endpoints:
        paths.setdefault(each.path, {})[each.method.lower()] = _operation(each, schema_of, components)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Corral", "version": version("corral"), "description": "The Managed Agents API."},
        "paths": paths,
        "components": {
            "schemas": components,
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
            },
        },
    }


def _operation(endpoint: Endpoint, schema_of: dict[type, Json], components: dict[str, Json]) -> Json:
    answer: Json = {"description": "Done"}
    if endpoint.is_stream:
        answer["content"] = {"text/event-stream": {"schema": {"type": "string"}}}
    elif endpoint.is_binary:
        answer["content"] = {"*/*": {"schema": {"type": "string", "format": "binary"}}}
    elif endpoint.answer is not None:
        answer["content"] = {"application/json": {"schema": schema_of[endpoint.answer]}}
    failure: Json = {
        "description": "Refused or failed",
        "content": {"application/json": {"schema": schema_of[ErrorEnvelope]}},
    }
    operation: Json = {
        "operationId": re.sub(r"\W+", "_", f"{endpoint.method.lower()}{endpoint.path}").rstrip("_"),
        "summary": endpoint.summary,
        "parameters": _parameters(endpoint, components),
        "responses": {"200": answer, "default": failure},
        "security": [] if endpoint.is_open else [{"bearer": []}, {"key": []}],
    }
    if endpoint.body is not None:
        media_type = "multipart/form-data" if endpoint.is_form else "application/json"
        operation["requestBody"] = {"required": True, "content": {media_type: {"schema": schema_of[endpoint.body]}}}
    return operation


def _parameters(endpoint: Endpoint, components: dict[str, Json]) -> list[Json]:
    text: Json = {"type": "string"}
    parameters: list[Json] = [
        {"name": name, "in": "path", "required": True, "schema": text} for name in re.findall(r"{(\w+)}", endpoint.path)
    ]
    if endpoint.beta is not None:
        parameters.append(
            {"name": "anthropic-beta", "in": "header", "required": True, "schema": {"const": endpoint.beta}}
        )
    if endpoint.query is not None:
        for field in msgspec.structs.fields(endpoint.query):
            (schema,), more = msgspec.json.schema_components([field.type], schema_hook=_any, ref_template=REFERENCE)
            components.update(more)
            parameters.append({"name": field.encode_name, "in": "query", "required": False, "schema": schema})
    return parameters


def _any(shape: type) -> Json:
    """The schema of JSON that Corral passes through without looking inside."""
    if shape is object:
        return {"description": "Any JSON value."}
    raise NotImplementedError
