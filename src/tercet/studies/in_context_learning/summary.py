"""Results of in-context learning over seeds: means with intervals, the claims, and the tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tercet.microworld.mappings import WORDS
from tercet.reporting.claims import Claim
from tercet.studies.estimates import above, below, cell, interval, table, text

Json = dict[str, Any]
COSTS = ("accuracy", "training_flops", "training_seconds", "answer_flops", "answer_seconds", "answer_tokens")
# the positions behind an earlier copy at which a head can find what came next
INDUCTION = ("prefix_matching", "one_further")
SCORES = (*INDUCTION, "previous_token")
MARGIN = 0.1  # accuracy; a smaller difference counts as none
EMERGED = 0.5  # accuracy or prefix-matching score above which an ability counts as formed


def summarise(measured: Mapping[str, Sequence[Json]]) -> dict[str, Json]:
    """Return for each size its measures over seeds: {value, low, high, n, seeds} by Student's t.

    `measured` holds each size's measurements by seed, the smallest size first.
    """
    smallest = next(iter(measured.values()))
    return {name: _size(seeds, smallest) for name, seeds in measured.items()}


def best_induction(row: Json) -> float:
    """Return the highest prefix-matching score of any head in a row of measurements, at either position."""
    return max(_best(row, score) for score in INDUCTION)


def _best(row: Json, score: str) -> float:
    return max(float(value) for layer in row[score] for value in layer)


def _size(seeds: Sequence[Json], smallest: Sequence[Json]) -> Json:
    first = seeds[0]

    def over_steps(value: Callable[[Json], float]) -> list[Json]:
        return [interval([value(s["steps"][i]) for s in seeds]) for i in range(len(first["steps"]))]

    def emergence(value: Callable[[Json], float]) -> list[int | None]:
        """For each seed the first measured step at which `value` is above EMERGED, or None."""
        return [next((row["step"] for row in s["steps"] if value(row) > EMERGED), None) for s in seeds]

    def accuracy(row: Json) -> float:
        return float(row["accuracy_in_context"])

    return {
        "parameters": first["parameters"],
        "without_embeddings": first["without_embeddings"],
        "loss": interval([s["loss"] for s in seeds]),
        "shots": {side: _shots(side, seeds, smallest) for side in ("heldout", "train")},
        "steps": [row["step"] for row in first["steps"]],
        "accuracy_by_step": over_steps(accuracy),
        "induction_by_step": over_steps(best_induction),
        "prefix_matching_by_step": over_steps(lambda row: _best(row, "prefix_matching")),
        "one_further_by_step": over_steps(lambda row: _best(row, "one_further")),
        "previous_token_by_step": over_steps(lambda row: _best(row, "previous_token")),
        "accuracy_emerged": emergence(accuracy),
        "induction_emerged": emergence(best_induction),
        "without_induction": interval([_without_head(s, induction=True) for s in seeds]),
        "without_another": interval([_without_head(s, induction=False) for s in seeds]),
        "heads": [{"step": row["step"], **{score: row[score] for score in SCORES}} for row in first["steps"]],
        "tuning": [_tuning([s["tuning"][i] for s in seeds]) for i in range(len(first["tuning"]))],
    }


def _shots(side: str, seeds: Sequence[Json], smallest: Sequence[Json]) -> list[Json]:
    """A row for each number of examples; differences from the smallest size are paired by seed."""
    out = []
    for i, first in enumerate(seeds[0]["shots"][side]):
        rows = [s["shots"][side][i] for s in seeds]
        below_it = [s["shots"][side][i]["accuracy"] for s in smallest]
        known = all(row["in_context"] for row in rows)
        row = {
            "shots": first["shots"],
            "accuracy": interval([row["accuracy"] for row in rows]),
            "ceiling": interval([row["ceiling"] for row in rows]),
            "accuracy_in_context": interval([row["accuracy_in_context"] for row in rows]) if known else None,
            "above_smallest": interval([row["accuracy"] - b for row, b in zip(rows, below_it)]),
        }
        out.append(row)
    return out


def _without_head(seed: Json, *, induction: bool) -> float:
    """Accuracy without the best induction head of a seed, or the mean without each other head of its layer."""
    last = seed["steps"][-1]
    scores = {
        (layer, head): max(last[score][layer][head] for score in INDUCTION)
        for layer, row in enumerate(last["previous_token"])
        for head in range(len(row))
    }
    layer, best = max(scores, key=lambda position: scores[position])
    accuracies: list[float] = seed["without_head"][layer]
    if induction:
        return accuracies[best]
    return sum(a for head, a in enumerate(accuracies) if head != best) / (len(accuracies) - 1)


def _tuning(rows: Sequence[Json]) -> Json:
    uses = {use: {cost: interval([r[use][cost] for r in rows]) for cost in COSTS} for use in ("prompting", "tuning")}
    saved = uses["prompting"]["answer_flops"]["value"] - uses["tuning"]["answer_flops"]["value"]
    return {
        "shots": rows[0]["shots"],
        "in_context": interval([r["in_context"] for r in rows]),
        **uses,
        "difference": interval([r["prompting"]["accuracy"] - r["tuning"]["accuracy"] for r in rows]),
        # answers after which tuning has cost fewer FLOPs than prompting
        "break_even": uses["tuning"]["training_flops"]["value"] / saved,
    }


# -- claims -------------------------------------------------------------------------------------------------------


def claims(results: Json) -> list[Claim]:
    """State what the largest size does, each claim with its numbers.

    A claim holds where the intervals say so; that held-out pairs are learned as well as others, where the means do.
    """
    small, *_, large = results["sizes"]
    size = results["sizes"][large]
    rows = size["shots"]["heldout"]
    zero, most = rows[0], rows[-1]
    in_context, others = (size["shots"][side][-1]["accuracy_in_context"] for side in ("heldout", "train"))
    lost, other, whole = size["without_induction"], size["without_another"], size["accuracy_by_step"][-1]
    chance = 1 / len(WORDS)
    stated = [
        Claim(
            "without examples accuracy on held-out mappings is at chance, or below",
            zero["accuracy"]["high"] <= chance + MARGIN,
            f"{text(zero['accuracy'])}, chance {chance:.3f}",
        ),
        Claim(
            "examples in the prompt raise it, without any gradient step",
            above(most["accuracy"], zero["accuracy"]["high"]),
            f"{zero['shots']} examples {text(zero['accuracy'])}, {most['shots']} examples {text(most['accuracy'])}; "
            f"best possible {most['ceiling']['value']:.3f}",
        ),
        Claim(
            f"pairs that no weight can know are answered as well as others ({most['shots']} examples, one the answer)",
            in_context["value"] > others["value"] - 0.05,
            f"held-out {text(in_context)}, not held out {text(others)}",
        ),
        _induction_forms(size),
        Claim(
            "accuracy needs the best induction head: it falls without that head, and less without another of its layer",
            below(lost, other["low"]),
            f"without it {text(lost)}, without another {text(other)}, with all {text(whole)}",
        ),
        Claim(
            f"the larger model is above the smaller one ({large} − {small}, 1 to {most['shots']} examples)",
            all(above(row["above_smallest"]) for row in rows[1:]),
            _by_shots("above_smallest", rows),
        ),
    ]
    if size["tuning"]:
        stated.append(_tuning_is_not_beaten(size["tuning"]))
    return stated


def _induction_forms(size: Json) -> Claim:
    first, last = size["induction_by_step"][0], size["induction_by_step"][-1]
    heads, accuracy = (_steps(size[f"{name}_emerged"]) for name in ("induction", "accuracy"))
    return Claim(
        "induction heads form: the best prefix-matching score on random words rises, at either position",
        above(last, first["high"]),
        f"{text(first)} → {text(last)}; above {EMERGED} from step {heads} (by seed); accuracy from step {accuracy}",
    )


def _tuning_is_not_beaten(rows: Sequence[Json]) -> Claim:
    return Claim(
        f"prompting is nowhere better than tuning on the same examples by {MARGIN} or more (prompting − tuning)",
        all(below(row["difference"], MARGIN) for row in rows),
        _by_shots("difference", rows),
    )


def _by_shots(name: str, rows: Iterable[Json]) -> str:
    return ", ".join(f"{row['shots']}: {text(row[name])}" for row in rows)


def _steps(values: Iterable[int | None]) -> str:
    return ", ".join("never" if value is None else f"{value:,}" for value in values)


# -- tables -------------------------------------------------------------------------------------------------------


def tables(results: Json) -> str:
    """Return Markdown tables: accuracy by examples, head scores by size, prompting against tuning and its costs."""
    sizes = results["sizes"]
    large = list(sizes.values())[-1]
    return "\n".join([_shots_table(sizes, large), _heads_table(sizes), *_tuning_tables(large["tuning"])])


def _shots_table(sizes: Json, large: Json) -> str:
    held, train = (large["shots"][side] for side in ("heldout", "train"))
    rows = [[name, *(cell(row["accuracy"]) for row in size["shots"]["heldout"])] for name, size in sizes.items()]
    rows.append(["difference", *(cell(row["above_smallest"]) for row in held)])
    rows.append(["best possible", *(f"{row['ceiling']['value']:.2f}" for row in held)])
    for label, side in (("largest, answer in context", held), ("the same, pairs not held out", train)):
        found = [row["accuracy_in_context"] for row in side]
        rows.append([label, *("–" if e is None else cell(e) for e in found)])
    return table(["examples", *(str(row["shots"]) for row in held)], rows)


def _heads_table(sizes: Json) -> str:
    columns = {
        "accuracy at the end": "accuracy",
        "prefix matching": "prefix_matching",
        "one position further": "one_further",
        "previous token": "previous_token",
    }
    rows = []
    for name, size in sizes.items():
        scores = (cell(size[f"{column}_by_step"][-1]) for column in columns.values())
        rows.append([name, f"{size['parameters']:,} ({size['without_embeddings']:,})", *scores])
    return table(["size", "parameters (without embeddings)", *columns], rows)


def _tuning_tables(rows: Sequence[Json]) -> list[str]:
    accuracy, costs = [], []
    for row in rows:
        prompt, tune = row["prompting"], row["tuning"]
        flops = (prompt["answer_flops"], tune["answer_flops"], tune["training_flops"])
        cells = (cell(e) for e in (prompt["accuracy"], tune["accuracy"], row["difference"]))
        megaflops = (f"{e['value'] / 1e6:.2f}" for e in flops)
        share = f"{row['in_context']['value']:.2f}"
        accuracy.append([str(row["shots"]), share, *cells, *megaflops, f"{row['break_even']:,.0f} answers"])
        tokens = (f"{use['answer_tokens']['value']:.0f}" for use in (prompt, tune))
        milliseconds = (f"{1000 * use['answer_seconds']['value']:.2f}" for use in (prompt, tune))
        costs.append([str(row["shots"]), *tokens, *milliseconds, f"{tune['training_seconds']['value']:.2f}"])
    uses = ["prompting", "tuning"]
    head = ["examples", "share of pairs seen", *uses, "difference", *(f"MFLOPs an answer: {use}" for use in uses)]
    times = [*(f"tokens read: {use}" for use in uses), *(f"CPU ms an answer: {use}" for use in uses)]
    return [
        table([*head, "MFLOPs of tuning", "pays off after"], accuracy),
        table(["examples", *times, "CPU s of tuning"], costs),
    ]
