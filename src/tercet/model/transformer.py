"""The decoder: ids to hidden states to logits.

Shape legend: B batch, T time, V vocabulary, D hidden size, H heads, K key/value heads, C head dimension, L layers.
Parameter names are those of Qwen3 (and Llama) in Hugging Face transformers, so that the weights load there unchanged.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tercet.errors import ContextError
from tercet.model.config import ModelConfig
from tercet.model.products import Linear, linear


class KVCache:
    """Keys and values of the tokens so far, in memory that is laid out once: [L, B, K, capacity, C]."""

    def __init__(self, config: ModelConfig, batch: int, capacity: int, dtype: torch.dtype = torch.float32) -> None:
        shape = (config.num_layers, batch, config.num_kv_heads, capacity, config.head_dim)
        self.keys, self.values = torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)
        self.length = 0

    def append(self, layer: int, k_BKTC: Tensor, v_BKTC: Tensor) -> tuple[Tensor, Tensor]:
        """Store new keys and values behind `length`; returns all of this layer's. `length` moves in `advance`."""
        end = self.length + k_BKTC.shape[2]
        self.keys[layer, :, :, self.length : end] = k_BKTC
        self.values[layer, :, :, self.length : end] = v_BKTC
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]

    def advance(self, tokens: int) -> None:
        """Called once when all layers have stored `tokens` more positions."""
        self.length += tokens

    def keep(self, rows: Tensor) -> None:
        """Drop every sequence of the batch but `rows` (indices)."""
        self.keys, self.values = self.keys[:, rows], self.values[:, rows]


@dataclass(frozen=True)
class Part:
    """Some of the sequences of `Branches`, side by side, filled up on the right."""

    rows: Tensor  # [N, S] i64: the places of each sequence's tokens
    asked: Tensor | None = None  # [N, Q] i64: the places among them whose output is wanted; None: all, causally
    mask: Tensor | None = None  # [N, 1, Q, S] bool: what these see


@dataclass(frozen=True)
class Branches:
    """Sequences that share a beginning, laid out so that each token of it is computed once, in one batch row of T places.

    Only attention mixes tokens: it alone sees whole sequences, one row for each; everything else sees the T places.
    Sequences of like lengths are a part, so that little is filled up.
    """

    parts: tuple[Part, ...]
    home: Tensor  # [T] i64: the row of the parts' outputs, one under the other, that is a place's

    def attend(self, q_1HTC: Tensor, k_1KTC: Tensor, v_1KTC: Tensor) -> Tensor:
        """Attention's output at every place, [1, H, T, C]."""
        q, k, v = (x[0].transpose(0, 1) for x in (q_1HTC, k_1KTC, v_1KTC))
        out = [
            attend(spread(q, p.rows if p.asked is None else p.asked), spread(k, p.rows), spread(v, p.rows), p.mask)
            .transpose(1, 2)
            .flatten(0, 1)
            for p in self.parts
        ]
        every = out[0] if len(out) == 1 else torch.cat(out)
        return every.index_select(0, self.home).transpose(0, 1)[None]


Mask = Tensor | Branches | None


class _Normalise(torch.autograd.Function):
    """x / √(mean x² + eps) · gain, and its gradient in a third of the passes over memory that autograd makes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, gain: Tensor, eps: float) -> Tensor:
        squares = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
        inverse = squares.div_(x.shape[-1]).add_(eps).rsqrt_()
        normal: Tensor = x * inverse
        ctx.save_for_backward(normal, inverse, gain)
        return normal * gain

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        normal, inverse, gain = ctx.saved_tensors
        d_gain = (grad * normal).flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        d_normal = grad * gain
        along = torch.linalg.vecdot(d_normal, normal).div_(normal.shape[-1]).unsqueeze(-1)
        d_x: Tensor = d_normal.addcmul_(normal, along, value=-1).mul_(inverse)
        return d_x, d_gain, None


class RMSNorm(nn.Module):
    """Root-mean-square normalisation (Zhang & Sennrich 2019), with a learned gain."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last dimension."""
        if x.dtype in (torch.float32, torch.float64) and x.dtype == self.weight.dtype:
            normal: Tensor = _Normalise.apply(x, self.weight, self.eps)  # type: ignore[no-untyped-call]
            return normal
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.eps)


class _Rotate(torch.autograd.Function):
    """Writes each half of the result once, and turns gradients back: a third of the passes over memory that autograd makes."""

    @staticmethod
    def forward(ctx: Any, x_BHTC: Tensor, cos_BTC: Tensor, sin_BTC: Tensor) -> Tensor:
        half = x_BHTC.shape[-1] // 2
        ctx.kind, ctx.cos, ctx.sin = x_BHTC.dtype, cos_BTC[..., :half].unsqueeze(1), sin_BTC[..., :half].unsqueeze(1)
        return _turned(x_BHTC, ctx.cos, ctx.sin, torch.promote_types(x_BHTC.dtype, cos_BTC.dtype), 1.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return _turned(grad, ctx.cos, ctx.sin, grad.dtype, -1.0).to(ctx.kind), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor, kind: torch.dtype, sign: float) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    out = torch.empty_like(x, dtype=kind)
    real, imaginary = out.chunk(2, dim=-1)
    torch.mul(a, cos, out=real).addcmul_(b, sin, value=-sign)
    torch.mul(b, cos, out=imaginary).addcmul_(a, sin, value=sign)
    return out


def rotate(x_BHTC: Tensor, cos_BTC: Tensor, sin_BTC: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021): the two halves of the head dimension are real and imaginary parts, turned alike."""
    turned: Tensor = _Rotate.apply(x_BHTC, cos_BTC, sin_BTC)  # type: ignore[no-untyped-call]
    return turned


def spread(x_THC: Tensor, rows_NS: Tensor) -> Tensor:
    """Places to sequences, [N, H, S, C]."""
    return x_THC.index_select(0, rows_NS.flatten()).view(*rows_NS.shape, *x_THC.shape[1:]).transpose(1, 2)


def attend(q_BHTC: Tensor, k_BKSC: Tensor, v_BKSC: Tensor, mask: Tensor | None) -> Tensor:
    """Scaled dot-product attention, [B, H, T, C]; H / K queries share a key and value. Without `mask`, causal."""
    if (share := q_BHTC.shape[1] // k_BKSC.shape[1]) > 1:
        k_BKSC, v_BKSC = k_BKSC.repeat_interleave(share, dim=1), v_BKSC.repeat_interleave(share, dim=1)
    q, k = q_BHTC.to(v_BKSC.dtype), k_BKSC.to(v_BKSC.dtype)
    return F.scaled_dot_product_attention(q, k, v_BKSC, attn_mask=mask, is_causal=mask is None)


def chosen(x_BTD: Tensor, at: Tensor | None) -> Tensor:
    """The places `at` of the B · T, [A, D]; without, all of them as they are."""
    return x_BTD if at is None else x_BTD.flatten(0, 1).index_select(0, at)


class Attention(nn.Module):
    """Grouped-query attention (Ainslie et al. 2023), by default with normalised queries and keys."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d, c = config.hidden_size, config.head_dim
        self.config = config
        self.q_proj = Linear(d, config.num_heads * c)
        self.k_proj = Linear(d, config.num_kv_heads * c)
        self.v_proj = Linear(d, config.num_kv_heads * c)
        self.o_proj = Linear(config.num_heads * c, d)
        self.q_norm = RMSNorm(c, config.norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(c, config.norm_eps) if config.qk_norm else nn.Identity()

    def forward(self, x_BTD: Tensor, rope: tuple[Tensor, Tensor], mask: Mask, cache: KVCache | None, layer: int,
                at: Tensor | None) -> Tensor:  # fmt: skip
        """Attend within what `mask` allows ([B, 1, T, S] bool, or branches; None is plain causal); [B, T, D], or [A, D] `at` places."""
        B, T, _ = x_BTD.shape
        c = self.config.head_dim
        q = rotate(self.q_norm(self.q_proj(x_BTD).view(B, T, -1, c)).transpose(1, 2), *rope)
        k = rotate(self.k_norm(self.k_proj(x_BTD).view(B, T, -1, c)).transpose(1, 2), *rope)
        v = self.v_proj(x_BTD).view(B, T, -1, c).transpose(1, 2)
        if cache is not None:
            k, v = cache.append(layer, k, v)
        if isinstance(mask, Branches):
            out = mask.attend(q, k, v)
        else:
            out = attend(q, k, v, mask)
        return self.o_proj(chosen(out.transpose(1, 2).reshape(B, T, -1), at))  # type: ignore[no-any-return]


class MLP(nn.Module):
    """SwiGLU feed-forward layer (Shazeer 2020)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        """down(silu(gate(x)) · up(x))."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))  # type: ignore[no-any-return]


class Block(nn.Module):
    """One pre-norm layer: attention, then feed-forward, each added to the residual stream."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.norm_eps)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Mask, cache: KVCache | None, layer: int,
                at: Tensor | None = None) -> Tensor:  # fmt: skip
        """Residual stream in, residual stream out: [B, T, D]; with `at` only those places come out, [A, D]."""
        x = chosen(x, at) + self.self_attn(self.input_layernorm(x), rope, mask, cache, layer, at)
        return x + self.mlp(self.post_attention_layernorm(x))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """Embedding, blocks and the last norm: everything but the output layer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_layers))
        self.norm = RMSNorm(config.hidden_size, config.norm_eps)


class Transformer(nn.Module):
    """A causal language model; `forward` gives logits, `hidden` what heads and losses work on."""

    rope_cos: Tensor
    rope_sin: Tensor

    def __init__(self, config: ModelConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.model = Decoder(config)
        frequencies = config.rope_theta ** (-torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim)
        angles = torch.outer(torch.arange(config.context_length, dtype=torch.float64), frequencies).repeat(1, 2)
        self.register_buffer("rope_cos", angles.cos().float(), persistent=False)
        self.register_buffer("rope_sin", angles.sin().float(), persistent=False)
        self._initialise(seed)

    def _initialise(self, seed: int) -> None:
        """Normal(0, .02) everywhere; what writes into the residual stream starts smaller by 1/√(2 L) (GPT-2)."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                writes = name.endswith(("o_proj.weight", "down_proj.weight"))
                std = 0.02 / (2 * self.config.num_layers) ** 0.5 if writes else 0.02
                nn.init.normal_(parameter, std=std, generator=generator)

    @property
    def output_weight(self) -> Tensor:
        """The output layer's matrix [V, D]: the embeddings, tied."""
        return self.model.embed_tokens.weight

    def hidden(self, tokens_BT: Tensor, segments_BT: Tensor | None = None, *, positions_BT: Tensor | None = None,
               mask: Mask = None, cache: KVCache | None = None, noise: Tensor | None = None, at: Tensor | None = None) -> Tensor:  # fmt: skip
        """Final hidden states [B, T, D], or [A, D] of the places `at` ([A] i64, numbered through B · T) alone.

        What nobody reads of the last layer is then not computed: its feed-forward is a fifth of a four-layer model.

        `segments_BT` keeps packed texts apart: a token attends only to earlier tokens of its own segment. `mask`
        ([B, 1, T, S] bool, S with the cache's tokens) and `positions_BT` serve the sampler and answers that share their
        prompt; `noise` [B, T, D] is added to the embeddings. Raises ContextError where a sequence is longer than the context.
        """
        T = tokens_BT.shape[1]
        longest = T if positions_BT is None else int(positions_BT.max()) + 1
        if self.config.context_length < longest:
            raise ContextError(
                f"{longest} tokens, but the model's context is {self.config.context_length}; shorten the text"
            )
        if (
            segments_BT is not None and (segments_BT != segments_BT[:, :1]).any()
        ):  # one text a row is plain causal, and faster
            mask = segment_mask(segments_BT)
        if positions_BT is None:
            cos, sin = self.rope_cos[None, :T], self.rope_sin[None, :T]
        else:
            cos, sin = self.rope_cos[positions_BT], self.rope_sin[positions_BT]
        x = self.model.embed_tokens(tokens_BT)
        if noise is not None:
            x = x + noise
        for number, layer in enumerate(self.model.layers):
            x = layer(x, (cos, sin), mask, cache, number, at if number == self.config.num_layers - 1 else None)
        if cache is not None:
            cache.advance(T)
        return self.model.norm(x)  # type: ignore[no-any-return]

    def forward(self, tokens_BT: Tensor, segments_BT: Tensor | None = None) -> Tensor:
        """Logits [B, T, V]."""
        return self.logits(self.hidden(tokens_BT, segments_BT))

    def logits(self, hidden: Tensor) -> Tensor:
        """The output layer: [..., D] to [..., V]."""
        return linear(hidden, self.output_weight)


def segment_mask(segments_BT: Tensor) -> Tensor:
    """[B, 1, T, T] bool: True where query and key are of one segment and the key is not later."""
    T = segments_BT.shape[1]
    causal = torch.ones(T, T, dtype=torch.bool, device=segments_BT.device).tril()
    return ((segments_BT[:, :, None] == segments_BT[:, None, :]) & causal)[:, None]


class ScalarModel(nn.Module):
    """A transformer with one number per token: the reward model and PPO's critic.

    The output is gain · (w·h + b) + bias. `bias` and `gain` are not trained: the reward stage sets them so that
    demonstrations score 0 on average (Ouyang et al. 2022, section 3.5).
    """

    bias: Tensor
    gain: Tensor

    def __init__(self, backbone: Transformer, seed: int = 0) -> None:
        super().__init__()
        self.config = backbone.config
        self.backbone = backbone
        self.score = nn.Linear(self.config.hidden_size, 1)
        std = 1.0 / (self.config.hidden_size + 1) ** 0.5  # Stiennon et al. 2020, appendix B.1
        nn.init.normal_(self.score.weight, std=std, generator=torch.Generator().manual_seed(seed))
        nn.init.zeros_(self.score.bias)
        self.register_buffer("bias", torch.zeros(()))
        self.register_buffer("gain", torch.ones(()))

    def forward(self, tokens_BT: Tensor, segments_BT: Tensor | None = None) -> Tensor:
        """One number per token, [B, T]."""
        return self.read(self.backbone.hidden(tokens_BT, segments_BT))

    def read(self, hidden: Tensor) -> Tensor:
        """One number per hidden state: [..., D] to [...]."""
        return self.gain * self.score(hidden).squeeze(-1) + self.bias  # type: ignore[no-any-return]
