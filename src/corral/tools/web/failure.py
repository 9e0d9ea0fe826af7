"""Why the web did not give what was asked for, in words for the model."""

from __future__ import annotations

from typing import Literal, TypeAlias

from corral.domain.content import TextBlock
from corral.errors import CorralError
from corral.interfaces.sandbox import SandboxReply

Code: TypeAlias = Literal[
    "url_not_allowed",
    "url_not_accessible",
    "unsupported_content_type",
    "content_too_large",
    "too_many_requests",
    "unavailable",
]
"""As the Messages API names them (`BetaWebFetchToolResultErrorCode`)."""


class WebFailure(CorralError):
    """A tool's error result, on its way."""

    def __init__(self, code: Code, sentence: str) -> None:
        super().__init__(f"{code}: {sentence}")
        self.code = code

    def reply(self) -> SandboxReply:
        """The result."""
        return SandboxReply(content=(TextBlock(text=self.message),), is_error=True)
