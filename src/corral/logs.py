"""Where log lines go: to standard error, one for each, with the ids that are bound while they are written.

`api/middleware.py` binds the id of each request and `harness/worker.py` that of each session, so whoever logs need not
know them. Lines hold what happened and to which ids, never what was said: a test looks for it. Libraries that log with
Python's own module come out in the same form, from warnings on; below that they may tell contents.
"""

from __future__ import annotations

import logging
import sys

import structlog
from structlog.types import EventDict, Processor, WrappedLogger

from corral.config_sections import LogSettings
from corral.domain.visible import visible

LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def log_as(settings: LogSettings) -> None:
    """From now on, log like this."""
    level = LEVELS[settings.level]
    chain: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,  # without local variables: they may hold secrets
    ]
    renderer = _renderer(settings)
    structlog.configure(
        processors=[*chain, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, *chain],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(max(level, logging.WARNING))


def _renderer(settings: LogSettings) -> Processor:
    form = settings.format or ("console" if sys.stderr.isatty() else "logfmt")
    if form == "json":
        return structlog.processors.JSONRenderer()
    if form == "logfmt":
        return _logfmt
    return structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback)


_render = structlog.processors.LogfmtRenderer()


def _logfmt(logger: WrappedLogger, method: str, event: EventDict) -> str:
    """One line, whatever is in it: paths and names are what strangers sent. The renderer escapes line breaks."""
    shown = {key: visible(value) if isinstance(value, str) else value for key, value in event.items()}
    return _render(logger, method, shown)
