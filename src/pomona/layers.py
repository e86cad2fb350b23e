"""The layers of a torch module: one flat graph of it, which may be cut at any of them.

In: a module that takes scaled pixels. Out: its layers by name, and parts of it as modules of their own.
Why: any network is written as modules inside modules, and `torch.export` keeps the way to each operation. So a layer is
found by the name that its authors gave it, in any architecture, and nobody has to list by hand where one may be cut.
"""

from __future__ import annotations

import difflib
import logging
import math
import re
import warnings
from collections import Counter, defaultdict
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pomona.errors import BackboneError, OptionError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import torch
    from torch.fx import Graph, GraphModule, Node

LayerKind = Literal["map", "tokens", "vector"]

FEATURES = "features"
"""Name of what a network gives at its end."""

PREFIX = "network."
"""What stands before the names of a module that is wrapped to give one tensor."""

_N_EXAMPLES = 2
_TOLERANCE = 1e-3
_CHECKS = ("_assert_tensor_metadata", "_assert_scalar", "sym_constrain_range", "sym_constrain_range_for_size")
_TOKENS_BEFORE = (0, 1, 2, 5)
"""Tokens that may stand before those of the patches: none, a class, a class and a teacher, a class and 4 registers."""


class Layer(NamedTuple):
    """What a named part of a network gives.

    Parameters
    ----------
    name : str
        As its authors named it.
    kind : {"map", "tokens", "vector"}
        Activations (C, H, W), tokens (T, C), or one vector (C,).
    shape : tuple of int
        Of one photo.
    is_cut : bool
        Whether all that the end of the network depends on goes through it.
    is_turned : bool
        Whether the ONNX file that it is in has maps as (H, W, C).
    """

    name: str
    kind: LayerKind
    shape: tuple[int, ...]
    is_cut: bool
    is_turned: bool = False

    @property
    def n_before(self) -> int:
        """Tokens before those of the patches; the first of them is the class token."""
        return count_tokens_before(self.shape[0]) if self.kind == "tokens" else 0

    @property
    def dim(self) -> int:
        """Length of its features: see `Trace.part`."""
        return self.shape[0] if self.kind != "tokens" else self.shape[1] * (2 if self.n_before else 1)


def count_tokens_before(n_tokens: int) -> int:
    """Tokens that stand before those of a square of patches; 0 where there is no such square.

    Examples
    --------
    >>> count_tokens_before(196), count_tokens_before(197), count_tokens_before(261)
    (0, 1, 5)
    """
    for n_before in _TOKENS_BEFORE:
        n_patches = n_tokens - n_before
        if n_patches > 0 and math.isqrt(n_patches) ** 2 == n_patches:
            return n_before
    return 0


def find_layer(layers: Sequence[Layer], name: str) -> Layer:
    """Look a layer up by name.

    Raises
    ------
    OptionError
        If there is none of that name; its text offers those nearest to it.

    Examples
    --------
    >>> find_layer([Layer("layer1", "vector", (8,), True)], "layr1")
    Traceback (most recent call last):
    pomona.errors.OptionError: layer: there is no 'layr1'; the nearest names are layer1
    """
    for layer in layers:
        if layer.name == name:
            return layer
    names = [layer.name for layer in layers]
    near = difflib.get_close_matches(name, names, n=5, cutoff=0.3) or names[-5:]
    raise OptionError(f"layer: there is no {name!r}; the nearest names are {', '.join(near)}")


def group_by_block(shapes: Mapping[str, Sequence[int]]) -> tuple[tuple[str, ...], ...]:
    """Group the parameters of a network by the block they are in.

    Blocks are alike and numbered: modules whose names differ by a number alone, each with two kernels or more, and the
    innermost of such; ``stages.0.layers.1`` of ``stages.0.layers.1.layer.0.convolution.weight``. What comes between two
    of them, before the first or after the last is one more group. A network without blocks has a group a kernel.

    Parameters
    ----------
    shapes : mapping of str to sequence of int
        Parameters by name, from input to output.

    Returns
    -------
    tuple of tuple of str
        Their names, blocks from input to output.

    Examples
    --------
    >>> names = ("norm", "layer.0.q", "layer.0.k", "layer.1.q", "layer.1.k", "last")
    >>> group_by_block({f"{name}.weight": (8, 8) for name in names})[1:3]
    (('layer.0.q.weight', 'layer.0.k.weight'), ('layer.1.q.weight', 'layer.1.k.weight'))
    """
    blocks = _find_blocks(shapes)
    groups: dict[tuple[str, int], list[str]] = {}
    number, before = 0, ""
    for name, shape in shapes.items():
        block = next((module for module in _list_modules(name)[::-1] if module in blocks), "")
        if not block and (before or (not blocks and len(shape) > 1)):
            number += 1
        groups.setdefault((block, 0 if block else number), []).append(name)
        before = block
    return tuple(map(tuple, groups.values()))


def _find_blocks(shapes: Mapping[str, Sequence[int]]) -> set[str]:
    """Modules of two kernels or more with another beside them whose name differs by a number alone."""
    n_kernels = Counter(module for name, shape in shapes.items() if len(shape) > 1 for module in _list_modules(name))
    alike: dict[str, set[str]] = defaultdict(set)
    for module, n in n_kernels.items():
        parent, _, own = module.rpartition(".")
        if n > 1 and (numbered := re.search(r"\d", own)):
            alike[f"{parent}.{own[: numbered.start()]}"].add(module)
    return set().union(*(modules for modules in alike.values() if len(modules) > 1))


def _list_modules(name: str) -> list[str]:
    """Modules that a parameter is in, from the outermost: ``a`` and ``a.0`` of ``a.0.weight``."""
    parts = name.split(".")
    return [".".join(parts[:n]) for n in range(1, len(parts))]


def trace(module: torch.nn.Module, size_px: int) -> Trace:
    """Write a module down as a flat graph.

    Parameters
    ----------
    module : torch.nn.Module
        In evaluation mode; takes (N, 3, S, S) float32 and gives one tensor with N first.
    size_px : int
        S.

    Raises
    ------
    BackboneError
        If torch cannot write it down, or what it wrote computes something else.
    """
    import torch

    pixels = torch.randn(_N_EXAMPLES, 3, size_px, size_px, generator=torch.Generator().manual_seed(0))
    try:
        with quiet_torch(), torch.no_grad():
            batch = {0: torch.export.Dim("N", min=1, max=1 << 16)}
            exported = torch.export.export(module, (pixels,), dynamic_shapes=(batch,), strict=False)
            found = exported.module(check_guards=False)
            _remove_checks(found.graph)
            _fold_constants(found)
            _remove_writes(found.graph)
            made = Trace(found, size_px)
            error = _compare(made.part()(pixels), module(pixels))
    except (RuntimeError, ValueError, TypeError, KeyError, NotImplementedError, AssertionError) as reason:
        text = (str(reason).strip().splitlines() or [type(reason).__name__])[0]
        raise BackboneError(f"the network cannot be written down for photos of {size_px} pixels: {text}") from reason
    if not error < _TOLERANCE:
        raise BackboneError(f"the network was written down wrongly: its output differs by {error:.1e} of its size")
    return made


@contextmanager
def quiet_torch() -> Iterator[None]:
    """Keep warnings and log lines of torch that no user can do anything about out of the way."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _compare(got: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm().clamp(min=1e-12)) if got.shape == wanted.shape else math.inf


def _name_of(node: Node) -> str:
    """Name of a node's operation, such as ``add_`` of ``aten.add_.Tensor``."""
    return str(node.target).split(".")[1] if str(node.target).startswith("aten.") else ""


def _remove_checks(graph: Graph) -> None:
    """Take out what only checks, and would stop other sizes and half precision."""
    for node in reversed(list(graph.nodes)):
        is_check = _name_of(node) in _CHECKS or node.op == "call_module"
        if is_check and not node.users:
            graph.erase_node(node)


def _remove_writes(graph: Graph) -> None:
    """Let operations that write over their input give a new tensor: a cut must not change what is cached there."""
    import torch

    nodes = list(graph.nodes)
    for place, node in enumerate(nodes):
        name = _name_of(node)
        if node.op != "call_function" or not name.endswith("_") or name.startswith("_"):
            continue
        plain = getattr(torch.ops.aten, name[:-1], None)
        if plain is None:
            continue
        node.target = getattr(plain, str(node.target).split(".")[2])
        later = set(nodes[place + 1 :])
        written = node.args[0]
        for user in list(written.users):
            if user in later:
                user.replace_input_with(written, node)


def _fold_constants(module: GraphModule) -> None:
    """Compute once what depends neither on the photo nor on a weight, so that it moves with the module."""
    import torch

    values: dict[Node, Any] = {}
    for node in list(module.graph.nodes):
        if node.op == "get_attr":
            value = _read_attribute(module, node.target)
            if isinstance(value, torch.Tensor) and not isinstance(value, torch.nn.Parameter):
                values[node] = value.clone()
        elif node.op == "call_function":
            value = node.meta.get("val")
            if not isinstance(value, torch.Tensor) or any(not isinstance(side, int) for side in value.shape):
                continue
            filling = _find_filling(node)
            if filling is not None:  # it takes no more of its input than the kind of its numbers
                values[node] = torch.full(value.shape, filling, dtype=value.dtype)
            if node in values or any(one not in values for one in node.all_input_nodes):
                continue
            # In their order, so that what is written over a part of a table is there when the table is read.
            args, kwargs = torch.fx.map_arg((node.args, node.kwargs), values.__getitem__)
            values[node] = node.target(*args, **kwargs)
    folded = [n for n in values if n.op == "call_function" and any(user not in values for user in n.users)]
    for number, node in enumerate(folded):
        name = f"constant{number}"
        module.register_buffer(name, values[node].detach().clone())
        with module.graph.inserting_before(node):
            constant = module.graph.get_attr(name)
        constant.meta = dict(node.meta)
        node.replace_all_uses_with(constant)
    for node in reversed(values):
        if not node.users:
            module.graph.erase_node(node)


def _find_filling(node: Node) -> float | None:
    """Number that a new table is filled with; None of what makes no new table."""
    name = _name_of(node)
    if name in {"new_full", "full_like"}:
        return float(node.args[-1]) if isinstance(node.args[-1], int | float) else None
    return {"new_zeros": 0.0, "zeros_like": 0.0, "new_ones": 1.0, "ones_like": 1.0}.get(name)


def _read_attribute(module: torch.nn.Module, path: str) -> Any:
    found: Any = module
    for part in path.split("."):
        found = getattr(found, part)
    return found


class Trace:
    """A network as a flat graph whose nodes know which layer they are of.

    Parameters
    ----------
    module : GraphModule
        Pixels (N, 3, S, S) to one tensor.
    size_px : int
        S.
    """

    def __init__(self, module: GraphModule, size_px: int) -> None:
        self.module = module
        self.size_px = size_px
        nodes = list(module.graph.nodes)
        self._place = {node: i for i, node in enumerate(nodes)}
        self._input = next(node for node in nodes if node.op == "placeholder")
        self._output = self._find_output(next(node for node in nodes if node.op == "output"))
        self._live = self._find_live()

    @staticmethod
    def _find_output(node: Node) -> Node:
        found = node.all_input_nodes
        if len(found) != 1:
            raise ValueError(f"wanted one output, got {len(found)}")
        return found[0]

    def _depends(self, node: Node) -> bool:
        """Whether its value is an activation, and no weight, constant or number of photos."""
        return node in self._activations

    @cached_property
    def _activations(self) -> set[Node]:
        import torch

        found = {self._input}
        for node in self._place:
            if node.op == "call_function" and any(one in found for one in node.all_input_nodes):
                value = node.meta.get("val")
                if isinstance(value, (torch.Tensor, tuple, list)):
                    found.add(node)
        return found

    def _find_live(self) -> set[Node]:
        live, waiting = set(), [self._output]
        while waiting:
            node = waiting.pop()
            if node not in live:
                live.add(node)
                waiting += node.all_input_nodes
        return live

    @cached_property
    def _cuts(self) -> set[Node]:
        """Nodes that every way from the photo to the end goes through: no edge leads past them."""
        found, reach = set(), 0
        for node, place in self._place.items():
            if node not in self._live or not self._depends(node):
                continue
            if reach <= place:
                found.add(node)
            users = (user for user in node.users if user in self._live and self._depends(user))
            reach = max([reach, *(self._place[user] for user in users)])
        return found

    @cached_property
    def _nodes(self) -> dict[str, Node]:
        """What each layer gives: the one node in it that is used outside it."""
        inside: dict[str, set[Node]] = {}
        for node in self._place:
            for path, _ in node.meta.get("nn_module_stack", {}).values():
                inside.setdefault(path, set()).add(node)
        given: dict[str, Node] = {}
        for path, nodes in inside.items():
            name = path.removeprefix(PREFIX)
            leaving = [n for n in nodes & self._activations if any(user not in nodes for user in n.users)]
            if len(leaving) == 1 and name and f"{name}." != PREFIX and "@" not in name:
                given[name] = leaving[0]
        given[FEATURES] = self._output
        return dict(sorted(given.items(), key=lambda pair: self._place[pair[1]]))

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """Layers that can be read, from input to output; the last is `features`."""
        found = []
        for name, node in self._nodes.items():
            described = self._describe(node)
            if described:
                found.append(Layer(name, described[0], described[1], node in self._cuts))
        return tuple(found)

    @cached_property
    def blocks(self) -> tuple[tuple[str, ...], ...]:
        """Names of the parameters of each block, from input to output: in the order in which they are used."""
        own = {name: tuple(value.shape) for name, value in self.module.named_parameters()}
        used = (str(one.target) for node in self._place for one in node.all_input_nodes if one.op == "get_attr")
        return group_by_block({name.removeprefix(PREFIX): own[name] for name in used if name in own})

    def _describe(self, node: Node) -> tuple[LayerKind, tuple[int, ...]] | None:
        """Kind and shape of what a node gives for one photo; None where it is no table of activations of each."""
        value = node.meta.get("val")
        shape = list(getattr(value, "shape", ()))
        batch = str(self._input.meta["val"].shape[0])
        if not 2 <= len(shape) <= 4 or str(shape[0]) != batch or any(not isinstance(n, int) for n in shape[1:]):
            return None
        if len(shape) == 4 and self._is_channels_last(node):
            shape = [shape[0], shape[3], shape[1], shape[2]]
        kinds: dict[int, LayerKind] = {2: "vector", 3: "tokens", 4: "map"}
        return kinds[len(shape)], tuple(shape[1:])

    @staticmethod
    def _is_channels_last(node: Node) -> bool:
        """Whether a map is (N, H, W, C): photos are square, so two sides are alike."""
        _, first, second, third = node.meta["val"].shape
        return bool(first == second and second != third)

    def count_multiplications(self, last: str = FEATURES) -> float:
        """Multiplications of convolutions and matrices for one photo, up to a layer."""
        needed = self._collect(self._input, self._nodes[last], last)
        return sum(_count(node) for node in needed) / _N_EXAMPLES

    def part(self, first: str | None = None, last: str = FEATURES, *, pooled: bool = False) -> GraphModule:
        """A part of the network as a module of its own, with weights of its own.

        Parameters
        ----------
        first : str, optional
            Layer whose activations it takes; the pixels (N, 3, S, S) where not given.
        last : str
            Layer whose activations it gives: (N, C, H, W), (N, T, C) or (N, C).
        pooled : bool
            Whether to give features (N, D): maps averaged over positions; of tokens the class token and the mean of
            the patches' one after the other, or the mean of all where there is no class token; vectors as they are.
            Each of these has norm 1.

        Raises
        ------
        OptionError
            If there is no such layer, or `last` needs more than `first` gives.
        """
        import torch
        from torch.fx import Graph, GraphModule

        end, start = self._find_node(last), self._input if first is None else self._find_node(first)
        needed = self._collect(start, end, first)
        graph = Graph()
        source = graph.placeholder("x")
        turned = first is not None and self._is_turned(start)
        begin = graph.call_function(torch.ops.aten.permute.default, (source, [0, 2, 3, 1])) if turned else source
        copies: dict[Node, Node] = {start: begin}
        tensors: dict[str, Any] = {}
        for node in self._place:
            if node not in needed or node is start:
                continue
            if node.op == "get_attr":
                name = str(node.target).removeprefix(PREFIX)
                tensors[name] = _copy_tensor(_read_attribute(self.module, str(node.target)))
                copies[node] = graph.get_attr(name)
            elif _name_of(node) == "sym_size":
                copies[node] = graph.call_function(node.target, (begin, 0))  # only the number of photos is open
            else:
                copies[node] = graph.node_copy(node, copies.__getitem__)
        result = copies[end]
        if self._is_turned(end):
            result = graph.call_function(torch.ops.aten.permute.default, (result, [0, 3, 1, 2]))
        graph.output(_pool(graph, result, self._layer(last)) if pooled else result)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of names that are no attributes yet
            return GraphModule(tensors, graph)

    def _is_turned(self, node: Node) -> bool:
        return len(node.meta["val"].shape) == 4 and self._is_channels_last(node)

    def _layer(self, name: str) -> Layer:
        return find_layer(self.layers, name)

    def _find_node(self, name: str) -> Node:
        return self._nodes[self._layer(name).name]

    def _collect(self, start: Node, end: Node, first: str | None) -> set[Node]:
        """Nodes that `end` needs beside `start`."""
        needed: set[Node] = {start}
        waiting = [end]
        while waiting:
            node = waiting.pop()
            if node in needed:
                continue
            if node is self._input:
                raise OptionError(f"layer: {first!r} does not cut the network in two; {self._name_nearest(start)}")
            needed.add(node)
            if _name_of(node) != "sym_size":
                waiting += node.all_input_nodes
        return needed

    def _name_nearest(self, node: Node) -> str:
        place = self._place[node]
        cuts = [(self._place[self._nodes[one.name]], one.name) for one in self.layers if one.is_cut]
        before = [name for at, name in cuts if at < place][-1:]
        after = [name for at, name in cuts if at > place][:1]
        return f"the nearest that do are {' and '.join(before + after)}"


def _copy_tensor(tensor: torch.Tensor) -> torch.Tensor:
    import torch

    copy = tensor.detach().clone()
    return torch.nn.Parameter(copy) if isinstance(tensor, torch.nn.Parameter) else copy


def _pool(graph: Graph, x: Node, layer: Layer) -> Node:
    import torch

    aten = torch.ops.aten

    def normalise(part: Node) -> Node:
        return graph.call_function(torch.nn.functional.normalize, (part,), {"dim": 1})

    if layer.kind == "map":
        return normalise(graph.call_function(aten.mean.dim, (x, [2, 3])))
    if layer.kind == "vector":
        return normalise(x)
    n_before = layer.n_before
    patches = graph.call_function(aten.slice.Tensor, (x, 1, n_before, layer.shape[0]))
    mean = normalise(graph.call_function(aten.mean.dim, (patches, [1])))
    if not n_before:
        return mean
    first = normalise(graph.call_function(aten.select.int, (x, 1, 0)))
    return graph.call_function(aten.cat.default, ([first, mean], 1))


def _count(node: Node) -> float:
    """Multiplications of one node, with as many photos as there were examples."""
    name = _name_of(node)
    inputs = [_sides(one) for one in node.all_input_nodes]
    if name in {"conv1d", "conv2d", "conv3d", "convolution"}:
        return math.prod(_sides(node)) * math.prod(inputs[1][1:])
    if name == "linear":
        return math.prod(_sides(node)) * inputs[1][1]
    if name in {"matmul", "bmm", "mm"}:
        return math.prod(_sides(node)) * inputs[0][-1]
    if name == "addmm":
        return math.prod(_sides(node)) * inputs[1][-1]
    if name == "scaled_dot_product_attention":
        return 2 * math.prod(inputs[0]) * inputs[1][-2]
    return 0


def _sides(node: Node) -> list[int]:
    """Shape of a node's value, with the number of examples where it is open."""
    shape: Iterable[Any] = getattr(node.meta.get("val"), "shape", ())
    return [side if isinstance(side, int) else int(side.node.hint) for side in shape]
