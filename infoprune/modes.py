"""A model's mode, put back after a while in evaluation."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def mode_kept(model: nn.Module) -> Iterator[None]:
    """Puts every module's own mode back at the end: users freeze some of them, so one flag for all will not do."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, the model's own modes afterwards.

    >>> layer = nn.Dropout().train()
    >>> with evaluating(layer):
    ...     print(layer.training)
    False
    >>> layer.training
    True
    """
    with mode_kept(model):
        model.eval()
        yield
