"""Mutation: faults of one line in the code of post-training, each of which the fast tests must catch.

    python proofs/mutants.py [--only NAME] [--jobs 2] [--out runs/mutants.json]

A fault is a fragment of a line that stands exactly once in its file, and what stands there instead. It is made in a
copy of `src` and `tests`, never in the working tree, and the tests run against the copy until one fails. A fault with
which nothing can be imported proves nothing: it counts as not caught. Exit code 1 where more than one fault gets
through.
"""

from __future__ import annotations

import argparse
import ast
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ALLOWED = 1  # faults that may get through
TIMEOUT = 900.0  # seconds for one run of pytest

# every test that may catch a fault, those that are quick and catch most first
TESTS = ("policy_gradient", "group_methods", "grouped", "learner", "chat_renderer", "sampler", "reward", "dpo",
         "best_of_n", "feedback", "sft", "lora", "rewards", "rl_stages")  # fmt: skip

# file → (tests that are tried first, its faults: name, kind, what stands there, what stands there instead)
Fault = tuple[str, str, str, str]
TABLE: dict[str, tuple[str, list[Fault]]] = {
    "posttraining/rl/advantages.py": ("policy_gradient group_methods", [
        ("gae-sign", "sign", "delta = rewards[:, t] + discount * next_value",
         "delta = rewards[:, t] - discount * next_value"),
        ("gae-no-lambda", "coefficient", "delta + discount * lam * running, running)",
         "delta + discount * running, running)"),
        ("gae-no-carry", "mask", "delta + discount * lam * running, running)",
         "delta + discount * lam * running, 0.0)"),
        ("gae-value-of-gap", "mask", "next_value = torch.where(acts, values[:, t], next_value)",
         "next_value = values[:, t]"),
        ("returns-without-values", "wrong array", "(advantages + values) * action_mask", "advantages * action_mask"),
        ("score-on-first-action", "shift", "torch.where(action_mask, columns, -1).amax(dim=1)",
         "action_mask.int().argmax(dim=1)"),
        ("score-on-padding", "shift", "rewards[torch.arange(len(scores)), last] += scores",
         "rewards[torch.arange(len(scores)), (last + 1).clamp(max=rewards.shape[1] - 1)] += scores"),
        ("kl-in-reward-sign", "sign", "rewards = -beta * kl * action_mask", "rewards = beta * kl * action_mask"),
        ("whiten-padding", "mask", "selected = values[mask]", "selected = values.flatten()"),
        ("whiten-shift-inverted", "sign", "if not shift_mean:", "if shift_mean:"),
        ("whiten-shift-forgotten", "coefficient", "white = white + selected.mean()", "white = white + 0.0"),
        ("totals-mean-for-sum", "mean for sum", "beta * rollouts.kl().sum(1)", "beta * rollouts.kl().mean(1)"),
        ("leave-one-out-by-k", "coefficient", "- totals_GK) / (k - 1)", "- totals_GK) / k"),
        ("std-of-population", "coefficient", "totals_GK.std(1, keepdim=True)",
         "totals_GK.std(1, keepdim=True, correction=0)"),
        ("to-go-backwards", "shift", "(rewards * action_mask).flip(1).cumsum(1).flip(1)",
         "(rewards * action_mask).cumsum(1)"),
    ]),
    "posttraining/rl/rollouts.py": ("policy_gradient group_methods", [
        ("mask-late-by-one", "shift", "(columns >= first)", "(columns > first)"),
        ("eos-is-no-action", "EOS", "(columns < end)", "(columns < end - 1)"),
        ("missing-eos-added", "EOS",
         "rewards=torch.where(finished, torch.tensor(scores, dtype=dtype), missing_eos_score)",
         "rewards=torch.tensor(scores, dtype=dtype) + torch.where(finished, 0.0, missing_eos_score)"),
        ("kl-sign", "sign", "(logp - self.ref_logp) * self.action_mask", "(self.ref_logp - logp) * self.action_mask"),
        ("kl-never-negative", "clamp", "(logp - self.ref_logp) * self.action_mask",
         "(logp - self.ref_logp).clamp(min=0) * self.action_mask"),
        ("kl-of-the-sampler", "wrong array", "self.behaviour if self.logp is None else self.logp", "self.behaviour"),
        ("reference-is-policy", "wrong reference", "logprobs(reference, rollouts, params.temperature)",
         "logprobs(policy, rollouts, params.temperature)"),
        ("reference-at-temperature-1", "temperature", "logprobs(reference, rollouts, params.temperature)",
         "logprobs(reference, rollouts, 1.0)"),
        ("read-one-place-early", "shift", "before=packed.before[acts]",
         "before=(packed.before[acts] - 1).clamp(min=0)"),
        ("mean-over-padding", "mask", "float(self.action_mask.sum() if", "float(self.action_mask.numel() if"),
    ]),
    "posttraining/rl/policy_loss.py": ("group_methods policy_gradient", [
        ("loss-sign", "sign", "terms = -torch.minimum(", "terms = torch.minimum("),
        ("clip-max-for-min", "swap", "torch.minimum(ratio * advantage", "torch.maximum(ratio * advantage"),
        ("clip-bounds-swapped", "swap", "ratio.clamp(1 - self.clip_low, 1 + self.clip_high)",
         "ratio.clamp(1 - self.clip_high, 1 + self.clip_low)"),
        ("clip-detached", "detach", "clipped = ratio.clamp(", "clipped = ratio.detach().clamp("),
        ("old-not-detached", "detach", "old = logp.detach() if batch.logp is None", "old = logp if batch.logp is None"),
        ("cispo-not-detached", "detach", "-ratio.detach().clamp(max=", "-ratio.clamp(max="),
        ("mean-for-sum", "mean for sum", "loss = (weights * terms).double().sum()",
         "loss = (weights * terms).double().mean()"),
        ("gspo-sum-for-mean", "mean for sum", "summed = summed / batch.lengths()", "summed = summed * 1.0"),
        ("rloo-mean-for-sum", "mean for sum", 'if self.level == "answer_mean":', 'if self.level != "token":'),
        ("k2-without-half",
         "coefficient", '0.5 * (logp - batch.at_actions("ref_logp"))', '(logp - batch.at_actions("ref_logp"))'),
        ("policy-at-temperature-1", "temperature", "packed.target, self.temperature)", "packed.target, 1.0)"),
    ]),
    "training/losses.py": ("group_methods learner", [
        ("exact-kl-forward", "wrong reference", "(logp.exp() * (logp - ref)).sum(-1)",
         "(ref.exp() * (ref - logp)).sum(-1)"),
    ]),
    "posttraining/rl/group_methods.py": ("group_methods", [
        ("grpo-no-length", "mean for sum",
         "rollouts.action_mask / rollouts.lengths()[:, None].to(rollouts.behaviour.dtype)",
         "rollouts.action_mask.to(rollouts.behaviour.dtype)"),
        ("dr-grpo-divisor", "mean for sum", "float(config.max_new_tokens)", "1.0"),
        ("dapo-clip-symmetric", "coefficient", "clip=(0.2, 0.28)", "clip=(0.2, 0.2)"),
        ("worst-imitated", "swap", "grouped.argmax(1)", "grouped.argmin(1)"),
        ("online-dpo-best-is-worst", "swap",
         "best, worst = scores.argmax(1, keepdim=True), scores.argmin(1, keepdim=True)",
         "worst, best = scores.argmax(1, keepdim=True), scores.argmin(1, keepdim=True)"),
        ("online-dpo-no-reference", "wrong reference", 'logp - batch.at_actions("ref_logp")', "logp"),
    ]),
    "posttraining/rl/policy.py": ("group_methods policy_gradient", [
        ("ptx-no-gamma", "coefficient", "coef=self.config.gamma", "coef=1.0"),
        ("ema-inverted", "swap", "lerp_(value, 1 - self.config.ema)", "lerp_(value, self.config.ema)"),
        ("importance-not-cut", "clamp", ".exp().clamp(max=cap)", ".exp()"),
        ("importance-inverted", "sign", "(rollouts.logp - rollouts.behaviour).exp()",
         "(rollouts.behaviour - rollouts.logp).exp()"),
        ("groups-torn", "shift", "[g * k + i for g in order", "[i * groups + g for g in order"),
        ("reference-trained", "wrong reference", "shared_critic or copy.deepcopy(reference), config",
         "shared_critic or reference, config"),
        ("old-at-temperature-1", "temperature", "logprobs(self.model, rollouts, self.config.temperature)",
         "logprobs(self.model, rollouts, 1.0)"),
    ]),
    "posttraining/rl/train.py": ("group_methods", [
        ("beta-falls-with-kl", "sign", "kl / config.target_kl - 1", "1 - kl / config.target_kl"),
    ]),
    "posttraining/rl/ppo.py": ("policy_gradient rl_stages", [
        ("value-half", "coefficient", "loss = 0.5 * (action_values(critic, batch)",
         "loss = 1.0 * (action_values(critic, batch)"),
        ("value-of-advantages", "wrong array", 'batch.at_actions("returns")', 'batch.at_actions("advantages")'),
        ("critic-never-steps", "coefficient", "self.critic.optim_step(scale)", "self.critic.optim_step(0.0)"),
        ("reward-mean-shifted", "coefficient", "whiten(rewards, mask, shift_mean=False)", "whiten(rewards, mask)"),
        ("ppo-at-temperature-1", "temperature", "PolicyObjective(config.temperature, ", "PolicyObjective(1.0, "),
    ]),
    "posttraining/rl/actor.py": ("policy_gradient rl_stages", [
        ("resample-draws-again", "seed", "range(step * (1 + resample), (step + 1) * (1 + resample))",
         "[step * (1 + resample)] * (1 + resample)"),
        ("group-shares-its-seed", "seed", "* 65_537 + i for i in range(count)",
         "* 65_537 + i // config.group_size for i in range(count)"),
        ("prompt-not-scored", "wrong array", "(*self.prompts[number], *done.tokens), question)",
         "(*done.tokens,), question)"),
    ]),
    "inference/generate.py": ("sampler", [
        ("logprob-at-temperature-1", "temperature", "return selected, logp.gather(",
         "return selected, F.log_softmax(logits, dim=-1).gather("),
        ("batch-shares-its-seed", "seed", "uniforms(seeds[i], params.max_new_tokens)",
         "uniforms(seeds[which[0]], params.max_new_tokens)"),
    ]),
    "inference/reward_scores.py": ("reward", [
        ("score-on-last-column", "shift", "tokens.shape[1] + lengths - 1", "tokens.shape[1] + tokens.shape[1] - 1"),
    ]),
    "posttraining/reward_model/train.py": ("reward", [
        ("pair-order", "swap", "pairs += [(base + i, base + j)", "pairs += [(base + j, base + i)"),
        ("pairs-not-averaged", "mean for sum", "[2.0 / (k * (k - 1))] * len(p.pairs)", "[1.0] * len(p.pairs)"),
        ("margin-sign", "sign", "- batch.margins", "+ batch.margins"),
        ("bias-not-scaled", "coefficient", "np.mean(demonstrations or answers))).div_(spread)",
         "np.mean(demonstrations or answers)))"),
        ("gain-inverted", "coefficient", "model.gain.div_(spread)", "model.gain.mul_(spread)"),
    ]),
    "posttraining/reward_model/rankings.py": ("reward dpo", [
        ("ties-are-pairs", "mask", "self.ranks[i] != self.ranks[j] and self.answers", "self.answers"),
        ("same-text-is-a-pair", "mask", " and self.answers[i] != self.answers[j])", ")"),
    ]),
    "posttraining/preference/losses.py": ("dpo", [
        ("dpo-no-beta", "coefficient", "margin = beta * difference(logp - reference, pairs)",
         "margin = difference(logp - reference, pairs)"),
        ("dpo-reference-sign", "sign", "beta * difference(logp - reference, pairs)",
         "beta * difference(logp + reference, pairs)"),
        ("ipo-target", "coefficient", "1 / (2 * tau)", "1 / tau"),
        ("simpo-no-length", "mean for sum", "beta * difference(logp / lengths, pairs)",
         "beta * difference(logp, pairs)"),
        ("kto-z0-sign", "sign", "gain = beta * (logp - reference - z0)", "gain = beta * (logp - reference + z0)"),
        ("kto-z0-negative", "clamp", "return max(0.0, float(", "return (float("),
    ]),
    "posttraining/preference/train.py": ("dpo", [
        ("dpo-reference-is-policy", "wrong reference", "losses.dpo(logp, b.reference,",
         "losses.dpo(logp, logp.detach(),"),
    ]),
    "training/shared_prompts.py": ("grouped reward", [
        ("predecessor", "shift", "index[len(prompt) - 1 : -1]", "index[len(prompt) :]"),
        ("positions-run-on", "shift", "[*prompt, *ids], steps, number", "[*prompt, *ids], index, number"),
        ("last-but-one", "EOS", "np.array([index[-1] for", "np.array([index[-2] for"),
    ]),
    "training/learner.py": ("learner group_methods", [
        ("mean-of-means", "mean for sum", "loss * (coef / total)", "loss * (coef / batch.count / len(batches))"),
    ]),
    "tokenizer/chat_template.py": ("chat_renderer", [
        ("end-not-trained", "EOS", "[message.loss_weight] * len(body) + [0.0] * len(tail)",
         "[message.loss_weight] * (len(body) - 1) + [0.0] * (len(tail) + 1)"),
        ("user-trained", "mask", "[message.loss_weight] * len(body)", "[1.0] * len(body)"),
    ]),
    "posttraining/held_out.py": ("sft", [
        ("conversations-leak", "leak", "return [row for row in every if key(row) not in heldout]",
         "return [row for row in every]"),
    ]),
    "posttraining/sft/neftune.py": ("sft", [
        ("noise-not-by-length", "coefficient", "(lengths.clamp(min=1) * size).sqrt()", "size**0.5"),
    ]),
    "posttraining/rewards/best_of_n.py": ("best_of_n", [
        ("ties-count-each", "coefficient", "/ draws / len(equal)", "/ draws"),
        ("kl-bon", "coefficient", "math.log(k) - (k - 1) / k", "math.log(k)"),
    ]),
    "model/lora.py": ("lora", [
        ("lora-scale", "coefficient", "self.config.alpha / self.config.rank * update", "self.config.alpha * update"),
    ]),
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """A fault: in `file` of src/tercet, `was` is replaced by `now`. The tests `first` should catch it."""

    name: str
    kind: str
    file: str
    was: str
    now: str
    first: tuple[str, ...]

    def mutate(self, root: Path) -> tuple[str, str]:
        """The file under `root` as it is and as it is with the fault. Raises ValueError unless `was` is there once."""
        text = (root / "src" / "tercet" / self.file).read_text(encoding="utf-8")
        if (found := text.count(self.was)) != 1:
            raise ValueError(f"{self.name}: {self.was!r} stands {found} times in {self.file}; wanted once. Mend TABLE")
        return text, text.replace(self.was, self.now)


@dataclass(frozen=True)
class Result:
    """What became of a mutant: `test` is the one that failed, with the error `why`; None where it got through."""

    mutant: Mutant
    test: str | None
    why: str
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """A row of the file that is written."""
        m = self.mutant
        row = {"name": m.name, "kind": m.kind, "file": m.file, "was": m.was, "now": m.now}
        return {
            **row,
            "caught": self.test is not None,
            "test": self.test,
            "why": self.why,
            "seconds": round(self.seconds, 1),
        }


def mutants() -> list[Mutant]:
    """All faults of the table."""
    return [
        Mutant(name, kind, file, was, now, tuple(first.split()))
        for file, (first, faults) in TABLE.items()
        for name, kind, was, now in faults
    ]


def problems(root: Path) -> list[str]:
    """Return where the table does not fit the source: a fragment that is not there once, a fault that is no fault."""
    found, every = [], mutants()
    if twice := {m.name for m in every if [o.name for o in every].count(m.name) > 1}:
        found.append(f"names that stand twice: {', '.join(sorted(twice))}")
    for m in every:
        try:
            before, after = (ast.dump(ast.parse(text)) for text in m.mutate(root))
        except (ValueError, SyntaxError) as error:
            found.append(f"{m.name}: {error}")
            continue
        if before == after or "\n" in m.was + m.now:
            found.append(f"{m.name}: the code stays the same, or more than a line changes")
        if missing := [t for t in m.first if t not in TESTS]:
            found.append(f"{m.name}: {missing} are not among TESTS")
    return found


def run_tests(copy: Path, names: tuple[str, ...]) -> tuple[str | None, str]:
    """Return (first test that fails against the copy or None, its error, "passed", "timeout" or pytest's last line)."""
    env = {**os.environ, "PYTHONPATH": str(copy / "src"), "OMP_NUM_THREADS": "1", "COLUMNS": "240"}
    where = subprocess.run(
        [sys.executable, "-c", "import tercet; print(tercet.__file__)"],
        cwd=copy,
        env=env,
        capture_output=True,
        text=True,
    )
    if where.returncode == 0 and not Path(where.stdout.strip()).is_relative_to(copy):
        raise RuntimeError(f"the tests would import {where.stdout.strip()}, not the copy in {copy}")
    files = [f"tests/test_{name}.py" for name in names]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-rfE",
        "--tb=no",
        "-p",
        "no:cacheprovider",
        f"--basetemp={copy / 'tmp'}",
    ]
    try:
        done = subprocess.run([*command, *files], cwd=copy, env=env, capture_output=True, text=True, timeout=TIMEOUT)
    except subprocess.TimeoutExpired:
        return None, "timeout"
    # a test has "::" in its name; a file that cannot be imported has not
    if failed := re.search(r"^(?:FAILED|ERROR) tests/(\S+\.py::.*?)(?: - (.*))?$", done.stdout, re.MULTILINE):
        return failed[1], failed[2] or ""
    lines = (done.stdout + done.stderr).strip().splitlines()
    return None, "passed" if done.returncode == 0 else " ".join(lines[-1:])


def make_copy(source: Path, target: Path) -> Path:
    """What the tests need of `source`, at `target`."""
    for name in ("src", "tests"):
        shutil.copytree(source / name, target / name, ignore=shutil.ignore_patterns("*.egg-info", ".*_cache"))
    shutil.copy2(source / "pyproject.toml", target)
    return target


def try_one(mutant: Mutant, snapshot: Path) -> Result:
    """Make the fault in a copy of the snapshot and run the tests, those first that should see it."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="mutant-") as folder:
        copy = make_copy(snapshot, Path(folder).resolve())
        path = copy / "src" / "tercet" / mutant.file
        path.write_text(mutant.mutate(copy)[1], encoding="utf-8")
        for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*"):
            compiled.unlink()
        rest = tuple(name for name in TESTS if name not in mutant.first)
        for names in (mutant.first, rest):
            test, why = run_tests(copy, names)
            if why != "passed":
                break
    return Result(mutant, test, why, time.perf_counter() - began)


def main() -> int:
    """Check the table, check that the tests pass, then try every fault; prints a row for each as it is done."""
    parser = argparse.ArgumentParser(description="Faults of one line in post-training, and the tests that catch them.")
    parser.add_argument("--only", metavar="NAME", help="faults whose name, kind or file holds this")
    parser.add_argument("--jobs", type=int, default=1, help="faults tried at once (default: 1)")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "mutants.json", help="where the table is written")
    asked = parser.parse_args()
    if wrong := problems(ROOT):
        print("\n".join(wrong), file=sys.stderr)
        return 2
    chosen = [m for m in mutants() if asked.only is None or asked.only in f"{m.name} {m.kind} {m.file}"]
    if not chosen:
        print(f"no fault is called {asked.only!r}; they are: {', '.join(m.name for m in mutants())}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        snapshot = make_copy(ROOT, Path(folder).resolve())  # so that nothing changes meanwhile
        test, why = run_tests(snapshot, TESTS)
        if why != "passed":
            print(f"without any fault the tests do not pass: {test or 'no test'} failed ({why})", file=sys.stderr)
            return 2
        shutil.rmtree(snapshot / "tmp", ignore_errors=True)
        results = []
        with ThreadPoolExecutor(asked.jobs) as pool:
            for r in pool.map(lambda m: try_one(m, snapshot), chosen):
                results.append(r)
                m = r.mutant
                print(
                    f"{m.name:28}{m.kind:16}{m.file:34}{r.seconds:6.1f} s  {r.test or f'NOT CAUGHT ({r.why})'}",
                    flush=True,
                )
    caught = sum(r.test is not None for r in results)
    print(f"{caught} of {len(results)} faults are caught")
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    asked.out.write_text(json.dumps([r.to_json() for r in results], indent=1) + "\n", encoding="utf-8")
    return int(len(results) - caught > (ALLOWED if asked.only is None else 0))


if __name__ == "__main__":
    sys.exit(main())
