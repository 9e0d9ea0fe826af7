"""One `advance`, and what its end means to an engine: the top of a session's worker, for all engines."""

from __future__ import annotations

import structlog

from corral.errors import CorralError, NotFound, StaleEpoch, Unavailable
from corral.interfaces.engine import Signal, Worker

log = structlog.get_logger(__name__)


async def attempt(
    worker: Worker, session_id: str, interrupted: Signal, *, inherited: bool
) -> StaleEpoch | Unavailable | None:
    """Advance the session; None when it rests, is gone, or was given up for a bug. Else another worker has it, or the
    store does not take writes: what to do is the engine's."""
    try:
        await worker.advance(session_id, interrupted, inherited=inherited)
    except NotFound as error:
        log.info("session_left", session_id=session_id, reason=error.message)
    except (StaleEpoch, Unavailable) as error:
        return error
    except Exception:  # the top of a worker's session: one that breaks must not take the others down
        log.exception("session_broke", session_id=session_id)
        return await _give_up(worker, session_id)
    return None


async def _give_up(worker: Worker, session_id: str) -> Unavailable | None:
    """What breaks a session may be what keeps it from being given up: then it is tried again, or nobody would."""
    try:
        await worker.give_up(session_id)
    except Unavailable as error:
        return error
    except CorralError as error:
        log.warning("session_left_unfinished", session_id=session_id, reason=error.message)
    return None
