"""A compiled decoder generates what the uncompiled one generates, and is compiled once."""

import copy
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.utils import counters

from cli.command_line import lion as command
from cli.command_line import refusal
from factories import NO_DROPOUT, row_of, tiny_inputs, tiny_model
from ram.factories import tiny_ram
from transformers_lion import Lion, LionForConditionalGeneration
from transformers_lion.cpu_inference import exchange, optimize_for_inference, plan
from transformers_lion.cpu_inference.compiled import CompiledStep, _check_sizes
from transformers_lion.cpu_inference.decoder import InferenceDecoder
from transformers_lion.cpu_inference.default import describe_inference
from transformers_lion.cpu_inference.linear import PackedLinear
from transformers_lion.cpu_inference.plan import CpuFeatures
from transformers_lion.example import sketch

pytestmark = pytest.mark.slow

BATCHES: list[tuple[int, dict[str, Any]]] = [
    (1, {}),
    (1, {"num_beams": 5, "repetition_penalty": 1.5}),
    (3, {"do_sample": True, "top_k": 0}),
    (3, {"num_beams": 4}),
    (1, {"max_new_tokens": 40}),  # more than a block of the cache
    (4, {"decoder_input_ids": torch.tensor([[0, 7, 8]] * 4)}),
    (2, {"num_beams": 3, "num_return_sequences": 2}),
]
"""Number of samples, and options for `generate`."""


@pytest.fixture
def inputs_of() -> Any:
    """Function that returns inputs with both tasks, or with one sample, without padding."""

    def make(batch_size: int, seed: int = 0) -> dict[str, torch.Tensor]:
        inputs = tiny_inputs(4, seed)
        return row_of(inputs, seed % 4) if batch_size == 1 else {name: x[:batch_size] for name, x in inputs.items()}

    return make


@pytest.fixture(scope="module", autouse=True)
def no_recompilation() -> Iterator[None]:
    """A compiled function that is called with something that it was not compiled for is an error."""
    with torch._dynamo.config.patch(error_on_recompile=True):
        yield


@pytest.fixture(scope="module")
def plain() -> LionForConditionalGeneration:
    return tiny_model(**NO_DROPOUT)


@pytest.fixture(scope="module")
def unpacked() -> LionForConditionalGeneration:
    """Its layers are too small for packed weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "detect_features", lambda: CpuFeatures("AVX2", True, True, False, False))
        return optimize_for_inference(tiny_model(**NO_DROPOUT), compile=True)


def answer(model: Any, inputs: dict[str, torch.Tensor], options: dict[str, Any]) -> torch.Tensor:
    torch.manual_seed(0)
    return model.generate(**{"max_new_tokens": 8, **inputs, **options})


def graphs() -> int:
    return counters["stats"]["unique_graphs"]


def test_ids_are_those_of_the_plain_model_and_one_graph_is_compiled_for_all_batches(
    plain: Any, unpacked: Any, inputs_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exchange, "MIN_WEIGHTS", 10**9)
    assert not any(isinstance(part, PackedLinear) for part in unpacked.modules())
    before = graphs()
    for seed, (batch_size, options) in enumerate(BATCHES):
        inputs = inputs_of(batch_size, seed)
        assert torch.equal(answer(unpacked, inputs, options), answer(plain, inputs, options)), (batch_size, options)
        assert graphs() == before + 1
    other = optimize_for_inference(tiny_model(3, **NO_DROPOUT), compile=True)
    assert torch.equal(
        answer(other, inputs_of(1), {"num_beams": 3}),
        answer(tiny_model(3, **NO_DROPOUT), inputs_of(1), {"num_beams": 3}),
    )
    assert graphs() == before + 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_weights_are_compiled_too(dtype: torch.dtype, inputs_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, run = [], CompiledStep.run
    monkeypatch.setattr(CompiledStep, "run", lambda *arguments: calls.append(1) or run(*arguments))
    model, inputs = tiny_model(**NO_DROPOUT).to(dtype), inputs_of(3)
    expected = answer(copy.deepcopy(model).float(), inputs, {"num_beams": 4})
    optimize_for_inference(model, compile=True)
    packed = [part for part in model.get_decoder().modules() if isinstance(part, PackedLinear)]
    assert {type(part.pack).__name__ for part in packed} == {"Float32Pack" if dtype == torch.float32 else "Float16Pack"}
    before = graphs()
    assert torch.equal(answer(model, inputs, {"num_beams": 4}), expected)
    assert graphs() - before <= 1  # both kinds of packs have the same graph
    assert len(calls) == 8


def test_a_copy_is_compiled_already_and_training_undoes_it(unpacked: Any, plain: Any, inputs_of: Any) -> None:
    options, inputs = BATCHES[1][1], inputs_of(1)
    expected = answer(unpacked, inputs, options)
    before = graphs()
    for copied in (copy.deepcopy(unpacked), pickle.loads(pickle.dumps(unpacked))):
        assert copied.get_decoder().compiles
        assert torch.equal(answer(copied, inputs, options), expected)
    assert graphs() == before
    assert describe_inference(copied).endswith("decoder compiled")
    weights = plain.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in copied.state_dict().items())
    copied.train()
    assert not isinstance(copied.get_decoder(), InferenceDecoder)
    assert torch.equal(answer(copied.eval(), inputs, options), expected)


def test_changed_weights_need_no_other_graph(unpacked: Any, inputs_of: Any) -> None:
    model, inputs = copy.deepcopy(unpacked), inputs_of(1)
    before = answer(model, inputs, {}), graphs()
    with torch.no_grad():
        for block in model.get_decoder().block:
            block.feed_forward.adapter.adapters[0].up_proj.weight.mul_(30)
    assert not torch.equal(answer(model, inputs, {}), before[0])
    assert graphs() == before[1]


def test_without_a_compiler_nothing_changes() -> None:
    model = tiny_model()
    parts = [type(part) for part in model.modules()]
    with torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}):
        with pytest.raises(RuntimeError, match=r"requires a C\+\+ compiler, but none was found\. Install g\+\+"):
            optimize_for_inference(model, compile=True)
        assert [type(part) for part in model.modules()] == parts
        with pytest.raises(RuntimeError, match="Install"):
            Lion.from_pretrained(tagger=False, compile=True)


def test_a_failing_compilation_names_the_way_out(inputs_of: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("fatal error: Python.h: No such file\nlong command")

    monkeypatch.setattr(torch, "compile", lambda *_, **__: fail)
    model = optimize_for_inference(tiny_model(text_config={"num_heads": 3}), compile=True)
    with pytest.raises(RuntimeError, match=r"without compile=True\..*Python\.h: No such file"):
        answer(model, inputs_of(1), {})
    assert answer(optimize_for_inference(model), inputs_of(1), {}).shape[0] == 1


def test_a_model_that_cannot_be_compiled_is_refused() -> None:
    with pytest.raises(ValueError, match="RamForImageTagging has none"):
        optimize_for_inference(tiny_ram(), compile=True)
    with torch.device("meta"):
        model = LionForConditionalGeneration(tiny_model().config)
    with pytest.raises(ValueError, match=r"left unchanged: weights as loaded \(on meta\)"):
        optimize_for_inference(model, compile=True)
    with pytest.raises(ValueError, match="requires float32, but dtype is bfloat16"):
        Lion.from_pretrained(tagger=False, dtype=torch.bfloat16, compile=True)
    with pytest.raises(ValueError, match="optimize=False cannot be combined"):
        Lion.from_pretrained(tagger=False, optimize=False, compile=True)


def test_a_cache_of_another_layout_is_refused() -> None:
    _check_sizes([torch.zeros(3, 2)], torch.Size((3, 2)))
    for other in (torch.zeros(4, 2), torch.zeros(2, 3).T):
        with pytest.raises(ValueError, match=r"requires a contiguous one of shape \(3, 2\)"):
            _check_sizes([other], torch.Size((3, 2)))


def test_lion_compiles_on_request() -> None:
    lion = Lion.from_pretrained(tagger=False, compile=True)
    assert lion.model.get_decoder().compiles


def test_the_command_hands_the_option_on_and_refuses_a_contradiction(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    picture = tmp_path / "a.png"
    sketch().save(picture)
    seen: list[bool] = []

    def load(*_: Any, compile: bool, **__: Any) -> None:
        seen.append(compile)
        raise ValueError("far enough")

    monkeypatch.setattr(Lion, "from_pretrained", load)
    assert "far enough" in refusal("caption", picture, "--compile")
    assert seen == [True]
    ran = command("caption", picture, "--compile", "--no-optimize")
    assert ran.code
    assert "--compile and --no-optimize cannot be combined" in " ".join(ran.errors)
