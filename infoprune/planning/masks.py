"""Kept channels as a person or another tool writes them, and plans one after the other."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from infoprune.errors import UserError, did_you_mean
from infoprune.graph.channels import ChannelGraph, ChannelGroup
from infoprune.planning.plan import GroupPlan, Plan

Masks = Mapping[str, Sequence[int]]


def read_masks(path: Path | str) -> dict[str, list[int]]:
    """A mask file: a JSON object of layer names, each with the list of filters that stay.

    Raises:
        UserError: where the file cannot be read or holds something else.
    """
    try:
        return msgspec.json.decode(Path(path).read_bytes(), type=dict[str, list[int]])
    except OSError as error:
        raise UserError(f"cannot read the mask file '{path}': {error.strerror}") from error
    except msgspec.DecodeError as error:
        raise UserError(
            f"'{path}' is no mask file: {error}; expected JSON such as {{\"conv1\": [0, 2, 3]}}, the filters that stay"
        ) from error


def kept_by(masks: Masks, graph: ChannelGraph) -> dict[str, tuple[int, ...]]:
    """Kept channels per group, from kept filters per layer.

    Args:
        masks: per layer the indices of the filters that stay; layers that are not named keep all that the layers
            coupled to them keep.
        graph: channel groups of the model.

    Raises:
        UserError: for a layer that no group cuts, indices that are out of range, unsorted or repeated, filters that
            can only go together and do not, and layers of one group that contradict each other.
    """
    found: dict[str, tuple[str, tuple[int, ...]]] = {}
    owners = {member.layer: group for group in graph.groups for member in group.members if member.side == "out"}
    owners |= {group.name: group for group in graph.groups}
    for layer, indices in masks.items():
        if layer not in owners:
            raise UserError(f"the mask names '{layer}', which is no layer with filters{did_you_mean(layer, owners)}")
        group = owners[layer]
        kept = _channels(layer, indices, group)
        before, other = found.get(group.name, ("", kept))
        if other != kept:
            raise UserError(
                f"the masks of '{before}' and '{layer}' differ, but their channels are added up and can only go "
                "together; give both the same indices, or name one of them"
            )
        found[group.name] = layer, kept
    return {name: kept for name, (_, kept) in found.items()}


def _channels(layer: str, indices: Sequence[int], group: ChannelGroup) -> tuple[int, ...]:
    """The group's channels behind a layer's filters."""
    own = tuple((channel,) for channel in range(group.width))
    rows = next((m.channels for m in group.members if m.layer == layer and m.side == "out"), own)
    filters = sum(len(row) for row in rows)
    if list(indices) != sorted(set(indices)):
        raise UserError(f"the mask of '{layer}' is not sorted and unique: {list(indices)[:8]}; sort it, drop repeats")
    if not indices or min(indices) < 0 or max(indices) >= filters:
        came = f"runs from {min(indices)} to {max(indices)}" if indices else "is empty"
        raise UserError(f"the mask of '{layer}' {came}; it has filters 0..{filters - 1}, and one at least has to stay")
    chosen = set(indices)
    for row in rows:
        if 0 < len(chosen & set(row)) < len(row):
            raise UserError(f"the mask of '{layer}' keeps some of the filters {list(row)}, which can only go together")
    return tuple(channel for channel, row in enumerate(rows) if set(row) <= chosen)


def compose(first: Plan, second: Plan) -> Plan:
    """One plan that does what two do, the second of which was made for the pruned model.

    >>> def plan(kept, width):
    ...     return Plan((GroupPlan("conv", kept, width, len(kept), 0, 0, ""),), {}, 0, 0, (3, 8, 8))
    >>> compose(plan((1, 3, 5), 6), plan((0, 2), 3)).kept()
    {'conv': (1, 5)}

    Args:
        first: in the original model's coordinates.
        second: in those of the model that the first one left.

    Returns:
        A plan in the original model's coordinates.

    Raises:
        UserError: where the second does not fit what the first leaves.
    """
    before = {group.group: group for group in first.groups}
    groups = []
    for group in second.groups:
        earlier = before.pop(group.group, None)
        if earlier is None:
            groups.append(group)
            continue
        if group.width_before != earlier.width_after or not set(group.kept) <= set(range(earlier.width_after)):
            raise UserError(
                f"the second plan cuts '{group.group}' of {group.width_before} channels, but the first leaves "
                f"{earlier.width_after}; make the second for the model that the first one left"
            )
        kept = tuple(earlier.kept[channel] for channel in group.kept)
        reason = f"{earlier.reason}; then {group.reason}" if group.width_after < group.width_before else earlier.reason
        groups.append(
            GroupPlan(group.group, kept, earlier.width_before, len(kept), earlier.macs_before, group.macs_after, reason)
        )
    gone = (*first.removed, *second.removed)
    rest = [group for name, group in before.items() if not any(f"{name}.".startswith(f"{block}.") for block in gone)]
    return Plan(
        (*groups, *rest),
        {**first.refused, **second.refused},
        first.macs_before,
        second.macs_after,
        first.input_shape,
        (*first.notes, *second.notes),
        gone,
    )
