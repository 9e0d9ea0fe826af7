"""Results too long for a conversation: kept in a file of the sandbox, with the path and a preview in their place.

For every tool that the server runs, wherever it ran. The file is written before the result is committed and named by
the call's id, so a worker that dies in between leaves a file that the next one writes again. Where no file can be
written the preview says that the rest is gone; it never names a file that is not there.

Source: the API's public documentation.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from corral.config_sections import HarnessSettings
from corral.domain.content import ResultBlock, TextBlock
from corral.domain.ids import new_id
from corral.errors import SandboxError
from corral.interfaces.sandbox import Sandbox, SandboxCall

FOLDER = "/home/agent/tool_results"
"""In the sandbox's home: it is kept as long as the session, and is not in the way of what the agent works on."""

KEPT = (
    "[This result has {length:,} characters, which is too long to show. {whole} in {path}; read it in parts. "
    "What follows is its beginning and its end.]\n"
)
LOST = (
    "[This result had {length:,} characters, which is too long to show, and could not be kept in a file: {reason} "
    "What follows is its beginning and its end; the rest is gone.]\n"
)
LEFT_OUT = "\n[… {} characters left out …]\n"


async def fitting(
    call_id: str,
    content: Sequence[ResultBlock],
    settings: HarnessSettings,
    open_sandbox: Callable[[], Awaitable[Sandbox]],
) -> tuple[ResultBlock, ...]:
    """The result's blocks, if all their text together is short enough; else with one text in place of all texts.

    `open_sandbox` is called only then. Pictures and documents stay where they are. Never raises a `SandboxError`.
    """
    texts = [block.text for block in content if isinstance(block, TextBlock)]
    if sum(map(len, texts)) <= settings.tool_result_characters_max:
        return tuple(content)
    text = "\n".join(texts)
    told = await _kept(call_id, text, settings, open_sandbox) + _preview(text, settings.tool_result_preview_characters)
    first = next(index for index, block in enumerate(content) if isinstance(block, TextBlock))
    others = [(index, block) for index, block in enumerate(content) if not isinstance(block, TextBlock)]
    before = [block for index, block in others if index < first]
    after = [block for index, block in others if index > first]
    return (*before, TextBlock(text=told), *after)


async def _kept(
    call_id: str, text: str, settings: HarnessSettings, open_sandbox: Callable[[], Awaitable[Sandbox]]
) -> str:
    """Write the file; say where it is, or why it is nowhere."""
    path, most = f"{FOLDER}/{call_id}.txt", settings.tool_result_file_characters_max
    # An id of its own for each attempt: the sandbox would not run one that it knows, and writing twice does no harm.
    write = SandboxCall(
        call_id=new_id("sevt"), operation="write", arguments={"file_path": path, "content": text[:most]}
    )
    try:
        sandbox = await open_sandbox()
        reply = await sandbox.call(write)
        await sandbox.forget([write.call_id])
    except SandboxError as error:
        return LOST.format(length=len(text), reason=error.message)
    if reply.is_error:
        reason = " ".join(block.text for block in reply.content if isinstance(block, TextBlock))
        return LOST.format(length=len(text), reason=f"{reason}.")
    whole = "All of it is" if len(text) <= most else f"Its first {most:,} characters are"
    return KEPT.format(length=len(text), whole=whole, path=path)


def _preview(text: str, characters: int) -> str:
    half = characters // 2
    if len(text) <= 2 * half:
        return text
    return text[:half] + LEFT_OUT.format(len(text) - 2 * half) + text[len(text) - half :]
