"""Evaluation: metrics that work from files, and a runner that makes such files with a model."""
