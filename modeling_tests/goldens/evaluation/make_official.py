"""Make official.json: answers of all kinds, and what the official scripts of VQA, POPE and VisDial say of them.

Run `python modeling_tests/goldens/evaluation/make_official.py vqaEval.py evaluate.py metrics.py` with the scripts of
GT-Vision-Lab/VQA, RUCAIBox/POPE and batra-mlp-lab/visdial-challenge-starter-pytorch. All answers are drawn here.
"""

import contextlib
import io
import json
import random
import re
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

OUTPUT = Path(__file__).with_name("official.json")

VQA_WORDS = [
    "yes", "no", "cat", "dogs", "a", "an", "the", "The", "one", "Two", "none", "ten", "10", "1,000", "2.5", "3.",
    ".5", "U.S.", "t-shirt", "red/blue", "10:30", "a.m.", "dont", "don't", "its", "cant", "couldntve",
    "couldn'tve", "lets", "shes", "somebody'd", "yall", "O'Reilly", "café", "wont", "Id've", "<3", "...", "-5",
    "@home", "x_y", "what?!", "(left)", "theyre", "'ows'at", "5,000,000", ";", "`", '"', "[a]", "{b}", "=", "+",
]  # fmt: skip
POPE_WORDS = ["yes", "no", "Yes", "No", "NO", "not", "Not", "yes,", "no.", "No,", "maybe", "a", "cat.", "Nope", "no\n"]


def run(path: str, **names: Any) -> dict[str, Any]:
    """What a script defines and prints, with its empty file names filled in, and Python 2's `print` left out."""
    source = re.sub(r'^(\s*)print "(.*)"$', r"\1pass", Path(path).read_text(), flags=re.MULTILINE)
    for name, value in names.items():
        source = source.replace(f"{name} = ''", f"{name} = {value!r}")
    defined: dict[str, Any] = {}
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(source, path, "exec"), defined)
    return {**defined, "printed": printed.getvalue()}


def draw_words(draw: random.Random, words: list[str]) -> str:
    """None to four words, at times not apart."""
    return draw.choice([" ", " ", " ", "", "\n"]).join(draw.choices(words, k=draw.choice([0, 1, 1, 1, 2, 3, 4])))


def make_vqa(path: str) -> list[dict[str, Any]]:
    """Questions with the answers of ten people and one more, and its accuracy."""
    draw = random.Random(0)
    cases: list[dict[str, Any]] = []
    for _ in range(400):
        pool = [draw_words(draw, VQA_WORDS) for _ in range(draw.choice([1, 2, 2, 3, 5]))]
        answer = draw.choice(pool) if draw.random() < 0.9 else draw_words(draw, VQA_WORDS)
        cases.append({"answer": answer, "references": draw.choices(pool, k=10)})
    asked = {
        place: {
            "answers": [{"answer": text, "answer_id": number} for number, text in enumerate(case["references"])],
            "question_type": "",
            "answer_type": "",
        }
        for place, case in enumerate(cases)
    }
    questions = SimpleNamespace(getQuesIds=lambda: list(asked), qa=asked)
    results = SimpleNamespace(qa={place: {"answer": case["answer"]} for place, case in enumerate(cases)})
    evaluation = run(path)["VQAEval"](questions, results, n=6)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
    return [{**case, "accuracy": evaluation.evalQA[place]} for place, case in enumerate(cases)]


def make_pope(path: str) -> dict[str, Any]:
    """Labels and answers, and the figures, as shares."""
    draw = random.Random(0)
    labels = [draw.choice(["yes", "no"]) for _ in range(300)]
    answers = [draw_words(draw, POPE_WORDS) for _ in labels]
    with tempfile.TemporaryDirectory() as folder:
        files = {"ans_file": f"{folder}/answers", "label_file": f"{folder}/labels"}
        for name, key, values in (("ans_file", "answer", answers), ("label_file", "label", labels)):
            Path(files[name]).write_text("".join(json.dumps({key: value}) + "\n" for value in values))
        printed = run(path, **files)["printed"]
    figures = {name: float(value) for name, value in re.findall(r"^([A-Z].*): (\S+)$", printed, re.MULTILINE)}
    return {"labels": labels, "answers": answers, "metrics": figures}


def make_visdial(path: str) -> dict[str, Any]:
    """Scores of ten candidates without ties, the right ones, and relevance; and the figures, as shares."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.stack([torch.randperm(10, generator=generator) for _ in range(40)]).float() / -4
    right = torch.randint(0, 10, (40,), generator=generator)
    relevance = torch.randint(0, 3, (40, 10), generator=generator) / 2
    defined = run(path)
    sparse, dense = defined["SparseGTMetrics"](), defined["NDCG"]()
    sparse.observe(scores[:, None], right[:, None])
    dense.observe(scores, relevance)
    figures = {**sparse.retrieve(), **dense.retrieve()}
    return {"scores": scores.tolist(), "right": right.tolist(), "relevance": relevance.tolist(), "metrics": figures}


def main(vqa: str, pope: str, visdial: str) -> None:
    """Write the file."""
    content = {"vqa": make_vqa(vqa), "pope": make_pope(pope), "visdial": make_visdial(visdial)}
    OUTPUT.write_text(json.dumps(content, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
