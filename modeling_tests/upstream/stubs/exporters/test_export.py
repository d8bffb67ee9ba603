"""Stands in for a module that only transformers' repository has: its export checks do not run here."""


class ExportTesterMixin:
    """Base of `ModelTesterMixin`, without checks."""
