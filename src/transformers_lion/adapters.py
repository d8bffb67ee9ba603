"""The mixture of adapters that stands in parallel to every feed-forward layer of the language model.

Source: LION (arXiv:2311.11860), section 3.3, "Mixture of Adapters with Router". The task of each sample travels as the
call argument `task_type_ids` from `forward`/`generate` to the router; no module keeps it.

Shape letters: B batch, T positions, D language-model width, K adapters, R router rows (task types).
"""

import torch
from torch import nn

from .configuration_lion import LionT5Config


class LionAdapter(nn.Module):
    """Bottleneck with a learned scale: `scale * up(relu(down(x)))`."""

    def __init__(self, config: LionT5Config):
        super().__init__()
        self.down_proj = nn.Linear(config.d_model, config.adapter_hidden_size)
        self.up_proj = nn.Linear(config.adapter_hidden_size, config.d_model)
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(B, T, D) -> (B, T, D), in the adapter's own dtype."""
        hidden_states = hidden_states.to(self.scale.dtype)
        return self.up_proj(nn.functional.relu(self.down_proj(hidden_states))) * self.scale


class LionAdapterMixture(nn.Module):
    """K adapters on the same input, each weighted by a learned vector of the sample's task; one alone has no router."""

    def __init__(self, config: LionT5Config):
        super().__init__()
        self.adapters = nn.ModuleList([LionAdapter(config) for _ in range(config.num_adapters)])
        self.router = nn.ModuleList()
        if config.num_adapters > 1:
            self.router.extend(nn.Embedding(config.num_task_types, config.d_model) for _ in self.adapters)

    def forward(self, hidden_states: torch.Tensor, task_type_ids: torch.Tensor | None) -> torch.Tensor:
        """(B, T, D), (B,) -> (B, T, D).

        Raises:
            ValueError: if there is a router and no `task_type_ids`.
        """
        if self.router and task_type_ids is None:
            raise ValueError(
                "task_type_ids is missing: with 2 adapters each sample needs its task (0 region level, 1 image level)."
            )
        if not self.router:
            return self.adapters[0](hidden_states)
        first, *others = (
            adapter(hidden_states) * gate(task_type_ids).unsqueeze(1)  # (B, T, D) * (B, 1, D)
            for adapter, gate in zip(self.adapters, self.router, strict=True)
        )
        return sum(others, start=first)


__all__ = ["LionAdapter", "LionAdapterMixture"]
