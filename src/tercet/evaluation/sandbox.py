"""Running code that a model wrote: in a process of its own that can compute and print, and nothing else.

On Linux a seccomp filter (a few instructions that the kernel runs at every system call) is put in place before the code
is: no sockets, no new processes, no signals to others, and files are opened for reading only. Beside it stand limits of
memory, processor time and output, and a clock outside. Where no such filter can be had the code is not run at all.

This keeps honest mistakes and careless programs from doing harm. It is not a vault: the code can read what you can
read, though it has no way to send it anywhere.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import resource
import signal
import struct
import subprocess
import sys
import tempfile
from dataclasses import dataclass

from tercet.errors import ConfigError

SECONDS = 5.0
MEGABYTES = 256
OUTPUT = 64 * 1024  # bytes of output that are kept; more ends the process

# numbers of system calls: x86_64, aarch64 (-1: that machine has no such call)
_CALLS = {
    "socket": (41, 198), "socketpair": (53, 199), "fork": (57, -1), "vfork": (58, -1), "kill": (62, 129), "tkill": (200, 130),
    "tgkill": (234, 131), "rt_sigqueueinfo": (129, 138), "pidfd_send_signal": (424, 424), "pidfd_open": (434, 434), "pidfd_getfd": (438, 438),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "creat": (85, -1), "truncate": (76, 45),
    "ftruncate": (77, 46), "rename": (82, -1), "renameat": (264, 38), "renameat2": (316, 276), "link": (86, -1), "linkat": (265, 37),
    "symlink": (88, -1), "symlinkat": (266, 36), "unlink": (87, -1), "unlinkat": (263, 35), "rmdir": (84, -1), "mkdir": (83, -1),
    "mkdirat": (258, 34), "mknod": (133, -1), "mknodat": (259, 33), "chmod": (90, -1), "fchmod": (91, 52), "fchmodat": (268, 53),
    "fchmodat2": (452, 452), "chown": (92, -1), "fchown": (93, 55), "lchown": (94, -1), "fchownat": (260, 54), "utime": (132, -1), "utimes": (235, -1),
    "utimensat": (280, 88), "futimesat": (261, -1), "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "mount": (165, 40), "umount2": (166, 39),
    "pivot_root": (155, 41), "chroot": (161, 51), "unshare": (272, 97), "setns": (308, 268), "bpf": (321, 280), "io_uring_setup": (425, 425),
    "perf_event_open": (298, 241), "keyctl": (250, 219), "add_key": (248, 217), "userfaultfd": (323, 282), "memfd_create": (319, 279),
    "setpriority": (140, 140), "prlimit64": (302, 261), "setrlimit": (160, 164), "openat2": (437, 437), "clone3": (435, 435),
    "open_by_handle_at": (304, 265), "reboot": (169, 142), "shmget": (29, 194), "msgget": (68, 186), "mq_open": (240, 180),
}  # fmt: skip
_ENOSYS = ("openat2", "clone3", "memfd_create")  # as on an older kernel: libraries then take the call that is looked at
_OPEN, _OPENAT, _CLONE = (2, -1), (257, 56), (56, 220)
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_CLONE_THREAD = 0x10000
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _FILTER = 38, 22, 2


@dataclass(frozen=True)
class Ran:
    """How a program ended: `ok` where it ran to its end without an error; what it printed; and why not, where not."""

    ok: bool
    output: str
    why: str = ""


def run_code(code: str, seconds: float = SECONDS, megabytes: int = MEGABYTES) -> Ran:
    """Run Python code in a sandboxed process and wait for its end.

    Raises ConfigError where this machine has no sandbox (only Linux on x86_64 and aarch64 has one).
    """
    program = _filter()
    limits = _limits(seconds, megabytes)

    def lock() -> None:  # in the child, before Python starts
        limits()
        _enter(program)

    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as source:
        source.write(code.encode("utf-8", "replace"))
        source.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", "-X", "utf8", "-"],
            stdin=source,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={"PATH": "", "PYTHONHASHSEED": "0"},
            preexec_fn=lock,
            start_new_session=True,
        )
        try:
            output, cut, late = _read(process, seconds)
        finally:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
    text = output.decode("utf-8", "replace")
    if late:
        return Ran(False, text, f"it took longer than {seconds:g} s")
    if cut:
        return Ran(False, text, f"it printed more than {OUTPUT} bytes")
    if process.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return Ran(False, text, f"it took more than {seconds:g} s of processor time")
    if process.returncode:
        last = text.strip().rsplit("\n", 1)[-1]
        return Ran(False, text, last or f"it ended with exit code {process.returncode}")
    return Ran(True, text)


def _read(process: subprocess.Popen[bytes], seconds: float) -> tuple[bytes, bool, bool]:
    """(output, whether there was too much of it, whether time ran out)."""
    import selectors
    import time

    assert process.stdout is not None
    end, output = time.monotonic() + seconds, b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            left = end - time.monotonic()
            if left <= 0 or not selector.select(left):
                return output, False, True
            piece = os.read(process.stdout.fileno(), 8192)
            if not piece:
                break
            output += piece
            if len(output) > OUTPUT:
                return output[:OUTPUT], True, False
    try:
        process.wait(max(0.0, end - time.monotonic()))
    except subprocess.TimeoutExpired:  # it closed its output and goes on
        return output, False, True
    return output, False, False


class _Limits:
    def __init__(self, seconds: float, megabytes: int) -> None:
        self.cpu, self.memory = max(1, int(seconds + 0.999)), megabytes * 2**20

    def __call__(self) -> None:
        for what, most in (
            (resource.RLIMIT_CPU, self.cpu),
            (resource.RLIMIT_AS, self.memory),
            (resource.RLIMIT_FSIZE, 0),
            (resource.RLIMIT_NOFILE, 32),
            (resource.RLIMIT_CORE, 0),
        ):
            resource.setrlimit(what, (most, most))


_limits = _Limits


def _instruction(code: int, yes: int, no: int, value: int) -> bytes:
    return struct.pack("HBBI", code, yes, no, value & 0xFFFFFFFF)


def _filter() -> bytes:
    """The filter's program for this machine. Raises ConfigError where there is none."""
    machine = platform.machine()
    if sys.platform != "linux" or machine not in _ARCHITECTURES:
        raise ConfigError(
            f"code written by a model is run only in a sandbox, which needs Linux on {' or '.join(_ARCHITECTURES)}; this is "
            f"{sys.platform} on {machine}: leave out tasks with code, or run them in a container"
        )
    column, architecture = _ARCHITECTURES[machine]
    deny = _instruction(_RETURN, 0, 0, _ERRNO | 1)  # EPERM
    out = [
        _instruction(_LOAD, 0, 0, 4),  # the architecture
        _instruction(_EQUAL, 1, 0, architecture),
        _instruction(_RETURN, 0, 0, _KILL),  # a call by another machine's numbers
        _instruction(_LOAD, 0, 0, 0),  # the call's number
        _instruction(_AT_LEAST, 0, 1, 0x40000000),  # x32's numbers
        _instruction(_RETURN, 0, 0, _KILL),
    ]
    for name, numbers in _CALLS.items():
        if numbers[column] >= 0:
            answer = _instruction(_RETURN, 0, 0, _ERRNO | 38) if name in _ENOSYS else deny
            out += [_instruction(_EQUAL, 0, 1, numbers[column]), answer]
    # open(path, flags), openat(folder, path, flags): for reading only; clone(flags): threads only
    for numbers, argument, bits, denied_if_set in (
        (_OPEN, 1, _WRITING, True),
        (_OPENAT, 2, _WRITING, True),
        (_CLONE, 0, _CLONE_THREAD, False),
    ):
        if numbers[column] < 0:
            continue
        yes, no = (0, 1) if denied_if_set else (1, 0)
        out += [
            _instruction(_EQUAL, 0, 4, numbers[column]),
            _instruction(_LOAD, 0, 0, 16 + 8 * argument),  # its lower half, on machines with the lower byte first
            _instruction(_ANY_BIT, yes, no, bits),
            deny,
            _instruction(_RETURN, 0, 0, _ALLOW),
        ]
    return b"".join([*out, _instruction(_RETURN, 0, 0, _ALLOW)])


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def _enter(program: bytes) -> None:
    """Put the filter in place for this process and all that it becomes. Raises OSError where the kernel refuses."""
    assert _libc is not None
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "no_new_privs was refused")
    found = _Program(len(program) // 8, program)
    if _libc.prctl(_PR_SET_SECCOMP, _FILTER, ctypes.byref(found), 0, 0):
        raise OSError(ctypes.get_errno(), "the seccomp filter was refused")
