"""Export of a run as a folder that Hugging Face transformers, vLLM and others can load.

    config.json  generation_config.json  model.safetensors  tokenizer.json  tokenizer_config.json

The model becomes a Qwen3, or a Llama if it has no QK-norm; its weights keep their names. The exported tokenizer puts
`<|endoftext|>` before a text, as tercet does, unless special tokens are turned off.
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
from tercet.training.load import load_language_model, load_reward_model
from tercet.training.records import write_text
from tercet.training.run import Run, new_folder
from tercet.training.stage import language_model_run, trained_by


def export_model(run: str | Path | Run, out: str | Path) -> Path:
    """Write the model of `run` into the new folder `out`, and return the folder.

    A reward model becomes a sequence classifier with one label. Such a classifier has no bias in transformers, so its
    scores are lower by `tercet_score_offset` in config.json; the order of answers is the same. Raises ConfigError if
    the run has no model or `out` is not empty.
    """
    run, out = run if isinstance(run, Run) else Run(run), Path(out)
    reward = trained_by(run) == "reward"
    tokenizer = Tokenizer.load(run.path)
    if reward:
        scorer = load_reward_model(run)
        shape, offset = scorer.config, float((scorer.gain * scorer.score.bias + scorer.bias).detach())
        tensors = {f"model.{k}": v for k, v in scorer.backbone.model.state_dict().items()}
        tensors["score.weight"] = scorer.gain * scorer.score.weight
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
    """Return the content of config.json; `task` is the end of the class name, such as "ForCausalLM".

    Raises ConfigError if transformers' Qwen3 and Llama do not have the model's architecture.
    """
    usual = ModelConfig(shape.vocab_size)
    names = ("attention_bias", "mlp_bias", "norm", "positions", "mlp")
    if odd := [name for name in names if getattr(shape, name) != getattr(usual, name)]:
        has, needed = (", ".join(f"{name} {getattr(config, name)}" for name in odd) for config in (shape, usual))
        raise ConfigError(
            f"a model with {has} cannot be exported; wanted the architecture of Qwen3 or Llama ({needed})"
        )
    name = "Qwen3" if shape.qk_norm else "Llama"
    return {
        "architectures": [name + task],
        "model_type": name.lower(),
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.hidden_size,
        "intermediate_size": shape.intermediate_size,
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "num_key_value_heads": shape.num_kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": shape.norm_eps,
        "rope_theta": shape.rope_theta,
        "attention_bias": False,
        "attention_dropout": 0.0,
        "max_position_embeddings": shape.context_length,
        "tie_word_embeddings": shape.tie_embeddings,
        "initializer_range": 0.02,
        "use_cache": True,
        "torch_dtype": "float32",
        "bos_token_id": tokenizer.endoftext,
        "eos_token_id": [tokenizer.im_end, tokenizer.endoftext],
        "pad_token_id": tokenizer.pad,
    }


def tokenizer_json(tokenizer: Tokenizer) -> dict[str, Any]:
    """Return the content of tokenizer.json: with a rule that adds `<|endoftext|>` in front, without tercet's roles."""
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
    """Return the content of tokenizer_config.json, with the chat template.

    The conversations of a reward model end with the end token, at which it was trained to score.
    """
    begin, end, pad = map(tokenizer.token, (tokenizer.endoftext, tokenizer.im_end, tokenizer.pad))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": begin,
        "eos_token": end,
        "pad_token": pad,
        "model_max_length": shape.context_length,
        "clean_up_tokenization_spaces": False,
        "padding_side": "right" if reward else "left",
    }
    if tokenizer.special.turns:
        config["chat_template"] = chat_template(tokenizer.special, line_feed_at_end=not reward)
    return config
