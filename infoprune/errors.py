"""The two kinds of failure a user can meet."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """A mistake in what was asked for: the message says what came, what was expected and what to do (exit code 2)."""


class RunError(RuntimeError):
    """A failure while doing what was asked for, such as a verification that does not hold (exit code 1)."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name.

    >>> did_you_mean("epoch", ["epochs", "lr"])
    "; did you mean 'epochs'?"
    >>> did_you_mean("zzz", ["epochs", "lr"])
    '; known: epochs, lr'
    """
    known = sorted(known)
    close = get_close_matches(word, known, n=1)
    if close:
        return f"; did you mean '{close[0]}'?"
    return f"; known: {', '.join(known) or 'none'}"
