"""HTML to Markdown, in a process of its own for each page.

HTML from strangers may be anything, and parsers have bugs. The process has no environment and no way to the server but
its pipes, is bounded in memory, and is killed when it takes too long or when nobody waits for it any longer.
"""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import anyio
from anyio.abc import Process

from corral.config_sections import WebSettings
from corral.tools.web.failure import WebFailure

PROGRAM = Path(__file__).with_name("convert_program.py")
OUTPUT_FACTOR = 4
"""Markdown may be longer than its HTML, since links become whole; by so much."""


class Converter:
    """See the module."""

    def __init__(self, settings: WebSettings) -> None:
        self._settings = settings
        self._limiter = anyio.CapacityLimiter(settings.converts_parallel_max)

    async def markdown(self, html: bytes, charset: str, base_url: str) -> str:
        """The page as Markdown, with its title first. Raises `WebFailure`."""
        async with self._limiter:
            try:
                with anyio.fail_after(self._settings.convert_seconds_max):
                    return await self._converted(html, charset, base_url)
            except TimeoutError as error:
                raise WebFailure("unavailable", "The page takes too long to make sense of.") from error

    async def _converted(self, html: bytes, charset: str, base_url: str) -> str:
        limit = self._settings.convert_memory_bytes_max
        command = [sys.executable, "-I", str(PROGRAM), str(limit), charset, base_url]
        process = await anyio.open_process(command, stderr=subprocess.DEVNULL, env={}, cwd="/")
        try:
            output = await self._exchanged(process, html)
            if len(output) > OUTPUT_FACTOR * self._settings.page_bytes_max:
                raise WebFailure("content_too_large", "The page is too long.")
            if await process.wait() != 0:
                raise WebFailure("unavailable", "The page is HTML that no sense can be made of.")
            return output.decode("utf-8", "replace")
        finally:
            with anyio.CancelScope(shield=True):
                with suppress(ProcessLookupError):
                    process.kill()
                await process.aclose()

    async def _exchanged(self, process: Process, html: bytes) -> bytes:
        """What it writes; a little more than is allowed, if it writes more."""
        sender, receiver = process.stdin, process.stdout
        assert sender is not None and receiver is not None
        output = bytearray()

        async def send() -> None:
            # A program that ends early says so by its exit code.
            with suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):
                await sender.send(html)
                await sender.aclose()

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(send)
            async for piece in receiver:
                output += piece
                if len(output) > OUTPUT_FACTOR * self._settings.page_bytes_max:
                    break
            tasks.cancel_scope.cancel()
        return bytes(output)
