"""The Files API: what is uploaded, listed, shown, refused and forgotten; and what must not pass."""

from __future__ import annotations

import io
import socket
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import pytest
from anthropic.types.beta import BetaDeletedFile, BetaFileMetadata

from corral.domain.query import RecordsQuery
from tests.api.live_server import WAIT_SECONDS, Serve, Server
from tests.api.sdk_types import assert_is

BOUNDARY = "corral-test-boundary"
MEGABYTE = 1024 * 1024


def upload(server: Server, data: bytes = b"hello", name: str = "notes.txt", **more: Any) -> BetaFileMetadata:
    return server.client.beta.files.upload(file=(name, data), **more)


def blobs_of(server: Server) -> list[str]:
    """Hashes of all stored blobs; nothing may wait half-written."""
    found = [path for path in (server.directory / "blobs").rglob("*") if path.is_file() and path.name != "lock"]
    assert all(len(path.name) == 64 for path in found)
    return sorted(path.name for path in found)


def records_of(server: Server) -> int:
    """How many records there are of files and of references to blobs."""
    queries = [RecordsQuery(kind=kind, workspace_id=None, limit=1_000) for kind in ("file", "blob_reference")]
    return sum(len(server.run(lambda query=query: server.store.records.page(query))) for query in queries)


def part(disposition: str, data: bytes, *more: str) -> bytes:
    lines = [f"--{BOUNDARY}", f"Content-Disposition: {disposition}", *more, "", ""]
    return "\r\n".join(lines).encode("utf-8", "surrogateescape") + data + b"\r\n"


FILE_PART = part('form-data; name="file"; filename="a.txt"', b"data")
END = f"--{BOUNDARY}--\r\n".encode()


def post(server: Server, body: bytes, **more: str) -> httpx2.Response:
    content_type = f"multipart/form-data; boundary={BOUNDARY}"
    return server.http.post("/v1/files", content=body, headers={"content-type": content_type, **more})


# ------------------------------------------------------------------------------------------------ upload, show


@pytest.mark.requirement("F119")
def test_an_upload_is_shown_as_the_sdk_has_it(server: Server) -> None:
    raw = server.http.post("/v1/files", files={"file": ("notes.txt", b"hello", "text/plain")})
    assert raw.status_code == 200
    assert_is(raw.json(), BetaFileMetadata)
    assert raw.json() | {"id": "", "created_at": ""} == {
        "type": "file",
        "id": "",
        "created_at": "",
        "filename": "notes.txt",
        "mime_type": "text/plain",
        "size_bytes": 5,
        "downloadable": False,
        "expires_at": None,
        "scope": None,
    }
    assert raw.json()["id"].startswith("file_")


def test_metadata_can_be_read_back(server: Server) -> None:
    made = upload(server)
    assert server.client.beta.files.retrieve_metadata(made.id) == made
    assert_is(server.http.get(f"/v1/files/{made.id}").json(), BetaFileMetadata)


@pytest.mark.parametrize("beta", ["files-api-2025-04-14", "files-api-2025-04-14,managed-agents-2026-04-01", ""])
def test_no_beta_is_needed_and_old_ones_are_tolerated(server: Server, beta: str) -> None:
    sent = {"authorization": "Bearer key-one", **({"anthropic-beta": beta} if beta else {})}
    with httpx2.Client(base_url=server.base_url, headers=sent, verify=False) as client:
        assert client.post("/v1/files?beta=true", files={"file": ("a", b"b")}).status_code == 200
        assert client.get("/v1/files").status_code == 200


def test_every_kind_of_file_that_the_sdk_takes_is_accepted(server: Server, tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_bytes(b"a,b\n")
    files = server.client.beta.files
    assert files.upload(file=path).filename == "table.csv"
    assert files.upload(file=io.BytesIO(b"bytes")).size_bytes == 5
    assert files.upload(file=b"bytes").size_bytes == 5
    assert files.upload(file=("x.bin", b"bytes", "application/x-thing")).mime_type == "application/x-thing"


@pytest.mark.parametrize(
    ("name", "given", "mime_type"),
    [
        ("a.pdf", None, "application/pdf"),
        ("a.png", "application/octet-stream", "image/png"),
        ("a.unknown-thing", None, "application/octet-stream"),
        ("a.txt", "Text/CSV; charset=utf-8", "text/csv"),
    ],
)
def test_the_media_type_is_the_one_given_or_the_one_the_name_suggests(
    server: Server, name: str, given: str | None, mime_type: str
) -> None:
    more = [f"Content-Type: {given}"] if given else []
    answer = post(server, part(f'form-data; name="file"; filename="{name}"', b"x", *more) + END)
    assert answer.json()["mime_type"] == mime_type


def test_an_empty_file_is_a_file(server: Server) -> None:
    assert upload(server, b"").size_bytes == 0


def test_a_large_file_goes_through_whole(server: Server) -> None:
    data = bytes(range(256)) * (9 * MEGABYTE // 256)
    made = upload(server, data)
    assert made.size_bytes == len(data)
    chunks = server.run(lambda: _read(server, blobs_of(server)[0]))
    assert chunks == data


async def _read(server: Server, sha256: str) -> bytes:
    return b"".join([chunk async for chunk in server.blobs.open(sha256)])


# --------------------------------------------------------------------------------------------------- filenames


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("../../etc/passwd", "passwd"),
        ("/etc/passwd", "passwd"),
        ("C:\\\\Users\\\\me\\\\a.txt", "a.txt"),
        ("..", "unnamed.txt"),
        ("dir/", "unnamed.txt"),
        ("", "unnamed.txt"),
        ("Grüße 日本.txt", "Grüße 日本.txt"),
        ("a b;c=d.txt", "a b;c=d.txt"),
        ("x" * 255, "x" * 255),
    ],
)
def test_only_the_last_part_of_a_filename_is_kept(server: Server, given: str, kept: str) -> None:
    answer = post(server, part(f'form-data; name="file"; filename="{given}"', b"x", "Content-Type: text/plain") + END)
    assert answer.status_code == 200, answer.text
    assert answer.json()["filename"] == kept


def test_a_file_without_a_filename_is_unnamed(server: Server) -> None:
    answer = post(server, part('form-data; name="file"', b"x", "Content-Type: text/plain") + END)
    assert answer.json()["filename"] == "unnamed.txt"


@pytest.mark.parametrize(
    "name",
    ["a\0b", "a\tb", "a\x7fb", "a\u202eb", "a\u2028b", "x" * 256, "a<b", "a|b", "a?b", "\udcff\udcfe"],
)
def test_a_filename_that_could_deceive_is_refused(server: Server, name: str) -> None:
    answer = post(server, part(f'form-data; name="file"; filename="{name}"', b"x") + END)
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith(("file", "body"))
    assert (blobs_of(server), records_of(server)) == ([], 0)


def test_a_media_type_that_is_none_is_refused(server: Server) -> None:
    answer = post(server, part('form-data; name="file"; filename="a"', b"x", "Content-Type: <script>") + END)
    assert answer.status_code == 400
    assert blobs_of(server) == []


# ------------------------------------------------------------------------------------------------ hostile bodies

TWICE = "file: given more than once"
HOSTILE: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "body: ends before"),
    "only the end": (END, "file: field required"),
    "no file": (part('form-data; name="expires_in_seconds"', b"3600") + END, "file: field required"),
    "two files": (FILE_PART + FILE_PART + END, TWICE),
    "two times the same": (part('form-data; name="expires_in_seconds"', b"3600") * 2 + FILE_PART + END, "expires_in"),
    "unknown field": (part('form-data; name="purpose"', b"x") + FILE_PART + END, "purpose: unknown field"),
    "no name": (part("form-data", b"x") + END, "body: a part without a name"),
    "no disposition": (f"--{BOUNDARY}\r\nX-A: b\r\n\r\nx\r\n".encode() + END, "body: a part without a name"),
    "attachment": (part('attachment; name="file"; filename="a"', b"x") + END, "body: a part without a name"),
    "truncated": (FILE_PART, "body: ends before"),
    "truncated headers": (FILE_PART[:60], "body: ends before"),
    "other boundary": (FILE_PART.replace(BOUNDARY.encode(), b"other") + END, "body: not valid multipart"),
    "not multipart": (b'{"file": "x"}', "body: not valid multipart"),
    "huge header": (part('form-data; name="file"', b"x", "X-Huge: " + "x" * 20_000) + END, "body: not valid"),
    "many headers": (part('form-data; name="file"', b"x", *[f"X-{n}: 1" for n in range(50)]) + END, "body: not valid"),
    "huge field": (part('form-data; name="expires_in_seconds"', b"1" * 5_000) + FILE_PART + END, "expires_in_seconds"),
    "NUL in header": (part('form-data; name="file"; filename="a"', b"x", "X\0Y: b") + END, "body: not valid"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_body_that_is_not_exactly_one_file_is_refused_and_leaves_nothing(server: Server, case: str) -> None:
    body, message = HOSTILE[case]
    answer = post(server, body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["message"].startswith(message), answer.text
    assert (blobs_of(server), records_of(server)) == ([], 0)


@pytest.mark.parametrize("content_type", ["application/json", "multipart/form-data", "multipart/mixed; boundary=x", ""])
def test_a_body_that_is_not_a_form_is_refused(server: Server, content_type: str) -> None:
    answer = server.http.post("/v1/files", content=b"{}", headers={"content-type": content_type})
    assert answer.status_code == 400
    assert "multipart/form-data" in answer.json()["error"]["message"]


def test_a_boundary_without_end_is_refused(server: Server) -> None:
    sent = {"content-type": f"multipart/form-data; boundary={'x' * 3_000}"}
    assert server.http.post("/v1/files", content=b"", headers=sent).status_code == 400


@pytest.mark.parametrize("seconds", ["3599", "7776001", "-1", "1e4", "0x1000", "", "\u0663" * 4, "9" * 30])
def test_an_expiry_out_of_bounds_is_refused(server: Server, seconds: str) -> None:
    answer = server.http.post("/v1/files", files={"file": ("a", b"b")}, data={"expires_in_seconds": seconds})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"].startswith("expires_in_seconds")
    assert (blobs_of(server), records_of(server)) == ([], 0)


def test_a_client_that_goes_away_in_the_middle_leaves_nothing(server: Server) -> None:
    request = (
        f"POST /v1/files HTTP/1.1\r\nhost: x\r\nauthorization: Bearer key-one\r\ncontent-length: 10000000\r\n"
        f"content-type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.port), WAIT_SECONDS) as connection:
        connection.sendall(request.encode() + FILE_PART[:-2] + b"x" * 3 * MEGABYTE)
    upload(server, b"after")  # by then the other request has ended, or at least begun; so look until it has
    assert _eventually(lambda: (len(blobs_of(server)), records_of(server)) == (1, 2))


def _eventually(holds: Callable[[], bool]) -> bool:
    for _ in range(1_000):
        try:
            if holds():
                return True
        except (AssertionError, FileNotFoundError):
            pass
    return False


@pytest.fixture
def small(serve: Serve) -> Server:
    return serve(file_bytes_max=MEGABYTE)


def test_a_file_at_the_limit_is_accepted_and_one_byte_more_is_not(small: Server) -> None:
    assert upload(small, b"x" * MEGABYTE).size_bytes == MEGABYTE
    with pytest.raises(anthropic.RequestTooLargeError) as caught:
        upload(small, b"x" * (MEGABYTE + 1))
    assert "1048576" in caught.value.message
    assert (len(blobs_of(small)), records_of(small)) == (1, 2)


@pytest.mark.parametrize("factor", [1.5, 5])
def test_a_file_far_over_the_limit_is_refused(small: Server, factor: float) -> None:
    with pytest.raises((anthropic.RequestTooLargeError, anthropic.APIConnectionError)):
        upload(small, b"x" * int(MEGABYTE * factor))
    assert blobs_of(small) == []


def test_a_length_that_is_too_large_is_refused_before_the_body_comes(small: Server) -> None:
    request = (
        "POST /v1/files HTTP/1.1\r\nhost: x\r\nauthorization: Bearer key-one\r\nexpect: 100-continue\r\n"
        f"content-length: {MEGABYTE * 1000}\r\ncontent-type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", small.port), WAIT_SECONDS) as connection:
        connection.sendall(request.encode())
        assert connection.recv(100).startswith(b"HTTP/1.1 413")


def test_a_body_without_a_length_is_counted_as_it_comes(small: Server) -> None:
    def endless() -> Iterator[bytes]:
        yield FILE_PART[:-2]
        for _ in range(20):
            yield b"x" * (MEGABYTE // 10)

    content_type = f"multipart/form-data; boundary={BOUNDARY}"
    answer = small.http.post("/v1/files", content=endless(), headers={"content-type": content_type})
    assert answer.status_code == 413
    assert answer.json()["error"]["type"] == "request_too_large"
    assert blobs_of(small) == []


def test_other_routes_keep_their_own_limit(serve: Serve) -> None:
    server = serve(body_bytes_max=1_000)
    assert upload(server, b"x" * 5_000).size_bytes == 5_000
    assert server.http.post("/v1/agents", json={"name": "x" * 2_000, "model": "m"}).status_code == 413


# ---------------------------------------------------------------------------------------------------- download


@pytest.mark.requirement("F120")
def test_an_upload_cannot_be_downloaded(server: Server) -> None:
    made = upload(server)
    with pytest.raises(anthropic.BadRequestError) as caught:
        server.client.beta.files.download(made.id)
    assert caught.value.body == {
        "type": "error",
        "error": {
            "type": "invalid_request_error",
            "message": f"File {made.id} is not downloadable: only what belongs to a session is.",
            "details": {"error_code": "file_not_downloadable"},
        },
        "request_id": caught.value.request_id,
    }


@pytest.mark.requirement("F120")
def test_an_expired_file_is_listed_and_its_content_is_gone(server: Server) -> None:
    made = upload(server, expires_in_seconds=3_600)
    assert made.expires_at is not None
    assert timedelta(seconds=3_599) < made.expires_at - made.created_at < timedelta(seconds=3_601)
    server.clock.advance(3_601)
    with pytest.raises(anthropic.NotFoundError) as caught:
        server.client.beta.files.download(made.id)
    assert '"file_expired"' in caught.value.response.text
    assert server.client.beta.files.retrieve_metadata(made.id).id == made.id
    assert blobs_of(server) == []
    server.client.beta.files.delete(made.id)
    assert records_of(server) == 0


# ------------------------------------------------------------------------------------------------------ delete


def test_a_deleted_file_is_gone_with_its_bytes(server: Server) -> None:
    made = upload(server)
    deleted = server.http.delete(f"/v1/files/{made.id}")
    assert_is(deleted.json(), BetaDeletedFile)
    assert deleted.json() == {"id": made.id, "type": "file_deleted"}
    assert (blobs_of(server), records_of(server)) == ([], 0)
    for call in (server.client.beta.files.retrieve_metadata, server.client.beta.files.delete):
        with pytest.raises(anthropic.NotFoundError):
            call(made.id)
    with pytest.raises(anthropic.NotFoundError):
        server.client.beta.files.download(made.id)


def test_bytes_stay_as_long_as_some_file_has_them(server: Server) -> None:
    first, second = upload(server, name="a"), upload(server, name="b")
    assert first.id != second.id
    assert len(blobs_of(server)) == 1
    server.client.beta.files.delete(first.id)
    assert len(blobs_of(server)) == 1
    server.client.beta.files.delete(second.id)
    assert blobs_of(server) == []


def test_files_of_another_workspace_are_not_there(server: Server) -> None:
    made, other = upload(server), server.sdk("key-two").beta.files
    for call in (other.retrieve_metadata, other.download, other.delete):
        with pytest.raises(anthropic.NotFoundError):
            call(made.id)
    assert list(other.list()) == []
    assert list(other.list(ids=[made.id])) == []
    with pytest.raises(anthropic.NotFoundError):
        other.list(extra_query={"after_id": made.id})
    # The same bytes may be theirs too, and one's deletion is not the other's.
    theirs = server.sdk("key-two").beta.files.upload(file=("notes.txt", b"hello"))
    server.client.beta.files.delete(made.id)
    assert other.retrieve_metadata(theirs.id).size_bytes == 5
    assert len(blobs_of(server)) == 1


def test_without_a_key_nothing_is_read(server: Server) -> None:
    answer = httpx2.post(f"{server.base_url}/v1/files", files={"file": ("a", b"b")}, headers={}, verify=False)
    assert answer.status_code == 401
    assert blobs_of(server) == []


# -------------------------------------------------------------------------------------------------------- list


@pytest.fixture
def many(server: Server) -> list[str]:
    """Ids of files, newest first."""
    return [upload(server, name=f"{number}.txt").id for number in range(25)][::-1]


def get(server: Server, query: str = "") -> Any:
    answer = server.http.get(f"/v1/files{query}")
    assert answer.status_code == 200, answer.text
    assert answer.json().keys() == {"data", "next_page", "has_more", "first_id", "last_id"}
    for each in answer.json()["data"]:
        assert_is(each, BetaFileMetadata)
    return answer.json()


def ids_of(page: Any) -> list[str]:
    return [each["id"] for each in page["data"]]


@pytest.mark.requirement("F119")
def test_a_list_is_newest_first_and_pages_are_followed_by_the_sdk(server: Server, many: list[str]) -> None:
    assert [file.id for file in server.client.beta.files.list(limit=10)] == many
    first = server.client.beta.files.list()
    assert len(first.data) == 20
    assert first.next_page is not None and first.next_page.startswith("page_")


def test_older_clients_page_by_ids(server: Server, many: list[str]) -> None:
    page = get(server, "?limit=10")
    assert (ids_of(page), page["has_more"], page["first_id"], page["last_id"]) == (many[:10], True, many[0], many[9])
    after = get(server, f"?limit=10&after_id={many[9]}")
    assert (ids_of(after), after["has_more"]) == (many[10:20], True)
    last = get(server, f"?limit=10&after_id={many[19]}")
    assert (ids_of(last), last["has_more"], last["next_page"]) == (many[20:], False, None)
    before = get(server, f"?limit=10&before_id={many[20]}")
    assert (ids_of(before), before["has_more"]) == (many[10:20], True)
    assert ids_of(get(server, f"?limit=10&before_id={many[3]}")) == many[:3]
    assert ids_of(get(server, f"?limit=10&before_id={many[0]}")) == []


def test_named_files_are_one_page_and_unknown_ids_are_left_out(server: Server, many: list[str]) -> None:
    wanted = [many[5], "file_unknown", many[2], many[5]]
    assert [file.id for file in server.client.beta.files.list(ids=wanted)] == [many[2], many[5]]
    assert get(server, f"?ids={many[7]}&ids={many[8]}")["has_more"] is False


def test_an_empty_list_has_no_ends(server: Server) -> None:
    assert get(server) == {"data": [], "next_page": None, "has_more": False, "first_id": None, "last_id": None}
    assert get(server, "?scope_id=sesn_unknown")["data"] == []


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=1001",
        "limit=x",
        "page=nonsense",
        "page=page_nonsense",
        "ids[]=a&limit=5",
        "ids[]=a&page=page_x",
        "ids[]=a&after_id=file_x",
        "after_id=a&before_id=b",
        "purpose=x",
        "&".join(f"ids[]={number}" for number in range(101)),
    ],
)
def test_a_list_that_makes_no_sense_is_refused(server: Server, query: str) -> None:
    assert server.http.get(f"/v1/files?{query}").status_code == 400


def test_a_hundred_ids_after_removing_doubles_are_allowed(server: Server) -> None:
    query = "&".join(f"ids[]={number % 100}" for number in range(150))
    assert server.http.get(f"/v1/files?{query}").status_code == 200


def test_a_cursor_of_another_list_is_refused(server: Server, many: list[str]) -> None:
    page = get(server, "?limit=3")["next_page"]
    assert server.http.get(f"/v1/files?scope_id=sesn_x&page={page}").status_code == 400
