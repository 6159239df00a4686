"""A sandbox for code that a model wrote: a process that can compute and print, and nothing else.

Before the code starts, Linux gets a seccomp filter: a few instructions that the kernel runs at every system call. It
allows only `_CALLS`, which an interpreter needs to compute. So there are no sockets, no new processes and no signals to
other processes, and files can only be read. If the kernel has Landlock (5.13 and later), only Python's own folders can
be read. Memory, processor time, output and time are limited too. On a machine without such a filter, code is not run.

This keeps mistakes and careless programs from doing harm. It does not stop an attacker: without Landlock the code can
read your files, though it cannot send them anywhere, and it shares a process with its test, which it can deceive.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import resource
import secrets
import signal
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

from tercet.errors import ConfigError

SECONDS = 5.0
MEGABYTES = 256
OUTPUT = 64 * 1024  # bytes; a process that prints more is ended


def _table(text: str) -> dict[str, tuple[int, int]]:
    """Return system calls by name, from entries "name x86_64 aarch64" between commas and lines; # starts a comment."""
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    entries = [entry.split() for line in lines for entry in line.split(",")]
    return {name: (int(x86_64), int(aarch64)) for name, x86_64, aarch64 in entries}


# The system calls that are allowed, with their numbers on x86_64 and aarch64 (-1: that machine has no such call).
_CALLS = _table("""
# open files, and looking at files
read 0 63, write 1 64, readv 19 65, writev 20 66, pread64 17 67, preadv 295 69, close 3 57, close_range 436 436
lseek 8 62, dup 32 23, dup2 33 -1, dup3 292 24, pipe 22 -1, pipe2 293 59, stat 4 -1, fstat 5 80, lstat 6 -1
newfstatat 262 79, statx 332 291, statfs 137 43, fstatfs 138 44, access 21 -1, faccessat 269 48, faccessat2 439 439
readlink 89 -1, readlinkat 267 78, getdents 78 -1, getdents64 217 61, getcwd 79 17, chdir 80 49, fchdir 81 50
umask 95 166, fadvise64 221 223
# waiting
poll 7 -1, ppoll 271 73, select 23 -1, pselect6 270 72, epoll_create1 291 20, epoll_ctl 233 21, epoll_wait 232 -1
epoll_pwait 281 22, eventfd2 290 19, nanosleep 35 101, clock_nanosleep 230 115, restart_syscall 219 128, wait4 61 260
pause 34 -1
# its own memory, threads and signals
mmap 9 222, mprotect 10 226, munmap 11 215, mremap 25 216, madvise 28 233, mincore 27 232, brk 12 214, futex 202 98
set_robust_list 273 99, set_tid_address 218 96, rseq 334 293, membarrier 324 283, arch_prctl 158 -1
sched_yield 24 124, sched_getaffinity 204 123, rt_sigaction 13 134, rt_sigprocmask 14 135, rt_sigreturn 15 139
rt_sigpending 127 136, rt_sigtimedwait 128 137, rt_sigsuspend 130 133, sigaltstack 131 132, getitimer 36 102
setitimer 38 103, alarm 37 -1, execve 59 221, exit 60 93, exit_group 231 94
# time and identity
time 201 -1, gettimeofday 96 169, clock_gettime 228 113, clock_getres 229 114, times 100 153, getrusage 98 165
getrlimit 97 163, sysinfo 99 179, uname 63 160, getrandom 318 278, getpid 39 172, getppid 110 173, gettid 186 178
getpgrp 111 -1, getpgid 121 155, getsid 124 156, getuid 102 174, geteuid 107 175, getgid 104 176, getegid 108 177
getresuid 118 148, getresgid 120 150, getgroups 115 158
""")
# These fail as on an older kernel. Libraries then use clone and openat, whose arguments the filter can check.
_MISSING = _table("clone3 435 435, openat2 437 437")
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_CLONE_THREAD = 0x10000
# Calls that are allowed by one argument: the call, the argument's index, a rule, and bits or values for the rule.
# fcntl may copy open files and change their flags, but not send signals. ioctl may ask for a terminal and for blocking.
_BY_ARGUMENT = (
    ((2, -1), 1, "none of", (_WRITING,)),  # open
    ((257, 56), 2, "none of", (_WRITING,)),  # openat
    ((56, 220), 0, "some of", (_CLONE_THREAD,)),  # clone
    ((72, 25), 1, "one of", (0, 1, 2, 3, 4, 1030)),  # fcntl
    ((16, 29), 1, "one of", (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)),  # ioctl
)
_ARCHITECTURES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _FILTER = 38, 22, 2
# Landlock: its three calls (equal on both machines), access rights, and files that the interpreter must read
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_EXECUTE, _READ_FILE, _READ_DIR, _EVERY_RIGHT = 1, 4, 8, 0x1FFF
_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/nix/store")  # with the dynamic loader
_FILES = ("/etc/ld.so.cache", "/etc/localtime", "/usr/share/zoneinfo", "/dev/null", "/dev/urandom")


@dataclass(frozen=True)
class Ran:
    """How a program ended: whether it ran to its last line without an error, its output, and why it failed."""

    ok: bool
    output: str
    why: str = ""


def run_code(code: str, seconds: float = SECONDS, megabytes: int = MEGABYTES) -> Ran:
    """Run Python code in a sandboxed process and return how it ended.

    A program that exits before its last line has not passed its test. To notice this, a line that prints a secret is
    put after it. Raises ConfigError if there is no sandbox for this machine; there is one for Linux on x86_64 and
    aarch64.
    """
    program = _filter()
    limits = _Limits(seconds, megabytes)
    reached = secrets.token_hex(16).encode()

    def lock() -> None:  # runs in the child, before Python starts
        limits()
        _enter(program, rules)

    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as source, _ruleset() as rules:
        source.write(code.encode("utf-8", "replace") + b"\n__import__('os').write(1, b'%b')\n" % reached)
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
    text = output.replace(reached, b"").decode("utf-8", "replace")
    if late:
        return Ran(False, text, f"it took longer than {seconds:g} s")
    if cut:
        return Ran(False, text, f"it printed more than {OUTPUT} bytes")
    if process.returncode in (-signal.SIGXCPU, -signal.SIGKILL):
        return Ran(False, text, f"it took more than {seconds:g} s of processor time")
    if process.returncode:
        last = text.strip().rsplit("\n", 1)[-1]
        return Ran(False, text, last or f"it ended with exit code {process.returncode}")
    if reached not in output:
        return Ran(False, text, "it ended before its last line")
    return Ran(True, text)


def _read(process: subprocess.Popen[bytes], seconds: float) -> tuple[bytes, bool, bool]:
    """Return the output, whether there was too much of it, and whether time ran out."""
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
    except subprocess.TimeoutExpired:  # it closed its output and still runs
        return output, False, True
    return output, False, False


class _Limits:
    def __init__(self, seconds: float, megabytes: int) -> None:
        self.cpu, self.memory = max(1, int(seconds + 0.999)), megabytes * 2**20

    def __call__(self) -> None:
        for limit, most in (
            (resource.RLIMIT_CPU, self.cpu),
            (resource.RLIMIT_AS, self.memory),
            (resource.RLIMIT_FSIZE, 0),
            (resource.RLIMIT_NOFILE, 32),
            (resource.RLIMIT_CORE, 0),
        ):
            resource.setrlimit(limit, (most, most))


def _instruction(code: int, yes: int, no: int, value: int) -> bytes:
    return struct.pack("HBBI", code, yes, no, value & 0xFFFFFFFF)


def _filter() -> bytes:
    """Return the filter's program for this machine. Raises ConfigError if there is none."""
    machine = platform.machine()
    if sys.platform != "linux" or machine not in _ARCHITECTURES:
        raise ConfigError(
            f"found {sys.platform} on {machine}; code of a model is run only in a sandbox, which needs Linux on "
            f"{' or '.join(_ARCHITECTURES)}: leave out tasks with code, or use a Linux container"
        )
    column, architecture = _ARCHITECTURES[machine]
    deny = _instruction(_RETURN, 0, 0, _ERRNO | 1)  # EPERM
    out = [
        _instruction(_LOAD, 0, 0, 4),  # the architecture
        _instruction(_EQUAL, 1, 0, architecture),
        _instruction(_RETURN, 0, 0, _KILL),  # the call has another machine's numbers
        _instruction(_LOAD, 0, 0, 0),  # the call's number
        _instruction(_AT_LEAST, 0, 1, 0x40000000),  # x32's numbers
        _instruction(_RETURN, 0, 0, _KILL),
    ]
    for answer, calls in ((_ALLOW, _CALLS), (_ERRNO | 38, _MISSING)):  # ENOSYS
        for numbers in calls.values():
            if numbers[column] >= 0:
                out += [_instruction(_EQUAL, 0, 1, numbers[column]), _instruction(_RETURN, 0, 0, answer)]
    allow = _instruction(_RETURN, 0, 0, _ALLOW)
    for numbers, argument, rule, values in _BY_ARGUMENT:
        if numbers[column] < 0:
            continue
        test, yes, no = {"none of": (_ANY_BIT, 1, 0), "some of": (_ANY_BIT, 0, 1), "one of": (_EQUAL, 0, 1)}[rule]
        # the lower half of the argument, which comes first on these machines
        look = [_instruction(_LOAD, 0, 0, 16 + 8 * argument)]
        for value in values:
            look += [_instruction(test, yes, no, value), allow]
        out += [_instruction(_EQUAL, 0, len(look) + 1, numbers[column]), *look, deny]
    return b"".join([*out, deny])


@contextlib.contextmanager
def _ruleset() -> Iterator[int | None]:
    """Yield an open Landlock ruleset that allows only Python itself, or None if the kernel has no Landlock."""
    assert _libc is not None
    handle = _libc.syscall(_CREATE_RULESET, struct.pack("Q", _EVERY_RIGHT), 8, 0)
    if handle < 0:
        yield None
        return
    read = (sys.base_prefix, sys.base_exec_prefix, os.path.join(sys.prefix, "pyvenv.cfg"), *_FILES)
    rights = dict.fromkeys(read, _READ_FILE | _READ_DIR)
    rights |= dict.fromkeys((*_LIBRARIES, os.path.realpath(sys.executable)), _READ_FILE | _READ_DIR | _EXECUTE)
    try:
        for path, right in rights.items():
            with contextlib.suppress(FileNotFoundError):
                opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
                try:
                    allowed = right if os.path.isdir(path) else right & ~_READ_DIR
                    _libc.syscall(_ADD_RULE, handle, 1, struct.pack("=Qi", allowed, opened), 0)
                finally:
                    os.close(opened)
        yield handle
    finally:
        os.close(handle)


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_char_p)]


_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


def _enter(program: bytes, rules: int | None) -> None:
    """Apply filter and ruleset to this process and its program. Raises OSError if the kernel refuses."""
    assert _libc is not None
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "the kernel refused no_new_privs")
    if rules is not None and _libc.syscall(_RESTRICT_SELF, rules, 0):
        raise OSError(ctypes.get_errno(), "the kernel refused the Landlock ruleset")
    instructions = _Program(len(program) // 8, program)
    if _libc.prctl(_PR_SET_SECCOMP, _FILTER, ctypes.byref(instructions), 0, 0):
        raise OSError(ctypes.get_errno(), "the kernel refused the seccomp filter")
