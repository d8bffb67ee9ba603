"""Errors of the package's own; importing them imports nothing else."""


class SelfCheckError(RuntimeError):
    """The installed transformers or torch computes something else than the package was tested with."""


__all__ = ["SelfCheckError"]
