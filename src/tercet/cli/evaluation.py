"""Commands that measure and show: prompt, eval, report, show."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from tercet.cli.options import MANY, add_command, option, split_list
from tercet.errors import ConfigError
from tercet.evaluation.config import DEFAULT_MAX_NEW_TOKENS, EvalConfig, PromptConfig, WinRateConfig

OF_TEXT = (
    "model",
    "temperature",
    "max_new_tokens",
    "threads",
    "seed",
)  # settings that count where a --text is continued


def register(app: typer.Typer) -> None:
    """Add this file's commands."""
    extra = {
        "text": option(str, "--text", "a text to continue, instead of --questions (\\n is a new line)", ""),
        "out": option(Path | None, "--out", "also write the rows here, as JSON"),
        "figure": option(Path | None, "--figure", "also draw accuracy against shots here, as SVG"),
    }
    add_command(app, "prompt", PromptConfig, _prompt, extra=extra, positional="model",
                example="tercet prompt runs/base --questions questions.jsonl --examples more.jsonl --shots 0,1,4")  # fmt: skip
    out = option(Path | None, "--out", "also write the scores here, as JSON")
    add_command(app, "eval", EvalConfig, _eval, example="tercet eval runs/base runs/sft --text heldout/ --questions questions.jsonl",
                extra={"out": out}, positional="models")  # fmt: skip
    add_command(app, "winrate", WinRateConfig, _winrate, positional="models", extra={"out": out},
                example="tercet winrate runs/sft runs/rlhf --questions questions.jsonl --judge reward:runs/reward")  # fmt: skip
    app.command("compare", no_args_is_help=True)(compare)
    app.command("report", no_args_is_help=True)(report)
    app.command("show", no_args_is_help=True)(show)


def _prompt(config: PromptConfig, text: str, out: Path | None, figure: Path | None) -> None:
    if bool(text) == bool(config.questions or config.task):
        raise ConfigError(
            "tercet prompt: give either --text to continue, or --questions or --task to ask (with --shots; --questions with --examples)"
        )
    # a shell's double quotes keep \\n as two characters; nobody means those here
    texts = {name: getattr(config, name).replace("\\n", "\n") for name in ("description", "template", "separator")}
    config, text = dataclasses.replace(config, **texts), text.replace("\\n", "\n")
    check_writable(out, "--out", config.cache)
    check_writable(figure, "--figure", config.cache)
    if text:
        from tercet.inference.chat import Chat
        from tercet.training.run import threads

        names = [
            f.name for f in dataclasses.fields(config) if f.name not in OF_TEXT and getattr(config, f.name) != f.default
        ]
        useless = [f"--{n.replace('_', '-')}" for n in names]
        if useless or figure is not None:
            raise ConfigError(
                f"tercet prompt: {', '.join(useless or ['--figure'])}: a --text is continued as it stands, not asked as a task: leave it out"
            )
        longest = config.max_new_tokens or DEFAULT_MAX_NEW_TOKENS
        chat = Chat(config.model, temperature=config.temperature, max_new_tokens=longest, seed=config.seed)
        typer.echo(text, nl=False)
        with threads(config.threads):
            answer = chat.complete(text, _print_piece)
        typer.echo()
        if out is not None:
            write_json(out, {"prompt": text, "text": answer})
        return
    from tercet.cli.show import asking_tables, console
    from tercet.data.readers import BadRows
    from tercet.evaluation.prompt_study import prompt_study
    from tercet.training.progress import Requests

    bad = BadRows(skip=config.skip_bad_rows)
    rows = prompt_study(config, bad, progress=Requests())
    _say_skipped(bad.count)
    typer.echo(
        f"the first prompt with {rows[-1]['shots']} examples, and the answer:\n{rows[-1]['prompt']}{rows[-1]['answer']}\n"
    )
    for table in asking_tables(rows):
        console.print(table)
    if out is not None:
        write_json(out, rows)
    if figure is not None:
        from tercet.reporting.compare import shots_figure

        write_whole(figure, shots_figure(rows), "--figure")


def _print_piece(piece: str) -> None:
    typer.echo(piece, nl=False)


def write_json(path: Path, value: object) -> None:
    """Write a JSON file, as a whole. Raises ConfigError where that cannot be done."""
    write_whole(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n", "--out")


def write_whole(path: Path, text: str, option: str) -> None:
    """Write a text file, as a whole. Raises ConfigError, naming the option, where that cannot be done."""
    from tercet.training.records import write_text

    try:
        write_text(path, text)
    except OSError as error:
        raise ConfigError(f"{option} {path}: cannot be written: {error}") from error


def check_writable(path: Path | None, option: str, cache: str = "") -> None:
    """Raise ConfigError, before hours are spent, where a file cannot be written later, or is the request cache."""
    if path is not None and cache and path.resolve() == Path(cache).resolve():
        raise ConfigError(f"{option} {path}: is the --cache, and would be written over; choose another {option}")
    if path is not None and path.is_dir():
        raise ConfigError(f"{option} {path}: cannot be written: it is a folder; name a file")
    if path is not None and not os.access(path.absolute().parent, os.W_OK | os.X_OK):
        raise ConfigError(
            f"{option} {path}: cannot be written: make the folder {path.absolute().parent} first, writable"
        )


def _eval(config: EvalConfig, out: Path | None) -> None:
    check_writable(out, "--out", config.cache)
    from tercet.cli.show import console, score_table, suite_table
    from tercet.evaluation.evaluate import evaluate
    from tercet.training.progress import Requests

    scores = evaluate(config, out, Requests())
    _say_skipped(scores["skipped_rows"])
    if config.text or config.questions:
        console.print(score_table(scores))
    if (suites := suite_table(scores)) is not None:
        console.print(suites)


def _winrate(config: WinRateConfig, out: Path | None) -> None:
    check_writable(out, "--out", config.cache)
    from tercet.cli.show import console, winrate_tables
    from tercet.evaluation.judges import win_rates
    from tercet.training.progress import Requests

    found = win_rates(config, progress=Requests())
    for table in winrate_tables(found):
        console.print(table)
    if out is not None:
        write_json(out, found)


def _say_skipped(count: int) -> None:
    if count:
        typer.echo(f"skipped {count} bad rows")


def compare(
    a: Annotated[
        str, typer.Argument(help="run, or JSON of `tercet eval --out` with one model; seeds joined with commas")
    ],
    b: Annotated[str, typer.Argument(help="the same, of what may be better")],
    scores: Annotated[
        list[str] | None, typer.Option(help="JSON that `tercet eval --out` wrote, where A and B are runs" + MANY)
    ] = None,
    out: Annotated[Path | None, typer.Option(help="also write the comparison here, as JSON")] = None,
) -> None:
    """Say in a sentence whether B is better than A on the same items, and by how much.

    Example: tercet compare runs/base runs/sft --scores scores.json
    """
    check_writable(out, "--out")
    files = split_list(scores or [])
    if out is not None and out.resolve() in {Path(p).resolve() for p in (*a.split(","), *b.split(","), *files)}:
        raise ConfigError(f"--out {out}: is what is compared, and would be written over; choose another --out")
    from tercet.cli.show import comparison_table, console
    from tercet.evaluation.compare import compare as compared

    found = compared(a, b, files)
    if len(found["measures"]) > 1:
        console.print(comparison_table(found))
    typer.echo(found["sentence"])
    if out is not None:
        write_json(out, found)


def report(
    runs: Annotated[list[Path], typer.Argument(help="runs; their ancestors are found and come along")],
    out: Annotated[
        Path | None, typer.Option(help="where the page goes  [default: report.html in the last run]")
    ] = None,
    scores: Annotated[Path | None, typer.Option(help="JSON that `tercet eval --out` wrote")] = None,
    asking: Annotated[Path | None, typer.Option(help="JSON that `tercet prompt --out` wrote")] = None,
) -> None:
    """Write one self-contained page about runs: curves, scores, samples, lineage, commands.

    Example: tercet report runs/rlhf --scores scores.json
    """
    from tercet.reporting.report import write_report

    page = write_report(
        runs,
        out or runs[-1] / "report.html",
        scores=_read_json(scores, dict, "eval"),
        asking=_read_json(asking, list, "prompt"),
    )
    typer.echo(f"report: {page}")


def _read_json(path: Path | None, wanted: type, verb: str) -> Any:
    if path is None:
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON: {error}") from error
    rows: Any = found.get("models") if isinstance(found, dict) else found
    inner = list(rows.values()) if isinstance(rows, dict) else rows
    if not isinstance(found, wanted) or not isinstance(inner, list) or not all(isinstance(r, dict) for r in inner):
        raise ConfigError(f"{path}: is not what `tercet {verb} --out` writes")
    return found


def show(run: Annotated[Path, typer.Argument(help="run directory")]) -> None:
    """Say what a run is: status, parents, settings, the command that repeats it, the newest numbers.

    Example: tercet show runs/sft
    """
    from tercet.cli.show import show_run
    from tercet.training.run import Run

    show_run(Run(run))
