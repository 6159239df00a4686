"""LoRA (Hu et al. 2021): train small matrices beside frozen ones, then merge them or save them in PEFT's format.

A layer W [out, in] becomes W x + alpha / rank · B A x with A [rank, in] and B [out, rank]. B starts at 0, so the
model's output does not change at the start. W keeps its name; A and B are `lora_A.weight` and `lora_B.weight` beside
it, as in PEFT.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from tercet.errors import CheckpointError, ConfigError
from tercet.model.config import LoRAConfig
from tercet.model.heads import ValueHeadModel
from tercet.model.ops.linear import Linear, linear
from tercet.model.transformer import Transformer

PREFIX = "base_model.model."  # PEFT puts this before the parameter names of the wrapped model
# PEFT's options that tercet does not support. They are refused, since ignoring them would give another model.
# Not one per line: a list of words.
_UNSUPPORTED = (
    "use_rslora", "use_dora", "alpha_pattern", "rank_pattern", "layers_to_transform", "layer_replication", "lora_bias",
    "trainable_token_indices", "target_parameters", "fan_in_fan_out", "megatron_config", "exclude_modules",
)  # fmt: skip


class LoRALinear(nn.Module):
    """A linear layer with frozen weight and bias and a trained low-rank update."""

    def __init__(self, linear: nn.Linear, config: LoRAConfig, generator: torch.Generator) -> None:
        super().__init__()
        out, into = linear.weight.shape
        self.config = config
        self.weight, self.bias = linear.weight, linear.bias
        like: dict[str, Any] = {"dtype": linear.weight.dtype, "device": linear.weight.device}
        self.lora_A = nn.Linear(into, config.rank, bias=False, **like)
        self.lora_B = nn.Linear(config.rank, out, bias=False, **like)
        # A is initialised like torch's linear layer, as in the code of LoRA's authors; the same on every device
        drawn = torch.empty(config.rank, into, dtype=linear.weight.dtype, device=generator.device)
        drawn.uniform_(-(into**-0.5), into**-0.5, generator=generator)
        with torch.no_grad():
            self.lora_A.weight.copy_(drawn)
            self.lora_B.weight.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """Map [..., in] to [..., out]."""
        update: Tensor = self.lora_B(self.lora_A(x))
        return linear(x, self.weight, self.bias) + self.config.alpha / self.config.rank * update

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Return an equivalent plain layer, with the update added to the weight."""
        a, b = self.lora_A.weight.double(), self.lora_B.weight.double()
        plain = Linear(a.shape[1], b.shape[0], device="meta")
        weight = self.weight.double() + self.config.alpha / self.config.rank * (b @ a)
        plain.weight = nn.Parameter(weight.to(self.weight.dtype))
        plain.bias = self.bias
        return plain


def apply_lora(model: Transformer | ValueHeadModel, config: LoRAConfig, seed: int) -> None:
    """Add adapters to the transformer's layers named in `config.targets` and freeze the rest, except a value head.

    The model's output does not change. Raises ConfigError if the model already has adapters, or has no layer with one
    of these names.
    """
    if adapters(model):
        raise ConfigError("the model already has LoRA adapters; merge them first")
    generator = torch.Generator().manual_seed(seed)
    backbone = _backbone(model)
    backbone.requires_grad_(False)
    for parent, name, layer in _layers(backbone):
        if name in config.targets and isinstance(layer, nn.Linear):
            setattr(parent, name, LoRALinear(layer, config, generator))
    if not adapters(model):
        raise ConfigError(
            f"the LoRA targets (--lora-targets) are {', '.join(config.targets)}, but the model has no such layer; "
            "name others, such as q_proj,v_proj"
        )


def merge(model: Transformer | ValueHeadModel) -> None:
    """Replace layers with adapters by equivalent plain layers, and unfreeze all weights."""
    for parent, name, layer in _layers(model):
        if isinstance(layer, LoRALinear):
            setattr(parent, name, layer.merged())
    model.requires_grad_(True)


def adapters(model: nn.Module) -> dict[str, LoRALinear]:
    """Return the layers with adapters by name; empty if there are none."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, LoRALinear)}


def _backbone(model: Transformer | ValueHeadModel) -> Transformer:
    return model.backbone if isinstance(model, ValueHeadModel) else model


def _layers(model: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    """Return (parent, name in the parent, layer) of every module."""
    return [(parent, name, layer) for parent in model.modules() for name, layer in parent.named_children()]


# -- PEFT's format ----------------------------------------------------------------------------------------------------


def save_adapter(model: Transformer | ValueHeadModel, folder: str | Path) -> None:
    """Write adapter_config.json and adapter_model.safetensors in PEFT's format, for transformers' Qwen3 classes.

    For a ValueHeadModel (Qwen3ForSequenceClassification) the score head is saved too, with the gain multiplied into its
    weight. That class has no constant term, so the constant is saved as the tensor `bias`, which PEFT ignores. Raises
    ConfigError if the model has no adapters.
    """
    layers = adapters(_backbone(model))
    if not layers:
        raise ConfigError("the model has no LoRA adapters to save; train it with --lora-rank above 0")
    config = next(iter(layers.values())).config
    # not one per line: PEFT's keys as a table
    described = {
        "peft_type": "LORA", "task_type": "SEQ_CLS" if isinstance(model, ValueHeadModel) else "CAUSAL_LM",
        "base_model_name_or_path": None, "r": config.rank, "lora_alpha": config.alpha,
        "target_modules": list(config.targets),
        "modules_to_save": ["score"] if isinstance(model, ValueHeadModel) else None,
        "lora_dropout": 0.0, "bias": "none",
        "fan_in_fan_out": False, "init_lora_weights": True, "inference_mode": True,
    }  # fmt: skip
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    (path / "adapter_config.json").write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
    tensors = {PREFIX + name: t.detach().contiguous() for name, t in _matrices(_backbone(model)).items()}
    if isinstance(model, ValueHeadModel):
        with torch.no_grad():
            tensors[PREFIX + "score.weight"] = model.gain * model.score.weight
            tensors[PREFIX + "bias"] = (model.gain * model.score.bias + model.bias).squeeze()
    save_file(tensors, path / "adapter_model.safetensors", metadata={"format": "pt"})


def load_adapter(model: Transformer | ValueHeadModel, folder: str | Path) -> None:
    """Add the adapters of a folder in PEFT's format to a plain model.

    Raises ConfigError if the folder uses an option that tercet does not support, CheckpointError if it is damaged or
    was made for another model.
    """
    path = Path(folder)
    try:
        described = dict(json.loads((path / "adapter_config.json").read_text(encoding="utf-8")))
        tensors = load_file(path / "adapter_model.safetensors")
    except Exception as error:  # safetensors has its own exception type, besides OSError and ValueError
        raise CheckpointError(f"{path}: no adapter in PEFT's format: {error}") from error
    apply_lora(model, _supported(described, tensors, path), seed=0)
    own = {PREFIX + name: t for name, t in _matrices(_backbone(model)).items()}
    if isinstance(model, ValueHeadModel):
        own |= {PREFIX + "score.weight": model.score.weight, PREFIX + "bias": model.bias}
    if {n: t.shape for n, t in tensors.items()} != {n: t.shape for n, t in own.items()}:
        odd = sorted(tensors.keys() ^ own.keys()) or sorted(n for n in own if own[n].shape != tensors[n].shape)
        raise CheckpointError(
            f"{path}: an adapter of another model: {odd[0]} is missing on one side or has another shape; "
            "load it onto the model that it was trained from"
        )
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(tensors[name])
        if isinstance(model, ValueHeadModel):  # the saved weight and bias already include these two
            model.gain.fill_(1.0)
            model.score.bias.zero_()


def _matrices(backbone: Transformer) -> dict[str, Tensor]:
    return {name: p for name, p in backbone.named_parameters() if ".lora_" in name}


def _supported(described: dict[str, Any], tensors: dict[str, Tensor], path: Path) -> LoRAConfig:
    """Return the settings of a PEFT folder. Targets come from the tensors' names: PEFT has many ways to give them."""
    unsupported = [name for name in _UNSUPPORTED if described.get(name)]
    if described.get("peft_type") != "LORA" or described.get("bias", "none") != "none" or unsupported:
        unsupported = unsupported or [f"{name} {described.get(name, 'none')}" for name in ("peft_type", "bias")]
        raise ConfigError(f"{path / 'adapter_config.json'}: wanted plain LoRA, found {', '.join(unsupported)}")
    targets = dict.fromkeys(name.split(".")[-3] for name in tensors if name.endswith(".lora_A.weight"))
    try:
        return LoRAConfig(int(described["r"]), float(described["lora_alpha"]), tuple(targets))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path / 'adapter_config.json'}: damaged: wanted numbers for r and lora_alpha: {error}"
        ) from error
