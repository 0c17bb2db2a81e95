"""What a layer reads as rows of numbers, and its refit by ridge regression from running sums over them."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

# Relative to the mean variance of the inputs. The smallest is as good as none in float64, the largest leaves only the
# directions that vary most; steps of ten would change the held-out error by a few per cent at most.
STRENGTHS = (1e-9, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)


CHUNK_BYTES = 1 << 27  # of unfolded patches at a time; larger chunks are no faster


@dataclass(frozen=True)
class Call:
    """What a layer read on one batch, and how.

    Attributes:
        x: the tensor that was convolved or multiplied (after any padding that the module does itself).
        function: "conv1d", "conv2d" or "linear".
        options: stride, padding, dilation and groups as they were passed.
    """

    x: Tensor
    function: str
    options: Mapping[str, Any]


class Capture(TorchFunctionMode):
    """Notes what is convolved or multiplied with one weight, at the function that does it.

    The module's attributes would not do: subclasses and padding modes pad before the call.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight
        self.calls: list[Call] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        name = getattr(func, "__name__", "")
        if name in ("conv1d", "conv2d", "linear"):
            names = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
            given = {**dict(zip(names, args, strict=False)), **(kwargs or {})}
            if given.get("weight") is self.weight:
                options = {option: given[option] for option in names[3:] if option in given}
                # Copied, since an in-place operation may follow before it is used.
                self.calls.append(Call(given["input"].detach().clone(), name, options))
        return func(*args, **(kwargs or {}))


def rows(
    call: Call, target: Tensor, weight: Tensor, groups: int, positions: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """A few samples at a time: inputs `groups x inputs x samples x positions` and targets alike.

    Neighbouring positions of one image say much the same, so at most `positions` of each, drawn at random, are used;
    the products of the rows are what refitting takes most of its time for.
    """
    x = call.x
    if call.function == "linear":  # Rows are along all axes but the last.
        x, target = (values.reshape(len(values), -1, values.shape[-1]).transpose(1, 2) for values in (x, target))
    target = target.flatten(2)
    step = max(1, CHUNK_BYTES // (weight[0].numel() * groups * target[0, 0].numel() * 8))
    for start in range(0, len(x), step):
        some, wanted = x[start : start + step], target[start : start + step]
        read = some if call.function == "linear" else _unfold(some, weight, call.options)
        if 0 < positions < read.shape[2]:
            # Drawn on the CPU, so that every device draws the same.
            drawn = torch.rand(len(read), read.shape[2], generator=generator).topk(positions).indices.unsqueeze(1)
            drawn = drawn.to(read.device)
            read, wanted = (values.gather(2, drawn.expand(-1, values.shape[1], -1)) for values in (read, wanted))
        yield _grouped(read, groups), _grouped(wanted, groups)


def _grouped(values: Tensor, groups: int) -> Tensor:
    samples, _, positions = values.shape
    return values.double().reshape(samples, groups, -1, positions).permute(1, 2, 0, 3)


def _unfold(x: Tensor, weight: Tensor, options: Mapping[str, Any]) -> Tensor:
    """What each output position reads: `samples x (channels · kernel) x positions`."""
    dims = weight.dim() - 2

    def each(name: str, default: int) -> list[int]:
        value = options.get(name, default)
        return [value] * dims if isinstance(value, int) else [int(one) for one in value]

    stride, dilation, kernel = each("stride", 1), each("dilation", 1), list(weight.shape[2:])
    if isinstance(options.get("padding"), str):
        total = [d * (k - 1) if options["padding"] == "same" else 0 for d, k in zip(dilation, kernel, strict=True)]
        before, after = [t // 2 for t in total], [t - t // 2 for t in total]
    else:
        before = after = each("padding", 0)
    x = F.pad(x, [side for pair in zip(reversed(before), reversed(after), strict=True) for side in pair])
    if dims == 1:
        x, kernel, stride, dilation = x.unsqueeze(2), [1, *kernel], [1, *stride], [1, *dilation]
    if kernel == [1, 1]:
        return x[:, :, :: stride[0], :: stride[1]].flatten(2)
    return F.unfold(x, tuple(kernel), tuple(dilation), stride=tuple(stride))


class Moments:
    """Running sums that a least-squares fit of `y ≈ A x + b` needs, in float64, for each of g groups of a layer.

    Sums of samples add up over batches and over processes alike. Memory: 8·g·k² bytes for `xx`, 8·g·k·c for `xy`.

    Attributes:
        count: number of rows (samples x positions) so far.
        x: `g x k`. y: `g x c`. xx: `g x k x k`. xy: `g x k x c`. yy: `g x c`, sums of squares.
    """

    def __init__(self, groups: int, inputs: int, outputs: int, device: torch.device | str = "cpu") -> None:
        def zeros(*shape: int) -> Tensor:
            return torch.zeros(groups, *shape, dtype=torch.float64, device=device)

        self.count = 0
        self.x, self.y, self.yy = zeros(inputs), zeros(outputs), zeros(outputs)
        self.xx, self.xy = zeros(inputs, inputs), zeros(inputs, outputs)

    def add(self, x: Tensor, y: Tensor) -> None:
        """Adds rows: `x` is `groups x inputs x rows`, `y` is `groups x outputs x rows`, of any float type."""
        x, y = x.double(), y.double()
        self.count += x.shape[-1]
        self.x += x.sum(-1)
        self.y += y.sum(-1)
        self.yy += y.square().sum(-1)
        self.xx += x @ x.transpose(1, 2)
        self.xy += x @ y.transpose(1, 2)

    def __add__(self, other: "Moments") -> "Moments":
        total = Moments(0, 0, 0)
        for name, value in vars(self).items():
            setattr(total, name, value + getattr(other, name))
        return total

    def subset(self, columns: Tensor) -> "Moments":
        """The same sums for some of the inputs."""
        some = Moments(0, 0, 0)
        some.count, some.y, some.yy = self.count, self.y, self.yy
        some.x, some.xy = self.x[:, columns], self.xy[:, columns]
        some.xx = self.xx[:, columns][:, :, columns]
        return some

    def centred(self, intercept: bool) -> tuple[Tensor, Tensor]:
        """Mean of x xᵀ and of x yᵀ, about their means where the fit has an intercept."""
        n = max(self.count, 1)
        xx, xy = self.xx / n, self.xy / n
        if intercept:
            xx = xx - (self.x / n).unsqueeze(2) * (self.x / n).unsqueeze(1)
            xy = xy - (self.x / n).unsqueeze(2) * (self.y / n).unsqueeze(1)
        return xx, xy

    def error(self, weight: Tensor, bias: Tensor) -> float:
        """Mean squared error of a map, `g x c x k` and `g x c`, summed over outputs, from the sums alone."""
        n = max(self.count, 1)
        fitted = weight @ self.xx
        # Σ (y − A x − b)² = Σ y² − 2 A·Σxy + A·Σxx·Aᵀ + 2 b (A Σx − Σy) + n b²
        square = (fitted * weight).sum() - 2 * (weight * self.xy.transpose(1, 2)).sum() + self.yy.sum()
        offset = torch.einsum("gck,gk->gc", weight, self.x) - self.y
        return max(float(square + 2 * (bias * offset).sum() + n * bias.square().sum()) / n, 0.0)


@dataclass(frozen=True)
class Fit:
    """A refitted linear map and how it came about.

    Attributes:
        weight: `groups x outputs x inputs`, float64.
        bias: `groups x outputs`, float64.
        strength: ridge strength relative to the mean variance of the inputs; infinite where the old map was best.
        error_before, error_after: mean squared error on the held-out rows, over the mean square of the target; after
            is that of the map fitted without the held-out rows, so that it is an honest one.
    """

    weight: Tensor
    bias: Tensor
    strength: float
    error_before: float
    error_after: float

    def spread(self, columns: Tensor, inputs: int) -> "Fit":
        """The same map with zeros for inputs that it does not have."""
        weight = self.weight.new_zeros(*self.weight.shape[:2], inputs)
        weight[:, :, columns] = self.weight
        return replace(self, weight=weight)


def fit(
    train: Moments,
    held_out: Moments,
    weight: Tensor,
    bias: Tensor,
    *,
    intercept: bool = True,
    strengths: Sequence[float] = STRENGTHS,
) -> Fit:
    """Ridge regression that shrinks towards the given map, with the strength of least held-out error.

    min over A, b of  Σ |y − A x − b|² + n λ m |A − A₀|²,  m the mean variance of x: with X = Σ(x−x̄)(x−x̄)ᵀ / n and
    Y = Σ(x−x̄)(y−ȳ)ᵀ / n, Aᵀ = (X + λ m I)⁻¹ (Y + λ m A₀ᵀ) and b = ȳ − A x̄ (Hoerl and Kennard, "Ridge regression",
    Technometrics 12, 1970, equation 2.1, about A₀ instead of 0). Shrinking towards A₀ makes λ → ∞ the map as it was.

    The chosen strength is then fitted once more on all rows. The old map is a candidate too: the held-out error never
    rises.

    Args:
        train, held_out: sums of the rows for fitting and for choosing; an empty `held_out` takes the median strength.
        weight: the map as it is, `groups x outputs x inputs`.
        bias: `groups x outputs`.
        intercept: whether `b` may change; otherwise it stays as given.
        strengths: candidates for λ.
    """
    weight, bias = weight.double(), bias.double()
    scale = max(float(held_out.yy.sum()) / max(held_out.count, 1), torch.finfo(torch.float64).tiny)
    before = held_out.error(weight, bias)
    if not held_out.count:
        strengths = sorted(strengths)[len(strengths) // 2 :][:1]
    best, best_strength = before if held_out.count else float("inf"), float("inf")
    for strength in strengths:
        solved = _solve(train, weight, bias, strength, intercept)
        if solved is not None and (error := held_out.error(*solved)) < best:
            best, best_strength = error, strength
    chosen = None
    if best_strength < float("inf"):
        chosen = _solve(train + held_out, weight, bias, best_strength, intercept)
    new_weight, new_bias = chosen if chosen is not None else (weight, bias)
    return Fit(new_weight, new_bias, best_strength, before / scale, best / scale)


def _solve(
    moments: Moments, weight: Tensor, bias: Tensor, strength: float, intercept: bool
) -> tuple[Tensor, Tensor] | None:
    """The ridge solution for one strength; `None` where rounding makes the normal matrix indefinite."""
    n = max(moments.count, 1)
    xx, xy = moments.centred(intercept)
    if not intercept:
        xy = xy - (moments.x / n).unsqueeze(2) * bias.unsqueeze(1)
    diagonal = xx.diagonal(dim1=1, dim2=2)
    # Where all inputs of a group are constant any strength will do, as long as the matrix can be factored.
    load = (strength * diagonal.mean(1)).clamp_min(1e-30).view(-1, 1, 1)
    diagonal += load.squeeze(2)
    factor, failed = torch.linalg.cholesky_ex(xx)
    if bool(failed.any()):
        return None
    solved = torch.cholesky_solve(xy + load * weight.transpose(1, 2), factor).transpose(1, 2)
    if intercept:
        bias = moments.y / n - torch.einsum("gck,gk->gc", solved, moments.x / n)
    return solved, bias
