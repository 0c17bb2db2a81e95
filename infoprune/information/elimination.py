"""Backward elimination of Gaussian variables by what each still says about a response, with rank updates.

For jointly Gaussian T and R the response left over by the kept variables has the covariance
Σ_{R|S} = Σ_RR − Σ_RS Σ_SS⁻¹ Σ_SR, the error of the best linear compensation, and

    I(T_i; R | T_{S−i}) = ½ log2 det(Σ_{R|S−i} + νI) / det(Σ_{R|S} + νI)

in bits, where ν is the variance of the noise in which the response is seen: without it a response that is a function
of its inputs, as a layer's is, would make every information infinite (and every redundancy exact).
With P = Σ_SS⁻¹ and the coefficients β = Σ_RS P, taking out a block i adds β_i P_ii⁻¹ β_iᵀ to Σ_{R|S} (the step of
Hassibi and Stork, "Optimal brain surgeon", NIPS 1992, for blocks), so that one elimination costs one inversion.
"""

import math
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from infoprune.information.validation import require_choice, require_finite, require_positive, require_square

Criterion = Literal["information", "error"]
RIDGE = 1e-6
"""Added to every variable, relative to the mean variance: copies have no inverse, and what is less is rounding."""


class Elimination(NamedTuple):
    """The order in which variables went, and what each took along; the last entries belong to the most needed."""

    order: Int[Tensor, " c"]
    cost: Float64[Tensor, " c"]
    """What each in `order` took along by the criterion: I(T_i; R | those still kept) in bits, or as `error`."""
    error: Float64[Tensor, " c"]
    """Rise of the response's mean squared error by each in `order`, as a share of its variance."""
    given_all: Float64[Tensor, " c"]
    """The cost of each variable (by variable, not in `order`) while all others are kept."""
    unexplained: float
    """Share of the response's variance that not even all variables explain linearly."""


class _State(NamedTuple):
    precision: Float64[Tensor, "d d"]
    coefficients: Float64[Tensor, "k d"]
    """β."""
    weighted: Float64[Tensor, "k d"]
    """(Σ_{R|S} + νI)⁻¹ β; only β itself where the error decides."""


def backward_elimination(
    variables: Float64[Tensor, "d d"],
    cross: Float64[Tensor, "d k"],
    response: Float64[Tensor, "k k"],
    *,
    block: int = 1,
    noise: float = 0.01,
    criterion: str = "information",
) -> Elimination:
    """Takes out, one after another, the variable that costs the response least, until none is left.

    Args:
        variables: covariance of T; each variable is `block` neighbouring rows (the taps of one input channel).
        cross: covariance of T with R.
        response: covariance of R.
        block: rows per variable.
        noise: ν, as a share of the response's mean variance.
        criterion: "information", or "error": the trace in place of the determinant, which is the information about
            a response seen in overwhelming noise, and the squared error that a refit leaves.

    Raises:
        ValueError: for shapes that do not fit, NaN or Inf, or an option out of range.

    Example:
        >>> copies = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]).double()  # T_2 = T_1
        >>> sum_of_all = copies.sum(1, keepdim=True)
        >>> found = backward_elimination(copies, sum_of_all, sum_of_all.sum(0, keepdim=True))
        >>> found.order.tolist(), found.error.round(decimals=3).tolist()  # a copy goes for nothing
        ([0, 2, 1], [0.0, 0.2, 0.8])
    """
    require_choice("criterion", criterion, ("information", "error"))
    count, variance = _checked(variables, cross, response, block, noise)
    total = len(response) * variance
    state, left = _start(variables, cross, response, noise * variance, criterion)
    alive = torch.ones(count, dtype=torch.bool, device=cross.device)
    order, costs, errors, given_all = list[int](), list[float](), list[float](), torch.empty(0)
    for step in range(count):
        cost, error = _costs(state, total, block, alive, criterion)
        given_all = given_all if step else cost
        best = int(cost.argmin())  # the first of equals, so that the order is unique
        order.append(best)
        costs.append(float(cost[best]))
        errors.append(float(error[best]))
        alive[best] = False
        state = _without(state, best, block, criterion)
    taken = torch.tensor([costs, errors], dtype=torch.float64)
    unexplained = max(0.0, float(left.trace())) / total
    return Elimination(torch.tensor(order), taken[0], taken[1], given_all.cpu(), unexplained)


def rises_along(
    variables: Float64[Tensor, "d d"],
    cross: Float64[Tensor, "d k"],
    response: Float64[Tensor, "k k"],
    order: Int[Tensor, " c"],
    *,
    block: int = 1,
) -> Float64[Tensor, " c"]:
    """Rise of the response's error, as a share of its variance, until each variable of a given order has gone.

    One Cholesky factor in place of an elimination: what an order found on all rows costs on some of them.

    Raises:
        ValueError: as ``backward_elimination``.

    Example:
        >>> rises_along(torch.eye(2).double(), torch.eye(2).double(), torch.eye(2).double(), torch.tensor([1, 0]))
        tensor([0.5000, 1.0000], dtype=torch.float64)
    """
    count, variance = _checked(variables, cross, response, block, 1.0)
    # The most needed first: row j of L⁻¹ Σ_TR holds what variable j explains beyond those before it.
    taps = torch.arange(count * block, device=cross.device).view(count, block)[order.to(cross.device).flip(0)].flatten()
    factor = torch.linalg.cholesky(_ridged(variables)[taps][:, taps])
    beyond = torch.linalg.solve_triangular(factor, cross[taps], upper=False).square().sum(1)
    rises: Tensor = beyond.view(count, block).sum(1).flip(0).cumsum(0) / (len(response) * variance)
    return rises


def _ridged(variables: Float64[Tensor, "d d"]) -> Float64[Tensor, "d d"]:
    mean = float(variables.diagonal().mean())
    eye = torch.eye(len(variables), dtype=torch.float64, device=variables.device)
    return (variables + variables.mT) / 2 + RIDGE * (mean if mean > 0 else 1.0) * eye


def _checked(
    variables: Float64[Tensor, "d d"],
    cross: Float64[Tensor, "d k"],
    response: Float64[Tensor, "k k"],
    block: int,
    noise: float,
) -> tuple[int, float]:
    size = require_square(tuple(variables.shape), "the variables' covariance")
    require_positive("noise", noise)
    for values in (variables, cross, response):
        require_finite(torch.isfinite(values).all(), "covariances")
    if block < 1 or size % block:
        raise ValueError(f"block = {block} for {size} rows: expected a divisor of the number of rows.")
    # A response that never changes has nothing to be told; 1 stands for its variance, and every share is 0.
    variance = float(response.trace()) / len(response)
    return size // block, variance if variance > 0 else 1.0


def _start(
    variables: Float64[Tensor, "d d"],
    cross: Float64[Tensor, "d k"],
    response: Float64[Tensor, "k k"],
    noise: float,
    criterion: str,
) -> tuple[_State, Float64[Tensor, "k k"]]:
    """The state with every variable in, and Σ_{R|all}."""
    precision = torch.cholesky_inverse(torch.linalg.cholesky(_ridged(variables)))
    coefficients = cross.mT @ precision
    left = response - coefficients @ cross
    left = (left + left.mT) / 2
    weighted = coefficients
    if criterion == "information":
        values, vectors = torch.linalg.eigh(left)
        # Rounding can leave a response that is fully explained with a variance slightly below zero.
        weighted = vectors @ ((vectors.mT @ coefficients) / (values.clamp_min(0) + noise)[:, None])
    return _State(precision, coefficients, weighted), left


def _costs(
    state: _State, total: float, block: int, alive: Bool[Tensor, " c"], criterion: str
) -> tuple[Float64[Tensor, " c"], Float64[Tensor, " c"]]:
    """½ log2 det(1 + P_ii⁻¹ β_iᵀ Σ⁻¹ β_i) and tr(P_ii⁻¹ β_iᵀ β_i) / total of every kept variable."""
    k, count = len(state.coefficients), len(alive)
    taps = torch.arange(count * block, device=alive.device).view(count, block)
    own = state.precision[taps[:, :, None], taps[:, None, :]]
    own[~alive] = torch.eye(block, dtype=own.dtype, device=own.device)
    factor = torch.linalg.cholesky(own)
    beta = state.coefficients.view(k, count, block).permute(1, 0, 2)
    seen = beta.mT @ beta
    error = torch.cholesky_solve(seen, factor).diagonal(dim1=1, dim2=2).sum(1).clamp_min(0) / total
    cost = error
    if criterion == "information":
        seen = beta.mT @ state.weighted.view(k, count, block).permute(1, 0, 2)
        inner = torch.linalg.solve_triangular(factor, (seen + seen.mT) / 2, upper=False)
        inner = torch.linalg.solve_triangular(factor, inner.mT, upper=False)
        inner.diagonal(dim1=1, dim2=2).add_(1)
        cost = (torch.logdet(inner) / (2 * math.log(2))).clamp_min(0)
    return cost.masked_fill(~alive, math.inf), error.masked_fill(~alive, math.inf)


def _without(state: _State, gone: int, block: int, criterion: str) -> _State:
    """The state after one block has gone; its rows become zero."""
    rows = slice(gone * block, (gone + 1) * block)
    own, column = state.precision[rows, rows], state.precision[rows]
    beta, seen = state.coefficients[:, rows], state.weighted[:, rows]
    share = torch.linalg.solve(own, column)
    coefficients = state.coefficients - beta @ share
    weighted = coefficients
    if criterion == "information":
        # Woodbury: Σ_{R|S} has grown by β_i P_ii⁻¹ β_iᵀ.
        weighted = state.weighted - seen @ share
        weighted = weighted - seen @ torch.linalg.solve(own + beta.mT @ seen, beta.mT @ weighted)
    precision = state.precision - column.mT @ share
    precision[rows] = 0
    precision[:, rows] = 0
    coefficients[:, rows] = 0
    return _State(precision, coefficients, weighted)
