"""Releases the memory of mapped files.

Weights loaded by `from_pretrained` are views of memory-mapped files. They use no memory until they are read. From
then on, they use as much as a copy, until the whole file is unmapped.
"""

import ctypes
import mmap
import sys

import torch

_MADV_PAGEOUT = 21
"""Advice for the kernel to reclaim pages by swapping them out or dropping clean ones. No data is lost."""


def release_pages(tensor: torch.Tensor) -> None:
    """Tell Linux that a tensor is not needed soon, so that its pages of a mapped file no longer take memory."""
    if sys.platform != "linux" or tensor.device.type != "cpu" or not tensor.is_contiguous():
        return
    start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    stop = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if stop > start:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), _MADV_PAGEOUT)


__all__ = ["release_pages"]
