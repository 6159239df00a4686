"""Adapters in both directions between tercet and PEFT, on transformers' Qwen3 made of our weights.

Needs the extra `proof` (peft, transformers); without it the proof is skipped and says so.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tercet.model.config import LORA_TARGETS, LoRAConfig, ModelConfig
from tercet.model.heads import ValueHeadModel
from tercet.model.lora import adapters, apply_lora, load_adapter, merge, save_adapter
from tercet.model.transformer import Transformer

peft = pytest.importorskip("peft", reason="peft is not installed: pip install 'tercet[proof]'")
transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install 'tercet[proof]'")

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # PEFT asks transformers by old names
SHAPE = ModelConfig(
    vocab_size=97, context_length=48, hidden_size=32, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=12,
    intermediate_size=40,
)  # fmt: skip
TOKENS = torch.randint(0, 97, (3, 40), generator=torch.Generator().manual_seed(0))


def ours(seed: int = 1) -> Transformer:
    """A small model whose weights are large enough that none can be left out unnoticed."""
    model = Transformer(SHAPE, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            noise = torch.randn(p.shape, generator=generator)
            p.copy_(0.2 * noise if p.dim() == 2 else 1 + 0.3 * noise)
    return model


def theirs(model: Transformer, kind: str = "Qwen3ForCausalLM") -> Any:
    """transformers' model of the same shape with the same weights, by their names."""
    c = model.config
    config = transformers.Qwen3Config(
        vocab_size=c.vocab_size, hidden_size=c.hidden_size, intermediate_size=c.intermediate_size,
        num_hidden_layers=c.num_layers,
        num_attention_heads=c.num_heads, num_key_value_heads=c.num_kv_heads, head_dim=c.head_dim,
        rms_norm_eps=c.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta}, max_position_embeddings=c.context_length,
        tie_word_embeddings=True, num_labels=1, pad_token_id=0,
    )  # fmt: skip
    made = getattr(transformers, kind)(config)
    result = made.load_state_dict(model.state_dict(), strict=False)
    assert not result.unexpected_keys
    assert set(result.missing_keys) <= {"lm_head.weight", "score.weight"}
    return made.eval()


def adapted(model: Any, targets: tuple[str, ...]) -> Any:
    """Adapters as after training: A and B are both far from 0."""
    apply_lora(model, LoRAConfig(4, alpha=6.0, targets=targets), seed=3)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for layer in adapters(model).values():
            layer.lora_B.weight.copy_(0.3 * torch.randn(layer.lora_B.weight.shape, generator=generator))
    return model


def with_peft(base: Any, folder: Path) -> Any:
    """Return PEFT's model of `base` and the adapter in `folder`; its warnings, as of missing tensors, are errors."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        return peft.PeftModel.from_pretrained(base, str(folder)).eval()


def far(a: Tensor, b: Tensor) -> float:
    """The largest difference."""
    return float((a - b).detach().abs().max())


def test_the_base_models_are_the_same() -> None:
    """Without adapters: the weights' names and the arithmetic are Qwen3's."""
    model = ours()
    assert far(theirs(model)(TOKENS).logits, model(TOKENS)) < 1e-4


@pytest.mark.parametrize("targets", [LORA_TARGETS, ("q_proj", "v_proj")])
def test_peft_loads_our_adapter_and_gives_our_logits(tmp_path: Path, targets: tuple[str, ...]) -> None:
    """As adapters and, by PEFT and by us, merged."""
    base = theirs(ours())
    model = adapted(ours(), targets)
    save_adapter(model, tmp_path)
    loaded = with_peft(base, tmp_path)
    assert far(loaded(TOKENS).logits, model(TOKENS)) < 1e-4
    assert far(model(TOKENS), ours()(TOKENS)) > 0.5, "the adapter changes the model a lot"
    merged = loaded.merge_and_unload()
    merge(model)
    assert far(merged(TOKENS).logits, model(TOKENS)) < 1e-4
    for name, tensor in model.state_dict().items():
        assert far(merged.state_dict()[name], tensor) < 1e-6


def test_we_load_pefts_adapter_and_give_its_logits(tmp_path: Path) -> None:
    """The other way round, from what PEFT's own save_pretrained writes."""
    settings = peft.LoraConfig(r=3, lora_alpha=12, target_modules=list(LORA_TARGETS), task_type="CAUSAL_LM")
    made = peft.get_peft_model(theirs(ours()), settings).eval()
    with torch.no_grad():
        for name, p in made.named_parameters():
            if "lora_" in name:
                p.normal_(std=0.3)
    made.save_pretrained(str(tmp_path))
    model = ours()
    load_adapter(model, tmp_path)
    assert far(made(TOKENS).logits, model(TOKENS)) < 1e-4
    assert far(model(TOKENS), ours()(TOKENS)) > 0.5


def test_peft_loads_our_reward_model_up_to_its_constant(tmp_path: Path) -> None:
    """transformers' head has no bias: scores differ by the one constant that the folder holds as `bias`."""
    backbone = ours()
    model = adapted(ValueHeadModel(ours(), seed=5), LORA_TARGETS)
    with torch.no_grad():
        model.gain.fill_(2.0)
        model.bias.fill_(0.7)
        model.score.bias.fill_(0.4)
    save_adapter(model, tmp_path)
    loaded = with_peft(theirs(backbone, "Qwen3ForSequenceClassification"), tmp_path)
    tokens = TOKENS.clamp(min=1)  # 0 is padding there: the last token that is none gets the score
    scores = loaded(tokens).logits[:, 0]
    assert far(scores + 2.0 * 0.4 + 0.7, model(tokens)[:, -1]) < 1e-4
    again = ValueHeadModel(ours(), seed=6)
    load_adapter(again, tmp_path)
    assert far(again(tokens), model(tokens)) < 1e-4
