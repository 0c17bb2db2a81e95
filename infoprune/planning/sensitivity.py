"""What each channel group costs when it alone is cut to each of several widths and repaired."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infoprune.config.ranges import Mebibytes, Positions, ProperShare, in_range
from infoprune.errors import UserError
from infoprune.graph.channels import ChannelGraph, ChannelGroup
from infoprune.graph.depth import shorten
from infoprune.repairing.compensate import HELD_OUT, LAYERS, POSITIONS, absorb, as_map, first_images, gather
from infoprune.repairing.graph_replay import Batches, Site, Values, Walker, copied, find_sites, size_of
from infoprune.repairing.ridge import STRENGTHS, Capture, Moments, fit
from infoprune.utils.module_mode import evaluating

# Down to the least share that a plan keeps of a group: the most negligible ones matter most where budgets are tight.
SHARES = (0.9, 0.8, 0.65, 0.5, 0.35, 0.2, 0.1, 0.05)
Table = dict[str, dict[int, float]]


def measure_sensitivity(
    model: nn.Module,
    graph: ChannelGraph,
    scores: Mapping[str, Tensor],
    batches: Batches,
    on_step: Callable[[int, int], None] | None = None,
    **options: Any,
) -> Table:
    """Loss of each group at each of several widths, for filters ranked in one way: what a plan's widths go by.

    >>> import infoprune
    >>> from infoprune.models import lenet
    >>> model, images = lenet.build().eval(), torch.randn(16, 1, 28, 28)
    >>> batches = [(images, torch.arange(16) % 10)]
    >>> graph = infoprune.channel_graph(model, images[:1])
    >>> scores = infoprune.rank(infoprune.analyze(model, batches, ["l2"]), graph, "l2")
    >>> table = infoprune.measure_sensitivity(model, graph, scores, batches, shares=[0.5])
    >>> sorted(table["conv1"]), table["conv1"][6]
    ([3, 6], 0.0)

    Args:
        model: the unpruned network; not touched.
        graph: its channel groups, from `channel_graph`.
        scores: per group one score per channel, from `rank`; groups without one are not measured.
        batches: pairs of images and anything; kept in memory, so a few hundred images.
        on_step: told after each group the number of groups done and of all.
        options: `shares`, `positions` and `cache_mb` of `measure_sensitivities`.

    Returns:
        Per group, width -> mean Kullback-Leibler divergence from the intact network's predictions in nats per image.

    Raises:
        UserError: for a model that torch.fx cannot trace, no batches, or options out of range.
    """
    return measure_sensitivities(model, graph, {"": scores}, batches, on_step, **options)[""]


@in_range("[sensitivity]")
def measure_sensitivities(
    model: nn.Module,
    graph: ChannelGraph,
    rankings: Mapping[str, Mapping[str, Tensor]],
    batches: Batches,
    on_step: Callable[[int, int], None] | None = None,
    *,
    shares: Sequence[ProperShare] = SHARES,
    positions: Positions = POSITIONS,
    cache_mb: Mebibytes = 2048,
) -> dict[str, Table]:
    """Loss of each group at each of several widths: it alone is cut, and its consumers are refitted in closed form.

    The sums for the refit are gathered once per consumer, on the intact network, and serve every width of every
    ranking: a cut takes their rows and columns away. Where rankings keep the same filters, one measurement serves them.
    The loss is the divergence from the intact network's predictions on every fourth image, which the refit has not
    seen; no labels are needed. Time: half a forward pass per group, and an eighth per width and ranking. Memory: the
    images, their activations at one layer within the cache (twice while they move on), and normal matrices of
    3·8·(k²·C)² bytes for a layer that reads C channels through k x k weights.

    Args:
        model: the unpruned network; not touched.
        graph: its channel groups.
        rankings: by a name, per group one score per channel, the larger, the longer it is kept; groups without one are
            not measured.
        batches: pairs of images and anything; kept in memory, so a few hundred images.
        on_step: told after each group the number of groups done and of all.
        shares: widths to try, as shares of a group's own, above 0 and below 1.
        positions: rows taken from each image's map of a layer; 0 for all.
        cache_mb: memory for activations, in MiB; where they do not fit, layers before are run again, which takes
            longer.

    Returns:
        Per ranking and group, width -> mean Kullback-Leibler divergence KL(intact ‖ cut) in nats per image; the full
        width is 0.

    Raises:
        UserError: for a model that torch.fx cannot trace, no batches, or shares out of range.
    """
    check_options(shares=shares)
    probe = _Probe(shorten(copy.deepcopy(model), graph.removed), batches, cache_mb << 20)
    groups = [group for group in graph.groups if not group.refusal]
    groups = [group for group in groups if any(group.name in scores for scores in rankings.values())]
    found: dict[str, dict[str, dict[int, float]]] = {}
    with evaluating(probe.model), torch.no_grad():
        for done, group in enumerate(sorted(groups, key=probe.first_call), start=1):
            scores = {name: ranking[group.name] for name, ranking in rankings.items() if group.name in ranking}
            found[group.name] = probe.measure(group, scores, shares, positions)
            if on_step is not None:
                on_step(done, len(groups))
    return {
        name: {group.name: {group.width: 0.0, **found[group.name][name]} for group in groups if group.name in ranking}
        for name, ranking in rankings.items()
    }


def check_options(*, shares: Sequence[float], **_: object) -> None:
    """Raises UserError where `measure_sensitivities` would have no width to try."""
    if not shares:
        raise UserError("[sensitivity] shares = []: expected at least one number above 0 and below 1")


class _Probe:
    """A copy of the model, cut and restored again and again, with its activations behind the last group."""

    def __init__(self, model: nn.Module, batches: Batches, cache_bytes: int) -> None:
        self.model, self.cache_bytes = model, cache_bytes
        images = first_images(batches, model)
        with evaluating(model), torch.no_grad():
            try:
                self.walker = Walker(model)
                self.walker.shapes(images[:1])
            except Exception as error:  # Tracing and replaying fail in as many ways as there are models.
                raise UserError(
                    f"torch.fx cannot trace the model: {type(error).__name__}: {error}; [plan] allocation = 'uniform' "
                    "and 'global' do without"
                ) from error
            layers = [name for name, module in model.named_modules() if isinstance(module, LAYERS)]
            # On the intact network the shortcut has no error, so each layer's own response is the target.
            self.sites = {site.layer: site for site in find_sites(self.walker, model, layers, None)}
            self.start, self.saved, self.judges = 1, *self._apart([given.to(images.device) for given, _ in batches])
            self.expected = [self._predict(values) for values in self.judges]

    def _apart(self, batches: Sequence[Tensor]) -> tuple[list[Values], list[Values]]:
        """Images to refit on and images to judge by: a layer with more inputs than images could fit any of its own."""
        parts = [torch.arange(len(given), device=given.device) % HELD_OUT == HELD_OUT - 1 for given in batches]
        fitted, judging = (
            [{self.walker.nodes[0]: given[part]} for given, part in zip(batches, chosen, strict=True) if part.any()]
            for chosen in ([~part for part in parts], parts)
        )
        return fitted, judging or fitted

    def first_call(self, group: ChannelGroup) -> int:
        """Position in the graph of the first layer that reads the group."""
        return min((self.sites[name].call for name in self._consumers(group) if name in self.sites), default=0)

    def measure(
        self, group: ChannelGroup, rankings: Mapping[str, Tensor], shares: Sequence[float], positions: int
    ) -> dict[str, dict[int, float]]:
        """Per ranking, the divergence at each width."""
        self._advance(self.first_call(group))
        sums = {name: self._sums(self.sites[name], positions) for name in self._consumers(group) if name in self.sites}
        state = {name: copy.deepcopy(self.model.get_submodule(name).state_dict()) for name in self._touched(group)}
        widths = sorted({max(1, math.ceil(share * group.width)) for share in shares} - {group.width})
        known: dict[tuple[int, ...], float] = {}

        def loss(kept: tuple[int, ...]) -> float:
            if kept not in known:
                for name, inputs in self._consumers(group).items():
                    self._refit(name, [index for channel in kept for index in inputs[channel]], sums.get(name))
                known[kept] = self._divergence()
                for name, whole in state.items():
                    self.model.get_submodule(name).load_state_dict(whole)
            return known[kept]

        order = {name: score.argsort(descending=True, stable=True).tolist() for name, score in rankings.items()}
        return {
            name: {width: loss(tuple(sorted(ranked[:width]))) for width in widths} for name, ranked in order.items()
        }

    def _consumers(self, group: ChannelGroup) -> dict[str, tuple[tuple[int, ...], ...]]:
        return {member.layer: member.channels for member in group.members if member.side == "in"}

    def _touched(self, group: ChannelGroup) -> list[str]:
        names = list(self._consumers(group))
        return names + [site.norm for name in names if (site := self.sites.get(name)) is not None and site.norm]

    def _advance(self, position: int) -> None:
        """Moves what is kept to a later layer, if it fits there; otherwise everything runs from where it is."""
        fresh: list[Values] = []
        size = 0
        for values in (*self.saved, *self.judges) if position > self.start else ():
            values = copied(values)
            self.walker.run(values, None, self.start, position)
            fresh.append(values)
            size += size_of(values)
            if size > self.cache_bytes:
                return
        if fresh:
            count = len(self.saved)
            self.saved, self.judges, self.start = fresh[:count], fresh[count:], position

    def _sums(self, site: Site, positions: int) -> tuple[Moments, Moments] | None:
        module: Any = self.model.get_submodule(site.layer)

        def visits() -> Any:
            for values in self.saved:
                values = copied(values)
                self.walker.run(values, None, self.start, site.call)
                with Capture(module.weight) as capture:
                    self.walker.run(values, None, site.call, site.stop + 1)
                yield (capture.calls or [None])[0], values[self.walker.nodes[site.stop]], None

        if getattr(module, "groups", 1) != 1:
            return None
        return gather(visits(), site.layer, module, range(len(module.weight)), positions)

    def _refit(self, name: str, read: Sequence[int], sums: tuple[Moments, Moments] | None) -> None:
        """Makes one consumer deaf to all inputs but `read`, and refits it to those."""
        module: Any = self.model.get_submodule(name)
        if sums is None:  # Not refittable here: a grouped convolution, or one that is called twice.
            per_part = module.weight.shape[1]
            for part, filters in enumerate(module.weight.split(len(module.weight) // getattr(module, "groups", 1))):
                filters[:, sorted(set(range(per_part)) - {i - part * per_part for i in read})] = 0
            return
        norm: Any = self.model.get_submodule(self.sites[name].norm) if self.sites[name].norm else None
        kernel = module.weight[0, 0].numel()
        columns = torch.tensor([i * kernel + k for i in read for k in range(kernel)], device=module.weight.device)
        weight, bias = as_map(module, norm)
        intercept = norm is not None or module.bias is not None
        train, held_out = (part.subset(columns) for part in sums)
        result = fit(train, held_out, weight[:, :, columns], bias, intercept=intercept, strengths=STRENGTHS[::2])
        absorb(module, norm, result.spread(columns, weight.shape[2]), sums[0] + sums[1])

    def _predict(self, values: Values) -> Tensor:
        values = copied(values)
        self.walker.run(values, None, self.start, len(self.walker.nodes))
        logits = values[self.walker.nodes[-1]]
        if not isinstance(logits, Tensor):
            raise UserError("sensitivity needs a classifier that puts out logits, samples x classes")
        return logits.double().log_softmax(1)

    def _divergence(self) -> float:
        total = sum(
            float(F.kl_div(self._predict(values), expected, reduction="sum", log_target=True))
            for values, expected in zip(self.judges, self.expected, strict=True)
        )
        return total / sum(len(expected) for expected in self.expected)
