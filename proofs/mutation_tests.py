"""Which test runs which line: the tests are recorded once, file by file, and chosen by it for each mutant."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mutation_plugin
from mutation_sites import Site, function_lines, mentions

MEMORY = 12 * 2**30  # bytes of address space of each process
LEFT_OUT = {".git", ".venv", "runs", "build", "dist"}  # in the project's folder; caches are left out everywhere
STOP = threading.Event()  # set when the user has pressed Ctrl-C


@contextmanager
def workers(jobs: int) -> Iterator[ThreadPoolExecutor]:
    """A pool of threads. What ends the block early, such as Ctrl-C, also ends all that its threads have started."""
    pool = ThreadPoolExecutor(jobs)
    try:
        yield pool
    except BaseException:
        STOP.set()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def make_copy(source: Path, target: Path) -> Path:
    """Copy the project without what is built or written; the plugin is put beside it."""
    caches = shutil.ignore_patterns("__pycache__", ".*_cache", ".hypothesis", "*.egg-info")
    outputs = LEFT_OUT | {p.name for p in source.glob("demo*") if p.is_dir()}
    shutil.copytree(
        source,
        target,
        ignore=lambda at, names: caches(at, names) | (outputs if Path(at) == source else set()),
        symlinks=True,
    )
    shutil.copy2(mutation_plugin.__file__, target)
    return target


def sweep(folder: Path) -> None:
    """End every process that works in `folder` (Linux only: elsewhere a hanging test's own children may stay)."""
    for link in Path("/proc").glob("[0-9]*/cwd"):
        try:
            if Path(os.readlink(link)).is_relative_to(folder):
                os.kill(int(link.parent.name), signal.SIGKILL)
        except OSError:  # it has ended, or is not ours
            continue


def run_pytest(copy: Path, arguments: list[str], timeout: float, **environment: str) -> tuple[int | None, str]:
    """Run pytest on a copy: (exit code, output); the code is None where it took longer than `timeout` seconds."""
    (copy / "tmp").mkdir(exist_ok=True)
    outer = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "COV"))}
    env = {
        **outer, "PYTHONPATH": str(copy / "src"), "OMP_NUM_THREADS": "1", "COLUMNS": "240",
        "TMPDIR": str(copy / "tmp"), "MUTATION_MEMORY": str(MEMORY), **environment,
    }  # fmt: skip
    command = [sys.executable, "-m", "pytest", "-q", "-rfE", "--tb=no", "-p", "no:cacheprovider",
               "-p", "mutation_plugin", f"--basetemp={copy / 'tmp' / 'pytest'}", *arguments]  # fmt: skip
    end = time.monotonic() + timeout
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, cwd=copy, env=env, stdout=output, stderr=output, start_new_session=True)
        while (code := process.poll()) is None and time.monotonic() < end and not STOP.is_set():
            time.sleep(0.05)
        if code is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        sweep(copy)
        output.seek(0)
        return code, output.read().decode(errors="replace")


def record_file(snapshot: Path, test_file: str, work: Path) -> dict[str, Any]:
    """Run one test file under coverage.py and read what it recorded."""
    from coverage import CoverageData

    copy = make_copy(snapshot, work / f"record-{test_file.replace('/', '-')}")
    (copy / "coveragerc").write_text(
        f"[run]\ncore = ctrace\nparallel = true\ndata_file = {copy / 'tmp' / '.coverage'}\ninclude = {copy}/src/*\n"
        "context = ${MUTATION_CONTEXT-}\ndisable_warnings = no-data-collected\n"
    )
    out = copy / "tmp" / "record.json"
    code, output = run_pytest(
        copy, [test_file], 3600, COVERAGE_PROCESS_START=str(copy / "coveragerc"), MUTATION_RECORD=str(out)
    )
    if not out.exists() or code not in (0, 1, 5):  # 5: a file without tests
        raise RuntimeError(f"{test_file} could not be recorded:\n{output[-2000:]}")
    row: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    lines: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    for path in (copy / "tmp").glob(".coverage.*"):
        data = CoverageData(str(path))
        data.read()
        for file in data.measured_files():
            for line, contexts in data.contexts_by_lineno(file).items():
                lines[str(Path(file).relative_to(copy))][line] |= {c for c in contexts if c}
    row["lines"] = {f: {line: sorted(c) for line, c in found.items() if c} for f, found in lines.items()}
    shutil.rmtree(copy, ignore_errors=True)
    return row


def digest(root: Path, test_file: str) -> str:
    """SHA-256 of all that the recording of a test file comes from: the source, the shared test code and the file."""
    shared = [p for p in (root / "tests").rglob("*") if not (p.name.startswith("test_") or p.suffix == ".pyc")]
    paths = [*(root / "src").rglob("*.py"), *shared, root / "pyproject.toml", root / test_file]
    recorder = inspect.getsource(mutation_plugin.Recorder) + inspect.getsource(record_file)
    total = hashlib.sha256(recorder.encode())
    for path in sorted(p for p in paths if p.is_file()):
        total.update(f"\0{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes())
    return total.hexdigest()


class Recording:
    """What the tests of a project run.

    `record` makes it; recordings in its `folder` that are still true are not made again. `seconds` has a number for
    every test and for every fixture that several tests share. `failed` holds the tests that fail without any fault.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.seconds: dict[str, float] = {}
        self.failed: list[str] = []
        self._fixtures: dict[str, list[str]] = {}
        self._tests: dict[tuple[str, int], set[str]] = defaultdict(set)
        self._covered: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        self._users: dict[str, set[str]] = defaultdict(set)
        self._inner: dict[str, set[int]] = {}
        self._mentions: dict[str, list[tuple[str, int, frozenset[str] | None]]] = defaultdict(list)
        for path in sorted((root / "src").rglob("*.py")):
            file, text = path.relative_to(root).as_posix(), path.read_text(encoding="utf-8")
            self._inner[file] = function_lines(text)
            for name, line, names in mentions(text):
                self._mentions[name].append((file, line, names))

    def record(self, snapshot: Path, work: Path, folder: Path, jobs: int) -> None:
        """Run every test file once, unless `folder` has its recording; copies are made in `work`."""
        folder.mkdir(parents=True, exist_ok=True)
        files = sorted(p.relative_to(snapshot).as_posix() for p in (snapshot / "tests").rglob("test_*.py"))
        kept = {file: folder / f"{digest(snapshot, file)}.json" for file in files}
        for path in set(folder.glob("*.json")) - set(kept.values()):
            path.unlink()
        new = [file for file in files if not kept[file].exists()]
        with workers(jobs) as pool:
            for file, row in zip(new, pool.map(lambda file: record_file(snapshot, file, work), new)):
                print(f"recorded {file}: {len(row['uses'])} tests, {sum(row['seconds'].values()):.1f} s", flush=True)
                self.failed += row["failed"]
                if not row["failed"]:
                    kept[file].write_text(json.dumps(row), encoding="utf-8")
        for file in files if not self.failed else ():
            self._add(json.loads(kept[file].read_text(encoding="utf-8")), file)

    def _add(self, row: dict[str, Any], test_file: str) -> None:
        users = defaultdict(list)
        for test, fixtures in row["uses"].items():
            for name in (test, *fixtures):
                users[name].append(test)
            self._fixtures[test] = [f"{test_file} {name}" for name in fixtures]
        self.seconds |= {n if n in row["uses"] else f"{test_file} {n}": s for n, s in row["seconds"].items()}
        for file, lines in row["lines"].items():
            for line, names in lines.items():
                if int(line) in self._inner.get(file, ()):  # not in a template that jinja made code of
                    tests = {test for name in names for test in users[name]}
                    self._tests[file, int(line)] |= tests
                    self._users[file] |= tests
                    self._covered[file][test_file] += 1

    def cost(self, tests: list[str]) -> float:
        """Seconds for these tests, with the fixtures that they share."""
        return sum(self.seconds[n] for n in {*tests, *(f for t in tests for f in self._fixtures[t])})

    def choose(self, site: Site) -> list[str]:
        """The tests that can see a change, those first that should see it soonest.

        In a function these are the tests that run its statement. At the top of a file or class they are the tests that
        run a line with one of the names that the statement gives a value to (or with a name that gets its value from
        such a name), then all others that run a function of the file.
        """
        if site.names is None:
            run = [self._tests.get((site.file, n), set()) for n in range(site.lines[0], site.lines[1] + 1)]
            return self._ordered(set().union(*run), site.file)
        tests, seen, names = set[str](), set[str](), set(site.names)
        while names:
            seen |= names
            found = [m for name in names for m in self._mentions[name]]
            tests |= set().union(*(self._tests.get((file, line), set()) for file, line, at in found if at is None))
            names = set().union(*(at for _, _, at in found if at is not None)) - seen if len(seen) < 50 else set()
        return [*self._ordered(tests, site.file), *self._ordered(self._users[site.file] - tests, site.file)]

    def _ordered(self, tests: set[str], file: str) -> list[str]:
        """Test files that run most of the file for their time first, and in each of them the fastest tests first."""
        groups: dict[str, list[str]] = defaultdict(list)
        for test in sorted(tests, key=lambda t: (self.seconds[t], t)):
            groups[test.split("::")[0]].append(test)
        worth = {name: self._covered[file][name] / (2.0 + self.cost(group)) for name, group in groups.items()}
        return [test for name in sorted(groups, key=lambda n: -worth[n]) for test in groups[name]]

    def neighbours(self, tests: list[str]) -> list[str]:
        """The other tests of the same files, fastest first: what a test has computed may be kept for those after it."""
        files = {test.split("::")[0] for test in tests}
        others = [t for t in self._fixtures if t.split("::")[0] in files and t not in set(tests)]
        return sorted(others, key=lambda test: (self.seconds[test], test))

    def until(self, tests: list[str], seconds: float) -> list[str]:
        """Those of the tests, in their order, that fit into so much time together; at least one."""
        used, fixtures, fitting = 0.0, set[str](), list[str]()
        for test in tests:
            cost = self.seconds[test] + sum(self.seconds[f] for f in self._fixtures[test] if f not in fixtures)
            if used + cost <= seconds or not fitting:
                used += cost
                fixtures.update(self._fixtures[test])
                fitting.append(test)
        return fitting
