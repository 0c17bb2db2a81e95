"""How much a layer's filters repeat each other, and how many of them hold what the layer knows of the image."""

import math
import zlib
from typing import Annotated, Literal

import torch
from msgspec import Meta
from torch import Tensor, nn

from infoprune.analyses._kernels import Kernels, Preset
from infoprune.analyses._running import RunningByLayer, require, saturated
from infoprune.analyses.base import Curve, Finding, LayerView
from infoprune.config.ranges import KernelFactor, Order, Permutations, PositiveShare, Seed, in_range
from infoprune.information.decomposition import mean_per_variable, mmi_pid, non_redundant, tradeoff
from infoprune.information.ensembles import pair_information, set_information, width_reaching
from infoprune.information.resampling import debiased_mutual_information

SHARES = {"trade-off share": "share of I(X;{Ti,Tj})", "non-redundant share": "share of I(X;{Ti,Tj})"}
UNITS = {**SHARES, "width": "filters"}


class Redundancy(RunningByLayer):
    """MMI, redundancy and synergy of a layer's filters about the image ("Understanding CNNs…", Sec. III.B).

    Per layer, in bits: the multivariate mutual information I(X; {T_1..T_C}) of Eq. (6), raw and less its mean over
    permuted samples; over pairs, the redundancy–synergy trade-off of Eq. (11), the weighted non-redundant information
    of Eq. (12), both also as shares of I(X; {T_i, T_j}) (Fig. 5), and the four atoms of the MMI-PID, which the same
    three terms give and the paper leaves open. The recommended width is the number of filters, in an order drawn by
    chance, whose MMI reaches `share` of what the whole layer reaches.

    Importance is what a filter adds to one other on the mean, I(X; T_i | T_j) = I(X; T_i) − trade-off: unlike the
    negative trade-off, it is not above 0 for a dead filter. Heuristic: pairs do not see what three filters share.

    Where the paper errs: its plain product of kernels runs into log2 n with a few filters, so that MMI "saturates" at
    any width, and it measures saturation against H(X). The default widens the kernel of C filters by √C and measures
    against the layer's own MMI, since a smooth kernel need not reach H(X); under it I(X; {T_i, T_j}) may fall below
    I(X; T_i), and synergy below 0. The preset "paper" is Eq. (7) as printed. A saturated layer gets no width.

    Args:
        preset: "corrected", or "paper": α = 1.01, Silverman's width, plain products, width where MMI reaches H(X).
        alpha: Rényi order; the preset's if not given.
        gamma: factor of the standardized width.
        h: factor of the Silverman width.
        share: of the MMI that the recommended width reaches.
        partners: other filters each is paired with in a mini-batch, drawn again in each; all where there are fewer.
        permutations: for the debiased MMI; 0 leaves it out.
        seed: of partners, order and permutations.
    """

    observes: tuple[type[nn.Module], ...] = (nn.Conv2d, nn.Linear)
    needs_gradients = False
    needs_labels = False
    gives = ("importance", "widths")
    name = "redundancy"

    @in_range("[analyses.redundancy]")
    def __init__(
        self,
        *,
        preset: Literal["corrected", "paper"] = "corrected",
        alpha: Order | None = None,
        gamma: KernelFactor = 1.0,
        h: KernelFactor = 5.0,
        share: PositiveShare = 0.99,
        partners: Annotated[int, Meta(ge=2, le=65_536)] = 4,
        permutations: Permutations = 10,
        seed: Seed = 0,
    ) -> None:
        super().__init__()
        self.kernels = Kernels.of(self.name, preset, alpha, gamma, h)
        require(
            self.name,
            [
                ("partners", partners, partners % 2 == 0, "an even number"),
                ("permutations", permutations, permutations != 1, "0, or 2 or more"),
            ],
        )
        self.preset: Preset = preset
        self.share, self.partners, self.permutations, self.seed = share, partners, permutations, seed
        self._sizes: dict[str, Tensor] = {}

    def observe(self, view: LayerView) -> None:
        """Adds the MMI curve, the pairs' decomposition and the debiased MMI of one batch."""
        exponents, target = self.kernels.exponents(view), self.kernels.of_input(view.batch)
        count = len(exponents)
        self._sizes.setdefault(view.layer, _sizes(count))
        figures = self._curve(view, exponents, target)
        # A layer of one filter has nothing to be compared with: what it adds is all it has.
        figures |= self._pairs(view, exponents, target) if count > 1 else {"adds to another": figures["MMI"].view(1)}
        if self.permutations:
            found = debiased_mutual_information(
                target,
                self.kernels.of_layer(view),
                permutations=self.permutations,
                generator=self._generator(view, own=True),
                alpha=self.kernels.alpha,
            )
            figures["MMI debiased"] = found.debiased
        self.layer(view.layer).add(figures)

    def conclude(self) -> Finding:
        """Importance, widths of layers that are not saturated, and all measures with intervals."""
        importance, widths = {}, {}
        flags = saturated(self._layers, "S(X, all filters)")
        silent = {flag.layer for flag in flags}
        for name, running in self._layers.items():
            importance[name] = running.mean("adds to another")
            # What the recommended width has to reach a share of: the paper's H(X), or the layer's own MMI.
            whole = float(running.mean("H(X)" if self.preset == "paper" else "MMI"))
            width = width_reaching(*self.curve(name), whole, share=self.share) if whole > 0 else None
            if width is not None and name not in silent:
                widths[name] = width
        measures = {name: running.measures(UNITS) for name, running in self._layers.items()}
        curves = {name: {"MMI": self._drawn(name)} for name in self._layers}
        return Finding(self.name, importance=importance, widths=widths, measures=measures, flags=flags, curves=curves)

    def _drawn(self, layer: str) -> Curve:
        found = self._layers[layer].measure("_curve")
        return Curve(self._sizes[layer], found.value, found.low, found.high)

    def curve(self, layer: str) -> tuple[Tensor, Tensor]:
        """Set sizes and the mean MMI at each, for drawing saturation against width (Fig. 4)."""
        return self._sizes[layer], self._layers[layer].mean("_curve")

    def _curve(self, view: LayerView, exponents: Tensor, target: Tensor) -> dict[str, Tensor]:
        order = torch.randperm(len(exponents), generator=self._generator(view, own=True))
        found = set_information(
            exponents[order.to(exponents.device)],
            target,
            sizes=self._sizes[view.layer].tolist(),
            alpha=self.kernels.alpha,
            widen=self.kernels.widen,
        )
        of_input = self.kernels.entropy(target)[0]
        layer = self.layer(view.layer)
        layer.margin = min(layer.margin, float(found.margin[-1]))
        mmi = found.information[-1]
        whole = float(of_input if self.preset == "paper" else mmi)
        width = width_reaching(found.sizes, found.information.cpu(), whole, share=self.share)
        reached = torch.tensor(math.nan if width is None else width)
        return {"MMI": mmi, "H(X)": of_input, "width": reached, "_curve": found.information}

    def _pairs(self, view: LayerView, exponents: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Eqs. (11) and (12), their shares and the MMI-PID, averaged over pairs, and per filter what it adds."""
        count = len(exponents)
        pairs = _partners(count, self.partners, self._generator(view, own=False))
        kernels = self.kernels
        i1, i2, both, _ = pair_information(exponents, target, pairs, alpha=kernels.alpha, widen=kernels.widen)
        repeated = mean_per_variable(tradeoff(i1, i2, both), pairs, count)
        alone = mean_per_variable(torch.cat([i1, i2]), torch.cat([pairs[:, [0, 0]], pairs[:, [1, 1]]]), count)
        atoms = mmi_pid(i1, i2, both)
        return {
            "trade-off": tradeoff(i1, i2, both).mean(),
            "non-redundant": non_redundant(i1, i2, both).mean(),
            "trade-off share": tradeoff(i1, i2, both, weighted=True).nanmean(),
            "non-redundant share": non_redundant(i1, i2, both, weighted=True).nanmean(),
            "PID redundancy": atoms.redundancy.mean(),
            "PID unique": (atoms.unique_first + atoms.unique_second).mean(),
            "PID synergy": atoms.synergy.mean(),
            "redundancy": repeated,
            "adds to another": alone - repeated,
        }

    def _generator(self, view: LayerView, own: bool) -> torch.Generator:
        """Random numbers of a layer; the layer's own, or again for each batch."""
        batch = 0 if own else view.batch.index + 1
        return torch.Generator().manual_seed((self.seed * 1009 + batch) * 1_000_003 + zlib.crc32(view.layer.encode()))


def _sizes(count: int) -> Tensor:
    """Set sizes to look at: all up to 8, then steps of about a sixth; a width is known to that precision."""
    found = list(range(1, min(count, 8) + 1))
    while found[-1] < count:
        found.append(min(count, math.ceil(found[-1] * 1.17)))
    return torch.tensor(found)


def _partners(count: int, partners: int, generator: torch.Generator) -> Tensor:
    """Pairs in which every filter has equally many partners: neighbours on a ring drawn by chance."""
    if partners >= count - 1:
        return torch.combinations(torch.arange(count))
    ring = torch.randperm(count, generator=generator)
    steps = range(1, partners // 2 + 1)
    return torch.cat([torch.stack([ring, ring.roll(step)], 1) for step in steps]).sort(1).values
