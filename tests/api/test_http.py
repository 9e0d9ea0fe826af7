"""What holds for every request: ids, keys, versions, betas, envelopes, limits."""

from __future__ import annotations

import gzip
import http.client
import json
import socket
from typing import Any, get_args

import anthropic
import httpx2
import pytest
from anthropic.types import anthropic_beta_param

from corral.api import betas
from corral.errors import Unavailable
from tests.api.live_server import WAIT_SECONDS, Serve, Server, headers

AGENT = {"name": "n", "model": "m"}


def schema(value: bytes) -> bytes:
    """An agent with a tool whose schema holds this JSON."""
    tool = b'{"type":"custom","name":"t","description":"d","input_schema":{"type":"object","a":' + value + b"}}"
    return b'{"name":"n","model":"m","tools":[' + tool + b"]}"


def envelope(response: httpx2.Response, status: int, kind: str) -> str:
    """Check an error's envelope; its message."""
    body = response.json()
    assert response.status_code == status
    assert set(body) == {"type", "error", "request_id"}
    assert body["type"] == "error"
    assert body["error"]["type"] == kind
    assert body["request_id"] == response.headers["request-id"]
    assert body["request_id"].startswith("req_")
    return body["error"]["message"]


def test_every_answer_carries_a_request_id_of_its_own(server: Server) -> None:
    ids = {server.http.get(path).headers["request-id"] for path in ("/healthz", "/v1/agents", "/v1/agents", "/nowhere")}
    assert len(ids) == 4
    with pytest.raises(anthropic.NotFoundError) as caught:
        server.client.beta.agents.retrieve("agent_none")
    assert caught.value.request_id is not None
    assert caught.value.request_id.startswith("req_")


@pytest.mark.parametrize(
    "sent",
    [
        {"authorization": "Bearer key-one"},
        {"authorization": "bearer  key-one"},
        {"x-api-key": "key-one"},
        {"authorization": "Basic abc", "x-api-key": "key-one"},
    ],
)
def test_a_key_is_taken_from_either_header(server: Server, sent: dict[str, str]) -> None:
    response = httpx2.get(
        f"{server.base_url}/v1/agents", headers={**sent, "anthropic-beta": betas.MANAGED_AGENTS}, verify=False
    )
    assert response.status_code == 200


@pytest.mark.parametrize(
    "sent", [{}, {"authorization": "Bearer wrong"}, {"x-api-key": ""}, {"authorization": "Bearer " + "x" * 10_000}]
)
def test_no_key_or_a_wrong_one_is_refused(server: Server, sent: dict[str, str]) -> None:
    response = httpx2.get(f"{server.base_url}/v1/agents", headers=sent, verify=False)
    envelope(response, 401, "authentication_error")


@pytest.mark.parametrize("path", ["/healthz", "/openapi.json"])
def test_health_and_the_api_description_need_no_key(server: Server, path: str) -> None:
    assert httpx2.get(f"{server.base_url}{path}", verify=False).status_code == 200


def test_a_key_of_another_workspace_is_denied(server: Server) -> None:
    ok = server.http.get("/v1/agents", headers={"anthropic-workspace-id": "wrkspc_one"})
    assert ok.status_code == 200
    denied = server.http.get("/v1/agents", headers={"anthropic-workspace-id": "wrkspc_two"})
    envelope(denied, 403, "permission_error")


def test_beta_endpoints_do_not_exist_without_their_beta(server: Server) -> None:
    without = server.http.get("/v1/agents", headers={"anthropic-beta": ""})
    assert betas.MANAGED_AGENTS in envelope(without, 404, "not_found_error")
    assert server.http.get("/v1/models", headers={"anthropic-beta": ""}).status_code == 200


def test_an_unknown_beta_is_refused_by_name(server: Server) -> None:
    response = server.http.get("/v1/models", headers={"anthropic-beta": f"{betas.MANAGED_AGENTS}, managed-agnets-2026"})
    assert "managed-agnets-2026" in envelope(response, 400, "invalid_request_error")


def test_all_betas_of_the_sdk_are_known(server: Server) -> None:
    literal = next(part for part in get_args(anthropic_beta_param.AnthropicBetaParam) if part is not str)
    betas.check(",".join(get_args(literal)), betas.MANAGED_AGENTS)
    two = [("anthropic-beta", "files-api-2025-04-14"), ("anthropic-beta", betas.MANAGED_AGENTS)]
    key = ("authorization", "Bearer key-one")
    assert httpx2.get(f"{server.base_url}/v1/agents", headers=[key, *two], verify=False).status_code == 200


@pytest.mark.parametrize(
    ("version", "status"), [("2023-06-01", 200), ("2026-10-21", 200), ("2022-01-01", 400), ("x", 400)]
)
def test_only_known_api_versions_are_served(server: Server, version: str, status: int) -> None:
    assert server.http.get("/v1/agents", headers={"anthropic-version": version}).status_code == status


def test_unknown_urls_and_methods_answer_with_the_envelope(server: Server) -> None:
    for path in ("/", "/v1", "/v1/agents/", "/v1/nothing", "/v1/agents/a/b/c", "//v1/agents"):
        envelope(server.http.get(path), 404, "not_found_error")
    response = server.http.put("/v1/agents")
    assert "PUT" in envelope(response, 405, "invalid_request_error")
    assert set(response.headers["allow"].split(", ")) == {"GET", "POST"}


def test_beta_in_the_query_is_tolerated_and_anything_else_unknown_is_not(server: Server) -> None:
    assert server.http.get("/v1/agents?beta=true").status_code == 200
    assert server.http.post("/v1/agents?beta=true", json=AGENT).status_code == 200
    for path in ("/v1/agents?limt=3", "/v1/sessions?beta=true&foo=1", "/v1/agents/x?foo", "/healthz?x=1"):
        assert "unknown query parameter" in envelope(server.http.get(path), 400, "invalid_request_error")


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=101",
        "limit=x",
        "limit=1&limit=2",
        "limit=",
        "include_archived=perhaps",
        "page=%00",
        "page=%ff",
    ],
)
def test_bad_query_parameters_are_refused(server: Server, query: str) -> None:
    envelope(server.http.get(f"/v1/agents?{query}"), 400, "invalid_request_error")


@pytest.mark.parametrize(
    "moment", ["yesterday", "2026-01-01", "2026-01-01T00:00:00", "1700000000", "2026-13-01T00:00:00Z"]
)
def test_dates_must_be_rfc_3339_with_a_zone(server: Server, moment: str) -> None:
    response = server.http.get("/v1/agents", params={"created_at[gte]": moment})
    assert envelope(response, 400, "invalid_request_error").startswith("created_at[gte]: ")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"   ",
        b"{",
        b"[]",
        b'"text"',
        b"null",
        b"{} trailing",
        b"\xef\xbb\xbf{}",
        b'{"name":"\xff\xfe","model":"m"}',
        b'{"name":"\\ud800","model":"m"}',
        b'{"name":"\\udc00\\ud800","model":"m"}',
        b'{"name":"a\\u0000b","model":"m"}',
        b'{"name":"n","model":"m","metadata":{"a\\u0000":"b"}}',
        schema(b"NaN"),
        schema(b"9" * 5_000),
        schema(b"[" * 200 + b"]" * 200),
        schema(b"[" * 100_000 + b"]" * 100_000),
        b"[" * 1_000_000,
        gzip.compress(b'{"name":"n","model":"m"}'),
    ],
)
def test_a_body_that_is_no_proper_json_object_is_refused(server: Server, body: bytes) -> None:
    envelope(server.http.post("/v1/agents", content=body), 400, "invalid_request_error")


@pytest.mark.parametrize("path", ["/v1/agents", "/v1/files"])
def test_a_body_that_is_encoded_is_refused_by_name(server: Server, path: str) -> None:
    sent = {"content-encoding": "gzip", "content-type": "multipart/form-data; boundary=x"}
    response = server.http.post(path, content=gzip.compress(b"{}"), headers=sent)
    envelope(response, 400, "invalid_request_error")
    assert response.json()["error"]["details"] == {"error_code": "request_body_encoding_unsupported"}


def test_a_null_character_that_is_only_written_about_passes(server: Server) -> None:
    agent = server.client.beta.agents.create(name="n", model="m", system="the escape \\u0000 is refused")
    assert agent.system == "the escape \\u0000 is refused"


def test_a_text_with_many_brackets_is_not_deep(server: Server) -> None:
    assert server.client.beta.agents.create(name="n", model="m", system="[{" * 10_000).system == "[{" * 10_000


def test_posts_that_carry_nothing_take_nothing(server: Server) -> None:
    agent = server.client.beta.agents.create(name="n", model="m")
    path = f"/v1/agents/{agent.id}/archive"
    assert server.http.post(path, content=b"", headers={"content-type": "application/json"}).status_code == 200
    assert server.http.post(path, json={}).status_code == 200
    assert envelope(server.http.post(path, json={"x": 1}), 400, "invalid_request_error") == "x: unknown field"


def test_a_body_over_the_limit_is_refused_by_its_length(serve: Serve) -> None:
    server = serve(body_bytes_max=1_000)
    response = server.http.post("/v1/agents", json={**AGENT, "system": "x" * 1_500})
    envelope(response, 413, "request_too_large")
    assert server.client.beta.agents.create(name="n", model="m", system="x" * 500).version == 1


def test_a_body_over_the_limit_is_refused_while_it_streams(serve: Serve) -> None:
    server = serve(body_bytes_max=1_000)

    def chunks() -> Any:
        for _ in range(3):
            yield b" " * 400

    envelope(server.http.post("/v1/agents", content=chunks()), 413, "request_too_large")


def test_a_declared_length_far_over_the_limit_is_refused_without_reading(serve: Serve) -> None:
    server = serve(body_bytes_max=1_000)
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=WAIT_SECONDS)
    connection.putrequest("POST", "/v1/agents")
    for name, value in headers(**{"content-length": "9999999999"}).items():
        connection.putheader(name, value)
    connection.endheaders(b"{")
    response = connection.getresponse()
    assert (response.status, response.getheader("connection")) == (413, "close")
    assert json.loads(response.read())["error"]["type"] == "request_too_large"
    connection.close()


def test_requests_of_thirty_megabytes_pass(server: Server) -> None:
    response = server.http.post("/v1/agents", json={**AGENT, "system": "x" * 30_000_000})
    assert "100000" in envelope(response, 400, "invalid_request_error")
    response = server.http.post("/v1/agents", json={**AGENT, "system": "x" * 33_000_000 + "x" * 1_000_000})
    envelope(response, 413, "request_too_large")


def test_rates_are_limited_for_each_key_and_group(serve: Serve) -> None:
    server = serve(rate_limits=True, create_requests_per_minute=2, read_requests_per_minute=3)
    for _ in range(2):
        assert server.http.post("/v1/agents", json=AGENT).status_code == 200
    refused = server.http.post("/v1/agents", json=AGENT)
    envelope(refused, 429, "rate_limit_error")
    assert 1 <= int(refused.headers["retry-after"]) <= 30
    assert server.http.get("/v1/agents").status_code == 200
    assert server.http.post("/v1/agents", json=AGENT, headers=headers("key-two")).status_code == 200
    server.clock.advance(31)
    assert server.http.post("/v1/agents", json=AGENT).status_code == 200
    assert server.http.post("/v1/agents", json=AGENT).status_code == 429


def test_rates_are_not_limited_unless_asked(serve: Serve) -> None:
    server = serve(read_requests_per_minute=1)
    assert {server.http.get("/v1/agents").status_code for _ in range(5)} == {200}


def test_an_unexpected_error_says_nothing_about_itself(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError("the password is hunter2")

    monkeypatch.setattr(server.store.records, "page", broken)
    response = server.http.get("/v1/agents")
    assert envelope(response, 500, "api_error") == "Internal server error."
    assert "hunter2" not in response.text


def test_an_overloaded_store_is_said_to_come_back(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    async def busy(*_: object) -> None:
        raise Unavailable("too many writes are waiting")

    monkeypatch.setattr(server.store.records, "page", busy)
    response = server.http.get("/v1/agents")
    envelope(response, 529, "overloaded_error")
    assert response.headers["retry-after"] == "1"


def test_a_client_that_leaves_in_the_middle_of_its_body_harms_nobody(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), WAIT_SECONDS) as half:
        sent = "".join(f"{name}: {value}\r\n" for name, value in headers().items())
        half.sendall(f"POST /v1/agents HTTP/1.1\r\nhost: x\r\n{sent}content-length: 100\r\n\r\n{{".encode())
    assert server.http.get("/v1/agents").json()["data"] == []


def test_ids_with_strange_characters_are_just_not_found(server: Server) -> None:
    for part in ("%00", "%0a", "a" * 300, "..%2f..", "%F0%9F%90%8E", "' OR 1=1 --"):
        assert server.http.get(f"/v1/sessions/{part}").status_code == 404


def test_the_api_describes_itself(server: Server) -> None:
    document = server.http.get("/openapi.json").json()
    assert document["openapi"] == "3.1.0"
    send = document["paths"]["/v1/sessions/{session_id}/events"]["post"]
    assert send["requestBody"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/EventsSend"}
    references = {part.split('"')[0] for part in json.dumps(document).split('"#/components/schemas/')[1:]}
    assert references <= document["components"]["schemas"].keys()
    limit = next(each for each in document["paths"]["/v1/agents"]["get"]["parameters"] if each["name"] == "limit")
    assert limit["schema"]["maximum"] == 100


def test_metrics_count_requests_by_route(server: Server) -> None:
    server.http.get("/v1/agents/agent_one")
    server.http.get("/v1/agents/agent_two")
    text = server.http.get("/metrics").text
    assert 'corral_http_requests_total{method="GET",route="/v1/agents/{agent_id}",status="404"} 2.0' in text
    assert "agent_one" not in text
    assert "corral_http_streams_open 0.0" in text
    assert httpx2.get(f"{server.base_url}/metrics", verify=False).status_code == 401
