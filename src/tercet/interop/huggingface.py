"""A run as a folder that Hugging Face transformers, vLLM and others load: shape, weights, tokenizer, chat template.

    config.json  generation_config.json  model.safetensors  tokenizer.json  tokenizer_config.json

The model is a Qwen3, or without QK-norm a Llama; its weights keep their names. A text that the tokenizer there encodes
begins with the token that begins texts here, as long as special tokens are not turned off.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from tercet.errors import ConfigError
from tercet.model.config import ModelConfig
from tercet.tokenizer.bpe import Tokenizer
from tercet.tokenizer.chat_template import chat_template
from tercet.training.load import language_model_run, load_language_model, load_reward_model, trained_by
from tercet.training.records import write_text
from tercet.training.run import Run, new_folder


def export_model(run: str | Path | Run, out: str | Path) -> Path:
    """Write the model of `run` into the new folder `out`.

    A reward model becomes a sequence classifier with one label. transformers knows no bias there: its scores are ours
    minus `tercet_score_offset` of config.json, which changes no comparison. Raises ConfigError where the run has no
    model or `out` is in use.
    """
    run, out = run if isinstance(run, Run) else Run(run), Path(out)
    reward = trained_by(run) == "reward"
    tokenizer = Tokenizer.load(run.path)
    if reward:
        judge = load_reward_model(run)
        shape, offset = judge.config, float((judge.gain * judge.score.bias + judge.bias).detach())
        tensors = {f"model.{k}": v for k, v in judge.backbone.model.state_dict().items()}
        tensors["score.weight"] = judge.gain * judge.score.weight
        config = model_config(shape, tokenizer, "ForSequenceClassification")
        config |= {"id2label": {"0": "score"}, "label2id": {"score": 0}, "tercet_score_offset": offset}
    else:
        model = load_language_model(language_model_run(str(run.path)))
        shape, tensors = model.config, dict(model.state_dict())
        config = model_config(shape, tokenizer, "ForCausalLM")
    new_folder(out)
    _write(out / "config.json", config)
    if not reward:
        _write(out / "generation_config.json", {k: config[k] for k in ("bos_token_id", "eos_token_id", "pad_token_id")})
    save_file({k: _plain(v) for k, v in tensors.items()}, out / "model.safetensors", metadata={"format": "pt"})
    _write(out / "tokenizer.json", tokenizer_json(tokenizer))
    _write(out / "tokenizer_config.json", tokenizer_config(tokenizer, shape, reward))
    return out


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().float().contiguous()


def _write(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def model_config(shape: ModelConfig, tokenizer: Tokenizer, task: str) -> dict[str, Any]:
    """config.json; `task` is the end of the class's name. Raises ConfigError for shapes that are not exported."""
    usual = ModelConfig(shape.vocab_size)
    odd = [name for name in ("attention_bias", "mlp_bias", "norm", "positions", "mlp")
           if getattr(shape, name) != getattr(usual, name)]  # fmt: skip
    if odd:
        found = ", ".join(f"{name} {getattr(shape, name)}" for name in odd)
        raise ConfigError(
            f"a model with {found} cannot be exported yet; wanted Qwen3's or Llama's shape "
            f"({', '.join(f'{name} {getattr(usual, name)}' for name in odd)})"
        )
    kind, name = ("qwen3", "Qwen3") if shape.qk_norm else ("llama", "Llama")
    return {
        "architectures": [name + task], "model_type": kind, "vocab_size": shape.vocab_size, "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size, "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads, "num_key_value_heads": shape.num_kv_heads, "head_dim": shape.head_dim,
        "hidden_act": "silu", "rms_norm_eps": shape.norm_eps, "rope_theta": shape.rope_theta, "attention_bias": False,
        "attention_dropout": 0.0, "max_position_embeddings": shape.context_length, "tie_word_embeddings": shape.tie_embeddings,
        "initializer_range": 0.02, "use_cache": True, "torch_dtype": "float32", "bos_token_id": tokenizer.endoftext,
        "eos_token_id": [tokenizer.im_end, tokenizer.endoftext], "pad_token_id": tokenizer.pad,
    }  # fmt: skip


def tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """tokenizer.json, with the rule that puts the beginning of a text in front; without roles, which are our own."""
    whole = json.loads(tokenizer.to_json())
    for token in whole["added_tokens"]:
        token.pop("roles", None)
    begin = tokenizer.token(tokenizer.endoftext)
    special = {"SpecialToken": {"id": begin, "type_id": 0}}
    a, b = ({"Sequence": {"id": name, "type_id": kind}} for name, kind in (("A", 0), ("B", 1)))
    return {
        **whole,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [special, a],
            "pair": [special, a, b],
            "special_tokens": {begin: {"id": begin, "ids": [tokenizer.endoftext], "tokens": [begin]}},
        },
    }


def tokenizer_config(tokenizer: Tokenizer, shape: ModelConfig, reward: bool) -> dict[str, Any]:
    """tokenizer_config.json. A judge's conversations end with the end token, on which it was trained to score."""
    begin, end, pad = map(tokenizer.token, (tokenizer.endoftext, tokenizer.im_end, tokenizer.pad))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": begin, "eos_token": end, "pad_token": pad,
        "model_max_length": shape.context_length, "clean_up_tokenization_spaces": False,
        "padding_side": "right" if reward else "left",
    }  # fmt: skip
    if tokenizer.special.turns:
        config["chat_template"] = chat_template(tokenizer.special, line_feed_at_end=not reward)
    return config
