"""The decoder: ids to hidden states to logits.

Shape legend: B batch, T time, V vocabulary, D hidden size, H heads, K key/value heads, C head dimension, L layers.
Parameter names are those of Qwen3 (and Llama) in Hugging Face transformers, so that the weights load there unchanged.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tercet.errors import ContextError
from tercet.model.attention import CAUSAL, Attention, Kind, KVCache, Pattern, SharedPrefix, pattern, selected
from tercet.model.config import ModelConfig
from tercet.model.layers import MLP, Rope, norm_of
from tercet.model.ops.linear import Linear, linear


class Block(nn.Module):
    """One pre-norm layer: attention, then feed-forward, each added to the residual stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = norm_of(config)
        self.post_attention_layernorm = norm_of(config)

    def forward(
        self, x: Tensor, rope: Rope, pattern: Pattern, cache: KVCache | None, layer: int, at: Tensor | None = None
    ) -> Tensor:
        """Update the residual stream [B, T, D]; with the flat indices `at`, return only those tokens, [A, D]."""
        x = selected(x, at) + self.self_attn(self.input_layernorm(x), rope, pattern, cache, layer, at)
        return x + self.mlp(self.post_attention_layernorm(x))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Embeddings, blocks and the final norm: everything except the output layer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        learned = config.positions == "learned"
        self.embed_positions = nn.Embedding(config.context_length, config.hidden_size) if learned else None
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = norm_of(config)


class Transformer(nn.Module):
    """A decoder-only language model: `forward` returns logits, `hidden` the hidden states for heads and losses.

    Weights are initialised on the CPU, so that they are the same on every device; `.to(device)` moves them.
    """

    rope_cos: Tensor
    rope_sin: Tensor

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        self.lm_head = None if config.tie_embeddings else Linear(config.hidden_size, config.vocab_size)
        if config.positions == "rope":
            powers = -torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
            positions = torch.arange(config.context_length, dtype=torch.float64)
            angles = torch.outer(positions, config.rope_theta**powers).repeat(1, 2)
            self.register_buffer("rope_cos", angles.cos().float(), persistent=False)
            self.register_buffer("rope_sin", angles.sin().float(), persistent=False)
        self._initialise(seed)

    def _initialise(self, seed: int) -> None:
        """Initialise matrices from Normal(0, 0.02), scaled by 1/√(2 L) if they write into the residual stream (GPT-2).

        Biases are 0.
        """
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                writes_residual = name.endswith(("o_proj.weight", "down_proj.weight"))
                std = 0.02 / (2 * self.config.num_layers) ** 0.5 if writes_residual else 0.02
                nn.init.normal_(parameter, std=std, generator=generator)
            elif name.endswith(".bias"):
                nn.init.zeros_(parameter)

    @property
    def device(self) -> torch.device:
        """The device of the weights; inputs must be on the same device."""
        return self.output_weight.device

    @property
    def output_weight(self) -> Tensor:
        """The output layer's matrix [V, D]; with tied embeddings this is the embedding matrix."""
        return (self.model.embed_tokens if self.lm_head is None else self.lm_head).weight

    # not one per line: eight parameters, most of them optional
    def hidden(self, tokens_BT: Tensor | None = None, segments_BT: Tensor | None = None, *,
               inputs_embeds: Tensor | None = None, positions_BT: Tensor | None = None,
               attention: Kind | SharedPrefix = CAUSAL, cache: KVCache | None = None, noise: Tensor | None = None,
               at: Tensor | None = None) -> Tensor:  # fmt: skip
        """Compute the final hidden states [B, T, D], or [A, D] for the flat indices `at` ([A] i64, into B · T) alone.

        The inputs are ids, or `inputs_embeds` [B, T, D] instead of their embeddings (for inputs that are not tokens,
        such as image patches). With `at`, the last layer computes only these tokens' feed-forward, which saves a fifth
        of a four-layer model.

        `segments_BT` separates packed texts: a token attends only to tokens of its own segment. `attention` says which
        tokens of its text a token attends to. `cache` holds the keys and values of earlier tokens and receives those of
        the new ones; positions then continue in each row. `positions_BT` sets the positions instead. `noise` [B, T, D]
        is added to the embeddings.

        Raises ContextError if a sequence is longer than the context, ValueError unless exactly one of ids and
        embeddings is given.
        """
        if (tokens_BT is None) == (inputs_embeds is None):
            given = "neither" if tokens_BT is None else "both"
            raise ValueError(f"hidden() got {given} of token ids and inputs_embeds; give exactly one of the two")
        x = self.model.embed_tokens(tokens_BT) if inputs_embeds is None else inputs_embeds
        T = x.shape[1]
        if cache is not None:
            cache.reserve(T)
            positions_BT = cache.columns if positions_BT is None and cache.width > T else positions_BT
        longest = T if positions_BT is None else int(positions_BT.max()) + 1
        if self.config.context_length < longest:
            raise ContextError(
                f"{longest} tokens, but the model's context is {self.config.context_length}; shorten the text"
            )
        layer_pattern = pattern(attention, T, segments_BT, cache, x.device)
        x, rope = self.with_positions(x, positions_BT)
        if noise is not None:
            x = x + noise
        for number, layer in enumerate(self.model.layers):
            x = layer(x, rope, layer_pattern, cache, number, at if number == self.config.num_layers - 1 else None)
        return self.model.norm(x)  # type: ignore[no-any-return]

    def with_positions(self, x_BTD: Tensor, positions_BT: Tensor | None = None) -> tuple[Tensor, Rope]:
        """Return the embeddings with learned positions added, or unchanged with the rotations of the positions.

        Without `positions_BT`, the positions of each row are 0, 1, ….
        """
        T = x_BTD.shape[1]
        if self.model.embed_positions is not None:
            weight = self.model.embed_positions.weight
            return x_BTD + (weight[None, :T] if positions_BT is None else weight[positions_BT]), None
        if positions_BT is None:
            return x_BTD, (self.rope_cos[None, :T], self.rope_sin[None, :T])
        return x_BTD, (self.rope_cos[positions_BT], self.rope_sin[positions_BT])

    def forward(self, tokens_BT: Tensor, segments_BT: Tensor | None = None) -> Tensor:
        """Return logits [B, T, V]."""
        return self.logits(self.hidden(tokens_BT, segments_BT))

    def logits(self, hidden: Tensor) -> Tensor:
        """Apply the output layer: [..., D] to logits [..., V]."""
        return linear(hidden, self.output_weight)
