"""A decoder layer as one compiled function, which is called for all layers.

`torch.compile` runs once for all layers, because the weights are arguments of the function. The numbers of samples,
beams, encoder positions and cached positions are variable in the compiled graph. A graph is compiled when it is first
needed, and kept as long as the process runs.

The graph is called directly. `torch.compile` would check all arguments in each call, which takes longer than a small
layer, and would compile sizes of one separately. Here, the facts that a graph depends on are its key in `_graphs`,
`CompiledStep` checks the sizes of the caches, and a new graph is compared with the function that it was compiled from.

Shape letters: B encoder batch, N beams or returned sequences per sample, S cached positions including unused ones, T
encoder positions, H heads, C head width, D language model width, R tasks, A total bottleneck width of all adapters, K
and M inputs and outputs of a linear layer.
"""

import threading
from collections.abc import Callable, Sequence
from operator import itemgetter
from types import FunctionType
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import torch
from torch.nn.functional import linear, relu, scaled_dot_product_attention

from .layers import DecoderLayer, Product
from .packs import WeightPack

Activation = Callable[[torch.Tensor], torch.Tensor]
Weights = tuple[torch.Tensor, ...]


class Sizes(NamedTuple):
    """Sizes that are variable in a graph: B, N, B * N, T and S."""

    samples: int
    beams: int
    rows: int
    encoder: int
    cache: int


EXAMPLE_SIZES = Sizes(3, 5, 15, 349, 64)
"""Sizes for compiling. They must differ, because equal sizes would be treated as the same variable."""

SINGLE_SIZES = Sizes(1, 1, 1, 2, 16)
"""Other sizes for comparing a graph with its function."""

MAX_DIFFERENCE = 1e-4
"""Maximum difference between a graph and its function, relative to the largest value."""

_packs: "WeakValueDictionary[int, WeightPack]" = WeakValueDictionary()
_graphs: "dict[Any, LayerGraph]" = {}
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
        layouts: Shape, strides, dtype and device of each weight.
    """

    head_shape: tuple[int, int]
    epsilons: tuple[float, ...]
    activation: str
    is_gated: bool
    num_packed: tuple[int | None, ...]
    layouts: tuple[Any, ...]


class LayerGraph(NamedTuple):
    """A compiled layer.

    Attributes:
        call: Compiled graph. It returns a sequence with the new states.
        select: Selects and orders the graph's inputs from the function's arguments, the weights and `Sizes`.
    """

    call: Callable[..., Sequence[torch.Tensor]]
    select: itemgetter


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
        self._head_shape, self._tasks, self._mask = head_shape, tasks.contiguous(), mask.contiguous()
        self._cross_shape = torch.Size((len(tasks), head_shape[0], mask.shape[3], head_shape[1]))
        self._layers = layers  # keeps the packs
        self._calls = [_find_graph(layer, head_shape) for layer in layers]

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
        example = states.new_empty(2, rows, self._head_shape[0], 0, self._head_shape[1])
        own = [cache.reserve(example, 1) for cache in caches]
        samples, beams, _ = self._tasks.shape
        sizes = Sizes(samples, beams, rows, self._mask.shape[3], own[0].shape[3])
        position = torch.full((1,), bias.shape[1] - 1, device=states.device)
        all_biases = bias.new_full((bias.shape[0], sizes.cache), torch.finfo(bias.dtype).min)
        all_biases[:, : bias.shape[1]] = bias
        own_shape = torch.Size((2, rows, self._head_shape[0], sizes.cache, self._head_shape[1]))
        _check_sizes(own, own_shape)
        _check_sizes([part for keys_values in cross for part in keys_values], self._cross_shape)
        states = states.contiguous().view(samples, beams, width)
        shared = (self._tasks, self._mask, all_biases, position)
        for (graph, weights), cached, (keys, values) in zip(self._calls, own, cross, strict=True):
            states = graph.call(*graph.select((states, cached, keys, values, *shared, *weights, *sizes)))[0]
        return states.view(rows, width)


def _check_sizes(tensors: list[torch.Tensor], shape: torch.Size) -> None:
    """Check that tensors have the layout that the compiled code, which does not check it, reads and writes."""
    for tensor in tensors:
        if tensor.shape != shape or not tensor.is_contiguous():
            raise ValueError(
                f"The cache has a tensor of shape {tuple(tensor.shape)} and strides {tensor.stride()}, but the decoder "
                f"requires a contiguous one of shape {tuple(shape)}."
            )


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


def _find_graph(layer: DecoderLayer, head_shape: tuple[int, int]) -> tuple[LayerGraph, Weights]:
    """Return the graph for a layer and its weights. The graph is compiled if there is none for this form."""
    products = (layer.query_key_value, layer.output, layer.cross_query, layer.cross_output, layer.wi, layer.wo)
    norms = tuple(norm.weight for norm in layer.norms)
    weights = (*norms, *map(_as_tensor, products), *layer.adapters.down, layer.adapters.joined_ups)
    form = LayerForm(
        head_shape=head_shape,
        epsilons=tuple(float(norm.epsilon) ** 2 for norm in layer.norms),
        activation=str(layer.activation),
        is_gated=layer.is_gated,
        num_packed=tuple(product.shape[0] if isinstance(product, WeightPack) else None for product in products),
        layouts=tuple((weight.shape, weight.stride(), weight.dtype, weight.device) for weight in weights),
    )
    key = form, torch.get_num_threads()
    with _compiling:
        if key not in _graphs:
            with torch.inference_mode(False), torch.no_grad():
                _graphs[key] = _compile(form, layer.activation, weights)
        return _graphs[key], weights


def _as_tensor(product: Product) -> torch.Tensor:
    """Return the weight of a linear layer, or the address of its pack."""
    if isinstance(product, WeightPack):
        _packs[id(product)] = product
        return torch.tensor(id(product))
    return product.keywords["weight"]  # type: ignore[attr-defined]


def _compile(form: LayerForm, activation: Activation, weights: Weights) -> LayerGraph:
    """Compile the function of a layer and check the graph."""
    from torch._inductor.compile_fx import compile_fx

    graphs: list[tuple[Any, list[Any]]] = []

    def keep(module: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        graphs.append((compile_fx(module, inputs, config_patches={"size_asserts": False}), inputs))
        return graphs[-1][0]

    function = _make_function(form, activation)
    examples = _make_examples(form, weights, EXAMPLE_SIZES)
    try:
        torch.compile(_with_own_code(function), backend=keep, fullgraph=True, dynamic=False)(*examples, *weights)
        ((call, inputs),) = graphs
        graph = LayerGraph(call, itemgetter(*_find_inputs(inputs, [*examples, *weights])))
        for sizes in (EXAMPLE_SIZES, SINGLE_SIZES):
            _check(graph, function, _make_examples(form, weights, sizes), weights, sizes)
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise RuntimeError(
            f"The decoder cannot be compiled. Call optimize_for_inference without compile=True. torch.compile: {reason}"
        ) from error
    return graph


def _with_own_code(function: FunctionType) -> FunctionType:
    """Return the function with a code object of its own. torch keeps what it learns about sizes by code object."""
    code = function.__code__.replace(co_name=f"{function.__name__}_{len(_graphs)}")
    return FunctionType(code, function.__globals__, code.co_name, None, function.__closure__)


def _make_examples(form: LayerForm, weights: Weights, sizes: Sizes) -> list[torch.Tensor]:
    """Create random arguments of the function, without the weights. Variable sizes are marked."""
    heads, head_width = form.head_shape
    width, num_tasks = len(weights[0]), weights[-1].shape[1] // (len(weights[-3]) + 1)
    shapes_and_variable_sizes = [
        ((sizes.samples, sizes.beams, width), (0, 1)),
        ((2, sizes.rows, heads, sizes.cache, head_width), (1, 3)),
        ((sizes.samples, heads, sizes.encoder, head_width), (0, 2)),
        ((sizes.samples, heads, sizes.encoder, head_width), (0, 2)),
        ((sizes.samples, sizes.beams, num_tasks), (0, 1)),
        ((sizes.samples, 1, 1, sizes.encoder), (0, 3)),
        ((heads, sizes.cache), (1,)),
    ]
    generator, device = torch.Generator().manual_seed(0), weights[0].device
    examples = []
    for shape, variable in shapes_and_variable_sizes:
        example = torch.randn(shape, generator=generator).to(device)
        torch._dynamo.mark_dynamic(example, variable)
        examples.append(example)
    return [*examples, torch.tensor([3], device=device)]


def _find_inputs(inputs: list[Any], arguments: list[Any]) -> list[int]:
    """Return the positions of a graph's inputs among the arguments of its function, followed by `Sizes`.

    Args:
        inputs: Examples of the inputs, tensors or variable sizes.
        arguments: Tensors that the function was compiled with.
    """
    positions = {id(argument): position for position, argument in enumerate(arguments)}
    return [
        positions[id(value)]
        if isinstance(value, torch.Tensor)
        else len(arguments) + EXAMPLE_SIZES.index(value.node.hint)
        for value in inputs
    ]


def _check(
    graph: LayerGraph,
    function: Callable[..., torch.Tensor],
    examples: list[torch.Tensor],
    weights: Weights,
    sizes: Sizes,
) -> None:
    """Compare the outputs of a graph and of its function, and the states that they write."""
    outputs = []
    for call in (lambda *arguments: graph.call(*graph.select((*arguments, *sizes)))[0], function):
        own = examples[1].clone()
        outputs.append((call(examples[0], own, *examples[2:], *weights), own))
    for found, expected in zip(*outputs, strict=True):
        difference = float((found - expected).abs().max() / expected.abs().max())
        if not difference <= MAX_DIFFERENCE:
            raise ValueError(f"The outputs of the compiled decoder differ by {difference:.1e}.")


def _make_function(form: LayerForm, activation: Activation) -> FunctionType:
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
