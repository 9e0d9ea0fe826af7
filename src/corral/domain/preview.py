"""Previews: fragments of an answer while the model still writes it. They are shown, never stored.

A stream gets them only when it asked with `event_deltas[]`. The event that a preview announces carries the same id
and follows in the log; if none does (error, interrupt), the `span.model_request_end` closes the preview.

Source: the API's public documentation.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from corral.domain.content import TextBlock

DeltaType: TypeAlias = Literal["agent.message", "agent.thinking"]


class PreviewedEvent(msgspec.Struct, frozen=True, kw_only=True):
    """The event to come."""

    id: str
    type: DeltaType


class EventStart(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="event_start"):
    """An event begins to take shape."""

    event: PreviewedEvent


class ContentDelta(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="content_delta"):
    """More text for content block `index`."""

    index: int
    content: TextBlock


class EventDelta(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="event_delta"):
    """A fragment of an `agent.message`."""

    event_id: str
    delta: ContentDelta


Preview: TypeAlias = EventStart | EventDelta
