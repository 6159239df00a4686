"""Record what a change of structure must not change: metrics, weights and scores of small runs of every stage.

    python proofs/unchanged.py record before.json       # on the code before the change
    python proofs/unchanged.py record after.json        # on the code after it
    python proofs/unchanged.py compare before.json after.json

Every run has a fixed seed and one thread and is started by the command line, as a user starts it. Recorded are a hash
of every tensor of the last checkpoint, every metric with its values (but for times), and every number that `eval`,
`prompt`, `winrate` and the report print. `compare` exits with 1 where anything differs; names that changed on purpose
are in RENAMED.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from safetensors.numpy import load_file

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from helpers import write_world

TERCET = [str(Path(sys.executable).with_name("tercet"))]
SHAPE = (
    "--context-length 128 --hidden-size 32 --num-layers 2 --num-heads 2 --num-kv-heads 1 --head-dim 16 "
    "--intermediate-size 48 --batch-size 8 --eval-every 10"
)
TUNE = "--steps 12 --batch-size 8 --eval-every 5"
RL = "--prompts tasks.jsonl --scorer rubric --steps 6 --max-new-tokens 10"
# run folder → command; later ones start from earlier ones
RUNS = {
    "base": f"pretrain --data text.jsonl --tokenizer tokenizer.json --steps 60 --sample-prompts Anna --lr 0.01 {SHAPE}",
    "base-bf16": "pretrain --data text.jsonl --tokenizer tokenizer.json --steps 12 --precision bfloat16 "
    f"--muon-lr 0 {SHAPE}",
    "base-mixed": "pretrain --data text.jsonl --tokenizer tokenizer.json --steps 12 --mixture sums=0.3 "
    f"--mixture stories=0.7 {SHAPE}",
    "sft": "sft --model base --data chats.jsonl --questions tasks.jsonl --steps 60 --lr 0.01 --muon-lr 0.05 "
    "--batch-size 8 --eval-every 20 --max-new-tokens 10",
    "sft-lora": f"sft --model base --data chats.jsonl --lora-rank 2 --neftune-alpha 5 {TUNE}",
    "rank": "annotate --model sft --questions tasks.jsonl --answers 3 --max-new-tokens 10",
    "reward": f"reward --model sft --data rankings.jsonl --demonstrations chats.jsonl {TUNE}",
    "reward-lora": f"reward --model sft --data rankings.jsonl --lora-rank 2 {TUNE}",
    "dpo": f"dpo --model sft --data rankings.jsonl {TUNE}",
    "dpo-kto": f"dpo --model sft --data rankings.jsonl --loss kto {TUNE}",
    "dpo-simpo": f"dpo --model sft --data rankings.jsonl --loss simpo {TUNE}",
    "best": "best-of-n --model sft --reward reward --prompts tasks.jsonl --scorer rubric --answers 4 "
    "--max-new-tokens 10",
    "ppo": "ppo --model sft --reward reward --pretrain-data text.jsonl --heldout-text heldout.jsonl "
    f"--batch-size 8 --minibatches 2 {RL}",
    "ppo-shared": f"ppo --model sft --reward rubric --gamma 0 --critic shared --batch-size 8 --epochs 2 --ema 0.9 {RL}",
    "grpo": "grpo --model sft --reward rubric --reward 0.5*exact_match --batch-size 2 --group-size 4 "
    f"--sync-every 3 --target-kl 1 {RL}",
    "grpo-dapo": f"grpo --model sft --reward rubric --method dapo --batch-size 2 --group-size 4 --lora-rank 2 {RL}",
    "grpo-dpo": f"grpo --model sft --reward rubric --method online_dpo --batch-size 2 --group-size 4 {RL}",
    "merged": "merge sft-lora",
}
# name → command whose --out is a JSON file of numbers
MEASURED = {
    "eval": "eval base sft ppo --text heldout.jsonl --questions tasks.jsonl --reward reward --reference sft "
    "--scorer exact_match,rubric --max-new-tokens 10",
    "suite": "eval base --suite arithmetic --limit 20",
    "prompt": "prompt base --questions tasks.jsonl --examples tasks.jsonl --shots 0,2 --max-new-tokens 6",
    "prompt-task": "prompt base --task arithmetic --shots 0,1 --limit 20 --seeds 2",
    "winrate": "winrate sft ppo --questions tasks.jsonl --judge rubric --max-new-tokens 10",
}
THREADED = ("merged",)  # commands without --threads
# names that changed on purpose: scorers have names, and the microworld's rubric is one of them
RENAMED = {
    r"metrics.jsonl/gold": "metrics.jsonl/score/rubric",
    r"^(eval/models/\w+)/exact_match/": r"\1/scores/exact_match/greedy/",
    r"^(eval/models/\w+)/(abilities|held_out)/": r"\1/scores/exact_match/\2/",
    r"^(eval/models/\w+)/rubric/": r"\1/scores/rubric/sampled/",
    r"^(eval/models/\w+)/win_rate/": r"\1/against/rubric/win_rate/",
    r"^(eval/models/\w+)/rubric_difference/": r"\1/against/rubric/difference/",
    r"^(eval/models/\w+/examples/\d+)/rubric": r"\1/scores/rubric",
    r"^eval/tasks": "eval/tasks",
}
TIMES = re.compile(r"tokens_per_s|seconds")


def tercet(command: str, out: str, folder: Path) -> str:
    """Run one command in `folder`; returns what it printed. Raises CalledProcessError where it fails."""
    threads = [] if out in THREADED else ["--threads", "1"]
    done = subprocess.run(
        [*TERCET, *command.split(), *threads, "--out", out], cwd=folder, capture_output=True, text=True
    )
    if done.returncode:
        sys.exit(f"tercet {command}\n{done.stdout}{done.stderr}")
    return done.stdout


def of_run(run: Path) -> dict[str, Any]:
    """Hashes of the last checkpoint's tensors, every metric by its name, and the samples."""
    out: dict[str, Any] = {}
    for folder in sorted((run / "checkpoints").glob("step-*"))[-1:]:
        for file in sorted(folder.glob("*.safetensors")):
            for name, array in load_file(file).items():
                digest = hashlib.sha256(f"{array.dtype}{array.shape}".encode() + array.tobytes()).hexdigest()
                out[f"{folder.name}/{file.name}/{name}"] = digest[:16]
    for name in ("metrics.jsonl", "samples.jsonl", "scores.jsonl"):
        for line in (run / name).read_text(encoding="utf-8").splitlines() if (run / name).is_file() else ():
            row = json.loads(line)
            for key, value in row.items():
                if not TIMES.search(key):
                    out.setdefault(f"{name}/{key}", []).append([row.get("step"), value])
    for file in sorted(run.glob("rankings/*.jsonl")) + sorted(run.glob("best/*.jsonl")):
        out[file.name] = file.read_text(encoding="utf-8")
    return out


def numbers(value: Any, at: str = "") -> dict[str, Any]:
    """Every number of a JSON value by its path."""
    if isinstance(value, dict):
        return {k: v for name, part in value.items() for k, v in numbers(part, f"{at}/{name}").items()}
    if isinstance(value, list):
        return {k: v for i, part in enumerate(value) for k, v in numbers(part, f"{at}/{i}").items()}
    return {at: value} if isinstance(value, (int, float)) and not TIMES.search(at) else {}


def record(target: Path) -> None:
    """Make all runs in a folder of their own and write what must not change."""
    folder = Path(tempfile.mkdtemp())
    out: dict[str, Any] = {}
    try:
        write_world(folder)
        for name, command in RUNS.items():
            tercet(command, name, folder)
            out |= {f"{name}/{key}": value for key, value in of_run(folder / name).items()}
            print(name, flush=True)
        for name, command in MEASURED.items():
            tercet(command, f"{name}.json", folder)
            found = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
            found = found if isinstance(found, list) else {k: v for k, v in found.items() if k != "config"}
            out |= {f"{name}{key}": value for key, value in numbers(found).items()}
            print(name, flush=True)
        runs = [n for n in RUNS if n not in ("base-bf16", "base-mixed")]
        subprocess.run([*TERCET, "report", *runs, "--scores", "eval.json", "--out", "r.html"], cwd=folder, check=True)
        page = (folder / "r.html").read_text(encoding="utf-8")
        cells = re.findall(r"<td[^>]*>(.*?)</td>", page, re.S)
        out["report"] = [re.sub(r"<[^>]*>|\s+", " ", c).strip() for c in cells if re.search(r"\d\.\d{3}|\d %", c)]
    finally:
        shutil.rmtree(folder)
    target.write_text(json.dumps(out, indent=0, sort_keys=True) + "\n", encoding="utf-8")


def compare(before: Path, after: Path) -> int:
    """Print what differs; 1 where anything does."""
    old, new = (json.loads(path.read_text(encoding="utf-8")) for path in (before, after))
    for a, b in RENAMED.items():
        old = {re.sub(a, b, key): value for key, value in old.items()}
    different = [key for key in sorted(old.keys() | new.keys()) if old.get(key) != new.get(key)]
    for key in different:
        print(f"{key}: {str(old.get(key, 'missing'))[:100]}  →  {str(new.get(key, 'missing'))[:100]}")
    print(f"{len(old)} recorded, {len(different)} different")
    return int(bool(different))


if __name__ == "__main__":
    verb, *paths = sys.argv[1:] or ["help"]
    if verb == "record" and len(paths) == 1:
        record(Path(paths[0]))
    elif verb == "compare" and len(paths) == 2:
        sys.exit(compare(*map(Path, paths)))
    else:
        sys.exit(__doc__)
