"""Times of the reference's own code at the middle size, measured once, separately from these runs, on two idle cores.

They are from the authors' public code with random weights and 20 new tokens in float32, and from transformers'
InstructBLIP measured at the same time. They show that the composition represents the reference: both are compared with
InstructBLIP.
"""

SECONDS = {
    "encode, batch 1": (0.42, 0.31),
    "encode, batch 4": (1.23, 1.18),
    "answer, greedy, batch 1": (1.67, 0.85),
    "answer, greedy, batch 4": (5.16, 1.87),
    "answer, 5 beams, batch 1": (4.23, 1.22),
    "answer, 5 beams, batch 4": (16.1, 2.33),
}
"""Seconds of the reference and of InstructBLIP, by row."""
TRAINING_STEP = 5.2
"""Seconds of the reference's training step at batch 4."""
