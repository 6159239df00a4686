"""Measurements of a run's newest checkpoint on a few of the run's own inputs. They take seconds."""

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
from tercet.diagnostics.findings import INF, SAMPLER_ADVICE, Finding, judged, judged_kl
from tercet.errors import ContextError
from tercet.inference.chat import answer_params, fit_prompts
from tercet.inference.reward_scores import last_hidden, score_texts
from tercet.model.heads import ValueHeadModel
from tercet.model.transformer import Transformer
from tercet.posttraining.reward_model.rankings import Ranked, encode_answer, encode_comparison
from tercet.posttraining.reward_model.train import score_ranked
from tercet.posttraining.rl.rollouts import Clock, Rollouts, generate_rollouts, logprobs
from tercet.pretraining.causal import pack_documents
from tercet.tokenizer.bpe import Tokenizer
from tercet.tokenizer.chat_template import Rendered, render_fitting
from tercet.training.load import load_language_model, load_reward_model
from tercet.training.loader import permuted
from tercet.training.losses import mean_loss
from tercet.training.packing import PackedSequences
from tercet.training.run import Run, threads
from tercet.training.settings import REWARD_MODEL
from tercet.training.shared_prompts import pack_groups
from tercet.training.stage import holds

PROMPTS, ANSWERS, MAX_ANSWER_TOKENS = 8, 4, 64  # sampled: prompts, answers to each, tokens of an answer
ROWS, COMPARISONS, DEMONSTRATIONS = 200, 32, 20_000  # most rows that are read of the data


Probe = Callable[[Run, Any, Tokenizer], Iterator[Finding]]


def probe_run(run: Run, probe: Probe) -> Iterator[Finding]:
    """Load the newest checkpoint and measure it, at the end with the stage's own `probe`.

    The stage's probe is left out for weights that the stage did not train, such as a merge. Raises TercetError or
    OSError if a file that it needs is missing or damaged.
    """
    with threads(run.config.get("threads", 1)):
        model = load_reward_model(run) if holds(run) == REWARD_MODEL else load_language_model(run)
        odd = sum(int((~torch.isfinite(t)).sum()) for t in model.state_dict().values())
        advice = "Training has diverged. Start a new run with a lower --lr"
        yield judged("weights that are not finite", odd, "0", advice, wrong=(0, 0))
        for role, parent in run.manifest["parents"].items():
            same = Run(run.path / parent["path"]).weights_hash() == parent["sha256"]
            advice = "The model has changed since training, so later findings are about another model. Restore it"
            name, found = f"weights of the parent {role}", "unchanged" if same else "changed"
            yield judged(name, float(same), "unchanged", advice, look=(1, 1), found=found)
        if odd == 0 and "merges" not in run.manifest:
            yield from probe(run, model, Tokenizer.load(run.path))


def _parent(run: Run) -> Transformer:
    return load_language_model(Run(run.path / run.manifest["parents"]["model"]["path"]))


# -- language models --------------------------------------------------------------------------------------------------


def probe_pretrain(run: Run, model: Transformer, tokenizer: Tokenizer) -> Iterator[Finding]:
    """Measure whether the model predicts text better than a uniform guess over all tokens."""
    texts = list(islice(read_documents(run.config["data"], BadRows(skip=True)), PROMPTS))
    rows = pack_documents(tokenizer, texts, model.config.context_length)
    few = PackedSequences(rows.tokens[:PROMPTS], rows.segments[:PROMPTS], rows.weights[:PROMPTS])
    loss, guess = mean_loss(model, few, PROMPTS), math.log(tokenizer.vocab_size)
    found = f"{loss:.3f} against {guess:.3f} nats per token"
    advice = (
        "The model predicts no better than a guess among all tokens. Use more --steps or another --lr, and check that "
        "the tokenizer is the one it was trained with"
    )
    name = "loss / loss of guessing"
    yield judged(name, loss / guess, "below 0.9", advice, look=(0, 0.9), wrong=(0, 1.05), found=found)


def probe_sft(run: Run, model: Transformer, tokenizer: Tokenizer) -> Iterator[Finding]:
    """Measure which tokens of the conversations are trained on, and sample answers to their first messages."""
    rows = list(islice(read_conversations(run.config["data"], BadRows(skip=True)), ROWS))
    yield from check_mask(tokenizer, [c for _, c in rows], model.config.context_length + 1)
    prompts = [(w, c[: next(i for i, m in enumerate(c) if m.role == "assistant")]) for w, c in rows]
    yield from check_samples(run, model, None, tokenizer, prompts)


def check_mask(tokenizer: Tokenizer, rows: Sequence[Conversation], room: int) -> Iterator[Finding]:
    """Check that the assistant's words and end tokens are trained on, and others' words only on request.

    `room` is the number of tokens that a conversation may have; longer ones are cut, or left out.
    """
    counts = dict.fromkeys(("tokens", "trained", "turns", "ended", "others", "wrong"), 0)
    cut = lost = 0
    for conversation in rows:
        try:
            rendered, left = render_fitting(tokenizer, conversation, room)
        except ContextError:
            lost += 1
            continue
        cut += left > 0
        for name, number in _count(rendered, conversation, tokenizer.im_end).items():
            counts[name] += number
    total = max(len(rows), 1)
    if counts["tokens"]:
        advice = (
            "All tokens are trained on, or none, so the mask was lost. A chat template without marks does that; see "
            "`tercet tokenizer show`"
        )
        name, share = "share of tokens that are trained on", counts["trained"] / counts["tokens"]
        yield judged(name, share, "0.05 to 0.95", advice, look=(0.05, 0.95), wrong=(1e-6, 1 - 1e-6))
        advice = (
            "The model learns to speak for the user. Messages of other roles must have weight 0, unless the "
            "row gives them one"
        )
        name, share = "share of other roles' tokens that are trained on", counts["wrong"] / max(counts["others"], 1)
        yield judged(name, share, "0", advice, wrong=(0, 0))
    if counts["turns"]:
        end = tokenizer.token(tokenizer.im_end)
        advice = f"The end token {end} is not trained on, so answers never end. Keep it in the mask; pad with another"
        name, share = "share of answers whose end token is trained on", counts["ended"] / counts["turns"]
        yield judged(name, share, "1", advice, look=(1, 1), wrong=(0.5, 1))
    advice = "Much of the data is lost. Use a model with a longer context, or shorter conversations"
    yield judged("share of conversations that are cut", cut / total, "below 0.2", advice, look=(0, 0.2))
    name, look, wrong = "share of conversations that are left out", (0, 0.05), (0, 0.5)
    yield judged(name, lost / total, "below 0.05", advice, look=look, wrong=wrong)


def _count(rendered: Rendered, conversation: Conversation, end: int) -> dict[str, int]:
    """Count the tokens and turns that are trained on. The n-th end token is that of the n-th message."""
    out = {"tokens": len(rendered), "trained": sum(w > 0 for w in rendered.weights)}
    out |= dict.fromkeys(("turns", "ended", "others", "wrong"), 0)
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
    """Sample answers to the run's prompts, and compare policy and reference on them."""
    prompts = [(w, p) for w, p, _ in islice(read_prompts(run.config["prompts"], BadRows(skip=True)), PROMPTS)]
    yield from check_samples(run, model, _parent(run), tokenizer, prompts)


def check_samples(
    run: Run,
    model: Transformer,
    reference: Transformer | None,
    tokenizer: Tokenizer,
    conversations: Sequence[tuple[str, Conversation]],
) -> Iterator[Finding]:
    """Sample a few answers, and check whether they end, the sampler against the trainer, and the KL to the reference.

    `conversations` are prompts with the places that they come from. Prompts that do not fit the context are left out.
    """
    limit = min(run.config["max_new_tokens"], MAX_ANSWER_TOKENS, model.config.context_length // 2)
    temperature, prompts = run.config.get("temperature", 1.0), []
    for one in conversations[:PROMPTS]:
        with suppress(ContextError):  # training cuts such a conversation; it is no reason to stop here
            prompts += fit_prompts(tokenizer, [one], model.config.context_length, limit)
    if not prompts:
        return
    params, seeds = answer_params(tokenizer, limit, temperature), range(len(prompts) * ANSWERS)
    rollouts, done = generate_rollouts(
        model,
        reference,
        prompts,
        params,
        seeds,
        lambda _, d: [0.0] * len(d),
        group_size=ANSWERS,
        end_id=tokenizer.im_end,
        missing_eos_score=0.0,
        pad=tokenizer.pad,
        version=0,
        clock=Clock(),
    )
    ended = sum(c.tokens[-1] == tokenizer.im_end for c in done) / len(done)
    advice = f"Answers reach the limit of {limit} tokens. Train with more --steps, or raise --max-new-tokens"
    # a model that is still in sft may learn it yet
    wrong = (0.02, INF) if reference is not None else (-INF, INF)
    yield judged("share of new samples that end by themselves", ended, "near 1", advice, look=(0.8, INF), wrong=wrong)
    difference = (logprobs(model, rollouts, temperature) - rollouts.behaviour)[rollouts.action_mask]
    name, largest = "log-probability of new samples, sampler − trainer", float(difference.abs().max())
    yield judged(name, largest, "below 1e-4", SAMPLER_ADVICE, look=(0, 1e-4), wrong=(0, 1e-3))
    name, ratio = "probability ratio of new samples", float(difference.exp()[difference.abs().argmax()])
    yield judged(name, ratio, "1", SAMPLER_ADVICE, look=(0.9999, 1.0001), wrong=(0.999, 1.001))
    yield _first_tokens(model, prompts, rollouts, temperature)
    if reference is not None:
        yield from _kl(rollouts)


@torch.no_grad()
def _first_tokens(
    model: Transformer, prompts: Sequence[Sequence[int]], rollouts: Rollouts, temperature: float
) -> Finding:
    """Check that answers to one prompt do not all begin alike, unless the model is that sure."""
    first = rollouts.tokens[:, 1:].gather(1, rollouts.action_mask.int().argmax(1, keepdim=True)).view(-1, ANSWERS)
    differ = float((first != first[:, :1]).any(1).float().mean())
    hidden = last_hidden(model, prompts, 0)
    alike = ((hidden @ model.output_weight.T).double() / temperature).softmax(-1).pow(ANSWERS).sum(1)
    chance = float(alike.prod())  # that no group differs, with independent draws
    advice = "All answers to a prompt begin with the same token. Their random numbers are not independent"
    name, limit = "share of prompts whose answers begin differently", 1e-9 if chance < 1e-3 else 0.0
    return judged(name, differ, f"about {1 - float(alike.mean()):.2f}", advice, wrong=(limit, 1))


def _kl(rollouts: Rollouts) -> Iterator[Finding]:
    """Check both estimates of the KL to the reference, in nats per answer."""
    k1, k3 = rollouts.kl().sum(1).double(), rollouts.k3().sum(1).double()
    yield judged_kl("KL to the reference on new samples, by k1", float(k1.mean()), float(k1.std()) / math.sqrt(len(k1)))
    advice = "k3 cannot be negative. Policy and reference are measured on different tokens"
    yield judged("KL to the reference on new samples, by k3", float(k3.mean()), "0 or more", advice, wrong=(-1e-6, INF))


# -- preferences ------------------------------------------------------------------------------------------------------


def probe_dpo(run: Run, model: Transformer, tokenizer: Tokenizer) -> Iterator[Finding]:
    """Measure how the log-probabilities of chosen and rejected answers have changed since the start of training."""
    encoded = []
    for _, item in islice(read_feedback(run.config["data"], BadRows(skip=True)), COMPARISONS):
        row = item if isinstance(item, Comparison) else Comparison(item.prompt, (item.response,), (1,))
        if max(map(len, (ids := encode_comparison(tokenizer, row)).texts)) <= model.config.context_length:
            encoded.append((ids, labels(item)))
    before, now = (_logprobs(m, [ids for ids, _ in encoded]) for m in (_parent(run), model))
    moved = [(label, float(x)) for (_, mine), a, b in zip(encoded, now, before) for label, x in zip(mine, a - b)]
    advice = "The model unlearns the chosen answers. Use a larger --beta, a lower --lr, fewer --steps, or --loss orpo"
    for chosen, name, normal, lowest in (
        (True, "change in log-probability of the chosen answers", "not falling", -2.0),
        (False, "change in log-probability of the rejected answers", "falling", -INF),
    ):
        if mine := [x for label, x in moved if label is chosen]:
            yield judged(name, sum(mine) / len(mine), normal, advice, look=(lowest, INF))
    pairs = [float(a[i] - b[i] > a[j] - b[j]) for (ids, _), a, b in zip(encoded, now, before) for i, j in ids.pairs]
    if pairs:
        advice = "Training has hardly moved towards the chosen answers. Below 0.5, chosen and rejected may be swapped"
        name, share = "share of pairs that moved the right way", sum(pairs) / len(pairs)
        yield judged(name, share, "above 0.6", advice, look=(0.6, 1), wrong=(0.3, 1))


@torch.no_grad()
def _logprobs(model: Transformer, rows: Sequence[Ranked]) -> list[torch.Tensor]:
    return [pack_groups([r.prompt], [r.answers]).logprobs(model) for r in rows]


def probe_reward(run: Run, model: ValueHeadModel, tokenizer: Tokenizer) -> Iterator[Finding]:
    """Measure the spread of the scores, the score of demonstrations, and whether padding or packing changes a score."""
    rows = islice(read_comparisons(run.config["heldout"] or run.config["data"], BadRows(skip=True)), COMPARISONS)
    pairs = [encode_comparison(tokenizer, c) for _, c in rows]
    pairs = [p for p in pairs if max(map(len, p.texts)) <= model.config.context_length]
    packed = torch.tensor([s for scores in score_ranked(model, pairs) for s in scores])
    texts = [t for p in pairs for t in p.texts]
    alone = torch.tensor([score_texts(model, [t], tokenizer.pad)[0] for t in texts])
    padded = torch.tensor(score_texts(model, texts, tokenizer.pad))
    spread = float(packed.std())
    worst = float(torch.stack([packed - alone, padded - alone]).abs().max()) / max(spread, 1e-9)
    advice = "The score of a text depends on the texts beside it. Padding, positions or the attention mask are wrong"
    name = "change of a score by padding or packing / spread of the scores"
    yield judged(name, worst, "below 1e-3", advice, look=(0, 1e-3), wrong=(0, 1e-2))
    done = run.manifest["status"] == "finished"  # scores are put on a scale at the end
    advice = (
        "All answers score nearly alike, or their scores differ wildly. RL's default --beta is meant for a spread of 1"
    )
    look = (0.3, 3) if done else (0, INF)
    yield judged("spread of the scores", spread, "about 1", advice, look=look, wrong=(1e-3, 100))
    if run.config["demonstrations"]:
        demonstrations = read_conversations(run.config["demonstrations"], BadRows(skip=True))
        whole = [c for _, c in islice(demonstrations, DEMONSTRATIONS)]
        some = [
            whole[permuted(i, len(whole), (run.config["seed"], 3))] for i in range(min(len(whole), 2 * COMPARISONS))
        ]
        answers = [
            encode_answer(tokenizer, c[:i], m.content) for c in some for i, m in enumerate(c) if m.role == "assistant"
        ]
        answers = [t for t in answers if len(t) <= model.config.context_length]
        scores = torch.tensor(score_texts(model, answers, tokenizer.pad))
        mean, noise = float(scores.mean()), float(scores.std()) / math.sqrt(len(scores))
        advice = "Demonstrations must score about 0. Train again with --demonstrations, to the last step"
        limit, found = 0.1 + 3 * noise if done else INF, f"{mean:.3f} ± {noise:.3f}"
        yield judged("score of demonstrations now", mean, "about 0", advice, look=(-limit, limit), found=found)
