import json
import re

import pytest
import torch

from key_map import KeyMap, KeyMapError, Rule, Template, convert, revert, same
from lion_keys import DROPPABLE, EMBEDDING_ALIASES, LION_KEYS, join_qkv_bias, split_qkv_bias
from recipe import GOLDENS
from transformers_lion import LionConfig, LionForConditionalGeneration

SIZES = {"xl": {}, "xxl": {"d_model": 4096, "d_ff": 10240, "num_heads": 64}}


def reference_keys(size: str) -> dict[str, list[int]]:
    """All keys of the reference model with their shapes. Each stored row represents a range of layers."""
    keys = {}
    for template, shape, _, layers in json.loads((GOLDENS / "keys" / f"lion_{size}.json").read_text()):
        for layer in range(*layers) if layers else [None]:
            keys[template if layer is None else template.format(layer)] = shape
    return keys


def expected_names(keys: dict[str, list[int]]) -> list[str]:
    dropped = [key for key in keys if any(pattern.fullmatch(key) for pattern in DROPPABLE)]
    assert dropped == ["Qformer.bert.embeddings.position_ids"]
    return [key for key in keys if key not in (*dropped, *EMBEDDING_ALIASES)]


@pytest.mark.parametrize("size", SIZES)
def test_each_reference_key_maps_to_a_parameter_of_its_shape_and_back(size: str) -> None:
    keys = reference_keys(size)
    assert len(keys) == 2040
    with torch.device("meta"):
        model = LionForConditionalGeneration(LionConfig(text_config=SIZES[size]))
    parameters = {name: tensor.shape for name, tensor in model.named_parameters()}
    names = expected_names(keys)

    entries = LION_KEYS.from_originals(names)
    converted = dict(convert(entries, lambda key: torch.empty(keys[key], device="meta")))
    assert {name: tensor.shape for name, tensor in converted.items()} == parameters

    original = {key for entry in LION_KEYS.from_converted(parameters) for key in entry.originals}
    assert original == set(names)


def test_reverting_a_conversion_restores_every_bit() -> None:
    originals = {
        "query_tokens": torch.randn(1, 5, 8),
        "soft_prompt_hint": torch.randn(8),
        "visual_encoder.blocks.3.attn.q_bias": torch.randn(8),
        "visual_encoder.blocks.3.attn.v_bias": torch.randn(8),
        "t5_model.decoder.block.1.layer.2.adapter.router_ratio2": torch.randn(2, 8),
        "t5_model.encoder.block.1.layer.1.adapter.adapters.1.scale": torch.randn(1),
    }
    entries = LION_KEYS.from_originals(originals)
    converted = dict(convert(entries, originals.__getitem__))
    reverted = dict(revert(LION_KEYS.from_converted(converted), converted.__getitem__))
    assert reverted.keys() == originals.keys()
    assert all(torch.equal(reverted[key], originals[key]) for key in originals)
    assert "language_model.decoder.block.1.feed_forward.adapter.router.1.weight" in converted


def test_no_name_fits_two_rules() -> None:
    keys = expected_names(reference_keys("xl"))
    for name in keys:
        assert sum(template.match(name) is not None for rule in LION_KEYS.rules for template in rule.originals) == 1
    converted = [entry.converted for entry in LION_KEYS.from_originals(keys)]
    assert len(set(converted)) == len(converted)
    for name in converted:
        assert sum(rule.converted.match(name) is not None for rule in LION_KEYS.rules) == 1


def test_unknown_and_missing_keys_are_named() -> None:
    with pytest.raises(KeyMapError, match=re.escape("1 unexpected keys: visual_encoder.surprise")):
        LION_KEYS.from_originals(["visual_encoder.surprise", "visual_encoder.cls_token"])
    with pytest.raises(KeyMapError, match=re.escape("1 keys are missing: visual_encoder.blocks.0.attn.v_bias")):
        LION_KEYS.from_originals(["visual_encoder.blocks.0.attn.q_bias"])
    with pytest.raises(KeyMapError, match=re.escape("language_model.surprise")):
        LION_KEYS.from_converted(["language_model.surprise"])


def test_the_qkv_bias_splits_only_if_the_key_has_no_bias() -> None:
    q_bias, v_bias = torch.randn(4), torch.randn(4)
    joined = join_qkv_bias(q_bias, v_bias)
    assert torch.equal(joined[4:8], torch.zeros(4))
    assert all(torch.equal(a, b) for a, b in zip(split_qkv_bias(joined), (q_bias, v_bias), strict=True))
    joined[5] = 1
    with pytest.raises(ValueError, match="has 1 nonzero values"):
        split_qkv_bias(joined)


def test_a_template_matches_whole_names_and_literal_dots() -> None:
    template = Template("a.{n}.b.{p}")
    assert template.match("a.12.b.weight") == {"n": "12", "p": "weight"}
    assert template.fill({"n": "12", "p": "weight"}) == "a.12.b.weight"
    for name in ("a.x.b.weight", "a.1.b.scale", "axb.1.b.bias", "a.1.b.bias.more", "a.1xb.bias"):
        assert template.match(name) is None
    table = KeyMap([same("x.{n}", "y.{n}"), Rule((Template("p"), Template("q")), Template("r"))])
    assert [entry.converted for entry in table.from_originals(["q", "x.1", "p"])] == ["r", "y.1"]
