"""Settings of a model's shape and of LoRA adapters (no torch here)."""

from __future__ import annotations

from dataclasses import dataclass

from tercet.errors import ConfigError

SIZES = ("context_length", "hidden_size", "num_layers", "num_heads", "num_kv_heads", "head_dim", "intermediate_size")
# Settings of a model that are names, with their values.
CHOICES = {
    "attention_bias": ("none", "qkv", "qkvo"),
    "norm": ("rmsnorm", "layernorm"),
    "positions": ("rope", "learned"),
    "mlp": ("swiglu", "gelu"),
}
LORA_TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class LoRAConfig:
    """Low-rank adapters (Hu et al. 2021): the layers `targets` compute W x + alpha / rank · B A x; only A, B train."""

    rank: int
    alpha: float = 16.0
    targets: tuple[str, ...] = LORA_TARGETS

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ConfigError(f"the LoRA rank (--lora-rank) is {self.rank}; it must be at least 1")
        if not self.alpha > 0:
            raise ConfigError(
                f"the LoRA alpha (--lora-alpha) is {self.alpha:g}; it must be above 0, or nothing is learnt"
            )
        wrong = [name for name in self.targets if name not in LORA_TARGETS]
        if wrong or not self.targets or len(set(self.targets)) < len(self.targets):
            targets = ", ".join(self.targets) or "empty"
            raise ConfigError(
                f"the LoRA targets (--lora-targets) are {targets}; wanted some of {', '.join(LORA_TARGETS)}, each once"
            )


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a decoder; the defaults are a Qwen3 architecture.

    That is RMSNorm, RoPE, grouped-query attention, QK-norm, SwiGLU and a tied output layer. Llama is the same without
    `qk_norm`. Qwen2 is Llama with `attention_bias` "qkv". GPT-2 has `norm` "layernorm", `positions` "learned", `mlp`
    "gelu" and all biases.
    """

    vocab_size: int
    context_length: int = 256
    hidden_size: int = 192
    num_layers: int = 5
    num_heads: int = 3
    num_kv_heads: int = 3
    head_dim: int = 64
    intermediate_size: int = 512
    rope_theta: float = 10_000.0
    norm_eps: float = 1e-6
    qk_norm: bool = True
    tie_embeddings: bool = True  # False: the output layer has its own matrix, `lm_head`
    attention_bias: str = "none"  # projections that have a bias: "none", "qkv", or "qkvo" with the output's
    mlp_bias: bool = False
    norm: str = (
        "rmsnorm"  # or "layernorm": before attention, before the feed-forward and at the end; QK-norm stays RMSNorm
    )
    positions: str = "rope"  # or "learned": a vector for each position, added to the embedding
    mlp: str = "swiglu"  # or "gelu": GPT-2's two matrices with tanh-approximated GELU between them

    def __post_init__(self) -> None:
        for name in ("vocab_size", *SIZES):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(
                f"--num-heads ({self.num_heads}) must be a multiple of --num-kv-heads ({self.num_kv_heads}): the "
                "heads share key/value heads in equal groups"
            )
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(choices)}")
        if self.positions == "rope" and self.head_dim % 2:
            raise ConfigError(f"--head-dim is {self.head_dim}; rotary positions need an even number")

    def parameters(self, embeddings: bool = True) -> int:
        """Count the parameters, with or without the embeddings of tokens and positions and the output layer."""
        d, h, f = self.hidden_size, self.head_dim, self.intermediate_size
        attention = 2 * d * self.num_heads * h + 2 * d * self.num_kv_heads * h + 2 * h * self.qk_norm
        attention += (self.num_heads + 2 * self.num_kv_heads) * h * (self.attention_bias != "none")
        attention += d * (self.attention_bias == "qkvo")
        wide = 2 if self.mlp == "swiglu" else 1  # matrices from the hidden size to the intermediate size
        mlp = (wide + 1) * d * f + (wide * f + d) * self.mlp_bias
        norm = d if self.norm == "rmsnorm" else 2 * d
        outside = self.vocab_size * d * (1 if self.tie_embeddings else 2)
        outside += self.context_length * d * (self.positions == "learned")
        return self.num_layers * (attention + mlp + 2 * norm) + norm + (outside if embeddings else 0)

    def flops_per_token(self) -> float:
        """Return the training FLOPs per token (Kaplan et al. 2020, section 2.1).

        This is 6 N, where N includes the output layer but no embeddings, plus attention at full context.
        """
        matmul = self.parameters(embeddings=False) + self.vocab_size * self.hidden_size
        return 6.0 * matmul + 6.0 * self.num_layers * self.num_heads * self.head_dim * self.context_length
