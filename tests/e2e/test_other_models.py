"""The quickstart against other model servers, changed by nothing but `corral.toml`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.contracts.model_server import ModelServer
from tests.e2e.conftest import serving
from tests.e2e.sessions import script
from tests.e2e.test_quickstart import run_program

EXAMPLE = Path(__file__).parents[2] / "examples" / "quickstart.py"


@pytest.fixture(scope="module")
def models() -> Iterator[ModelServer]:
    server = ModelServer()
    yield server
    server.stop()


@pytest.mark.parametrize(
    ("toml", "model"),
    [
        pytest.param('anthropic_base_url = "{url}"', None, id="messages"),
        pytest.param('openai_base_url = "{url}/v1"\n[openai]\nmodel = "other"', "other", id="chat"),
        pytest.param(
            'openai_base_url = "{url}/v1"\n[openai]\nmodel = "other"\nwire = "responses"', "other", id="responses"
        ),
    ],
)
def test_the_quickstart_runs_on_any_wire(models: ModelServer, toml: str, model: str | None) -> None:
    models.requests.clear()
    task = script(
        [{"say": "I will look. "}, {"tool": "bash", "input": {"command": "echo from-the-sandbox"}}],
        {"say": "Done it."},
    )
    with serving(toml.format(url=models.url), models="") as server:
        printed = run_program(server, EXAMPLE, task)
    assert "from-the-sandbox" in printed
    assert printed.index("I will look.") < printed.index("Done it.")
    assert printed.rstrip().endswith("[idle: end_turn]")
    assert len({request.system for request in models.requests}) == 1
    assert model is None or {request.model for request in models.requests} == {model}
