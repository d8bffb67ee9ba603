"""Cache for `decoder.py`, which writes keys and values in place into preallocated tensors.

Shape letters: B batch, H heads, L new positions, S positions so far, C head width.
"""

from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

BLOCK = 16
"""The capacity is a multiple of this number of positions."""


class PreallocatedLayer(DynamicLayer):
    """Keys and values of one layer, stored together in `_states` (2, B, H, capacity, C). Unused ones are finite."""

    def __init__(self) -> None:
        super().__init__()
        self._states: torch.Tensor | None = None
        self._length = 0

    @property
    def keys(self) -> torch.Tensor | None:
        """Keys so far, (B, H, S, C)."""
        return None if self._states is None else self._states[0].narrow(2, 0, self._length)

    @keys.setter
    def keys(self, value: None) -> None:
        """Do nothing. The base class initializes the attribute."""

    @property
    def values(self) -> torch.Tensor | None:
        """Values so far, (B, H, S, C)."""
        return None if self._states is None else self._states[1].narrow(2, 0, self._length)

    @values.setter
    def values(self, value: None) -> None:
        """Do nothing. The base class initializes the attribute."""

    def append(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Append keys and values (2, B, H, L, C), and return all keys and values so far, each (B, H, S, C)."""
        start, length = self._length, states.shape[3]
        room = self.reserve(states, length)
        room.narrow(3, start, length).copy_(states)
        keys, values = room.narrow(3, 0, self._length).unbind(0)
        return keys, values

    def reserve(self, like: torch.Tensor, length: int) -> torch.Tensor:
        """Add positions, which the caller writes.

        Args:
            like: Tensor with the dtype, the device and the shape of keys and values, (2, B, H, any, C).
            length: Number of positions to add.

        Returns:
            All positions, (2, B, H, capacity, C). The new ones are the last of the first `get_seq_length()`.
        """
        start, self._length = self._length, self._length + length
        if self._states is None or self._length > self._states.shape[3]:
            capacity = -(-self._length // BLOCK) * BLOCK
            larger = like.new_zeros(*like.shape[:3], capacity, like.shape[4])
            if self._states is not None:
                larger.narrow(3, 0, start).copy_(self._states.narrow(3, 0, start))
            self._states, self.is_initialized = larger, True
            self.device, self.dtype = like.device, like.dtype
        return self._states

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

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Reorder rows: row i becomes row `beam_idx[i]`."""
        if self._states is not None:
            self._states = self._states.index_select(1, beam_idx)  # faster than in place, which copies twice

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row."""
        if self._states is not None:
            self._states = self._states.repeat_interleave(repeats, dim=1)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep the given rows."""
        if self._states is not None:
            self._states = self._states[:, indices].contiguous()


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
