"""HTML to Markdown, in a process of its own for each page.

HTML from strangers may be anything, and parsers have bugs. The process has no environment and no way to the server but
two files, is bounded in memory, and is killed when it takes too long or when nobody waits for it any longer.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import IO

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
        settings = self._settings
        limits = [settings.convert_memory_bytes_max, OUTPUT_FACTOR * settings.page_bytes_max]
        command = [sys.executable, "-I", str(PROGRAM), *map(str, limits), charset, base_url]
        # Files rather than pipes: nothing is left half-sent when it is killed.
        with _file(html) as given, _file() as made:
            process: Process | None = None
            with anyio.CancelScope(shield=True):
                # Not cut off halfway, when there would be a process that nobody ends.
                process = await anyio.open_process(
                    command, stdin=given, stdout=made, stderr=subprocess.DEVNULL, env={}, cwd="/"
                )
            assert process is not None, "a shield lets nothing be cancelled"
            try:
                if await process.wait() != 0:
                    raise WebFailure("unavailable", "The page is HTML that no sense can be made of.")
            finally:
                with anyio.CancelScope(shield=True):
                    with suppress(ProcessLookupError):
                        process.kill()
                    await process.aclose()
            return _content(made)


def _file(content: bytes = b"") -> IO[bytes]:
    """A file without a name, at its beginning."""
    file = tempfile.TemporaryFile()
    file.write(content)
    file.seek(0)
    return file


def _content(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode("utf-8", "replace")
