"""The speed benchmark at its smallest size: all sections run, and the compared models are the same.

This folder is no package: `benchmarks` is the one that is tested.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from restored_logging import restored_logging

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.speed import __main__ as command  # noqa: E402
from benchmarks.speed.floors import prefill_products, step_bytes, vision_products  # noqa: E402
from benchmarks.speed.measures import Row, Settings, fit_line  # noqa: E402
from benchmarks.speed.memory import measure_here  # noqa: E402
from benchmarks.speed.models import TINY, lion_config, make_inputs, make_labels  # noqa: E402
from benchmarks.speed.report import HEADINGS, Results  # noqa: E402
from benchmarks.speed.sections import Bench, answers, training_step  # noqa: E402
from benchmarks.speed.sides import build_sides, first_token  # noqa: E402
from benchmarks.speed.targets import Target  # noqa: E402
from transformers_lion.training.stages import STAGES, trainable_parameters  # noqa: E402

pytestmark = pytest.mark.long  # results of this benchmark are old; `benchmarks/cpu_inference.py` has the new ones
ALONE = "memory"
"""The section that starts new processes."""
SMALL = Settings(size="tiny", threads=1, repeats=1, new_tokens=4, num_questions=2, quick=True)
COMMAND = ["--quick", "--size", "tiny", "--threads", "1"]


@pytest.fixture(scope="module", autouse=True)
def quiet() -> Iterator[None]:
    """Restore the logging settings that the command changes."""
    with restored_logging():
        yield


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("speed")
    sections = [name for name in command.SECTIONS if name != ALONE]
    command.main([*COMMAND, "--only", *sections, "--output", str(folder)])
    return folder


def test_every_section_has_its_table(output: Path) -> None:
    page = (output / "speed.md").read_text()
    for name in command.SECTIONS:
        assert (f"### {HEADINGS[name]}\n\n| " in page) == (name != ALONE), name
    assert "### Targets" in page
    assert (output / "answers.png").stat().st_size > 1000
    assert (output / "growth.png").stat().st_size > 1000


def test_answers_of_the_package_are_those_of_the_composition(output: Path) -> None:
    rows = json.loads((output / "speed.json").read_text())["answers"]["rows"]
    assert [row["notes"]["ids equal"] for row in rows] == [True] * 4


def test_other_answers_of_the_composition_stop_the_run() -> None:
    bench = Bench(SMALL)
    with torch.no_grad():
        for mixture in (block.layer[-1].adapter for block in bench.sides[2].model.language_model.decoder.block):
            mixture.adapters[1].scale.mul_(500)
    with pytest.raises(AssertionError, match="answer, greedy, batch 1"):
        answers(bench)


def test_losses_of_both_are_equal() -> None:
    inputs, labels = make_inputs(TINY, 2), make_labels(TINY, 2)
    lion, composed = build_sides(TINY, ("lion", "composed"))
    torch.testing.assert_close(lion.loss(inputs, labels), composed.loss(inputs, labels), atol=1e-5, rtol=1e-5)


def test_both_train_the_parts_of_the_stage() -> None:
    lion, composed = build_sides(TINY, ("lion", "composed"))
    expected = {name for name, _ in trainable_parameters(lion.model, STAGES["mixture"])}
    lion.thaw()
    composed.thaw()
    assert {name for name, value in lion.model.named_parameters() if value.requires_grad} == expected
    theirs = {name for name, value in composed.model.named_parameters() if value.requires_grad}
    ours = {name.replace("layer.1.adapter", "feed_forward.adapter").replace("layer.2.adapter", "feed_forward.adapter")
            for name in theirs}  # fmt: skip
    assert expected < ours  # the reference also trains parameters that affect no output
    assert all(name.startswith("qformer.encoder.layer.1.") for name in ours - expected)


def test_a_step_changes_only_trained_parameters() -> None:
    [side] = build_sides(TINY, ("composed",))
    before = {name: value.clone() for name, value in side.model.state_dict().items()}
    step = training_step(side, make_inputs(TINY, 2), make_labels(TINY, 2))
    step()
    after = side.model.state_dict()
    assert not torch.equal(before["soft_prompt.weight"], after["soft_prompt.weight"])
    frozen = [name for name in after if name.startswith("vision_model.encoder.") or ".SelfAttention." in name]
    assert frozen
    assert all(torch.equal(before[name], after[name]) for name in frozen)


def test_an_interrupted_run_keeps_its_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(bench: Bench) -> list[Row]:
        raise KeyboardInterrupt

    monkeypatch.setitem(command.SECTIONS, "answers", fail)
    with pytest.raises(KeyboardInterrupt):
        command.main([*COMMAND, "--only", "encode", "answers", "--output", str(tmp_path)])
    assert list(json.loads((tmp_path / "speed.json").read_text())) == ["encode"]
    assert HEADINGS["encode"] in (tmp_path / "speed.md").read_text()


def test_the_tables_show_the_stored_results() -> None:
    results = Results(ROOT / command.RESULTS)
    assert (results.folder / "speed.md").read_text() == f"# Speed and memory\n\n{results.markdown()}"


def test_a_section_with_differing_sides_is_dropped_and_the_run_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def differ(bench: Bench) -> list[Row]:
        raise AssertionError("ids")

    monkeypatch.setitem(command.SECTIONS, "answers", differ)
    with pytest.raises(SystemExit, match="ids"):
        command.main([*COMMAND, "--only", "answers", "encode", "--output", str(tmp_path)])
    assert list(json.loads((tmp_path / "speed.json").read_text())) == ["encode"]


@torch.no_grad()
def test_the_floor_has_the_matrix_products_of_the_model() -> None:
    [composed] = build_sides(TINY, ("composed",))
    inputs = make_inputs(TINY)
    with FlopCounterMode(display=False) as tower:
        composed.model.vision_model(inputs["pixel_values"])
    assert sum(product.count * product.flops for product in vision_products(TINY)) == tower.get_total_flops()
    prepared = composed.language_inputs(inputs)
    with FlopCounterMode(display=False) as prefill:
        first_token(composed, prepared)
    bottleneck = lion_config(TINY).text_config.adapter_hidden_size
    counted = sum(product.count * product.flops for product in prefill_products(TINY, bottleneck))
    assert 0.95 < counted / prefill.get_total_flops() < 1  # without the first token itself


def test_the_bytes_of_a_step_are_the_decoders_without_what_it_reads_once() -> None:
    [composed] = build_sides(TINY, ("composed",))
    decoder, text = composed.model.language_model.decoder, TINY.text
    everything = sum(value.numel() for value in decoder.block.parameters()) + text["d_model"]
    keys_and_values = 2 * text["num_layers"] * text["d_model"] * text["num_heads"] * text["d_kv"]
    head = text["d_model"] * text["vocab_size"]
    assert step_bytes(composed.model.language_model) == 4 * (everything - keys_and_values + head)


def test_a_peak_leaves_out_what_was_freed_before_the_task() -> None:
    freed = torch.ones(50_000_000)  # 200 MB
    assert freed.numel()
    del freed
    peaks = measure_here(SMALL, "lion", "training")
    assert 0 < peaks["libraries"] <= peaks["model"]
    assert 0 < peaks["peak"] < peaks["model"] - 50_000_000


def test_targets_are_ratios_of_turns() -> None:
    row = Row("answer", "s", {"lion": [1.0, 2.0, 4.0], "composed": [3.0, 4.0, 20.0], "floor": [2.0]})
    assert Target("answer", "composed", least=3).measured(row) == (3.0, 2.0, 5.0)
    assert Target("answer", "floor", most=1).measured(row) == (1.0, 0.5, 2.0)
    assert Target("answer", "instructblip", most=1).measured(row) is None
    assert Target("answer", "composed", least=3).is_met(3.0)
    assert not Target("answer", "floor", most=1).is_met(1.1)


def test_a_line_is_fitted() -> None:
    assert fit_line([1, 2, 4], [5, 7, 11]) == pytest.approx((2, 3, 1))
    assert fit_line([1, 2, 3], [1, 3, 2])[2] == pytest.approx(0.25)
