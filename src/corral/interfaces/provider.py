"""Models."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from corral.domain.inference import ModelChunk, ModelRequest


class Provider(Protocol):
    """A place that runs models."""

    def stream(self, request: ModelRequest) -> AsyncGenerator[ModelChunk]:
        """Ask the model; yield previews as they come and a `ModelResponse` last.

        Closing the iterator early cuts the connection to the model at once. Raises `ProviderError` (a subclass
        says whether a retry makes sense) and nothing else; never yields a `ModelResponse` after an error."""
        ...

    async def close(self) -> None:
        """Free connections and processes. Idempotent."""
        ...
