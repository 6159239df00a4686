"""Commands that measure and show: prompt, eval, winrate, compare, report, show."""

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
from tercet.training.settings import option_name

# settings of `tercet prompt` that also apply to --text
OF_TEXT = ("model", "temperature", "max_new_tokens", "threads", "seed")
PROMPT_EXAMPLE = "tercet prompt runs/base --questions questions.jsonl --examples more.jsonl --shots 0,1,4"
EVAL_EXAMPLE = "tercet eval runs/base runs/sft --text heldout/ --questions questions.jsonl"
WINRATE_EXAMPLE = "tercet winrate runs/sft runs/rlhf --questions questions.jsonl --judge reward:runs/reward"


def register(app: typer.Typer) -> None:
    """Add this file's commands."""
    extra = {
        "text": option(str, "--text", "Text to continue, instead of --questions; \\n stands for a new line.", ""),
        "out": option(Path | None, "--out", "Also write the results to this JSON file."),
        "figure": option(Path | None, "--figure", "Also draw accuracy against shots into this SVG file."),
    }
    add_command(app, "prompt", PromptConfig, _prompt, PROMPT_EXAMPLE, "model", extra)
    out = {"out": option(Path | None, "--out", "Also write the scores to this JSON file.")}
    add_command(app, "eval", EvalConfig, _eval, EVAL_EXAMPLE, "models", out)
    add_command(app, "winrate", WinRateConfig, _winrate, WINRATE_EXAMPLE, "models", out)
    app.command("compare", no_args_is_help=True)(compare)
    app.command("report", no_args_is_help=True)(report)
    app.command("show", no_args_is_help=True)(show)


def _prompt(config: PromptConfig, text: str, out: Path | None, figure: Path | None) -> None:
    if bool(text) == bool(config.questions or config.task):
        raise ConfigError(
            "tercet prompt: give either --text to continue, or --questions or --task to answer (--questions needs "
            "--examples where --shots is above 0)"
        )
    # a shell's double quotes keep \\n as two characters; here it means a new line
    texts = {name: getattr(config, name).replace("\\n", "\n") for name in ("description", "template", "separator")}
    config, text = dataclasses.replace(config, **texts), text.replace("\\n", "\n")
    check_writable(out, "--out", config.cache)
    check_writable(figure, "--figure", config.cache)
    if text:
        from tercet.inference.chat import Chat
        from tercet.training.run import threads

        fields = [f for f in dataclasses.fields(config) if f.name not in OF_TEXT]
        useless = [option_name(f) for f in fields if getattr(config, f.name) != f.default]
        useless += ["--figure"] if figure is not None else []
        if useless:
            raise ConfigError(f"tercet prompt: {', '.join(useless)}: has no effect on --text; leave it out")
        longest = config.max_new_tokens or DEFAULT_MAX_NEW_TOKENS
        chat = Chat(config.model, temperature=config.temperature, max_new_tokens=longest, seed=config.seed)
        typer.echo(text, nl=False)
        with threads(config.threads):
            answer = chat.complete(text, _print_piece)
        typer.echo()
        if out is not None:
            write_json(out, {"prompt": text, "text": answer})
        return
    from tercet.cli.show import console, prompt_tables
    from tercet.data.readers import BadRows
    from tercet.evaluation.prompt_study import prompt_study
    from tercet.reporting.blocks import plural
    from tercet.training.progress import Requests

    bad = BadRows(skip=config.skip_bad_rows)
    rows = prompt_study(config, bad, progress=Requests())
    _say_skipped(bad.count)
    last = rows[-1]
    typer.echo(f"The first prompt with {plural(last['shots'], 'example')}, and the answer:")
    typer.echo(f"{last['prompt']}{last['answer']}\n")
    for table in prompt_tables(rows):
        console.print(table)
    if out is not None:
        write_json(out, rows)
    if figure is not None:
        from tercet.reporting.compare import shots_figure

        write_whole(figure, shots_figure(rows), "--figure")


def _print_piece(piece: str) -> None:
    typer.echo(piece, nl=False)


def write_json(path: Path, value: object) -> None:
    """Write a JSON file in one step. Raises ConfigError where that fails."""
    write_whole(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n", "--out")


def write_whole(path: Path, text: str, option: str) -> None:
    """Write a text file in one step. Raises ConfigError, which names the option, where that fails."""
    from tercet.training.records import write_text

    try:
        write_text(path, text)
    except OSError as error:
        raise ConfigError(f"{option} {path}: cannot be written: {error}") from error


def check_writable(path: Path | None, option: str, cache: str = "") -> None:
    """Raise ConfigError, before any work is done, where a file cannot be written later or is the request cache."""
    if path is not None and cache and path.resolve() == Path(cache).resolve():
        raise ConfigError(f"{option} {path}: is the file of --cache and would be overwritten; choose another {option}")
    if path is not None and path.is_dir():
        raise ConfigError(f"{option} {path}: cannot be written: it is a folder; name a file")
    if path is not None and not os.access(folder := path.absolute().parent, os.W_OK | os.X_OK):
        raise ConfigError(f"{option} {path}: cannot be written: make a writable folder {folder} first")


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

    rates = win_rates(config, progress=Requests())
    for table in winrate_tables(rates):
        console.print(table)
    if out is not None:
        write_json(out, rates)


def _say_skipped(count: int) -> None:
    if count:
        typer.echo(f"skipped {count} bad rows")


def compare(
    a: Annotated[
        str,
        typer.Argument(help="Run, or JSON of `tercet eval --out` with one model; several seeds joined with commas."),
    ],
    b: Annotated[str, typer.Argument(help="The model, or its seeds, to compare with A.")],
    scores: Annotated[
        list[str] | None, typer.Option(help="JSON of `tercet eval --out`, needed where A and B are runs." + MANY)
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Also write the comparison to this JSON file.")] = None,
) -> None:
    """Test whether model B is better than model A.

    Both are compared item by item on the same items; a sentence says by how much they differ and how sure that is.

    Example: tercet compare runs/base runs/sft --scores scores.json
    """
    check_writable(out, "--out")
    files = split_list(scores or [])
    if out is not None and out.resolve() in {Path(p).resolve() for p in (*a.split(","), *b.split(","), *files)}:
        raise ConfigError(f"--out {out}: is one of the inputs and would be overwritten; choose another --out")
    from tercet.cli.show import comparison_table, console
    from tercet.evaluation.compare import compare as compared

    comparison = compared(a, b, files)
    if len(comparison["measures"]) > 1:
        console.print(comparison_table(comparison))
    typer.echo(comparison["sentence"])
    if out is not None:
        write_json(out, comparison)


def report(
    runs: Annotated[list[str], typer.Argument(help="Runs; the runs they were made from are included.")],
    out: Annotated[
        Path | None, typer.Option(help="HTML file to write.  [default: report.html in the last run]")
    ] = None,
    scores: Annotated[Path | None, typer.Option(help="JSON of `tercet eval --out`.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="JSON of `tercet prompt --out`.")] = None,
) -> None:
    """Write a self-contained HTML report about runs.

    The page has curves, scores, samples, the lineage of the models, and the commands that repeat the runs.

    Example: tercet report runs/rlhf --scores scores.json
    """
    from tercet.reporting.report import write_report

    paths = split_list(runs)
    if not paths:
        raise ConfigError("no run is named; wanted at least one, for example runs/rlhf")
    page = write_report(
        paths,
        out or Path(paths[-1]) / "report.html",
        scores=_read_json("--scores", scores, dict, "eval"),
        prompts=_read_json("--prompts", prompts, list, "prompt"),
    )
    typer.echo(f"report: {page}")


def _read_json(option: str, path: Path | None, outer: type, verb: str) -> Any:
    """Return what `tercet VERB --out` wrote; None without a path. Raises ConfigError for any other file."""
    if path is None:
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{option} {path}: cannot be read as JSON: {error}; name a file that `tercet {verb} --out` writes"
        ) from error
    rows: Any = content.get("models") if isinstance(content, dict) else content
    inner = list(rows.values()) if isinstance(rows, dict) else rows
    if not isinstance(content, outer) or not isinstance(inner, list) or not all(isinstance(r, dict) for r in inner):
        raise ConfigError(f"{option} {path}: is not a file that `tercet {verb} --out` writes; name one")
    return content


def show(run: Annotated[Path, typer.Argument(help="Run directory.")]) -> None:
    """Show a run's status, settings and newest metrics.

    The runs that it was made from and the command that repeats it are shown, too.

    Example: tercet show runs/sft
    """
    from tercet.cli.show import show_run
    from tercet.training.run import Run

    show_run(Run(run))
