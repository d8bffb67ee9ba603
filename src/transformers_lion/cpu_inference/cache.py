"""The decoder's cache of `decoder.py`: keys and values are written into tensors that have room for more.

Shape letters: B batch, H heads, L new positions, S positions up to now, C width of a head.
"""

from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

FIRST_ROOM = 32
"""Positions that there is room for at first; it doubles."""


class RoomyLayer(DynamicLayer):
    """Keys and values of one layer, side by side in `_states` (2, B, H, room, C)."""

    def __init__(self) -> None:
        super().__init__()
        self._states: torch.Tensor | None = None
        self._length = 0

    def append(self, states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Add (2, B, H, L, C) and return the keys and the values up to now, each (B, H, S, C)."""
        start, self._length = self._length, self._length + states.shape[3]
        if self._states is None or self._length > self._states.shape[3]:
            self._make_room(states, start)
        assert self._states is not None
        self._states.narrow(3, start, states.shape[3]).copy_(states)
        return self._show()

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As of all cache layers: (B, H, L, C) each."""
        return self.append(torch.stack([key_states, value_states]))

    def get_seq_length(self) -> int:
        """Number of positions, S."""
        return self._length

    def reset(self) -> None:
        """Forget everything."""
        self.__init__()  # type: ignore[misc]

    def crop(self, tokens_to_remove: int) -> None:
        """Forget the last positions; a positive number, in older releases of transformers, is what is to be left."""
        left = tokens_to_remove if tokens_to_remove > 0 else self._length + tokens_to_remove
        self._length = max(0, min(left, self._length))
        if self._length:
            self._show()

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Move rows: row i becomes row `beam_idx[i]`."""
        if self._states is not None:
            used = self._states.narrow(3, 0, self._length)
            used.copy_(used.index_select(1, beam_idx))

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row."""
        if self._states is not None:
            self._states = self._states.repeat_interleave(repeats, dim=1)
            self._show()

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep some rows."""
        if self._states is not None:
            self._states = self._states[:, indices]
            self._show()

    def _make_room(self, states: torch.Tensor, used: int) -> None:
        room = max(FIRST_ROOM, 2 * used, self._length)
        wider = states.new_empty(*states.shape[:3], room, states.shape[4])
        if self._states is not None:
            wider.narrow(3, 0, used).copy_(self._states.narrow(3, 0, used))
        self._states, self.is_initialized = wider, True
        self.device, self.dtype = states.device, states.dtype

    def _show(self) -> tuple[torch.Tensor, torch.Tensor]:
        assert self._states is not None
        self.keys, self.values = self._states.narrow(3, 0, self._length).unbind(0)
        return self.keys, self.values


class RoomyCache(DynamicCache):
    """A `RoomyLayer` for each decoder layer.

    Args:
        num_layers: of the decoder.
        decoding: what the decoder prepared for this generation.
    """

    def __init__(self, num_layers: int, decoding: Any) -> None:
        super().__init__()
        self.layers = [RoomyLayer() for _ in range(num_layers)]
        self.decoding = decoding


__all__ = ["RoomyCache", "RoomyLayer"]
