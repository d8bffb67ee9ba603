"""LION, a multimodal language model with dual-level visual knowledge, for Hugging Face transformers."""

__version__ = "0.1.0.dev0"
