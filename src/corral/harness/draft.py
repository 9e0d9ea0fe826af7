"""The ids of an answer while it is being written, and its previews.

An answer becomes several events: one `agent.message` for each run of text blocks, one `agent.thinking` for each
thinking block, one `*.tool_use` for each call. A preview must announce the id that its event will have, so the ids are
given out here, block by block, and `answer.py` asks for them again when the answer is complete.
"""

from __future__ import annotations

import msgspec

from corral.domain.content import TextBlock
from corral.domain.ids import new_id
from corral.domain.inference import BlockStarted, TextDelta
from corral.domain.preview import ContentDelta, DeltaType, EventDelta, EventStart, Preview, PreviewedEvent
from corral.interfaces.bus import Bus, Frame

_ENCODER = msgspec.json.Encoder()


class Draft:
    """One answer in the making."""

    def __init__(self, session_id: str, bus: Bus) -> None:
        self._session_id = session_id
        self._bus = bus
        self._ids: dict[int, str] = {}
        self._place: dict[int, int] = {}
        """Block index → its place within its message."""
        self._last: tuple[int, str] | None = None

    def started(self, block: BlockStarted) -> None:
        """A block opens: give it an id, and announce the event if it is a new one."""
        if block.index in self._ids:
            return
        if block.kind == "text" and self._last is not None and self._last[1] == "text":
            previous = self._last[0]
            self._ids[block.index] = self._ids[previous]
            self._place[block.index] = self._place[previous] + 1
        else:
            self._ids[block.index] = new_id("sevt")
            self._place[block.index] = 0
            self._announce(block)
        self._last = (block.index, block.kind)

    def restarted(self) -> None:
        """Another model begins anew: what was announced so far is followed by nothing, and no id is used again."""
        self._ids.clear()
        self._place.clear()
        self._last = None

    def text(self, delta: TextDelta) -> None:
        """More text for a block."""
        if delta.index not in self._ids:
            self.started(BlockStarted(delta.index, "text"))
        content = ContentDelta(index=self._place[delta.index], content=TextBlock(text=delta.text))
        event_id = self._ids[delta.index]
        self._publish(EventDelta(event_id=event_id, delta=content), "event_delta", "agent.message", event_id)

    def id_of(self, index: int) -> str:
        """The id of the event that block `index` belongs to."""
        return self._ids.setdefault(index, new_id("sevt"))

    def _announce(self, block: BlockStarted) -> None:
        kinds: dict[str, DeltaType] = {"text": "agent.message", "thinking": "agent.thinking"}
        kind = kinds.get(block.kind)
        if kind is not None:
            event_id = self._ids[block.index]
            start = EventStart(event=PreviewedEvent(id=event_id, type=kind))
            self._publish(start, "event_start", kind, event_id)

    def _publish(self, preview: Preview, frame_type: str, preview_of: DeltaType, event_id: str) -> None:
        if self._bus.wants_previews(self._session_id):
            data = _ENCODER.encode(preview)
            self._bus.publish([Frame(self._session_id, frame_type, data, preview_of, event_id)])
