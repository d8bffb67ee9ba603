"""A decoder layer as one compiled function, which is called for all layers.

The weights are arguments of the function, so `torch.compile` runs once and not for each layer. The number of samples,
beams, encoder positions and cached positions are variable in the compiled graph. `torch.compile` treats a size of one
as a constant, however, so there are up to four graphs: for one or several samples, with one or several beams. A graph
is compiled when it is first needed, and kept as long as the process runs.

Shape letters: B encoder batch, N beams or returned sequences per sample, S cached positions including unused ones, T
encoder positions, H heads, C head width, D language model width, R tasks, A total bottleneck width of all adapters, K
and M inputs and outputs of a linear layer.
"""

import threading
from collections.abc import Callable
from types import FunctionType
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import torch
from torch.nn.functional import linear, pad, relu, scaled_dot_product_attention

from .layers import DecoderLayer, Product
from .packs import WeightPack

Program = Callable[..., torch.Tensor]

EXAMPLE_SIZES = {"samples": 3, "beams": 5, "encoder": 349, "cache": 64}
"""Sizes for compiling. Equal sizes would be treated as the same variable."""

_packs: "WeakValueDictionary[int, WeightPack]" = WeakValueDictionary()
_programs: dict[Any, Program] = {}
_compiling = threading.Lock()


@torch.library.custom_op("transformers_lion::packed_linear", mutates_args=())
def packed_linear(states: torch.Tensor, pack: torch.Tensor, num_outputs: int) -> torch.Tensor:
    """Multiply by a packed weight, (rows, K) -> (rows, M).

    Args:
        states: Inputs (rows, K).
        pack: Address of the pack, an integer scalar. As a tensor, it may differ between calls of the same graph.
        num_outputs: M.
    """
    return _packs[int(pack)](states)


@packed_linear.register_fake
def _(states: torch.Tensor, pack: torch.Tensor, num_outputs: int) -> torch.Tensor:
    return states.new_empty(states.shape[0], num_outputs)


class LayerForm(NamedTuple):
    """Properties that are constant in the graph of a layer.

    Attributes:
        head_shape: H and C.
        epsilons: Of each norm, to add to the sum of squares.
        activation: Description of the activation.
        is_gated: Whether the feed-forward layer is gated.
        num_packed: M of each linear layer with a packed weight, `None` for the other linear layers.
        shapes: Shapes of the weights.
    """

    head_shape: tuple[int, int]
    epsilons: tuple[float, ...]
    activation: str
    is_gated: bool
    num_packed: tuple[int | None, ...]
    shapes: tuple[torch.Size, ...]


class CompiledStep:
    """All layers for one new position, with what does not change within a generation.

    Args:
        layers: Layers of the decoder.
        head_shape: H and C.
        tasks: One-hot task of each row, (B, N, R).
        mask: Additive mask of the encoder positions, (B, 1, 1, T).

    Raises:
        RuntimeError: If `torch.compile` fails.
    """

    def __init__(
        self, layers: list[DecoderLayer], head_shape: tuple[int, int], tasks: torch.Tensor, mask: torch.Tensor
    ) -> None:
        self._head_shape, self._tasks, self._mask = head_shape, tasks, mask
        self._layers = layers  # keeps the packs
        self._calls = [_find_program(layer, head_shape, tasks) for layer in layers]

    @property
    def num_rows(self) -> int:
        """B * N."""
        return self._tasks.shape[0] * self._tasks.shape[1]

    def run(
        self,
        states: torch.Tensor,
        bias: torch.Tensor,
        cross: list[tuple[torch.Tensor, torch.Tensor]],
        caches: list[Any],
    ) -> torch.Tensor:
        """Run all layers, (B * N, D) -> (B * N, D).

        Args:
            bias: Position biases of the positions so far, (H, number of positions).
            cross: Keys and values of the encoder states for each layer, each (B, H, T, C).
            caches: A `PreallocatedLayer` for each layer. The new position is added to it.
        """
        rows, width = states.shape
        last = bias.shape[1] - 1
        example = states.new_empty(2, rows, self._head_shape[0], 0, self._head_shape[1])
        own = [cache.reserve(example, 1) for cache in caches]
        bias = pad(bias, (0, own[0].shape[3] - bias.shape[1]), value=torch.finfo(bias.dtype).min)
        position = torch.full((1,), last, device=states.device)
        states = states.view(*self._tasks.shape[:2], width)
        shared = (self._tasks, self._mask, bias, position)
        for (program, weights), cached, (keys, values) in zip(self._calls, own, cross, strict=True):
            states = program(states, cached, keys, values, *shared, *weights)
        return states.view(rows, width)


def check_compiler() -> None:
    """Check that `torch.compile` finds a compiler.

    Raises:
        RuntimeError: If there is none.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise RuntimeError(
            "compile=True requires a C++ compiler, but none was found. Install g++, or set the environment variable "
            "CXX to the path of another compiler."
        ) from error


def _find_program(
    layer: DecoderLayer, head_shape: tuple[int, int], tasks: torch.Tensor
) -> tuple[Program, tuple[torch.Tensor, ...]]:
    """Return the compiled function for a layer and its weights, and compile the function if it is not compiled yet."""
    products = (layer.query_key_value, layer.output, layer.cross_query, layer.cross_output, layer.wi, layer.wo)
    norms = tuple(norm.weight for norm in layer.norms)
    weights = (*norms, *map(_as_tensor, products), *layer.adapters.down, layer.adapters.joined_ups)
    form = LayerForm(
        head_shape=head_shape,
        epsilons=tuple(float(norm.epsilon) ** 2 for norm in layer.norms),
        activation=str(layer.activation),
        is_gated=layer.is_gated,
        num_packed=tuple(product.shape[0] if isinstance(product, WeightPack) else None for product in products),
        shapes=tuple(weight.shape for weight in weights),
    )
    # these are constants of a graph as well
    conditions = torch.get_num_threads(), torch.is_inference_mode_enabled(), tasks.device
    has_several = tasks.shape[0] > 1, tasks.shape[1] > 1
    key = form, *conditions, *has_several
    with _compiling:
        if key not in _programs:
            _programs[key] = _compile(form, layer.activation, weights, *has_several)
        return _programs[key], weights


def _as_tensor(product: Product) -> torch.Tensor:
    """Return the weight of a linear layer, or the address of its pack."""
    if isinstance(product, WeightPack):
        _packs[id(product)] = product
        return torch.tensor(id(product))
    return product.keywords["weight"]  # type: ignore[attr-defined]


def _compile(
    form: LayerForm,
    activation: Callable[[torch.Tensor], torch.Tensor],
    weights: tuple[torch.Tensor, ...],
    has_several_samples: bool,
    has_several_beams: bool,
) -> Program:
    """Compile the function of a layer by calling it with examples."""
    function = _make_function(form, activation)
    # torch keeps graphs by code: with code of its own, the function only has graphs of its own
    code = function.__code__.replace(co_name=f"decoder_layer_{len(_programs)}")
    own = FunctionType(code, function.__globals__, code.co_name, None, function.__closure__)
    program = torch.compile(own, fullgraph=True, dynamic=False)
    examples = _make_examples(form, weights, has_several_samples, has_several_beams)
    try:
        program(*examples, *weights)
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise RuntimeError(
            f"The decoder cannot be compiled. Call optimize_for_inference without compile=True. torch.compile: {reason}"
        ) from error
    return program


def _make_examples(
    form: LayerForm, weights: tuple[torch.Tensor, ...], has_several_samples: bool, has_several_beams: bool
) -> list[torch.Tensor]:
    """Create inputs in which the sizes that differ between calls are marked."""
    heads, head_width = form.head_shape
    width, num_tasks = len(weights[0]), weights[-1].shape[1] // (len(weights[-3]) + 1)
    samples = EXAMPLE_SIZES["samples"] if has_several_samples else 1
    beams = EXAMPLE_SIZES["beams"] if has_several_beams else 1
    length, capacity = EXAMPLE_SIZES["encoder"], EXAMPLE_SIZES["cache"]
    shapes_and_variable_sizes = [
        ((samples, beams, width), (0, 1)),
        ((2, samples * beams, heads, capacity, head_width), (1, 3)),
        ((samples, heads, length, head_width), (0, 2)),
        ((samples, heads, length, head_width), (0, 2)),
        ((samples, beams, num_tasks), (0, 1)),
        ((samples, 1, 1, length), (0, 3)),
        ((heads, capacity), (1,)),
    ]
    examples = []
    for shape, variable in shapes_and_variable_sizes:
        example = torch.zeros(shape, device=weights[0].device)
        for dimension in variable:
            if shape[dimension] > 1:
                torch._dynamo.mark_dynamic(example, dimension)
        examples.append(example)
    return [*examples, torch.zeros(1, dtype=torch.long, device=weights[0].device)]


def _make_function(form: LayerForm, activation: Callable[[torch.Tensor], torch.Tensor]) -> FunctionType:
    """Return the function of a layer for one new position."""
    heads, head_width = form.head_shape

    def normalize(index: int, states: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        squares = states.square().sum(-1, keepdim=True)
        return states * torch.rsqrt(squares + form.epsilons[index]) * weight

    def multiply(index: int, states: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        num_outputs = form.num_packed[index]
        if num_outputs is None:
            return linear(states, weight)
        return torch.ops.transformers_lion.packed_linear(states, weight, num_outputs)

    def run_layer(
        states: torch.Tensor,  # (B, N, D)
        own: torch.Tensor,  # keys and values of the positions so far, (2, B * N, H, S, C), written in place
        cross_keys: torch.Tensor,  # (B, H, T, C)
        cross_values: torch.Tensor,  # (B, H, T, C)
        tasks: torch.Tensor,  # (B, N, R)
        mask: torch.Tensor,  # (B, 1, 1, T)
        bias: torch.Tensor,  # (H, S)
        position: torch.Tensor,  # (1,)
        *weights: torch.Tensor,
    ) -> torch.Tensor:
        norms, (wqkv, wo, wq_cross, wo_cross, wi, wo_dense), (down, down_bias, ups) = (
            weights[:3], weights[3:9], weights[9:],
        )  # fmt: skip
        samples, beams, _ = states.shape
        rows = states.flatten(0, 1)
        # self-attention of one query is a sum of products, which is compiled into the graph
        projected = multiply(0, normalize(0, rows, norms[0]), wqkv).view(-1, 3, heads, head_width)
        own.index_copy_(3, position, projected[:, 1:].transpose(0, 1).unsqueeze(3))
        scores = (projected[:, 0].unsqueeze(2) * own[0]).sum(-1) + bias  # (B * N, H, S)
        outputs = (scores.softmax(-1).unsqueeze(-1) * own[1]).sum(2)
        rows = rows + multiply(1, outputs.flatten(1), wo)
        # cross-attention: all rows of a sample are queries of the same keys
        query = multiply(2, normalize(1, rows, norms[1]), wq_cross).view(samples, beams, heads, head_width)
        outputs = scaled_dot_product_attention(query.transpose(1, 2), cross_keys, cross_values, mask, scale=1.0)
        rows = rows + multiply(3, outputs.transpose(1, 2).reshape(-1, heads * head_width), wo_cross)
        # feed-forward layer and adapters
        hidden = multiply(4, normalize(2, rows, norms[2]), wi)
        if form.is_gated:
            gate, hidden = hidden.chunk(2, -1)
            hidden = activation(gate) * hidden
        else:
            hidden = activation(hidden)
        bottleneck = relu(linear(rows, down, down_bias))
        chosen = tasks.flatten(0, 1)
        inputs = (chosen.unsqueeze(2) * bottleneck.unsqueeze(1)).flatten(1)  # (B * N, R * A)
        adapted = linear(torch.cat([inputs, chosen], dim=1), ups)
        return (rows + multiply(5, hidden, wo_dense) + adapted).view(states.shape)

    return run_layer  # type: ignore[return-value]


__all__ = ["CompiledStep", "check_compiler"]
