"""What operators see of a real server: its log, its metrics, its traces; and that none of it tells what was said."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import API_KEY, LIVELY, ServerProcess, serving
from tests.e2e.sessions import Json, bash, new_session, script, turn
from tests.e2e.trace_collector import Collector, collecting

SAID = "xyzzy-said-by-the-user"
ANSWERED = "xyzzy-answered"
RUN = "xyzzy-in-a-command"
WORK = script(
    [bash(f"echo {RUN}"), {"tool": "read", "input": {"file_path": f"/nowhere/{RUN}"}}],
    {"fail": "overloaded", "attempts": 1, "say": ANSWERED, "usage": {"input_tokens": 120, "output_tokens": 7}},
)


def work(server: ServerProcess) -> str:
    """A session that answers, calls tools, fails and recovers; its id."""
    with server.client() as client:
        session = new_session(client, model="priced")
        seen = turn(client, session.id, f"{WORK}\n{SAID}")
        assert seen[-1].type == "session.status_idle" and seen[-1].stop_reason.type == "end_turn"
        turn(client, session.id, script({"fail": "refused"}) + f"\n{SAID}")
    return session.id


class Observed:
    """A server's whole life, and what could be seen of it."""

    def __init__(self, collector: Collector, *, content: bool) -> None:
        toml = LIVELY + '[log]\nformat = "json"\nlevel = "debug"\n' + ("[otel]\ncontent = true\n" if content else "")
        variables = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_RESOURCE_ATTRIBUTES": "deployment=test"}
        with serving(toml, variables=variables) as server:
            self.session_id = work(server)
            self.metrics = scrape(server)
            assert server.stop() == 0
            self.log = (server.directory / "server.log").read_text(encoding="utf-8")
        self.collector = collector


def metrics_text(server: ServerProcess) -> str:
    """What Prometheus gets."""
    request = urllib.request.Request(f"{server.base_url}/metrics", headers={"authorization": f"Bearer {API_KEY}"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return answer.read().decode()


def scrape(server: ServerProcess) -> dict[str, float]:
    """Values by series, as `name{labels}`."""
    lines = metrics_text(server).splitlines()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


@pytest.fixture(scope="module")
def observed() -> Iterator[Observed]:
    with collecting() as collector:
        yield Observed(collector, content=False)


@pytest.fixture(scope="module")
def told() -> Iterator[Observed]:
    with collecting() as collector:
        yield Observed(collector, content=True)


def test_every_line_of_the_log_is_an_object_with_the_ids_it_is_about(observed: Observed) -> None:
    lines = [json.loads(line) for line in observed.log.splitlines()]
    requests = [line for line in lines if line["event"] == "request"]
    assert requests and all(line["request_id"].startswith("req_") for line in requests)
    about = [line for line in requests if f"/sessions/{observed.session_id}" in line["path"]]
    assert about and all(line["session_id"] == observed.session_id for line in about)
    assert len({line["request_id"] for line in requests}) == len(requests)
    assert all({"event", "level", "timestamp"} <= line.keys() for line in lines)


def test_the_log_holds_nothing_of_what_was_said_at_any_level(observed: Observed) -> None:
    assert "xyzzy" not in observed.log
    assert "sk-corral" not in observed.log


def test_metrics_count_turns_requests_tools_and_sandboxes(observed: Observed) -> None:
    seen = observed.metrics
    assert seen['corral_turns_total{outcome="rested"}'] == 2
    assert seen["corral_turn_seconds_count"] == 2
    assert seen['corral_model_requests_total{model="priced",outcome="ok"}'] == 2
    assert seen['corral_model_requests_total{model="priced",outcome="ProviderOverloaded"}'] == 1
    assert seen['corral_model_requests_total{model="priced",outcome="ProviderRefused"}'] == 1
    assert seen['corral_model_retries_total{model="priced"}'] == 1
    assert seen['corral_model_tokens_total{kind="output",model="priced"}'] >= 7
    assert seen['corral_model_request_seconds_count{model="priced"}'] == 4
    assert seen['corral_tool_calls_total{outcome="ok",tool="bash"}'] == 1
    assert seen['corral_tool_calls_total{outcome="error",tool="read"}'] == 1
    assert seen['corral_tool_call_seconds_count{tool="bash"}'] == 1
    assert seen['corral_sandbox_starts_total{outcome="cold"}'] == 1
    assert seen["corral_sandbox_start_seconds_count"] == 1
    assert seen["corral_sandboxes_running"] == 1


def test_metrics_show_queues_and_commits(observed: Observed) -> None:
    seen = observed.metrics
    assert seen["corral_sessions_running"] == seen["corral_sessions_waiting"] == 0
    assert seen["corral_store_writes_waiting"] == 0
    assert seen["corral_store_commit_seconds_count"] == seen["corral_store_commit_operations_count"] > 5
    assert seen["corral_http_streams_open"] in (0, 1, 2), "clients that left are noticed at the next ping"
    assert seen["corral_stream_previews_dropped_total"] == seen["corral_stream_readers_cut_off_total"] == 0


def test_no_series_names_a_session_or_a_request(observed: Observed) -> None:
    assert not [name for name in observed.metrics if re.search(r"sesn_|req_|sevt_|xyzzy", name)]


def test_each_turn_is_a_trace_with_its_requests_and_tools(observed: Observed) -> None:
    turns = observed.collector.named("turn")
    assert len(turns) == 2 and all(not turn.parent for turn in turns)
    assert len({turn.trace for turn in turns}) == 2
    assert all(turn.attributes["session.id"] == observed.session_id for turn in turns)
    steps = [span for span in observed.collector.spans if span.parent]
    assert {span.trace for span in steps} == {turn.trace for turn in turns}
    assert {span.parent for span in steps} == {turn.id for turn in turns}
    by_trace = sorted(sorted(span.name for span in steps if span.trace == turn.trace) for turn in turns)
    assert by_trace == [["chat priced"], ["chat priced"] * 3 + ["execute_tool bash", "execute_tool read"]]
    failed = [span.attributes["error.type"] for span in observed.collector.named("chat priced") if span.failed]
    assert sorted(failed) == ["ProviderOverloaded", "ProviderRefused"]
    (read,) = observed.collector.named("execute_tool read")
    assert read.failed and read.attributes["gen_ai.tool.name"] == "read"
    assert {resource["service.name"] for resource in observed.collector.resources} == {"corral"}
    assert {resource["deployment"] for resource in observed.collector.resources} == {"test"}


def test_traces_hold_no_content(observed: Observed) -> None:
    assert b"xyzzy" not in observed.collector.raw


def test_traces_hold_content_when_asked_for(told: Observed) -> None:
    chats = told.collector.named("chat priced")
    assert any(SAID in span.attributes["gen_ai.input.messages"] for span in chats)
    assert any(ANSWERED in span.attributes.get("gen_ai.output.messages", "") for span in chats)
    (call,) = told.collector.named("execute_tool bash")
    assert RUN in call.attributes["gen_ai.tool.call.arguments"]
    assert RUN in call.attributes["gen_ai.tool.call.result"]
    assert "xyzzy" not in told.log


def test_a_collector_that_is_gone_costs_no_turn() -> None:
    with serving(LIVELY, variables={"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9"}) as server:
        with server.client() as client:
            seen: Json = turn(client, new_session(client).id, "Hello?")
            assert seen[-1].stop_reason.type == "end_turn"
        assert server.stop() == 0


def test_another_protocol_is_refused_at_the_start(tmp_path: Path) -> None:
    from tests.e2e.test_cli import corral

    done = corral(
        tmp_path, "serve", OTEL_EXPORTER_OTLP_ENDPOINT="http://127.0.0.1:9", OTEL_EXPORTER_OTLP_PROTOCOL="grpc"
    )
    assert done.returncode == 1 and "http/protobuf only" in done.stderr
