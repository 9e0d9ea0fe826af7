"""Watches everything a server sends to the official SDK, and compares it with the SDK's own types, strictly.

The SDK parses leniently, so a test that uses it would never see an unknown field, a missing one or a wrong literal.
Here each JSON body and each frame of a stream is looked at as it arrives. What is wrong is collected, not raised:
the SDK would take an exception in its transport for a broken connection and send the request again.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from typing import Any, cast

import httpx2
from anthropic.types.beta import (
    BetaDeletedFile,
    BetaEnvironment,
    BetaEnvironmentDeleteResponse,
    BetaFileMetadata,
    BetaManagedAgentsAgent,
    BetaManagedAgentsDeletedSession,
    BetaManagedAgentsDeletedVault,
    BetaManagedAgentsSession,
    BetaManagedAgentsVault,
    BetaModelInfo,
)
from anthropic.types.beta.sessions import (
    BetaManagedAgentsDeleteSessionResource,
    BetaManagedAgentsFileResource,
    BetaManagedAgentsSendSessionEvents,
    BetaManagedAgentsSessionEvent,
    BetaManagedAgentsStreamSessionEvents,
)
from anthropic.types.beta.vaults import (
    BetaManagedAgentsCredential,
    BetaManagedAgentsCredentialValidation,
    BetaManagedAgentsDeletedCredential,
)

from tests.api.sdk_types import problems

STREAM_SECONDS_MAX = 90
"""A stream that a test keeps open for longer has missed what it was waiting for."""

ONE: tuple[tuple[str, str, Any], ...] = (
    ("POST", r"/v1/agents(/[^/]+(/archive)?)?", BetaManagedAgentsAgent),
    ("GET", r"/v1/agents/[^/]+", BetaManagedAgentsAgent),
    ("POST", r"/v1/environments(/[^/]+(/archive)?)?", BetaEnvironment),
    ("GET", r"/v1/environments/[^/]+", BetaEnvironment),
    ("DELETE", r"/v1/environments/[^/]+", BetaEnvironmentDeleteResponse),
    ("POST", r"/v1/sessions(/[^/]+(/archive)?)?", BetaManagedAgentsSession),
    ("GET", r"/v1/sessions/[^/]+", BetaManagedAgentsSession),
    ("DELETE", r"/v1/sessions/[^/]+", BetaManagedAgentsDeletedSession),
    ("POST", r"/v1/sessions/[^/]+/events", BetaManagedAgentsSendSessionEvents),
    ("POST", r"/v1/sessions/[^/]+/resources", BetaManagedAgentsFileResource),
    ("GET", r"/v1/sessions/[^/]+/resources/[^/]+", BetaManagedAgentsFileResource),
    ("DELETE", r"/v1/sessions/[^/]+/resources/[^/]+", BetaManagedAgentsDeleteSessionResource),
    ("POST", r"/v1/files", BetaFileMetadata),
    ("GET", r"/v1/files/[^/]+", BetaFileMetadata),
    ("DELETE", r"/v1/files/[^/]+", BetaDeletedFile),
    ("GET", r"/v1/models/[^/]+", BetaModelInfo),
    ("POST", r"/v1/vaults(/[^/]+(/archive)?)?", BetaManagedAgentsVault),
    ("GET", r"/v1/vaults/[^/]+", BetaManagedAgentsVault),
    ("DELETE", r"/v1/vaults/[^/]+", BetaManagedAgentsDeletedVault),
    ("POST", r"/v1/vaults/[^/]+/credentials/[^/]+/mcp_oauth_validate", BetaManagedAgentsCredentialValidation),
    ("POST", r"/v1/vaults/[^/]+/credentials(/[^/]+(/archive)?)?", BetaManagedAgentsCredential),
    ("GET", r"/v1/vaults/[^/]+/credentials/[^/]+", BetaManagedAgentsCredential),
    ("DELETE", r"/v1/vaults/[^/]+/credentials/[^/]+", BetaManagedAgentsDeletedCredential),
)
PAGES: tuple[tuple[str, Any, set[str]], ...] = (
    (r"/v1/agents", BetaManagedAgentsAgent, {"data", "next_page"}),
    (r"/v1/agents/[^/]+/versions", BetaManagedAgentsAgent, {"data", "next_page"}),
    (r"/v1/environments", BetaEnvironment, {"data", "next_page"}),
    (r"/v1/sessions", BetaManagedAgentsSession, {"data", "next_page", "prev_page"}),
    (r"/v1/sessions/[^/]+/events", BetaManagedAgentsSessionEvent, {"data", "next_page"}),
    (r"/v1/sessions/[^/]+/resources", BetaManagedAgentsFileResource, {"data", "next_page"}),
    (r"/v1/files", BetaFileMetadata, {"data", "next_page", "has_more", "first_id", "last_id"}),
    (r"/v1/vaults", BetaManagedAgentsVault, {"data", "next_page"}),
    (r"/v1/vaults/[^/]+/credentials", BetaManagedAgentsCredential, {"data", "next_page"}),
    (r"/v1/models", BetaModelInfo, {"data", "has_more", "first_id", "last_id"}),
)


class Watch:
    """What was wrong with what was received."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self.looked_at = 0

    def client(self, timeout_seconds: float) -> httpx2.Client:
        """An HTTP client for the SDK whose responses are looked at."""
        return httpx2.Client(timeout=timeout_seconds, verify=False, event_hooks={"response": [self._response]})

    def _response(self, response: httpx2.Response) -> None:
        if response.status_code != 200:
            return
        if response.headers["content-type"].startswith("text/event-stream"):
            assert isinstance(response.stream, httpx2.SyncByteStream)
            response.stream = _Frames(response.stream, self)
            return
        if re.fullmatch(r"/v1/files/[^/]+/content", response.request.url.path):
            return  # the bytes of a file have no type
        response.read()
        self._body(response.request.method, response.request.url.path, response.json())

    def _body(self, method: str, path: str, body: dict[str, Any]) -> None:
        for page, shape, keys in PAGES:
            if method == "GET" and re.fullmatch(page, path):
                if body.keys() != keys:
                    self.problems.append(f"GET {path}: has the fields {sorted(body)}")
                for each in cast(list[object], body["data"]):
                    self.look(f"GET {path}", each, shape)
                return
        for verb, one, shape in ONE:
            if method == verb and re.fullmatch(one, path):
                self.look(f"{method} {path}", body, shape)
                return
        self.problems.append(f"{method} {path}: nobody knows its type")

    def look(self, where: str, raw: object, shape: Any) -> None:
        """Compare one object with its type."""
        self.looked_at += 1
        self.problems += [f"{where}: {problem}" for problem in problems(raw, shape)]


class _Frames(httpx2.SyncByteStream):
    """The bytes of a stream, passed on untouched while its frames are looked at."""

    def __init__(self, stream: httpx2.SyncByteStream, watch: Watch) -> None:
        self._stream = stream
        self._watch = watch
        self._deadline = time.monotonic() + STREAM_SECONDS_MAX

    def __iter__(self) -> Iterator[bytes]:
        buffer = b""
        for chunk in self._stream:
            # Pings keep coming, so this is reached in time.
            assert time.monotonic() < self._deadline, f"a stream was still open after {STREAM_SECONDS_MAX} seconds"
            *frames, buffer = (buffer + chunk).split(b"\n\n")
            for frame in frames:
                if frame.startswith(b"event: message\ndata: "):
                    self._watch.look("stream", json.loads(frame[21:]), BetaManagedAgentsStreamSessionEvents)
            yield chunk

    def close(self) -> None:
        self._stream.close()
