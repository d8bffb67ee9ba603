"""A small LION that comes with the package, trained from nothing on scenes of coloured shapes.

It is a LION with all parts, 5.2 million parameters at 100 x 100 pixels, for trying things out, for tests and for the
documentation: it captions, answers, locates and tags in its small world and knows nothing of any other. How it was
trained stands in `transformers_lion.training.small_world`, what it reaches in `docs/example-checkpoint.md`.
"""

from pathlib import Path

FOLDER = Path(__file__).parent / "example_checkpoint"


def example_checkpoint() -> str:
    """The folder of the small LION, for `from_pretrained` and `pipeline`; its subfolder `tagger` holds the tagger.

    Raises:
        FileNotFoundError: if this installation came without it.
    """
    if not (FOLDER / "config.json").exists():
        raise FileNotFoundError(f"The example checkpoint is not at {FOLDER}: this installation came without it.")
    return str(FOLDER)


__all__ = ["example_checkpoint"]
