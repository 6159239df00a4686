"""Mutation at random: changes of one line drawn from the whole package, of which the fast tests must catch nine in ten.

    python proofs/random_mutants.py [--count 100] [--seed 1] [--jobs 2] [--out runs/random-mutants]

`mutation_sites.py` says which changes there are. A line is drawn, then a kind of change, then a place on the line; no
line is drawn twice. The tests are run once under coverage.py, which notes the lines that each test runs; this is kept
in --out for as long as the source stays the same. Each mutant then meets only the tests that run its line, in a copy of
the project. A mutant is caught by a test that fails, that hangs, or that brings the process down. A mutant with which a
test file cannot even be imported proves nothing, and the next one takes its place. A line that no test runs is not
caught.
Exit code 1 where fewer than nine in ten are caught, 2 where the tests do not pass without a fault.

Other tools do not fit: mutmut leaves out module level and decorated functions and draws no sample, cosmic-ray runs all
tests for each mutant, mutatest is no longer maintained.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import signal
import sys
import tempfile
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mutation_sites import Site, is_change, sites
from mutation_tests import Recording, make_copy, run_pytest, workers

ROOT = Path(__file__).resolve().parent.parent
WANTED = 0.9  # share of mutants that must be caught
FIRST = 15.0  # seconds of tests in the first of the two runs of pytest
PATIENCE = 60.0  # seconds for a run of pytest, beside three times what its tests took when they were recorded
MOST = 150.0  # seconds of tests for one mutant; a survivor's row says how many tests that leaves


@dataclass(frozen=True)
class Result:
    """What became of a mutant: `test` is the one that caught it, with its error `why`; None where it got through."""

    site: Site
    before: str
    after: str
    test: str | None
    why: str
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """A row of the file that is written."""
        row = asdict(self) | {"file": self.site.file, "line": self.site.line, "kind": self.site.kind}
        del row["site"]
        return row | {"caught": self.test is not None, "seconds": round(self.seconds, 1)}

    def __str__(self) -> str:
        where = f"{self.site.file}:{self.site.line}"
        verdict = self.test or f"NOT CAUGHT: {self.why}\n    - {self.before.strip()}\n    + {self.after.strip()}"
        return f"{where:52} {self.site.kind:20} {self.seconds:5.1f} s  {verdict}"


def draw(root: Path, seed: int) -> Iterator[Site]:
    """Changes in `root`/src in the order of the draw: a line, then a kind of change, then one change of that kind."""
    by_line: dict[tuple[str, int], list[Site]] = defaultdict(list)
    texts = {
        p.relative_to(root).as_posix(): p.read_text(encoding="utf-8") for p in sorted((root / "src").rglob("*.py"))
    }
    for file, text in texts.items():
        for site in sites(file, text):
            by_line[file, site.line].append(site)
    dice = random.Random(seed)
    for line in dice.sample(sorted(by_line), len(by_line)):
        kind = dice.choice(sorted({site.kind for site in by_line[line]}))
        site = dice.choice([site for site in by_line[line] if site.kind == kind])
        if is_change(site, texts[site.file]):
            yield site


def try_one(site: Site, recording: Recording, snapshot: Path, work: Path) -> Result | None:
    """Make the change in a copy and run the tests that can see it; None where a test file cannot be imported then."""
    began = time.perf_counter()
    every = recording.choose(site)
    every += recording.neighbours(every)
    some = recording.until(every, MOST)
    first = some[: len(recording.until(some, FIRST))]
    test, why = None, "no test runs this line"
    with tempfile.TemporaryDirectory(dir=work) as folder:
        copy = make_copy(snapshot, Path(folder) / "copy")
        path = copy / site.file
        text = path.read_text(encoding="utf-8")
        path.write_text(site.apply(text), encoding="utf-8")
        for tests in (first, some[len(first) :]):
            if tests and test is None:
                test, why = run_tests(copy, tests, PATIENCE + 3 * recording.cost(tests))
        before, after = (t.splitlines()[site.line - 1] for t in (text, path.read_text(encoding="utf-8")))
    if test == "":
        return None
    if test is None and every:
        why = f"{len(some)} tests pass, of {len(every)} that run the line or stand beside one that does"
    return Result(site, before, after, test, why, time.perf_counter() - began)


def run_tests(copy: Path, tests: list[str], timeout: float) -> tuple[str | None, str]:
    """(the first of the tests that fails or None, its error); ("", the error) where a test file cannot be imported."""
    order = copy / "order.json"
    order.write_text(json.dumps(tests), encoding="utf-8")
    files = list(dict.fromkeys(test.split("::")[0] for test in tests))
    code, output = run_pytest(copy, ["-x", *files], timeout, MUTATION_ORDER=str(order))
    if code == 0:
        return None, ""
    if code is None:
        return "(time limit)", f"longer than {timeout:.0f} s"
    if found := re.search(r"^(?:FAILED|ERROR) (\S+\.py)(::.*?)?(?: - (.*))?$", output, re.MULTILINE):
        return (found[1] + found[2] if found[2] else ""), found[3] or ""
    if code < 0:
        return "(the process ended)", f"signal {-code}"
    raise RuntimeError(f"pytest ended with exit code {code}:\n{output[-2000:]}")


def first_results(
    pool: ThreadPoolExecutor, tried: Callable[[Site], Result | None], drawn: Iterator[Site], count: int
) -> Iterator[Result]:
    """The first `count` results in the order of the draw; a mutant without a result is replaced by the next one."""
    waiting: deque[Future[Result | None]] = deque()
    done = 0
    while done < count:
        while len(waiting) < count - done and (site := next(drawn, None)) is not None:
            waiting.append(pool.submit(tried, site))
        if not waiting:
            return
        if (result := waiting.popleft().result()) is not None:
            done += 1
            yield result


def main(argv: list[str] | None = None) -> int:
    """Record, draw, try; prints a row for each mutant as it is done and the survivors at the end."""
    parser = argparse.ArgumentParser(description="Random faults of one line, and the tests that catch them.")
    parser.add_argument("--count", type=int, default=100, help="mutants to try (default: 100)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the draw (default: 1)")
    parser.add_argument("--jobs", type=int, default=1, help="mutants tried at once (default: 1)")
    parser.add_argument("--root", type=Path, default=ROOT, help="the project: its src, tests and pyproject.toml")
    parser.add_argument("--out", type=Path, help="folder for recording and results (default: runs/random-mutants)")
    options = parser.parse_args(argv)
    root, out = options.root.resolve(), options.out or options.root / "runs" / "random-mutants"
    with tempfile.TemporaryDirectory(prefix="random-mutants-") as folder:
        work = Path(folder).resolve()
        snapshot = make_copy(root, work / "snapshot")  # so that nothing changes meanwhile
        recording = Recording(snapshot)
        recording.record(snapshot, work, out / "recording", options.jobs)
        if recording.failed:
            print(f"without any fault these tests fail: {', '.join(recording.failed)}", file=sys.stderr)
            return 2
        results = []
        with workers(options.jobs) as pool:
            drawn = draw(snapshot, options.seed)
            tried = partial(try_one, recording=recording, snapshot=snapshot, work=work)
            for result in first_results(pool, tried, drawn, options.count):
                results.append(result)
                print(result, flush=True)
        (out / "results.json").write_text(json.dumps([r.to_json() for r in results], indent=1) + "\n", encoding="utf-8")
        failing = sorted({r.test for r in results if r.test is not None and "::" in r.test})
        test, why = run_tests(snapshot, failing, 10 * PATIENCE + 3 * recording.cost(failing)) if failing else (None, "")
    if test is not None:
        print(f"without any fault {test} fails too ({why}): what it caught does not count", file=sys.stderr)
        return 2
    survivors = [r for r in results if r.test is None]
    print("", *survivors, f"{len(results) - len(survivors)} of {len(results)} mutants are caught", sep="\n")
    return int(len(results) - len(survivors) < WANTED * len(results))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a kill leaves nothing behind either
    sys.exit(main())
