"""read, write, edit, glob and grep.

Relative paths start at the workspace. Only regular files are opened, and never in a way that could hang. Texts are
for the model: they name files as it named them. Where a file may be is not decided here; the sandbox around us does.
"""

from __future__ import annotations

import base64
import errno
import os
import re
import select
import stat
import time

from corral.sandboxes.daemon.calls import Call, Failure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, BinaryIO

    from corral.sandboxes.daemon.processes import Processes

    Searched = tuple[int | None, str, str, bool]
    """Exit code, or None when it was stopped; output, errors, and whether the output was cut."""


PIECE_BYTES = 65_536
ERROR_BYTES_MAX = 4_096
LINE_CHARACTERS_MAX = 2_000
WALK_ENTRIES_MAX = 50_000
KINDS = {".png": "image", ".jpg": "image", ".jpeg": "image", ".gif": "image", ".webp": "image", ".pdf": "document"}


class Names:
    """Paths as the model writes them, and where they really are.

    Inside bubblewrap the two are the same and `real_by_shown` is empty.
    """

    def __init__(self, root: str, real_by_shown: dict[str, str]) -> None:
        self._root, self._real_by_shown = root, real_by_shown

    def locate(self, path: str) -> str:
        """The real place of a path that a model wrote."""
        path = os.path.join(self._root, path)
        for shown, real in self._real_by_shown.items():
            if path == shown or path.startswith(shown + "/"):
                return real + path[len(shown) :]
        return path

    def show(self, text: str) -> str:
        """`text` with the real paths at the start of its lines as the model knows them."""
        for shown, real in self._real_by_shown.items():
            text = re.sub("(?m)^" + re.escape(real) + "(?![^/:\n])", lambda _, shown=shown: shown, text)
        return text


class Files:
    """The tools."""

    def __init__(self, processes: Processes, limits: Any, names: Names) -> None:
        self._processes, self._limits, self._names = processes, limits, names

    def read(self, call: Call) -> str | list[dict[str, Any]]:
        """Text, or an image or document block by the file's extension."""
        name, lines = call.arguments["file_path"], call.arguments.get("view_range")
        kind = KINDS.get(os.path.splitext(name)[1].lower())
        with _open_regular("read", name, self._names.locate(name)) as file:
            if kind is None:
                return self._read_text(name, file, lines)
            if lines:
                raise Failure("read: view_range is not supported for images and PDFs")
            return [self._read_media(name, file, kind)]

    def _read_text(self, name: str, file: BinaryIO, lines: list[int] | None) -> str:
        limit, size = self._limits.text_file_bytes_max, os.fstat(file.fileno()).st_size
        data = _select_lines(file, lines[0], lines[1], limit) if lines else file.read(limit + 1)
        if len(data) > limit and lines:
            raise Failure(f"read: {name}: these lines are more than the limit of {limit} bytes; ask for fewer")
        if len(data) > limit:
            advice = "use view_range to read a part of it, e.g. [1, 500]"
            raise Failure(f"read: {name}: {size} bytes are more than the limit of {limit}; {advice}")
        return data.decode("utf-8", "replace") or ("(no lines in that range)" if lines else "(empty file)")

    def _read_media(self, name: str, file: BinaryIO, kind: str) -> dict[str, Any]:
        # The image limit is on the encoded form, 4 bytes for every 3.
        limit = self._limits.pdf_bytes_max if kind == "document" else self._limits.image_base64_bytes_max // 4 * 3
        data = file.read(limit + 1)
        if len(data) > limit:
            raise Failure(f"read: {name}: the file is larger than the limit of {limit} bytes for its kind")
        # A block whose media type is wrong makes the model's server refuse the whole conversation.
        media_type = _sniff(data)
        if media_type is None or media_type.startswith("image/") != (kind == "image"):
            wanted = "a PDF" if kind == "document" else "a PNG, JPEG, GIF or WebP image"
            raise Failure(f"read: {name}: the content is not {wanted}")
        encoded = base64.b64encode(data).decode("ascii")
        return {"type": kind, "source": {"type": "base64", "media_type": media_type, "data": encoded}}

    def write(self, call: Call) -> str:
        """Create or replace a file, with its parent directories."""
        name, data = call.arguments["file_path"], call.arguments["content"].encode("utf-8", "replace")
        path = os.path.realpath(self._names.locate(name))
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
        except FileExistsError:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from None
        _replace("write", name, path, data)
        return f"wrote {len(data)} bytes to {name}"

    def edit(self, call: Call) -> str:
        """Replace text that occurs exactly once, or everywhere."""
        arguments, limit = call.arguments, self._limits.text_file_bytes_max
        name = arguments["file_path"]
        path = os.path.realpath(self._names.locate(name))
        # Bytes, so that a file in another encoding keeps what is not edited.
        old, new = (arguments[key].encode("utf-8", "replace") for key in ("old_string", "new_string"))
        with _open_regular("edit", name, path) as file:
            data = file.read(limit + 1)
        if len(data) > limit:
            raise Failure(f"edit: {name}: the file is larger than the limit of {limit} bytes")
        count = data.count(old) if old else 0
        if not count:
            raise Failure(f"edit: old_string not found in {name}")
        if count > 1 and not arguments.get("replace_all"):
            advice = "add surrounding lines to make it unique, or set replace_all"
            raise Failure(f"edit: old_string appears {count} times in {name}; {advice}")
        _replace("edit", name, path, data.replace(old, new))
        return f"edited {name} ({count} replacement{'' if count == 1 else 's'})"

    def glob(self, call: Call) -> str:
        """Paths that match, newest first."""
        # Imported here because it is slow to import and most sandboxes never glob.
        from pathlib import Path

        pattern, name = call.arguments["pattern"], call.arguments.get("path") or "."
        if pattern.startswith("/") or ".." in pattern.split("/"):
            raise Failure("glob: the pattern must be relative and without '..'; give the directory as path")
        root, found = Path(os.path.normpath(self._names.locate(name))), list[tuple[int, str]]()
        if not root.is_dir():
            raise Failure(f"glob: {name}: no such directory")
        for count, path in enumerate(root.glob(pattern)):
            if count >= WALK_ENTRIES_MAX or call.cancelled:
                break
            found.append((-_modified(path), str(path)))
        most = self._limits.glob_results_max
        lines = [path for _, path in sorted(found)[:most]]
        more = f"\n[{len(found) - most} more not shown]" if len(found) > most else ""
        return self._names.show("\n".join(lines)) + more if lines else "no matches"

    def grep(self, call: Call) -> str:
        """Lines that match, as ripgrep prints them."""
        name, limit = call.arguments.get("path") or ".", self._limits.output_bytes_max
        path = os.path.normpath(self._names.locate(name))
        mode = os.stat(path).st_mode
        if not stat.S_ISDIR(mode):
            # ripgrep would wait for somebody to write into a pipe, and read a device without end.
            _require_regular("grep", name, mode)
        argv = ["/usr/bin/env", "rg", "--no-config", "-n", "--no-heading", "--color=never"]
        argv += ["-M", str(LINE_CHARACTERS_MAX), "--max-columns-preview", "-e", call.arguments["pattern"], "--", path]
        code, output, errors, truncated = self._search(call, argv, limit)
        if code == 127:
            raise Failure("grep: ripgrep is missing in this sandbox; use grep in bash")
        if output:
            return self._names.show(output) + (f"\n[output truncated after {limit} bytes]" if truncated else "")
        if code == 1:
            return "no matches"
        raise Failure("grep: " + (errors.strip() or "stopped before anything was found"))

    def _search(self, call: Call, argv: list[str], limit: int) -> Searched:
        """Run ripgrep and keep the head of its output; a flood ends it early."""
        (output, output_inside), (errors, errors_inside) = os.pipe(), os.pipe()
        try:
            child = self._processes.start(argv, {1: output_inside, 2: errors_inside})
        finally:
            os.close(output_inside)
            os.close(errors_inside)
        call.on_cancel(lambda: self._processes.kill(child))
        texts = {output: bytearray(), errors: bytearray()}
        whole = _drain(texts, limit, time.monotonic() + self._limits.command_seconds)
        call.on_cancel(None)
        if not whole:
            self._processes.kill(child)
        select.select([child.exited], [], [])
        child.close()
        for source in texts:
            os.close(source)
        found, said = texts[output], texts[errors][:ERROR_BYTES_MAX]
        kept = found[:limit].decode("utf-8", "replace").rstrip("\n")
        return child.status if whole else None, kept, said.decode("utf-8", "replace"), len(found) > limit


def _drain(texts: dict[int, bytearray], limit: int, deadline: float) -> bool:
    """Read pipes into their buffers; True when all ended, False when a limit came first."""
    poll, opened = select.poll(), set(texts)
    for source in texts:
        poll.register(source, select.POLLIN)
    while opened:
        if time.monotonic() > deadline or any(len(text) > limit for text in texts.values()):
            return False
        for source, _ in poll.poll(1000):
            piece = os.read(source, PIECE_BYTES)
            texts[source] += piece
            if not piece:
                poll.unregister(source)
                opened.remove(source)
    return True


def _open_regular(tool: str, name: str, path: str) -> BinaryIO:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        _require_regular(tool, name, os.fstat(descriptor).st_mode)
    except Failure:
        os.close(descriptor)
        raise
    return open(descriptor, "rb")


def _require_regular(tool: str, name: str, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise Failure(f"{tool}: {name}: is a directory")
    if not stat.S_ISREG(mode):
        raise Failure(f"{tool}: {name}: not a regular file")


def _replace(tool: str, name: str, path: str, data: bytes) -> None:
    """Put `data` at `path`, whole or not at all, keeping the mode of a file that is there."""
    mode = 0o644
    if os.path.lexists(path):
        mode = os.stat(path).st_mode
        _require_regular(tool, name, mode)
        if not os.access(path, os.W_OK):
            raise Failure(f"{tool}: {name}: permission denied")
    draft = os.path.join(os.path.dirname(path), ".corral-" + os.urandom(8).hex())
    try:
        with open(draft, "xb") as file:
            file.write(data)
            os.fchmod(file.fileno(), stat.S_IMODE(mode))
        os.replace(draft, path)
    except OSError:
        if os.path.lexists(draft):
            os.unlink(draft)
        raise


def _select_lines(file: BinaryIO, first: int, last: int, limit: int) -> bytes:
    """Lines counted from 1, without the newline after `last`; reading stops soon after `limit` bytes."""
    number, data = 1, bytearray()
    while (last <= 0 or number <= last) and len(data) <= limit:
        piece = file.readline(PIECE_BYTES)
        if not piece:
            return bytes(data)
        if number >= first:
            data += piece
        number += piece.endswith(b"\n")
    return bytes(data[:-1]) if len(data) <= limit and data.endswith(b"\n") else bytes(data)


def _sniff(data: bytes) -> str | None:
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "image/webp"
    return "application/pdf" if b"%PDF-" in data[:1024] else None


def _modified(path: Any) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
