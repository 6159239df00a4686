"""Make the report's section of each stage: an explanation in plain English, then curves, numbers and samples."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from markupsafe import Markup

from tercet.evaluation.scoring.score_files import logged, scorer_label
from tercet.reporting import figures
from tercet.reporting.blocks import (
    CUT,
    EMPTY,
    FINISHED,
    Block,
    Cell,
    Chart,
    Charts,
    Exchange,
    Exchanges,
    Folded,
    Prose,
    Row,
    Said,
    Section,
    Table,
    charts,
    compact,
    listed,
    measured,
    plain,
    shorten,
)
from tercet.reporting.figures import Curve
from tercet.reporting.lineage import Member
from tercet.reporting.reward_blocks import trust
from tercet.training.settings import shares

BITS = "bits per byte"
GUESSING = 0.5  # accuracy on pairs of a reward model that knows nothing
SMOOTHED = "The thin line shows every step, the thick line a moving average."
UNFINISHED = {"running": "has not finished", "interrupted": "was interrupted", "failed": "failed"}


def curve(member: Member, key: str, name: str = "") -> Curve:
    """Return one metric of a run over its steps, as a curve to draw."""
    rows = [r for r in member.run.metrics(key) if isinstance(r[key], (int, float))]
    return Curve(name or member.label, [r["step"] for r in rows], [r[key] for r in rows])


def heldout_sources(member: Member) -> list[str]:
    """Return the sources whose held-out bits per byte the run measured, sorted."""
    keys = {key for row in member.run.metrics("heldout") for key in row if key.startswith("heldout/")}
    return sorted(key.removeprefix("heldout/") for key in keys)


def _per_run(members: Sequence[Member], parts: Callable[[Member, str], list[Block]]) -> list[Block]:
    """Return the blocks of all runs of a stage, under headings where there are several runs."""
    blocks: list[Block] = []
    for number, member in enumerate(members):
        if len(members) > 1:
            blocks.append(Prose(heading=member.label))
        blocks += [*_warnings([member]), *parts(member, f"{member.verb}{number}")]
    return blocks


def _warnings(members: Sequence[Member]) -> list[Block]:
    """Return a warning for every run that has not finished, with its error where it failed."""
    blocks: list[Block] = []
    for member in members:
        manifest = member.run.manifest
        if state := UNFINISHED.get(manifest["status"]):
            text = f"{member.label}: this run {state} after step {member.done:,}, so its numbers are not final."
            blocks.append(Prose(f"{text} {manifest.get('error', '')}".rstrip()))
    return blocks


def _over_steps(name: str, caption: str, unit: str, curves: Sequence[Curve], **look: Any) -> Chart | None:
    return figures.lines(name, caption, "step", unit, curves, **look)


def _loss_chart(member: Member, name: str, caption: str, unit: str = "loss (nats per token)") -> Chart | None:
    return _over_steps(f"{name}-loss", f"{caption} {SMOOTHED}", unit, [curve(member, "loss", "loss")], smooth=True)


# -- pretraining ------------------------------------------------------------------------------------------------


def pretraining(members: Sequence[Member]) -> Section:
    """Return the section of the base models."""
    lead = (
        "The model started with random weights and was trained on raw text to predict the next token. It was never "
        "told what a question or an answer is. The result is called the base model; it continues text.",
        "The measure is bits per byte: the number of bits that the model needs on average to encode one byte of "
        "held-out text. Lower is better, and a model that knows nothing needs 8. Held-out documents are never trained "
        "on, but short generated sentences may occur in both parts.",
    )
    return Section("pretrain", "Pretraining", lead, _per_run(members, _pretrain_run))


def against_counting(baselines: Mapping[str, Any]) -> Section:
    """Return the comparison with n-gram models on the same text, as a part of the section on pretraining."""
    sources = baselines.get("sources")
    return Section("pretrain", "Pretraining", (), _baselines(sources) if sources else [])


def _pretrain_run(member: Member, name: str) -> list[Block]:
    config, sources = member.run.config, heldout_sources(member)
    read = member.done * config["batch_size"] * config["context_length"]
    mixed = shares(tuple(config["mixture"]), "mixture") or {}
    parts = [f"{100 * share / sum(mixed.values()):.0f} % {source}" for source, share in mixed.items()]
    mixture = f": {listed(parts)}" if parts else ""
    blocks: list[Block] = [Prose(f"The model was trained on {compact(read)} tokens in {member.done:,} steps{mixture}.")]
    bits = [curve(member, f"heldout/{s}", s) for s in sources]
    blocks += charts(
        _loss_chart(member, name, "Training loss: the error in predicting the next token."),
        _over_steps(f"{name}-bits", "Held-out text of each source. Lower is better.", BITS, bits),
    )
    return [*blocks, *_heldout_table([member]), *_continuations(member)]


def _heldout_table(members: Sequence[Member]) -> list[Block]:
    """Return the table of bits per byte before and after, two columns per run, with intervals where recorded."""
    columns = ["source"]
    cells: dict[str, list[Cell]] = {source: [] for m in members for source in heldout_sources(m)}
    for member in members:
        of = f"{member.label}, " if len(members) > 1 else ""
        columns += [f"{of}first measurement", f"{of}last measurement"]
        measurements, final = member.run.metrics("heldout"), member.run.manifest.get("heldout") or {}
        for source, row in cells.items():
            key = f"heldout/{source}"
            first, last = (plain(measurements[i].get(key)) if measurements else EMPTY for i in (0, -1))
            row += [first, measured(final[source]) if source in final else last]
    rows = tuple(Row(source, tuple(row)) for source, row in cells.items())
    caption = f"Held-out text, {BITS}, with 95 % intervals where the run recorded them"
    return [Table(caption, tuple(columns), rows)] if rows else []


def _continuations(member: Member) -> list[Block]:
    """Return the model's continuations of the same texts at the first, a middle and the last measurement."""
    samples = member.run.read_lines("samples.jsonl")
    steps = sorted({s["step"] for s in samples})
    kept = {steps[0], steps[len(steps) // 2], steps[-1]} if steps else set()
    items = []
    for prompt in dict.fromkeys(s["prompt"] for s in samples):
        mine = [s for s in samples if s["prompt"] == prompt and s["step"] in kept]
        said = tuple(Said(f"after step {s['step']:,}", shorten(s["text"])) for s in mine)
        items.append(Exchange("", (("text to continue", shorten(prompt)),), said))
    caption = "The same texts, continued at different times during training"
    return [Exchanges(caption, tuple(items[:4]))] if items else []


def _baselines(sources: Mapping[str, Mapping[str, float]]) -> list[Block]:
    models = ("unigram", "bigram", "trigram", "xz", "model")
    names = {"xz": "xz (a file compressor)", "model": "this model"}
    names = {m: names.get(m, m) for m in models if any(m in values for values in sources.values())}
    rows = [Row(s, (*(plain(v.get(m)) for m in names), plain(v.get("bytes_per_token"), 2))) for s, v in sources.items()]
    heights = {name: [values.get(m) for values in sources.values()] for m, name in names.items()}
    caption = "The model, n-gram models and a file compressor on the same held-out text. Lower is better."
    explanation = (
        "Is that good? Counting tokens already predicts text. A unigram model knows how frequent each token is; a "
        "bigram model also looks at the token before, a trigram model at the two tokens before. xz is an ordinary file "
        "compressor. A language model should need fewer bits than all of them. Bytes per token is the amount of text "
        "that the tokenizer puts into one token."
    )
    return [
        Prose(explanation, heading="Compared with n-gram models"),
        *charts(figures.bars("baselines", caption, BITS, list(sources), heights)),
        Table(f"Held-out text, {BITS}", ("source", *names.values(), "bytes per token"), tuple(rows)),
    ]


# -- instruction tuning -----------------------------------------------------------------------------------------


def tuning(members: Sequence[Member]) -> Section:
    """Return the section of instruction tuning."""
    lead = (
        "The base model was trained on conversations: questions with good answers. It still predicts the next token, "
        "but only the assistant's words count. So it learns to answer a question instead of continuing it, and to stop "
        "when the answer is complete.",
        "Instruction tuning (SFT, supervised fine-tuning) mostly teaches the form of an answer. Most of the knowledge "
        "comes from pretraining.",
    )
    return Section("sft", "Instruction tuning", lead, _per_run(members, _sft_run))


def _sft_run(member: Member, name: str) -> list[Block]:
    heldout = curve(member, "heldout", "held-out conversations")
    caption = "Loss on held-out conversations. If it rises again, the model memorises the training conversations."
    blocks = charts(
        _loss_chart(member, name, "Training loss on the assistant's words."),
        _over_steps(f"{name}-heldout", caption, "loss (nats per token)", [heldout]),
    )
    measures = (
        ("heldout", "loss on held-out conversations", "nats per token; lower is better", False),
        ("exact_match", "right answers", "greedy answers that equal an accepted answer", True),
        ("finished", FINISHED, CUT, True),
    )
    rows = []
    for key, title, note, percent in measures:
        if values := member.run.metrics(key):
            rows.append(Row(title, tuple(plain(values[i][key], percent=percent) for i in (0, -1)), note))
    if rows:
        caption = "Before and after instruction tuning, measured during the run (no intervals)"
        blocks.append(Table(caption, ("measure", "before", "after"), tuple(rows)))
    return [*blocks, *_questions(member)]


def _questions(member: Member) -> list[Block]:
    """Return the model's answers to the same questions before and after tuning."""
    samples = member.run.read_lines("samples.jsonl")
    steps = sorted({s["step"] for s in samples})
    items = []
    for prompt, gold in itertools.islice(dict.fromkeys((s["prompt"], str(s.get("gold", ""))) for s in samples), 8):
        mine = [s for s in samples if s["prompt"] == prompt and s["step"] in (steps[0], steps[-1])]
        said = [Said(f"after step {s['step']:,}" if s["step"] else "before tuning", shorten(s["text"])) for s in mine]
        items.append(Exchange("", (("user", shorten(prompt)),), tuple(said), shorten(gold)))
    return [Exchanges("The same questions before and after", tuple(items))] if items else []


# -- preferences ------------------------------------------------------------------------------------------------


def ranking(members: Sequence[Member]) -> Section:
    """Return the section of the simulated rankings."""
    lead = (
        "The tuned model wrote several answers to each of many questions, and the answers to one question were ranked, "
        "best first. It is easier to say which of two answers is better than to write a perfect one or to grade one.",
        "The annotator is simulated: a fixed, published rubric plus random noise takes the place of people. No person "
        "has ranked these answers.",
    )
    return Section("annotate", "Rankings (simulated)", lead, _per_run(members, _annotate_run))


def _annotate_run(member: Member, name: str) -> list[Block]:
    blocks: list[Block] = []
    if rankings := member.run.manifest.get("rankings"):
        pairs, ties, temperature = rankings["pairs"], rankings["ties"], member.run.config["temperature"]
        numbers = (
            ("annotator", rankings["labeler"], ""),
            ("questions", f"{rankings['prompts']:,}", ""),
            ("answers to each question (K)", f"{rankings['answers']}", f"sampled at temperature {temperature:g}"),
            ("pairs of answers", f"{pairs:,}", "K answers make K·(K−1)/2 pairs"),
            ("tied pairs", f"{ties:,} ({100 * ties / max(1, pairs):.0f} %)", "of the same rank: they teach nothing"),
        )
        rows = tuple(Row(title, (Cell(text),), note) for title, text, note in numbers)
        blocks.append(Table("The simulated rankings", ("property", "value"), rows))
    ranked = [row for row in member.run.read_lines("rankings/train.jsonl") if len(set(row["ranks"])) > 1]
    items = []
    for row in sorted(ranked, key=lambda row: -len(set(row["ranks"])))[:3]:  # those with the most different ranks
        turns = [{"role": "user", "content": row["prompt"]}] if isinstance(row["prompt"], str) else row["prompt"]
        ordered = sorted(zip(row["ranks"], row["responses"]), key=lambda pair: int(pair[0]))
        said = tuple(Said(f"rank {rank}", shorten(answer)) for rank, answer in ordered)
        heading = f"ranked by: {row.get('labeler') or 'unnamed'} annotator"
        items.append(Exchange(heading, tuple((t["role"], shorten(t["content"])) for t in turns), said))
    if items:
        blocks.append(Exchanges("Examples of simulated rankings", tuple(items)))
    return blocks


def rewarding(members: Sequence[Member]) -> Section:
    """Return the section of the reward models."""
    lead = (
        "A copy of the tuned model got a new output, a single number: the reward. It learned to give the better-ranked "
        "of two answers the higher reward. This reward model replaces the annotator in the next stage, which needs "
        "scores for many more answers than an annotator could rank.",
        "Its accuracy is the share of held-out pairs that it puts in the annotator's order. Guessing gets 50 %. A rule "
        "that always prefers the longer answer gets the accuracy of the other dotted line. Only accuracy above both "
        "lines shows that the model learned something about the content.",
    )
    return Section("reward", "Reward model", lead, _per_run(members, _reward_run))


def _reward_run(member: Member, name: str) -> list[Block]:
    manifest, accuracy = member.run.manifest, curve(member, "heldout_accuracy", "reward model")
    longer = member.run.metrics("longer_wins")
    levels = {"guessing": GUESSING} | ({"the longer answer": longer[-1]["longer_wins"]} if longer else {})
    loss = "Training loss. A model that knows nothing has log 2 ≈ 0.69 per pair, less where answers are tied."
    right = "Share of held-out pairs in the annotator's order."
    blocks = charts(
        _loss_chart(member, name, loss, "ranking loss (nats per pair)"),
        _over_steps(f"{name}-accuracy", right, "accuracy", [accuracy], levels=levels, percent=True),
    )
    rows = []
    for key, title, note in (
        ("accuracy", "accuracy of the reward model", "held-out pairs in the annotator's order"),
        ("longer_wins", "accuracy of always preferring the longer answer", "the part that length alone explains"),
    ):
        if value := manifest.get(key):
            rows.append(Row(title, (measured(value, percent=True), Cell(f"{value['n']:,}")), note))
    if (mean := manifest.get("demonstrations_mean")) is not None:
        note = "shifted to 0, so that a reward above 0 beats the average demonstration"
        rows.append(Row("mean reward of the demonstrations", (plain(mean), EMPTY), note))
    if rows:
        blocks.append(Table("Held-out comparisons", ("measure", "value, 95 % interval", "questions"), tuple(rows)))
    return [*blocks, *trust(member.run, name)]


# -- RLHF -------------------------------------------------------------------------------------------------------

OBJECTIVE = Markup(  # a constant: nothing in it comes from a run
    "PPO maximises <span class='formula'>E[ r(x, y) − β · log( π(y|x) / π<sub>SFT</sub>(y|x) ) ] "
    "+ γ · E<sub>pretrain</sub>[ log π(x) ]</span>."
)
FOOLED = "If it falls while the reward rises, the policy exploits errors of the reward."
MAIN_PPO = (
    ("reward", "reward", "Mean reward of the answers, which PPO increases."),
    ("kl", "KL (nats per answer)", "Distance of the policy from the SFT model."),
)
MORE_PPO = (
    ("length", "tokens per answer", "Length of the answers."),
    ("finished", "share of answers", "Share of answers that the model ended itself."),
    ("entropy", "entropy (nats per token)", "Uncertainty of the policy at each token."),
    ("clip_fraction", "share of tokens", "Share of tokens whose probability moved beyond the clipping range."),
    ("explained_variance", "explained variance", "Share of the returns' variance that the critic predicts (1: all)."),
    ("value_loss", "value loss", "The critic's loss."),
    ("policy_loss", "policy loss", "PPO's clipped objective, as a loss."),
    ("grad_norm", "gradient norm", "Norm of the policy's gradient before clipping."),
    ("pretrain_loss", "loss (nats per token)", "The pretraining term: loss on raw text during PPO."),
    ("ptx_gradient_ratio", "ratio", "Norm of the pretraining gradient divided by that of the policy gradient."),
)
PPO_ROWS = (("kl", "KL (nats per answer)"), ("finished", FINISHED), ("length", "tokens per answer"))


def rlhf(members: Sequence[Member]) -> Section:
    """Return the section of PPO, with several runs in the same charts."""
    lead: list[str | Markup] = [
        "The tuned model, now called the policy, answered questions. The reward model scored the answers. PPO made "
        "answers with a high reward more likely, step by step. This is reinforcement learning from feedback: the model "
        "learns from scores of its own answers, not from answers to imitate.",
        OBJECTIVE,
        "The β term keeps the policy close to the SFT model, because far from it the reward model makes errors that "
        "the policy would exploit. The γ term adds pretraining text, so that the policy does not forget what "
        "pretraining taught it. Such forgetting is called the alignment tax.",
    ]
    if len({m.run.config["gamma"] > 0 for m in members}) > 1:
        lead.append(
            "The training was done twice: with the pretraining term (γ above 0) and without it (γ = 0). Compare both "
            "on held-out text."
        )
    settings = [
        f"{m.label}: β = {m.run.config['beta']:g}, γ = {m.run.config['gamma']:g}, {m.done:,} steps." for m in members
    ]
    blocks = [*_warnings(members), Prose(" ".join(settings))]

    def drawn(key: str, unit: str, caption: str) -> Chart | None:
        return _over_steps(f"ppo-{key}", caption, unit, [curve(m, key) for m in members], smooth=True)

    bits = drawn("heldout", f"{BITS}, mean of sources", "Held-out text. Lower is better; a rise is the alignment tax.")
    scores = [
        drawn(key, "score (0 to 1)", f"Mean score of the answers by the scorer {scorer_label(name)}. {FOOLED}")
        for key, name in _logged(members).items()
    ]
    reward, kl = (drawn(*spec) for spec in MAIN_PPO)
    blocks += charts(reward, *scores, kl, bits)
    blocks += [*_ppo_table(members), *_heldout_table(members)]
    if more := [c for spec in MORE_PPO if (c := drawn(*spec)) is not None]:
        summary = "More curves: length, entropy, clipping, critic, pretraining term"
        blocks.append(Folded(summary, (Charts(tuple(more)),)))
    return Section("ppo", "RLHF", tuple(lead), blocks)


def _logged(members: Sequence[Member]) -> dict[str, str]:
    """Return the metrics that are scores of answers, logged beside the reward, each with its scorer."""
    return logged(key for member in members for row in member.run.metrics("reward") for key in row)


def _ppo_table(members: Sequence[Member]) -> list[Block]:
    """Return the means of the first and the last five steps, two columns per run; single steps are too noisy."""
    rows = []
    scores = [(key, scorer_label(name)) for key, name in _logged(members).items()]
    for key, title in (("reward", "reward"), *scores, *PPO_ROWS):
        cells: list[Cell] = []
        for member in members:
            values: list[Any] = [r[key] for r in member.run.metrics(key)]
            means = [fmean(part) if part else None for part in (values[:5], values[-5:])]
            cells += [plain(mean, percent=key == "finished") for mean in means]
        if set(cells) != {EMPTY}:
            rows.append(Row(title, tuple(cells)))
    labels = [f"{m.label}, " if len(members) > 1 else "" for m in members]
    columns = [f"{label}{when}" for label in labels for when in ("first 5 steps", "last 5 steps")]
    caption = "Answers to training questions, means of the first and the last 5 steps"
    return [Table(caption, ("measure", *columns), tuple(rows))] if rows else []
