"""The place on disk of one session's sandbox, and the record of the instance that runs over it.

    <root>/sessions/<session id>/
        server/     only the server's: socket, records, log, lock; never visible inside
        egress/     the socket of the way out, if there is one; read-only inside
        files/      the sandbox's own: workspace, outputs, uploads, home, tmp
    <root>/trash/   what is being removed: it goes there in one step, so a session's directory is whole or not there

When the server is root, `files/` belongs to the host uid of this one sandbox, claimed as `<root>/uids/<uid>`, so no
two sandboxes share a uid. That file has a second name in the directory it is claimed for, from its beginning: one that
has lost it is nobody's, which a crash between any two steps cannot change. Otherwise everything belongs to the server's
user. Blocking; called from worker threads.
How an instance is started is in `local.py` and the backends.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import select
import shutil
import signal
import subprocess
import time
import zlib
from collections.abc import Collection
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import msgspec

from corral.domain.egress import EgressPolicy
from corral.errors import SandboxUnavailable

SESSION_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
KEPT_FOLDERS = ("workspace", "outputs", "uploads", "home")
PACKED_FOLDERS = ("workspace", "outputs", "home")
"""What goes into a checkpoint; uploads are put in anew."""
UID_CLAIM = "uid"
"""The second name of a claim on a host uid."""
KILL_SECONDS_MAX = 10.0
LOCK_POLL_SECONDS = 0.01


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """The newest instance: which process it is, beyond doubt, and how many came before it."""

    pid: int
    start_ticks: int
    """Since boot. With `boot_id` it tells a process from a later one with the same pid."""
    boot_id: str
    predecessors: int


class Life(msgspec.Struct, frozen=True, kw_only=True):
    """What the files are: which of the session's, since when, and what the agent is still to be told of them."""

    created_at: datetime
    """When the sandbox was made."""
    generation: int = 0
    """Of the checkpoint that the files came from, or that is known to be older than they are; 0 for none."""
    unused: bool = False
    """No sandbox has run over them since they came out of their checkpoint."""
    notice: str = ""


class SessionDirectory:
    """One session's directories."""

    def __init__(self, root: Path, session_id: str) -> None:
        if not SESSION_ID.fullmatch(session_id):
            raise SandboxUnavailable(f"`{session_id}` cannot be the name of a session's directory.")
        self._root = root
        self.path = root / "sessions" / session_id
        self.server = self.path / "server"
        self.files = self.path / "files"
        self.socket = self.server / "socket"
        self.log = self.server / "log"
        self.uploads = self.server / "uploads.json"
        """What was put among the uploads: hashes by path."""
        self.egress = self.path / "egress"
        self._egress_policy = self.server / "egress.json"
        self._record = self.server / "instance.json"
        self._life = self.server / "life.json"

    def lock(self, seconds_max: float) -> int:
        """Keep other servers on this directory from making an instance until the descriptor is closed."""
        deadline = time.monotonic() + seconds_max
        while True:
            self.server.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self.server / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # Whoever had it may have removed the directory, and the lock with it.
                if (self.server / "lock").stat().st_ino == os.fstat(descriptor).st_ino:
                    return descriptor
            except FileNotFoundError:
                pass
            except BlockingIOError:
                if time.monotonic() > deadline:
                    os.close(descriptor)
                    raise SandboxUnavailable("Another server is starting this sandbox and does not finish.") from None
                time.sleep(LOCK_POLL_SECONDS)
            os.close(descriptor)

    def owner(self) -> int:
        """The host uid that this sandbox runs as."""
        return self.files.stat().st_uid

    def make(self, *, uid_first: int, uid_count: int) -> None:
        """Create what is missing and empty `tmp`. Files of earlier instances stay."""
        self.server.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.chmod(self.path, 0o711)
        if not self.files.exists():
            self._make_owned(self.files, self.claim_uid(uid_first, uid_count))
        remove_tree(self.files / "tmp")
        for name in (*KEPT_FOLDERS, "tmp"):
            if not (self.files / name).exists():
                self._make_owned(self.files / name, self.owner(), 0o1777 if name == "tmp" else 0o700)

    def _make_owned(self, path: Path, uid: int, mode: int = 0o700) -> None:
        # Under another name first, so that a crash between the two steps leaves nothing with the wrong owner.
        draft = path.with_name(f".{path.name}.draft")
        remove_tree(draft)
        draft.mkdir(mode=0o700)
        draft.chmod(mode)
        if os.geteuid() == 0:
            os.chown(draft, uid, uid)
        draft.rename(path)

    def make_egress(self) -> None:
        """The directory of the way out, before there is one."""
        self.egress.mkdir(mode=0o711, exist_ok=True)
        self.egress.chmod(0o711)

    def is_new(self) -> bool:
        """Whether no sandbox was ever here, and no files are."""
        return not any(place.exists() for place in (self.files, self.egress, self._record))

    def adopt(self, blank: SessionDirectory) -> None:
        """Take over all of a sandbox that was never used, while its daemon is held.

        The record comes last: before that, what was taken are empty files that any sandbox can go on with."""
        os.chmod(self.path, 0o711)
        if os.geteuid() == 0:
            (blank.server / UID_CLAIM).rename(self.server / UID_CLAIM)
        blank.files.rename(self.files)
        if blank.egress.exists():
            blank.egress.rename(self.egress)
        for old, new in ((blank.log, self.log), (blank.socket, self.socket), (blank._record, self._record)):
            old.rename(new)

    def begin_files(self, *, uid_first: int, uid_count: int) -> Path:
        """An empty directory of the sandbox's own user, to become `files` with `take_files`."""
        self.server.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.chmod(self.path, 0o711)
        begun = self.path / "restoring"
        remove_tree(begun)
        uid = self.owner() if self.files.exists() else self.claim_uid(uid_first, uid_count)
        self._make_owned(begun, uid)
        return begun

    def take_files(self, begun: Path, life: Life) -> None:
        """Let these be the files from now on, in place of any older ones."""
        self.drop_files(give_back=False)
        begun.rename(self.files)
        self.put_life(life)

    def drop_files(self, *, give_back: bool = True) -> None:
        """Remove the files and all that is known of them; also give the uid back, unless others go on with it."""
        for place in (self._record, self.uploads, self._life):
            place.unlink(missing_ok=True)
        if self.files.exists():
            uid, trash = self.owner(), self._trash()
            self.files.rename(trash)
            if give_back:
                give_back_uid(self._root, self.server, uid)
            remove_tree(trash)

    def claim_uid(self, first: int, count: int) -> int:
        """A host uid that no other sandbox has; the server's own when it cannot give any away."""
        if os.geteuid() != 0:
            return os.geteuid()
        return claim_uid(self._root, self.server, first=first, count=count)

    def record(self) -> Record | None:
        """The newest instance that was started here, running or not."""
        try:
            return msgspec.json.decode(self._record.read_bytes(), type=Record)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except msgspec.DecodeError as error:
            raise SandboxUnavailable("The record of the session's sandbox cannot be read.") from error

    def put_record(self, pid: int) -> Record:
        """Note that `pid` is the instance now."""
        before = self.record()
        ticks = start_ticks(pid)
        if ticks is None:
            raise SandboxUnavailable(f"The sandbox ended while it was starting. {self.log_text()}".strip())
        predecessors = before.predecessors + 1 if before else 0
        record = Record(pid=pid, start_ticks=ticks, boot_id=boot_id(), predecessors=predecessors)
        draft = self._record.with_suffix(".draft")
        draft.write_bytes(msgspec.json.encode(record))
        draft.replace(self._record)
        return record

    def life(self) -> Life | None:
        """What is known of the files; None when nothing is."""
        try:
            return msgspec.json.decode(self._life.read_bytes(), type=Life)
        except (OSError, msgspec.DecodeError):
            return None

    def put_life(self, life: Life) -> None:
        """Note what the files are."""
        draft = self._life.with_suffix(".draft")
        draft.write_bytes(msgspec.json.encode(life))
        draft.replace(self._life)

    def is_running(self) -> bool:
        """Whether the recorded instance is alive."""
        record = self.record()
        return record is not None and record.boot_id == boot_id() and start_ticks(record.pid) == record.start_ticks

    def egress_policy(self) -> EgressPolicy | None:
        """What the instance was made to reach; None for nothing."""
        try:
            return msgspec.json.decode(self._egress_policy.read_bytes(), type=EgressPolicy)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except msgspec.DecodeError as error:
            raise SandboxUnavailable("The record of the sandbox's way out cannot be read.") from error

    def put_egress_policy(self, policy: EgressPolicy | None) -> None:
        """Note what the next instance may reach."""
        if policy is None:
            self._egress_policy.unlink(missing_ok=True)
            return
        draft = self._egress_policy.with_suffix(".draft")
        draft.write_bytes(msgspec.json.encode(policy))
        draft.replace(self._egress_policy)

    def kill_instance(self) -> None:
        """Kill exactly the recorded process, and wait until it is gone. A bubblewrap sandbox dies with it."""
        record = self.record()
        if record is None or record.boot_id != boot_id():
            return
        try:
            process = os.pidfd_open(record.pid)
        except ProcessLookupError:
            return
        try:
            # Checked while the pidfd pins the process, so what is killed is what was checked.
            if start_ticks(record.pid) == record.start_ticks:
                signal.pidfd_send_signal(process, signal.SIGKILL)
                if not select.select([process], [], [], KILL_SECONDS_MAX)[0]:
                    raise SandboxUnavailable("The session's earlier sandbox does not end.")
        except ProcessLookupError:
            return
        finally:
            os.close(process)

    def remove(self) -> None:
        """Remove all of it and give the uid back."""
        if not self.path.exists():
            return
        uids = [place.lstat().st_uid for place in (self.files, self.path / "restoring") if place.exists()]
        trash = self._trash()
        try:
            self.path.rename(trash)
        except FileNotFoundError:
            return
        for uid in uids:
            give_back_uid(self._root, trash / self.server.name, uid)
        remove_tree(trash)

    def _trash(self) -> Path:
        """A new name for what is to be removed. The server's only: what is in there is no sandbox's any more."""
        trash = self._root / "trash"
        trash.mkdir(mode=0o700, parents=True, exist_ok=True)
        return trash / f"{self.path.name}.{secrets.token_hex(8)}"

    def log_text(self) -> str:
        """The last thing that was said while an instance started."""
        try:
            lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        except OSError:
            return ""
        return lines[-1][:500] if lines else ""


def claim_uid(root: Path, place: Path, *, first: int, count: int) -> int:
    """A host uid that nothing else below `root` runs as, for as long as the directory `place` is there or until it is
    given back; in place of one that was claimed for it before."""
    claims = root / "uids"
    claims.mkdir(mode=0o700, exist_ok=True)
    held = place / UID_CLAIM
    held.unlink(missing_ok=True)
    held.touch(mode=0o600)
    # Spread by path, so that several servers on one machine seldom use the same uids.
    start = zlib.crc32(os.fsencode(place))
    for offset in range(count):
        uid = first + (start + offset) % count
        try:
            os.link(held, claims / str(uid))
        except FileExistsError:
            continue
        return uid
    raise SandboxUnavailable(f"All {count} host uids from {first} are in use; raise `sandbox.uid_count`.")


def give_back_uid(root: Path, place: Path, uid: int) -> None:
    """Let others claim it, unless others than `place` have. Before `place` is removed: afterwards it may be theirs."""
    claim = root / "uids" / str(uid)
    with suppress(FileNotFoundError):
        if claim.samefile(place / UID_CLAIM):
            claim.unlink()


def give_back_lost_uids(root: Path, used: Collection[int]) -> None:
    """Remove the claims of directories that are gone. `used` uids stay claimed: earlier servers gave no second name."""
    for claim in _listed(root / "uids"):
        with suppress(FileNotFoundError):
            if claim.stat().st_nlink == 1 and claim.name not in map(str, used):
                claim.unlink()


def _listed(directory: Path) -> list[Path]:
    try:
        return list(directory.iterdir())
    except FileNotFoundError:
        return []


def remove_tree(path: Path) -> None:
    """Remove what a sandbox may have made, however deep, whatever its modes."""
    if not os.path.lexists(path):
        return
    rm, chmod = shutil.which("rm") or "/bin/rm", shutil.which("chmod") or "/bin/chmod"
    command = [rm, "-rf", "--one-file-system", "--", str(path)]
    _run(command)
    if os.path.lexists(path):
        # A directory without permissions cannot be emptied, except by root.
        _run([chmod, "-R", "u+rwX", "--", str(path)])
        _run(command)
    if os.path.lexists(path):
        raise SandboxUnavailable("Some files of the sandbox could not be removed.")


def _run(command: list[str]) -> None:
    # What it complains of is not kept: whole paths, of any length and number, that a sandbox has chosen.
    subprocess.run(command, check=False, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def start_ticks(pid: int) -> int | None:
    """When the process started, in clock ticks since boot; None when there is none, or only its remains."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


def boot_id() -> str:
    """Which boot of the machine this is."""
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
