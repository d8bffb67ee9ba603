"""VisDial: rank the answers to a question in a dialogue about an image by their likelihood.

Source: Visual Dialog (arXiv:1611.08669) and the metrics of its challenge (visdial-challenge-starter-pytorch). If
candidates are equally likely, metrics are the expected values over random orders of them, whereas the challenge's code
keeps whatever order its sort produces. The prompt is that of InstructBLIP (arXiv:2305.06500, appendix C), because
LION's is not published.
"""

from collections.abc import Mapping, Sequence
from math import log2
from pathlib import Path
from typing import Any

from .data_files import Row, choose_image, list_image_names, name_some, read_document, require_unique
from .predictions import candidate_scores, score_measures
from .task import Example, Prediction, Scores, mean

PROMPT = "Dialog history: {} Question: {} Short answer:"
RECALL_RANKS = (1, 5, 10)


def score_visdial(examples: Sequence[Example], predictions: Sequence[Prediction]) -> Scores:
    """Compute MRR, recall at 1, 5 and 10, and NDCG in percent, and the mean rank, from the likelihoods of candidates.

    References are `{"gt_index": index, "relevance": [one value per candidate]}`. NDCG is averaged over the examples
    that have relevance.
    """
    return score_measures(examples, predictions, _judge_ranking)


def _judge_ranking(example: Example, prediction: Prediction) -> dict[str, float]:
    scores = candidate_scores(example, prediction)
    measures = rank_right_answer(scores, example.references["gt_index"])
    relevance = example.references.get("relevance")
    if relevance is not None and any(relevance):
        measures["ndcg"] = 100 * compute_ndcg(scores, relevance)
    return measures


def rank_right_answer(scores: Sequence[float], right: int) -> dict[str, float]:
    """Compute measures of the rank of the right candidate, from 1. With ties, they are averaged over its possible
    ranks.
    """
    better = sum(score > scores[right] for score in scores)
    equal = sum(score == scores[right] for score in scores)
    ranks = range(better + 1, better + equal + 1)
    return {
        "mrr": 100 * mean([1 / rank for rank in ranks]),
        **{f"recall_at_{most}": 100 * mean([float(rank <= most) for rank in ranks]) for most in RECALL_RANKS},
        "mean_rank": mean([float(rank) for rank in ranks]),
    }


def compute_ndcg(scores: Sequence[float], relevance: Sequence[float]) -> float:
    """Compute the normalized discounted cumulative gain of the first k candidates, where k is the number of relevant
    ones.

    Args:
        scores: Score of each candidate. Candidates with equal scores share their mean relevance.
        relevance: Relevance of each candidate, at least one of them above 0.

    Returns:
        A value from 0 to 1.
    """
    groups: dict[float, list[float]] = {}
    for score, value in zip(scores, relevance, strict=True):
        groups.setdefault(score, []).append(value)
    ranked = [mean(groups[score]) for score in sorted(groups, reverse=True) for _ in groups[score]]
    most = sum(value != 0 for value in relevance)
    return _discount(ranked[:most]) / _discount(sorted(relevance, reverse=True)[:most])


def _discount(gains: Sequence[float]) -> float:
    """Sum gains, discounted by rank."""
    return sum(gain / log2(place + 2) for place, gain in enumerate(gains))


def load_visdial(data: Path, images: Path | None = None) -> list[Example]:
    """Load the questions of all rounds from a file in the format of VisDial 1.0.

    Relevance is read from the file of dense annotations in the same folder, if it exists: visdial_1.0_val.json,
    visdial_1.0_val_dense_annotations.json. Ids combine the image and the round, counted from 1: "185565-1".

    Args:
        data: Data file.
        images: Image folder.

    Raises:
        ValueError: If the file cannot be read or rounds have no right answer, as in the test split.
    """
    document = read_document(data)
    if isinstance(document, list) or not isinstance(document.find("data"), dict):
        raise ValueError(
            f"{data}: expected an object in VisDial's format, with dialogs, questions and answers in data."
        )
    content = Row(document.fields["data"], f"{data}, data")
    subset = str(document.find("split") or "")
    relevance = _read_relevance(data.with_name(f"{data.stem}_dense_annotations{data.suffix}"))
    questions, answers = content.list("questions"), content.list("answers")
    examples = [
        example
        for dialog in content.rows("dialogs")
        for example in _read_dialog(dialog, questions, answers, images, subset, relevance)
    ]
    require_unique([example.id for example in examples], str(data))
    known = {example.id for example in examples}
    unknown = [name for name in relevance if name not in known]
    if unknown:
        raise ValueError(
            f"{data}: {len(unknown)} of {len(relevance)} dense annotations belong to no round: {name_some(unknown)}."
        )
    return examples


def _read_relevance(path: Path) -> dict[str, tuple[float, ...]]:
    """Read the relevance of candidates by example id. Return an empty dict if the file does not exist."""
    if not path.is_file():
        return {}
    document = read_document(path)
    rows = document if isinstance(document, list) else [document]
    return {f"{row.name('image_id')}-{row.whole('round_id')}": row.numbers("gt_relevance", "relevance") for row in rows}


def _read_dialog(
    dialog: Row,
    questions: Sequence[str],
    answers: Sequence[str],
    images: Path | None,
    subset: str,
    relevance: Mapping[str, Sequence[float]],
) -> list[Example]:
    """Read an example for each round of a dialogue. Its prompt has the caption and the previous rounds."""
    image_id = dialog.name("image_id")
    image = choose_image(images, _list_visdial_names(image_id, subset))
    history = [dialog.text("caption").strip()]
    examples = []
    for number, turn in enumerate(dialog.rows("dialog"), 1):
        name = f"{image_id}-{number}"
        question = _pick(turn, turn.whole("question"), questions).strip().rstrip("?") + "?"
        candidates = tuple(_pick(turn, place, answers) for place in turn.list("answer_options"))
        references: dict[str, Any] = {"gt_index": _read_right(turn, len(candidates))}
        if name in relevance:
            references["relevance"] = relevance[name]
            if len(relevance[name]) != len(candidates):
                raise turn.error(
                    f"expected relevance of {len(candidates)} candidates, but found {len(relevance[name])}."
                )
        prompt = PROMPT.format(". ".join(history), question)
        examples.append(Example(name, image, prompt, references, candidates=candidates, tags=dialog.tags))
        if turn.find("answer") is not None:
            history.append(f"{question} {_pick(turn, turn.whole('answer'), answers)}")
    return examples


def _pick(turn: Row, place: Any, texts: Sequence[str]) -> str:
    """Return one of the file's questions or answers."""
    if isinstance(place, bool) or not isinstance(place, int) or not 0 <= place < len(texts):
        raise turn.error(f"expected an index below {len(texts)}, not {place!r}.")
    return texts[place]


def _read_right(turn: Row, num_candidates: int) -> int:
    """Read the index of the right candidate."""
    if turn.find("gt_index") is None:
        raise turn.error(
            "expected gt_index, the index of the right answer; the test split has none and cannot be scored."
        )
    place = turn.whole("gt_index")
    if not 0 <= place < num_candidates:
        raise turn.error(f"expected an index below {num_candidates} in gt_index, not {place}.")
    return place


def _list_visdial_names(image_id: str, subset: str) -> list[str]:
    """List the files that may contain an image: VisDial's own for val and test, COCO's for train."""
    own = [f"VisualDialog_{year}_{image_id.zfill(12)}.jpg" for year in ("val2018", "test2018")]
    coco = list_image_names(image_id, "train2014")
    if "train" in subset:
        return [*coco, *own]
    return [*(reversed(own) if "test" in subset else own), *coco]


__all__ = ["compute_ndcg", "load_visdial", "score_visdial"]
