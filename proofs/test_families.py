"""Shapes of other families in Hugging Face transformers: with the same weights, our hidden states are theirs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tercet.model.config import ModelConfig
from tercet.model.transformer import Transformer

transformers = pytest.importorskip("transformers")

COMMON: dict[str, Any] = {
    "vocab_size": 300, "context_length": 64, "hidden_size": 48, "num_layers": 3, "num_heads": 4, "head_dim": 12,
    "intermediate_size": 100, "qk_norm": False,
}  # fmt: skip
LLAMA = {
    "vocab_size": 300, "max_position_embeddings": 64, "hidden_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2, "intermediate_size": 100, "rms_norm_eps": 1e-6, "rope_theta": 10_000.0,
    "attn_implementation": "eager",
}  # fmt: skip


def shaken(model: Any) -> Any:
    """Weights large enough that nothing can be left out unnoticed."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            p.copy_(0.25 * noise if p.dim() == 2 else (0.3 * noise if name.endswith("bias") else 1 + 0.3 * noise))
    return model.eval()


def of_gpt2(weights: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """GPT-2's tensors by our names: its matrices are transposed, its queries, keys and values lie in one."""
    out = {
        "model.embed_tokens.weight": weights["wte.weight"], "model.embed_positions.weight": weights["wpe.weight"],
        "model.norm.weight": weights["ln_f.weight"], "model.norm.bias": weights["ln_f.bias"],
    }  # fmt: skip
    names = {"attn.c_proj": "self_attn.o_proj", "mlp.c_fc": "mlp.up_proj", "mlp.c_proj": "mlp.down_proj"}
    for n in range(layers):
        for kind in ("weight", "bias"):
            out[f"model.layers.{n}.input_layernorm.{kind}"] = weights[f"h.{n}.ln_1.{kind}"]
            out[f"model.layers.{n}.post_attention_layernorm.{kind}"] = weights[f"h.{n}.ln_2.{kind}"]
            for theirs, ours in names.items():
                out[f"model.layers.{n}.{ours}.{kind}"] = weights[f"h.{n}.{theirs}.{kind}"].t()
            parts = weights[f"h.{n}.attn.c_attn.{kind}"].t().chunk(3)
            for letter, part in zip("qkv", parts):
                out[f"model.layers.{n}.self_attn.{letter}_proj.{kind}"] = part
    return out


def test_gpt2() -> None:
    theirs = shaken(transformers.GPT2Model(transformers.GPT2Config(
        vocab_size=300, n_positions=64, n_embd=48, n_layer=3, n_head=4, n_inner=100, bos_token_id=0, eos_token_id=0,
        attn_implementation="eager",
    )))  # fmt: skip
    shape = ModelConfig(**COMMON, num_kv_heads=4, norm="layernorm", positions="learned", mlp="gelu",
                        attention_bias="qkvo", mlp_bias=True, norm_eps=1e-5)  # fmt: skip
    ours = Transformer(shape)
    ours.load_state_dict(of_gpt2(theirs.state_dict(), 3))
    same(ours, lambda tokens: (theirs(tokens).last_hidden_state, None))
    assert shape.parameters() == sum(p.numel() for p in theirs.parameters())


@pytest.mark.parametrize("kind", ["Qwen2", "Llama", "LlamaUntied", "LlamaBiased"])
def test_qwen2_and_llama(kind: str) -> None:
    more: dict[str, Any] = {"tie_word_embeddings": kind != "LlamaUntied"}
    if kind == "LlamaBiased":
        more |= {"attention_bias": True, "mlp_bias": True}
    family = "Qwen2" if kind == "Qwen2" else "Llama"
    config = getattr(transformers, f"{family}Config")(**LLAMA, **more)
    theirs = shaken(getattr(transformers, f"{family}ForCausalLM")(config))
    bias = {"Qwen2": "qkv", "LlamaBiased": "qkvo"}.get(kind, "none")
    shape = ModelConfig(**COMMON, num_kv_heads=2, attention_bias=bias, mlp_bias=kind == "LlamaBiased",
                        tie_embeddings=kind != "LlamaUntied")  # fmt: skip
    ours, weights = Transformer(shape), theirs.state_dict()
    if shape.tie_embeddings:
        del weights["lm_head.weight"]
    ours.load_state_dict(weights)  # the names are the same

    def read(tokens: Tensor) -> tuple[Tensor, Tensor]:
        out = theirs(tokens, output_hidden_states=True)
        return out.hidden_states[-1], out.logits

    same(ours, read)
    assert shape.parameters() == sum(p.numel() for p in theirs.parameters())


def same(ours: Transformer, theirs: Any) -> None:
    """Hidden states after the last norm, and logits where there are any."""
    tokens = torch.randint(300, (3, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        hidden, logits = theirs(tokens)
        assert hidden.std() > 0.1
        torch.testing.assert_close(ours.hidden(tokens), hidden, atol=1e-4, rtol=0)
        if logits is not None:
            torch.testing.assert_close(ours(tokens), logits, atol=1e-3, rtol=0)
