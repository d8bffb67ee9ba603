"""Evaluation: metrics that are computed from files, and a runner that creates these files with a model."""
