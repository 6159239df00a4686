"""A pytest plugin of `random_mutants.py`: records which lines each test runs, or runs chosen tests in a given order.

MUTATION_RECORD names the file for the seconds of each test. The lines are recorded by coverage.py, which is running
already (also in processes that the tests start) and is told here which test it is. A fixture that several tests share
is recorded under a name of its own and belongs to all of them. MUTATION_ORDER names a JSON file: the tests to run, in
their order.
MUTATION_MEMORY bounds the memory of the process in bytes, so that a mutant cannot take all of the machine's.
"""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


class Recorder:
    """Measures each test and each shared fixture."""

    def __init__(self, out: Path) -> None:
        import coverage

        current = coverage.Coverage.current()
        assert current is not None, "coverage is started by COVERAGE_PROCESS_START"
        self.coverage, self.out = current, out
        self.seconds: dict[str, float] = {}
        self.uses: dict[str, list[str]] = {}
        self.failed: list[str] = []
        self.stack = [""]

    @contextmanager
    def context(self, name: str) -> Generator[None]:
        """Record lines and seconds under a name; the name of before is taken up again after it."""
        began = time.perf_counter()
        self._switch([*self.stack, name])
        try:
            yield
        finally:
            took = time.perf_counter() - began
            self._switch(self.stack[:-1])
            self.seconds[name] = self.seconds.get(name, 0.0) + took
            if (outer := self.stack[-1]) != "":
                self.seconds[outer] = self.seconds.get(outer, 0.0) - took

    def _switch(self, stack: list[str]) -> None:
        self.stack = stack
        self.coverage.switch_context(stack[-1])
        os.environ["MUTATION_CONTEXT"] = stack[-1]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Record a test with its setup."""
        self.uses[item.nodeid] = list(getattr(item, "fixturenames", []))
        with self.context(item.nodeid):
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: pytest.FixtureDef[Any]) -> Generator[None, object, object]:
        """Record a fixture that is kept for several tests."""
        if fixturedef.scope == "function":
            return (yield)
        with self.context(f"fixture {fixturedef.argname}"):
            return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note a failure."""
        if report.failed:
            self.failed.append(report.nodeid)

    def pytest_sessionfinish(self) -> None:
        """Write what was measured."""
        shared = {name.removeprefix("fixture ") for name in self.seconds if name.startswith("fixture ")}
        uses = {test: [f"fixture {name}" for name in names if name in shared] for test, names in self.uses.items()}
        row = {"seconds": self.seconds, "uses": uses, "failed": self.failed}
        self.out.write_text(json.dumps(row), encoding="utf-8")


class Order:
    """Keeps the tests that were chosen, in their order."""

    def __init__(self, tests: list[str]) -> None:
        self.place = {test: number for number, test in enumerate(tests)}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Take away all other tests."""
        items[:] = sorted((i for i in items if i.nodeid in self.place), key=lambda i: self.place[i.nodeid])


def pytest_configure(config: pytest.Config) -> None:
    """Register what the environment asks for."""
    if most := os.environ.get("MUTATION_MEMORY"):
        resource.setrlimit(resource.RLIMIT_AS, (int(most), resource.getrlimit(resource.RLIMIT_AS)[1]))
    if out := os.environ.get("MUTATION_RECORD"):
        config.pluginmanager.register(Recorder(Path(out)))
    if order := os.environ.get("MUTATION_ORDER"):
        config.pluginmanager.register(Order(json.loads(Path(order).read_text(encoding="utf-8"))))
