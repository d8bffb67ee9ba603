"""LION as a model of lmms-eval.

Where lmms-eval is not installed, a stand-in takes its place: the two names that the class uses, and no more. It shows
that the class does what it is documented to do, not that lmms-eval calls it so.
"""

import importlib
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from fake_lion import FakeLion
from PIL import Image

from transformers_lion.inference import LOCATE_QUESTION, Request

MODULE = "transformers_lion.evaluation.lmms_eval_model"
REC = "Please provide the bounding box coordinate of the region this sentence describes: the dog"
GROUNDING = 'Locate every object that matches the description "the dog", "a pet" in the image. Report JSON.'
TASK_REGEX = re.compile(r"\[\s*(-?\d+(?:\.\d+)?),\s*(-?\d+(?:\.\d+)?),\s*(-?\d+(?:\.\d+)?),\s*(-?\d+(?:\.\d+)?)\s*\]")
"""What `refcoco_bbox_rec` of lmms-eval 0.7.3 reads of an answer."""


class StandIn:
    """The part of `lmms_eval.api.model.lmms` that a model uses: a constructor, and the documents of tasks."""

    def __init__(self) -> None:
        self.task_dict: dict[str, Any] = {}


@dataclass(frozen=True)
class StandInManifest:
    """The fields of `lmms_eval.models.registry_v2.ModelManifest`."""

    model_id: str
    simple_class_path: str | None = None


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    try:
        importlib.import_module("lmms_eval.models")
    except ImportError:
        for name, fields in (
            ("api.model", {"lmms": StandIn}),
            ("models.registry_v2", {"ModelManifest": StandInManifest}),
        ):
            found = ModuleType(f"lmms_eval.{name}")
            vars(found).update(fields)
            monkeypatch.setitem(sys.modules, f"lmms_eval.{name}", found)
            monkeypatch.setitem(sys.modules, f"lmms_eval.{name.partition('.')[0]}", ModuleType("lmms_eval.package"))
        monkeypatch.setitem(sys.modules, "lmms_eval", ModuleType("lmms_eval"))
        monkeypatch.delitem(sys.modules, MODULE, raising=False)
        yield importlib.import_module(MODULE)
        sys.modules.pop(MODULE, None)
        return
    yield importlib.import_module(MODULE)


class Speaker(FakeLion):
    """Returns predefined answers."""

    def __init__(self, *texts: str):
        super().__init__()
        self.texts = list(texts)
        self.requests: list[Request] = []

    def text(self, request: Request, num_requests: int) -> str:
        self.requests.append(request)
        return self.texts[(len(self.requests) - 1) % len(self.texts)]


@dataclass
class Instance:
    """A request of lmms-eval: `args` are the context, options or a continuation, and the location of the document."""

    args: tuple[Any, ...]


@pytest.fixture
def build(module: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    def build(lion: FakeLion, **options: Any) -> Any:
        monkeypatch.setattr(module.Lion, "from_pretrained", lambda *arguments, **more: lion)
        model = module.LionForLmmsEval(**options)
        images = [Image.new("RGB", (20 + index, 16)) for index in range(9)]
        tasks = ("refcoco_bbox_rec_val", "refcoco_grounding_test", "gqa", "seedbench_ppl")
        model.task_dict = {task: {"val": [{"images": [image]} for image in images]} for task in tasks}
        return model

    return build


def instance(context: str, more: Any, task: str, document: int = 0) -> Instance:
    return Instance((context, more, lambda found: found["images"], document, task, "val"))


def test_a_box_is_asked_for_in_lions_words_and_read_by_the_task(build: Any) -> None:
    lion = Speaker("the dog [0.3,0.4,.1,0.2;0.5,0.5,0.9,0.9].")
    (answer,) = build(lion).generate_until([instance(REC, {"until": ["ASSISTANT:"]}, "refcoco_bbox_rec_val")])
    assert TASK_REGEX.search(answer).groups() == ("0.100", "0.200", "0.300", "0.400")  # type: ignore[union-attr]
    (request,) = lion.requests
    assert (request.question, request.task_type) == (LOCATE_QUESTION.format(phrase="the dog"), "region_level")


def test_the_json_of_the_grounding_task_is_in_thousandths(build: Any) -> None:
    lion = Speaker("the dog [0.1,0.2,0.3,0.4]")
    (answer,) = build(lion).generate_until([instance(GROUNDING, {}, "refcoco_grounding_test")])
    assert answer == '[{"bbox_2d": [100, 200, 300, 400], "label": "the dog"}]'
    assert lion.requests[0].question == LOCATE_QUESTION.format(phrase="the dog")


def test_the_words_of_the_task_are_kept_if_asked_for_and_in_all_other_tasks(build: Any) -> None:
    lion = Speaker("brown [0.1,0.2,0.3,0.4]")
    model = build(lion, locate=False)
    asked = [instance(f"<image>\n{REC}", {}, "refcoco_bbox_rec_val"), instance("What colour?", {}, "gqa")]
    assert model.generate_until(asked) == ["[0.100,0.200,0.300,0.400]", "brown [0.1,0.2,0.3,0.4]"]
    assert [(request.question, request.task_type) for request in lion.requests] == [
        (REC, "region_level"), ("What colour?", "image_level"),
    ]  # fmt: skip


def test_answers_stand_in_the_order_of_their_questions_whatever_their_options(build: Any) -> None:
    lion = FakeLion()
    greedy = {"do_sample": False, "temperature": 0, "top_p": 1.0, "num_beams": 1, "max_new_tokens": 16, "until": "?"}
    drawn = {"temperature": 0.7}
    asked = [instance(f"{index}?", [greedy, drawn][index % 2], "gqa", index) for index in range(7)]
    answers = build(lion, batch_size="2").generate_until(asked)
    assert answers == [f"{20 + index}x16: {index}{'?' * (index % 2)}" for index in range(7)]
    assert [call["questions"] for call in lion.calls] == [["0?", "2?"], ["4?", "6?"], ["1?", "3?"], ["5?"]]
    assert {key: value for key, value in lion.calls[0].items() if key != "questions"} == {
        "do_sample": False, "num_beams": 1, "max_new_tokens": 16,
    }  # fmt: skip
    assert (lion.calls[-1]["do_sample"], lion.calls[-1]["temperature"]) == (True, 0.7)


def test_the_likeliest_continuation_has_the_least_loss(build: Any) -> None:
    asked = [instance("Which?", f" {choice}", "seedbench_ppl") for choice in ("red", "no")]
    assert build(Speaker("red")).loglikelihood(asked) == [(4.5, True), (3.0, False)]


def test_a_document_without_exactly_one_image_is_an_error(build: Any) -> None:
    model = build(FakeLion())
    model.task_dict["gqa"]["val"][0]["images"] *= 2
    with pytest.raises(ValueError, match="Document 0 of gqa has 2 images, but LION accepts 1"):
        model.generate_until([instance("What?", {}, "gqa")])
    with pytest.raises(NotImplementedError, match="one question at a time"):
        model.generate_until_multi_round([])


def test_the_entry_point_names_the_class(module: Any) -> None:
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    assert f'[project.entry-points."lmms_eval.models"]\nlion = "{MODULE}:list_models"\n' in project
    (manifest,) = module.list_models()
    assert (manifest.model_id, manifest.simple_class_path) == ("lion", f"{MODULE}.LionForLmmsEval")


def test_lmms_eval_itself_finds_the_model_and_its_task_reads_the_box(module: Any, build: Any) -> None:
    if module.lmms is StandIn:
        pytest.skip("lmms-eval is not installed")
    models = importlib.import_module("lmms_eval.models")
    assert models.get_model("lion").__name__ == "LionForLmmsEval"
    rec = importlib.import_module("lmms_eval.tasks.refcoco.utils_rec")
    (answer,) = build(Speaker("[0.1,0.2,0.3,0.4;0,0,1,1]")).generate_until([instance(REC, {}, "refcoco_bbox_rec_val")])
    document = {"answer": "the dog", "question_id": "1", "bbox": [0.1, 0.2, 0.3, 0.4]}
    assert rec.refcoco_bbox_rec_iou([rec.refcoco_bbox_rec_process_result(document, [answer])["refcoco_IoU"]]) == 1
