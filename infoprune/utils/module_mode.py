"""A model's mode, put back after a while in evaluation."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

from infoprune.errors import users_code


@contextmanager
def mode_kept(model: nn.Module) -> Iterator[None]:
    """Puts every module's own mode back at the end: users freeze some of them, so one flag for all will not do."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def set_mode(model: nn.Module, *, training: bool) -> None:
    """Training or evaluation mode, by the model's own `train` or `eval`.

    Raises:
        UserError: where that method of the model fails.
    """
    what = f"{type(model).__name__}.{'train' if training else 'eval'}()"
    with users_code(what, "fix the method, or leave it out: torch.nn.Module has one"):
        if training:
            model.train()
        else:
            model.eval()


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
        set_mode(model, training=False)
        yield
