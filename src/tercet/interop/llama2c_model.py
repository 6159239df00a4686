"""Reader of llama2.c's weights (version 0): seven 32-bit integers, then float32 arrays without names.

integers: dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size (negative: a separate output layer), seq_len
arrays: embeddings; for all layers: attention norm, q, k, v, o, feed-forward norm, gate, down, up; last norm; cos,
sin
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tercet.errors import DataError
from tercet.model.config import ModelConfig

_HEADER = ("dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len")


def halves(weight: Tensor, heads: int) -> Tensor:
    """Reorder the rows of a query or key matrix [heads · C, D]: rotary pairs move from neighbours to halves of a head.

    The i-th angle then rotates rows (i, i + C / 2) instead of (2 i, 2 i + 1). Dot products of queries and keys do not
    depend on the order.
    """
    return weight.view(heads, -1, 2, weight.shape[-1]).transpose(1, 2).reshape(weight.shape)


def _shape(path: Path, data: bytes) -> ModelConfig:
    if len(data) < 4 * len(_HEADER):
        raise DataError(f"{path}: found {len(data)} bytes; a llama2.c file begins with {len(_HEADER)} integers")
    header = dict(zip(_HEADER, np.frombuffer(data, "<i4", len(_HEADER)).tolist()))
    if header["vocab_size"] < 0:
        raise DataError(f"{path}: the model has a separate output layer; wanted one with tied embeddings")
    heads, kv = header["n_heads"], header["n_kv_heads"]
    if min(header.values()) < 1 or header["dim"] % (2 * heads) or heads % kv:
        integers = ", ".join(f"{k} {v}" for k, v in header.items())
        raise DataError(f"{path}: not a llama2.c file of version 0: its first integers would be {integers}")
    return ModelConfig(
        vocab_size=header["vocab_size"],
        context_length=header["seq_len"],
        hidden_size=header["dim"],
        num_layers=header["n_layers"],
        num_heads=heads,
        num_kv_heads=kv,
        head_dim=header["dim"] // heads,
        intermediate_size=header["hidden_dim"],
        norm_eps=1e-5,
        qk_norm=False,
    )


def read_llama2c(path: str | Path) -> tuple[ModelConfig, dict[str, Tensor]]:
    """Return a model's configuration, and its tensors by the names of `Transformer`.

    Raises DataError if the file cannot be read or has another format.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    config = _shape(path, data)
    d, f, n, c = config.hidden_size, config.intermediate_size, config.num_layers, config.head_dim
    q, kv = config.num_heads * c, config.num_kv_heads * c
    sizes = {
        "model.embed_tokens": (config.vocab_size, d),
        "input_layernorm": (n, d),
        "self_attn.q_proj": (n, q, d),
        "self_attn.k_proj": (n, kv, d),
        "self_attn.v_proj": (n, kv, d),
        "self_attn.o_proj": (n, d, q),
        "post_attention_layernorm": (n, d),
        "mlp.gate_proj": (n, f, d),
        "mlp.down_proj": (n, d, f),
        "mlp.up_proj": (n, f, d),
        "model.norm": (d,),
        "cos": (config.context_length, c // 2),
        "sin": (config.context_length, c // 2),
    }
    expected = 4 * (len(_HEADER) + sum(int(np.prod(s)) for s in sizes.values()))
    if len(data) != expected:
        raise DataError(
            f"{path}: found {len(data):,} bytes; a llama2.c file of this shape has {expected:,}: is the file complete?"
        )
    values, arrays, start = np.frombuffer(data, "<f4", offset=4 * len(_HEADER)), dict[str, Tensor](), 0
    for name, size in sizes.items():
        end = start + int(np.prod(size))
        arrays[name] = torch.from_numpy(values[start:end].reshape(size).copy())
        start = end
    _check_angles(path, config, arrays.pop("cos"), arrays.pop("sin"))
    tensors = {}
    for name, array in arrays.items():
        if name.startswith("model."):
            tensors[f"{name}.weight"] = array
            continue
        for layer, weight in enumerate(array):
            if name.endswith(("q_proj", "k_proj")):
                weight = halves(weight, config.num_heads if name.endswith("q_proj") else config.num_kv_heads)
            tensors[f"model.layers.{layer}.{name}.weight"] = weight.contiguous()
    return config, tensors


def _check_angles(path: Path, config: ModelConfig, cos: Tensor, sin: Tensor) -> None:
    half = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
    angles = torch.outer(torch.arange(config.context_length, dtype=torch.float64), config.rope_theta**-half)
    if (cos - angles.cos()).abs().max() > 1e-3 or (sin - angles.sin()).abs().max() > 1e-3:
        raise DataError(f"{path}: the rotary angles have another base; wanted base {config.rope_theta:g}")
