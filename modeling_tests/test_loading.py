"""Loading from shards, with a memory limit and the disk, and quantised."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BitsAndBytesConfig, TorchAoConfig

from factories import tiny_config, tiny_inputs, tiny_model
from processes import answer_of
from transformers_lion import LionForConditionalGeneration

GENERATE: dict[str, Any] = {"max_new_tokens": 6, "do_sample": False}

SAMPLE_MEMORY = """
import json, re, sys, threading, time
from pathlib import Path
from transformers_lion import LionForConditionalGeneration

def anonymous():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

start = peak = anonymous()
running = True

def sample():
    global peak
    while running:
        peak = max(peak, anonymous())
        time.sleep(0.001)

thread = threading.Thread(target=sample)
thread.start()
model = LionForConditionalGeneration.from_pretrained(FOLDER, dtype=DTYPE)
running = False
thread.join()
size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
print(json.dumps([peak - start, size]))
"""

needs_proc = pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")


# --- shards -------------------------------------------------------------------------------------------------------


def test_a_model_loaded_from_shards_is_the_model_that_was_saved(tmp_path: Path) -> None:
    model = tiny_model()
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    loaded = LionForConditionalGeneration.from_pretrained(tmp_path)
    saved, read = model.state_dict(), loaded.state_dict()
    assert saved.keys() == read.keys()
    assert all(torch.equal(saved[name], read[name]) for name in saved)


@pytest.fixture(scope="module")
def sharded_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """230 MB of bfloat16 in shards of 30 MB: enough to tell one copy from two."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        model = LionForConditionalGeneration(
            tiny_config(text_config={"vocab_size": 32128, "d_model": 512, "d_ff": 4096, "num_layers": 6, "d_kv": 64})
        )
    finally:
        torch.set_default_dtype(torch.float32)
    folder = tmp_path_factory.mktemp("sharded")
    model.save_pretrained(folder, max_shard_size="30MB")
    assert len(list(folder.glob("*.safetensors"))) > 5
    return folder


@needs_proc
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.slow
def test_loading_from_shards_never_holds_two_copies(dtype: str, sharded_folder: Path, tmp_path: Path) -> None:
    code = SAMPLE_MEMORY.replace("FOLDER", repr(str(sharded_folder))).replace("DTYPE", repr(dtype))
    peak, size = json.loads(answer_of(code, tmp_path / "home"))
    assert size > 1.5e8
    assert peak < 1.1 * size + 3e7


# --- with a memory limit, and the disk ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def offloadable(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, LionForConditionalGeneration]:
    """A folder of shards, and the model in it, of four blocks a stack so that a limit can fall between them."""
    folder = tmp_path_factory.mktemp("offload")
    model = tiny_model(text_config={"num_layers": 4})
    model.save_pretrained(folder, max_shard_size="100KB")
    return folder, model


def load_limited(folder: Path, model: LionForConditionalGeneration, share: float) -> LionForConditionalGeneration:
    """The model with that share of it in memory and the rest on the disk."""
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    return LionForConditionalGeneration.from_pretrained(
        folder, device_map="auto", max_memory={"cpu": int(share * size)}
    )


@pytest.mark.parametrize("share", [0.09, 0.3, 0.64, 0.81, 0.93])
def test_an_automatic_device_map_with_a_memory_limit_answers_the_same(
    share: float, offloadable: tuple[Path, LionForConditionalGeneration]
) -> None:
    folder, model = offloadable
    inputs, beams = tiny_inputs(), {**GENERATE, "num_beams": 3}
    limited = load_limited(folder, model, share)
    assert any(parameter.is_meta for parameter in limited.parameters())
    assert torch.equal(limited.generate(**inputs, **beams), model.generate(**inputs, **beams))
    with torch.no_grad():
        torch.testing.assert_close(
            limited(**inputs, decoder_input_ids=inputs["input_ids"]).logits,
            model(**inputs, decoder_input_ids=inputs["input_ids"]).logits,
            rtol=1e-5,
            atol=1e-4,
        )


def test_no_memory_limit_splits_a_module_that_has_parameters_of_its_own(
    offloadable: tuple[Path, LionForConditionalGeneration],
) -> None:
    folder, model = offloadable
    modules = {name for name, _ in model.named_modules()}
    for percent in range(6, 12):  # where the vision tower's embeddings fit in part
        limited = load_limited(folder, model, percent / 100)
        assert set(limited.hf_device_map) <= modules


@pytest.mark.filterwarnings("ignore:Attempting to save a model with offloaded modules:UserWarning")
def test_a_model_partly_on_the_disk_is_saved_whole(
    offloadable: tuple[Path, LionForConditionalGeneration], tmp_path: Path
) -> None:
    folder, model = offloadable
    load_limited(folder, model, 0.5).save_pretrained(tmp_path)
    saved, expected = LionForConditionalGeneration.from_pretrained(tmp_path).state_dict(), model.state_dict()
    assert all(torch.equal(saved[name], expected[name]) for name in expected)


# --- quantised ----------------------------------------------------------------------------------------------------

KEPT = ("lm_head", ".wo", "query_tokens", "soft_prompt", "shared", "embed_tokens")


def torchao_int8() -> Any:
    quantization = pytest.importorskip("torchao.quantization")
    return TorchAoConfig(quantization.Int8WeightOnlyConfig())


def torchao_int4() -> Any:
    quantization = pytest.importorskip("torchao.quantization")
    return TorchAoConfig(quantization.IntxWeightOnlyConfig(weight_dtype=torch.int4))


def bitsandbytes_int8() -> Any:
    pytest.importorskip("bitsandbytes")
    return BitsAndBytesConfig(load_in_8bit=True)


def bitsandbytes_nf4() -> Any:
    pytest.importorskip("bitsandbytes")
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def bfloat16_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose widths are multiples of 64, as quantisers want them and LION's own are."""
    folder = tmp_path_factory.mktemp("bfloat16")
    width = {"hidden_size": 64, "intermediate_size": 128}
    model = tiny_model(
        vision_config=width,
        qformer_config=width,
        aggregator_config={"intermediate_size": 128},
        text_config={"d_model": 64, "d_kv": 16, "d_ff": 128},
    )
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


def is_quantised(module: torch.nn.Module) -> bool:
    """Whether its weight is a quantiser's, and not a plain parameter."""
    return type(module.weight) is not torch.nn.Parameter


QUANTISERS = pytest.mark.parametrize(
    "quantiser", [torchao_int8, torchao_int4, bitsandbytes_int8, bitsandbytes_nf4], ids=lambda make: make.__name__
)


@QUANTISERS
def test_quantisers_take_every_linear_layer_but_lm_head_wo_and_the_adapters(
    quantiser: Any, bfloat16_folder: Path
) -> None:
    config = quantiser()
    model = LionForConditionalGeneration.from_pretrained(bfloat16_folder, dtype="bfloat16", quantization_config=config)
    for name, module in model.named_modules():
        if isinstance(getattr(module, "weight", None), torch.Tensor):
            kept = name.endswith(KEPT) or ".adapter." in name or not isinstance(module, torch.nn.Linear)
            assert is_quantised(module) != kept, name


@pytest.mark.filterwarnings("ignore")  # the quantisers' own
@QUANTISERS
def test_a_quantised_model_answers_the_same_after_it_was_saved_and_loaded(
    quantiser: Any, bfloat16_folder: Path, tmp_path: Path
) -> None:
    config = quantiser()
    model = LionForConditionalGeneration.from_pretrained(bfloat16_folder, dtype="bfloat16", quantization_config=config)
    model.save_pretrained(tmp_path)
    inputs = tiny_inputs()
    inputs["pixel_values"] = inputs["pixel_values"].bfloat16()
    expected = model.generate(**inputs, **GENERATE, num_beams=3)
    loaded = LionForConditionalGeneration.from_pretrained(tmp_path)
    assert is_quantised(loaded.vision_model.encoder.layers[0].mlp.fc1)
    assert torch.equal(loaded.generate(**inputs, **GENERATE, num_beams=3), expected)


def test_the_names_that_stay_in_float32_are_the_names_that_quantisers_skip() -> None:
    quantizers_utils = pytest.importorskip("transformers.quantizers.quantizers_utils")
    model = tiny_model()
    patterns = list(model._keep_in_fp32_modules)
    skipped = {
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and not quantizers_utils.should_convert_module(name, patterns)
    }
    linear = {name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert skipped == {name for name in linear if name.endswith(".wo") or ".adapter." in name}
    assert skipped
