"""Whatever the served OpenAPI document allows, and much that it does not, is answered without a server error.

Requests are generated from `/openapi.json` for every operation, half of them for objects that exist. The examples are
the same in every run.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode

from corral.api.routes import ENDPOINTS
from tests.api.live_server import WAIT_SECONDS, Server, World, headers

OPERATIONS = [(each.method, each.path) for each in ENDPOINTS if not each.is_stream]
EXAMPLES, EXAMPLES_OF_PATHS = 15, 5
"""For each operation and mode; the second, for those that take nothing but what is in their path."""


@cache
def parsed(document: bytes) -> Any:
    """Once for all tests: each has a server of its own, and they all serve the same document."""
    return schemathesis.openapi.from_dict(json.loads(document))


@pytest.mark.parametrize(("method", "path"), OPERATIONS, ids=lambda part: str(part))
def test_no_request_breaks_the_server(server: Server, world: World, method: str, path: str) -> None:
    known = {"agent_id": world.agent_id, "environment_id": world.environment_id, "model_id": "claude-opus-4-8"}
    operation = parsed(server.http.get("/openapi.json").content)[path][method]
    takes_more = operation.body or operation.query
    cases: st.SearchStrategy[Any] = st.one_of([operation.as_strategy(generation_mode=mode) for mode in GenerationMode])

    with requests.Session() as connection:
        connection.trust_env = False

        @settings(
            max_examples=2 * (EXAMPLES if takes_more else EXAMPLES_OF_PATHS),
            derandomize=True,
            database=None,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
        )
        @given(case=cases, exists=st.booleans())
        def answered(case: schemathesis.Case[Any], exists: bool) -> None:
            if exists:
                known["session_id"] = known.get("session_id") or world.session("Hello.")
                case.path_parameters.update({name: known[name] for name in case.path_parameters if name in known})
            response = case.call(base_url=server.base_url, session=connection, headers=headers(), timeout=WAIT_SECONDS)
            assert response.status_code < 500, response.text
            if response.status_code >= 400:
                assert response.json()["error"]["type"] != "api_error"

        answered()
    assert server.http.get("/healthz").status_code == 200
