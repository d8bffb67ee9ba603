"""Memory of mapped files.

Weights that `from_pretrained` has loaded are views of mapped files: they take no memory until they are read, and then
as much as a copy until the whole file is given up.
"""

import ctypes
import mmap
import sys

import torch

_MADV_PAGEOUT = 21
"""Advice that the kernel may write out pages, or forget those that it can read again. It never loses anything."""


def release_pages(tensor: torch.Tensor) -> None:
    """Tell Linux that a tensor is not needed soon, so that pages of a mapped file no longer count as memory."""
    if sys.platform != "linux" or tensor.device.type != "cpu" or not tensor.is_contiguous():
        return
    start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    stop = (tensor.data_ptr() + tensor.nbytes) // mmap.PAGESIZE * mmap.PAGESIZE
    if stop > start:
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(stop - start), _MADV_PAGEOUT)


__all__ = ["release_pages"]
