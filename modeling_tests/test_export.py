"""Exported parts compute what the model computes, for batches and lengths that they were not traced with."""

from pathlib import Path

import pytest
import torch

from factories import tiny_inputs, tiny_model
from transformers_lion.export import ExportPart, export_parts

NAMES = ("image", "question", "encoder", "decoder")
SIZES = [(3, 6, 9, 4), (1, 7, 12, 1)]
"""Samples, text, encoder and decoder positions, none of which is that of the example inputs."""


@pytest.fixture(scope="module")
def parts() -> dict[str, ExportPart]:
    return export_parts(tiny_model())


def inputs_of(name: str, sizes: tuple[int, int, int, int]) -> tuple[torch.Tensor, ...]:
    batch, text, encoder, decoder = sizes
    generator = torch.Generator().manual_seed(batch)
    ids = torch.randint(3, 90, (batch, text), generator=generator)
    mask = torch.ones(batch, encoder, dtype=torch.long)
    mask[-1, -2:] = 0
    tasks, states = torch.arange(batch) % 2, torch.randn(batch, encoder, 32, generator=generator)
    return {
        "image": (torch.randn(batch, 3, 28, 28, generator=generator),),
        "question": (torch.randn(batch, 5, 32, generator=generator), ids, torch.ones_like(ids)),
        "encoder": (states, mask, tasks),
        "decoder": (torch.randint(3, 90, (batch, decoder), generator=generator), states, mask, tasks),
    }[name]


def outputs_of(part: ExportPart, inputs: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    with torch.no_grad():
        outputs = part(*inputs)
    return list(outputs) if isinstance(outputs, tuple) else [outputs]


@pytest.mark.parametrize("name", NAMES)
def test_an_exported_part_takes_other_sizes_and_computes_the_same(name: str) -> None:
    part = export_parts(tiny_model())[name]
    part.model.set_attn_implementation("sdpa")
    with torch.no_grad():
        program = torch.export.export(part, part.example_inputs(), dynamic_shapes=part.dynamic_shapes()).module()
        for sizes in SIZES:
            inputs = inputs_of(name, sizes)
            found = program(*inputs)
            for output, expected in zip(
                found if isinstance(found, tuple) else [found], outputs_of(part, inputs), strict=True
            ):
                torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_part_in_onnx_computes_the_same(name: str, parts: dict[str, ExportPart], tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    part, file = parts[name], tmp_path / f"{name}.onnx"
    torch.onnx.export(
        part, part.example_inputs(), file, dynamo=True, dynamic_shapes=part.dynamic_shapes(),
        input_names=part.input_names, output_names=part.output_names, verbose=False,
    )  # fmt: skip
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    assert tuple(each.name for each in session.get_outputs()) == part.output_names
    for sizes in SIZES:
        inputs = inputs_of(name, sizes)
        named = {key: value.numpy() for key, value in zip(part.input_names, inputs, strict=True)}
        for output, expected in zip(session.run(None, named), outputs_of(part, inputs), strict=True):
            assert (torch.from_numpy(output) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_the_parts_in_a_row_are_the_model(parts: dict[str, ExportPart]) -> None:
    model, inputs = parts["image"].model, tiny_inputs(2)
    answer = torch.tensor([[0, 5, 9], [0, 7, 8]])
    with torch.no_grad():
        states, projected = parts["image"](inputs["pixel_values"])
        queries = parts["question"](states, inputs["qformer_input_ids"], inputs["qformer_attention_mask"])
        embeds = torch.cat([queries, projected, model.embed_text(inputs["input_ids"])], dim=1)
        mask = torch.cat([torch.ones(2, embeds.shape[1] - 7, dtype=torch.long), inputs["attention_mask"]], dim=1)
        encoded = parts["encoder"](embeds, mask, inputs["task_type_ids"])
        logits = parts["decoder"](answer, encoded, mask, inputs["task_type_ids"])
        expected = model(**inputs, decoder_input_ids=answer).logits
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


def test_a_model_of_one_branch_is_refused() -> None:
    with pytest.raises(ValueError, match="'qformer'"):
        export_parts(tiny_model(visual_branch="qformer"))
