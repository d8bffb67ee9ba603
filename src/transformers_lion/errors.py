"""Exceptions of the package. This module imports nothing else."""


class SelfCheckError(RuntimeError):
    """The installed transformers or torch gives different results than the tested versions."""


__all__ = ["SelfCheckError"]
