"""The table of faults is true: each fragment is in its file exactly once. `make mutants` tries the faults."""

from __future__ import annotations

from pathlib import Path

import mutants
import pytest


def test_every_fault_can_be_made() -> None:
    assert mutants.problems(mutants.ROOT) == []
    every = mutants.mutants()
    assert len(every) >= 25
    kinds = {"sign", "mask", "shift", "mean for sum", "wrong reference", "EOS", "temperature", "detach"}
    assert {m.kind for m in every} >= kinds


def test_a_table_that_is_no_longer_true_is_refused(tmp_path: Path) -> None:
    """A line that has changed, and one that has come twice."""
    one, two = mutants.mutants()[:2]
    for m in (one, two):
        (tmp_path / "src" / "tercet" / m.file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "src" / "tercet" / one.file).write_text(one.was + "\n" + one.was + "\n")
    with pytest.raises(ValueError, match="stands 2 times"):
        one.mutate(tmp_path)
    with pytest.raises(ValueError, match="stands 0 times"):
        two.mutate(tmp_path)
