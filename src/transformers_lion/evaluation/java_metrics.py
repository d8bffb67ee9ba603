"""METEOR and SPICE, which are Java programs that pycocoevalcap includes or downloads.

If a requirement is missing, the metric is skipped with a warning. Nothing is ever downloaded.
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
    """Return the folder of pycocoevalcap, or `None`."""
    found = importlib.util.find_spec("pycocoevalcap")
    places = list(found.submodule_search_locations or ()) if found else []
    return Path(places[0]) if places else None


def find_obstacle(metric: str) -> str | None:
    """Return what is missing for METEOR or SPICE, or `None`."""
    package = _find_package()
    if package is None:
        return "pycocoevalcap is not installed (pip install 'transformers-lion[eval]')"
    if shutil.which("java") is None:
        return "java is not on the PATH"
    if metric == "SPICE" and not all((package / "spice" / "lib" / name).is_file() for name in SPICE_MODELS):
        return "its parser is missing (download it with python -m pycocoevalcap.spice.get_stanford_models)"
    return None


def _compute_meteor(answers: Captions, references: Captions) -> float:
    """Compute METEOR of all captions, from 0 to 1."""
    from pycocoevalcap.meteor.meteor import Meteor

    return float(Meteor().compute_score(references, answers)[0])


def _compute_spice(answers: Captions, references: Captions) -> float:
    """Compute SPICE of all captions, from 0 to 1."""
    from pycocoevalcap.spice.spice import Spice

    return float(Spice().compute_score(references, answers)[0])


METRICS: dict[str, Callable[[Captions, Captions], float]] = {"METEOR": _compute_meteor, "SPICE": _compute_spice}


def compute_java_metrics(answers: Captions, references: Captions) -> dict[str, float]:
    """Compute METEOR and SPICE in percent, if their tools are installed.

    Args:
        answers: One caption for each image.
        references: Captions for the same images.
    """
    metrics = {}
    for name, compute in METRICS.items():
        obstacle = find_obstacle(name)
        if obstacle is not None:
            logger.warning("%s is skipped: %s.", name, obstacle)
            continue
        try:
            metrics[name.lower()] = 100 * compute(answers, references)
        except (OSError, RuntimeError, ValueError) as error:  # wrong Java version or too little memory
            logger.warning("%s is skipped: its program failed (%s: %s).", name, type(error).__name__, error)
    return metrics


__all__ = ["compute_java_metrics", "find_obstacle"]
