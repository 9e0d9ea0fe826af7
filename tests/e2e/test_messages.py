"""What a message may hold, and instructions from the application in mid-conversation."""

from __future__ import annotations

import base64
import json

import pytest
from anthropic import Anthropic

from tests.e2e.sessions import Json, answer, custom_tool, message, new_session, reading, refused, script, texts

PICTURE = base64.b64encode(b"pixels").decode()
PDF = base64.b64encode(b"%PDF-1.7").decode()
ECHO = script({"echo": "messages"})
BLOCKS: list[Json] = [
    {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PICTURE}},
    {"type": "image", "source": {"type": "url", "url": "https://example.com/a.png"}},
    {
        "type": "document",
        "source": {"type": "base64", "media_type": "application/pdf", "data": PDF},
        "title": "A paper",
    },
    {"type": "document", "source": {"type": "text", "media_type": "text/plain", "data": "Once."}, "context": "A tale"},
    {"type": "document", "source": {"type": "url", "url": "https://example.com/a.pdf"}},
]


def instruction(text: str) -> Json:
    return {"type": "system.message", "content": [{"type": "text", "text": text}]}


@pytest.mark.requirement("F077")
def test_images_and_documents_reach_the_model_as_they_were_sent(client: Anthropic) -> None:
    session = new_session(client)
    with reading(client, session.id) as reader:
        (echo,) = answer(client, session.id, message(*BLOCKS, ECHO))
        reader.idle()
    assert [block.type for block in echo.content] == [*[block["type"] for block in BLOCKS], "text"]
    (sent,) = json.loads(texts(reader.of("agent.message")[-1]))
    for block, read in zip(BLOCKS, sent["content"], strict=False):
        assert block.items() <= {key: value for key, value in read.items() if value is not None}.items()


@pytest.mark.requirement("F077", "F078", "F071")
@pytest.mark.parametrize(
    "block",
    [
        {"type": "redacted"},
        {"type": "text", "text": ""},
        {"type": "image", "source": {"type": "base64", "media_type": "image/bmp", "data": PICTURE}},
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "not base64!"}},
        {"type": "image", "source": {"type": "url", "url": "ftp://example.com/a.png"}},
        {"type": "document", "source": {"type": "base64", "media_type": "text/plain", "data": PDF}},
        {"type": "video", "source": {"type": "url", "url": "https://example.com/a.mp4"}},
        {"type": "text", "text": "x", "tone": "kind"},
    ],
    ids=lambda block: json.dumps(block)[:60],
)
def test_a_block_that_no_model_could_read_is_refused(client: Anthropic, block: Json) -> None:
    session = new_session(client)
    assert "events.1.content.1" in refused(client, session.id, message("Fine."), message("Look:", block))


@pytest.mark.requirement("F082")
def test_an_instruction_stands_behind_the_message_it_came_with(client: Anthropic) -> None:
    session = new_session(client, model="claude-opus-5-5")
    with reading(client, session.id) as reader:
        _, echo = answer(client, session.id, message(ECHO), instruction("Be brief."))
        reader.idle()
    assert echo.type == "system.message"
    roles = [(each["role"], each["content"][0]["text"]) for each in json.loads(texts(reader.of("agent.message")[-1]))]
    assert roles == [("user", ECHO), ("system", "Be brief.")]
    shown = [(event.id, event.processed_at is None) for event in reader.of("system.message")]
    assert shown == [(echo.id, True), (echo.id, False)]


@pytest.mark.requirement("F082")
def test_an_instruction_may_follow_the_answer_of_a_custom_tool(client: Anthropic) -> None:
    session = new_session(client, custom_tool(), model="claude-opus-5-5")
    with reading(client, session.id) as reader:
        call = {"tool": "weather", "input": {"city": "Bergen"}}
        answer(client, session.id, message(script(call, {"echo": "messages"})))
        (event_id,) = reader.idle().event_ids
        result = {"type": "user.custom_tool_result", "custom_tool_use_id": event_id}
        answer(client, session.id, result, instruction("Metric, please."))
        reader.idle()
    roles = [each["role"] for each in json.loads(texts(reader.of("agent.message")[-1]))]
    assert roles == ["user", "assistant", "user", "system"]


@pytest.mark.requirement("F082")
def test_an_instruction_elsewhere_is_refused(client: Anthropic) -> None:
    session = new_session(client, model="claude-opus-5-5")
    wrong: list[list[Json]] = [
        [instruction("Alone.")],
        [instruction("First."), message("Hello.")],
        [message("Hello."), instruction("One."), instruction("Two.")],
        [message("Hello."), instruction("One."), message("Again.")],
        [{"type": "user.interrupt"}, instruction("After an interrupt.")],
    ]
    for events in wrong:
        assert "system.message" in refused(client, session.id, *events)
    assert "content" in refused(client, session.id, message("Hello."), {"type": "system.message", "content": []})


@pytest.mark.requirement("F082")
def test_a_model_that_takes_no_instructions_is_not_sent_any(client: Anthropic) -> None:
    session = new_session(client, model="claude-opus-4-5")
    assert "system" in refused(client, session.id, message("Hello."), instruction("Be brief."))
