"""Frequencies of maps and filters, and ranks: roll-off points, frame bounds, effective rank, scattering depth.

Roll-off points: "Spectral Roll-off Points Variations: Exploring Useful Information in Feature Maps by Its
Variations", Eqs. (2)–(6). Energy: Wiatowski, Grohs and Bölcskei, "Energy Propagation in Deep Convolutional Neural
Networks", arXiv:1704.03636.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from infoprune.information.threads import one_thread_each
from infoprune.information.validation import require_choice, require_finite

GROWTH = {"wavelets": 5 / 3, "weyl_heisenberg": 3 / 2}
"""Rate a of the exponential decay of the propagated energy [recalled from the paper's full text]."""


def radial_bins(size: int) -> int:
    """m = ⌊√2 (n − 1)/2⌋ − 1, the number of radial bins of an n × n spectrum, Eq. (5); 0 or less for tiny maps.

    Example:
        >>> [radial_bins(n) for n in (224, 112, 56, 28, 14, 7)]
        [156, 77, 37, 18, 8, 3]
    """
    return math.floor(math.sqrt(2) * (size - 1) / 2) - 1


def radial_profile(
    maps: Float[Tensor, "*batch h w"],
    *,
    power: bool = False,
    reduce: str = "mean",
    dc: bool = False,
    last: bool = False,
) -> Float[Tensor, "*batch bins"]:
    """S(k): the 2-D spectrum gathered over the rings k ≤ r < k + 1, Eq. (6).

    The paper calls S a power spectrum and writes |F|, sums over the ring and calls it an average, and lets k run over
    [0, m] while it speaks of m bins. All of it can be chosen; the defaults are what fits its Table 2 best. Frequencies
    of maps that are not square are measured in cycles per shorter side.

    Args:
        maps: any number of maps.
        power: |F|² in place of |F|.
        reduce: "mean" or "sum" over a ring.
        dc: whether the mean of the map counts (ring 0).
        last: whether ring m counts as well, which makes m + 1 bins.

    Returns:
        float64, zero throughout for a map that is constant to the rounding of its dtype.

    Raises:
        ValueError: for maps too small to have a bin, NaN or Inf, or an unknown reduction.

    Example:
        >>> x = torch.arange(16) / 16
        >>> profile = radial_profile(torch.cos(2 * torch.pi * 3 * x).expand(16, 16))
        >>> int(profile.argmax())
        3
    """
    require_choice("reduction", reduce, ("mean", "sum"))
    height, width = maps.shape[-2:]
    size = min(height, width)
    count = radial_bins(size) + last
    if count < 1:
        raise ValueError(f"maps of {height} x {width} came: expected at least 4 pixels a side for one radial bin.")
    require_finite(torch.isfinite(maps).all(), "maps")
    # Single precision is far below what a bin can tell, and takes half the time.
    x = maps if maps.dtype == torch.float64 else maps.float()
    spread, mean = torch.var_mean(x, (-2, -1), correction=0, keepdim=True)
    varies = spread.sqrt() > 2 * torch.finfo(maps.dtype).eps * mean.abs()
    spectrum = torch.fft.fft2(torch.where(varies, x, 0.0)).abs()
    spectrum = (spectrum.square() if power else spectrum).flatten(-2)
    y, x_axis = (torch.fft.fftfreq(n, 1 / size, dtype=torch.float64, device=maps.device) for n in (height, width))
    # Just above the integer, so that a frequency of exactly k falls into ring k despite rounding.
    ring = (torch.hypot(y[:, None], x_axis) + 1e-9).long().flatten()
    inside = ring < count
    found: Tensor = spectrum.new_zeros(*spectrum.shape[:-1], count).index_add_(-1, ring[inside], spectrum[..., inside])
    if reduce == "mean":
        found = found / torch.bincount(ring[inside], minlength=count).clamp_min(1)
    if not dc:
        found[..., 0] = 0
    return found.double()


def roll_off(
    profile: Float[Tensor, "*batch bins"], *, kappa: float = 0.85, interpolate: bool = True
) -> Float[Tensor, "*batch"]:
    """First bin at which the cumulated profile reaches the share κ of its total, Eq. (2), counted from 0.

    Args:
        profile: non-negative, from ``radial_profile``.
        kappa: in (0, 1].
        interpolate: take the place inside the bin, k + (κ·total − cumulated before k) / S(k), in [0, bins]: small maps
            have three or four bins only, which no statistic can tell apart.

    Returns:
        NaN where the profile is zero: a constant map has no roll-off point.

    Raises:
        ValueError: for κ out of range.

    Example:
        >>> roll_off(torch.ones(20)).item()  # flat
        17.0
        >>> roll_off(torch.zeros(20)).item()
        nan
    """
    if not 0 < kappa <= 1:
        raise ValueError(f"kappa = {kappa}: expected a share above 0, up to 1.")
    cumulated = profile.double().cumsum(-1)
    total = cumulated[..., -1:]
    # A share that rounding misses by its last digit is reached.
    reached = cumulated >= kappa * total * (1 - 1e-12)
    at = reached.to(torch.uint8).argmax(-1, keepdim=True)
    found = at.double()
    if interpolate:
        inside = profile.double().gather(-1, at)
        found = found + 1 - (cumulated.gather(-1, at) - kappa * total) / torch.where(inside > 0, inside, 1.0)
    return torch.where(total > 0, found, torch.nan)[..., 0]


def frame_bounds(weight: Float[Tensor, "o i kh kw"], *, grid: int = 16) -> tuple[float, float]:
    """A and B with A‖f‖² ≤ Σ_k ‖f ∗ w_k‖² ≤ B‖f‖² for every input f, stride 1, periodic borders.

    Smallest and largest eigenvalue over frequencies ω of Ŵ(ω)* Ŵ(ω), inputs × inputs; with one input channel that is
    the minimum and maximum of Σ_k |ŵ_k(ω)|². A frame has A > 0; fewer filters than input channels cannot be one.

    Args:
        grid: frequencies per axis, at least the kernel's size.

    Example:
        >>> haar = torch.tensor([[[[0.5, 0.5]]], [[[0.5, -0.5]]]])
        >>> [round(bound, 6) for bound in frame_bounds(haar)]  # |cos|² + |sin|²
        [1.0, 1.0]
    """
    outputs, inputs, *kernel = weight.shape
    size = max(grid, *kernel)
    response = torch.fft.rfft2(weight.double(), s=(size, size)).flatten(2).permute(2, 0, 1)
    # Fewer filters than channels: the smaller product has the same positive eigenvalues.
    gram = response @ response.mH if outputs < inputs else response.mH @ response
    with one_thread_each():
        values = torch.linalg.eigvalsh(gram)
    low = 0.0 if outputs < inputs else max(0.0, float(values.min()))
    return low, max(0.0, float(values.max()))


def effective_rank(singular_values: Float[Tensor, "*batch r"]) -> Float[Tensor, "*batch"]:
    """2^H(σ/Σσ): the number of directions that count, from 1 to their number (Roy and Vetterli, 2007).

    Returns:
        0 where all are zero.

    Example:
        >>> effective_rank(torch.tensor([[1.0, 1.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0]]))
        tensor([3., 1.])
    """
    total = singular_values.sum(-1, keepdim=True)
    p = singular_values / torch.where(total > 0, total, 1.0)
    bits = -torch.xlogy(p, p).sum(-1) / math.log(2)
    return torch.where(total[..., 0] > 0, torch.exp2(bits), 0.0)


def stable_rank(singular_values: Float[Tensor, "*batch r"]) -> Float[Tensor, "*batch"]:
    """‖W‖_F² / ‖W‖₂², from 1 to the rank; 0 where all singular values are zero.

    Example:
        >>> stable_rank(torch.tensor([2.0, 2.0, 1.0])).item()
        2.25
    """
    largest = singular_values.amax(-1).square()
    return singular_values.square().sum(-1) / torch.where(largest > 0, largest, 1.0)


def scattering_depth(
    share: float,
    *,
    filters: str = "wavelets",
    bandwidth: float = 1.0,
    scale: float = 1.0,
    dimension: int = 1,
    smoothness: float | None = None,
) -> int:
    """Layers of a scattering network that are enough for a share (1 − ε) of a band-limited signal's energy.

    Wavelets and Weyl–Heisenberg filters: N ≥ ⌈log_a(L / (1 − (1−ε)^{1/2l}))⌉, with L/R for L for the latter. General
    filters: N ≥ ⌈(L / (δ (1 − (1−ε)^{1/2l})))^{1/α} − 1⌉, α = 1 for d = 1 and log2 √(d/(d − ½)) otherwise. [Recalled
    from 1704.03636.] At d = 2 the general bound is vacuous (371 layers for a quarter). Of signals without a band
    limit the energy may decay arbitrarily slowly (Führ and Getter, 2406.05121). ReLU, learned filters and batch norm
    are outside the theorem: beside a CNN this is a reference, not a bound.

    Args:
        share: 1 − ε, in (0, 1).
        filters: "wavelets", "weyl_heisenberg" or "general".
        bandwidth: L.
        scale: R or δ.
        dimension: d of the signal, for "general".
        smoothness: l > ⌊d/2⌋ + 1 of the theorem; just above by default.

    Raises:
        ValueError: for a share out of range or an unknown kind of filters.

    Example:
        >>> [scattering_depth(share) for share in (0.25, 0.5, 0.75, 0.9, 0.95, 0.99)]
        [2, 3, 4, 6, 8, 11]
    """
    require_choice("kind of filters", filters, (*GROWTH, "general"))
    if not 0 < share < 1 or dimension < 1 or not bandwidth > 0 or not scale > 0:
        raise ValueError(
            f"share = {share}, dimension = {dimension}, bandwidth = {bandwidth}, scale = {scale}: expected a share "
            "between 0 and 1 and positive numbers."
        )
    bound = dimension // 2 + 1 if filters == "general" else 1
    l = bound + 1e-4 if smoothness is None else smoothness
    missing = 1 - float(share ** (1 / (2 * l)))
    if filters in GROWTH:
        band = bandwidth / scale if filters == "weyl_heisenberg" else bandwidth
        return max(0, math.ceil(math.log(band / missing, GROWTH[filters])))
    alpha = 1.0 if dimension == 1 else math.log2(math.sqrt(dimension / (dimension - 0.5)))
    return max(0, math.ceil(float((bandwidth / (scale * missing)) ** (1 / alpha)) - 1))
