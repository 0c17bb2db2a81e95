"""Two networks of one architecture run side by side, layer by layer, over all calibration batches."""

import operator
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from infoprune.repairing.ridge import Call, Capture

Batches = Iterable[tuple[Tensor, Tensor]]
Values = dict[fx.Node, Any]
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
SUMS = (operator.add, operator.iadd, torch.add, "add", "add_")
# What does nothing in evaluation mode may lie between a layer and the sum it ends in.
TRANSPARENT = {"Dropout", "Dropout1d", "Dropout2d", "Identity", "StochasticDepth", "DropPath"}


@dataclass(frozen=True)
class Site:
    """Where a layer is refitted, and to what.

    Attributes:
        layer: its dotted name.
        call: position of its call in the graph.
        stop: position of the node whose value in the teacher is the target: the layer itself, its norm, or a sum.
        norm: dotted name of the batch norm that absorbs the refit's scale and offset; empty for none.
        other: position of the sum's other addend, which the pruned network contributes already; `None` for no sum.
    """

    layer: str
    call: int
    stop: int
    norm: str = ""
    other: int | None = None


class _Tracer(fx.Tracer):
    """Modules without children stay whole: what they do inside need not be traceable."""

    def __init__(self, leaves: Collection[str]) -> None:
        super().__init__()
        self.leaves = leaves

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if module_qualified_name in self.leaves:
            return True
        return next(m.children(), None) is None or super().is_leaf_module(m, module_qualified_name)


class Walker:
    """A model's graph, run from one position to another.

    Raises whatever torch.fx raises where the model cannot be traced.

    Args:
        model: the model.
        leaves: modules that stay whole: with the blocks that a plan removes, the graphs of the unpruned model and of
            the pruned one have the same nodes.
    """

    def __init__(self, model: nn.Module, leaves: Collection[str] = ()) -> None:
        module = fx.GraphModule(model, _Tracer(leaves).trace(model))
        self.interpreter = fx.Interpreter(module, garbage_collect_values=False)
        self.nodes = list(module.graph.nodes)
        self.positions = {node: position for position, node in enumerate(self.nodes)}
        self.last_use = {node: max((self.positions[user] for user in node.users), default=-1) for node in self.nodes}

    def run(self, values: Values, images: Tensor | None, start: int, stop: int) -> None:
        """Executes nodes `start` to `stop - 1` on `values` and drops what no later node reads."""
        self.interpreter.env = values
        for position in range(start, stop):
            node = self.nodes[position]
            if node.op == "placeholder":
                values[node] = images if position == 0 else node.args[0] if node.args else None
            else:
                values[node] = self.interpreter.run_node(node)
            for used in node.all_input_nodes:
                if self.last_use[used] <= position:
                    values.pop(used, None)

    def shapes(self, images: Tensor) -> list[torch.Size | None]:
        """Shape of every node's value on some images; `None` for what is not a tensor."""
        values: Values = {}
        found: list[torch.Size | None] = []
        for position, node in enumerate(self.nodes):
            self.run(values, images, position, position + 1)
            value = values.get(node)
            found.append(value.shape if isinstance(value, Tensor) else None)
        return found


def find_sites(
    walker: Walker, model: nn.Module, layers: Collection[str], shapes: Sequence[torch.Size | None] | None
) -> list[Site]:
    """A site for each of `layers` that is called exactly once, in the order of the forward pass.

    Where several layers end in the same sum, the last one takes in the error of all: the others aim at their own
    output, since what the later ones will contribute is not known yet. Without `shapes` all do.
    """
    sites: list[Site] = []
    for position, node in enumerate(walker.nodes):
        if node.op != "call_module" or node.target not in layers or _calls(walker, str(node.target)) != 1:
            continue
        tip, norm = node, ""
        user = _only_user(node)
        if user is not None and user.op == "call_module" and _calls(walker, str(user.target)) == 1:
            module = model.get_submodule(str(user.target))
            if isinstance(module, NORMS) and module.affine and module.track_running_stats:
                tip, norm = user, str(user.target)
        site = Site(str(node.target), position, walker.positions[tip], norm)
        sites.append(site if shapes is None else _with_sum(walker, model, site, tip, shapes))
    last = {site.stop: site for site in sites if site.other is not None}
    return [
        replace(site, stop=_own(walker, site), other=None)
        if site.other is not None and last[site.stop] != site
        else site
        for site in sites
    ]


def _own(walker: Walker, site: Site) -> int:
    """Position of the layer's own response: its norm, or itself."""
    user = _only_user(walker.nodes[site.call])
    return walker.positions[user] if site.norm and user is not None else site.call


def _with_sum(walker: Walker, model: nn.Module, site: Site, tip: fx.Node, shapes: Sequence[torch.Size | None]) -> Site:
    node: fx.Node | None = tip
    previous = tip
    while node is not None:
        previous, node = node, _only_user(node)
        if node is None or node.op != "call_module":
            break
        if type(model.get_submodule(str(node.target))).__name__ not in TRANSPARENT:
            return site
    if node is None or node.target not in SUMS or node.kwargs or len(node.args) != 2:
        return site
    other = node.args[0] if node.args[1] is previous else node.args[1]
    if not isinstance(other, fx.Node) or other is previous:
        return site
    stop, position = walker.positions[node], walker.positions[other]
    if not shapes[stop] == shapes[position] == shapes[walker.positions[tip]]:
        return site
    return replace(site, stop=stop, other=position)


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _calls(walker: Walker, target: str) -> int:
    return sum(node.op == "call_module" and node.target == target for node in walker.nodes)


class Lockstep:
    """The teacher and the pruned network at the same position of their graphs, over all batches.

    What is alive at a position is kept for all batches as long as it fits `cache_bytes`; beyond that the batches are
    run again from the last position that fitted, so that memory stays bounded and only time grows.

    Args:
        teacher, pruned: two networks of one architecture, already in evaluation mode.
        batches: iterated once, or again for each layer where the cache is too small.
        cache_bytes: memory for kept activations of both networks together.
        device: where the networks are.
    """

    def __init__(
        self, teacher: Walker, pruned: Walker, batches: Batches, cache_bytes: int, device: torch.device
    ) -> None:
        self.teacher, self.pruned, self.batches, self.cache_bytes = teacher, pruned, batches, cache_bytes
        self.device = device
        self.start = 0
        self.saved: list[tuple[Values, Values]] | None = None

    def collect(self, site: Site) -> Iterator[tuple[Call | None, Tensor, Tensor | None]]:
        """Runs all batches past a layer.

        Yields:
            Per batch: what the pruned layer read, the teacher's value at the target, and what the pruned network
            already contributes there (the other addend of a sum, in the pruned network's channels).
        """
        layer: Any = self.pruned.interpreter.module.get_submodule(site.layer)
        fresh: list[tuple[Values, Values]] | None = []
        size = 0
        for teacher, pruned, images in self._states():
            self.teacher.run(teacher, images, self.start, site.call)
            self.pruned.run(pruned, images, self.start, site.call)
            if fresh is not None:
                fresh.append((copied(teacher), copied(pruned)))
                size += sum(map(size_of, fresh[-1]))
                fresh = fresh if size <= self.cache_bytes else None
            with Capture(layer.weight) as capture:
                self.pruned.run(pruned, images, site.call, site.call + 1)
            self.teacher.run(teacher, images, site.call, site.stop + 1)
            contributed = None
            if site.other is not None:
                self.pruned.run(pruned, images, site.call + 1, site.stop)
                contributed = pruned[self.pruned.nodes[site.other]]
            read = capture.calls[0] if len(capture.calls) == 1 else None
            yield read, teacher[self.teacher.nodes[site.stop]], contributed
        if fresh is not None:
            self.saved, self.start = fresh, site.call

    def _states(self) -> Iterator[tuple[Values, Values, Tensor | None]]:
        if self.saved is None:
            for images, _ in self.batches:
                yield {}, {}, images.to(self.device)
        else:
            for teacher, pruned in self.saved:
                yield copied(teacher), copied(pruned), None


class _Enough(Exception):
    """Ends a forward pass where nothing behind is needed."""


class Hooked:
    """For models that cannot be traced: whole forward passes, cut off behind the layer in question.

    Args:
        teacher, pruned: two networks of one architecture, already in evaluation mode.
        batches: iterated once for each layer.
        device: where the networks are.
    """

    def __init__(self, teacher: nn.Module, pruned: nn.Module, batches: Batches, device: torch.device) -> None:
        self.teacher, self.pruned, self.batches, self.device = teacher, pruned, batches, device

    def find_sites(self, layers: Collection[str], images: Tensor) -> list[Site]:
        """A site for each of `layers` that runs exactly once, in the order of the forward pass."""
        order: list[str] = []
        with ExitStack() as hooks:
            for name in layers:
                module = self.pruned.get_submodule(name)
                hooks.callback(module.register_forward_hook(lambda *_, name=name: order.append(name)).remove)
            self.pruned(images)
        return [Site(name, place, place) for place, name in enumerate(order) if order.count(name) == 1]

    def collect(self, site: Site) -> Iterator[tuple[Call | None, Tensor, Tensor | None]]:
        """As `Lockstep.collect`; the target is the layer's own output."""
        module: Any = self.pruned.get_submodule(site.layer)
        for images, _ in self.batches:
            with Capture(module.weight) as capture:
                self._output(self.pruned, site.layer, images)
            read = capture.calls[0] if len(capture.calls) == 1 else None
            yield read, self._output(self.teacher, site.layer, images), None

    def _output(self, model: nn.Module, layer: str, images: Tensor) -> Tensor:
        found: list[Tensor] = []

        def stop(_: nn.Module, __: object, output: Tensor) -> None:
            found.append(output.detach().clone())
            raise _Enough

        handle = model.get_submodule(layer).register_forward_hook(stop)
        try:
            model(images.to(self.device))
        except _Enough:
            pass
        finally:
            handle.remove()
        return found[0]


def copied(values: Values) -> Values:
    """A copy that later in-place operations do not reach; parameters stay themselves."""
    return {node: value if node.op == "get_attr" else _cloned(value) for node, value in values.items()}


def _cloned(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    return type(value)(_cloned(part) for part in value) if isinstance(value, tuple | list) else value


def size_of(values: Values) -> int:
    """Bytes of what is alive, parameters aside."""
    return sum(_size(value) for node, value in values.items() if node.op != "get_attr")


def _size(value: Any) -> int:
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    return sum(_size(part) for part in value) if isinstance(value, tuple | list) else 0
