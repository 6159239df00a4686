"""Make the report's sections of DPO and its relatives, and of best-of-n."""

from __future__ import annotations

from collections.abc import Sequence

from tercet.evaluation.scoring.score_files import scorer_label, scores_of_point
from tercet.reporting import figures
from tercet.reporting.blocks import Block, Cell, Prose, Row, Section, Table, charts, measured, minus, plain
from tercet.reporting.lineage import Member
from tercet.reporting.story import curve

ACCURACY = "heldout_accuracy"
LOGP = "log-probability (nats per answer)"
DPO_CURVES = (
    (ACCURACY, "accuracy", "Share of held-out pairs that the implied reward puts in the annotator's order."),
    ("reward_margin", "reward margin", "Implied reward of the chosen answers minus that of the rejected answers."),
    ("chosen_logp", LOGP, "Chosen answers. A long fall means that the model becomes less likely to give them."),
    ("rejected_logp", LOGP, "Rejected answers."),
    ("loss", "loss", "Training loss."),
)


def preferring(members: Sequence[Member]) -> Section:
    """Return the section of DPO and its relatives, with several runs in the same charts."""
    lead = (
        "These runs learned from comparisons directly, without a reward model and without sampling answers. The policy "
        "itself defines a reward: β times the logarithm of how much more likely an answer has become. It is trained to "
        "give the better of two answers the higher reward.",
    )
    blocks: list[Block] = []
    for member in members:
        blocks.append(Prose(f"{member.label}: loss {member.run.config['loss']}, {member.done:,} steps."))
        if fell := member.run.manifest.get("chosen_fell"):
            text = f"the chosen answers became less likely: from {fell[0]:.1f} to {fell[1]:.1f} nats per answer"
            blocks.append(Prose(f"{member.label}: {minus(text)}."))
    drawn = []
    for key, unit, caption in DPO_CURVES:
        curves, share = [curve(m, key) for m in members], key == ACCURACY
        drawn.append(figures.lines(f"dpo-{key}", caption, "step", unit, curves, smooth=not share, percent=share))
    blocks += charts(*drawn)
    rows = [
        Row(m.label, (measured(a, percent=True), Cell(f"{a['n']:,}")))
        for m in members
        if (a := m.run.manifest.get("accuracy"))
    ]
    if rows:
        blocks.append(Table("Held-out comparisons", ("run", "accuracy, 95 % interval", "prompts"), tuple(rows)))
    return Section("dpo", "Preferences without RL", lead, blocks)


def choosing(members: Sequence[Member]) -> Section:
    """Return the section of best-of-n."""
    lead = (
        "Several answers to each question were sampled, and the answer with the highest reward was kept. Nothing was "
        "trained. The table has the mean reward and the mean scores of the best of k answers, estimated without bias "
        "from all n. The KL is its upper bound, ln k − (k − 1)/k nats.",
    )
    blocks: list[Block] = []
    for member in members:
        points = member.run.manifest.get("best_of_n", ())
        names = tuple(dict.fromkeys(name for point in points for name in scores_of_point(point)))
        rows = []
        for point in points:
            scores = [measured(scores_of_point(point).get(name)) for name in names]
            rows.append(Row(f"{point['k']}", (plain(point["kl"]), measured(point["proxy"]), *scores)))
        if rows:
            head = ("k", "KL (nats)", "reward", *map(scorer_label, names))
            blocks.append(Table(f"{member.label}: the best of k answers", head, tuple(rows)))
    return Section("best-of-n", "Best of n", lead, blocks)
