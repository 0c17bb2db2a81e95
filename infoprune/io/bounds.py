"""Bounds on the networks that a file makes this process build and run.

A checkpoint's header takes a few bytes to ask for a network of any size. It gets one that the file can be the rest of:
about as many tensors as the file holds, each at least as large as the file's, and no more numbers than a multiple.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_buffer_registration_hook,
    register_module_parameter_registration_hook,
)
from torch.nn.parameter import is_lazy

from infoprune.errors import UserError
from infoprune.graph.layers import PRODUCERS
from infoprune.planning.plan import Plan
from infoprune.utils.module_mode import evaluating

# An unpruned network may hold as many numbers whatever its file holds (a VGG-16 has 138 million), and otherwise at most
# as many times those of the file. The same for its tensors, of which removed blocks leave none.
NUMBERS, TIMES_NUMBERS = 150_000_000, 100
TENSORS, TIMES_TENSORS = 1_000, 10
# What a forward pass of one sample may put out in all, and multiply: a ResNet-50 on 1536 x 1536 pixels stays below.
OUTPUTS, MACS = 1 << 31, 1 << 40
REMEDY = "use an intact checkpoint, or load one whose origin you trust by infoprune.load(path, trust_code=True)"


class BeyondBounds(UserError):
    """What a file asks for is refused for its size."""


@contextmanager
def building(tensors: Mapping[str, Tensor], source: str) -> Iterator[None]:
    """Stops the building of a network as soon as it is larger than what a file's tensors can be left of.

    Weights count when a module is given them, which layers do before they initialise them.

    Args:
        tensors: what the file holds.
        source: the file, for the message.

    Raises:
        BeyondBounds: in the midst of the network's constructor.
    """
    numbers = max(NUMBERS, TIMES_NUMBERS * sum(tensor.numel() for tensor in tensors.values()))
    most = TENSORS + TIMES_TENSORS * len(tensors)
    thread, asked, size = threading.get_ident(), 0, 0

    def count(module: nn.Module, name: str, given: Tensor | None) -> None:
        nonlocal asked, size
        if given is None or threading.get_ident() != thread:
            return
        asked, size = asked + 1, size + (0 if is_lazy(given) else given.numel())
        if asked > most or size > numbers:
            raise BeyondBounds(
                f"'{source}' asks for a network of more than {most:,} tensors or {numbers:,} numbers, but holds "
                f"{len(tensors):,} tensors; {REMEDY}"
            )

    with ExitStack() as hooks:
        hooks.callback(register_module_parameter_registration_hook(count).remove)
        hooks.callback(register_module_buffer_registration_hook(count).remove)
        yield


def check_rest(model: nn.Module, plan: Plan, tensors: Mapping[str, Tensor], source: str) -> None:
    """Refuses tensors that no pruning by a plan leaves of a network, before the plan is replayed.

    Args:
        model: the unpruned network.
        plan: what was pruned.
        tensors: what the file holds.
        source: the file, for the message.

    Raises:
        UserError: where tensors are missing, unknown, or larger than the network's.
    """
    own, removed = model.state_dict(), tuple(f"{block}." for block in plan.removed)
    needed = {name for name in own if not name.startswith(removed) and not name.endswith("num_batches_tracked")}
    larger = {name for name, value in tensors.items() if name in own and not _within(value.shape, own[name].shape)}
    for problem, names in (
        ("lacks", needed - tensors.keys()),
        ("has unknown", tensors.keys() - own.keys()),
        ("holds more than the unpruned network of", larger),
    ):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise UserError(
                f"weights '{source}' {problem} {', '.join(sorted(names)[:3])}{more}; check that [model] describes the "
                "architecture these weights were pruned from"
            )


def _within(smaller: Sequence[int], larger: Sequence[int]) -> bool:
    return len(smaller) == len(larger) and all(a <= b for a, b in zip(smaller, larger, strict=True))


def check_forward(model: nn.Module, plan: Plan, source: str) -> None:
    """Refuses a plan whose input makes a network's forward pass very large; found without computing it.

    Args:
        model: the unpruned network; not touched.
        plan: says the shape of one sample.
        source: the file, for the message.

    Raises:
        BeyondBounds: for more outputs or products than a forward pass may have.
    """
    outputs = macs = 0

    def count(module: nn.Module, _: Any, output: Any) -> None:
        nonlocal outputs, macs
        made = output.numel() if isinstance(output, Tensor) else 0
        outputs += made
        macs += made * module.weight[0].numel() if isinstance(module, PRODUCERS) else 0
        if outputs > OUTPUTS or macs > MACS:
            raise BeyondBounds(
                f"'{source}' has a plan for inputs of shape {plan.input_shape}, on which a forward pass puts out more "
                f"than {OUTPUTS:,} numbers or multiplies more than {MACS:,}; {REMEDY}"
            )

    if not plan.input_shape or min(plan.input_shape) < 1:
        return  # replaying the plan says so
    with ExitStack() as stack:
        stack.enter_context(evaluating(model))
        stack.enter_context(torch.no_grad())
        for module in model.modules():
            if not [*module.children()]:
                stack.callback(module.register_forward_hook(count).remove)
        kind = next((each.dtype for each in model.parameters()), torch.float32)
        weights = {name: each.to("meta") for name, each in (*model.named_parameters(), *model.named_buffers())}
        try:
            example = torch.empty(1, *plan.input_shape, device="meta", dtype=kind)
            torch.func.functional_call(model, weights, (example,))
        except BeyondBounds:
            raise
        except Exception:  # a forward that looks at its numbers, or does not fit its input: replaying the plan says so
            return
