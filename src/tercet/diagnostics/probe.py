"""Fresh measurements of a run's newest checkpoint, on a few of the inputs that the run was made from (seconds)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import Any

import torch

from tercet.data.formats.conversations import read_conversations
from tercet.data.formats.feedback import labels, read_feedback
from tercet.data.formats.preferences import read_comparisons
from tercet.data.formats.prompts import read_prompts
from tercet.data.readers import BadRows, read_documents
from tercet.data.types import Comparison, Conversation
from tercet.diagnostics.findings import INF, Finding, judged, judged_kl
from tercet.errors import ContextError
from tercet.inference.chat import answer_params, fit_prompts
from tercet.inference.reward_scores import score_texts
from tercet.model.heads import ValueHeadModel
from tercet.model.transformer import Transformer
from tercet.posttraining.reward_model.rankings import Ranked, encode_answer, encode_comparison
from tercet.posttraining.reward_model.train import score_ranked
from tercet.posttraining.rl.rollouts import Clock, Rollouts, generate_rollouts, logprobs
from tercet.pretraining.causal import pack_documents
from tercet.tokenizer.bpe import Tokenizer
from tercet.tokenizer.chat_template import Rendered, render_fitting
from tercet.training.load import holds, load_language_model, load_reward_model
from tercet.training.loader import permuted
from tercet.training.losses import mean_loss
from tercet.training.packing import PackedSequences, pad_right
from tercet.training.run import Run, threads
from tercet.training.settings import REWARD_MODEL
from tercet.training.shared_prompts import pack_groups

PROMPTS, ANSWERS, LONGEST = 8, 4, 64  # what is sampled: prompts, answers to each, tokens of an answer
ROWS, COMPARISONS, DEMONSTRATIONS = 200, 32, 20_000  # what is read of the data


Probe = Callable[[Run, Any, Tokenizer], Iterator[Finding]]


def measure(run: Run, probe: Probe) -> Iterator[Finding]:
    """Load the newest checkpoint and measure it, with the stage's own `probe` where the stage itself made the weights.

    Raises TercetError, OSError where what it needs is not there.
    """
    with threads(run.config.get("threads", 1)):
        model = load_reward_model(run) if holds(run) == REWARD_MODEL else load_language_model(run)
        odd = sum(int((~torch.isfinite(t)).sum()) for t in model.state_dict().values())
        advice = "the weights have diverged: go back to an earlier checkpoint, and lower --lr"
        yield judged("weights that are not finite", odd, "0", advice, wrong=(0, 0))
        for role, parent in run.manifest["parents"].items():
            same = Run(run.path / parent["path"]).weights_hash() == parent["sha256"]
            advice = (
                "another reference or start than the run had: bring it back, or what follows is about another model"
            )
            yield judged(f"parent {role} is as it was", float(same), "1", advice, look=(1, 1))
        if odd == 0 and "merges" not in run.manifest:
            yield from probe(run, model, Tokenizer.load(run.path))


def _parent(run: Run) -> Transformer:
    return load_language_model(Run(run.path / run.manifest["parents"]["model"]["path"]))


# -- language models --------------------------------------------------------------------------------------------------


def probe_pretrain(run: Run, model: Transformer, tokenizer: Tokenizer) -> Iterator[Finding]:
    """Whether the model knows more than to guess."""
    texts = list(islice(read_documents(run.config["data"], BadRows(skip=True)), PROMPTS))
    rows = pack_documents(tokenizer, texts, model.config.context_length)
    few = PackedSequences(rows.tokens[:PROMPTS], rows.segments[:PROMPTS], rows.weights[:PROMPTS])
    loss, guess = mean_loss(model, few, PROMPTS), math.log(tokenizer.vocab_size)
    found = f"{loss:.3f} against {guess:.3f} nats a token"
    advice = "it knows no more than a guess among all tokens: more --steps, another --lr; check that the tokenizer is the one it learnt with"
    yield judged(
        "loss / that of guessing", loss / guess, "below 0.9", advice, look=(0, 0.9), wrong=(0, 1.05), found=found
    )


def probe_sft(run: Run, model: Transformer, tokenizer: Tokenizer) -> Iterator[Finding]:
    """What of the conversations is trained on, and what the model answers to them."""
    found = list(islice(read_conversations(run.config["data"], BadRows(skip=True)), ROWS))
    yield from mask(tokenizer, [c for _, c in found], model.config.context_length + 1)
    asked = [(w, c[: next(i for i, m in enumerate(c) if m.role == "assistant")]) for w, c in found]
    yield from sampling(run, model, None, tokenizer, asked)


def mask(tokenizer: Tokenizer, found: Sequence[Conversation], room: int) -> Iterator[Finding]:
    """Which tokens the conversations train: the assistant's words with their end, and nothing else that was not asked for."""
    counts = dict.fromkeys(("tokens", "trained", "turns", "ended", "others", "wrong"), 0)
    cut = lost = 0
    for conversation in found:
        try:
            rendered, left = render_fitting(tokenizer, conversation, room)
        except ContextError:
            lost += 1
            continue
        cut += left > 0
        for name, number in _count(rendered, conversation, tokenizer.im_end).items():
            counts[name] += number
    total = max(len(found), 1)
    if counts["tokens"]:
        advice = "all or none of the tokens are trained on: the mask was lost, as with a chat template without marks; see `tercet tokenizer show`"
        yield judged("tokens that are trained on", counts["trained"] / counts["tokens"], "between 0.05 and 0.95", advice,
                     look=(0.05, 0.95), wrong=(1e-6, 1 - 1e-6))  # fmt: skip
        advice = "the model learns to speak for the user: what others say has weight 0 unless a message's own weight says otherwise"
        yield judged(
            "others' tokens trained on unasked", counts["wrong"] / max(counts["others"], 1), "0", advice, wrong=(0, 0)
        )
    if counts["turns"]:
        end = tokenizer.token(tokenizer.im_end)
        advice = f"the end token is not trained on, so that answers never end: keep {end} in the mask, and pad with another token"
        yield judged(
            "turns whose end is trained on", counts["ended"] / counts["turns"], "1", advice, look=(1, 1), wrong=(0.5, 1)
        )
    advice = "much of the data is cut off: a longer context, or shorter conversations"
    yield judged("conversations cut", cut / total, "below 0.2", advice, look=(0, 0.2))
    yield judged("conversations left out", lost / total, "below 0.05", advice, look=(0, 0.05), wrong=(0, 0.5))


def _count(rendered: Rendered, conversation: Conversation, end: int) -> dict[str, int]:
    """How many tokens and turns are trained on. The n-th end token is that of the n-th message."""
    out = {
        "tokens": len(rendered),
        "trained": sum(w > 0 for w in rendered.weights),
        "turns": 0,
        "ended": 0,
        "others": 0,
        "wrong": 0,
    }
    begin = 0
    for message, stop in zip(conversation, (i for i, t in enumerate(rendered.tokens) if t == end)):
        words, last = sum(w > 0 for w in rendered.weights[begin:stop]), rendered.weights[stop] > 0
        if message.role == "assistant":
            out["turns"] += words > 0
            out["ended"] += words > 0 and last
        elif message.weight is None:
            out["others"] += stop + 1 - begin
            out["wrong"] += words + last
        begin = stop + 1
    return out


def probe_policy(run: Run, model: Transformer, tokenizer: Tokenizer) -> Iterator[Finding]:
    """What the policy samples on its prompts, beside the reference."""
    asked = [(w, p) for w, p, _ in islice(read_prompts(run.config["prompts"], BadRows(skip=True)), PROMPTS)]
    yield from sampling(run, model, _parent(run), tokenizer, asked)


def sampling(run: Run, model: Transformer, reference: Transformer | None, tokenizer: Tokenizer,
             asked: Sequence[tuple[str, Conversation]]) -> Iterator[Finding]:  # fmt: skip
    """Sample a few answers: do they end, does the trainer find the sampler's log-probabilities, how far is the reference?"""
    limit = min(run.config["max_new_tokens"], LONGEST, model.config.context_length // 2)
    temperature, prompts = run.config.get("temperature", 1.0), []
    for one in asked[:PROMPTS]:
        with suppress(ContextError):  # a conversation that is cut in training may begin with a question as long as that
            prompts += fit_prompts(tokenizer, [one], model.config.context_length, limit)
    if not prompts:
        return
    rollouts, done = generate_rollouts(
        model, reference, prompts, answer_params(tokenizer, limit, temperature), range(len(prompts) * ANSWERS), lambda _, d: [0.0] * len(d),
        group_size=ANSWERS, end_id=tokenizer.im_end, missing_eos_score=0.0, pad=tokenizer.pad, version=0, clock=Clock(),
    )  # fmt: skip
    ended = sum(c.tokens[-1] == tokenizer.im_end for c in done) / len(done)
    advice = f"answers run into the limit of {limit} tokens: tune longer, or allow more with --max-new-tokens"
    # a model that is still being tuned may learn it yet
    wrong = (0.02, INF) if reference is not None else (-INF, INF)
    yield judged("fresh answers that end themselves", ended, "near 1", advice, look=(0.8, INF), wrong=wrong)
    difference = (logprobs(model, rollouts, temperature) - rollouts.behaviour)[rollouts.action_mask]
    advice = "sampler and trainer do not compute the same model: temperature, cache, positions, precision"
    yield judged(
        "sampler − trainer, fresh (largest)",
        float(difference.abs().max()),
        "below 1e-4",
        advice,
        look=(0, 1e-4),
        wrong=(0, 1e-3),
    )
    ratio = float(difference.exp()[difference.abs().argmax()])
    yield judged("ratio before an update, fresh", ratio, "1", advice, look=(0.9999, 1.0001), wrong=(0.999, 1.001))
    yield _first_tokens(model, prompts, rollouts, temperature)
    if reference is not None:
        yield from _kl(rollouts)


@torch.no_grad()
def _first_tokens(
    model: Transformer, prompts: Sequence[Sequence[int]], rollouts: Rollouts, temperature: float
) -> Finding:
    """Answers to one prompt must not all begin alike, unless the model is that sure."""
    first = rollouts.tokens[:, 1:].gather(1, rollouts.action_mask.int().argmax(1, keepdim=True)).view(-1, ANSWERS)
    differ = float((first != first[:, :1]).any(1).float().mean())
    tokens, lengths = pad_right(prompts, 0)
    hidden = model.hidden(tokens)[torch.arange(len(prompts)), lengths - 1]
    alike = ((hidden @ model.output_weight.T).double() / temperature).softmax(-1).pow(ANSWERS).sum(1)
    chance = float(alike.prod())  # that no group differs, with independent draws
    advice = "the answers of a group share their first token: the random numbers of its answers are not independent"
    limit = 1e-9 if chance < 1e-3 else 0.0
    return judged(
        "groups whose first tokens differ", differ, f"about {1 - float(alike.mean()):.2f}", advice, wrong=(limit, 1)
    )


def _kl(rollouts: Rollouts) -> Iterator[Finding]:
    """Both estimates of the KL, per answer."""
    k1, k3 = rollouts.kl().sum(1).double(), rollouts.k3().sum(1).double()
    yield judged_kl("KL to the reference, fresh k1", float(k1.mean()), float(k1.std()) / math.sqrt(len(k1)))
    advice = "policy and reference are measured on different tokens"
    yield judged("KL to the reference, fresh k3", float(k3.mean()), "0 or more", advice, wrong=(-1e-6, INF))


# -- preferences ------------------------------------------------------------------------------------------------------


def probe_dpo(run: Run, model: Transformer, tokenizer: Tokenizer) -> Iterator[Finding]:
    """How likely the chosen and the rejected answers have become, beside the model that training began from."""
    found = []
    for _, item in islice(read_feedback(run.config["data"], BadRows(skip=True)), COMPARISONS):
        row = item if isinstance(item, Comparison) else Comparison(item.prompt, (item.response,), (1,))
        if max(map(len, (ids := encode_comparison(tokenizer, row)).texts)) <= model.config.context_length:
            found.append((ids, labels(item)))
    before, now = (_logprobs(m, [ids for ids, _ in found]) for m in (_parent(run), model))
    moved = [(label, float(x)) for (_, mine), a, b in zip(found, now, before) for label, x in zip(mine, a - b)]
    for kind, name in ((True, "chosen"), (False, "rejected")):
        if mine := [x for label, x in moved if label is kind]:
            advice = "what people chose is being unlearnt: a larger --beta, a lower --lr, fewer --steps, or --loss orpo"
            yield judged(f"log-probability of the {name}, change", sum(mine) / len(mine), "not down" if kind else "down", advice,
                         look=(-2.0 if kind else -INF, INF))  # fmt: skip
    pairs = [float(a[i] - b[i] > a[j] - b[j]) for (ids, _), a, b in zip(found, now, before) for i, j in ids.pairs]
    if pairs:
        advice = "training has hardly moved towards what was chosen; below 0.5 chosen and rejected may be swapped"
        yield judged(
            "pairs moved the right way", sum(pairs) / len(pairs), "above 0.6", advice, look=(0.6, 1), wrong=(0.3, 1)
        )


@torch.no_grad()
def _logprobs(model: Transformer, rows: Sequence[Ranked]) -> list[torch.Tensor]:
    return [pack_groups([r.prompt], [r.answers]).logprobs(model) for r in rows]


def probe_reward(run: Run, model: ValueHeadModel, tokenizer: Tokenizer) -> Iterator[Finding]:
    """The scale of the scores, where demonstrations lie, and whether filling or packing changes a score."""
    rows = islice(read_comparisons(run.config["heldout"] or run.config["data"], BadRows(skip=True)), COMPARISONS)
    found = [encode_comparison(tokenizer, c) for _, c in rows]
    found = [p for p in found if max(map(len, p.texts)) <= model.config.context_length]
    grouped = torch.tensor([s for scores in score_ranked(model, found) for s in scores])
    texts = [t for p in found for t in p.texts]
    alone = torch.tensor([score_texts(model, [t], tokenizer.pad)[0] for t in texts])
    filled = torch.tensor(score_texts(model, texts, tokenizer.pad))
    spread = float(grouped.std())
    worst = float(torch.stack([grouped - alone, filled - alone]).abs().max()) / max(spread, 1e-9)
    advice = "the score of a text depends on what is beside it: filling, positions or the attention mask"
    yield judged(
        "filling and packing change a score by",
        worst,
        "below 1e-3 of the spread",
        advice,
        look=(0, 1e-3),
        wrong=(0, 1e-2),
    )
    done = run.manifest["status"] == "finished"  # scores are put on a scale at the end
    advice = "all answers score nearly alike, or wildly: RL's beta and missing_eos_score are meant for a spread of 1"
    yield judged(
        "spread of the scores", spread, "about 1", advice, look=(0.3, 3) if done else (0, INF), wrong=(1e-3, 100)
    )
    if run.config["demonstrations"]:
        told = [
            c for _, c in islice(read_conversations(run.config["demonstrations"], BadRows(skip=True)), DEMONSTRATIONS)
        ]
        some = [told[permuted(i, len(told), (run.config["seed"], 3))] for i in range(min(len(told), 2 * COMPARISONS))]
        shown = [
            encode_answer(tokenizer, c[:i], m.content) for c in some for i, m in enumerate(c) if m.role == "assistant"
        ]
        scores = torch.tensor(
            score_texts(model, [t for t in shown if len(t) <= model.config.context_length], tokenizer.pad)
        )
        mean, noise = float(scores.mean()), float(scores.std()) / math.sqrt(len(scores))
        advice = "demonstrations shall score 0: train again with --demonstrations, to the end"
        limit = 0.1 + 3 * noise if done else INF
        yield judged(
            "fresh score of demonstrations",
            mean,
            "about 0",
            advice,
            look=(-limit, limit),
            found=f"{mean:.3f} ± {noise:.3f}",
        )
