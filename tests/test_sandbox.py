"""The sandbox: honest code runs, and everything else is stopped by the kernel, not by good manners."""

from __future__ import annotations

import errno
import re
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from tercet.errors import ConfigError
from tercet.evaluation.scoring import sandbox
from tercet.evaluation.scoring.sandbox import OUTPUT, Ran, run_code

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the sandbox needs Linux")


def test_honest_code_runs_and_prints():
    found = run_code("import math, collections, re, json\nprint(math.comb(5, 2), 'ü')\nassert 1 + 1 == 2")
    assert (found.ok, found.output) == (True, "10 ü\n")
    threads = "import threading\nt = threading.Thread(target=print, args=('in a thread',)); t.start(); t.join()"
    assert run_code(threads).output == "in a thread\n"


def test_wrong_code_says_why():
    assert run_code("assert 2 == 3, 'no'").why == "AssertionError: no"
    assert "SyntaxError" in run_code("def f(:").why
    assert not run_code("raise SystemExit(3)").ok
    for left in ("raise SystemExit(0)", "import sys; sys.exit()", "import os; os._exit(0)"):
        assert run_code(f"{left}\nassert False") == Ran(False, "", "it ended before its last line"), left
    assert run_code("import os; os._exit(4)").why == "it ended with exit code 4"


def test_no_network(tmp_path):
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(self.path)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args):
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/x"
        found = run_code(f"import urllib.request\nurllib.request.urlopen({url!r})")
        server.shutdown()
    assert not found.ok
    assert "Operation not permitted" in found.why
    assert seen == []
    raw = "import ctypes\nl = ctypes.CDLL(None)\nassert l.socket(2, 1, 0) >= 0, 'no socket'"
    assert run_code(raw).why == "AssertionError: no socket"


def test_no_files_are_written_or_changed(tmp_path):
    kept = tmp_path / "kept.txt"
    kept.write_text("mine")
    for code in (
        f"open({str(kept)!r}, 'w').write('x')",
        f"open({str(kept)!r}, 'a').write('x')",
        f"open({str(tmp_path / 'new')!r}, 'x')",
        f"import os; os.unlink({str(kept)!r})",
        f"import os; os.rename({str(kept)!r}, {str(tmp_path / 'other')!r})",
        f"import os; os.truncate({str(kept)!r}, 0)",
        f"import os; os.chmod({str(kept)!r}, 0)",
        f"import os; os.mkdir({str(tmp_path / 'folder')!r})",
        f"import os; os.symlink('/', {str(tmp_path / 'link')!r})",
    ):
        found = run_code(code)
        assert not found.ok, code
        assert "PermissionError" in found.why, (code, found)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("kept.txt", "mine")]
    assert oct(kept.stat().st_mode)[-3:] != "000"


def test_no_processes_and_no_signals():
    for code in (
        "import os; os.fork()",
        "import subprocess; subprocess.run(['/bin/true'])",
        "import os; os.kill(os.getppid(), 0)",
        "import os; os.killpg(0, 9)",
        "import resource; resource.setrlimit(resource.RLIMIT_CPU, (-1, -1))",
        "import os; os.setsid()",
        "import os; os.sched_setaffinity(os.getppid(), {0})",
        "import os; os.sched_setscheduler(os.getppid(), os.SCHED_IDLE, os.sched_param(0))",
        "import os; os.setpriority(os.PRIO_PROCESS, os.getppid(), 19)",
        # whoever owns a pipe is sent a signal when it can be read: SIGIO ends a process
        "import fcntl, os; fcntl.fcntl(os.pipe()[0], fcntl.F_SETOWN, os.getppid())",
        "import fcntl, os, struct; fcntl.ioctl(os.pipe()[0], 0x8901, struct.pack('i', os.getppid()))",
    ):
        found = run_code(code)
        assert not found.ok, code
        assert "not permitted" in found.why or "not allowed" in found.why, (code, found)


def test_nothing_is_left_behind_in_the_kernel():
    """Memory, semaphores and queues of System V outlive their process; `ctypes` asks for them directly."""
    for call in (
        "shmget(4711, 4096, 0o1666)",
        "semget(4711, 1, 0o1666)",
        "msgget(4711, 0o1666)",
        "memfd_create(b'x', 0)",
    ):
        found = run_code(
            f"import ctypes\nc = ctypes.CDLL(None, use_errno=True)\nassert c.{call} == -1\nprint(ctypes.get_errno())"
        )
        assert found == Ran(True, f"{errno.EPERM}\n"), call


@pytest.mark.parametrize(
    ("header", "column"),
    [("x86_64-linux-gnu/asm/unistd_64.h", 0), ("asm-generic/unistd.h", 1)],
    ids=["x86_64", "aarch64"],
)
def test_numbers_are_those_of_the_kernels_headers(header, column):
    file = Path("/usr/include") / header
    if not file.exists():
        pytest.skip(f"no {file}; it comes with linux-libc-dev")
    known = dict(re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", file.read_text()))
    known.setdefault("newfstatat", known.get("fstatat"))  # its name where there is no other
    for name, numbers in {**sandbox._CALLS, **sandbox._MISSING}.items():
        assert numbers[column] in (-1, int(known.get(name, -1))), name
        assert (numbers[column] == -1) is (name not in known), name


def test_threads_end_with_the_program():
    begun = time.monotonic()
    loop = "while True: threading.Thread(target=time.sleep, args=(60,)).start()"
    bomb = f"import threading, time\ntry:\n    {loop}\nfinally: print('full')"
    found = run_code(bomb, seconds=2)
    assert (found.ok, "full" in found.output) == (False, True)  # memory, of which each takes some, is at its end
    assert time.monotonic() - begun < 10


def landlock() -> bool:
    with sandbox._ruleset() as rules:
        return rules is not None


def test_only_pythons_own_files_are_read(tmp_path, monkeypatch):
    if not landlock():
        pytest.skip("this kernel has no Landlock")
    monkeypatch.setenv("SECRET_TOKEN", "abc")
    (tmp_path / "secret.txt").write_text("abc")
    for code in (
        f"print(open({str(tmp_path / 'secret.txt')!r}).read())",
        f"import os; print(os.listdir({str(tmp_path)!r}))",
        "import os; print(open(f'/proc/{os.getppid()}/environ').read())",
        "import os; open(f'/proc/{os.getppid()}/mem', 'rb')",
        "print(open('/etc/passwd').read())",
        "import os; os.execv('/bin/sh', ['sh', '-c', 'echo abc'])",
    ):
        found = run_code(code)
        assert not found.ok, code
        assert "Permission denied" in found.why, (code, found)
        assert "abc" not in found.output.replace(code, "")
    assert run_code("import decimal, sqlite3, ssl, zoneinfo, ctypes, hashlib, concurrent.futures").ok


def test_without_landlock_the_rest_holds(monkeypatch, tmp_path):
    monkeypatch.setattr(sandbox, "_CREATE_RULESET", 100_000)  # a call that no kernel has
    assert not landlock()
    assert run_code("print(1)") == Ran(True, "1\n")
    assert "not permitted" in run_code(f"open({str(tmp_path / 'new')!r}, 'x')").why


def test_time_memory_and_output_are_limited():
    begun = time.monotonic()
    assert "longer than 1 s" in run_code("import time\ntime.sleep(60)", seconds=1).why
    assert "1 s" in run_code("while True: pass", seconds=1).why
    assert "longer" in run_code("import os, time\nos.close(1); os.close(2)\ntime.sleep(60)", seconds=1).why
    assert time.monotonic() - begun < 20
    assert "MemoryError" in run_code("x = bytearray(600 * 2**20)").why
    flood = run_code("while True: print('x' * 1000)")
    assert "printed more" in flood.why
    assert len(flood.output) <= OUTPUT


def test_nothing_of_the_surroundings_is_handed_on(monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "abc")
    monkeypatch.setenv("PYTHONSTARTUP", "/nonexistent")
    assert "abc" not in run_code("import os; print(dict(os.environ))").output


def test_a_machine_without_a_sandbox_is_told_so(monkeypatch):
    monkeypatch.setattr(sandbox.sys, "platform", "darwin")
    with pytest.raises(ConfigError, match="only in a sandbox"):
        run_code("print(1)")
