"""What is chosen on which processor."""

from dataclasses import replace

import pytest
import torch

from factories import tiny_model
from transformers_lion import LionForConditionalGeneration
from transformers_lion.cpu_inference import inference_plan, optimize_for_inference, plan
from transformers_lion.cpu_inference.plan import CpuFeatures, detect_features

AVX2 = CpuFeatures("AVX2", True, True, False, False)
AVX512_BF16 = replace(AVX2, capability="AVX512", multiplies_bfloat16=True)
AMX_FP16 = replace(AVX512_BF16, multiplies_float16=True)
ARM = CpuFeatures("DEFAULT", False, False, False, False)
NO_FBGEMM = replace(AVX2, packs_float16=False)

CASES = [
    (AVX2, torch.float32, "auto"),
    (AVX2, torch.bfloat16, "auto"),
    (AVX2, torch.float16, "auto"),
    (AVX512_BF16, torch.float32, "auto"),
    (AVX512_BF16, torch.bfloat16, None),
    (AVX512_BF16, torch.float16, "auto"),
    (AMX_FP16, torch.float16, None),
    (ARM, torch.float32, None),
    (ARM, torch.bfloat16, None),
    (NO_FBGEMM, torch.bfloat16, "float32"),
]


def test_each_processor_gets_what_is_fast_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model()
    for features, dtype, expected in CASES:
        found = inference_plan(model.to(dtype), features=features)
        assert found.weights == expected, (features, dtype)
        assert "\n" not in str(found)
    model = model.to(torch.bfloat16)
    assert inference_plan(model, "float32", AVX512_BF16).weights == "float32"  # asked for
    with pytest.raises(ValueError, match="FBGEMM"):
        inference_plan(model, "float16", NO_FBGEMM)
    with pytest.raises(ValueError, match=r"weights is 'int8'.*'auto', 'float32', 'float16'"):
        inference_plan(model, "int8")
    monkeypatch.setattr(plan, "detect_features", lambda: AVX512_BF16)
    parts = [type(part) for part in model.modules()]
    assert [type(part) for part in optimize_for_inference(model).modules()] == parts


def test_models_on_other_devices_stay_as_they_are() -> None:
    with torch.device("meta"):
        model = LionForConditionalGeneration(tiny_model().config)
    found = inference_plan(model)
    assert found.weights is None
    assert "meta" in str(found)


def test_the_features_of_this_processor_are_read_from_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    assert not detect_features().multiplies_bfloat16
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert detect_features().multiplies_bfloat16
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    assert not detect_features().packs_float16
