"""The ranges of options: declared in signatures, put into words, and checked in calls.

A signature declares a range where it declares the option, as `Annotated[int, Meta(ge=1, le=1024)]` or by one of the
names below. A recipe's values are checked as it is read (`infoprune.config.recipe.bind`), those of a call in Python by
`in_range`. Upper bounds are far above any sensible use: they stop what would never end or overflow.
"""

import functools
import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from types import NoneType, UnionType
from typing import Annotated, Any, ParamSpec, TypeVar

from msgspec import Meta

from infoprune.errors import UserError

# Characters of a value in a message.
LONGEST = 200
P = ParamSpec("P")
R = TypeVar("R")

# Shares, probabilities and levels; which of the two ends they include.
Share = Annotated[float, Meta(ge=0, le=1)]
PositiveShare = Annotated[float, Meta(gt=0, le=1)]
ShareBelowOne = Annotated[float, Meta(ge=0, lt=1)]
ProperShare = Annotated[float, Meta(gt=0, lt=1)]
# Accuracy.
Points = Annotated[float, Meta(ge=0, le=100)]
# Training and repair.
Epochs = Annotated[int, Meta(ge=0, le=100_000)]
Steps = Annotated[int, Meta(ge=0, le=1_000_000)]
BatchSize = Annotated[int, Meta(ge=1, le=1_048_576)]
LearningRate = Annotated[float, Meta(ge=0, le=100)]
Positions = Annotated[int, Meta(ge=0, le=1_048_576)]
Mebibytes = Annotated[int, Meta(ge=0, le=16_777_216)]
Repeats = Annotated[int, Meta(ge=1, le=1_000_000)]
# What NumPy and scikit-learn take; torch takes more.
Seed = Annotated[int, Meta(ge=0, le=2**32 - 1)]
# Networks.
Width = Annotated[int, Meta(ge=1, le=65_536)]
Channels = Annotated[int, Meta(ge=1, le=65_536)]
Classes = Annotated[int, Meta(ge=1, le=1_000_000)]
# Data sets.
Pixels = Annotated[int, Meta(ge=1, le=8_192)]
Images = Annotated[int, Meta(ge=0, le=1_000_000_000)]
SetAside = Annotated[int, Meta(ge=1, le=1_000_000_000)]
Deviation = Annotated[float, Meta(ge=0.0001, le=100)]
Workers = Annotated[int, Meta(ge=0, le=1_024)]
# Information estimates.
Order = Annotated[float, Meta(gt=0, le=1_000)]
KernelFactor = Annotated[float, Meta(ge=0.0001, le=1_000_000)]
Permutations = Annotated[int, Meta(ge=0, le=100_000)]  # all orders of a batch are drawn before the first is used


def in_range(where: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Makes a function refuse arguments outside the ranges that its signature declares.

    >>> @in_range("[train]")
    ... def train(*, epochs: Epochs = 3) -> int:
    ...     return epochs
    >>> train(epochs=-1)
    Traceback (most recent call last):
    infoprune.errors.UserError: [train] epochs = -1: expected a whole number from 0 to 100,000

    Args:
        where: what stands before the option's name in messages, such as "[finetune]".
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        names = list(inspect.signature(function).parameters)

        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            check(function, where, {**dict(zip(names, args, strict=False)), **kwargs})
            return function(*args, **kwargs)

        return checked

    return decorate


def check(declaring: Callable[..., Any], where: str, values: Mapping[str, Any]) -> None:
    """Refuses numbers outside declared ranges; types are not checked.

    Args:
        declaring: a function or a dataclass whose annotations declare the ranges.
        where: what stands before the option's name in messages.
        values: by the name of the argument or field; names that are not declared pass.

    Raises:
        UserError: naming the first value that is outside, and its range.
    """
    hints = _hints(declaring)
    for name, value in values.items():
        if not _fits(hints.get(name), value):
            raise UserError(f"{where} {name} = {shown(value)}: expected {expected(hints[name])}")


@functools.cache
def _hints(declaring: Callable[..., Any]) -> dict[str, Any]:
    return typing.get_type_hints(declaring, include_extras=True)


def _fits(hint: Any, value: Any) -> bool:
    """Whether every number in a value lies in the range that a type hint declares at its place."""
    limits = limits_of(hint)
    if limits is not None:
        return not isinstance(value, Real) or _within(limits, value)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (list, Sequence):
        return not isinstance(value, list | tuple) or all(_fits(arguments[0], each) for each in value)
    if origin is dict:
        return not isinstance(value, Mapping) or all(_fits(arguments[1], each) for each in value.values())
    return all(_fits(argument, value) for argument in arguments)  # of a union; what is of another type fits


def _within(limits: Meta, number: Any) -> bool:
    """False for NaN, which no comparison holds for."""
    return (
        (limits.ge is None or number >= limits.ge)
        and (limits.gt is None or number > limits.gt)
        and (limits.le is None or number <= limits.le)
        and (limits.lt is None or number < limits.lt)
    )


def limits_of(hint: Any) -> Meta | None:
    """The range of an annotated number; `None` for any other type."""
    if typing.get_origin(hint) is not Annotated:
        return None
    return next((each for each in hint.__metadata__ if isinstance(each, Meta)), None)


def type_name(hint: Any) -> str:
    """A type hint as a user reads it.

    >>> type_name(typing.Literal["sgd", "adamw"]), type_name(int | None), type_name(list[int])
    ("'sgd' or 'adamw'", 'int or nothing', 'list of int')
    >>> type_name(Epochs), type_name(list[ProperShare])
    ('int, 0 to 100,000', 'list of float, each above 0 and below 1')
    """
    if (limits := limits_of(hint)) is not None:
        return f"{hint.__origin__.__name__}, {_span(limits)}"
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(repr(value) for value in typing.get_args(hint))
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) in (list, Sequence):
        return f"list of {type_name(arguments[0]).replace(', ', ', each ', 1)}"
    if typing.get_origin(hint) is dict:
        return f"table of {type_name(arguments[1])}"
    if arguments:
        return " or ".join(type_name(argument) for argument in arguments)
    return "nothing" if hint is NoneType else getattr(hint, "__name__", str(hint))


def expected(hint: Any) -> str:
    """What a value has to be, for messages; "nothing" is left out, which a recipe cannot write.

    >>> expected(Epochs | None), expected(ShareBelowOne)
    ('a whole number from 0 to 100,000', 'a number from 0 to below 1')
    >>> expected(list[ProperShare])
    'a list of numbers, each above 0 and below 1'
    """
    arguments = [argument for argument in typing.get_args(hint) if argument is not NoneType]
    if (limits := limits_of(hint)) is not None:
        return f"{'a whole number' if hint.__origin__ is int else 'a number'} {_from(limits)}"
    if typing.get_origin(hint) in (list, Sequence) and (limits := limits_of(arguments[0])) is not None:
        numbers = "whole numbers" if arguments[0].__origin__ is int else "numbers"
        return f"a list of {numbers}, each {_from(limits)}"
    if typing.get_origin(hint) is dict:
        return f"a table, each entry {expected(arguments[1])}"
    if typing.get_origin(hint) in (typing.Union, UnionType):
        return " or ".join(expected(argument) for argument in arguments)
    return "text" if hint is str else type_name(hint)


def shown(value: Any) -> str:
    """A value for a message, cut where it is long.

    >>> shown("x" * 1000)[-3:], len(shown("x" * 1000))
    ('xx…', 200)
    """
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _from(limits: Meta) -> str:
    return _span(limits) if limits.ge is None else f"from {_span(limits)}"


def _span(limits: Meta) -> str:
    """A range in words; both its ends are declared, as the tests make sure."""
    upper = f"{limits.le:,}" if limits.lt is None else f"below {limits.lt:,}"
    if limits.gt is None:
        return f"{limits.ge:,} to {upper}"
    return f"above {limits.gt:,} and {'up to ' if limits.lt is None else ''}{upper}"
