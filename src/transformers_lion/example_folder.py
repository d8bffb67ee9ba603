"""Where the example checkpoint is; `example.py` has what else belongs to it."""

from pathlib import Path

FOLDER = Path(__file__).parent / "example_checkpoint"


def example_checkpoint() -> str:
    """The folder of the small LION, for `from_pretrained` and `pipeline`, which finds its tagger in `tagger/`.

    Raises:
        FileNotFoundError: if this installation came without it.
    """
    if not (FOLDER / "config.json").exists():
        raise FileNotFoundError(f"The example checkpoint is not at {FOLDER}: this installation came without it.")
    return str(FOLDER)


__all__ = ["FOLDER", "example_checkpoint"]
