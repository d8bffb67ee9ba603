"""A world small enough to train LION in from nothing: scenes of coloured shapes, sentences about them, and a recipe.

Reading order: `scenes.py` (what there is), `language.py` (what is said of it), `architecture.py`, then the training:
`pretrain.py` (stage 0: vision tower, language model, tagger), `stage_training.py` (stages 1 to 3), `evaluation.py`.
"""
