import torch

from factories import tiny_config, tiny_model
from transformers_lion.modeling_aggregator import LionVisionAggregator


def test_a_fresh_aggregator_adds_nothing_to_the_deepest_tap_but_its_norms() -> None:
    config = tiny_config().aggregator_config
    aggregator = LionVisionAggregator(config).eval()
    start, depths = torch.randn(2, 5, 32), (torch.randn(2, 5, 32), torch.randn(2, 5, 32))
    expected = torch.nn.functional.layer_norm(start, (32,), eps=config.layer_norm_eps)
    assert torch.allclose(aggregator(start, depths).last_hidden_state, expected, atol=1e-5)


def test_no_position_is_hidden_from_another() -> None:
    aggregator = tiny_model().aggregator
    start, depths = torch.randn(1, 5, 32), (torch.randn(1, 5, 32), torch.randn(1, 5, 32))
    before = aggregator(start, depths).last_hidden_state[0, 0]
    start[0, -1] += 1
    assert (aggregator(start, depths).last_hidden_state[0, 0] - before).abs().max() > 1e-4


def test_each_layer_reads_its_own_depth() -> None:
    model = tiny_model()
    pixel_values = torch.randn(1, 3, 28, 28)
    features = model.get_image_features(pixel_values, output_hidden_states=True)
    start, *depths = (features.hidden_states[block + 1] for block in (5, 3, 1))
    expected = model.aggregator(start, tuple(depths)).last_hidden_state
    assert torch.equal(features.aggregator_outputs.last_hidden_state, expected)
    swapped = model.aggregator(start, tuple(reversed(depths))).last_hidden_state
    assert (swapped - expected).abs().max() > 1e-4


def test_hidden_states_and_both_attentions_are_returned_on_request() -> None:
    model = tiny_model()
    model.set_attn_implementation("eager")
    outputs = model.get_image_features(
        torch.randn(2, 3, 28, 28), output_hidden_states=True, output_attentions=True
    ).aggregator_outputs
    assert [state.shape for state in outputs.hidden_states] == [(2, 5, 32)] * 3
    assert [attention.shape for attention in outputs.attentions] == [(2, 4, 5, 5)] * 2
    assert [attention.shape for attention in outputs.cross_attentions] == [(2, 4, 5, 5)] * 2
