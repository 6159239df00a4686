"""What several seeds say of in-context learning: means with intervals, and what is claimed of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tercet.microworld.mappings import WORDS
from tercet.reporting.claims import Claim
from tercet.statistics.intervals import Estimate, over_seeds

Measured = Mapping[str, Any]
COSTS = ("accuracy", "training_flops", "training_seconds", "answer_flops", "answer_seconds", "answer_tokens")
INDUCTION = (
    "prefix_matching",
    "one_further",
)  # the places behind an earlier copy at which a head can find what came next
MARGIN = 0.1  # of accuracy: a difference below it is none, where a claim is that there is none
EMERGED = 0.5  # accuracy, or prefix-matching score, from which we say that it has emerged


def summarise(found: Mapping[str, Sequence[Measured]]) -> dict[str, Any]:
    """For each size its measures over seeds: every number as {value, low, high, n} by Student's t, and each seed's."""
    return {name: _size(seeds, found) for name, seeds in found.items()}


def _size(seeds: Sequence[Measured], found: Mapping[str, Sequence[Measured]]) -> dict[str, Any]:
    first = seeds[0]
    smallest = next(iter(found.values()))

    def shots(side: str) -> list[dict[str, Any]]:
        out = []
        for i, row in enumerate(first["shots"][side]):
            here = [s["shots"][side][i] for s in seeds]
            below = [s["shots"][side][i]["accuracy"] for s in smallest]
            out.append({
                "shots": row["shots"], "accuracy": _over([r["accuracy"] for r in here]), "ceiling": _over([r["ceiling"] for r in here]),
                "accuracy_shown": _over([r["accuracy_shown"] for r in here]) if all(r["shown"] for r in here) else None,
                "above_smallest": _over([r["accuracy"] - b for r, b in zip(here, below)]),
            })  # fmt: skip
        return out

    def best(row: Mapping[str, Any], score: str) -> float:
        return max(float(value) for layer in row[score] for value in layer)

    def over_steps(value: Callable[[Mapping[str, Any]], float]) -> list[dict[str, Any]]:
        return [_over([value(s["steps"][i]) for s in seeds]) for i in range(len(first["steps"]))]

    def emergence(value: Callable[[Mapping[str, Any]], float]) -> list[int | None]:
        """For each seed the first measured step at which `value` is above EMERGED, or None."""
        return [next((row["step"] for row in s["steps"] if value(row) > EMERGED), None) for s in seeds]

    return {
        "parameters": first["parameters"], "without_embeddings": first["without_embeddings"],
        "loss": _over([s["loss"] for s in seeds]), "shots": {side: shots(side) for side in ("heldout", "train")},
        "steps": [row["step"] for row in first["steps"]],
        "accuracy_by_step": over_steps(lambda r: float(r["accuracy_shown"])),
        "induction_by_step": over_steps(lambda r: max(best(r, place) for place in INDUCTION)),
        "prefix_matching_by_step": over_steps(lambda r: best(r, "prefix_matching")),
        "one_further_by_step": over_steps(lambda r: best(r, "one_further")),
        "previous_token_by_step": over_steps(lambda r: best(r, "previous_token")),
        "accuracy_emerged": emergence(lambda r: float(r["accuracy_shown"])),
        "induction_emerged": emergence(lambda r: max(best(r, place) for place in INDUCTION)),
        "without_induction": _over([_without(s, True) for s in seeds]), "without_another": _over([_without(s, False) for s in seeds]),
        "heads": [{"step": r["step"], **{k: r[k] for k in (*INDUCTION, "previous_token")}} for r in first["steps"]],
        "tuning": [_tuning(i, seeds) for i in range(len(first["tuning"]))],
    }  # fmt: skip


def _without(seed: Measured, induction: bool) -> float:
    """Accuracy without the best induction head of a seed, or the mean without each other head of its layer."""
    last = seed["steps"][-1]
    heads = range(len(last["previous_token"][0]))
    scores = {(layer, head): max(last[place][layer][head] for place in INDUCTION)
              for layer in range(len(last["previous_token"])) for head in heads}  # fmt: skip
    layer, head = max(scores, key=lambda place: scores[place])
    row: list[float] = seed["without_head"][layer]
    return row[head] if induction else sum(row[h] for h in heads if h != head) / (len(row) - 1)


def _tuning(i: int, seeds: Sequence[Measured]) -> dict[str, Any]:
    rows = [s["tuning"][i] for s in seeds]
    ways = {way: {cost: _over([r[way][cost] for r in rows]) for cost in COSTS} for way in ("asking", "tuning")}
    saved = ways["asking"]["answer_flops"]["value"] - ways["tuning"]["answer_flops"]["value"]
    return {
        "shots": rows[0]["shots"], "shown": _over([r["shown"] for r in rows]), **ways,
        "difference": _over([r["asking"]["accuracy"] - r["tuning"]["accuracy"] for r in rows]),
        # answers after which tuning has cost fewer FLOPs than asking
        "break_even": ways["tuning"]["training_flops"]["value"] / saved,
    }  # fmt: skip


def _over(values: Sequence[float]) -> dict[str, Any]:
    return {**over_seeds(values).to_json(), "seeds": list(values)}


def _text(value: Mapping[str, Any]) -> str:
    return str(Estimate(value["value"], value["low"], value["high"], value["n"]))


def claims(sizes: Mapping[str, Any]) -> list[Claim]:
    """What the recipe claims of its last (largest) size, each with its numbers; `holds` where the interval says so (of held-out
    pairs against others: where the means do).
    """
    small, (large, largest) = next(iter(sizes)), list(sizes.items())[-1]
    rows = largest["shots"]["heldout"]
    zero, most = rows[0], rows[-1]
    chance = 1 / len(WORDS)
    out = [
        Claim("without examples it is at chance on held-out mappings, or below", zero["accuracy"]["high"] <= chance + MARGIN,
              f"{_text(zero['accuracy'])}, chance {chance:.3f}"),
        Claim("examples in the prompt teach it, with no gradient", most["accuracy"]["low"] > zero["accuracy"]["high"],
              f"{zero['shots']} examples {_text(zero['accuracy'])} → {most['shots']} examples {_text(most['accuracy'])} (ceiling {most['ceiling']['value']:.3f})"),
        Claim(f"what it has never seen side by side it learns as well as other pairs ({most['shots']} examples, answer shown)",
              most["accuracy_shown"]["value"] > largest["shots"]["train"][-1]["accuracy_shown"]["value"] - 0.05,
              f"held-out {_text(most['accuracy_shown'])}, not held out {_text(largest['shots']['train'][-1]['accuracy_shown'])}"),
        _forming("induction heads form: the best prefix-matching score on random words, at either place", largest, "induction_by_step", "induction_emerged"),
        Claim("they do it: accuracy falls without the head that scores best, and falls less without another of its layer",
              largest["without_induction"]["high"] < largest["without_another"]["low"],
              f"without it {_text(largest['without_induction'])}, without another {_text(largest['without_another'])}, with all {_text(largest['accuracy_by_step'][-1])}"),
        Claim(f"the larger model's curve is above the smaller one's ({large} − {small}, 1 to {most['shots']} examples)",
              all(row["above_smallest"]["low"] > 0 for row in rows[1:]),
              ", ".join(f"{row['shots']}: {_text(row['above_smallest'])}" for row in rows)),
    ]  # fmt: skip
    if tuning := largest["tuning"]:
        out.append(Claim(f"tuning on the same examples is nowhere beaten by asking, by {MARGIN} or more (asking − tuning)",
                         all(row["difference"]["high"] < MARGIN for row in tuning),
                         ", ".join(f"{row['shots']}: {_text(row['difference'])}" for row in tuning)))  # fmt: skip
    return out


def _forming(text: str, size: Mapping[str, Any], score: str, emerged: str) -> Claim:
    first, last = size[score][0], size[score][-1]
    numbers = f"{_text(first)} → {_text(last)}; above {EMERGED} from step {_steps(size[emerged])} (by seed)"
    return Claim(text, last["low"] > first["high"], f"{numbers}; accuracy from step {_steps(size['accuracy_emerged'])}")


def _steps(values: Sequence[int | None]) -> str:
    return ", ".join("never" if v is None else f"{v:,}" for v in values)


def tables(summary: Mapping[str, Any]) -> str:
    """The numbers as Markdown: accuracy by examples, what formed when, tuning against asking."""

    def cell(value: Mapping[str, Any] | None, digits: int = 2) -> str:
        if value is None:
            return "–"
        return f"{value['value']:.{digits}f} [{value['low']:.{digits}f}, {value['high']:.{digits}f}]"

    sizes = summary["sizes"]
    large = list(sizes.values())[-1]
    rows = [
        f"| {name} | " + " | ".join(cell(row["accuracy"]) for row in size["shots"]["heldout"]) + " |"
        for name, size in sizes.items()
    ]
    held, train = (large["shots"][side] for side in ("heldout", "train"))
    rows.append("| difference | " + " | ".join(cell(r["above_smallest"]) for r in held) + " |")
    rows.append("| best possible | " + " | ".join(f"{r['ceiling']['value']:.2f}" for r in held) + " |")
    rows.append("| largest, answer shown | " + " | ".join(cell(r["accuracy_shown"]) for r in held) + " |")
    rows.append("| the same, pairs not held out | " + " | ".join(cell(r["accuracy_shown"]) for r in train) + " |")
    out = [
        "| examples | " + " | ".join(str(r["shots"]) for r in held) + " |",
        "|---" * (len(held) + 1) + "|",
        *rows,
        "",
    ]
    scores = {
        "prefix matching": "prefix_matching",
        "one place further": "one_further",
        "token before": "previous_token",
    }
    out += [
        "| size | parameters (without embeddings) | accuracy at the end | " + " | ".join(scores) + " |",
        "|---" * 6 + "|",
    ]
    for name, size in sizes.items():
        last = [cell(size[f"{key}_by_step"][-1]) for key in ("accuracy", *scores.values())]
        out.append(f"| {name} | {size['parameters']:,} ({size['without_embeddings']:,}) | {' | '.join(last)} |")
    out += [
        "",
        "| examples | shown | asking | tuning | difference | asking, MFLOPs an answer | tuning, MFLOPs an answer | tuning, MFLOPs before | paid back after |",
    ]
    out.append("|---" * 9 + "|")
    for row in large["tuning"]:
        ask, tune = row["asking"], row["tuning"]
        flops = [f"{x['value'] / 1e6:.2f}" for x in (ask["answer_flops"], tune["answer_flops"], tune["training_flops"])]
        out.append(
            f"| {row['shots']} | {row['shown']['value']:.2f} | {cell(ask['accuracy'])} | {cell(tune['accuracy'])} | {cell(row['difference'])} | "
            f"{' | '.join(flops)} | {row['break_even']:,.0f} answers |"
        )
    out += [
        "",
        "| examples | tokens read, asking | tuning | CPU ms an answer, asking | tuning | CPU s of training |",
        "|---" * 6 + "|",
    ]
    for row in large["tuning"]:
        ask, tune = row["asking"], row["tuning"]
        ms = [f"{1000 * x['answer_seconds']['value']:.2f}" for x in (ask, tune)]
        tokens = [f"{x['answer_tokens']['value']:.0f}" for x in (ask, tune)]
        out.append(
            f"| {row['shots']} | {' | '.join(tokens)} | {' | '.join(ms)} | {tune['training_seconds']['value']:.2f} |"
        )
    return "\n".join(out) + "\n"
