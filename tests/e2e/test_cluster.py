"""Two servers and two workers over one PostgreSQL, one Temporal and one bucket; any of them may be killed."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import httpx2
import pytest
from anthropic import APIStatusError

from corral.app.clock import SystemClock
from corral.domain import intake
from corral.domain.event import UserInterrupt
from corral.domain.ids import new_id
from corral.engines.bus import LocalBus
from corral.interfaces.event_log import Decision
from corral.storage.postgres import open_store
from tests import postgres_server, temporal_server
from tests.contracts.bucket import serving_bucket
from tests.e2e.clusters import Cluster, cluster
from tests.e2e.conftest import API_KEY
from tests.e2e.sessions import bash, history, new_session, reading, results, script, send, texts

WHY = postgres_server.unavailable() or temporal_server.unavailable()
pytestmark = pytest.mark.skipif(WHY is not None, reason=str(WHY))

SECONDS_MAX = 60


@pytest.fixture(scope="module")
def running() -> Generator[Cluster]:
    with serving_bucket() as bucket, cluster(bucket) as made:
        yield made


@pytest.mark.requirement("F094")
def test_a_stream_of_one_server_shows_a_session_that_is_driven_through_the_other(running: Cluster) -> None:
    one, two = running.servers
    with one.client() as reader, two.client() as driver:
        session = new_session(driver)
        for number in range(3):
            with reading(reader, session.id) as stream, reading(driver, session.id) as beside:
                send(driver, session.id, script(bash(f"echo {number}"), {"say": f"Said {number}."}))
                assert stream.idle().type == beside.idle().type == "end_turn"
            assert [event.id for event in stream.seen if event.processed_at] == [
                event.id for event in beside.seen if event.processed_at
            ]
        assert results(history(reader, session.id)) == ["0", "1", "2"]


def test_a_worker_counts_its_requests_and_says_that_it_is_well(running: Cluster) -> None:
    with running.servers[0].client() as client:
        session = new_session(client)
        with reading(client, session.id) as stream:
            send(client, session.id, script({"say": "Counted."}))
            stream.idle()
    key = {"authorization": f"Bearer {API_KEY}"}
    asked = 0.0
    for worker in running.workers:
        assert httpx2.get(f"{worker.base_url}/healthz").json() == {"status": "ok"}
        assert httpx2.get(f"{worker.base_url}/metrics").status_code == 401
        assert httpx2.get(f"{worker.base_url}/v1/sessions", headers=key).status_code == 404
        text = httpx2.get(f"{worker.base_url}/metrics", headers=key).text
        asked += sum(map(float, re.findall(r"^corral_model_requests_total\{[^}]*\} (\S+)$", text, flags=re.MULTILINE)))
    assert asked >= 1


@pytest.mark.requirement("F118")
def test_outputs_of_a_sandbox_on_a_worker_are_listed_through_a_server_while_it_is_in_use(running: Cluster) -> None:
    one, two = running.servers
    with one.client() as reader, two.client() as driver:
        session = new_session(driver)
        for text in ("first", "second"):
            with reading(driver, session.id) as stream:
                send(driver, session.id, script(bash(f"echo {text} > /mnt/session/outputs/o.txt"), {"say": "Done."}))
                stream.idle()
            (listed,) = reader.beta.files.list(scope_id=session.id)
            assert reader.beta.files.download(listed.id).read() == f"{text}\n".encode()
        home, _ = running.home(session.id)
        home.end(signal.SIGKILL)
        with pytest.raises(APIStatusError) as refused:
            reader.beta.files.list(scope_id=session.id)
        assert refused.value.status_code == 529 and "another machine" in refused.value.message
        home.start()


def test_an_interrupt_through_any_server_stops_a_command_on_a_worker(running: Cluster) -> None:
    one, two = running.servers
    with one.client() as reader, two.client() as driver:
        session = new_session(driver)
        with reading(reader, session.id) as stream:
            send(driver, session.id, script(bash("sleep 600"), {"say": "Never."}))
            stream.until("agent.tool_use")
            reader.beta.sessions.events.send(session.id, events=[{"type": "user.interrupt"}])
            stream.idle()


def test_an_interrupt_whose_notice_was_lost_is_found_in_the_log(running: Cluster) -> None:
    with running.servers[0].client() as client:
        session = new_session(client)
        with reading(client, session.id) as stream:
            send(client, session.id, script(bash("sleep 600"), {"say": "Never."}))
            stream.until("agent.tool_use")
            asyncio.run(_interrupt_untold(running.database, session.id))
            stream.idle()


async def _interrupt_untold(database: str, session_id: str) -> None:
    """What a server commits for an interrupt, without telling anybody."""
    store = await open_store(database, LocalBus(frames_max=1, bytes_max=1), SystemClock())
    try:
        events = [UserInterrupt(id=new_id("sevt"))]
        await store.log.transact(
            session_id, lambda session, state, now: Decision(intake.accept(session, state, events, now))
        )
    finally:
        await store.close()


@pytest.mark.requirement("F069")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "stopped"])
def test_a_turn_whose_worker_goes_away_ends_on_the_other(running: Cluster, how: signal.Signals) -> None:
    one, two = running.servers
    with one.client() as reader, two.client() as driver:
        session = new_session(driver)
        with reading(reader, session.id) as stream:
            send(driver, session.id, script(bash("echo begun; touch begun"), bash("sleep 600"), {"say": "Gone on."}))
            stream.until("agent.tool_result")  # the sandbox is made beside the first request, and is there from here on
            stream.until("agent.tool_use")
            home, other = running.home(session.id)
            assert home.end(how) == (0 if how is signal.SIGTERM else -how)
            assert stream.idle().type == "end_turn"
        events = history(driver, session.id)
        first, second = results(events)
        assert first == "begun"
        assert "unknown whether this call took effect" in second and "another machine" in second
        assert texts([event for event in events if event.type == "agent.message"][-1]) == "Gone on."
        assert other.workspace(session.id).exists() and not (other.workspace(session.id) / "begun").exists()
        home.start()


@pytest.mark.parametrize(
    ("arguments", "toml", "said"),
    [
        (["serve", "--no-worker"], 'engine = "local"', "use --engine temporal"),
        (["worker"], "", "needs a database that processes share"),
        (["worker", "--database", "postgresql://x@127.0.0.1:1/x"], "", "needs files that all machines reach"),
        (
            ["worker", "--database", "postgresql://x@127.0.0.1:1/x", "--temporal-address", "127.0.0.1:1"],
            '[blobs]\nbackend = "s3"\nbucket = "b"',
            "No Temporal server answers at 127.0.0.1:1",
        ),
    ],
)
def test_a_process_that_could_not_work_with_the_others_is_refused_in_one_sentence(
    tmp_path: Path, arguments: list[str], toml: str, said: str
) -> None:
    (tmp_path / "corral.toml").write_text(toml, encoding="utf-8")
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "CORRAL_API_KEY": API_KEY}
    command = [sys.executable, "-m", "corral", *arguments, "--data-dir", str(tmp_path / "data")]
    command += ["--config", str(tmp_path / "corral.toml"), "--sandbox", "process"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS_MAX)
    assert done.returncode == 1
    assert said in done.stderr.replace("\n", " ") and "Traceback" not in done.stderr
    assert not (tmp_path / "data" / "api_key").exists()
