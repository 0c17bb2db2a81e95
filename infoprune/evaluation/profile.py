"""What a model costs: parameters, multiply-accumulates, and the time of one forward pass."""

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

import torch
from msgspec import Meta
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from infoprune.config.ranges import BatchSize, Repeats, in_range
from infoprune.errors import UserError
from infoprune.evaluation.metrics import Latency
from infoprune.utils.module_mode import evaluating

Warmup = Annotated[int, Meta(ge=0, le=1_000_000)]


@dataclass(frozen=True)
class Profile:
    """What a model costs.

    Attributes:
        parameters: number of trainable and frozen parameters; shared ones count once, buffers do not count.
        macs: multiply-accumulates per sample of convolutions and matrix products.
        latency: time of one forward pass.
    """

    parameters: int
    macs: int
    latency: Latency


@in_range("[evaluate]")
def profile(
    model: nn.Module,
    example: Tensor,
    *,
    latency_batch: BatchSize = 1,
    latency_repeats: Repeats = 50,
    latency_warmup: Warmup = 10,
) -> Profile:
    """Counts parameters and multiply-accumulates and times the forward pass; the model stays as it was.

    Args:
        model: any module that maps one tensor of samples to outputs.
        example: a batch of real inputs, `samples x channels x height x width`; one sample is enough.
        latency_batch: number of samples in one timed forward pass.
        latency_repeats: number of timed forward passes.
        latency_warmup: number of forward passes before the timed ones.

    Raises:
        UserError: for an empty example or an option out of range.
    """
    _check(example)
    # Cycling through the samples keeps the values real, on which the time of a CPU depends (denormals).
    timed = example[torch.arange(latency_batch, device=example.device) % len(example)]
    return Profile(
        parameters=count_parameters(model),
        macs=count_macs(model, example),
        latency=measure_latency(model, timed, repeats=latency_repeats, warmup=latency_warmup),
    )


def count_parameters(model: nn.Module) -> int:
    """Number of trainable and frozen parameters; shared ones count once, buffers do not count.

    >>> count_parameters(nn.Conv2d(3, 8, kernel_size=3))
    224
    """
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module, example: Tensor) -> int:
    """Multiply-accumulates of one sample's forward pass in evaluation mode.

    Convention: one multiply-accumulate is two of the floating-point operations that `torch.utils.flop_counter` counts,
    at the operators themselves: every convolution, matrix product and attention, as a module or as a function.
    Biases, norms, activations, pooling and elementwise products count nothing, zeros in weights count as any number.

    >>> count_macs(nn.Conv2d(3, 8, kernel_size=3, padding=1), torch.zeros(4, 3, 10, 10))  # 8 * 3 * 3*3 * 10*10
    21600

    Args:
        model: any module that maps one tensor of samples to outputs; it stays as it was.
        example: `samples x channels x height x width`; the first sample is used.

    Raises:
        UserError: for an empty example.
    """
    _check(example)
    counter = FlopCounterMode(display=False)
    # no_grad, not inference_mode: there a linear layer arrives as one operator which the counter has no formula for.
    with evaluating(model), torch.no_grad(), counter:
        model(_on_the_models_device(model, example[:1]))
    return int(counter.get_total_flops()) // 2


@in_range("measure_latency:")
def measure_latency(model: nn.Module, example: Tensor, *, repeats: Repeats = 50, warmup: Warmup = 10) -> Latency:
    """Time of one forward pass on `example` in evaluation mode, on the device where the model is.

    It is the time that a caller waits: on an accelerator from an idle device to a finished result. On a CPU denormal
    numbers are flushed to zero meanwhile, since a few of them, common in pruned and decayed weights, slow a pass down
    tenfold and would be measured in place of the model.

    Args:
        model: any module that maps one tensor of samples to outputs; it stays as it was.
        example: the batch to time, `samples x channels x height x width`.
        repeats: number of timed forward passes.
        warmup: number of forward passes before the timed ones, which pay for allocation and kernel choice.

    Raises:
        UserError: for an empty example or an option out of range.
    """
    _check(example)
    example = _on_the_models_device(model, example)
    with evaluating(model), torch.no_grad(), _flushing_denormals():
        milliseconds = [_time(model, example) for _ in range(warmup + repeats)][warmup:]
    low, median, high = _quartiles(milliseconds)
    return Latency(
        median=median,
        iqr=high - low,
        batch=len(example),
        device=_name(example.device),
        threads=torch.get_num_threads(),
    )


def _time(model: nn.Module, example: Tensor) -> float:
    """Milliseconds of one forward pass."""
    _synchronize(example.device)
    start = time.perf_counter()
    model(example)
    _synchronize(example.device)
    return 1000 * (time.perf_counter() - start)


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _quartiles(values: list[float]) -> tuple[float, float, float]:
    if len(values) == 1:  # statistics.quantiles wants two
        return values[0], values[0], values[0]
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, median, high


def _name(device: torch.device) -> str:
    return f"{device} ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else str(device)


@contextmanager
def _flushing_denormals() -> Iterator[None]:
    """Denormals count as zero in this thread; torch has no getter for the setting, so it is found by trying."""
    before = bool(torch.tensor(1e-30) * torch.tensor(1e-10) == 0)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)


def _on_the_models_device(model: nn.Module, example: Tensor) -> Tensor:
    parameter = next(model.parameters(), None)
    return example if parameter is None else example.to(parameter.device)


def _check(example: Tensor) -> None:
    if not isinstance(example, Tensor) or example.dim() < 2 or len(example) == 0:
        came = f"a tensor of shape {tuple(example.shape)}" if isinstance(example, Tensor) else type(example).__name__
        raise UserError(f"the example is {came}; give a batch with at least one sample, such as 1 x 3 x 224 x 224")
