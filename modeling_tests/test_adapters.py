import pytest
import torch
from torch.nn.functional import relu

from factories import tiny_config, tiny_model
from transformers_lion.adapters import LionAdapterMixture
from transformers_lion.modeling_lion_t5 import LionT5ForConditionalGeneration


def test_the_mixture_is_the_papers_formula() -> None:
    mixture = tiny_model().language_model.encoder.block[0].feed_forward.adapter
    x, tasks = torch.randn(3, 4, 32), torch.tensor([0, 1, 0])
    expected = torch.zeros_like(x)
    for row, task in enumerate(tasks):
        for adapter, gate in zip(mixture.adapters, mixture.router, strict=True):
            hidden = relu(x[row] @ adapter.down_proj.weight.T + adapter.down_proj.bias)
            expected[row] += (
                gate.weight[task] * adapter.scale * (hidden @ adapter.up_proj.weight.T + adapter.up_proj.bias)
            )
    assert torch.allclose(mixture(x, tasks), expected, atol=1e-5)


def test_a_fresh_router_gives_each_task_its_adapter_and_fresh_adapters_do_nothing() -> None:
    model = LionT5ForConditionalGeneration(tiny_config().text_config)
    for stack in (model.encoder, model.decoder):
        for block in stack.block:
            mixture = block.feed_forward.adapter
            for index, gate in enumerate(mixture.router):
                assert torch.equal(gate.weight, torch.eye(2)[:, index : index + 1].expand(2, 32))
            for adapter in mixture.adapters:
                assert adapter.scale.item() == 1
                assert not adapter.up_proj.weight.any()
                assert 0 < adapter.down_proj.weight.abs().max() <= 32**-0.5  # Kaiming-uniform with a = sqrt 5
            assert not mixture(torch.randn(2, 3, 32), torch.tensor([0, 1])).any()


def test_the_language_models_own_weights_start_as_t5s_do() -> None:
    torch.manual_seed(0)
    model = LionT5ForConditionalGeneration(tiny_config(text_config={"d_model": 256, "num_layers": 1}).text_config)
    attention = model.encoder.block[0].layer[0].SelfAttention
    assert attention.q.weight.std().item() == pytest.approx((256 * 8) ** -0.5, rel=0.1)
    assert model.encoder.block[0].feed_forward.DenseReluDense.wi_0.weight.std().item() == pytest.approx(1 / 16, rel=0.1)


def test_one_adapter_has_no_router_and_asks_for_no_task() -> None:
    mixture = LionAdapterMixture(tiny_config(text_config={"num_adapters": 1}).text_config)
    x = torch.randn(2, 3, 32)
    assert torch.equal(mixture(x, None), mixture.adapters[0](x))
    assert not any("router" in name for name, _ in mixture.named_parameters())


def test_two_adapters_without_a_task_are_refused() -> None:
    with pytest.raises(ValueError, match="task_type_ids is missing"):
        LionAdapterMixture(tiny_config().text_config)(torch.randn(2, 3, 32), None)


def test_lm_head_is_not_tied_and_the_embeddings_are() -> None:
    model = LionT5ForConditionalGeneration(tiny_config().text_config)
    assert model.lm_head.weight is not model.shared.weight
    assert model.encoder.embed_tokens.weight is model.shared.weight
    assert model.decoder.embed_tokens.weight is model.shared.weight


def test_labels_that_are_a_slice_of_longer_ones_have_the_loss_of_a_copy() -> None:
    model = LionT5ForConditionalGeneration(tiny_config().text_config).eval()
    inputs = {"input_ids": torch.tensor([[5, 6, 1], [7, 8, 1]]), "task_type_ids": torch.tensor([0, 1])}
    labels = torch.tensor([[2, 9, 8, 1], [2, 7, 6, 1]])[:, 1:]
    assert not labels.is_contiguous()
    losses = [
        model(**inputs, labels=given).loss for given in (labels, labels.clone(memory_format=torch.contiguous_format))
    ]
    assert torch.equal(*losses)
