"""`web_fetch` against real servers: what it makes of pages, and what it refuses, however it is asked."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import anyio
import pytest

from corral.config_sections import WebSettings
from corral.domain.content import Base64Source, DocumentBlock, ImageBlock, TextBlock
from corral.domain.toolset import AlwaysAllow, ToolConfig
from corral.domain.url import Url
from corral.domain.web import Source, ToolReference, UrlsNone, UrlsOnly, UrlSources
from corral.interfaces.sandbox import SandboxReply
from corral.tools.web_fetch import WebFetch
from tests.contracts.web_site import PDF, PIXEL, Site, site, tls_site

pytestmark = pytest.mark.requirement("F022")
SECONDS_MAX = 120
LOOPBACK = ("127.0.0.1/32",)


@pytest.fixture(scope="module")
def web() -> Iterator[Site]:
    with site() as running:
        yield running


class Reader(NamedTuple):
    """Fetches with settings of the test's own."""

    settings: WebSettings

    def __call__(self, url: str, config: ToolConfig | None = None, *shown: Source) -> SandboxReply:
        async def run() -> SandboxReply:
            tool = WebFetch(self.settings)
            with anyio.fail_after(SECONDS_MAX):
                try:
                    return await tool.run({"url": url}, config, sources)
                finally:
                    await tool.close()

        def sources(url: Url) -> Collection[Source]:
            return shown

        return asyncio.run(run())

    def text(self, url: str, config: ToolConfig | None = None) -> str:
        reply = self(url, config)
        assert not reply.is_error, reply
        return said(reply)

    def failure(self, url: str, config: ToolConfig | None = None, *shown: Source) -> str:
        reply = self(url, config, *shown)
        assert reply.is_error, reply
        return said(reply)


def said(reply: SandboxReply) -> str:
    return "\n".join(block.text for block in reply.content if isinstance(block, TextBlock))


def reader(**changes: object) -> Reader:
    values: dict[str, object] = {"allowed_private": LOOPBACK, "page_bytes_max": 1024 * 1024, **changes}
    return Reader(WebSettings(**values))  # pyright: ignore[reportArgumentType]  # checked by the struct


def config(**fields: object) -> ToolConfig:
    values: dict[str, object] = {"name": "web_fetch", "type": "web_fetch", "enabled": True, **fields}
    return ToolConfig(permission_policy=AlwaysAllow(), **values)  # pyright: ignore[reportArgumentType]  # checked by msgspec elsewhere


def at(server: Site, path: str = "/", host: str = "127.0.0.1") -> str:
    return f"http://{host}:{server.port}{path}"


# ---------------------------------------------------------------------------------------------- what pages become


def test_html_is_markdown_with_its_title_and_whole_links(web: Site) -> None:
    text = reader().text(at(web))
    assert text.startswith("# A page\n")
    assert "Some **bold** words" in text and f"[a link]({at(web, '/more')})" in text and "| 1 | 2 |" in text
    assert not any(word in text for word in ("evil", "p{}", "unseen", "<"))


def test_text_and_json_stay_as_they_are(web: Site) -> None:
    assert reader().text(at(web, "/more")) == "more"
    assert reader().text(at(web, "/json")) == '{"a": [1, 2]}'
    assert "typed by nobody" in reader().text(at(web, "/untyped"))
    assert reader().text(at(web, "/empty")) == "(The page has no text.)"


def test_pictures_and_pdfs_are_blocks(web: Site) -> None:
    (picture,) = reader()(at(web, "/pixel")).content
    assert isinstance(picture, ImageBlock) and isinstance(picture.source, Base64Source)
    assert (picture.source.media_type, len(picture.source.data)) == ("image/png", (len(PIXEL) + 2) // 3 * 4)
    (document,) = reader()(at(web, "/pdf")).content
    assert isinstance(document, DocumentBlock) and isinstance(document.source, Base64Source)
    assert (document.source.media_type, len(document.source.data)) == ("application/pdf", (len(PDF) + 2) // 3 * 4)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/latin", "caf\xe9"),
        ("/undeclared", "caf\xe9 \u201c"),
        ("/russian", "\u043f\u0440\u0438\u0432\u0435\u0442"),
        ("/japanese", "\u65e5\u672c\u8a9e"),
        ("/wide", "wide \u20ac"),
        ("/no-charset", "caf\xe9"),
    ],
)
def test_charsets_are_read_as_browsers_read_them(web: Site, path: str, text: str) -> None:
    assert reader().text(at(web, path)) == text


@pytest.mark.parametrize("path", ["/zip", "/no-picture", "/no-pdf", "/no-text"])
def test_what_no_model_reads_is_refused_with_a_sentence(web: Site, path: str) -> None:
    assert reader().failure(at(web, path)).startswith("unsupported_content_type: The page ")


def test_errors_say_their_status_and_what_the_page_says(web: Site) -> None:
    assert reader().failure(at(web, "/status/503")) == (
        "url_not_accessible: 127.0.0.1 answers with HTTP 503 Service Unavailable.\n# Sorry\n\nNot today."
    )
    assert reader().failure(at(web, "/status/429")).startswith("too_many_requests: ")


def test_a_page_may_be_cut_at_a_number_of_tokens(web: Site) -> None:
    text = reader().text(at(web, "/long"), config(max_content_tokens=5))
    assert text == "0123456789" * 2 + "\n\n[… cut at the limit of tokens for one page]"
    assert reader()(at(web, "/pdf"), config(max_content_tokens=5)).content[0].__class__ is DocumentBlock


def test_requests_carry_a_name_and_nothing_of_the_last_one(web: Site) -> None:
    assert reader().text(at(web, "/cookie/")).endswith("more")
    headers = web.headers[-1]
    assert headers["user-agent"].startswith("corral/")
    assert not {"cookie", "authorization", "referer"} & {name.lower() for name in headers}


# --------------------------------------------------------------------------------------------------- hostile pages


@pytest.mark.parametrize("path", ["/endless/text/plain", "/endless/text/html", "/bomb/gzip", "/bomb/deflate"])
def test_pages_without_end_and_bombs_are_cut(web: Site, path: str) -> None:
    text = reader().text(at(web, path))
    assert text.endswith("[… the rest of the page is too long to read]")
    assert len(text) < 1024 * 1024 + 100


@pytest.mark.parametrize("kind", ["application/pdf", "image/png"])
def test_documents_and_pictures_without_end_are_refused(web: Site, kind: str) -> None:
    few = reader(pdf_bytes_max=1024 * 1024, image_base64_bytes_max=1024 * 1024)
    assert few.failure(at(web, f"/endless/{kind}")).startswith("content_too_large: ")


def test_encodings_in_rows_are_refused(web: Site) -> None:
    assert reader().text(at(web, "/layers/1")) == "text"
    assert reader().failure(at(web, "/layers/3")).startswith("unsupported_content_type: ")


@pytest.mark.parametrize("part", ["body", "head"])
def test_a_server_that_drips_is_left_in_time(web: Site, part: str) -> None:
    hasty = reader(fetch_seconds_max=1.0)
    assert hasty.failure(at(web, f"/drip/{part}")) == "url_not_accessible: 127.0.0.1 did not answer in time."


@pytest.mark.parametrize("path", ["/headers/", "/garbage/"])
def test_answers_that_are_no_http_are_refused(web: Site, path: str) -> None:
    assert "does not answer as HTTP servers do" in reader().failure(at(web, path))


def test_broken_html_is_read_as_far_as_it_goes(web: Site) -> None:
    text = reader().text(at(web, "/broken"))
    assert all(word in text for word in ("one", "two", "three", "four"))


def test_millions_of_nested_tags_end_in_time_and_memory(web: Site) -> None:
    deep = reader(page_bytes_max=50 * 1024 * 1024)(at(web, "/nested"))
    assert "(The page has no text.)" in said(deep) or "unavailable" in said(deep)
    poor = reader(page_bytes_max=50 * 1024 * 1024, convert_memory_bytes_max=200 * 1024 * 1024)
    assert poor.failure(at(web, "/nested")) == "unavailable: The page is HTML that no sense can be made of."


def test_html_that_takes_too_long_is_given_up(web: Site) -> None:
    hasty = reader(convert_seconds_max=0.001)
    assert hasty.failure(at(web, "/links")) == "unavailable: The page takes too long to make sense of."


# ------------------------------------------------------------------------------------------ where it may not lead


PRIVATE = [
    "http://127.0.0.1/", "http://localhost/", "http://2130706433/", "http://0x7f.1/", "http://0177.0.0.1/",
    "http://127.1/", "http://[::1]/", "http://[::ffff:127.0.0.1]/", "http://[::ffff:a9fe:a9fe]/", "http://[64:ff9b::7f00:1]/",
    "http://169.254.169.254/latest/meta-data/", "http://[fd00:ec2::254]/", "http://10.0.0.1/", "http://192.168.0.1./",
    "http://0.0.0.0/", "http://[fe80::1]/", "http://100.100.100.200/",
]  # fmt: skip


@pytest.mark.parametrize("url", PRIVATE)
def test_addresses_that_are_not_public_are_refused_in_every_spelling(url: str) -> None:
    assert reader(allowed_private=()).failure(url).startswith("url_not_allowed: ")


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd", "gopher://example.com/", "ftp://example.com/", "data:text/plain,hi", "javascript:1",
        "http://user@example.com/", "http://user:password@example.com/", "http://127.0.0.1@example.com/",
        "http:///path", "http://exa mple.com/", "http://example.com\\@127.0.0.1/", "http://example.com:99999/",
        "http://ex\tample.com/", "http://[::1", "http://[fe80::1%25eth0]/", "//example.com/", "example.com",
        "http://256.256.256.256/", "http://example.com/" + "a" * 5_000,
    ],
)  # fmt: skip
def test_what_is_no_plain_web_url_is_refused(url: str) -> None:
    assert reader().failure(url).startswith("url_not_allowed: ")


@pytest.mark.parametrize(
    "target",
    [
        "http://169.254.169.254/latest/meta-data/", "file:///etc/passwd", "http://[::ffff:10.0.0.1]/",
        "http://user:password@127.0.0.1/", "gopher://127.0.0.1:25/", "http://2852039166/", "http://127.0.0.2/",
    ],
)  # fmt: skip
def test_redirects_are_held_to_the_same_rules(web: Site, target: str) -> None:
    assert reader().failure(at(web, f"/redirect/{quote(target, safe='')}")).startswith("url_not_allowed: ")


def test_redirects_are_followed_and_told_but_not_for_ever(web: Site) -> None:
    text = reader().text(at(web, "/redirect/%2Fmore"))
    assert text == f"[Redirected to {at(web, '/more')}]\nmore"
    before = len(web.seen)
    assert reader().failure(at(web, "/loop/0")) == "url_not_accessible: More than 5 redirects."
    assert len(web.seen) == before + 6


def test_a_name_that_leads_to_a_private_address_is_refused_though_it_is_listed() -> None:
    named = reader(allowed_private=(), hosts={"inside.example": "10.1.2.3"})
    failure = named.failure("http://inside.example/", config(allowed_domains=("inside.example",)))
    assert failure.startswith("url_not_allowed: ") and "10.1.2.3" not in failure


def test_lists_of_domains_hold_for_each_hop(web: Site) -> None:
    hosts = dict.fromkeys(("docs.good.example", "bad.example", "goodexample.com"), "127.0.0.1")
    named = reader(hosts=hosts)
    only = config(allowed_domains=("Good.example",))
    assert named.text(at(web, "/more", "docs.good.example"), only) == "more"
    assert named.text(at(web, "/more", "DOCS.good.example."), only) == "more"
    for url in (at(web, "/more", "bad.example"), at(web, "/more", "goodexample.com"), at(web, "/more")):
        assert named.failure(url, only).startswith("url_not_allowed: The agent's settings")
    away = "/redirect/" + quote(at(web, "/more", "bad.example"), safe="")
    assert named.failure(at(web, away, "docs.good.example"), only).startswith("url_not_allowed: ")
    without = config(blocked_domains=("bad.example",))
    assert named.failure(at(web, "/more", "bad.example"), without).startswith("url_not_allowed: ")
    assert named.text(at(web, "/more", "docs.good.example"), without) == "more"


def test_a_name_is_looked_up_once_and_the_connection_goes_to_what_was_found(web: Site) -> None:
    _watch.lookups.clear()
    _watch.connections.clear()
    _watch.on = True
    try:
        assert reader().text(at(web, "/more", "localhost")) == "more"
    finally:
        _watch.on = False
    assert _watch.lookups == ["localhost"]
    assert _watch.connections == [("127.0.0.1", web.port)]


class _Watch:
    """What Python itself reports of look-ups and connections; hooks stay for good, so this one sleeps."""

    def __init__(self) -> None:
        self.on = False
        self.lookups: list[object] = []
        self.connections: list[object] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.on and event == "socket.getaddrinfo":
            self.lookups.append(arguments[0])
        if self.on and event == "socket.connect" and str(arguments[1]) != "('127.0.0.1', 9)":
            self.connections.append(arguments[1])


_watch = _Watch()


def test_tls_speaks_of_the_name_and_trusts_no_stranger(tmp_path: Path) -> None:
    name = "secure.example"
    with tls_site(name, tmp_path) as (server, authority):
        url = f"https://{name}:{server.port}/more"
        hosts = {name: "127.0.0.1", "other.example": "127.0.0.1"}
        trusting = reader(hosts=hosts, ca_file=str(authority))
        assert trusting.text(url) == "more"
        assert server.seen == [(f"{name}:{server.port}", "/more")]
        assert reader(hosts=hosts).failure(url) == f"url_not_accessible: The certificate of {name} cannot be trusted."


def test_nobody_home_is_said_so(web: Site) -> None:
    with site() as gone:
        port = gone.port
    assert reader().failure(f"http://127.0.0.1:{port}/") == "url_not_accessible: 127.0.0.1 cannot be reached."
    assert reader().failure("http://nowhere.invalid/").startswith("url_not_accessible: ")


# --------------------------------------------------------------------------------------------------- sources of URLs


@pytest.mark.requirement("F023")
def test_only_urls_of_allowed_sources_are_fetched(web: Site) -> None:
    search = UrlsOnly(tools=(ToolReference(name="web_search"),))
    only_search = config(url_sources=UrlSources(user_input=UrlsNone(), server_tool_results=search))
    user, found, read, client = (
        Source("user_input"),
        Source("server_tool_results", "web_search"),
        Source("server_tool_results", "web_fetch"),
        Source("client_tool_results", "weather"),
    )
    for good in ([found], [client], [user, found]):
        assert not reader()(at(web, "/more"), only_search, *good).is_error
    for bad in ([], [user], [read], [user, read]):
        assert reader().failure(at(web, "/more"), only_search, *bad).startswith("url_not_allowed: Only URLs that")
    assert not reader()(at(web, "/more"), config(url_sources=None)).is_error
