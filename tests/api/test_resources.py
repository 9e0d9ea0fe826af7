"""Files that sessions are given and files that sessions leave: resources, references in messages, outputs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import anthropic
import pytest
from anthropic.types.beta import BetaFileMetadata
from anthropic.types.beta.sessions import BetaManagedAgentsDeleteSessionResource, BetaManagedAgentsFileResource

from tests.api.live_server import Serve, Server, World
from tests.api.sdk_types import assert_is

PNG = b"\x89PNG\r\n\x1a\n" + bytes(32)


def upload(server: Server, data: bytes = b"a,b\n", name: str = "data.csv", **more: Any) -> str:
    return server.client.beta.files.upload(file=(name, data), **more).id


def mount(file_id: str, path: str | None = None) -> Any:
    return {"type": "file", "file_id": file_id, **({} if path is None else {"mount_path": path})}


def mounted(resources: Iterable[object]) -> list[BetaManagedAgentsFileResource]:
    """All resources, which are files."""
    files = [each for each in resources if isinstance(each, BetaManagedAgentsFileResource)]
    assert len(files) == len(list(resources))
    return files


def blobs_of(server: Server) -> list[str]:
    found = [path for path in (server.directory / "blobs").rglob("*") if path.is_file() and path.name != "lock"]
    return sorted(path.name for path in found)


def refused(call: Callable[[], Any]) -> str:
    with pytest.raises(anthropic.BadRequestError) as caught:
        call()
    return caught.value.message


# --------------------------------------------------------------------------------------------------- resources


@pytest.mark.requirement("F113")
def test_a_session_is_given_its_own_copy_of_a_file(world: World) -> None:
    server = world.server
    file_id = upload(server)
    session = server.client.beta.sessions.retrieve(
        world.session(resources=[mount(file_id), mount(file_id, "/in/x.csv")])
    )
    first, second = mounted(session.resources)
    assert first.type == second.type == "file"
    assert first.mount_path == f"/mnt/session/uploads/{file_id}"
    assert second.mount_path == "/mnt/session/uploads/in/x.csv"
    assert len({file_id, first.file_id, second.file_id}) == 3
    copy = server.client.beta.files.retrieve_metadata(first.file_id)
    assert copy.scope is not None and copy.scope.id == session.id
    assert (copy.filename, copy.size_bytes, copy.mime_type) == ("data.csv", 4, "text/csv")
    server.client.beta.files.delete(file_id)
    assert server.client.beta.files.download(first.file_id).read() == b"a,b\n"


@pytest.mark.parametrize(
    ("given", "effective"),
    [
        ("/data.csv", "data.csv"),
        ("data.csv", "data.csv"),
        ("/mnt/session/uploads/data.csv", "data.csv"),
        ("/workspace/data.csv", "workspace/data.csv"),
        ("a/b c/ü.csv", "a/b c/ü.csv"),
    ],
)
def test_a_mount_path_is_rooted_under_the_uploads(world: World, given: str, effective: str) -> None:
    session_id = world.session(resources=[mount(upload(world.server), given)])
    (resource,) = world.client.beta.sessions.resources.list(session_id)
    assert resource.mount_path == f"/mnt/session/uploads/{effective}"


@pytest.mark.parametrize(
    "path",
    ["", "/", "..", "../x", "/a/../../x", "a/./b", "a//b", "a/", "/mnt/session/uploads", "a\0b", "x" * 300, "a\nb"],
)
def test_a_mount_path_that_leads_elsewhere_is_refused(world: World, path: str) -> None:
    file_id = upload(world.server)
    message = refused(lambda: world.session(resources=[mount(file_id, path)]))
    assert "resources.0.mount_path: " in message or "NUL" in message
    assert len(list(world.client.beta.files.list())) == 1


@pytest.mark.parametrize("paths", [("/a", "/a"), ("/a", "a"), ("/a", "/a/b"), ("/a/b/c", "/a")])
def test_two_files_never_share_a_place(world: World, paths: tuple[str, str]) -> None:
    file_id = upload(world.server)
    message = refused(lambda: world.session(resources=[mount(file_id, path) for path in paths]))
    assert "mount_path: " in message
    session_id = world.session(resources=[mount(file_id, paths[0])])
    resources = world.client.beta.sessions.resources
    refused(lambda: resources.add(session_id, type="file", file_id=file_id, mount_path=paths[1]))
    assert len(list(world.client.beta.files.list())) == 2, "copies of refused resources do not stay"


def test_resources_are_added_listed_shown_and_removed_while_the_session_lives(world: World) -> None:
    server, resources = world.server, world.client.beta.sessions.resources
    session_id = world.session()
    added = [resources.add(session_id, type="file", file_id=upload(server, name=f"{n}")) for n in range(5)]
    path = f"/v1/sessions/{session_id}/resources"
    for raw in server.http.get(path).json()["data"]:
        assert_is(raw, BetaManagedAgentsFileResource)
    assert [each.id for each in mounted(resources.list(session_id))] == [each.id for each in added]
    assert [each.id for each in mounted(resources.list(session_id, limit=2))] == [each.id for each in added]
    assert resources.retrieve(added[1].id, session_id=session_id) == added[1]
    raw = server.http.delete(f"{path}/{added[1].id}").json()
    assert_is(raw, BetaManagedAgentsDeleteSessionResource)
    with pytest.raises(anthropic.NotFoundError):
        resources.retrieve(added[1].id, session_id=session_id)
    with pytest.raises(anthropic.NotFoundError):
        server.client.beta.files.retrieve_metadata(added[1].file_id)
    assert len(server.client.beta.sessions.retrieve(session_id).resources) == 4


def test_a_page_goes_on_where_it_ended_although_resources_were_removed(world: World) -> None:
    session_id = world.session(resources=[mount(upload(world.server), f"/{n}") for n in range(6)])
    resources = world.client.beta.sessions.resources
    first = resources.list(session_id, limit=3)
    resources.delete(mounted(first.data or ())[2].id, session_id=session_id)
    assert [each.mount_path[-1] for each in mounted(first.get_next_page().data or ())] == ["3", "4", "5"]


def test_a_file_has_no_token_to_update(world: World) -> None:
    session_id = world.session(resources=[mount(upload(world.server))])
    (resource,) = mounted(world.client.beta.sessions.retrieve(session_id).resources)
    update = world.client.beta.sessions.resources.update
    assert "token" in refused(lambda: update(resource.id, session_id=session_id, authorization_token="x"))


@pytest.mark.parametrize("kind", ["github_repository", "memory_store"])
def test_other_kinds_of_resources_are_refused_by_name(world: World, kind: str) -> None:
    message = refused(lambda: world.session(resources=[{"type": kind, "url": "https://x", "memory_store_id": "m"}]))
    assert f"resources.0: this server does not support {kind} resources yet" in message


def test_files_that_cannot_be_used_are_refused(world: World) -> None:
    server = world.server
    theirs = server.sdk("key-two").beta.files.upload(file=("a", b"b")).id
    expired = upload(server, expires_in_seconds=3_600)
    server.clock.advance(3_601)
    for file_id in ("file_unknown", theirs, expired):
        with pytest.raises(anthropic.NotFoundError) as caught:
            world.session(resources=[mount(file_id)])
        assert "resources.0.file_id: " in caught.value.message
    assert list(world.client.beta.sessions.list()) == []


def test_a_session_has_at_most_five_hundred_files(world: World) -> None:
    file_id = upload(world.server)
    assert "500" in refused(lambda: world.session(resources=[mount(file_id, f"/{n}") for n in range(501)]))


def test_an_archived_session_is_given_nothing(world: World) -> None:
    session_id = world.session()
    world.client.beta.sessions.archive(session_id)
    file_id = upload(world.server)
    add = world.client.beta.sessions.resources.add
    assert "terminated" in refused(lambda: add(session_id, type="file", file_id=file_id))
    assert len(list(world.client.beta.files.list())) == 1


def test_the_files_of_a_session_go_with_it_and_uploads_stay(world: World) -> None:
    kept = upload(world.server, b"kept")
    gone = upload(world.server, b"gone")
    session_id = world.session(resources=[mount(kept), mount(gone)])
    world.client.beta.files.delete(gone)
    assert len(blobs_of(world.server)) == 2
    world.client.beta.sessions.delete(session_id)
    assert [file.id for file in world.client.beta.files.list()] == [kept]
    assert len(blobs_of(world.server)) == 1


def test_resources_of_another_workspace_are_not_there(world: World) -> None:
    session_id = world.session(resources=[mount(upload(world.server))])
    other = world.server.sdk("key-two").beta.sessions.resources
    with pytest.raises(anthropic.NotFoundError):
        other.list(session_id)
    theirs = world.server.sdk("key-two").beta.files.upload(file=("a", b"b")).id
    with pytest.raises(anthropic.NotFoundError):
        other.add(session_id, type="file", file_id=theirs)


# -------------------------------------------------------------------------------------- references in messages


def block(kind: str, file_id: str) -> Any:
    return {"type": kind, "source": {"type": "file", "file_id": file_id}}


def send(world: World, session_id: str, *blocks: Any) -> Any:
    return world.client.beta.sessions.events.send(
        session_id, events=[{"type": "user.message", "content": list(blocks)}]
    )


@pytest.mark.parametrize(
    ("kind", "name", "data"),
    [
        ("image", "a.png", PNG),
        ("document", "a.pdf", b"%PDF"),
        ("document", "a.md", b"# A"),
        ("document", "a.csv", b"a"),
    ],
)
def test_a_message_may_refer_to_a_file(world: World, kind: str, name: str, data: bytes) -> None:
    file_id = upload(world.server, data, name)
    session_id = world.session()
    (event,) = send(world, session_id, block(kind, file_id)).data
    assert event.to_dict()["content"][0]["source"] == {"type": "file", "file_id": file_id}


@pytest.mark.parametrize(
    ("kind", "name", "data"),
    [
        ("image", "a.pdf", b"%PDF"),
        ("image", "a.svg", b"<svg/>"),
        ("document", "a.png", PNG),
        ("document", "a.zip", b"PK"),
        ("document", "a.txt", b""),
        ("image", "a.png", PNG + bytes(8 * 1024 * 1024)),
    ],
)
def test_a_file_that_a_model_cannot_take_is_refused_with_its_path(
    world: World, kind: str, name: str, data: bytes
) -> None:
    file_id = upload(world.server, data, name)
    session_id = world.session()
    good = {"type": "text", "text": "look"}
    assert "events.0.content.1.source.file_id: " in refused(lambda: send(world, session_id, good, block(kind, file_id)))


def test_a_reference_to_no_file_of_this_workspace_is_refused(world: World) -> None:
    session_id = world.session()
    theirs = world.server.sdk("key-two").beta.files.upload(file=("a.txt", b"b")).id
    for file_id in ("file_unknown", theirs, "", "../x"):
        assert "was not found" in refused(lambda file_id=file_id: send(world, session_id, block("document", file_id)))
    assert list(world.client.beta.sessions.events.list(session_id)) == []


def test_a_session_starts_with_at_most_a_hundred_documents(world: World) -> None:
    document = block("document", upload(world.server, b"x", "a.txt"))

    def events(count: int) -> Any:
        return [{"type": "user.message", "content": [document] * count}]

    create = world.client.beta.sessions.create
    place: Any = {"agent": world.agent_id, "environment_id": world.environment_id}
    assert create(**place, initial_events=events(100)).status == "running"
    assert "at most 100 document blocks" in refused(lambda: create(**place, initial_events=events(101)))


# ----------------------------------------------------------------------------------------------------- outputs


class Outputs:
    """A session's outputs as its sandbox has them."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.session_id = world.session()
        self.files = world.server.directory / "sandboxes" / "sessions" / self.session_id / "files"
        self.path = self.files / "outputs"
        self.path.mkdir(parents=True)

    def write(self, name: str, data: bytes = b"result") -> None:
        (self.path / name).parent.mkdir(parents=True, exist_ok=True)
        (self.path / name).write_bytes(data)

    def list(self) -> list[BetaFileMetadata]:
        betas: Any = ["managed-agents-2026-04-01"]
        return list(self.world.client.beta.files.list(scope_id=self.session_id, betas=betas))

    def names(self) -> list[str]:
        return sorted(file.filename for file in self.list())

    def read(self, file_id: str) -> bytes:
        return self.world.client.beta.files.download(file_id).read()


@pytest.fixture
def outputs(world: World) -> Outputs:
    return Outputs(world)


def test_outputs_are_listed_and_downloaded(outputs: Outputs) -> None:
    outputs.write("report.md", b"# Report")
    outputs.write("deep/er/chart.png", PNG)
    files = {file.filename: file for file in outputs.list()}
    assert files.keys() == {"report.md", "chart.png"}
    chart = files["chart.png"]
    assert chart.downloadable is True
    assert chart.scope is not None and (chart.scope.type, chart.scope.id) == ("session", outputs.session_id)
    assert (chart.mime_type, chart.size_bytes) == ("image/png", len(PNG))
    response = outputs.world.client.beta.files.with_raw_response.download(chart.id)
    assert response.headers["content-type"] == "image/png"
    assert response.headers["content-disposition"] == "attachment; filename*=UTF-8''chart.png"
    assert response.headers["content-length"] == str(len(PNG))
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.read() == PNG
    assert outputs.read(files["report.md"].id) == b"# Report"


def test_an_output_keeps_its_id_until_its_content_changes(outputs: Outputs) -> None:
    outputs.write("a.txt", b"one")
    (first,) = outputs.list()
    assert outputs.list() == [first]
    os.utime(outputs.path / "a.txt", (1, 1))
    assert outputs.list() == [first]
    outputs.write("a.txt", b"two")
    (second,) = outputs.list()
    assert second.id != first.id
    assert outputs.read(second.id) == b"two"
    with pytest.raises(anthropic.NotFoundError):
        outputs.read(first.id)
    outputs.write("a.txt", b"one")
    assert [file.id for file in outputs.list()] == [first.id]


def test_an_output_that_its_owner_deleted_stays_away_until_it_is_written_anew(outputs: Outputs) -> None:
    outputs.write("a.txt", b"one")
    (file,) = outputs.list()
    outputs.world.client.beta.files.delete(file.id)
    assert outputs.list() == []
    with pytest.raises(anthropic.NotFoundError):
        outputs.world.client.beta.files.retrieve_metadata(file.id)
    assert blobs_of(outputs.world.server) == []
    outputs.write("a.txt", b"two")
    assert outputs.names() == ["a.txt"]


def test_an_output_that_the_agent_removed_is_gone(outputs: Outputs) -> None:
    outputs.write("a.txt")
    assert outputs.names() == ["a.txt"]
    (outputs.path / "a.txt").unlink()
    assert outputs.names() == []
    assert blobs_of(outputs.world.server) == []


def test_outputs_go_with_their_session(outputs: Outputs) -> None:
    outputs.write("a.txt")
    (file,) = outputs.list()
    outputs.world.client.beta.sessions.delete(outputs.session_id)
    with pytest.raises(anthropic.NotFoundError):
        outputs.read(file.id)
    assert outputs.list() == []
    assert blobs_of(outputs.world.server) == []


def test_outputs_of_another_workspace_are_not_there(outputs: Outputs) -> None:
    outputs.write("a.txt")
    assert list(outputs.world.server.sdk("key-two").beta.files.list(scope_id=outputs.session_id)) == []
    (file,) = outputs.list()
    with pytest.raises(anthropic.NotFoundError):
        outputs.world.server.sdk("key-two").beta.files.download(file.id)


def test_nothing_but_regular_files_is_taken_and_no_link_is_followed(outputs: Outputs, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "key").write_bytes(b"secret")
    outputs.write("good.txt")
    (outputs.path / "link").symlink_to(secret / "key")
    (outputs.path / "folder").symlink_to(secret)
    (outputs.path / "loop").symlink_to(outputs.path)
    (outputs.path / "proc").symlink_to("/proc/self/environ")
    os.mkfifo(outputs.path / "pipe")
    assert outputs.names() == ["good.txt"]


def test_a_link_in_the_place_of_the_outputs_is_not_followed(outputs: Outputs, tmp_path: Path) -> None:
    (tmp_path / "key").write_bytes(b"secret")
    outputs.path.rmdir()
    outputs.path.symlink_to(tmp_path)
    assert outputs.names() == []


def test_names_that_are_hardly_names_are_made_presentable(outputs: Outputs) -> None:
    for name in (b"line\nbreak.txt", b"\xff\xfe.txt", "日本.txt".encode(), b"\xe2\x80\xaeflip.txt", b"x" * 255):
        (Path(os.fsdecode(os.fsencode(outputs.path) + b"/" + name))).write_bytes(name)
    assert outputs.names() == sorted(["line_break.txt", "\ufffd\ufffd.txt", "日本.txt", "_flip.txt", "x" * 255])
    for file in outputs.list():
        response = outputs.world.client.beta.files.with_raw_response.download(file.id)
        assert "\n" not in response.headers["content-disposition"]


def test_outputs_beyond_the_limits_are_left_out(serve: Serve) -> None:
    outputs = Outputs(World(serve(file_bytes_max=1_000, outputs_max=3, outputs_bytes_max=2_000)))
    outputs.write("a", b"x" * 1_001)
    outputs.write("b", b"x" * 1_000)
    outputs.write("c", b"y" * 900)
    outputs.write("d", b"z" * 900)
    outputs.write("e", b"1")
    outputs.write("f", b"2")
    assert outputs.names() == ["b", "c", "e"]


def test_a_deep_tree_ends_somewhere(outputs: Outputs) -> None:
    outputs.write("/".join(["d"] * 40) + "/too-deep")
    outputs.write("/".join(["d"] * 20) + "/deep")
    assert outputs.names() == ["deep"]
