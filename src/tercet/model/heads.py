"""The value head: one number per token on top of a transformer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tercet.model.transformer import Transformer


class ValueHeadModel(nn.Module):
    """A transformer whose output is one number per token: the reward model and PPO's critic.

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
        """Return one number per token, [B, T]."""
        return self.read(self.backbone.hidden(tokens_BT, segments_BT))

    def read(self, hidden: Tensor) -> Tensor:
        """Return one number per hidden state: [..., D] to [...]."""
        return self.gain * self.score(hidden).squeeze(-1) + self.bias  # type: ignore[no-any-return]
