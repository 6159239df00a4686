"""The stage of preference learning without RL: its settings and its declaration. It does not import torch."""

from __future__ import annotations

from dataclasses import dataclass, fields

from tercet.errors import ConfigError
from tercet.training.settings import FILES, LANGUAGE_MODEL, PRECISION, TuneSettings, option_name, setting
from tercet.training.stage import Stage

LOSSES = ("dpo", "ipo", "kto", "simpo", "orpo")
WITH_REFERENCE = ("dpo", "ipo", "kto")
# setting → the losses that use it; a setting that is not listed is used by all
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
        "Run of the policy to start from, which is also the reference: an instruction-tuned model.",
        reads=LANGUAGE_MODEL,
    )
    data: tuple[str, ...] = setting(
        ...,
        "Comparisons as for `tercet reward`; kto also reads rows with prompt, completion and label (true or false).",
        reads=FILES,
    )
    heldout: tuple[str, ...] = setting(
        (), "Held-out rows of the same format. Without them, --heldout-share of the data is held out.", reads=FILES
    )
    heldout_share: float = setting(
        0.1, "Fraction of the prompts to hold out (0 to 1); a hash of each decides.", minimum=0
    )
    loss: str = setting("dpo", "Loss, named by its method.", choices=LOSSES)
    beta: float = setting(
        0.0,
        "β of dpo and kto, τ of ipo: a higher value keeps the policy closer to the reference. For simpo, the scale of "
        "the mean log-probability. 0 means the usual value: 2 for simpo, 0.1 for the others.",
        minimum=0,
    )
    label_smoothing: float = setting(
        0.0, "dpo: assumed fraction of comparisons in which the worse answer is preferred; below 0.5.", minimum=0
    )
    margin: float = setting(1.0, "simpo: γ, the margin by which the chosen answer should win.", minimum=0)
    odds_weight: float = setting(
        0.1, "orpo: λ, weight of the odds ratio beside the likelihood of the chosen answer.", minimum=0
    )
    desirable_weight: float = setting(1.0, "kto: λ_D, weight of the desirable answers.", minimum=0)
    undesirable_weight: float = setting(1.0, "kto: λ_U, weight of the undesirable answers.", minimum=0)
    steps: int = setting(100, "Optimizer steps.", minimum=1)
    batch_size: int = setting(16, "Prompts per step.", minimum=1)
    micro_batch: int = setting(
        0,
        "Prompts per forward pass; fewer need less memory, with the same result. 0 means about 1,024 tokens.",
        minimum=0,
    )
    lr: float = setting(1e-4, "Peak learning rate of AdamW.", minimum=0, maximum=1e37)
    precision: str = PRECISION

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in fields(self):
            losses, value = BELONGS.get(field.name, LOSSES), getattr(self, field.name)
            if self.loss not in losses and value != field.default:
                raise ConfigError(
                    f"{option_name(field)} is {value!r}, but it is used only by --loss {' or '.join(losses)}, "
                    f"and --loss is {self.loss!r}; leave {option_name(field)} out"
                )
        if self.label_smoothing >= 0.5:
            raise ConfigError(
                f"--label-smoothing is {self.label_smoothing}; wanted less than 0.5; "
                "at 0.5 the comparisons would carry no information"
            )

    @property
    def resolved_beta(self) -> float:
        """β, or the usual value where it is 0: 0.1, or 2 for simpo (Rafailov et al. 2023; Meng et al. 2024)."""
        return self.beta or (2.0 if self.loss == "simpo" else 0.1)


DPO = Stage(
    "dpo",
    DPOConfig,
    "tercet.posttraining.preference.train:train_preferences",
    order=60,
    label="DPO",
    makes=LANGUAGE_MODEL,
    deed="trained on comparisons directly",
    example="tercet dpo --model runs/sft --data rankings.jsonl --out runs/dpo",
    section="tercet.reporting.preference_story:preferring",
    checks="tercet.diagnostics.supervised:PREFERENCES",
    probe="tercet.diagnostics.probe:probe_dpo",
)
