"""What the docker backend says when something is missing, and that it leaves no container behind.

What it promises as every backend does is in `test_sandboxes.py`. The first tests need no engine.
"""

from __future__ import annotations

import os
import platform
import shutil
import socket
from pathlib import Path

import msgspec
import pytest

from corral.config_sections import SandboxSettings
from corral.domain.content import TextBlock
from corral.domain.environment import Limited, Recipe
from corral.errors import MachineUnfit, SandboxUnavailable
from corral.interfaces.sandbox import Sandbox, SandboxCall
from corral.sandboxes.directory import SessionDirectory
from corral.sandboxes.docker import SERVER_LABEL, SESSION_LABEL, DockerSandboxes
from corral.sandboxes.docker_container import variables
from corral.sandboxes.docker_engine import EngineApi
from corral.sandboxes.seccomp_profile import all_but, profile
from tests import docker_engine

pytestmark = pytest.mark.anyio
SESSION = "sesn_docker"


@pytest.fixture
def settings() -> SandboxSettings:
    """For the engine of the tests."""
    if reason := docker_engine.why_not():
        pytest.skip(reason)
    return docker_engine.settings_for_docker(SandboxSettings())


def with_docker(settings: SandboxSettings, **changes: object) -> SandboxSettings:
    return msgspec.structs.replace(settings, docker=msgspec.structs.replace(settings.docker, **changes))


async def why_not(settings: SandboxSettings, directory: Path) -> str:
    with pytest.raises(MachineUnfit) as caught:
        await DockerSandboxes(settings, directory).start()
    return caught.value.message


def containers(settings: SandboxSettings, **labels: str) -> set[str]:
    """The sessions that have containers."""
    return EngineApi(settings.docker).values_of(SESSION_LABEL, labels)


async def output_of(sandbox: Sandbox, command: str) -> str:
    reply = await sandbox.call(SandboxCall(call_id=command, operation="bash", arguments={"command": command}))
    (block,) = reply.content
    assert isinstance(block, TextBlock)
    return block.text


async def test_an_engine_that_does_not_run_is_said(tmp_path: Path) -> None:
    settings = with_docker(SandboxSettings(), host=f"unix://{tmp_path}/none")
    said = await why_not(settings, tmp_path)
    assert f"No engine runs at unix://{tmp_path}/none" in said and "DOCKER_HOST" in said
    (fact,) = DockerSandboxes(settings, tmp_path).explain()
    assert not fact.ok and fact.detail == said


async def test_an_engine_elsewhere_is_refused(tmp_path: Path) -> None:
    settings = with_docker(SandboxSettings(), host="tcp://203.0.113.7:2375")
    assert "need a local engine" in await why_not(settings, tmp_path)


async def test_a_socket_of_others_is_said(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may use every socket")
    with socket.socket(socket.AF_UNIX) as engine:
        engine.bind(str(tmp_path / "s"))
        engine.listen()
        (tmp_path / "s").chmod(0)
        said = await why_not(with_docker(SandboxSettings(), host=f"unix://{tmp_path}/s"), tmp_path)
    assert "docker" in said and "group" in said


def test_all_numbers_but_some_are_covered_and_they_are_not() -> None:
    covered = list(all_but([0x5412, 0x541C]))
    for number in (0, 1, 0x5401, 0x5411, 0x5413, 0x541B, 0x541D, 0x80045430, 0xFFFFFFFF, 0x5412, 0x541C):
        matched = any(number & mask == value for mask, value in covered)
        assert matched == (number not in (0x5412, 0x541C)), hex(number)


def test_the_profile_refuses_what_is_not_named() -> None:
    rules = profile(platform.machine())
    assert rules["defaultAction"] == "SCMP_ACT_ERRNO"
    allowed = {
        name
        for rule in msgspec.convert(rules["syscalls"], list[dict[str, object]])
        for name in msgspec.convert(rule["names"], list[str])
        if rule["action"] == "SCMP_ACT_ALLOW" and "args" not in rule
    }
    assert {"read", "execve", "futex", "openat"} <= allowed
    assert not allowed & {"mount", "ptrace", "bpf", "io_uring_setup", "clone", "clone3", "socket", "ioctl", "keyctl"}


def test_what_an_image_sets_holds_inside_behind_what_is_installed() -> None:
    image = {
        "PATH": "/image/bin",
        "GEM_HOME": "/image/gems",
        "NODE_PATH": "/image/js",
        "HOME": "/root",
        "COLOUR": "green",
    }
    inside = variables(image)
    assert inside["PATH"].startswith("/home/agent/.local/bin:") and "/pip/bin:/image/bin:" in inside["PATH"]
    assert inside["GEM_PATH"].endswith("/gem:/image/gems:") and inside["NODE_PATH"].endswith("/node_modules:/image/js")
    assert (inside["HOME"], inside["COLOUR"]) == ("/home/agent", "green")


# ---------------------------------------------------------------------------------------------- with an engine


async def test_an_image_that_is_missing_names_the_remedy(settings: SandboxSettings, tmp_path: Path) -> None:
    said = await why_not(with_docker(settings, image="corral-tests-none:1"), tmp_path)
    assert "docker pull corral-tests-none:1" in said


async def test_a_runtime_that_is_missing_is_said(settings: SandboxSettings, tmp_path: Path) -> None:
    said = await why_not(with_docker(settings, runtime="runxyz"), tmp_path)
    assert "no runtime `runxyz`" in said and "runc" in said


async def test_an_environment_can_have_an_image_of_its_own(settings: SandboxSettings, tmp_path: Path) -> None:
    docker_engine.make_image("corral-tests-bare:1", ["sh"])
    images = {"bare": "corral-tests-bare:1", "gone": "corral-tests-none:1"}
    sandboxes = DockerSandboxes(with_docker(settings, images=images), tmp_path)
    try:
        for environment, said in (("bare", "python3"), ("gone", "docker pull corral-tests-none:1")):
            with pytest.raises(SandboxUnavailable, match=said):
                await sandboxes.open(SESSION, Recipe(networking=Limited(), environment=environment))
        assert await output_of(await sandboxes.open(SESSION), "echo fine") == "fine"
    finally:
        await sandboxes.destroy(SESSION)
        await sandboxes.close()


async def test_no_container_is_left(settings: SandboxSettings, tmp_path: Path) -> None:
    sandboxes = DockerSandboxes(settings, tmp_path)
    await sandboxes.open(SESSION)
    await sandboxes.open("sesn_other")
    (server,) = EngineApi(settings.docker).values_of(SERVER_LABEL, {SESSION_LABEL: SESSION})
    mine = {SERVER_LABEL: server}
    assert containers(settings, **mine) == {SESSION, "sesn_other"}
    await sandboxes.destroy(SESSION)
    assert containers(settings, **mine) == {"sesn_other"}
    # As if somebody had removed the directory by hand while no server ran.
    await sandboxes.close()
    directory = SessionDirectory(tmp_path / "sandboxes", "sesn_other")
    shutil.rmtree(directory.path)
    await DockerSandboxes(settings, tmp_path).start()
    assert containers(settings, **mine) == set()


async def test_the_door_is_closed_and_what_it_led_to_is_not_inside(settings: SandboxSettings, tmp_path: Path) -> None:
    sandboxes = DockerSandboxes(settings, tmp_path)
    try:
        sandbox = await sandboxes.open(SESSION)
        look = "ls /opt/corral/door/socket /tmp/.corral-start 2>&1 | grep -c 'No such file'"
        assert await output_of(sandbox, f"{look}; find / -xdev -type s 2>/dev/null") == "2"
    finally:
        await sandboxes.destroy(SESSION)
        await sandboxes.close()
