"""METEOR and SPICE, which are programs in Java that the package pycocoevalcap brings or fetches.

They are left out, with a line that says why, where something of that is missing; nothing is ever downloaded.
"""

import importlib.util
import logging
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

logger = logging.getLogger(__name__)

SPICE_MODELS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")

Captions = Mapping[str, Sequence[str]]
"""Words of captions, joined by spaces, by image."""


def _find_package() -> Path | None:
    """Where pycocoevalcap is, or `None`."""
    found = importlib.util.find_spec("pycocoevalcap")
    places = list(found.submodule_search_locations or ()) if found else []
    return Path(places[0]) if places else None


def find_obstacle(metric: str) -> str | None:
    """What is missing for METEOR or SPICE, or `None`."""
    package = _find_package()
    if package is None:
        return "pycocoevalcap is not installed (pip install 'transformers-lion[eval]')"
    if shutil.which("java") is None:
        return "there is no java on the PATH"
    if metric == "SPICE" and not all((package / "spice" / "lib" / name).is_file() for name in SPICE_MODELS):
        return "its parser is missing (python -m pycocoevalcap.spice.get_stanford_models fetches it)"
    return None


def _compute_meteor(answers: Captions, references: Captions) -> float:
    """METEOR of all captions, 0 to 1."""
    from pycocoevalcap.meteor.meteor import Meteor

    return float(Meteor().compute_score(references, answers)[0])


def _compute_spice(answers: Captions, references: Captions) -> float:
    """SPICE of all captions, 0 to 1."""
    from pycocoevalcap.spice.spice import Spice

    return float(Spice().compute_score(references, answers)[0])


METRICS: dict[str, Callable[[Captions, Captions], float]] = {"METEOR": _compute_meteor, "SPICE": _compute_spice}


def compute_java_metrics(answers: Captions, references: Captions) -> dict[str, float]:
    """METEOR and SPICE in percent, as far as their tools are there.

    Args:
        answers: one for each image.
        references: for the same images.
    """
    figures = {}
    for name, compute in METRICS.items():
        obstacle = find_obstacle(name)
        if obstacle is not None:
            logger.warning("%s is left out: %s.", name, obstacle)
            continue
        try:
            figures[name.lower()] = 100 * compute(answers, references)
        except (OSError, RuntimeError, ValueError) as error:  # a Java that is too old or new, or too little memory
            logger.warning("%s is left out: its program failed (%s: %s).", name, type(error).__name__, error)
    return figures


__all__ = ["compute_java_metrics", "find_obstacle"]
