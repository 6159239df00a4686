"""What a user reads before anything runs: the list of commands, each command's help, and how options are typed."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import typer
import typer.main

from tercet.cli import options
from tercet.cli.main import app
from tercet.cli.options import MANY, REPEATED, SettingsParser, split_list
from tercet.errors import ConfigError
from tercet.training.settings import Settings, TuneSettings, setting
from tercet.training.stage import stages
from test_cli import type_in


def commands(group: Any = None, before: str = "") -> Iterator[tuple[str, Any]]:
    """("tokenizer train", command) of every command."""
    for name, command in (group or typer.main.get_command(app)).commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{before}{name} ")
        else:
            yield before + name, command


COMMANDS = dict(commands())
GROUPS = ("", "tokenizer", "scaling", "study")
NAMES = """
    pretrain sft annotate reward ppo grpo dpo best-of-n merge resume import export data data-gym demo prompt eval
    compare winrate report show chat doctor tokenizer-train tokenizer-show scaling-run scaling-fit scaling-predict
    study-alignment-tax study-human-choices study-in-context-learning study-over-optimisation study-reward-kl-frontier
    study-sentiment study-why-rl
"""

# -- texts --------------------------------------------------------------------------------------------------------


def test_the_commands_are_those_that_the_documents_name() -> None:
    assert {re.sub("^(tokenizer|scaling|study) ", r"\1-", name) for name in COMMANDS} == set(NAMES.split())


@pytest.mark.parametrize("name", [*GROUPS[:3], *(name for name in COMMANDS if name != "demo")])
def test_a_command_without_any_option_says_what_it_takes(name: str) -> None:
    """Only `tercet demo` needs nothing, and `tercet study` lists its questions."""
    alone, helped = type_in(name), type_in(f"{name} --help")
    assert (alone.out + alone.err).strip() == helped.out.strip()


@pytest.mark.parametrize("group", GROUPS)
def test_the_first_sentence_of_every_command_fits_the_list(group: str) -> None:
    listed = type_in(f"{group} --help").out.partition("Commands:")[2]
    inner = typer.main.get_command(app)
    inner = inner.commands[group] if group else inner  # type: ignore[attr-defined]
    for name, command in inner.commands.items():  # type: ignore[attr-defined]
        sentence = re.split(r"(?<=\.)\s", command.help)[0]
        assert re.fullmatch(r"[A-Z].{10,57}(?<!\. )\.", sentence), f"{name}: {sentence}"
        assert re.search(rf"^ +{name} +{re.escape(sentence)}$", listed, re.MULTILINE), f"{name}: cut: {listed}"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example_that_the_command_understands(name: str) -> None:
    helped = type_in(f"{name} --help")
    assert (helped.code, helped.err) == (0, "")
    joined = re.sub(r"\n +", " ", helped.out)
    example = re.search(rf"Example: tercet {name}( .*)?$", joined, re.MULTILINE)
    assert example is not None
    COMMANDS[name].make_context(name, shlex.split(example[1] or ""))  # raises a usage error where it does not parse


@pytest.mark.parametrize("verb", stages())
def test_every_setting_is_an_option_with_an_explanation(verb: str) -> None:
    text = type_in(f"{verb} --help").out
    for field in fields(stages()[verb].settings):
        if field.name != stages()[verb].positional:
            assert re.search(rf"--{field.name.replace('_', '-')}\b", text)
        # lines end at spaces and behind hyphens
        assert re.sub(r"\s+", "", field.metadata["help"]) in re.sub(r"\s+", "", text)


@pytest.mark.parametrize("name", COMMANDS)
def test_required_options_come_first_and_shared_ones_last(name: str) -> None:
    """In the order of `--help`: what must be given, the command's own, what the stages share, --config."""
    ranks = []
    for parameter in COMMANDS[name].params:
        if parameter.param_type_name == "option" and parameter.name != "help":
            needed = parameter.required or "[required]" in parameter.help
            shared = parameter.name in {f.name for f in fields(TuneSettings)}
            ranks.append(0 if needed else 3 if parameter.name == "config" else 2 if shared else 1)
    if "config" in (parameter.name for parameter in COMMANDS[name].params):
        assert ranks == sorted(ranks)
    else:  # an ordinary function: what must be given comes first
        assert [rank == 0 for rank in ranks] == sorted((rank == 0 for rank in ranks), reverse=True)


# -- lists --------------------------------------------------------------------------------------------------------

# what the lists of commands without settings are given to: as "module:function"
PLAIN = {
    "data-gym --tasks": "tercet.data.formats.reasoning_gym:write_gym_questions",
    "compare --scores": "tercet.evaluation.compare:compare",
    "report runs": "tercet.reporting.report:write_report",
    "tokenizer train --data": "tercet.data.readers:read_documents",
    "tokenizer show --data": "tercet.cli.show:show_conversations",
    "scaling fit ladder": "tercet.scaling.ladder:read_runs",
}
# its values are texts, in which commas are ordinary, so commas do not separate them
WHOLE = {"pretrain --sample-prompts"}


def lists() -> Iterator[tuple[str, Any]]:
    """("pretrain --data", parameter) of every option, and every argument, that takes a list."""
    for name, command in COMMANDS.items():
        for parameter in command.params:
            if getattr(parameter, "multiple", False) or parameter.nargs != 1:
                named = parameter.opts[0] if parameter.param_type_name == "option" else parameter.name
                yield f"{name} {named}", parameter


LISTS = dict(lists())


class Given(Exception):
    """Stops a command at the place where it gives its list to another function."""


def given(place: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """Return the values that a command makes of what is typed for a list."""
    name, _, option = place.rpartition(" ")
    values: list[Any] = []

    def read(cls: Any, known: dict[str, Any], where: str) -> Any:
        values.extend(known[LISTS[place].name])
        raise Given

    def take(*positional: Any, **named: Any) -> Any:
        values.extend(next(value for value in positional if isinstance(value, list)))
        raise Given

    with monkeypatch.context() as patch:
        patch.setattr(options, "from_json", read)
        if place in PLAIN:
            patch.setattr(PLAIN[place].replace(":", "."), take)
        if place == "tokenizer show --data":
            patch.setattr("tercet.tokenizer.bpe.Tokenizer.load", lambda path: None)
        others = [p for p in COMMANDS[name].params if p.required and p is not LISTS[place]]
        typed = [w for p in others for w in ([p.opts[0], "new"] if p.param_type_name == "option" else [p.name])]
        typed += [w for word in words for w in (option, word)] if option.startswith("--") else words
        with pytest.raises(Given):
            COMMANDS[name].main(args=typed, standalone_mode=False)
    return tuple(map(str, values))


@pytest.mark.parametrize("place", sorted(LISTS))
def test_every_list_takes_commas_and_repetition(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    repeated = given(place, ["1", "2", "3"], monkeypatch)
    assert [float(value) for value in repeated] == [1, 2, 3]
    if place in WHOLE:
        assert given(place, ["1,2", "3"], monkeypatch) == ("1,2", "3")
    else:
        assert given(place, ["1,2", "3"], monkeypatch) == repeated
    parameter = LISTS[place]
    if parameter.param_type_name == "option":
        assert (REPEATED if place in WHOLE else MANY) in parameter.help


def test_only_texts_with_commas_are_not_split_by_them() -> None:
    assert {place for place, p in LISTS.items() if REPEATED in (getattr(p, "help", "") or "")} == WHOLE
    for stage in stages().values():
        whole = {f.name for f in fields(stage.settings) if f.metadata.get("whole")}
        assert whole == {w.partition(" --")[2].replace("-", "_") for w in WHOLE if w.startswith(f"{stage.verb} ")}


def test_commas_in_brackets_and_in_names_of_files_belong_to_the_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a,b.txt").write_text("")
    assert split_list(["mean(a,b),c", "{x,y}.txt, d ,", "a,b.txt", ""]) == [
        "mean(a,b)",
        "c",
        "{x,y}.txt",
        "d",
        "a,b.txt",
    ]
    assert split_list(["a,b.txt,c"]) == ["a", "b.txt", "c"]
    assert split_list(["a,*.txt"]) == ["a,*.txt"], "a pattern that finds files"
    assert split_list(["x,*.txt"]) == ["x", "*.txt"]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        (r"regex:\((\d+),(\d+)\)", [r"regex:\((\d+),(\d+)\)"]),
        ("regex:(x,[0-9]{1,3}+),f1", ["regex:(x,[0-9]{1,3}+)", "f1"]),
        ("mean(runs/a,runs/b(2)),f1", ["mean(runs/a,runs/b(2))", "f1"]),
        ("a(,b,c", ["a(", "b", "c"]),
        ("a),b", ["a)", "b"]),
        ("[a(b],c", ["[a(b]", "c"]),
    ],
)
def test_brackets_around_commas_may_be_nested_or_lack_their_other_half(text: str, values: list[str]) -> None:
    assert split_list([text]) == values


@pytest.mark.parametrize("text", ["process:python score.py --parts a,b", "0.5 * process:./score --parts a,b"])
def test_a_command_line_keeps_its_commas(text: str) -> None:
    assert split_list([text, "f1,rubric"]) == [text, "f1", "rubric"]


def test_a_list_may_be_longer_than_the_name_of_a_file_may_be() -> None:
    names = [f"part-{number:03}.jsonl" for number in range(100)]
    assert split_list([",".join(names)]) == names


# -- options of a settings class ----------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Toy(Settings):
    """Settings of every type."""

    name: str = setting(..., "Name.")
    sizes: tuple[int, ...] = setting((1, 2), "Sizes.")
    notes: tuple[str, ...] = setting((), "Notes.", whole=True)
    good: bool = setting(True, "Good.")
    bad: bool = setting(False, "Bad.")
    rate: float = setting(0.5, "Rate.", flag="--speed")


def test_the_help_of_an_option_has_its_default_as_it_is_typed() -> None:
    parser = typer.Typer(add_completion=False)
    SettingsParser("toy", Toy).install(parser, lambda **given: None, "tercet toy")
    helps = {p.opts[0]: p.help for p in typer.main.get_command(parser).params if p.param_type_name == "option"}
    assert "config.json" in helps.pop("--config")
    assert helps == {
        "--name": "Name.  [required]",
        "--sizes": f"Sizes.  [default: 1,2]{MANY}",
        "--notes": f"Notes.{REPEATED}",
        "--good": "Good.  [default: on]",
        "--bad": "Bad.",
        "--speed": "Rate.  [default: 0.5]",
    }


def test_a_list_of_numbers_names_its_option_where_one_is_no_number() -> None:
    parser = SettingsParser("toy", Toy)
    read, own = parser.read({"config": None, "name": "n", "sizes": ["3,4", "5"], "notes": ["a, b", "c"]})
    assert (read, own) == (Toy(name="n", sizes=(3, 4, 5), notes=("a, b", "c")), {})
    with pytest.raises(ConfigError, match="--sizes 3,x: wanted whole numbers, for example 0,1,4"):
        parser.read({"config": None, "name": "n", "sizes": ["3,x"]})
