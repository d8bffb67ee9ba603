"""Trains the example checkpoint from scratch: scenes of coloured shapes, sentences about them, and a recipe.

Reading order: `scenes.py` (what there is), `language.py` (what is said of it), `architecture.py`, then the training:
`pretrain.py` (stage 0: vision tower, language model, tagger), `stage_training.py` (stages 1 to 3), `evaluation.py`,
`package_checkpoint.py` (the result becomes the package's example checkpoint).
"""
