"""Stands in for a module that only transformers' repository has: its generation checks do not run here."""


class GenerationTesterMixin:
    """Marks a test class whose model can generate."""
