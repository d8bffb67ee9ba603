"""A refusal of PEFT's prompt learning (prefix tuning, prompt tuning, p-tuning), before anything is trained.

PEFT hands a learned prefix to the model that it wraps, but LION's language model does the generating: a prefix would
train, and `generate` would ignore it without a word. Learned prompts need a table of word embeddings, which PEFT does
not find in LION.
"""

from torch import nn

PROBE = "embeddings.word_embeddings"
"""The module that PEFT asks a model for when it sets prompt learning up, and for nothing else. LION has none."""


class PromptLearningRefusal:
    """Mixed into a model, an error where PEFT would wrap it for prompt learning."""

    def get_submodule(self, target: str) -> nn.Module:
        """As of all modules.

        Raises:
            ValueError: if PEFT is about to wrap the model for prompt learning.
        """
        if target == PROBE:
            raise ValueError(
                f"{type(self).__name__} does not support PEFT's prompt learning (prefix tuning, prompt tuning, "
                "p-tuning): generate would ignore what it learns. LoRA, DoRA, IA3, LoKr and OFT work."
            )
        return super().get_submodule(target)  # type: ignore[misc]
