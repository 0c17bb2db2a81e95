"""What several model families share: activations by name, and checked numbers of widths."""

from collections.abc import Sequence
from typing import Literal

from torch import nn

from infoprune.errors import UserError

Activation = Literal["relu", "sigmoid", "tanh"]
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh}


def module_of(family: str, name: str) -> type[nn.Module]:
    """The module behind a name.

    Raises:
        UserError: for any other name.
    """
    if name not in ACTIVATIONS:
        raise UserError(f"{family} got activation '{name}'; expected {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def widths_of(family: str, given: Sequence[int] | None, usual: Sequence[int], option: str = "widths") -> list[int]:
    """The given widths, or the usual ones, of which there must be as many.

    Raises:
        UserError: for another number of them.
    """
    widths = list(usual if given is None else given)
    if len(widths) != len(usual):
        raise UserError(f"{family} got {option} {widths}; expected {len(usual)} numbers, such as {list(usual)}")
    return widths


def initialise(model: nn.Module, name: str) -> None:
    """He's initialisation for "relu", Glorot's for what saturates on both sides; biases at 0."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            if name == "relu":
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            else:
                gain = 4.0 if name == "sigmoid" else 1.0  # a sigmoid's slope at 0 is a quarter
                nn.init.xavier_uniform_(module.weight, gain=gain)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
