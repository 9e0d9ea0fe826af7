"""What sessions leave in `/mnt/session/outputs`, taken into the files when somebody asks for them.

Asking is when we look: nothing polls, and what is listed is as new as the question. The bytes are copied into the blob
store, because a sandbox goes on changing what it has. A file that is still the same, by its stamp, is not read again;
one that changed takes the place of what it was; one that its owner deleted stays hidden until it is written anew.
A sandbox on another machine is looked at there: its worker is asked, by the engine, and then the records have it all.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing

import anyio
import structlog

from corral.api import file_records
from corral.api.dependencies import Services
from corral.domain import file as rules
from corral.domain.file import File, Output
from corral.errors import Elsewhere, NotFound, TooLarge

log = structlog.get_logger(__name__)


async def collect(services: Services, workspace_id: str, session_id: str) -> None:
    """Bring a session's outputs up to date among the files. Does nothing for what is no session of this workspace."""
    try:
        await _collect(services, workspace_id, session_id)
    except Elsewhere:
        await services.engine.collect(session_id)


async def collect_here(services: Services, session_id: str) -> None:
    """The same for whoever asks from another machine. Raises `Elsewhere` when this one does not have the sandbox."""
    await _collect(services, None, session_id)


async def _collect(services: Services, workspace_id: str | None, session_id: str) -> None:
    async with services.output_locks.setdefault(session_id, anyio.Lock()):
        try:
            workspace_id = (await services.log.snapshot(session_id, workspace_id)).session.workspace_id
        except NotFound:
            return
        found = await services.sandboxes.outputs(session_id)
        if found is None:
            return
        known: dict[bytes, list[File]] = {}
        async for record in file_records.of_session(services, workspace_id, session_id):
            file = file_records.file_of(record)
            if file.output_path is not None:
                known.setdefault(file.output_path, []).append(file)
        for output in _admitted(services, session_id, found):
            await _take(services, workspace_id, session_id, output, known.pop(output.path, []))
        for vanished in known.values():
            await _remove(services, workspace_id, vanished)


async def forget(services: Services, workspace_id: str, session_id: str) -> None:
    """Remove all files of a session that is gone."""
    async with services.output_locks.setdefault(session_id, anyio.Lock()):
        await file_records.remove_of_session(services, workspace_id, session_id)


def _admitted(services: Services, session_id: str, found: Sequence[Output]) -> Iterator[Output]:
    """The first outputs within the limits of number and size."""
    settings = services.settings
    bytes_left = settings.outputs_bytes_max
    admitted = left_out = 0
    for output in found:
        if output.size_bytes > min(settings.file_bytes_max, bytes_left) or admitted == settings.outputs_max:
            left_out += 1
            continue
        admitted += 1
        bytes_left -= output.size_bytes
        yield output
    if left_out:
        # One line for all: an agent can make twenty thousand, and they are left out whenever somebody asks.
        log.warning("outputs_not_listed", session_id=session_id, count=left_out)


async def _take(services: Services, workspace_id: str, session_id: str, output: Output, before: list[File]) -> None:
    """Take in one output, in place of what was at its path before."""
    if any(file.output_stamp == output.stamp for file in before):
        return
    try:
        async with (
            aclosing(_bounded(services, session_id, output)) as chunks,
            services.blobs.put(chunks) as blob,
        ):
            file_id = rules.output_id(session_id, output.path, blob.sha256)
            same = next((file for file in before if file.id == file_id), None)
            file = File(
                id=file_id,
                filename=rules.output_filename(output.path),
                mime_type=rules.output_mime_type(output.path),
                size_bytes=blob.size_bytes,
                sha256=blob.sha256,
                created_at=same.created_at if same else services.clock.now(),
                downloadable=True,
                session_id=session_id,
                output_path=output.path,
                output_stamp=output.stamp,
            )
            await file_records.put(services, workspace_id, file)
    except (NotFound, TooLarge):
        return  # it changed while we read it; the next question finds it as it is then
    await _remove(services, workspace_id, [file for file in before if file.id != file_id])


async def _bounded(services: Services, session_id: str, output: Output) -> AsyncGenerator[bytes]:
    """The output's bytes, as long as there are not more than it was admitted with."""
    left = output.size_bytes
    async with aclosing(services.sandboxes.read_output(session_id, output.path)) as chunks:
        async for chunk in chunks:
            left -= len(chunk)
            if left < 0:
                raise TooLarge
            yield chunk


async def _remove(services: Services, workspace_id: str, files: list[File]) -> None:
    for file in files:
        await file_records.remove(services, workspace_id, file)
