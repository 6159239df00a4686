"""LoRA (Hu et al. 2021): train small matrices beside frozen ones, then merge them, or keep them in PEFT's format.

A layer W [out, in] becomes W x + alpha / rank · B A x with A [rank, in] and B [out, rank]. B starts at 0, so that the
model starts as it was. W keeps its name; A and B are `lora_A.weight` and `lora_B.weight` beside it, as in PEFT.
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

PREFIX = "base_model.model."  # what PEFT writes before the names of the model that it wraps
# What a folder from elsewhere may ask for and we do not do: silently leaving it out would give another model.
_UNSUPPORTED = (
    "use_rslora", "use_dora", "alpha_pattern", "rank_pattern", "layers_to_transform", "layer_replication", "lora_bias",
    "trainable_token_indices", "target_parameters", "fan_in_fan_out", "megatron_config", "exclude_modules",
)  # fmt: skip


class LoRALinear(nn.Module):
    """A linear layer whose frozen weight gets a trained update of low rank; a bias stays as it is, frozen too."""

    def __init__(self, linear: nn.Linear, config: LoRAConfig, generator: torch.Generator) -> None:
        super().__init__()
        out, into = linear.weight.shape
        self.config = config
        self.weight, self.bias = linear.weight, linear.bias
        like: dict[str, Any] = {"dtype": linear.weight.dtype, "device": linear.weight.device}
        self.lora_A = nn.Linear(into, config.rank, bias=False, **like)
        self.lora_B = nn.Linear(config.rank, out, bias=False, **like)
        # A as torch starts a linear layer, which is what LoRA's authors' code does too; the same on every device
        drawn = torch.empty(config.rank, into, dtype=linear.weight.dtype, device=generator.device)
        drawn.uniform_(-(into**-0.5), into**-0.5, generator=generator)
        with torch.no_grad():
            self.lora_A.weight.copy_(drawn)
            self.lora_B.weight.zero_()

    def forward(self, x: Tensor) -> Tensor:
        """[..., in] to [..., out]."""
        update: Tensor = self.lora_B(self.lora_A(x))
        return linear(x, self.weight, self.bias) + self.config.alpha / self.config.rank * update

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """The one plain layer that does the same."""
        a, b = self.lora_A.weight.double(), self.lora_B.weight.double()
        plain = Linear(a.shape[1], b.shape[0], device="meta")
        weight = self.weight.double() + self.config.alpha / self.config.rank * (b @ a)
        plain.weight = nn.Parameter(weight.to(self.weight.dtype))
        plain.bias = self.bias
        return plain


def apply_lora(model: Transformer | ValueHeadModel, config: LoRAConfig, seed: int) -> None:
    """Wrap the transformer's layers named in `config.targets` and freeze the rest; a score head stays as it is.

    The model's output does not change. Raises ConfigError where the model has adapters already, or no layer of these
    names.
    """
    if adapters(model):
        raise ConfigError("the model has adapters already; merge them first")
    generator = torch.Generator().manual_seed(seed)
    backbone = _backbone(model)
    backbone.requires_grad_(False)
    for parent, name, layer in _layers(backbone):
        if name in config.targets and isinstance(layer, nn.Linear):
            setattr(parent, name, LoRALinear(layer, config, generator))
    if not adapters(model):
        raise ConfigError(
            f"none of the layers that LoRA is to adapt ({', '.join(config.targets)}) is in this model; "
            "name others, such as q_proj and v_proj"
        )


def merge(model: Transformer | ValueHeadModel) -> None:
    """Put plain layers in the place of wrapped ones: the same outputs, all weights trained again."""
    for parent, name, layer in _layers(model):
        if isinstance(layer, LoRALinear):
            setattr(parent, name, layer.merged())
    model.requires_grad_(True)


def adapters(model: nn.Module) -> dict[str, LoRALinear]:
    """The wrapped layers by their names; empty where there are none."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, LoRALinear)}


def _backbone(model: Transformer | ValueHeadModel) -> Transformer:
    return model.backbone if isinstance(model, ValueHeadModel) else model


def _layers(model: nn.Module) -> list[tuple[nn.Module, str, nn.Module]]:
    """(parent, name in it, layer) of every module."""
    return [(parent, name, layer) for parent in model.modules() for name, layer in parent.named_children()]


# -- PEFT's format ----------------------------------------------------------------------------------------------------


def save_adapter(model: Transformer | ValueHeadModel, folder: str | Path) -> None:
    """Write adapter_config.json and adapter_model.safetensors as PEFT does, for the model as transformers' Qwen3.

    Of a ScalarModel, as Qwen3ForSequenceClassification, the score head comes too, with the gain in its weight. That
    class has no place for the constant that makes demonstrations score 0: it stands as `bias`, which PEFT passes over.
    Raises ConfigError where the model has no adapters.
    """
    found = adapters(_backbone(model))
    if not found:
        raise ConfigError("the model has no adapters to save")
    config = next(iter(found.values())).config
    described = {
        "peft_type": "LORA", "task_type": "SEQ_CLS" if isinstance(model, ValueHeadModel) else "CAUSAL_LM",
        "base_model_name_or_path": None, "r": config.rank, "lora_alpha": config.alpha,
        "target_modules": list(config.targets),
        "modules_to_save": ["score"] if isinstance(model, ValueHeadModel) else None, "lora_dropout": 0.0, "bias": "none",
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
    """Wrap a plain model with the adapters of a folder in PEFT's format.

    Raises ConfigError where the folder asks for what is not offered, CheckpointError where it is damaged or was made
    for another model.
    """
    path = Path(folder)
    try:
        described = dict(json.loads((path / "adapter_config.json").read_text(encoding="utf-8")))
        tensors = load_file(path / "adapter_model.safetensors")
    except Exception as error:  # safetensors raises its own, an OSError or a ValueError
        raise CheckpointError(f"{path}: no adapter in PEFT's format: {error}") from error
    apply_lora(model, _supported(described, tensors, path), seed=0)
    wanted = {PREFIX + name: t for name, t in _matrices(_backbone(model)).items()}
    if isinstance(model, ValueHeadModel):
        wanted |= {PREFIX + "score.weight": model.score.weight, PREFIX + "bias": model.bias}
    if {n: t.shape for n, t in tensors.items()} != {n: t.shape for n, t in wanted.items()}:
        odd = sorted(tensors.keys() ^ wanted.keys()) or sorted(n for n in wanted if wanted[n].shape != tensors[n].shape)
        raise CheckpointError(f"{path}: an adapter of another model: {odd[0]} is on one side only, or of another shape")
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(tensors[name])
        if isinstance(model, ValueHeadModel):  # both are in what was read
            model.gain.fill_(1.0)
            model.score.bias.zero_()


def _matrices(backbone: Transformer) -> dict[str, Tensor]:
    return {name: p for name, p in backbone.named_parameters() if ".lora_" in name}


def _supported(described: dict[str, Any], tensors: dict[str, Tensor], path: Path) -> LoRAConfig:
    """The settings of a PEFT folder. Which layers are wrapped is read off the tensors: PEFT has many ways to say it."""
    asked = [name for name in _UNSUPPORTED if described.get(name)]
    if described.get("peft_type") != "LORA" or described.get("bias", "none") != "none" or asked:
        asked = asked or [f"peft_type {described.get('peft_type')}", f"bias {described.get('bias', 'none')}"]
        raise ConfigError(f"{path / 'adapter_config.json'}: plain LoRA is wanted, found {', '.join(asked)}")
    targets = dict.fromkeys(name.split(".")[-3] for name in tensors if name.endswith(".lora_A.weight"))
    try:
        return LoRAConfig(int(described["r"]), float(described["lora_alpha"]), tuple(targets))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path / 'adapter_config.json'}: damaged: r and lora_alpha are wanted: {error}"
        ) from error
