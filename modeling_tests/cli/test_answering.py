"""`lion caption`, `ask`, `locate` and `tag`: what they print, write and draw, and how they end."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console

import transformers_lion
from cli.command_line import lion, refusal
from transformers_lion import ImageTagger, Lion
from transformers_lion.cli import answering, common, questions
from transformers_lion.cli.options import TagSourceName
from transformers_lion.example import sketch
from transformers_lion.grounding import box_iou
from transformers_lion.tag_source import TAG_SOURCES

QUESTIONS = ("How many objects are there?", "Is there a green star in the image?")
CIRCLE, CIRCLE_BOX = "the red circle", (51.2, 57.6, 268.8, 264.0)


def read(file: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(file).read_text(encoding="utf-8").splitlines()]


# --- results ------------------------------------------------------------------------------------------------------


def test_one_image_gives_its_answer_alone_and_several_their_names(workplace: Path, example_lion: Lion) -> None:
    captions = example_lion.caption(["scene.png", "sketch.jpg"])
    assert lion("caption", "scene.png").lines == [captions[0]]
    assert lion("caption", "scene.png", "sketch.jpg").lines == [
        f"scene.png\t{captions[0]}",
        f"sketch.jpg\t{captions[1]}",
    ]


def test_several_questions_stand_beside_their_answers(workplace: Path, example_lion: Lion) -> None:
    first, second = example_lion.ask("scene.png", list(QUESTIONS))
    both = lion("ask", "scene.png", "-q", QUESTIONS[0], "-q", QUESTIONS[1])
    assert both.lines == [f"{QUESTIONS[0]}\t{first}", f"{QUESTIONS[1]}\t{second}"]
    assert lion("ask", "scene.png", "-q", QUESTIONS[0]).lines == [first]


def test_boxes_are_whole_pixels_for_people_and_exact_in_json(workplace: Path) -> None:
    (line,) = lion("locate", "sketch.jpg", "-p", CIRCLE).lines
    assert box_iou(tuple(float(value) for value in line.split(",")), CIRCLE_BOX) > 0.5
    (text,) = lion("locate", "sketch.jpg", "-p", CIRCLE, "--json").lines
    record = json.loads(text)
    assert [f"{value:.0f}" for value in record["boxes"][0]] == line.split(",")
    assert record["image"] == "sketch.jpg"
    assert record["phrase"] == CIRCLE
    assert (record["width"], record["height"], record["tags"]) == (640, 480, None)
    assert record["answer"].startswith("Answer: [0.")
    assert record["prompt"] == f"How can I locate {CIRCLE} in the image? Please provide the coordinates."


def test_scores_are_the_fifth_number_of_a_box(workplace: Path, example_lion: Lion) -> None:
    answer = example_lion.locate("sketch.jpg", CIRCLE, scores=True)
    (line,) = lion("locate", "sketch.jpg", "-p", CIRCLE, "--scores").lines
    assert float(line.split(",")[4]) == pytest.approx(answer.scores[0], abs=1e-3)
    (text,) = lion("locate", "sketch.jpg", "-p", CIRCLE, "--scores", "--json").lines
    assert json.loads(text)["scores"] == [pytest.approx(answer.scores[0], abs=1e-4)]
    assert "scores" not in json.loads(lion("locate", "sketch.jpg", "-p", CIRCLE, "--json").lines[0])


def test_tags_of_images(workplace: Path, example_tagger: ImageTagger) -> None:
    (tagged,) = example_tagger.tag(["scene.png"])
    assert lion("tag", "scene.png").lines == [", ".join(tagged.names or [])]
    record = json.loads(lion("tag", "scene.png", "--json").lines[0])
    assert record["tags"] == tagged.names
    assert record["scores"] == [round(entry["score"], 4) for entry in tagged.tags or []]
    best = max(tagged.tags or [], key=lambda entry: entry["score"])["label"]
    assert lion("tag", "scene.png", "--top", 1).lines == [best]


def test_tags_for_prompts_are_those_that_were_given(workplace: Path, quick: list[Any]) -> None:
    for arguments in ((), ("--tags", "dog, grass"), ("--tag-source", "none"), ("--tags", "auto")):
        assert lion("caption", "scene.png", *arguments).code == 0
    requests = [request for call in quick for request in call]
    assert [request.tags for request in requests] == [None, "dog, grass", None, "auto"]
    assert [request.tag_source for request in requests] == [None, None, "none", None]
    assert tuple(source.value for source in TagSourceName) == TAG_SOURCES


def test_results_go_to_a_new_file_as_json(workplace: Path, quick: list[Any]) -> None:
    ran = lion("caption", "scene.png", "sketch.jpg", "--output", "out.jsonl")
    assert (ran.code, ran.lines, ran.errors) == (0, [], [])
    assert [record["image"] for record in read("out.jsonl")] == ["scene.png", "sketch.jpg"]
    assert refusal("caption", "scene.png", "-o", "out.jsonl") == "out.jsonl: File exists."
    assert len(read("out.jsonl")) == 2
    assert lion("caption", "scene.png", "-o", os.devnull).code == 0


def test_a_name_is_one_line_in_text_and_itself_in_json(workplace: Path, quick: list[Any]) -> None:
    name = "new\nline \u2764 \x1b[31m.png"
    shutil.copy("scene.png", name)
    assert lion("caption", name, "scene.png").lines[0] == "new\\nline \u2764 \\x1b[31m.png\tanswer (100, 100)"
    assert json.loads(lion("caption", name, "--json").lines[0])["image"] == name


def test_a_name_that_is_no_utf8_is_written_all_the_same(workplace: Path, quick: list[Any]) -> None:
    name = os.fsdecode(b"bad\xff.png")
    shutil.copy("scene.png", name)
    assert lion("caption", ".").lines[0] == "./bad\\udcff.png\tanswer (100, 100)"
    assert json.loads(lion("caption", name, "--json").lines[0])["image"] == name
    assert lion("caption", name, "-o", "out.jsonl").code == 0
    assert read("out.jsonl")[0]["image"] == name


# --- many images ------------------------------------------------------------------------------------------------


def test_one_unreadable_image_among_a_thousand_is_reported_and_the_rest_done(workplace: Path, quick: list[Any]) -> None:
    Path("many").mkdir()
    for index in range(1000):
        Image.new("RGB", (1 + index % 7, 3)).save(f"many/{index:03}.bmp")
    Path("many/500.bmp").write_bytes(b"BM not an image")
    ran = lion("caption", "many", "-b", 64)
    assert ran.code == 1
    assert len(ran.lines) == 999
    assert ran.errors == ["error: many/500.bmp cannot be read: it is not an image in a known format."]
    assert max(map(len, quick)) == 64
    assert [line.split("\t")[0] for line in ran.lines] == [f"many/{i:03}.bmp" for i in range(1000) if i != 500]


def test_an_image_that_is_named_twice_is_answered_twice_and_read_once(workplace: Path, quick: list[Any]) -> None:
    ran = lion("caption", "scene.png", "scene.png")
    assert ran.lines == ["scene.png\tanswer (100, 100)"] * 2
    (requests,) = quick
    assert requests[0].image is requests[1].image


def test_full_size_images_are_kept_only_to_draw_on_them(workplace: Path, quick: list[Any]) -> None:
    lion("caption", "scene.png")
    lion("caption", "scene.png", "--draw", "drawn.png")
    ((plain,), (drawn,)) = quick
    assert plain.image.rgb_image is None
    assert drawn.image.rgb_image.size == (100, 100)


def test_questions_of_an_image_go_to_the_model_together(workplace: Path, quick: list[Any]) -> None:
    lion("ask", "scene.png", "sketch.jpg", "-q", "a", "-q", "b", "-b", 1)
    assert [[(request.image.size, request.question) for request in call] for call in quick] == [
        [((100, 100), "a"), ((100, 100), "b")],
        [((640, 480), "a"), ((640, 480), "b")],
    ]


def test_what_is_finished_stays_when_the_command_is_interrupted(
    workplace: Path, quick: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = questions.Answering.run

    def interrupted(self: Any, pictures: Any) -> Any:
        if len(quick) == 2:
            raise KeyboardInterrupt
        return run(self, pictures)

    monkeypatch.setattr(questions.Answering, "run", interrupted)
    for arguments in (("-o", "out.jsonl"), ("--json",)):
        quick.clear()
        ran = lion("caption", *["scene.png", "sketch.jpg"] * 2, "-b", 1, *arguments)
        assert (ran.code, ran.errors) == (130, ["error: interrupted."])
        lines = ran.lines if "--json" in arguments else Path("out.jsonl").read_text().splitlines()
        assert [json.loads(line)["image"] for line in lines] == ["scene.png", "sketch.jpg"]


def test_each_batch_is_on_disk_before_the_next_begins(
    workplace: Path, quick: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    run = questions.Answering.run
    monkeypatch.setattr(
        questions.Answering,
        "run",
        lambda self, pictures: sizes.append(len(Path("out.jsonl").read_text().splitlines())) or run(self, pictures),
    )
    lion("caption", *["scene.png", "sketch.jpg"] * 2, "-b", 1, "-o", "out.jsonl")
    assert sizes == [0, 1, 2, 3]


def test_a_broken_package_of_an_extra_breaks_no_other_command(
    workplace: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path_factory.mktemp("broken")
    for name in ("datasets", "matplotlib", "pyarrow"):
        (broken / f"{name}.py").write_text("raise ImportError('built for another NumPy')\n")
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.syspath_prepend(broken)
    ran = lion("caption", "scene.png")
    assert (ran.code, ran.errors) == (0, [])


def heed_ctrl_c() -> None:
    """What runs behind others in a shell ignores Ctrl-C, and so does all that it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_a_closed_pipe_and_ctrl_c_end_a_real_command_quietly(workplace: Path) -> None:
    command = [sys.executable, "-m", "transformers_lion.cli", "caption", "-b", "1", *["scene.png", "sketch.jpg"] * 200]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    options: dict[str, Any] = {"env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    for stop, code, words in ((None, common.PIPE_CLOSED, b""), (signal.SIGINT, 130, b"error: interrupted.\n")):
        process = subprocess.Popen(command, preexec_fn=heed_ctrl_c, **options)
        assert process.stdout
        assert process.stderr
        assert process.stdout.readline().startswith(b"scene.png\t")
        if stop is None:
            process.stdout.close()
        else:
            process.send_signal(stop)
        assert process.wait(120) == code
        assert process.stderr.read() == words


def test_a_gpu_that_is_too_small_is_one_line(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise torch.OutOfMemoryError("many lines\nof figures")

    monkeypatch.setattr(Lion, "answer", fail)
    assert "try a smaller --batch-size" in refusal("caption", "scene.png")


# --- drawings -----------------------------------------------------------------------------------------------------


def test_one_image_is_drawn_into_a_file_and_several_into_a_folder(workplace: Path) -> None:
    assert lion("locate", "sketch.jpg", "-p", CIRCLE, "--draw", "out.png").code == 0
    drawn = Image.open("out.png")
    assert drawn.size == (640, 480)
    assert drawn.tobytes() != sketch().tobytes()
    assert lion("locate", "sketch.jpg", "scene.png", "-p", CIRCLE, "--draw", "new/folder").code == 0
    assert sorted(os.listdir("new/folder")) == ["scene.png", "sketch.jpg"]
    assert lion("locate", "scene.png", "-p", CIRCLE, "--draw", "new").code == 0
    assert Path("new/scene.png").is_file()


def test_answers_without_boxes_are_written_below_the_image(workplace: Path, quick: list[Any]) -> None:
    assert lion("caption", "sketch.jpg", "--draw", "out.png").code == 0
    drawn = Image.open("out.png").convert("RGB")
    assert drawn.width == 640
    assert drawn.height > 480
    assert drawn.crop((0, 0, 640, 480)).tobytes() == Image.open("sketch.jpg").convert("RGB").tobytes()
    assert drawn.crop((0, 480, 640, drawn.height)).getextrema() == ((0, 255),) * 3
    assert lion("tag", "scene.png", "--draw", "tags.png").code == 0
    assert Image.open("tags.png").height > 100


def test_images_of_the_same_name_have_drawings_of_their_own(workplace: Path, quick: list[Any]) -> None:
    for folder in ("a", "b"):
        Path(folder).mkdir()
        shutil.copy("scene.png", folder)
    assert lion("caption", "a", "b", "scene.png", "--draw", "out").code == 0
    assert sorted(os.listdir("out")) == ["scene-2.png", "scene-3.png", "scene.png"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["scene.png", "--draw", "scene.png"], "--draw would overwrite the input image scene.png"),
        (["scene.png", "--draw", "."], "--draw would overwrite the input image scene.png"),
        (["scene.png", "sketch.jpg", "--draw", "."], "--draw would overwrite the input image scene.png"),
        (["scene.png", "--draw", "link.png"], "--draw would overwrite the input image link.png"),
        (["scene.png", "--draw", "out.xyz"], "must end in .png, .jpg"),
        (["scene.png", "--draw", "lost/out.png"], "lost: No such file or directory."),
        (["scene.png", "sketch.jpg", "--draw", "sketch.jpg"], "sketch.jpg: File exists."),
        (["scene.png", "-o", "lost/out.jsonl"], "lost/out.jsonl: No such file or directory."),
        (["scene.png", "-o", "."], "."),
        (["scene.png", "-o", "sketch.jpg"], "sketch.jpg: File exists."),
    ],
)
def test_nothing_is_overwritten_that_should_stay(
    arguments: list[str], words: str, workplace: Path, quick: list[Any]
) -> None:
    Path("link.png").hardlink_to("scene.png")
    before = {path: path.read_bytes() for path in workplace.iterdir()}
    assert words in refusal("caption", *arguments)
    assert {path: path.read_bytes() for path in workplace.iterdir()} == before
    assert quick == []


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_one_line(workplace: Path) -> None:
    Path("closed").mkdir(mode=0o500)
    assert refusal("caption", "scene.png", "--draw", "closed/a.png") == "closed/a.png: Permission denied."


# --- the command line ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["caption"], ["caption", "scene.png", "--bogus"], ["capton", "scene.png"], ["ask", "scene.png"],
        ["ask", "scene.png", "-q", " "], ["locate", "scene.png", "-p", ""], ["locate", "scene.png"],
        ["caption", "scene.png", "--tags", "a", "--tag-source", "tagger"],
        ["caption", "scene.png", "--tags", "a", "--tagger", "b"], ["caption", "scene.png", "--tag-source", "auto"],
        ["caption", "scene.png", "--tagger", "b", "--tag-source", "none"], ["eval", "rec", "--tags", "auto"],
        ["caption", "scene.png", "-b", "0"], ["caption", "scene.png", "--num-beams", "x"],
        ["caption", "scene.png", "--dtype", "int4"], ["tag", "scene.png", "--threshold", "2"], [],
    ],
)  # fmt: skip
def test_a_wrong_command_line_has_exit_code_2(arguments: list[str], workplace: Path, quick: list[Any]) -> None:
    ran = lion(*arguments)
    assert ran.code == 2
    assert quick == []


@pytest.mark.parametrize("arguments", [["caption", "scene.png", "--tag-source"], ["eval", "rec", "--tags"]])
def test_an_old_source_of_tags_is_answered_with_the_new_ones(arguments: list[str]) -> None:
    needed = ["--data", "a", "--output", "b"] if arguments[0] == "eval" else []
    ran = lion(*arguments, "auto", *needed)
    assert ran.code == 2
    assert all(source in " ".join(ran.errors) for source in TAG_SOURCES)


def test_the_version_is_shown() -> None:
    assert lion("--version").lines == [f"transformers-lion {transformers_lion.__version__}"]


@pytest.mark.parametrize("command", ["caption", "ask", "locate", "tag", "info", "train"])
@pytest.mark.parametrize("columns", [80, 120])
def test_help_has_an_example_and_fits_the_terminal(command: str, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERMINAL_WIDTH", str(columns))
    ran = lion(command, "--help")
    assert ran.code == 0
    assert f"lion {command} " in " ".join(ran.lines).partition("Example: ")[2]
    assert max(map(len, ran.lines)) <= columns


@pytest.mark.parametrize(("is_terminal", "shown"), [(True, True), (False, False)])
def test_progress_is_shown_to_terminals_only(
    is_terminal: bool, shown: bool, workplace: Path, quick: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answering, "show_progress", lambda: is_terminal)
    monkeypatch.setattr(answering, "stderr_console", lambda: Console(stderr=True, force_terminal=True))
    ran = lion("caption", "scene.png", "-o", "out.jsonl")
    assert ran.lines == []
    assert any("Images" in line for line in ran.errors) is shown


def test_the_model_is_loaded_only_if_there_is_something_to_do(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "load_lion", lambda *arguments: pytest.fail("it was loaded"))
    assert refusal("caption", "lost.png") == "lost.png: No such file or directory."
