"""Scores and logs that were written before scorers had names are read as today's."""

from __future__ import annotations

from pathlib import Path

from report_runs import estimate, make_scores, tree
from tercet.evaluation.scoring.score_files import current, logged, scores_of_point
from tercet.reporting.report import write_report


def test_the_names_of_logged_scores() -> None:
    keys = ["step", "score/f1", "gold", "score/python:a/b.py:f", "scores"]
    assert logged(iter(keys)) == {"score/f1": "f1", "gold": "rubric", "score/python:a/b.py:f": "python:a/b.py:f"}
    assert scores_of_point({"k": 2, "gold": 0.5}) == {"rubric": 0.5}
    assert scores_of_point({"k": 2, "scores": {"f1": 0.5}}) == {"f1": 0.5}
    assert scores_of_point({"k": 2}) == {}


def test_a_row_without_answers_stays_as_it_is() -> None:
    row = {"verb": "sft", "bits_per_byte": {}, "each": {}}
    assert current(row) == row


def test_scores_of_before_are_read_as_todays(tmp_path: Path) -> None:
    """A page from a file that was written before scorers had names says the same as one from today's."""
    runs = tree(tmp_path / "runs")
    old = make_scores([runs["sft"], runs["ptx"]], runs["sft"])
    new = {**old, "models": {path: current(row) for path, row in old["models"].items()}}
    row = new["models"][str(runs["ptx"])]
    assert list(row["scores"]) == ["exact_match", "rubric", "rubric:right", "rubric:sentence", "rubric:direct"]
    assert row["against"]["rubric"]["difference"] == estimate(0.01)
    assert not row.keys() & {"exact_match", "rubric", "rubric_parts", "well_formed", "win_rate", "rubric_difference"}
    assert current(row) == row
    pages = (tmp_path / "before.html", tmp_path / "after.html")
    before, after = (write_report([runs["ptx"]], p, s).read_text() for p, s in zip(pages, (old, new)))
    assert before == after
    for text in ("exact match", "rubric:sentence", "win rate by rubric", "difference of rubric", "the scorer rubric"):
        assert text in before, text
