"""What the server and its proxy say to each other, as JSON over a socket that keeps messages apart.

The listening socket of a sandbox travels with its `Serve`. When the server is gone the socket ends, and so does the
proxy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, TypeAlias

import msgspec

from corral.domain.address import Ground
from corral.domain.egress import EgressPolicy
from corral.domain.placeholder import Substitution

MESSAGE_BYTES_MAX = 192 * 1024


class Credential(msgspec.Struct, frozen=True):
    """A header that the proxy adds for a host, so that what it holds need not be inside."""

    host: str
    port: int
    tls: bool
    """What is given for https is not sent in the clear, though the host may listen for both on one port."""
    authorization: str


class Configure(msgspec.Struct, frozen=True, kw_only=True, tag_field="order", tag="configure"):
    """The first order."""

    ground: Ground
    names: Mapping[str, str]
    """Addresses by name, instead of the resolver's."""
    upstream_proxy: str | None
    upstream_proxy_not_for: tuple[str, ...]
    trusted: str
    """A file of certificates that hosts are checked against."""
    certificate: str
    private_key: str
    """Of the authority that signs what sandboxes see, as PEM."""
    scratch: str
    """A directory of the proxy's own."""
    uid: int | None
    """Whom to become; None to stay."""
    credentials: tuple[Credential, ...] = ()
    connections_max: int
    connections_total_max: int
    resolutions_max: int
    header_bytes_max: int
    idle_seconds_max: float
    connect_seconds_max: float


class Serve(msgspec.Struct, frozen=True, tag_field="order", tag="serve"):
    """Serve the socket that comes along under this policy."""

    key: str
    policy: EgressPolicy


class Drop(msgspec.Struct, frozen=True, tag_field="order", tag="drop"):
    """Serve it no longer, end its connections, and forget its secrets."""

    key: str


class Entrust(msgspec.Struct, frozen=True, tag_field="order", tag="entrust"):
    """A secret of a sandbox, which may be served later; or another value for its placeholder."""

    key: str
    substitution: Substitution


class Forget(msgspec.Struct, frozen=True, tag_field="order", tag="forget"):
    """This placeholder stands for nothing any more."""

    key: str
    placeholder: str


Order: TypeAlias = Configure | Serve | Drop | Entrust | Forget


class Ready(msgspec.Struct, frozen=True, tag_field="news", tag="ready"):
    """The proxy is configured and takes orders."""


class Outcome(msgspec.Struct, frozen=True):
    """Something that was counted."""

    key: str
    kind: Literal["refused", "failed", "connected"]
    reason: str
    host: str


class Counted(msgspec.Struct, frozen=True):
    """How often."""

    outcome: Outcome
    times: int


class Counts(msgspec.Struct, frozen=True, tag_field="news", tag="counts"):
    """What happened since the last report."""

    counted: tuple[Counted, ...]


News: TypeAlias = Ready | Counts

encode = msgspec.json.Encoder().encode
decode_order = msgspec.json.Decoder[Order](Order).decode
decode_news = msgspec.json.Decoder[News](News).decode
