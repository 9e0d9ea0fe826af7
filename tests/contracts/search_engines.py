"""Search engines for tests: a real server that answers as SearXNG, Brave, Tavily and two providers of models document.

It notes what it was asked."""

from __future__ import annotations

import http.server
import json
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import NamedTuple
from urllib.parse import parse_qs, urlsplit

from tests.listening import served

PAGES: Sequence[tuple[str, str, str]] = (
    ("https://docs.good.example/guide/intro", "Intro", "How it begins."),
    ("https://docs.good.example/guide/intro#again", "Intro", "The same."),
    ("https://bad.example/", "Bad", "Not this."),
    ("javascript:alert(1)", "Script", "Nor this."),
    ("https://good.example/other", " Other\n page ", "How it goes on."),
)


class Asked(NamedTuple):
    """One request."""

    path: str
    params: dict[str, str]
    headers: dict[str, str]
    body: dict[str, object]


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self._answer({})

    def do_POST(self) -> None:
        self._answer(json.loads(self.rfile.read(int(self.headers["content-length"]))))

    def _answer(self, body: dict[str, object]) -> None:
        assert isinstance(self.server, Engines)
        split = urlsplit(self.path)
        params = {name: values[0] for name, values in parse_qs(split.query).items()}
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.asked.append(Asked(split.path, params, headers, body))
        status, sent = self.server.answer(split.path)
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(sent)))
        self.end_headers()
        self.wfile.write(sent)

    def log_message(self, format: str, *args: object) -> None:
        return


def _messages() -> dict[str, object]:
    pages = [
        {"type": "web_search_result", "url": url, "title": title, "encrypted_content": "EqgfCioIARgB", "page_age": None}
        for url, title, _ in PAGES
    ]
    use = {"type": "server_tool_use", "id": "srvtoolu_1", "name": "web_search", "input": {"query": "how it begins"}}
    said = [
        {
            "type": "text",
            "text": about,
            "citations": [
                {
                    "type": "web_search_result_location", "url": url, "title": title, "cited_text": about,
                    "encrypted_index": "Eo8BCioIAhgB",
                }
            ],
        }
        for url, title, about in PAGES
    ]  # fmt: skip
    content = [
        {"type": "text", "text": "I will search."},
        use,
        {"type": "web_search_tool_result", "tool_use_id": "srvtoolu_1", "content": pages},
        *said,
    ]
    usage = {"input_tokens": 6, "output_tokens": 9, "server_tool_use": {"web_search_requests": 1}}
    head = {"id": "msg_1", "type": "message", "role": "assistant", "model": "small", "usage": usage}
    return {**head, "content": content, "stop_reason": "end_turn", "stop_sequence": None}


def _responses() -> dict[str, object]:
    text, notes = "", list[dict[str, object]]()
    for url, title, about in PAGES:
        text += f"{about} "
        link = f"([{url.partition('/')[0]}]({url}))"
        start = len(text)
        text += link
        place = {"start_index": start, "end_index": len(text)}
        notes.append({"type": "url_citation", "url": url, "title": title, **place})
        text += "\n\n"
    action = {"type": "search", "query": "q", "sources": [{"type": "url", "url": url} for url, _, _ in PAGES]}
    part = {"type": "output_text", "text": text, "annotations": notes, "logprobs": []}
    output: list[object] = [
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"type": "web_search_call", "id": "ws_1", "status": "completed", "action": action},
        {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": [part]},
    ]
    return {"id": "resp_1", "object": "response", "status": "completed", "model": "small", "output": output}


class Engines(http.server.ThreadingHTTPServer):
    """All of them, by path."""

    daemon_threads = True

    def __init__(self) -> None:
        self.asked: list[Asked] = []
        self.instead: tuple[int, bytes] | None = None
        """What to answer in place of results."""
        super().__init__(("127.0.0.1", 0), _Handler)

    def answer(self, path: str) -> tuple[int, bytes]:
        """A status and a body."""
        if self.instead is not None:
            return self.instead
        text = "description" if path == "/web/search" else "content"
        if path in ("/v1/messages", "/responses"):
            return 200, json.dumps(_messages() if path == "/v1/messages" else _responses()).encode()
        results = [{"url": url, "title": title, text: about, "score": 0.5} for url, title, about in PAGES]
        if path == "/web/search":
            return 200, json.dumps({"type": "search", "web": {"type": "search", "results": results}}).encode()
        return 200, json.dumps({"query": "q", "number_of_results": 0, "answers": [], "results": results}).encode()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.socket.getsockname()[1]}"


@contextmanager
def engines() -> Generator[Engines]:
    """The server, while the block runs."""
    server = Engines()
    with served(server):
        yield server
