"""Which channels hang together: torch-pruning's dependency graph, walked within bounds and read as channel groups."""

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from infoprune.errors import UserError, out_of_memory
from infoprune.graph.channels import ChannelGroup, Member, width_of
from infoprune.graph.layers import PRODUCERS, has_width, input_width, is_depthwise, output_width, partitions_of
from infoprune.graph.tracing import pruners
from infoprune.utils.outputs import tensors_of

# Couplings (a channel at a layer or an operation) that are followed for one group. The largest group of torchvision's
# largest CNNs has a quarter of that; where index maps run in circles, as in window attention, there is no end to them.
LIMIT = 1_000_000
ENDLESS = "it has more than"
RECURRENT = (nn.RNNBase, nn.RNNCellBase)
Side = Literal["out", "in"]


def find_groups(model: nn.Module, example: Tensor, layers: Sequence[str]) -> list[ChannelGroup]:
    """The channel groups of a model, in the order of the forward pass; those that cannot be pruned carry the reason.

    Args:
        model: in evaluation mode, all parameters trainable.
        example: one or more input samples.
        layers: dotted names of the convolutions and linear layers that run, in that order.

    Raises:
        UserError: where torch-pruning cannot trace the model and no layer feeds the next one plainly either.
    """
    calls, by_keyword, outputs = _run(model, example)
    used = _parameters_behind(outputs)
    try:
        if not used:
            raise _LibraryError("no gradient reaches its output")
        graph = _dependency_graph(model, example)
    except _LibraryError as error:
        words = f"torch-pruning cannot trace this model ({error})"
        groups = _plain_groups(model, calls, layers, words)
        if all(group.refusal for group in groups):
            raise UserError(
                f"{words}; such an architecture cannot be pruned here. Give a forward that leads from layer to layer "
                "through differentiable operations, without torch.no_grad(), detach() or NumPy in between"
            ) from error
    else:
        groups = _groups_of(graph, model, layers)
        # Its nodes hold each other, the trace's activations and the model; they would stay until the next collection.
        for node in graph.module2node.values():
            vars(node).clear()
    return _checked(groups, model, used, by_keyword)


class _LibraryError(Exception):
    """torch-pruning failed on a graph that it cannot follow; the message says with what."""


@contextmanager
def _library_errors() -> Iterator[None]:
    """The boundary to torch-pruning: it raises whatever its own bookkeeping ran into, as one kind of error here.

    Memory that runs out says nothing of the graph and passes.
    """
    try:
        yield
    except Exception as error:
        if out_of_memory(error):
            raise
        raise _LibraryError(f"{type(error).__name__}: {' '.join(str(error).split())}") from error


def _groups_of(graph: tp.DependencyGraph, model: nn.Module, layers: Sequence[str]) -> list[ChannelGroup]:
    groups: list[ChannelGroup] = []
    names = {module: name for name, module in model.named_modules()}
    seen: set[str] = set()
    for layer in layers:
        if layer not in seen:
            # Where some had no end, others will have none: each is followed less far.
            endless = sum(group.refusal.startswith(ENDLESS) for group in groups)
            root = model.get_submodule(layer)
            groups.append(_channel_group(graph, layer, root, names, LIMIT // (1 + endless)))
            seen.update(member.layer for member in groups[-1].members if member.side == "out")
    return groups


def _run(model: nn.Module, example: Tensor) -> tuple[list[str], set[str], list[Tensor]]:
    """The layers and norms in the order of their calls, those called by keyword alone, and the outputs."""
    calls: list[str] = []
    by_keyword: set[str] = set()

    def note(name: str, given: tuple[object, ...]) -> None:
        calls.append(name)
        if not given:
            by_keyword.add(name)

    with ExitStack() as hooks, torch.enable_grad():
        for name, module in model.named_modules():
            if has_width(module):
                hooks.callback(module.register_forward_hook(lambda _, given, __, name=name: note(name, given)).remove)
        try:
            output = model(example[:1])
        except Exception as error:  # A user's forward raises whatever it likes.
            if out_of_memory(error):
                raise
            raise UserError(
                f"the model runs without gradients, but not with them ({type(error).__name__}: {error}); change "
                "parameters in place only under torch.no_grad()"
            ) from error
    return calls, by_keyword, list(tensors_of(output))


def _parameters_behind(outputs: Iterable[Tensor]) -> set[int]:
    """The identities of all parameters that outputs are computed from."""
    pending = [tensor.grad_fn for tensor in outputs if tensor.grad_fn is not None]
    seen, used = set(pending), set()
    while pending:
        node: Any = pending.pop()
        if hasattr(node, "variable"):
            used.add(id(node.variable))
        fresh = {other for other, _ in node.next_functions if other is not None} - seen
        seen |= fresh
        pending += fresh
    return used


def _dependency_graph(model: nn.Module, example: Tensor) -> tp.DependencyGraph:
    graph = pruners(model)
    with _library_errors(), _quiet(), torch.enable_grad():
        graph.build_dependency(model, example[:1], output_transform=lambda output: list(tensors_of(output)))
    return graph


@contextmanager
def _quiet() -> Iterator[None]:
    """What the library warns about is handled here: bare parameters are cut along, and the rest is tried before use."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Unwrapped parameters detected", category=UserWarning)
        warnings.filterwarnings("ignore", message=r"\[Warning\] Unknown operation", category=UserWarning)
        warnings.filterwarnings("ignore", message="Maximum recursive depth reached", category=UserWarning)
        yield


class _Index(NamedTuple):
    """A channel at some layer, and the channel of the root that it goes with; named as the library's maps expect."""

    idx: int
    root_idx: int | None


class _Reached(NamedTuple):
    """A layer or operation, the side that is cut, and there index -> channel of the root."""

    node: Any
    side: Side
    roots: dict[int, int]


def _walk(
    graph: tp.DependencyGraph, root: nn.Module, width: int, names: Mapping[nn.Module, str], limit: int
) -> tuple[list[_Reached], str]:
    """All that hangs on the channels of one layer, and why it cannot be cut; empty where nothing speaks against it.

    The library's own walk compares whole lists of indices and need not end; here every index of every side is followed
    once.
    """
    start = graph.get_pruner_of_module(root).prune_out_channels
    pending: list[Any] = [(graph.module2node[root], start, [_Index(channel, channel) for channel in range(width)])]
    reached: dict[tuple[int, Any], _Reached] = {}
    problem, followed = "", 0
    while pending:
        node, handler, indices = pending.pop()
        where = f"'{names[node.module]}'" if node.module in names else "an operation between layers"
        # Normalisation and depthwise layers count as both sides there; what they put out is what matters here.
        side: Side = "out" if graph.is_out_channel_pruning_fn(handler) else "in"
        own = reached.setdefault((id(node), handler), _Reached(node, side, {})).roots
        try:
            size = _size(graph, node, side)
        except _LibraryError as error:
            problem = problem or f"torch-pruning cannot count the channels of {where} ({error})"
            continue
        fresh = []
        for index in indices:
            if index.root_idx is None or (size is not None and not 0 <= index.idx < size):
                problem = problem or f"its channels are padded or repeated on the way to {where}"
            elif index.idx not in own:
                own[index.idx] = index.root_idx
                fresh.append(index)
            elif own[index.idx] != index.root_idx:
                problem = problem or f"its channels are padded, rearranged or mixed on the way to {where}"
        followed += len(fresh)
        # What is refused need not be followed to its end, only far enough to know what belongs to it.
        if followed > (min(limit, LIMIT // 100) if problem else limit):
            problem = problem or f"{ENDLESS} {limit:,} couplings to other layers"
            break
        for dependency in node.dependencies if fresh else ():
            if dependency.is_triggered_by(handler):
                try:
                    mapped = _mapped(dependency, fresh)
                except _LibraryError as error:
                    problem = problem or f"torch-pruning cannot follow its channels beyond {where} ({error})"
                    continue
                if mapped:
                    pending.append((dependency.target, dependency.handler, mapped))
    return list(reached.values()), problem


@_library_errors()
def _size(graph: tp.DependencyGraph, node: Any, side: Side) -> int | None:
    """Number of channels on one side of a layer; `None` for an operation that takes any."""
    size: int | None = graph.get_out_channels(node) if side == "out" else graph.get_in_channels(node)
    return size


@_library_errors()
def _mapped(dependency: Any, indices: list[_Index]) -> list[_Index]:
    """Where channels lie at the other end of a dependency."""
    for mapping in dependency.index_mapping:
        indices = indices if mapping is None else mapping(indices)
    return indices


def _channel_group(
    graph: tp.DependencyGraph, name: str, root: nn.Module, names: Mapping[nn.Module, str], limit: int
) -> ChannelGroup:
    width = width_of(root)
    if root not in graph.module2node:
        return ChannelGroup(name, width, (), refusal="no gradient reaches it, so its channels cannot be followed")
    reached, problem = _walk(graph, root, width, names, limit)
    refusal = "it has a single channel" if width < 2 else _recurrent(graph, reached) or problem
    members, parameters, partitions = [], [], 1
    for node, side, roots in reached:
        module = node.module
        # Everything else is an operation without weights.
        if module in names:
            members.append(member := Member(names[module], side, _by_channel(roots, width)))
            refusal = refusal or _member_problem(member, module)
            partitions = math.lcm(partitions, partitions_of(module))
        elif isinstance(module, nn.Parameter):
            fitting = [axis for axis, size in enumerate(module.shape) if size == len(roots)]
            axis = fitting[0] if len(fitting) == 1 else int(node.pruning_dim)
            parameters.append(Member(graph._param_to_name[module], "out", _by_channel(roots, width), axis))
    if not problem and any(_is_output(node, side) for node, side, _ in reached):
        refusal = "its channels are the network's output"
    elif not problem and not any(member.side == "in" for member in members):
        refusal = "no layer that reads its channels was found behind it"
    return ChannelGroup(name, width, tuple(members), partitions, refusal, tuple(parameters))


def _recurrent(graph: tp.DependencyGraph, reached: Sequence[_Reached]) -> str:
    """Names a recurrent layer among what channels reach, whose gates the graph holds as bare operations."""
    for node, _, _ in reached:
        name = graph._param_to_name.get(node.module, "") if isinstance(node.module, nn.Parameter) else ""
        owner = graph.model.get_submodule(name.rpartition(".")[0])
        if isinstance(owner, RECURRENT):
            return f"'{name.rpartition('.')[0]}' is a {type(owner).__name__}, whose channels cannot be counted"
    return ""


def _is_output(node: Any, side: Side) -> bool:
    """Whether nothing in the graph reads what a node puts out."""
    return type(node.module).__name__ == "_OutputOp" or (side == "out" and not node.outputs)


def _by_channel(roots: Mapping[int, int], width: int) -> tuple[tuple[int, ...], ...]:
    channels: list[list[int]] = [[] for _ in range(width)]
    for index, root in sorted(roots.items()):
        channels[root].append(index)
    return tuple(map(tuple, channels))


def _member_problem(member: Member, module: nn.Module) -> str:
    """Why a member makes its group unprunable; empty where it does not."""
    counts = {len(own) for own in member.channels}
    indices = [index for own in member.channels for index in own]
    try:
        width = output_width(module) if member.side == "out" else input_width(module)
    except TypeError:
        return f"'{member.layer}' is a {type(module).__name__}, whose channels cannot be counted"
    if len(counts) != 1 or 0 in counts:
        return f"its channels are padded, sliced or shared unevenly on the way to '{member.layer}'"
    groups = getattr(module, "groups", 1)
    # Each filter of a depthwise layer goes its own way, so several groups may share it, as behind a concatenation.
    whole = member.side == "in" or not isinstance(module, PRODUCERS) or groups == width > 1
    if not whole and len(set(indices)) != width:
        return f"it meets only part of the filters of '{member.layer}': channels are padded, sliced or split in between"
    if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) > 1:
        return f"'{member.layer}' normalises over several axes, not over channels alone"
    if groups > 1 and groups == input_width(module) != width_of(module):
        return f"'{member.layer}' is a depthwise convolution with several filters per channel"
    if partitions_of(module) > 1 and indices != list(range(width)):
        return f"'{member.layer}' works in {partitions_of(module)} parts, which its channels do not fill in order"
    return ""


def _checked(
    groups: Sequence[ChannelGroup], model: nn.Module, used: set[int], by_keyword: set[str]
) -> list[ChannelGroup]:
    """The groups, with a refusal where something outside the graph speaks against cutting."""
    owners: dict[int, set[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), set()).add(name)
    idle: dict[int, str] = {}  # width -> a layer that takes no part in the output
    for name, module in model.named_modules():
        own = [*module.parameters(recurse=False)]
        if used and own and has_width(module) and not any(id(parameter) in used for parameter in own):
            for width in (output_width(module), input_width(module) if isinstance(module, PRODUCERS) else 0):
                idle.setdefault(width, name)
    return [
        group if group.refusal else replace(group, refusal=_problem(group, model, owners, idle, by_keyword))
        for group in groups
    ]


def _problem(
    group: ChannelGroup,
    model: nn.Module,
    owners: Mapping[int, set[str]],
    idle: Mapping[int, str],
    by_keyword: set[str],
) -> str:
    """What speaks against cutting a group that the graph allows; empty for nothing."""
    if group.width % group.partitions:
        return f"its {group.width} channels do not divide into {group.partitions} equal parts"
    if group.width == group.partitions:
        return f"each of its {group.partitions} parts has a single channel"
    for member in group.members:
        module = model.get_submodule(member.layer)
        width = output_width(module) if member.side == "out" else input_width(module)
        if member.layer in by_keyword:
            return f"'{member.layer}' is called with its input by keyword; pass it as the first argument"
        if is_parametrized(module) or (isinstance(module, PRODUCERS) and not isinstance(module.weight, nn.Parameter)):
            return f"'{member.layer}' computes its weights from others; remove the parametrization first"
        for parameter in module.parameters(recurse=False):
            if len(owners[id(parameter)]) > 1:
                return f"parameters are shared: {', '.join(sorted(owners[id(parameter)]))}"
        if width in idle:
            return (
                f"'{idle[width]}', with as many channels ({width}), does not take part in the output on the example "
                "and may read these elsewhere; remove it, or give an example that uses it"
            )
    return ""


def _plain_groups(model: nn.Module, calls: Sequence[str], layers: Sequence[str], words: str) -> list[ChannelGroup]:
    """Groups without a graph: a layer, the norms and depthwise layers called next, and the layer called after those.

    Whether the channels go no other way is for the trial to say.
    """
    groups = []
    for layer in layers:
        root = model.get_submodule(layer)
        members: list[tuple[str, Side]] = [(layer, "out")]
        width, partitions = width_of(root), partitions_of(root)
        for name in calls[calls.index(layer) + 1 :] if calls.count(layer) == 1 else ():
            module = model.get_submodule(name)
            if isinstance(module, PRODUCERS) and not is_depthwise(module):
                if input_width(module) == width and getattr(module, "groups", 1) == 1 and calls.count(name) == 1:
                    members.append((name, "in"))
                break
            if output_width(module) != width or calls.count(name) != 1:
                break
            members.append((name, "out"))
            partitions = math.lcm(partitions, partitions_of(module))
        refusal = "" if members[-1][1] == "in" and width > 1 and not is_depthwise(root) else words
        channels = tuple((channel,) for channel in range(width))
        groups.append(
            ChannelGroup(layer, width, tuple(Member(n, s, channels) for n, s in members), partitions, refusal)
        )
    inner = {m.layer for group in groups if not group.refusal for m in group.members[1:] if m.side == "out"}
    return [group for group in groups if group.name not in inner]
