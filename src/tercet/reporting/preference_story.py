"""The report's sections on what learns from answers without PPO's machinery: DPO and its kin, best-of-n."""

from __future__ import annotations

from collections.abc import Sequence

from tercet.evaluation.scoring.score_files import scorer_label, scores_of_point
from tercet.reporting import figures
from tercet.reporting.blocks import Block, Cell, Prose, Row, Section, Table, charts, measured, plain
from tercet.reporting.lineage import Member
from tercet.reporting.story import curve

DPO_CURVES = (
    ("heldout_accuracy", "accuracy", "Held-out pairs that the implied reward puts in the annotator's order.", True),
    ("reward_margin", "reward margin", "Implied reward of the chosen answers minus that of the rejected ones.", False),
    ("chosen_logp", "log-probability (nats per answer)", "Chosen answers. If this falls for long, the model unlearns what people chose.", False),
    ("rejected_logp", "log-probability (nats per answer)", "Rejected answers.", False),
    ("loss", "loss", "Training loss.", False),
)  # fmt: skip


def preferring(members: Sequence[Member]) -> Section:
    """DPO and its kin: preferences without a reward model; several runs in the same charts."""
    lead = (
        "These runs learned from the same comparisons directly: the policy itself is read as a reward model, β times the logarithm of how much likelier than "
        "before it makes an answer, and is trained to give the better answer the higher one. No answers are sampled and no reward model is needed.",
    )
    blocks: list[Block] = []
    for member in members:
        blocks.append(Prose(f"{member.label}: the loss {member.run.config['loss']}, {member.done:,} steps."))
        if fell := member.run.manifest.get("chosen_fell"):
            blocks.append(
                Prose(f"{member.label}: the chosen answers became less likely, {fell[0]:.1f} to {fell[1]:.1f} nats.")
            )
    blocks += charts(
        *(
            figures.lines(f"dpo-{key}", caption, "step", unit, [curve(m, key) for m in members], smooth=not percent, percent=percent)
            for key, unit, caption, percent in DPO_CURVES
        )
    )  # fmt: skip
    rows = [
        Row(m.label, (measured(a, percent=True), Cell(f"{a['n']:,}")))
        for m in members
        if (a := m.run.manifest.get("accuracy"))
    ]
    if rows:
        blocks.append(Table("Held-out comparisons", ("run", "accuracy, 95 % interval", "prompts"), tuple(rows)))
    return Section("dpo", "Preferences without RL", lead, blocks)


def choosing(members: Sequence[Member]) -> Section:
    """Best-of-n: what choosing among more answers brings, without training."""
    lead = (
        "Several answers to each question were sampled, and the best-scored one kept. The table says what the best of k answers is worth on average (an unbiased "
        "estimate from all n), by the reward that chose and by each scorer, beside ln k − (k − 1)/k, the distance from the "
        "model that choosing amounts to.",
    )
    blocks: list[Block] = []
    for member in members:
        points = member.run.manifest.get("best_of_n", ())
        names = tuple(dict.fromkeys(name for point in points for name in scores_of_point(point)))
        rows = [
            Row(
                f"{point['k']}",
                (
                    plain(point["kl"]),
                    measured(point["proxy"]),
                    *(measured(scores_of_point(point).get(name)) for name in names),
                ),
            )
            for point in points
        ]
        if rows:
            head = ("k", "KL (nats)", "reward that chose", *map(scorer_label, names))
            blocks.append(Table(f"{member.label}: the best of k answers", head, tuple(rows)))
    return Section("best-of-n", "Best of n", lead, blocks)
