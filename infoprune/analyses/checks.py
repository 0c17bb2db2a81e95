"""Analyses of a user's own, looked over: what one lacks, and what fails in it, is said as a mistake to fix."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from infoprune.analyses.base import Analysis, Finding
from infoprune.config import registry
from infoprune.errors import RunError, UserError, out_of_memory, told

PARTS = ("observes", "needs_gradients", "needs_labels", "observe", "conclude")


def make_analysis(name: str, options: Mapping[str, Any]) -> Analysis:
    """An analysis with these options, complete as far as can be seen before it runs.

    >>> make_analysis("random", {"seed": 3}).seed
    3

    Raises:
        UserError: where its constructor refuses or fails, or a part of an analysis is missing.
    """
    kind = registry.find("analyses", name)
    try:
        made: Analysis = kind(**options)
    except Exception as error:
        if _ours(kind) or isinstance(error, UserError):
            raise
        raise UserError(f"[analyses] '{name}' fails with {dict(options)}: {told(error)}; fix it") from error
    check_analysis(made, name)
    return made


def check_analysis(analysis: object, name: str) -> None:
    """Refuses what is no analysis.

    Raises:
        UserError: where a part is missing, or it observes something else than kinds of modules.
    """
    lacking = [part for part in PARTS if not hasattr(analysis, part)]
    if lacking:
        raise UserError(
            f"analysis '{name}', a {type(analysis).__name__}, lacks {', '.join(lacking)}; an analysis has "
            f"{', '.join(PARTS)}"
        )
    observes: Any = getattr(analysis, "observes", ())
    kinds = observes if isinstance(observes, tuple) else (observes,)
    if not all(isinstance(kind, type) and issubclass(kind, nn.Module) for kind in kinds):
        raise UserError(
            f"analysis '{name}': observes is {observes!r}; expected kinds of modules, such as (nn.Conv2d, nn.Linear)"
        )


@contextmanager
def telling(analysis: Analysis, where: str) -> Iterator[None]:
    """Says where an analysis failed: what the mathematics refuses, and any failure in a user's own code.

    A failure of another kind in an analysis of ours is a fault of ours and passes, as does memory that runs out.

    Args:
        analysis: whose code runs.
        where: the layer and batch, for the message.

    Raises:
        UserError: in place of what came.
    """
    try:
        yield
    except Exception as error:
        ours = _ours(type(analysis))
        if isinstance(error, UserError) or (ours and isinstance(error, (ValueError, ArithmeticError))):
            # The mathematics names what is wrong with its tensors, but not whose tensors they are.
            raise UserError(f"{name_of(analysis)}, {where}: {error}") from error
        if ours or isinstance(error, RunError) or (out_of_memory(error) and not isinstance(error, ValueError)):
            raise
        raise UserError(f"{name_of(analysis)}, {where}: {told(error)}; fix it") from error


def conclude(analysis: Analysis) -> Finding:
    """What an analysis finds, of the types that planning takes for granted.

    Raises:
        UserError: where a user's own fails, or gives something else.
    """
    if _ours(type(analysis)):
        return analysis.conclude()
    with telling(analysis, "at its conclusion"):
        found: Any = analysis.conclude()
        if not isinstance(found, Finding):
            raise UserError(f"came {type(found).__name__}; expected a Finding")
        for layer, scores in found.importance.items():
            if not isinstance(scores, Tensor) or scores.dim() != 1 or scores.is_complex():
                came = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
                raise UserError(f"importance of '{layer}' is {came}; expected a tensor, one real score per filter")
        for layer, width in found.widths.items():
            if type(width) is not int or width < 1:
                raise UserError(f"the width of '{layer}' is {width!r}; expected a whole number from 1 on")
    return found


def name_of(analysis: Analysis) -> str:
    """What messages call it.

    >>> name_of(make_analysis("l2", {}))
    'l2'
    """
    return registry.snake_case(type(analysis).__name__)


def _ours(kind: object) -> bool:
    return str(getattr(kind, "__module__", "")).startswith("infoprune.")
