"""Image captioning: CIDEr-D, BLEU and ROUGE-L without Java, METEOR and SPICE if their tools are installed, and data
readers.

Source: COCO's caption evaluation (arXiv:1504.00325), with metrics in percent, as in papers. The prompt is that of
LION's published examples.
"""

from collections.abc import Sequence
from pathlib import Path

from .caption_metrics import compute_bleu, compute_cider, compute_rouge
from .caption_words import split_words
from .data_files import Row, choose_image, leave_out_training, list_rows, read_document, read_image, require_unique
from .java_metrics import compute_java_metrics
from .predictions import match_predictions
from .task import Example, Prediction, Scores, compute_by_group, mean

PROMPT = "Please describe the image using a single short sentence."

CAPTION_NAMES = ("captions", "caption", "reference_strs", "references", "sentences", "caption_str")
TEXT_NAMES = ("raw", "caption", "text")
ID_NAMES = ("image_id", "id", "cocoid", "imgid")

TEST_GROUP = "test"
"""The part of a Karpathy split that papers report. Other parts are read if it is missing."""


def score_captions(examples: Sequence[Example], predictions: Sequence[Prediction]) -> Scores:
    """Compute CIDEr-D, BLEU-1 to 4, ROUGE-L, and METEOR and SPICE if their tools are installed, in percent.

    References are lists of captions. CIDEr-D weights words by how rare they are in the references of the group that it
    is computed for. The scores of single examples use all references.
    """
    matched = match_predictions(examples, predictions)
    answers = [split_words(prediction.answer) for prediction in matched]
    references = [[split_words(caption) for caption in example.references] for example in examples]
    rouge = [compute_rouge(words, group) for words, group in zip(answers, references, strict=True)]

    def compute(positions: Sequence[int]) -> dict[str, float]:
        found, wanted = [answers[place] for place in positions], [references[place] for place in positions]
        metrics = {"cider": mean(compute_cider(found, wanted))}
        metrics |= {f"bleu_{length}": value for length, value in enumerate(compute_bleu(found, wanted), 1)}
        metrics["rouge_l"] = mean([rouge[place] for place in positions])
        return {name: 100 * value for name, value in metrics.items()}

    metrics = compute_by_group(examples, compute)
    names = [example.id for example in examples]
    metrics |= compute_java_metrics(
        {name: [" ".join(words)] for name, words in zip(names, answers, strict=True)},
        {name: [" ".join(words) for words in group] for name, group in zip(names, references, strict=True)},
    )
    ciders = compute_cider(answers, references)
    return Scores(metrics, {name: 100 * value for name, value in zip(names, ciders, strict=True)})


def load_captions(data: Path, images: Path | None = None) -> list[Example]:
    """Load images with their captions: JSON files of COCO and NoCaps, a Karpathy split, TextCaps, or any records.

    Records of the same image are merged. Of a Karpathy split, only "test" is read if it exists, and training data never
    is.

    Args:
        data: Data file.
        images: Image folder.
    """
    document = read_document(data)
    if isinstance(document, Row) and isinstance(document.find("annotations"), list):
        examples = _read_coco(document, images)
    elif isinstance(document, Row) and isinstance(document.find("images"), list):
        examples = [_read_record(row, images) for row in document.rows("images")]
        tested = [example for example in examples if example.group == TEST_GROUP]
        examples = tested or leave_out_training(examples)
    else:
        records = [_read_record(row, images) for row in list_rows(document, id_name="image")]
        examples = leave_out_training(_join_images(records))
    require_unique([example.id for example in examples], str(data))
    return examples


def _read_coco(document: Row, images: Path | None) -> list[Example]:
    """Read COCO's format: images, and annotations with one caption each. The domains of NoCaps become groups."""
    captions: dict[str, list[str]] = {}
    for row in document.rows("annotations"):
        captions.setdefault(row.name("image_id"), []).extend(_read_captions(row))
    rows = {row.name("id"): row for row in document.rows("images")}
    bare = [name for name in rows if name not in captions]
    unknown = [name for name in captions if name not in rows]
    if bare or unknown:
        raise document.error(
            f"{len(rows)} images do not match the captions of {len(captions)} images: {len(bare)} images have no "
            f"caption, and {len(unknown)} captioned images are missing, such as {(bare + unknown)[0]}."
        )
    return [
        _make_example(name, row, read_image(row, images, ("file_name", "id")), captions[name])
        for name, row in rows.items()
    ]


def _make_example(name: str, row: Row, image: str, captions: list[str]) -> Example:
    return Example(name, image, PROMPT, captions, group=row.find("split", "domain") or "", tags=row.tags)


def _read_record(row: Row, images: Path | None) -> Example:
    """Read an image and the captions in its record. Without another field for the image, its id is used."""
    row.refuse({"question": "captions answer the task's own prompt"})
    if row.find("filepath") is not None and row.find("filename") is not None:
        filename = row.text("filename")
        image = choose_image(images, [f"{row.text('filepath')}/{filename}", filename])
    else:
        image = read_image(row, images)
    name = row.name(*ID_NAMES) if row.find(*ID_NAMES) is not None else image
    return _make_example(name, row, image, _read_captions(row))


def _read_captions(row: Row) -> list[str]:
    """Read captions: a string, a list of strings, or a list of objects with a string."""
    value = row.need(*CAPTION_NAMES)
    entries = value if isinstance(value, list) else [value]
    captions = [Row(entry, row.where).need(*TEXT_NAMES) if isinstance(entry, dict) else entry for entry in entries]
    if not captions or not all(isinstance(caption, str) for caption in captions):
        raise row.error(f"expected a caption or a list of captions in {' or '.join(CAPTION_NAMES)}.")
    return captions


def _join_images(examples: list[Example]) -> list[Example]:
    """Merge examples with the same id."""
    joined: dict[str, Example] = {}
    for example in examples:
        first = joined.setdefault(example.id, example)
        if first is not example:
            first.references.extend(caption for caption in example.references if caption not in first.references)
    return list(joined.values())


__all__ = ["load_captions", "score_captions"]
