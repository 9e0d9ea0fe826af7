"""Events as clients send them: seven types in, five of them accepted today.

Reading them strictly is the structs' part; what a block may hold is checked here, because nothing behind this door
looks again. Whether an event may be sent *now* is `domain/intake.py`'s question.

Source: the API's public documentation; SDK type `beta_managed_agents_event_params`.
"""

from __future__ import annotations

import binascii
from collections.abc import Sequence
from typing import Literal, TypeAlias, assert_never

import msgspec

from corral.domain import event as ev
from corral.domain.content import (
    Base64Source,
    DocumentBlock,
    FileSource,
    ImageBlock,
    MessageBlock,
    PlainTextSource,
    RedactedBlock,
    ResultBlock,
    SearchResultBlock,
    TextBlock,
    UrlSource,
)
from corral.domain.ids import new_id
from corral.domain.url import is_url
from corral.errors import Invalid

BLOCKS_MAX = 1_000
IMAGE_TYPES = ("image/jpeg", "image/png", "image/gif", "image/webp")
IMAGE_BASE64_CHARACTERS_MAX = 10 * 1024 * 1024
DOCUMENT_TYPE = "application/pdf"
URL_CHARACTERS_MAX = 8_192
TITLE_CHARACTERS_MAX = 500


class Params(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type"):
    """Base of what clients send; `type` is the tag."""


class UserMessageParams(Params, frozen=True, kw_only=True, tag="user.message"):
    """A message from the user."""

    content: tuple[MessageBlock, ...]


class SystemMessageParams(Params, frozen=True, kw_only=True, tag="system.message"):
    """An instruction from the application."""

    content: tuple[TextBlock, ...]


class UserInterruptParams(Params, frozen=True, kw_only=True, tag="user.interrupt"):
    """Stop."""

    session_thread_id: str | None = None


class UserToolConfirmationParams(Params, frozen=True, kw_only=True, tag="user.tool_confirmation"):
    """Allow or deny a tool call."""

    tool_use_id: str
    result: Literal["allow", "deny"]
    deny_message: str | None = None
    session_thread_id: str | None = None
    """Sent by older clients; routing is by `tool_use_id`."""


class UserCustomToolResultParams(Params, frozen=True, kw_only=True, tag="user.custom_tool_result"):
    """The answer to a custom tool call."""

    custom_tool_use_id: str
    content: tuple[ResultBlock, ...] = ()
    is_error: bool | None = None
    session_thread_id: str | None = None
    """Sent by older clients; routing is by `custom_tool_use_id`."""


class UserToolResultParams(Params, frozen=True, kw_only=True, tag="user.tool_result"):
    """The answer to a built-in tool call of a self_hosted environment."""

    tool_use_id: str
    content: tuple[ResultBlock, ...] = ()
    is_error: bool | None = None
    session_thread_id: str | None = None


class TextRubric(Params, frozen=True, kw_only=True, tag="text"):
    """A rubric as text."""

    content: str


class FileRubric(Params, frozen=True, kw_only=True, tag="file"):
    """A rubric as a file."""

    file_id: str


class UserDefineOutcomeParams(Params, frozen=True, kw_only=True, tag="user.define_outcome"):
    """An outcome to work towards."""

    description: str
    rubric: TextRubric | FileRubric
    max_iterations: int | None = None


EventParams: TypeAlias = (
    UserMessageParams
    | SystemMessageParams
    | UserInterruptParams
    | UserToolConfirmationParams
    | UserCustomToolResultParams
    | UserToolResultParams
    | UserDefineOutcomeParams
)
InitialEventParams: TypeAlias = UserMessageParams | UserDefineOutcomeParams


def to_events(params: Sequence[EventParams], path: str) -> list[ev.ClientEvent]:
    """The events, with ids. Raises `Invalid` with the path of the first that cannot be accepted at any time."""
    return [_to_event(each, f"{path}.{index}") for index, each in enumerate(params)]


def _to_event(params: EventParams, path: str) -> ev.ClientEvent:
    event_id = new_id("sevt")
    match params:
        case UserMessageParams(content=content):
            _check_blocks(content, f"{path}.content", empty_text=False)
            return ev.UserMessage(id=event_id, content=content)
        case SystemMessageParams(content=content):
            _check_blocks(content, f"{path}.content", empty_text=False)
            return ev.SystemMessage(id=event_id, content=content)
        case UserInterruptParams(session_thread_id=thread_id):
            return ev.UserInterrupt(id=event_id, session_thread_id=thread_id)
        case UserToolConfirmationParams():
            return ev.UserToolConfirmation(
                id=event_id, tool_use_id=params.tool_use_id, result=params.result, deny_message=params.deny_message
            )
        case UserCustomToolResultParams(content=content):
            if content:
                _check_blocks(content, f"{path}.content", empty_text=True)
            return ev.UserCustomToolResult(
                id=event_id,
                custom_tool_use_id=params.custom_tool_use_id,
                content=content,
                is_error=params.is_error is True,
            )
        case UserToolResultParams():
            raise Invalid(f"{path}: user.tool_result is accepted only in sessions of self_hosted environments")
        case UserDefineOutcomeParams():
            raise Invalid(f"{path}: this server does not support user.define_outcome yet")
        case _:
            assert_never(params)


def _check_blocks(blocks: Sequence[MessageBlock | ResultBlock], path: str, *, empty_text: bool) -> None:
    if not 1 <= len(blocks) <= BLOCKS_MAX:
        raise Invalid(f"{path}: must hold 1 to {BLOCKS_MAX} content blocks, got {len(blocks)}")
    for index, block in enumerate(blocks):
        where = f"{path}.{index}"
        match block:
            case TextBlock(text=text):
                if not empty_text and not text.strip():
                    raise Invalid(f"{where}.text: must not be empty")
            case ImageBlock(source=source):
                _check_image(source, f"{where}.source")
            case DocumentBlock():
                _check_document(block, where)
            case RedactedBlock():
                raise Invalid(f"{where}: redacted blocks are written by the server only")
            case SearchResultBlock():
                pass
            case _:
                assert_never(block)


def _check_image(source: Base64Source | UrlSource | FileSource, path: str) -> None:
    match source:
        case Base64Source(media_type=media_type, data=data):
            if media_type not in IMAGE_TYPES:
                raise Invalid(f"{path}.media_type: must be one of {', '.join(IMAGE_TYPES)}")
            if len(data) > IMAGE_BASE64_CHARACTERS_MAX:
                raise Invalid(f"{path}.data: must be at most {IMAGE_BASE64_CHARACTERS_MAX} characters of base64")
            _check_base64(data, path)
        case UrlSource(url=url):
            _check_url(url, path)
        case FileSource():
            pass  # looked up by `file_sources.py`


def _check_document(block: DocumentBlock, path: str) -> None:
    if block.title is not None and len(block.title) > TITLE_CHARACTERS_MAX:
        raise Invalid(f"{path}.title: must be at most {TITLE_CHARACTERS_MAX} characters")
    match block.source:
        case Base64Source(media_type=media_type, data=data):
            if media_type != DOCUMENT_TYPE:
                raise Invalid(f"{path}.source.media_type: must be {DOCUMENT_TYPE}; send text as a `text` source")
            _check_base64(data, f"{path}.source")
        case PlainTextSource(data=data):
            if not data.strip():
                raise Invalid(f"{path}.source.data: must not be empty")
        case UrlSource(url=url):
            _check_url(url, f"{path}.source")
        case FileSource():
            pass


def _check_base64(data: str, path: str) -> None:
    try:
        decoded = binascii.a2b_base64(data, strict_mode=True)
    except ValueError as error:
        raise Invalid(f"{path}.data: not valid base64") from error
    if not decoded:
        raise Invalid(f"{path}.data: must not be empty")


def _check_url(url: str, path: str) -> None:
    if len(url) > URL_CHARACTERS_MAX or not is_url(url):
        raise Invalid(f"{path}.url: must be an http or https URL of at most {URL_CHARACTERS_MAX} characters")
