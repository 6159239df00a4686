"""What the tests of whole stages share: tiny data files, settings of tiny runs, processes that can be killed."""

from __future__ import annotations

import dataclasses
import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import tercet
from tercet.microworld.stage import AnnotateConfig
from tercet.posttraining.preference.stage import DPOConfig
from tercet.posttraining.reward_model.stage import RewardConfig
from tercet.posttraining.rl.stage import GRPOConfig, PPOConfig
from tercet.posttraining.sft.stage import SFTConfig
from tercet.pretraining.stage import PretrainConfig
from tercet.tokenizer.bpe import train_tokenizer
from tercet.training import checkpoints
from tercet.training import records as record_files
from tercet.training.run import Run
from tercet.training.settings import Settings
from tercet.training.stage import stages

TRAINED = ("pretrain", "sft", "reward", "ppo", "grpo", "dpo")
PARENTS = {
    "pretrain": (),
    "sft": ("base",),
    "annotate": ("base", "tuned"),
    "reward": ("base", "tuned"),
    "ppo": ("base", "tuned", "judge"),
    "grpo": ("base", "tuned"),
    "dpo": ("base", "tuned"),
}
STAGE_OF = {"base": "pretrain", "tuned": "sft", "judge": "reward"}
LONGER = {
    "steps": 40,
    "lr": 1e-2,
    "muon_lr": 0.05,
}  # a model that sometimes ends its answers itself: rewards are not all alike
NAMES = ("Anna", "Paul", "Nina", "Emil", "Olga", "Igor")
TERCET = str(Path(sys.executable).with_name("tercet"))

# -- data -----------------------------------------------------------------------------------------------------------


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]]) -> str:
    """Write a JSONL file; returns its path as text, as settings want it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def user(text: str) -> dict[str, str]:
    """A message of the user."""
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    """A message of the assistant."""
    return {"role": "assistant", "content": text}


@dataclasses.dataclass(frozen=True)
class World:
    """A folder of tiny data files and the runs that are made from them: "base", "tuned" and "judge" have children."""

    folder: Path

    def path(self, name: str) -> str:
        """A file or run in the folder."""
        return str(self.folder / name)

    def config(self, verb: str, **changes: Any) -> Any:
        """Settings of a run that takes half a second."""
        run = {"threads": 1, "seed": 3}
        train = dict(steps=13, checkpoint_every=2, eval_every=5, batch_size=8, **run)
        answer = {"max_new_tokens": 10, "model": self.path("tuned")}
        text, chats, questions, rankings = (
            {key: (self.path(f"{name}.jsonl"),)}
            for key, name in (("data", "text"), ("data", "chats"), ("questions", "tasks"), ("data", "rankings"))
        )
        shape = {
            "context_length": 64,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 2,
            "num_kv_heads": 1,
            "head_dim": 16,
        }
        prompts = {"prompts": (self.path("tasks.jsonl"),)}
        demonstrations = {"demonstrations": (self.path("chats.jsonl"),)}
        pretraining = {
            "pretrain_data": (self.path("text.jsonl"),),
            "heldout_text": (self.path("heldout.jsonl"),),
            "pretrain_rows": 4,
        }
        settings: dict[str, tuple[type[Settings], dict[str, Any]]] = {
            "pretrain": (
                PretrainConfig,
                dict(train, **text, **shape, tokenizer=self.path("tokenizer.json"), heldout_share=0.1)
                | {"sample_prompts": ("Anna has",), "intermediate_size": 48},
            ),
            "sft": (SFTConfig, dict(train, **chats, **questions, max_new_tokens=10, model=self.path("base"))),
            "annotate": (AnnotateConfig, dict(run, **answer, **questions, answers=3)),
            "reward": (RewardConfig, dict(train, **rankings, **demonstrations, model=self.path("tuned"))),
            "dpo": (DPOConfig, dict(train, **rankings, model=self.path("tuned"), loss="kto", micro_batch=3)),
            "ppo": (
                PPOConfig,
                dict(train, **answer, **prompts, **pretraining, reward=(self.path("judge"),), epochs=1, minibatches=2),
            ),
            "grpo": (
                GRPOConfig,
                dict(train, **answer, **prompts, reward=("rubric", "0.5*exact_match"))
                | {"batch_size": 2, "group_size": 4, "sync_every": 3, "ema": 0.9, "target_kl": 1.0, "epochs": 2},
            ),
        }
        cls, values = settings[verb]
        return cls(**{**values, **changes})

    def run(self, verb: str, name: str, *, progress: Any = None, **changes: Any) -> Run:
        """Do a stage in this process; the run is the folder `name`."""
        self.make_parents(verb)
        run: Run = stages()[verb](self.config(verb, **changes), self.folder / name, progress=progress)
        return run

    def make_parents(self, verb: str) -> None:
        """Make the runs that `verb` starts from, where they are not there yet."""
        for name in PARENTS[verb]:
            if not (self.folder / name).exists():
                self.run(STAGE_OF[name], name, **(LONGER if name != "judge" else {}))


def write_world(folder: Path) -> World:
    """Text of two sources, conversations, tasks, rankings and a tokenizer of 320 ids, all about small sums."""
    rng = random.Random(0)
    sums = [(rng.choice(NAMES), rng.randint(0, 9), rng.randint(0, 9)) for _ in range(60)]
    stories = [f"{name} has {a} apples. {name} gets {b} more. Now {name} has {a + b} apples.\n" for name, a, b in sums]
    lists = ["".join(f"{c} + {b} = {c + b}\n" for c in range(a, a + 5)) for _, a, b in sums[:30]]
    sources = [("stories", t) for t in stories] + [("sums", t) for t in lists]
    documents = [{"text": text, "source": source, "id": f"{source}/{i}"} for i, (source, text) in enumerate(sources)]
    write_rows(folder / "text.jsonl", documents[:-6])
    write_rows(folder / "heldout.jsonl", documents[-6:])
    asked = [(f"{name}, how much is {a} + {b}?", a + b) for name, a, b in sums]
    chats = [[user(question), assistant(f"It is {total}.")] for question, total in asked]
    chats += [[*one, *two] for one, two in zip(chats[:20:2], chats[1:20:2])]
    write_rows(folder / "chats.jsonl", ({"messages": messages} for messages in chats))
    write_rows(
        folder / "tasks.jsonl",
        ({"prompt": q, "answers": [str(n), f"It is {n}."], "id": f"sum/{i}"} for i, (q, n) in enumerate(asked[:24])),
    )
    ranked = (
        {"prompt": q, "responses": [f"It is {n}.", f"{n}", f"It is {n + 1}. I think."], "ranks": [1, 2, 3]}
        for q, n in asked
    )
    write_rows(folder / "rankings.jsonl", ranked)
    train_tokenizer((text for _, text in sources), 320).save(folder / "tokenizer.json")
    return World(folder)


# -- runs -----------------------------------------------------------------------------------------------------------


def tensors(run: Path) -> dict[str, bytes]:
    """ "file/tensor" → shape, kind and bytes of every tensor of a run's newest checkpoint."""
    from safetensors.numpy import load_file

    found = {}
    for file in sorted(Run(run).last_checkpoint().glob("*.safetensors")):
        for name, array in load_file(file).items():
            found[f"{file.name}/{name}"] = f"{array.dtype}{array.shape}".encode() + array.tobytes()
    return found


def records(run: Path, name: str = "metrics.jsonl") -> list[dict[str, Any]]:
    """The objects of a file of records, without what a clock decides."""
    lines = (run / name).read_text(encoding="utf-8").split("\n") if (run / name).exists() else [""]
    assert lines.pop() == "", "the last line of a file of records ends with a line feed"
    return [
        {k: v for k, v in json.loads(line).items() if k != "tokens_per_s" and not k.startswith("seconds/")}
        for line in lines
    ]


def assert_same_run(run: Path, expected: Path) -> None:
    """Weights and optimizer state bit for bit, metrics and samples."""
    found, wanted = tensors(run), tensors(expected)
    assert found.keys() == wanted.keys()
    assert [name for name in wanted if found[name] != wanted[name]] == []
    assert Run(run).last_checkpoint().name == Run(expected).last_checkpoint().name
    for name in ("metrics.jsonl", "samples.jsonl"):
        assert records(run, name) == records(expected, name)
    assert Run(run).manifest["status"] == "finished"


class At:
    """A progress that does something once, after step `step`: raises a signal in this process, for example."""

    def __init__(self, step: int, action: Callable[[], object]) -> None:
        self.at, self.action, self.lines = step, action, [""]

    def begin(self, stage: str, steps: int) -> None:
        """Not needed."""

    def step(self, done: int, metrics: Mapping[str, float]) -> None:
        """Act."""
        if done == self.at:
            self.action()

    def say(self, text: str) -> None:
        """Keep the line."""
        self.lines.append(text)

    def end(self) -> None:
        """Not needed."""


def press_ctrl_c() -> None:
    """SIGINT to this process."""
    signal.raise_signal(signal.SIGINT)


def options(config: Settings) -> list[str]:
    """The settings as a user types them on the command line."""
    words: list[str] = []
    for field in dataclasses.fields(config):
        value, flag = getattr(config, field.name), "--" + field.name.replace("_", "-")
        if value == field.default or isinstance(value, bool):
            continue
        for one in value if isinstance(value, tuple) else (value,):
            words += [flag, str(one)]
    return words


# -- processes that can be killed -----------------------------------------------------------------------------------

# Every process is forked from a server that has imported torch but never computed with it: a start costs milliseconds.
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["pytest", *(s.body.partition(":")[0] for s in stages().values())])


@contextmanager
def process(verb: str, config: Settings, out: Path, stall: tuple[str, int] | None = None) -> Iterator[Any]:
    """A process that starts the run `out`, or goes on with it where it has begun. It has written run.json at least.

    With `stall` (where, how often passed) it stops at that place, for the caller to kill it.
    """
    receiver, sender = _SERVER.Pipe(duplex=False)
    child = _SERVER.Process(target=_work, args=(verb, config, out, stall, sender), daemon=True)
    child.start()
    sender.close()
    try:
        if stall is not None:
            with suppress(EOFError):  # where the process ended
                stall = None if receiver.poll(60) and receiver.recv() else stall
            assert stall is None, f"the process did not reach the place at which it shall be killed: {stall}"
        else:
            while child.is_alive() and not (out / "run.json").exists():
                time.sleep(0.001)
        yield child
    finally:
        if child.is_alive():
            child.kill()
        child.join()
        child.close()
        receiver.close()


def in_process(verb: str, config: Settings, out: Path) -> float:
    """Start or go on with a run in a process of its own, to the end; returns the seconds it took from run.json on."""
    with process(verb, config, out) as child:
        began = time.monotonic()
        child.join(120)
        assert child.exitcode == 0
    return time.monotonic() - began


def _work(verb: str, config: Settings, out: Path, stall: tuple[str, int] | None, sender: Any) -> None:
    if stall is not None:
        _install(*stall, lambda: sender.send(stall))
    if (out / "run.json").exists():
        tercet.resume(out)
    else:
        stages()[verb](config, out)


def _install(place: str, number: int, announce: Callable[[], None]) -> None:
    """Make the code that writes a run stop when it passes `place` for the `number`-th time, in this process only."""
    passed = itertools.count(1)

    def stop(before: Callable[[], object] = lambda: None) -> None:
        if next(passed) == number:
            before()
            announce()
            time.sleep(600)

    def save_file(group: Any, path: Path) -> None:
        real_save(group, path)
        stop(lambda: os.truncate(path, path.stat().st_size // 2))

    def rename(source: Path, target: Path) -> None:
        if place == "before the rename":
            stop()
        os.rename(source, target)
        if place == "after the rename":
            stop()

    def fsync(handle: int) -> None:
        stop()
        os.fsync(handle)

    def replace(source: Path, target: Path) -> None:
        stop()
        os.replace(source, target)

    def rmtree(path: Path, ignore_errors: bool = False) -> None:
        if path.name.startswith("step-"):
            stop((path / "model.safetensors").unlink)
        shutil.rmtree(path, ignore_errors)

    def patched(module: types.ModuleType, **names: Any) -> Any:
        return types.SimpleNamespace(**{**vars(module), **names})

    real_save = checkpoints.save_file
    changes: dict[str, dict[str, Any]] = {
        "half a file": {"save_file": save_file},
        "before the rename": {"os": patched(os, rename=rename)},
        "after the rename": {"os": patched(os, rename=rename)},
        "in a sync": {"os": patched(os, fsync=fsync)},
        "before a replace": {"os": patched(os, replace=replace)},
        "half a removal": {"shutil": patched(shutil, rmtree=rmtree)},
    }
    module = record_files if place == "before a replace" else checkpoints
    for name, value in changes[place].items():
        setattr(module, name, value)
