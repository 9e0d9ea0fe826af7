"""The command line: what it prints, and that what cannot work is one sentence and exit code 1."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.e2e.conftest import API_KEY, ServerProcess
from tests.e2e.sessions import script
from tests.places import stage

SCRIPTED = '[[models]]\npattern = "*"\nprovider = "scripted"\n'


def corral(directory: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    (directory / "corral.toml").write_text(SCRIPTED, encoding="utf-8")
    command = [sys.executable, "-m", "corral", *arguments]
    # Sandboxes of a root server run as other users, who cannot pass through pytest's directories.
    with tempfile.TemporaryDirectory(prefix="corral-cli-") as sandboxes:
        Path(sandboxes).chmod(0o711)
        stage(Path(sandboxes))
        environment = {"PATH": os.environ["PATH"], "HOME": str(directory), "COLUMNS": "200"}
        environment |= {"CORRAL_SANDBOX_DIR": sandboxes, **variables}
        return subprocess.run(
            command, cwd=directory, env=environment, capture_output=True, text=True, timeout=120, check=False
        )


def test_run_streams_the_answer_and_lists_the_files(tmp_path: Path) -> None:
    prompt = script(
        [{"say": "Writing."}, {"tool": "write", "input": {"file_path": "kept/a.txt", "content": "x"}}],
        {"say": "Finished."},
    )
    done = corral(tmp_path, "run", "--sandbox", "process", prompt)
    assert done.returncode == 0, done.stderr
    assert done.stdout.index("Writing.") < done.stdout.index("▸ write") < done.stdout.index("Finished.")
    assert "kept/a.txt" in done.stdout.split("Files in the session's workspace")[1]


def test_keys_are_made_listed_and_revoked(tmp_path: Path) -> None:
    made = corral(tmp_path, "keys", "create", "--workspace", "wrkspc_team", "--name", "laptop")
    assert made.returncode == 0, made.stderr
    key_id, secret = made.stdout.split()[0], made.stdout.split()[-1]
    assert secret.startswith("sk-corral-")
    revoked = corral(tmp_path, "keys", "revoke", key_id)
    assert revoked.returncode == 0, revoked.stderr
    (row,) = [line for line in corral(tmp_path, "keys", "list").stdout.splitlines() if key_id in line]
    assert "wrkspc_team" in row and "laptop" in row and "revoked" in row
    assert secret not in row


def test_a_key_of_another_workspace_sees_nothing_and_is_refused_once_revoked(server: ServerProcess) -> None:
    import anthropic

    data = ("--data-dir", str(server.directory / "data"))
    made = corral(server.directory, "keys", "create", "--workspace", "wrkspc_other", *data)
    secret = made.stdout.split()[-1]
    with server.client() as ours, anthropic.Anthropic(base_url=server.base_url, api_key=secret) as theirs:
        agent = ours.beta.agents.create(name="private", model="scripted")
        assert not list(theirs.beta.agents.list())
        with pytest.raises(anthropic.NotFoundError):
            theirs.beta.agents.retrieve(agent.id)
    assert secret != API_KEY


def test_doctor_says_that_a_session_can_run_here(tmp_path: Path) -> None:
    done = corral(tmp_path, "doctor")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "A session can run here." in done.stdout
    assert "egress proxy: starts, and refused what nothing allows" in done.stdout


def test_doctor_puts_sandboxes_to_the_test(tmp_path: Path) -> None:
    done = corral(tmp_path, "doctor", "sandbox", "--sandbox", "process")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "leaves nothing when it is destroyed" in done.stdout and "isolates nothing" in done.stdout
    assert "10 of 10 checks passed." in done.stdout


def test_an_engine_that_does_not_run_is_one_sentence(tmp_path: Path) -> None:
    for command in (["doctor", "sandbox"], ["serve"]):
        done = corral(tmp_path, *command, "--sandbox", "docker", DOCKER_HOST=f"unix://{tmp_path}/none")
        assert done.returncode == 1 and "Traceback" not in done.stderr
        assert "No engine runs at" in done.stderr and "`[sandbox.docker] host`" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["serve", "--sandbox", "kubernetes"], "`kubernetes` sandbox is not part of this release"),
        (["serve", "--sandbox", "chroot"], "sandbox.backend"),
        (["serve", "--engine", "temporal"], "The temporal engine needs a database that processes share"),
        (["serve", "--database", "postgresql://127.0.0.1:1/corral"], "No PostgreSQL server answers for `corral`"),
        (["serve", "--port", "70000"], "port"),
        (["serve", "--host", "203.0.113.7", "--port", "0"], "Cannot listen on 203.0.113.7"),
        (["serve", "--config", "missing.toml"], "missing.toml"),
        (["keys", "revoke", "apikey_unknown"], "apikey_unknown"),
    ],
)
def test_what_cannot_work_is_one_sentence(tmp_path: Path, arguments: Sequence[str], said: str) -> None:
    done = corral(tmp_path, *arguments)
    assert done.returncode == 1
    assert said in done.stderr and "Traceback" not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_second_server_on_the_same_data_is_refused(server: ServerProcess) -> None:
    done = corral(server.directory, "serve", "--port", "0", "--data-dir", str(server.directory / "data"))
    assert done.returncode == 1
    assert "in use by process" in done.stderr
