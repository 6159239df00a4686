"""One section for each stage: what it did to the model in plain English, its curves, its numbers and its samples."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import Any

from markupsafe import Markup

from tercet.evaluation.scoring.score_files import logged, scorer_label
from tercet.reporting import figures
from tercet.reporting.blocks import (
    EMPTY,
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
GUESSING = 0.5  # a judge of pairs that knows nothing


def curve(member: Member, key: str, name: str = "") -> Curve:
    """One key of a run's metrics over its steps."""
    rows = [r for r in member.run.metrics(key) if isinstance(r[key], (int, float))]
    return Curve(name or member.label, [r["step"] for r in rows], [r[key] for r in rows])


def heldout_sources(member: Member) -> list[str]:
    """The sources whose held-out bits per byte the run measured."""
    keys = {key for row in member.run.metrics("heldout") for key in row if key.startswith("heldout/")}
    return sorted(key.removeprefix("heldout/") for key in keys)


def _per_run(members: Sequence[Member], parts: Callable[[Member, str], list[Block]]) -> list[Block]:
    """The blocks of every run of a stage, each under its name where there are several."""
    blocks: list[Block] = []
    for number, member in enumerate(members):
        if len(members) > 1:
            blocks.append(Prose(heading=member.label))
        if (status := member.run.manifest["status"]) != "finished":
            error = member.run.manifest.get("error", "")
            blocks.append(Prose(f"This run is {status} after step {member.done:,}: its numbers are not final. {error}"))
        blocks += parts(member, f"{member.verb}{number}")
    return blocks


def _loss_chart(member: Member, name: str, caption: str) -> Chart | None:
    return figures.lines(name, caption, "step", "loss (nats per token)", [curve(member, "loss", "loss")], smooth=True)


# -- pretraining ------------------------------------------------------------------------------------------------


def pretraining(members: Sequence[Member]) -> Section:
    """The base model."""
    lead = (
        "The model began as random numbers and read raw text, with one task only: guess the next token. Nobody told it what a question or an answer is, "
        "so what comes out, the base model, continues text.",
        "Its measure is bits per byte: how many bits the model needs on average to write down one byte of text kept aside (documents; short generated sentences may stand in both). Lower is better; "
        "8 would be knowing nothing at all.",
    )
    return Section("pretrain", "Pretraining", lead, _per_run(members, _pretrain_run))


def against_counting(baselines: Mapping[str, Any]) -> Section:
    """What counting alone gets on the same text; a part of the section on pretraining."""
    sources = baselines.get("sources")
    return Section("pretrain", "Pretraining", (), _baselines(sources) if sources else [])


def _pretrain_run(member: Member, name: str) -> list[Block]:
    config, sources = member.run.config, heldout_sources(member)
    read = member.done * config["batch_size"] * config["context_length"]
    mixed = shares(tuple(config["mixture"]), "mixture") or {}
    mixture = (
        f": {listed([f'{100 * share / sum(mixed.values()):.0f} % {source}' for source, share in mixed.items()])}"
        if mixed
        else ""
    )
    blocks: list[Block] = [Prose(f"It read {compact(read)} tokens in {member.done:,} steps{mixture}.")]
    blocks += charts(
        _loss_chart(member, f"{name}-loss", "Training loss: the surprise at each next token. Thin: every step; thick: moving average."),
        figures.lines(
            f"{name}-bits", "Held-out text of each source, never trained on. Lower is better.", "step", BITS,
            [curve(member, f"heldout/{s}", s) for s in sources],
        ),
    )  # fmt: skip
    return [*blocks, *_heldout_table([member]), *_continuations(member)]


def _heldout_table(members: Sequence[Member]) -> list[Block]:
    """Bits per byte before and after, two columns a run: with intervals where the run recorded them."""
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
    return (
        [Table(f"Held-out text, {BITS}, with 95 % intervals where the run recorded them", tuple(columns), rows)]
        if rows
        else []
    )


def _continuations(member: Member) -> list[Block]:
    """What the model wrote after the same prompts at the first, a middle and the last measurement."""
    samples = member.run.read_lines("samples.jsonl")
    steps = sorted({s["step"] for s in samples})
    shown = sorted({steps[0], steps[len(steps) // 2], steps[-1]}) if steps else []
    items = []
    for prompt in dict.fromkeys(s["prompt"] for s in samples):
        said = [
            Said(f"after step {s['step']:,}", shorten(s["text"]))
            for s in samples
            if s["prompt"] == prompt and s["step"] in shown
        ]
        items.append(Exchange("", (("text to continue", shorten(prompt)),), tuple(said)))
    return (
        [Exchanges("The same beginnings, continued at different times of training", tuple(items[:4]))] if items else []
    )


def _baselines(sources: Mapping[str, Mapping[str, float]]) -> list[Block]:
    counted = ("unigram", "bigram", "trigram", "xz", "model")
    kinds = [k for k in counted if any(k in values for values in sources.values())]
    rows = [Row(s, (*(plain(v.get(k)) for k in kinds), plain(v.get("bytes_per_token"), 2))) for s, v in sources.items()]
    names = {"model": "this model", "xz": "xz (a file compressor)"}
    return [
        Prose(
            "Is that good? Counting alone already predicts text: a unigram knows how frequent each token is, a bigram looks one token back, a trigram "
            "two. xz is an ordinary file compressor. A language model should need fewer bits than all of them. Bytes per token says how much text "
            "the tokenizer puts into one token.",
            heading="Against counting",
        ),
        *charts(
            figures.bars(
                "baselines", "The model beside counting models and a compressor, on the same held-out text. Lower is better.", BITS,
                list(sources), {names.get(k, k): [v.get(k) for v in sources.values()] for k in kinds},
            )
        ),
        Table(f"Held-out text, {BITS}", ("source", *(names.get(k, k) for k in kinds), "bytes per token"), tuple(rows)),
    ]  # fmt: skip


# -- instruction tuning -----------------------------------------------------------------------------------------


def tuning(members: Sequence[Member]) -> Section:
    """From continuing text to answering."""
    lead = (
        "The base model was shown conversations: questions with good answers. The task is still to guess the next token, but only the assistant's "
        "words count, so the model learns to answer a question rather than to go on with it, and to stop when the answer is complete.",
        "Instruction tuning (SFT, supervised fine-tuning) mostly brings out, in the form of an answer, what pretraining has put in.",
    )
    return Section("sft", "Instruction tuning", lead, _per_run(members, _sft_run))


def _sft_run(member: Member, name: str) -> list[Block]:
    heldout = curve(member, "heldout", "held-out conversations")
    blocks = charts(
        _loss_chart(member, f"{name}-loss", "Training loss on the assistant's words. Thin: every step; thick: moving average."),
        figures.lines(f"{name}-heldout", "Loss on conversations kept aside. If it rises again, the model learns by heart.", "step",
                      "loss (nats per token)", [heldout]),
    )  # fmt: skip
    measures = (
        ("heldout", "loss on held-out conversations", "nats per token, lower is better", False),
        ("exact_match", "right answers", "greedy answers that equal an accepted one", True),
        ("finished", "answers the model ended itself", "instead of running into the limit of length", True),
    )
    rows = []
    for key, title, note, percent in measures:
        if found := member.run.metrics(key):
            rows.append(Row(title, tuple(plain(found[i][key], percent=percent) for i in (0, -1)), note))
    if rows:
        caption = "Before and after instruction tuning, as the run itself measured (without intervals)"
        blocks.append(Table(caption, ("measure", "before", "after"), tuple(rows)))
    return [*blocks, *_questions(member)]


def _questions(member: Member) -> list[Block]:
    """The same questions as the model answered them before and after."""
    samples = member.run.read_lines("samples.jsonl")
    steps = sorted({s["step"] for s in samples})
    items = []
    for prompt, gold in itertools.islice(dict.fromkeys((s["prompt"], str(s.get("gold", ""))) for s in samples), 8):
        asked = [s for s in samples if s["prompt"] == prompt and s["step"] in (steps[0], steps[-1])]
        said = tuple(
            Said(f"after step {s['step']:,}" if s["step"] else "before tuning", shorten(s["text"])) for s in asked
        )
        items.append(Exchange("", (("user", shorten(prompt)),), said, shorten(gold)))
    return [Exchanges("The same questions before and after", tuple(items))] if items else []


# -- preferences ------------------------------------------------------------------------------------------------


def ranking(members: Sequence[Member]) -> Section:
    """The rankings, which no person made."""
    lead = (
        "The tuned model wrote several answers to each of many questions, and the answers to one question were put in order, best first. It is easier "
        "to say which of two answers is better than to write a perfect one, or to give it a mark.",
        "The annotator here is simulated: a fixed, published rubric plus random noise plays the people. No person has seen these answers.",
    )
    return Section("annotate", "Rankings (simulated)", lead, _per_run(members, _rank_run))


def _rank_run(member: Member, name: str) -> list[Block]:
    blocks: list[Block] = []
    if found := member.run.manifest.get("rankings"):
        pairs = max(1, found["pairs"])
        numbers = (
            Row("annotator", (Cell(found["labeler"]),)),
            Row("questions", (Cell(f"{found['prompts']:,}"),)),
            Row(
                "answers to each question (K)",
                (Cell(str(found["answers"])),),
                f"sampled at temperature {member.run.config['temperature']:g}",
            ),
            Row("pairs of answers", (Cell(f"{found['pairs']:,}"),), "K answers make K·(K−1)/2 pairs"),
            Row(
                "of them tied",
                (Cell(f"{found['ties']:,} ({100 * found['ties'] / pairs:.0f} %)"),),
                "equal rank: nothing is learned from these",
            ),
        )
        blocks.append(Table("The simulated rankings", ("what", "how many"), numbers))
    rows = member.run.read_lines("rankings/train.jsonl")
    strict = [row for row in rows if len(set(row["ranks"])) > 1]
    telling = sorted(strict, key=lambda row: -len(set(row["ranks"])))[:3]  # stable: of those equally telling, the first
    items = []
    for row in telling:
        turns = [{"role": "user", "content": row["prompt"]}] if isinstance(row["prompt"], str) else row["prompt"]
        ordered = sorted(zip(row["ranks"], row["responses"]), key=lambda pair: int(pair[0]))
        said = tuple(Said(f"rank {rank}", shorten(answer)) for rank, answer in ordered)
        heading = f"ranked by: {row.get('labeler') or 'unnamed'} annotator"
        items.append(Exchange(heading, tuple((t["role"], shorten(t["content"])) for t in turns), said))
    if items:
        blocks.append(Exchanges("Examples of simulated rankings", tuple(items)))
    return blocks


def rewarding(members: Sequence[Member]) -> Section:
    """A number for every answer."""
    lead = (
        "A copy of the tuned model was given a new output, a single number, and learned to give the better-ranked of two answers the higher number. "
        "This reward model then stands in for the annotator, who could not read every answer that the next stage writes.",
        "Its accuracy is the share of pairs, of questions kept aside, that it puts in the annotator's order. Guessing gets 50 %; and a judge that simply "
        "prefers the longer answer gets what the dotted line shows, so only what lies above both has been learned about content.",
    )
    return Section("reward", "Reward model", lead, _per_run(members, _reward_run))


def _reward_run(member: Member, name: str) -> list[Block]:
    manifest, accuracy = member.run.manifest, curve(member, "heldout_accuracy", "reward model")
    longer = member.run.metrics("longer_wins")
    levels = {"guessing": GUESSING} | ({"the longer answer": longer[-1]["longer_wins"]} if longer else {})
    blocks = charts(
        figures.lines(f"{name}-loss", "Training loss. Thin: every step; thick: moving average. Not knowing costs log 2 ≈ 0.69 a pair, less "
                      "where answers are tied.", "step", "ranking loss (nats per pair)", [curve(member, "loss", "loss")], smooth=True),
        figures.lines(f"{name}-accuracy", "Held-out pairs in the annotator's order.", "step", "accuracy", [accuracy], levels=levels, percent=True),
    )  # fmt: skip
    rows = []
    for key, title, note in (
        ("accuracy", "accuracy of the reward model", "held-out pairs in the right order"),
        ("longer_wins", "if the longer answer always won", "what length alone would get"),
    ):
        if value := manifest.get(key):
            rows.append(Row(title, (measured(value, percent=True), Cell(f"{value['n']:,}")), note))
    if (mean := manifest.get("demonstrations_mean")) is not None:
        rows.append(
            Row(
                "mean score of the demonstrations",
                (plain(mean), EMPTY),
                "0 by definition: a score above 0 beats the average demonstration",
            )
        )
    if rows:
        blocks.append(Table("Held-out comparisons", ("measure", "value, 95 % interval", "questions"), tuple(rows)))
    return [*blocks, *trust(member.run, name)]


# -- RLHF -------------------------------------------------------------------------------------------------------

OBJECTIVE = Markup(  # a constant: nothing in it comes from a run
    "What it maximises: <span class='formula'>E[ r(x, y) − β · log( π(y|x) / π<sub>SFT</sub>(y|x) ) ] + γ · E<sub>pretrain</sub>[ log π(x) ]</span>"
)
FOOLED = "If it falls while the reward rises, the policy is fooling the reward."
MAIN_PPO = (
    ("reward", "reward", "What the reward model gives the answers, on average. This is what PPO pushes up."),
    ("kl", "KL (nats per answer)", "How far the policy has moved away from the SFT model."),
)
MORE_PPO = (
    ("length", "tokens per answer", "Length of the answers."),
    ("finished", "share of answers", "Answers that the model ends itself."),
    ("entropy", "entropy (nats per token)", "How undecided the policy is at each token."),
    ("clip_fraction", "share of tokens", "Tokens whose probability moved beyond the clipping range."),
    (
        "explained_variance",
        "explained variance",
        "How much of the returns the critic foresees (1: all of it, 0: nothing).",
    ),
    ("value_loss", "value loss", "The critic's error."),
    ("policy_loss", "policy loss", "PPO's clipped objective, as a loss."),
    ("grad_norm", "gradient norm", "Size of the policy's gradient before clipping."),
    ("pretrain_loss", "loss (nats per token)", "The pretraining term: loss on raw text while PPO runs."),
    ("ptx_gradient_ratio", "ratio", "Size of the pretraining gradient over that of the policy gradient."),
)


def rlhf(members: Sequence[Member]) -> Section:
    """PPO; several runs stand beside each other in the same charts."""
    lead: list[str | Markup] = [
        "The tuned model, now called the policy, answered questions; the reward model scored the answers; and PPO made well-scored answers a little more "
        "likely, step after step. That is reinforcement learning from feedback: the model learns from marks on its own answers, not from answers to copy.",
        OBJECTIVE,
        "The β term is a leash that keeps the policy near the SFT model, because the reward model can be fooled. The γ term mixes in pretraining text, so that "
        "what was learned there is not lost: such a loss is called the alignment tax.",
    ]
    if len({m.run.config["gamma"] > 0 for m in members}) > 1:
        lead.append(
            "The same training was done twice: with the pretraining term (γ above 0) and without it (γ = 0). Compare them on held-out text."
        )
    blocks: list[Block] = []
    for member in members:
        if (status := member.run.manifest["status"]) != "finished":
            blocks.append(
                Prose(
                    f"{member.label} is {status} after step {member.done:,}: its numbers are not final. {member.run.manifest.get('error', '')}"
                )
            )
    settings = " ".join(
        f"{m.label}: β = {m.run.config['beta']:g}, γ = {m.run.config['gamma']:g}, {m.done:,} steps." for m in members
    )
    blocks.append(Prose(settings))

    def drawn(key: str, unit: str, caption: str) -> Chart | None:
        return figures.lines(f"ppo-{key}", caption, "step", unit, [curve(m, key) for m in members], smooth=True)

    bits = drawn("heldout", f"{BITS}, mean of sources", "Held-out text: a rise is the alignment tax. Lower is better.")
    scores = [
        drawn(key, "score (0 to 1)", f"Score of the answers by {scorer_label(name)}. {FOOLED}")
        for key, name in _logged(members).items()
    ]
    reward, kl = (drawn(*spec) for spec in MAIN_PPO)
    blocks += charts(reward, *scores, kl, bits)
    blocks += [*_ppo_table(members), *_heldout_table(members)]
    if more := [c for spec in MORE_PPO if (c := drawn(*spec)) is not None]:
        blocks.append(
            Folded("More curves: length, entropy, clipping, critic, pretraining term", (Charts(tuple(more)),))
        )
    return Section("ppo", "RLHF", tuple(lead), blocks)


def _logged(members: Sequence[Member]) -> dict[str, str]:
    """The scores of answers that the runs logged beside the reward, and the scorer of each."""
    return logged(key for member in members for row in member.run.metrics("reward") for key in row)


PPO_ROWS = (
    ("reward", "reward"),
    ("kl", "KL (nats per answer)"),
    ("finished", "ended by itself"),
    ("length", "tokens per answer"),
)


def _ppo_table(members: Sequence[Member]) -> list[Block]:
    """Means over the first and the last five steps, two columns a run: single steps are too noisy to compare."""
    rows = []
    first, *others = PPO_ROWS
    scores = [(key, scorer_label(name)) for key, name in _logged(members).items()]
    for key, shown in (first, *scores, *others):
        cells: list[Cell] = []
        for member in members:
            values: list[Any] = [r[key] for r in member.run.metrics(key)]
            cells += [
                plain(fmean(part) if part else None, percent=key == "finished") for part in (values[:5], values[-5:])
            ]
        if set(cells) != {EMPTY}:
            rows.append(Row(shown, tuple(cells)))
    several = len(members) > 1
    columns = [
        f"{member.label + ', ' if several else ''}{when}"
        for member in members
        for when in ("first 5 steps", "last 5 steps")
    ]
    caption = (
        "On the training questions, mean of the first and of the last 5 steps (for held-out questions see the scores)"
    )
    return [Table(caption, ("measure", *columns), tuple(rows))] if rows else []
