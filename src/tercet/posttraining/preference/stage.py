"""Preference learning without RL as a stage: its settings and its declaration (no torch here)."""

from __future__ import annotations

from dataclasses import dataclass, fields

from tercet.errors import ConfigError
from tercet.training.settings import FILES, LANGUAGE_MODEL, PRECISION, TuneSettings, option_name, setting
from tercet.training.stage import Stage

LOSSES = ("dpo", "ipo", "kto", "simpo", "orpo")
WITH_REFERENCE = ("dpo", "ipo", "kto")
# which losses a setting belongs to; one that is not named here belongs to all
BELONGS = {
    "beta": ("dpo", "ipo", "kto", "simpo"),
    "label_smoothing": ("dpo",),
    "margin": ("simpo",),
    "odds_weight": ("orpo",),
    "desirable_weight": ("kto",),
    "undesirable_weight": ("kto",),
}


@dataclass(frozen=True, kw_only=True)
class DPOConfig(TuneSettings):
    """Train on comparisons with DPO, IPO, KTO, SimPO or ORPO.

    These methods need neither a reward model nor reinforcement learning.
    """

    model: str = setting(
        ...,
        "run of the policy to start from, which is also the reference: an instruction-tuned model",
        reads=LANGUAGE_MODEL,
    )
    data: tuple[str, ...] = setting(
        ...,
        "comparisons as for `tercet reward`; with kto also rows with prompt, completion and label (true or false)",
        reads=FILES,
    )
    heldout: tuple[str, ...] = setting(
        (), "held-out rows of the same kind; where none are named, heldout_share is kept", reads=FILES
    )
    heldout_share: float = setting(0.1, "share of prompts kept aside, by a hash", minimum=0)
    loss: str = setting("dpo", "what is minimised", choices=LOSSES)
    beta: float = setting(
        0.0,
        "β of dpo and kto and τ of ipo: how close to stay to the reference; of simpo the scale of the mean log-probability "
        "(0: the loss's usual value, 0.1, for simpo 2)",
        minimum=0,
    )
    label_smoothing: float = setting(
        0.0, "dpo: share of the comparisons that is taken to be the wrong way round", minimum=0
    )
    margin: float = setting(1.0, "simpo: γ, by how much the chosen answer shall win", minimum=0)
    odds_weight: float = setting(
        0.1, "orpo: λ, weight of the odds ratio beside the likelihood of the chosen", minimum=0
    )
    desirable_weight: float = setting(1.0, "kto: λ_D, weight of the desirable answers", minimum=0)
    undesirable_weight: float = setting(1.0, "kto: λ_U, weight of the undesirable answers", minimum=0)
    steps: int = setting(100, "optimizer steps", minimum=1)
    batch_size: int = setting(16, "prompts per step", minimum=1)
    micro_batch: int = setting(
        0, "prompts per forward pass (0: about 1,024 tokens); changes memory, not the result", minimum=0
    )
    lr: float = setting(1e-4, "AdamW learning rate", minimum=0, maximum=1e37)
    precision: str = PRECISION

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in fields(self):
            losses, value = BELONGS.get(field.name, LOSSES), getattr(self, field.name)
            if self.loss not in losses and value != field.default:
                raise ConfigError(
                    f"{option_name(field)} is {value!r}, but it belongs to the loss {' or '.join(losses)}, and loss is "
                    f"{self.loss!r}; leave it out"
                )
        if self.label_smoothing >= 0.5:
            raise ConfigError(
                f"--label-smoothing is {self.label_smoothing}; wanted less than 0.5, where comparisons say nothing"
            )

    @property
    def strength(self) -> float:
        """β, resolved: 0.1 where it is not set, for simpo 2 (Rafailov et al. 2023; Meng et al. 2024)."""
        return self.beta or (2.0 if self.loss == "simpo" else 0.1)


DPO = Stage(
    "dpo", DPOConfig, "tercet.posttraining.preference.train:dpo", order=60, label="DPO", makes=LANGUAGE_MODEL,
    deed="trained on comparisons directly",
    example="tercet dpo --model runs/sft --data rankings.jsonl --out runs/dpo",
    section="tercet.reporting.preference_story:preferring",
    checks="tercet.diagnostics.supervised:PREFERENCES",
    probe="tercet.diagnostics.probe:probe_dpo",
)  # fmt: skip
