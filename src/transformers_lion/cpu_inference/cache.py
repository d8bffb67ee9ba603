"""Cache for `decoder.py`, which writes keys and values in place into preallocated tensors.

Shape letters: B batch, H heads, L new positions, S positions so far, C head width.
"""

from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

INITIAL_CAPACITY = 32
"""Initial number of positions. The capacity is doubled when it is exceeded."""


class PreallocatedLayer(DynamicLayer):
    """Keys and values of one layer, stored together in `_states` (2, B, H, capacity, C)."""

    def __init__(self) -> None:
        super().__init__()
        self._states: torch.Tensor | None = None
        self._length = 0

    def append(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Append keys and values (2, B, H, L, C), and return all keys and values so far, each (B, H, S, C)."""
        start, self._length = self._length, self._length + states.shape[3]
        if self._states is None or self._length > self._states.shape[3]:
            self._reserve(states, start)
        assert self._states is not None
        self._states.narrow(3, start, states.shape[3]).copy_(states)
        return self._update_views()

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append keys and values, each (B, H, L, C)."""
        return self.append(torch.stack([key_states, value_states]))

    def get_seq_length(self) -> int:
        """Return the number of positions, S."""
        return self._length

    def reset(self) -> None:
        """Remove all positions."""
        self.__init__()  # type: ignore[misc]

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last positions. In older versions of transformers, a positive number is the length to keep."""
        left = tokens_to_remove if tokens_to_remove > 0 else self._length + tokens_to_remove
        self._length = max(0, min(left, self._length))
        if self._length:
            self._update_views()

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Reorder rows: row i becomes row `beam_idx[i]`."""
        if self._states is not None:
            used = self._states.narrow(3, 0, self._length)
            used.copy_(used.index_select(1, beam_idx))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row."""
        if self._states is not None:
            self._states = self._states.repeat_interleave(repeats, dim=1)
            self._update_views()

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep the given rows."""
        if self._states is not None:
            self._states = self._states[:, indices]
            self._update_views()

    def _reserve(self, states: torch.Tensor, used: int) -> None:
        capacity = max(INITIAL_CAPACITY, 2 * used, self._length)
        larger = states.new_empty(*states.shape[:3], capacity, states.shape[4])
        if self._states is not None:
            larger.narrow(3, 0, used).copy_(self._states.narrow(3, 0, used))
        self._states, self.is_initialized = larger, True
        self.device, self.dtype = states.device, states.dtype

    def _update_views(self) -> tuple[torch.Tensor, torch.Tensor]:
        assert self._states is not None
        self.keys, self.values = self._states.narrow(3, 0, self._length).unbind(0)
        return self.keys, self.values


class PreallocatedCache(DynamicCache):
    """Cache with a `PreallocatedLayer` for each decoder layer.

    Args:
        num_layers: Number of decoder layers.
        decoding: State of the generation.
    """

    def __init__(self, num_layers: int, decoding: Any) -> None:
        super().__init__()
        self.layers = [PreallocatedLayer() for _ in range(num_layers)]
        self.decoding = decoding


__all__ = ["PreallocatedCache", "PreallocatedLayer"]
