"""What hostile code tries first. Runs inside a sandbox with nothing but the standard library, and prints JSON.

Each attack only looks: it opens what it must not and closes it at once, or makes a call whose success changes nothing
outside its own process. It returns true when it got through. `main` runs those that are named in its arguments, each in
a process of its own, so that one that breaks something does not spoil the next.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import resource
import signal
import socket
import sys
from collections.abc import Callable

LIBC = ctypes.CDLL(None, use_errno=True)
X86 = platform.machine() == "x86_64"
NUMBERS = {
    "io_uring_setup": 425,
    "add_key": 248 if X86 else 217,
    "keyctl": 250 if X86 else 219,
    "bpf": 321 if X86 else 280,
    "userfaultfd": 323 if X86 else 282,
    "perf_event_open": 298 if X86 else 241,
    "process_vm_readv": 310 if X86 else 270,
    "open_by_handle_at": 304 if X86 else 265,
    "fsopen": 430,
    "open_tree": 428,
    "mount": 165 if X86 else 40,
    "unshare": 272 if X86 else 97,
    "ptrace": 101 if X86 else 117,
    "pidfd_getfd": 438,
    "clone3": 435,
    "personality": 135 if X86 else 92,
    "syslog": 103 if X86 else 116,
    "ioctl": 16 if X86 else 29,
}
ADDRESS_FAMILY_VSOCK = 40
CLONE_NEWUSER = 0x10000000


def system_call(name: str, *arguments: object) -> bool:
    """Whether the kernel took the call for good; refusals are EPERM, ENOSYS, EACCES and their like."""
    refusals = (1, 13, 38, 97)
    ctypes.set_errno(0)
    return LIBC.syscall(NUMBERS[name], *arguments) >= 0 or ctypes.get_errno() not in refusals


def can_open(path: str, flags: int) -> bool:
    try:
        os.close(os.open(path, flags))
    except OSError:
        return False
    return True


def can_read(path: str) -> bool:
    try:
        with open(path, "rb") as file:
            return bool(file.read(1))
    except IsADirectoryError:
        return True
    except OSError:
        return False


def can_connect(family: int, address: tuple[str, int] | str) -> bool:
    with socket.socket(family) as probe:
        probe.settimeout(2)
        try:
            probe.connect(address)
        except OSError as error:
            # Somebody answered, if only to say no.
            return isinstance(error, ConnectionRefusedError) and family == socket.AF_INET and not only_loopback()
    return True


def only_loopback() -> bool:
    return sorted(name for _, name in socket.if_nameindex()) == ["lo"]


def can_make_socket(family: int, kind: int = socket.SOCK_STREAM, protocol: int = 0) -> bool:
    try:
        socket.socket(family, kind, protocol).close()
    except OSError:
        return False
    return True


def is_null(path: str) -> bool:
    """Whether something was put in its place that swallows everything."""
    return os.path.exists(path) and os.stat(path).st_rdev == os.stat("/dev/null").st_rdev != 0


def writable_settings_of_the_kernel() -> bool:
    for directory, _, names in os.walk("/proc/sys"):
        for name in names:
            if can_open(os.path.join(directory, name), os.O_WRONLY):
                return True
    return False


def can_signal_others() -> bool:
    """Signal 0 asks only whether one could. Every other process in sight must be of this sandbox."""
    mine = os.stat("/proc/self").st_uid
    return any(os.stat(f"/proc/{pid}").st_uid != mine for pid in os.listdir("/proc") if pid.isdigit())


def can_resolve() -> bool:
    try:
        socket.getaddrinfo("example.com", 443)
    except OSError:
        return False
    return True


def can_become_root() -> bool:
    try:
        os.setuid(0)
    except OSError:
        return False
    return True


def setuid_programs_work() -> bool:
    with open("/proc/self/status", encoding="ascii") as status:
        return "NoNewPrivs:\t1" not in status.read()


def has_capabilities() -> bool:
    with open("/proc/self/status", encoding="ascii") as status:
        return any(line.startswith("CapBnd:") and int(line.split()[1], 16) for line in status)


def setuid_program_runs_as_root() -> bool:
    """Start one that waits, and ask the kernel whom it acts as."""
    program = next((path for path in ("/usr/bin/su", "/bin/su", "/usr/bin/passwd") if os.path.exists(path)), None)
    if program is None or not os.stat(program).st_mode & 0o4000:
        return False
    reading, writing = os.pipe()
    child = os.posix_spawn(program, [program], {}, file_actions=[(os.POSIX_SPAWN_DUP2, reading, 0)])
    try:
        with open(f"/proc/{child}/status", encoding="ascii") as status:
            effective = next(line.split()[2] for line in status if line.startswith("Uid:"))
        return effective == "0" and os.geteuid() != 0
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(writing)
        os.close(reading)


def own_setuid_program_gains() -> bool:
    """A copy of our own with the setuid bit: it must act as nobody but us."""
    with open("/bin/sleep", "rb") as source, open("own-setuid", "wb") as copy:
        copy.write(source.read())
    os.chmod("own-setuid", 0o4755)
    child = os.posix_spawn("own-setuid", ["sleep", "100"], {})
    try:
        with open(f"/proc/{child}/status", encoding="ascii") as status:
            uids = next(line.split()[1:] for line in status if line.startswith("Uid:"))
        return set(uids) != {str(os.getuid())}
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def can_limit_the_daemon() -> bool:
    """Set what is set already: with less CPU time than it has used, the kernel would end it, and all else with it."""
    try:
        resource.prlimit(1, resource.RLIMIT_CORE, resource.prlimit(1, resource.RLIMIT_CORE))
    except OSError:
        return False
    return True


def can_list(path: str) -> bool:
    try:
        os.listdir(path)
    except OSError:
        return False
    return True


def sees_a_process_of(name: str) -> bool:
    """The server's number means nothing inside, so its environment cannot be asked for by it."""
    try:
        with open(f"/proc/{os.environ[name]}/environ", "rb") as file:
            return b"CORRAL_ESCAPE_SECRET" in file.read()
    except OSError:
        return False


def refused_calls_pass() -> bool:
    """Each with arguments that mean nothing, so that the kernel itself would call them invalid, not forbidden."""
    for word in os.environ["REFUSED_CALLS"].split(","):
        ctypes.set_errno(0)
        result = LIBC.syscall(int(word.partition("=")[2]), *[ctypes.c_long(-1)] * 6)
        if result >= 0 or ctypes.get_errno() not in (1, 38):
            return True
    return False


def netlink_families() -> bool:
    return any(can_make_socket(16, socket.SOCK_DGRAM, family) for family in range(23))


def other_families() -> bool:
    return any(
        can_make_socket(family, kind) for family in range(3, 46) if family != socket.AF_INET6 for kind in (1, 2, 3, 5)
    )


ATTACKS: dict[str, Callable[[], bool]] = {
    "write a kernel setting": writable_settings_of_the_kernel,
    "open the kernel's memory": lambda: any(map(can_read, ("/dev/mem", "/dev/kmem", "/dev/port", "/proc/kcore"))),
    "open a disk": lambda: any(map(can_read, ("/dev/sda", "/dev/vda", "/dev/nvme0n1"))),
    "read the host's passwords": lambda: can_read("/etc/shadow"),
    "see the host's /sys": lambda: can_read("/sys/kernel"),
    "see the root user's home": lambda: can_read("/root/.bashrc"),
    "write to /usr": lambda: can_open("/usr/corral-was-here", os.O_WRONLY | os.O_CREAT | os.O_EXCL),
    "see processes of others": can_signal_others,
    "become root": can_become_root,
    "gain by setuid programs": setuid_programs_work,
    "keep capabilities": has_capabilities,
    "reach a cloud's metadata": lambda: can_connect(socket.AF_INET, ("169.254.169.254", 80)),
    "reach the host's loopback": lambda: can_connect(socket.AF_INET, ("127.0.0.1", int(os.environ["HOST_PORT"]))),
    "reach an abstract socket": lambda: can_connect(socket.AF_UNIX, "\0" + os.environ["HOST_SOCKET"]),
    "resolve a name": can_resolve,
    "make a netlink socket": lambda: can_make_socket(16, socket.SOCK_RAW),
    "make a raw socket": lambda: can_make_socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP),
    "make a packet socket": lambda: can_make_socket(17, socket.SOCK_RAW),
    "make a vsock socket": lambda: can_make_socket(ADDRESS_FAMILY_VSOCK),
    "use io_uring": lambda: system_call("io_uring_setup", 1, ctypes.create_string_buffer(256)),
    "add a key": lambda: system_call("add_key", b"user", b"corral", b"x", 1, -2),
    "use keyctl": lambda: system_call("keyctl", 0, -2, 0),
    "load bpf": lambda: system_call("bpf", 0, ctypes.create_string_buffer(128), 128),
    "use userfaultfd": lambda: system_call("userfaultfd", 1),
    "watch with perf": lambda: system_call("perf_event_open", ctypes.create_string_buffer(128), 0, -1, -1, 0),
    "read another process": lambda: system_call("process_vm_readv", os.getpid(), 0, 0, 0, 0, 0),
    "trace a process": lambda: system_call("ptrace", 0, 0, 0, 0),
    "open by handle": lambda: system_call("open_by_handle_at", -1, ctypes.create_string_buffer(128), 0),
    "make a mount": lambda: system_call("mount", b"none", b"/tmp", b"tmpfs", 0, 0),
    "open a file system": lambda: system_call("fsopen", b"tmpfs", 0),
    "copy a mount tree": lambda: system_call("open_tree", -100, b"/", 1),
    "nest a user namespace": lambda: system_call("unshare", CLONE_NEWUSER),
    "take a descriptor of another": lambda: system_call("pidfd_getfd", -1, 0, 0),
    "clone past the filter": lambda: system_call("clone3", ctypes.create_string_buffer(88), 88),
    "change personality": lambda: system_call("personality", 0x0400000),
    "read the kernel's log": lambda: system_call("syslog", 3, ctypes.create_string_buffer(64), 64),
    "type into the terminal": lambda: system_call("ioctl", 0, 0x5412, b"x"),
    "run a setuid program as root": setuid_program_runs_as_root,
    "gain by a setuid program of our own": own_setuid_program_gains,
    "write the daemon's memory": lambda: can_open("/proc/1/mem", os.O_RDWR),
    "read the daemon's memory": lambda: can_read("/proc/1/mem") or can_open("/proc/1/mem", os.O_RDONLY),
    "see the daemon's descriptors": lambda: can_list("/proc/1/fd"),
    "read the daemon's environment": lambda: can_read("/proc/1/environ"),
    "see the daemon's maps": lambda: can_read("/proc/1/maps"),
    "enter the daemon's root": lambda: can_list("/proc/1/root") or can_list("/proc/1/cwd"),
    "lower the daemon's limits": can_limit_the_daemon,
    "register for the host's pressure": lambda: can_open("/proc/pressure/cpu", os.O_WRONLY),
    "attach to the daemon": lambda: system_call("ptrace", 16, 1, 0, 0),
    "read the server's environment by its number": lambda: sees_a_process_of("SERVER_PID"),
    "connect to a session's socket": lambda: can_connect(socket.AF_UNIX, os.environ["SESSION_SOCKET"]),
    "open the kernel's core pattern": lambda: can_open("/proc/sys/kernel/core_pattern", os.O_WRONLY),
    "open the kernel's sysrq": lambda: (
        can_open("/proc/sysrq-trigger", os.O_WRONLY) and not is_null("/proc/sysrq-trigger")
    ),
    "see /sys at all": lambda: can_list("/sys"),
    "see cgroups": lambda: can_list("/sys/fs/cgroup"),
    "make a netlink socket of any family": netlink_families,
    "make a socket of any other family": other_families,
    "make a call that is refused": refused_calls_pass,
    "read the server's environment": lambda: "CORRAL_ESCAPE_SECRET" in os.environ,
}
SECONDS_MAX = 20


def attempt(name: str) -> bool:
    """Run one attack in a child; one that hangs or dies got nowhere."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(SECONDS_MAX)
        try:
            os.write(writing, b"1" if ATTACKS[name]() else b"0")
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        got_through = answer.read() == b"1"
    os.waitpid(child, 0)
    return got_through


def main() -> None:
    names = sys.argv[1:] or list(ATTACKS)
    sys.stdout.write(json.dumps({name: attempt(name) for name in names}))


if __name__ == "__main__":
    main()
