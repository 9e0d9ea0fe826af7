"""Claude through a cloud: which client of the SDK speaks to it, and what goes wrong there in words of its own.

Requests and answers are those of the Messages API; the SDK's clients put the model into the address, sign the request
and take the answer out of the cloud's framing. Credentials are found by the clouds' own libraries, which are optional
extras. `messages_wire.py` does everything else.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from importlib.util import find_spec
from types import ModuleType
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from corral.errors import (
    MachineUnfit,
    ProviderBilling,
    ProviderError,
    ProviderOverloaded,
    ProviderRateLimited,
    ProviderRefused,
    ProviderUnreachable,
)

if TYPE_CHECKING:
    from anthropic import Timeout
    from anthropic._streaming import ServerSentEvent
    from anthropic.lib.bedrock import AsyncAnthropicBedrock
    from anthropic.lib.vertex import AsyncAnthropicVertex
    from httpx2 import AsyncClient

CloudName: TypeAlias = Literal["bedrock", "vertex"]

LIBRARIES: Mapping[CloudName, tuple[str, ...]] = {"bedrock": ("boto3", "botocore"), "vertex": ("google.auth",)}
AMAZON_EVENTS = "application/vnd.amazon.eventstream"

BY_EXCEPTION: Mapping[str, type[ProviderError]] = {
    "throttlingException": ProviderRateLimited,
    "serviceQuotaExceededException": ProviderBilling,
    "serviceUnavailableException": ProviderOverloaded,
    "modelNotReadyException": ProviderOverloaded,
    "internalServerException": ProviderUnreachable,
    "modelStreamErrorException": ProviderUnreachable,
    "modelTimeoutException": ProviderUnreachable,
    "validationException": ProviderRefused,
    "accessDeniedException": ProviderRefused,
    "resourceNotFoundException": ProviderRefused,
}
"""What Bedrock calls an exception inside a stream."""


class Cloud(NamedTuple):
    """A cloud, and where in it. What is None, the SDK looks up in the environment as that cloud's users expect."""

    name: CloudName
    region: str | None = None
    project: str | None = None
    url: str | None = None
    token: str | None = None
    """A key of Bedrock's; None for credentials as AWS's own tools find them."""

    def require(self) -> None:
        """Raises `MachineUnfit` when the cloud's library is not installed."""
        if any(_missing(library) for library in LIBRARIES[self.name]):
            raise MachineUnfit(f"Claude on {self.name.title()} needs `pip install 'corral[{self.name}]'`.")

    def client(
        self, anthropic: ModuleType, timeout: Timeout, http_client: AsyncClient
    ) -> AsyncAnthropicBedrock | AsyncAnthropicVertex:
        """The SDK's client. Raises `ValueError` when there is no region."""
        common = {"base_url": self.url, "timeout": timeout, "http_client": http_client, "max_retries": 0}
        if self.name == "bedrock":
            return anthropic.AsyncAnthropicBedrock(aws_region=self.region, api_key=self.token, **common)
        place = {"region": self.region, "project_id": self.project}
        known = {name: value for name, value in place.items() if value is not None}
        return anthropic.AsyncAnthropicVertex(**known, **common)

    @property
    def framed(self) -> bool:
        """Whether answers come in frames of AWS's and not as server-sent events."""
        return self.name == "bedrock"

    def events(self, body: AsyncIterator[bytes]) -> AsyncIterator[ServerSentEvent]:
        """The events inside AWS's frames. Raises what `failures` names for frames that are broken."""
        from anthropic.lib.bedrock._stream_decoder import AWSEventStreamDecoder

        return AWSEventStreamDecoder().aiter_bytes(body)

    def failures(self) -> tuple[tuple[type[Exception], ...], tuple[type[Exception], ...]]:
        """What the cloud's library raises: where credentials are at fault, and where the way there or back is."""
        if self.name == "bedrock":
            from botocore.eventstream import ParserError  # pyright: ignore[reportMissingTypeStubs]  # untyped
            from botocore.exceptions import BotoCoreError, HTTPClientError  # pyright: ignore[reportMissingTypeStubs]  # untyped

            return (BotoCoreError,), (HTTPClientError, ParserError)
        from google.auth.exceptions import GoogleAuthError, TransportError

        return (GoogleAuthError,), (TransportError,)


def _missing(library: str) -> bool:
    try:
        return find_spec(library) is None
    except ModuleNotFoundError:
        return True
