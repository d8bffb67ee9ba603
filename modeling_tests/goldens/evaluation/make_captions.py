"""Make captions.json: captions of all kinds, and what pycocoevalcap, with Java, says of them.

Run `python modeling_tests/goldens/evaluation/make_captions.py` with the extra `eval` and Java 17. Captions are drawn
from the words below and the odd ones of phrases.txt; none is from a data set.
"""

import json
import random
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
NUM_IMAGES = 150
ODD_WORDS = 0.3
"""The share of captions with one of them."""

SUBJECTS = "a man|two dogs|the woman's cat|a group of people|three zebras|an old-fashioned train|a boy in a t-shirt"
VERBS = "rides|is holding|are looking at|don't see|stands next to|can't reach|is sitting on"
OBJECTS = 'a bus|the 2 red umbrellas|a half-eaten pizza|some 1950s cars|a sign that says "stop"|a child\'s bike|a TV'
PLACES = "on the street|in a field, near trees|at 10:30 p.m.|by the ocean|(outside)|in front of a café|"
ENDS = ".|.|.||!|..."


def draw_caption(draw: random.Random, base: list[str], phrases: list[str]) -> str:
    """A caption like others of its image, with some parts of its own."""
    parts = [
        part if draw.random() < 0.7 else draw.choice(choices.split("|"))
        for part, choices in zip(base, (SUBJECTS, VERBS, OBJECTS, PLACES), strict=True)
    ]
    if draw.random() < ODD_WORDS:
        parts.insert(draw.randrange(5), draw.choice(phrases))
    return " ".join(part for part in parts if part).capitalize() + draw.choice(ENDS.split("|"))


def draw_images(seed: int = 0) -> list[dict[str, Any]]:
    """Images with an answer, which is at times empty, and one to five references."""
    draw = random.Random(seed)
    phrases = (FOLDER / "phrases.txt").read_text().splitlines()
    images = []
    for _ in range(NUM_IMAGES):
        base = [draw.choice(choices.split("|")) for choices in (SUBJECTS, VERBS, OBJECTS, PLACES)]
        captions = [draw_caption(draw, base, phrases) for _ in range(draw.choice([2, 2, 3, 4, 6]))]
        answer = draw.choice(["", " ", "..."]) if draw.random() < 0.04 else captions[0]
        images.append({"answer": answer, "references": captions[1:]})
    return images


def score_images(images: list[dict[str, Any]], meteor: bool = True) -> dict[str, float]:
    """pycocoevalcap's figures, times 100; METEOR takes long to start."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.meteor.meteor import Meteor
    from pycocoevalcap.rouge.rouge import Rouge

    references = tokenize({place: image["references"] for place, image in enumerate(images)})
    answers = tokenize({place: [image["answer"]] for place, image in enumerate(images)})
    bleu, _ = Bleu(4).compute_score(references, answers, verbose=0)
    figures = {f"bleu_{length}": value for length, value in enumerate(bleu, 1)}
    others = {"cider": Cider, "rouge_l": Rouge, **({"meteor": Meteor} if meteor else {})}
    for name, make in others.items():
        figures[name] = make().compute_score(references, answers)[0]
    return {name: 100 * float(value) for name, value in figures.items()}


def tokenize(captions: dict[int, list[str]]) -> dict[int, list[str]]:
    """Captions as PTBTokenizer leaves them."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    found: dict[int, list[str]] = PTBTokenizer().tokenize(
        {place: [{"caption": caption} for caption in group] for place, group in captions.items()}
    )
    return found


def main() -> None:
    """Write the file."""
    images = draw_images()
    phrases = (FOLDER / "phrases.txt").read_text().splitlines()
    words = tokenize({place: [phrase] for place, phrase in enumerate(phrases)})
    content = {
        "words": {phrase: words[place][0] for place, phrase in enumerate(phrases)},
        "images": images,
        "metrics": score_images(images),
    }
    text = json.dumps(content, ensure_ascii=False, indent=0)
    (FOLDER / "captions.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
