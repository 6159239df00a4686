"""The command line as a user types it: a whole chain on one's own data, every mistake, and how fast it starts."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from helpers import TERCET, assistant, tensors, user, write_rows, write_world
from tercet.cli.main import main
from tercet.errors import ConfigError
from tercet.pretraining.stage import PretrainConfig
from tercet.tokenizer.bpe import SPECIAL_TOKENS, Tokenizer
from tercet.training.run import Run

SHAPE = (
    "--context-length 64 --hidden-size 32 --num-layers 2 --num-heads 2 --num-kv-heads 1 --head-dim 16 "
    "--intermediate-size 48"
)
QUICK = "--steps 20 --lr 0.01 --batch-size 8 --threads 1"
MADE = {
    "tokenizer": "tokenizer train --data text.jsonl --vocab-size 320 --out new/tok.json",
    "pretrain": f"pretrain --data text.jsonl --tokenizer new/tok.json {SHAPE} {QUICK} "
    "--sample-prompts 'Anna <|im_end|>' --out runs/base",
    "prompt": "prompt runs/base --text 'Anna has' --max-new-tokens 12",
    "few-shot": "prompt runs/base --questions tasks.jsonl --shots 0,1 --examples tasks.jsonl --max-new-tokens 4 "
    "--threads 1 --out prompting.json --figure prompting.svg",
    "sft": f"sft --model runs/base --data chats.jsonl --questions tasks.jsonl {QUICK} "
    "--max-new-tokens 8 --out runs/sft",
    "annotate": "annotate --model runs/sft --questions tasks.jsonl --max-new-tokens 8 --threads 1 --out runs/rank",
    "reward": f"reward --model runs/sft --data pairs.jsonl --demonstrations chats.jsonl {QUICK} --out runs/reward",
    "ppo": "ppo --model runs/sft --reward runs/reward --prompts tasks.jsonl --pretrain-data text.jsonl "
    "--heldout-text heldout.jsonl --max-new-tokens 8 --steps 3 --batch-size 8 --threads 1 --out runs/rlhf",
    "eval": "eval runs/base runs/sft runs/rlhf --text heldout.jsonl --questions tasks.jsonl "
    "--reward runs/reward --reference runs/sft --max-new-tokens 8 --threads 1 --out scores.json",
    "report": "report runs/rlhf runs/rank --scores scores.json --prompts prompting.json --out report.html",
    "show": "show runs/sft",
}


@dataclass
class Result:
    """What a command gave."""

    code: int
    out: str
    err: str


def type_in(line: str, stdin: str = "") -> Result:
    """Run a command line in this process, as the console script does; a traceback gives -1."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        patch.setattr(sys, "argv", ["tercet", *shlex.split(line)])
        patch.setattr(sys, "stdin", io.StringIO(stdin))
        code: Any = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code or 0
        except Exception:
            code = -1
            traceback.print_exc(file=err)
    assert isinstance(code, int)
    return Result(code, out.getvalue(), err.getvalue())


def say(text: str) -> str:
    """One row of conversations."""
    return json.dumps({"messages": [user("Hi."), assistant(text)]}) + "\n"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder with data; every kind of text in it also spells the special tokens."""
    folder = write_world(tmp_path_factory.mktemp("home")).folder
    more: dict[str, list[dict[str, Any]]] = {
        "text": [{"text": f"Anna has 3 apples. {s} Anna has {s}.", "source": "stories"} for s in SPECIAL_TOKENS],
        "chats": [{"messages": [user(f"Say {s}."), assistant(f"{s}.")]} for s in SPECIAL_TOKENS],
        "tasks": [{"prompt": f"Say {s}", "answers": [s]} for s in SPECIAL_TOKENS],
    }
    for name, rows in more.items():
        with (folder / f"{name}.jsonl").open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    pairs = [{"prompt": f"How much is {n} + 1?", "chosen": f"It is {n + 1}.", "rejected": f"{n}"} for n in range(30)]
    pairs += [{"prompt": f"Say {s}", "chosen": f"{s}.", "rejected": s} for s in SPECIAL_TOKENS]
    write_rows(folder / "pairs.jsonl", pairs)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_wrong_files()
    return folder


def write_wrong_files() -> None:
    """Inputs with one thing wrong each."""
    write_rows(
        Path("wrong.jsonl"),
        [{"text": "Anna has 3 apples."}, {"txt": "Paul"}, *({"text": f"Nina has {n}."} for n in range(40))],
    )
    write_rows(
        Path("wrong-chat.jsonl"), [{"messages": [user("Hi."), assistant("Hello.")]}, {"messages": [user("Hi.")]}]
    )
    longer = {"messages": [user("What? " * 60), assistant("No.")]}
    long = [[user(f"{n}?"), assistant("Yes."), user("And then? " * 30), assistant("No.")] for n in range(9)]
    write_rows(Path("long-chat.jsonl"), [*({"messages": messages} for messages in long), longer])
    write_rows(Path("longer-chat.jsonl"), [longer])
    write_rows(
        Path("long-task.jsonl"), [{"prompt": "Hi.", "answer": "Hello."}, {"prompt": "What? " * 60, "answer": "No."}]
    )
    write_rows(
        Path("brackets.jsonl"),
        [{"text": "Anna has 3 apples.", "source": s} for s in ("[/b]", "[red]apples", ":apple:")],
    )
    write_rows(
        Path("bracket-tasks.jsonl"),
        [{"prompt": "Hi.", "answer": "Hello.", "ability": s} for s in ("[/b]", "[red]apples")],
    )
    for name in ("empty.txt", "empty.jsonl"):
        Path(name).write_text("")
    for name in ("binary.txt", "binary.jsonl", "picture.png"):
        Path(name).write_bytes(bytes(range(256)) * 4)
    Path("no-data").mkdir()
    for name, text in {
        "unknown": '{"stpes": 3}',
        "list": "[1]",
        "text": "steps: 3",
        "kind": '{"steps": "3", "data": ["text.jsonl"], "tokenizer": "new/tok.json"}',
    }.items():
        Path(f"{name}.config.json").write_text(text)


@pytest.fixture
def here(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Be in the user's folder."""
    monkeypatch.chdir(home)
    return home


@pytest.fixture(scope="module")
def chain(home: Path) -> dict[str, Result]:
    """What every command of the chain printed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        return {name: type_in(line) for name, line in MADE.items()}


# -- the chain ----------------------------------------------------------------------------------------------------


def test_every_command_of_the_chain_succeeds_and_says_so(chain: dict[str, Result]) -> None:
    assert {name: (result.code, result.err) for name, result in chain.items()} == dict.fromkeys(MADE, (0, ""))
    assert re.fullmatch(r"new/tok\.json: \d+ ids\n", chain["tokenizer"].out)
    for verb, run in {"pretrain": "base", "sft": "sft", "annotate": "rank", "reward": "reward", "ppo": "rlhf"}.items():
        assert re.search(rf"^done in \d+ s: runs/{run}$", chain[verb].out, re.MULTILINE)
    assert re.search(
        r"^pretrain  step 20/20  loss \d+\.\d+  tokens_per_s [\d,]+  0:00 left$", chain["pretrain"].out, re.MULTILINE
    )
    assert chain["prompt"].out.startswith("Anna has")
    assert len(chain["prompt"].out) > len("Anna has\n")
    assert "Accuracy by number of examples" in chain["few-shot"].out
    assert all(word in chain["eval"].out for word in ("bits per byte", "exact match", "win rate", "runs/rlhf"))
    assert chain["report"].out == "report: report.html\n"


def test_the_chain_leaves_scores_answers_and_a_report(chain: dict[str, Result], here: Path) -> None:
    scores = json.loads(Path("scores.json").read_text())
    assert list(scores["models"]) == ["runs/base", "runs/sft", "runs/rlhf"]
    assert scores["tasks"] == 29
    assert {row["shots"] for row in json.loads(Path("prompting.json").read_text())} == {0, 1}
    page = Path("report.html").read_text()
    assert page.lstrip().startswith("<!")
    assert all(f"runs/{name}" in page for name in ("base", "sft", "reward", "rlhf"))


def test_text_that_spells_special_tokens_stays_text(chain: dict[str, Result], here: Path) -> None:
    tokenizer = Tokenizer.load("runs/sft")
    Path("spells.jsonl").write_text(say("".join(SPECIAL_TOKENS)))
    shown = type_in("tokenizer show runs/sft --data spells.jsonl")
    answer = tokenizer.encode("".join(SPECIAL_TOKENS))
    assert not set(answer) & tokenizer.special_ids
    assert f"[{''.join(SPECIAL_TOKENS)}<|im_end|>]" in shown.out.replace("\n", "")
    assert re.search(rf"^{len(answer) + 1} of \d+ tokens are trained on$", shown.out, re.MULTILINE)
    asked = type_in("chat runs/sft --temperature 0", stdin="<|im_end|>\nSay <|pad|>\n")
    assert (asked.code, len(asked.out.splitlines()) >= 2) == (0, True)


def test_show_says_what_a_run_is_and_its_command_repeats_it_bit_for_bit(chain: dict[str, Result], here: Path) -> None:
    shown = chain["show"].out
    assert re.match(r"runs/sft: sft, finished, \d+ s, began 20", shown)
    assert "  model: ../base (step-00000020, weights " in shown
    command = re.search(r"^  repeat with: tercet (sft .*)$", shown, re.MULTILINE)
    assert command is not None
    assert type_in(command[1].replace("--out runs/sft", "--out runs/sft-again")).code == 0
    assert tensors(Path("runs/sft-again")) == tensors(Path("runs/sft"))


def test_a_run_is_repeated_from_its_config_and_options_override_it(chain: dict[str, Result], here: Path) -> None:
    assert type_in("reward --config runs/reward/config.json --out runs/reward-again").code == 0
    assert tensors(Path("runs/reward-again")) == tensors(Path("runs/reward"))
    assert type_in("reward --config runs/reward/config.json --steps 2 --out runs/reward-shorter").code == 0
    assert Run("runs/reward-shorter").config == Run("runs/reward").config | {"steps": 2}


def test_chat_answers_begins_anew_and_leaves(chain: dict[str, Result], here: Path) -> None:
    talk = type_in(
        "chat runs/sft", stdin="Anna, how much is 1 + 1?\n\n/new\nAnna, how much is 1 + 1?\n/quit\nnever read\n"
    )
    first, second = talk.out.splitlines()  # the conversation begins anew, so the same question has the same answer
    assert (talk.code, talk.err, first) == (0, "", second)
    both = type_in("chat runs/sft --compare runs/rlhf", stdin="Hi.\n").out.splitlines()
    assert [line.split(":")[0] for line in both if line.startswith("runs/")] == ["runs/sft", "runs/rlhf"]
    base = type_in("chat runs/base --base --temperature 0", stdin="Anna has\n")
    assert base.out.startswith(
        type_in("prompt runs/base --text 'Anna has' --max-new-tokens 4").out.removeprefix("Anna has").rstrip("\n")
    )


def test_chat_says_when_a_message_is_too_long_and_goes_on(chain: dict[str, Result], here: Path) -> None:
    for options in ("", "--base"):
        talk = type_in(f"chat runs/sft {options}", stdin="What? " * 60 + "\nHi.\n")
        refused, _, rest = talk.out.partition("\n")
        assert (talk.code, talk.err) == (0, "")
        assert re.fullmatch(r"\(.*context.*\)", refused)
        assert rest == type_in(f"chat runs/sft {options}", stdin="Hi.\n").out, (
            "the conversation is as if it had not been said"
        )


# -- real processes -----------------------------------------------------------------------------------------------


def real(*words: str, stdin: bytes = b"", **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run the installed console script."""
    return subprocess.run(
        [TERCET, *words], input=stdin, capture_output=True, timeout=60, env={**os.environ, **environment}
    )


def test_the_console_script_gives_exit_codes_and_one_line_of_error(chain: dict[str, Result], here: Path) -> None:
    missing = real("pretrain", "--data", "nowhere.txt", "--tokenizer", "new/tok.json", "--out", "runs/missing")
    assert (missing.returncode, missing.stdout) == (2, b"")
    assert re.fullmatch(rb"error: nowhere\.txt: there is no such file or folder.*\n", missing.stderr)
    unknown = real("pretrain", "--dta", "text.jsonl")
    assert (unknown.returncode, unknown.stdout) == (2, b"")
    assert b"No such option: --dta" in unknown.stderr


def test_a_piped_chat_with_a_line_that_is_no_text_goes_on_or_says_what_is_wrong(
    chain: dict[str, Result], here: Path
) -> None:
    strict = real("chat", "runs/sft", stdin=b"caf\xe9\nHi.\n", PYTHONIOENCODING="utf-8:strict")
    escaped = type_in("chat runs/sft", stdin="caf\udce9\nHi.\n")  # what Python makes of it in the C locale
    for code, err in ((strict.returncode, strict.stderr.decode()), (escaped.code, escaped.err)):
        assert (code, err) == (0, "") or (code == 2 and re.fullmatch(r"error: .*\n", err))


def test_a_reader_that_goes_away_is_no_crash(chain: dict[str, Result], here: Path) -> None:
    process = subprocess.Popen(
        [TERCET, "prompt", "runs/base", "--text", "Anna"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    error = process.stderr.read()
    process.stderr.close()
    assert (process.wait(60), error) == (1, b"")


def test_help_and_import_load_no_torch_and_take_less_than_a_third_of_a_second(tmp_path: Path) -> None:
    program = (
        "import sys; sys.argv = ['tercet', '--help']; from tercet.cli.main import main\n"
        "try: main()\nexcept SystemExit: sys.exit('torch' in sys.modules)"
    )
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(tmp_path)  # compiled once, as by an installer
    for command in ([TERCET, "--help"], [sys.executable, "-c", "import tercet"], [sys.executable, "-c", program]):
        seconds = []
        for _ in range(5):
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            assert process.returncode == 0
            seconds.append(usage.ru_utime + usage.ru_stime)  # of the processor: a busy machine changes it less
        assert min(seconds) < 1 / 3


# -- what goes wrong ----------------------------------------------------------------------------------------------

PRETRAIN = f"pretrain --tokenizer new/tok.json {SHAPE} --steps 2 --threads 1 --out runs/new"
SFT = "sft --model runs/base --steps 2 --threads 1 --out runs/new"
ANNOTATE = "annotate --model runs/sft --max-new-tokens 8 --threads 1 --out runs/new"
REWARD = "reward --model runs/sft --steps 2 --threads 1 --out runs/new"
PROMPT = "prompt runs/base --questions tasks.jsonl --examples tasks.jsonl"
NO_LANGUAGE_MODEL = r"runs/reward is a reward model; wanted a language model, as made by .*`tercet pretrain`"
NO_REWARD_MODEL = r"runs/sft is a language model; wanted a reward model, as made by `tercet reward`"
PPO = "ppo --model runs/sft --reward runs/reward --steps 2 --batch-size 4 --threads 1 --max-new-tokens 8 --out runs/new"
WRONG = [
    ("pretrian", 2, r"No such command 'pretrian'.*pretrain"),
    ("pretrain --dta text.jsonl --out runs/new", 2, r"No such option: --dta.*--data"),
    ("pretrain --steps many --out runs/new", 2, r"Invalid value for '--steps'"),
    ("pretrain --data text.jsonl --tokenizer new/tok.json", 2, r"Missing option '--out'"),
    ("pretrain --data text.jsonl --out runs/new", 2, r"--tokenizer"),
    ("pretrain --config unknown.config.json --out runs/new", 2, r"unknown setting 'stpes'; did you mean 'steps'\?"),
    ("pretrain --config list.config.json --out runs/new", 2, r"list\.config\.json: wanted an object"),
    ("pretrain --config text.config.json --out runs/new", 2, r"text\.config\.json: cannot be read as JSON"),
    ("pretrain --config kind.config.json --out runs/new", 2, r"steps is '3'; wanted int"),
    ("pretrain --config nowhere.json --out runs/new", 2, r"nowhere\.json"),
    ("pretrain --config runs/sft/config.json --out runs/new", 2, r"unknown setting 'lora_rank'"),
    (f"{PRETRAIN} --data nowhere.jsonl", 2, r"nowhere\.jsonl: there is no such file or folder"),
    (f"{PRETRAIN} --data no-data", 2, r"no-data: the folder holds no data file"),
    (f"{PRETRAIN} --data '*.nothing'", 2, r"the pattern matches no file"),
    (f"{PRETRAIN} --data ''", 2, r"no input files were given"),
    (f"{PRETRAIN} --data wrong.jsonl", 2, r"wrong\.jsonl:2: \"text\" must be a string, found no such key"),
    (f"{PRETRAIN} --data empty.txt", 2, r"empty\.txt: empty"),
    (f"{PRETRAIN} --data empty.jsonl", 2, r"empty\.jsonl: empty"),
    (f"{PRETRAIN} --data binary.txt", 2, r"binary\.txt: not a text file \(NUL byte"),
    (f"{PRETRAIN} --data binary.jsonl", 2, r"binary\.jsonl:1: invalid JSON"),
    (f"{PRETRAIN} --data binary.jsonl --skip-bad-rows", 2, r"binary\.jsonl: all \d+ rows are bad"),
    (f"{PRETRAIN} --data picture.png", 2, r"picture\.png: unknown kind of file"),
    (f"{PRETRAIN} --data text.jsonl --lr -1", 2, r"lr is -1\.0; it must be at least 0"),
    (f"{PRETRAIN} --data text.jsonl --lr nan", 2, r"lr is nan"),
    (f"{PRETRAIN} --data text.jsonl --lr inf", 2, r"lr is inf"),
    (f"{PRETRAIN} --data text.jsonl --seed {2**70}", 2, r"seed is \d+"),
    (f"{PRETRAIN} --data text.jsonl --precision float16", 2, r"precision is 'float16'; wanted one of float32"),
    (f"{PRETRAIN} --data text.jsonl --mixture stories", 2, r"mixture has 'stories'; wanted name=share"),
    (f"{PRETRAIN} --data text.jsonl --mixture code=1", 2, r"--mixture and --data disagree on code"),
    (f"{PRETRAIN} --data text.jsonl --head-dim 15", 2, r"--head-dim is 15"),
    (f"{PRETRAIN} --data text.jsonl --heldout-share 2", 2, r"wanted a share from 0 to 1"),
    (f"{PRETRAIN} --data text.jsonl --tokenizer text.jsonl", 2, r"text\.jsonl: not a tokenizer\.json"),
    (f"{PRETRAIN} --data text.jsonl --out text.jsonl", 2, r"text\.jsonl exists"),
    (f"{PRETRAIN} --data text.jsonl --out text.jsonl/run", 2, r"text\.jsonl/run"),
    (f"{PRETRAIN} --data text.jsonl --out runs/base", 2, r"runs/base exists and is not empty; choose another --out"),
    (f"{SFT} --data nowhere.jsonl", 2, r"nowhere\.jsonl: there is no such file"),
    (f"{SFT} --data wrong-chat.jsonl", 2, r"wrong-chat\.jsonl:2: no assistant turn, so there is nothing to learn"),
    (f"{SFT} --data text.jsonl", 2, r"text\.jsonl:1: no known format"),
    (f"{SFT} --data binary.txt", 2, r"binary\.txt: found a text file, wanted rows"),
    (f"{SFT} --data long-chat.jsonl --long-conversations refuse", 2, r"long-chat\.jsonl:1: the conversation is long"),
    (f"{SFT} --data longer-chat.jsonl --heldout longer-chat.jsonl", 2, r"none of 1 conversations fits into"),
    (f"{SFT} --data chats.jsonl --model runs/reward", 2, NO_LANGUAGE_MODEL),
    (f"{SFT} --data chats.jsonl --model runs/nowhere", 2, r"runs/nowhere: not a run directory"),
    (f"{SFT} --data chats.jsonl --questions long-task.jsonl", 2, r"long-task\.jsonl:2: .*context"),
    (f"{ANNOTATE} --questions long-task.jsonl", 2, r"long-task\.jsonl:2: .*context"),
    ("reward --model runs/sft --data tasks.jsonl --out runs/new", 2, r"tasks\.jsonl:1: not a comparison"),
    ("reward --model runs/reward --data pairs.jsonl --out runs/new", 2, r"runs/reward is a reward (run|model); wanted"),
    (f"{REWARD} --data pairs.jsonl --demonstrations longer-chat.jsonl", 2, r"demonstration"),
    (f"{PPO} --prompts tasks.jsonl", 2, r"--gamma is 1\.0, but there is no pretraining text; name it with --pretrain"),
    (f"{PPO} --gamma 0 --prompts tasks.jsonl --reward runs/sft", 2, NO_REWARD_MODEL),
    (f"{PPO} --gamma 0 --prompts text.jsonl", 2, r"text\.jsonl:1: \"prompt\" must be"),
    (f"{PPO} --gamma 0 --prompts long-task.jsonl", 2, r"long-task\.jsonl:2: .*context"),
    (f"{PPO} --gamma 0 --prompts tasks.jsonl --max-new-tokens 100", 2, r"max.new.tokens"),
    (f"{PPO} --gamma 0 --prompts tasks.jsonl --minibatches 3", 2, r"--batch-size \(4\) must be a multiple of --mini"),
    ("prompt runs/base", 2, r"give either --text to continue, or --questions"),
    (f"prompt runs/base --text '{'What? ' * 60}'", 2, r"the context of 64 leaves room for prompts of 1 to 63"),
    (f"{PROMPT} --shots 4", 2, r"the context of 64 has room"),
    (f"{PROMPT} --shots 99", 2, r"99 shots, but there are only 28 examples of 'tasks'"),
    ("eval runs/base", 2, r"nothing to evaluate; name held-out --text"),
    ("eval runs/base runs/base --text heldout.jsonl", 2, r"runs/base is named twice"),
    ("eval runs/reward --text heldout.jsonl", 2, r"runs/reward is a reward (run|model); wanted"),
    ("eval runs/base --questions long-task.jsonl --max-new-tokens 8", 2, r"long-task\.jsonl:2: .*context"),
    ("eval runs/base --text heldout.jsonl --out no-data", 2, r"no-data: cannot be written"),
    ("chat runs/reward", 2, r"runs/reward is a reward (run|model); wanted"),
    ("chat runs/base --top-p 0", 2, r"--top-p 0\.0; wanted"),
    ("report ,", 2, r"no run is named; wanted at least one"),
    ("report runs/nowhere", 2, r"runs/nowhere: not a run directory"),
    ("report runs/base --scores nowhere.json", 2, r"nowhere\.json: cannot be read as JSON"),
    ("report runs/base --scores list.config.json", 2, r"--scores list\.config\.json: is not a file that `tercet eval"),
    ("report runs/base --prompts list.config.json", 2, r"--prompts list\.config\.json: is not a file that"),
    ("report runs/base --out no-data", 2, r"no-data: cannot be written"),
    ("show no-data", 2, r"no-data: not a run directory"),
    ("resume no-data", 2, r"no-data: not a run directory"),
    ("resume runs/base", 1, r"runs/base: is finished; there is nothing to resume"),
    ("tokenizer train --data text.jsonl --out new/tok.json", 2, r"new/tok\.json exists; choose another --out"),
    ("tokenizer train --data text.jsonl --vocab-size 10 --out t.json", 2, r"vocab-size is 10; wanted at least 261"),
    ("tokenizer train --data wrong.jsonl --out t.json", 2, r"wrong\.jsonl:2: "),
    ("tokenizer train --data text.jsonl --out text.jsonl/t.json", 2, r"text\.jsonl/t\.json"),
    ("tokenizer show runs/base", 2, r"nothing to show: give --text or --data"),
    ("demo --minutes 1 --out runs/new", 2, r"minutes"),
    ("demo --out text.jsonl", 2, r"text\.jsonl exists"),
    ("data --out text.jsonl", 2, r"text\.jsonl exists"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("line", "code", "message"), WRONG, ids=[f"{line.split()[0]}: {message}" for line, _, message in WRONG]
)
def test_a_mistake_gives_an_exit_code_and_a_message(
    chain: dict[str, Result], here: Path, line: str, code: int, message: str
) -> None:
    shutil.rmtree("runs/new", ignore_errors=True)
    result = type_in(line)
    assert result.code == code
    assert re.search(message, result.err)
    assert "Traceback" not in result.err
    if result.err.startswith("error: "):
        assert result.err.count("\n") == 1


def test_prompt_writes_what_it_was_asked_to_write_or_says_that_it_does_not(
    chain: dict[str, Result], here: Path
) -> None:
    result = type_in("prompt runs/base --text Hi --out hi.json")
    assert Path("hi.json").exists() or (result.code == 2 and "--out" in result.err)


def test_too_many_threads_are_refused_before_they_crash_the_process() -> None:
    with pytest.raises(ConfigError, match="threads"):
        PretrainConfig(data=("x",), tokenizer="y", threads=100_000_000)


def test_a_corrected_command_may_use_the_same_out(chain: dict[str, Result], here: Path) -> None:
    wrong = SFT.replace("runs/new", "runs/corrected")
    assert type_in(f"{wrong} --data nowhere.jsonl").code == 2
    assert type_in(f"{wrong} --data chats.jsonl").code == 0


def test_the_mistake_is_named_where_out_is_a_link_or_the_current_folder(
    chain: dict[str, Result], here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "folder")
    wrong = SFT.replace("runs/base", str(here / "runs" / "base")) + " --data nowhere.jsonl"
    linked = type_in(wrong.replace("runs/new", str(tmp_path / "link")))
    monkeypatch.chdir(tmp_path / "folder")
    for result in (linked, type_in(wrong.replace("runs/new", "."))):
        assert result.code == 2
        assert result.err.startswith("error: nowhere.jsonl: there is no such file")


def test_a_file_that_cannot_be_written_leaves_nothing_behind(chain: dict[str, Result], here: Path) -> None:
    Path("a-folder").mkdir()
    before = sorted(Path().iterdir())
    assert type_in("eval runs/base --text heldout.jsonl --threads 1 --out a-folder").code == 2
    assert sorted(Path().iterdir()) == before


# -- what is mended on the way, and counted -----------------------------------------------------------------------


def test_bad_rows_are_skipped_and_counted_where_that_is_asked_for(chain: dict[str, Result], here: Path) -> None:
    assert type_in("tokenizer train --data wrong.jsonl --skip-bad-rows --out skipped.json").out.endswith(
        ", 1 bad rows skipped\n"
    )
    assert (
        type_in(
            PRETRAIN.replace("new ", "skipped ").replace("runs/new", "runs/skipped")
            + " --data wrong.jsonl --skip-bad-rows"
        ).code
        == 0
    )
    assert "skipped 1 bad rows; the first: wrong.jsonl:2: " in Path("runs/skipped/log.txt").read_text()
    assert Run("runs/skipped").manifest["skipped_rows"] == 1


@pytest.mark.parametrize(
    "line",
    [
        "eval runs/base --text wrong.jsonl --skip-bad-rows --threads 1",
        "prompt runs/base --questions wrong-tasks.jsonl --shots 0 --skip-bad-rows --max-new-tokens 4 --threads 1",
    ],
)
def test_commands_that_measure_say_how_many_rows_they_skipped(chain: dict[str, Result], here: Path, line: str) -> None:
    Path("wrong-tasks.jsonl").write_text(Path("tasks.jsonl").read_text() + "{}\n")
    result = type_in(line)
    assert result.code == 0
    assert re.search(r"skipped 1 |1 bad row|1 row", result.out + result.err)


def test_long_conversations_are_cut_or_left_out_and_counted(chain: dict[str, Result], here: Path) -> None:
    assert type_in(f"{SFT} --data long-chat.jsonl --heldout chats.jsonl".replace("runs/new", "runs/long")).code == 0
    assert re.search(
        r" 9 of 10 conversations truncated after a whole message; 1 left out", Path("runs/long/log.txt").read_text()
    )


def test_names_in_square_brackets_are_shown_as_they_are(chain: dict[str, Result], here: Path) -> None:
    shown = type_in("eval runs/base --text brackets.jsonl --threads 1").out
    assert all(name in shown for name in ("[/b]", "[red]apples", ":apple:"))
    asked = type_in("prompt runs/base --questions bracket-tasks.jsonl --shots 0 --max-new-tokens 4 --threads 1").out
    assert all(name in asked for name in ("[/b]", "[red]apples"))
    shutil.copytree("runs/base", "runs/[i]m[/b]")
    assert "[i]m[/b]" in type_in("eval 'runs/[i]m[/b]' --text heldout.jsonl --threads 1").out
    assert "[i]m[/b]" in type_in("show 'runs/[i]m[/b]'").out
