"""VisDial: rank the answers to a question in a dialogue about an image by their likelihood.

Source: Visual Dialog (arXiv:1611.08669), and the metrics of its challenge (visdial-challenge-starter-pytorch). Where
candidates are equally likely, figures are what they would be on average if equals were put in a random order; there
the challenge's code keeps whatever order its sort leaves. The prompt is that of InstructBLIP (arXiv:2305.06500,
appendix C), since LION's is not known.
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
    """MRR, recall at 1, 5 and 10, and NDCG, in percent, and the mean rank, of the candidates' likelihoods.

    References are `{"gt_index": place, "relevance": [one for each candidate]}`; NDCG is the mean over those examples
    that have relevance.
    """
    return score_measures(examples, predictions, _judge_ranking)


def _judge_ranking(example: Example, prediction: Prediction) -> dict[str, float]:
    """What the ranking of an example's candidates is worth."""
    scores = candidate_scores(example, prediction)
    measures = rank_right_answer(scores, example.references["gt_index"])
    relevance = example.references.get("relevance")
    if relevance is not None and any(relevance):
        measures["ndcg"] = 100 * compute_ndcg(scores, relevance)
    return measures


def rank_right_answer(scores: Sequence[float], right: int) -> dict[str, float]:
    """Measures of the rank of the right candidate, from 1; of all its possible ranks where others are as likely."""
    better = sum(score > scores[right] for score in scores)
    equal = sum(score == scores[right] for score in scores)
    ranks = range(better + 1, better + equal + 1)
    return {
        "mrr": 100 * mean([1 / rank for rank in ranks]),
        **{f"recall_at_{most}": 100 * mean([float(rank <= most) for rank in ranks]) for most in RECALL_RANKS},
        "mean_rank": mean([float(rank) for rank in ranks]),
    }


def compute_ndcg(scores: Sequence[float], relevance: Sequence[float]) -> float:
    """Gain of the first k candidates over the most that k could have, where k are relevant at all; 0 to 1.

    Args:
        scores: one for each candidate; of equal ones each counts as their mean relevance.
        relevance: at least one above 0.
    """
    groups: dict[float, list[float]] = {}
    for score, value in zip(scores, relevance, strict=True):
        groups.setdefault(score, []).append(value)
    ranked = [mean(groups[score]) for score in sorted(groups, reverse=True) for _ in groups[score]]
    most = sum(value != 0 for value in relevance)
    return _discount(ranked[:most]) / _discount(sorted(relevance, reverse=True)[:most])


def _discount(gains: Sequence[float]) -> float:
    """The discounted sum of gains, the first of which counts in full."""
    return sum(gain / log2(place + 2) for place, gain in enumerate(gains))


def load_visdial(data: Path, images: Path | None = None) -> list[Example]:
    """The questions of all rounds of a file in the form of VisDial 1.0.

    Relevance is read from the file of dense annotations beside it, if there is one: visdial_1.0_val.json,
    visdial_1.0_val_dense_annotations.json. Ids are the image's and the round's, from 1: "185565-1".

    Args:
        data: the file.
        images: the folder of images.

    Raises:
        ValueError: also if rounds have no right answer, as those of the test split.
    """
    document = read_document(data)
    if isinstance(document, list) or not isinstance(document.find("data"), dict):
        raise ValueError(f"{data}: expected an object in VisDial's form, with dialogs, questions and answers in data.")
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
            f"{data}: {len(unknown)} of {len(relevance)} dense annotations are of no round: {name_some(unknown)}."
        )
    return examples


def _read_relevance(path: Path) -> dict[str, tuple[float, ...]]:
    """The relevance of candidates, by the id of the example, of a file of dense annotations; none without a file."""
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
    """An example for each round of a dialogue, whose prompt has the caption and the rounds before."""
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
                raise turn.error(f"expected relevance of {len(candidates)} candidates, found {len(relevance[name])}.")
        prompt = PROMPT.format(". ".join(history), question)
        examples.append(Example(name, image, prompt, references, candidates=candidates, tags=dialog.tags))
        if turn.find("answer") is not None:
            history.append(f"{question} {_pick(turn, turn.whole('answer'), answers)}")
    return examples


def _pick(turn: Row, place: Any, texts: Sequence[str]) -> str:
    """One of the file's questions or answers."""
    if isinstance(place, bool) or not isinstance(place, int) or not 0 <= place < len(texts):
        raise turn.error(f"expected the place of one of {len(texts)} texts, not {place!r}.")
    return texts[place]


def _read_right(turn: Row, num_candidates: int) -> int:
    """The place of the right candidate."""
    if turn.find("gt_index") is None:
        raise turn.error("expected gt_index, the right answer's place; the test split has none and cannot be scored.")
    place = turn.whole("gt_index")
    if not 0 <= place < num_candidates:
        raise turn.error(f"expected in gt_index the place of one of {num_candidates} candidates, not {place}.")
    return place


def _list_visdial_names(image_id: str, subset: str) -> list[str]:
    """The files in which an image may be: those of val and test are VisDial's own, those of train COCO's."""
    own = [f"VisualDialog_{year}_{image_id.zfill(12)}.jpg" for year in ("val2018", "test2018")]
    coco = list_image_names(image_id, "train2014")
    if "train" in subset:
        return [*coco, *own]
    return [*(reversed(own) if "test" in subset else own), *coco]


__all__ = ["compute_ndcg", "load_visdial", "score_visdial"]
