"""Settings of pretraining (no torch here)."""

from __future__ import annotations

from dataclasses import dataclass

from tercet.errors import ConfigError
from tercet.training.settings import Settings, setting


@dataclass(frozen=True)
class PretrainConfig(Settings):
    """Next-token prediction on raw text."""

    data: tuple[str, ...] = setting(..., "training text: .txt and .jsonl(.gz) files, folders or globs")
    tokenizer: str = setting(..., "tokenizer.json, or a run or folder that has one")
    heldout: tuple[str, ...] = setting((), "held-out text; where none is named, `heldout_share` of the documents is kept aside")
    heldout_share: float = setting(0.02, "share of documents kept aside, by a hash of their id", minimum=0)
    heldout_bytes: int = setting(200_000, "at most so many held-out bytes per source are measured", minimum=1)
    mixture: tuple[str, ...] = setting((), "shares of the sources as name=share (code=0.3 text=0.7); default: by size")
    context_length: int = setting(256, "tokens that the model sees at once", minimum=8)
    hidden_size: int = setting(192, "width of the residual stream", minimum=8)
    num_layers: int = setting(5, "transformer layers", minimum=1)
    num_heads: int = setting(3, "attention heads", minimum=1)
    num_kv_heads: int = setting(3, "key/value heads (num_heads must be a multiple)", minimum=1)
    head_dim: int = setting(64, "size of a head", minimum=2)
    intermediate_size: int = setting(512, "width of the feed-forward layer", minimum=8)
    steps: int = setting(1000, "optimizer steps", minimum=1)
    batch_size: int = setting(16, "rows of context_length tokens per step", minimum=1)
    micro_batch: int = setting(0, "rows per forward pass (0: the whole batch); changes memory, not the result", minimum=0)
    lr: float = setting(3e-3, "AdamW learning rate", minimum=0)
    muon_lr: float = setting(0.02, "Muon learning rate of the hidden matrices (0: AdamW for all)", minimum=0)
    weight_decay: float = setting(0.0, "decoupled weight decay", minimum=0)
    clip_norm: float = setting(1.0, "gradient norm above which gradients are scaled down (0: never)", minimum=0)
    warmup: int = setting(20, "steps of linear warm-up", minimum=0)
    decay: float = setting(0.5, "share of the steps at the end in which the learning rate falls linearly to 0", minimum=0)
    eval_every: int = setting(0, "steps between held-out measurements (0: before and after only)", minimum=0)
    sample_prompts: tuple[str, ...] = setting((), "texts to continue at every measurement")
    checkpoint_every: int = setting(200, "steps between checkpoints (0: at the end only)", minimum=0)
    keep: int = setting(2, "newest checkpoints kept", minimum=1)
    precision: str = setting("float32", "of matrix products", choices=("float32", "bfloat16"))
    skip_bad_rows: bool = setting(False, "skip and count wrong rows instead of stopping")
    threads: int = setting(2, "CPU threads; the bits of a run depend on it", minimum=1)
    seed: int = setting(0, "seed of weights, order and samples", minimum=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.shares()
        if self.decay > 1:
            raise ConfigError(f"PretrainConfig.decay is {self.decay}; it is a share, from 0 to 1")

    def shares(self) -> dict[str, float] | None:
        """`mixture` as numbers. Raises ConfigError where an entry is not name=share."""
        out = {}
        for entry in self.mixture:
            name, _, share = entry.rpartition("=")
            try:
                out[name] = float(share)
            except ValueError:
                name = ""
            if not name:
                raise ConfigError(f"PretrainConfig.mixture has {entry!r}; wanted name=share, for example code=0.3")
        return out or None
