"""Trains the example checkpoint from scratch, on scenes of colored shapes and sentences about them.

Reading order: `scenes.py` (the images), `language.py` (the sentences), `architecture.py`, then the training:
`pretrain.py` (stage 0: vision tower, language model, tagger), `stage_training.py` (stages 1 to 3), `evaluation.py`, and
`package_checkpoint.py` (writes the package's example checkpoint).
"""
