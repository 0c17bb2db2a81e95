"""The two kinds of failure a user can meet, and how those of others become one of them."""

import errno
import re
import sysconfig
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path

# What libraries say, beside torch's OutOfMemoryError, where a tensor is larger than memory or than 64 bits can count.
TOO_LARGE = re.compile(
    # torch; the operating system; the standard library of C++
    "out of memory|can(no|')t allocate memory|storage size calculation overflowed|overflow when unpacking|bad[_ ]alloc"
    "|unable to allocate|could not allocate"  # NumPy, shared memory
    # oneDNN; what it says of a primitive's descriptor is about arguments, not about memory
    "|could not create a (primitive(?! desc)|memory)|could not execute a primitive"
    "|failed to allocate memory|alloc_failed",  # ONNX Runtime; cuDNN and cuBLAS
    re.IGNORECASE,
)

# Names that a message lists.
MOST_NAMES = 20


class UserError(ValueError):
    """A mistake in what was asked for: the message says what came, what was expected and what to do (exit code 2)."""


class RunError(RuntimeError):
    """A failure while doing what was asked for, such as a verification that does not hold (exit code 1)."""


@contextmanager
def shortages(
    doing: str,
    remedy: str = "make room or fix the permissions, and run the same command again: it goes on from the last artifact",
) -> Iterator[None]:
    """What runs out while something is done, memory or disk, ends with what to do about it.

    Other failures pass. What was written before stays, so the same command goes on there.

    >>> with shortages("repair"):
    ...     raise MemoryError
    Traceback (most recent call last):
    infoprune.errors.UserError: repair: out of memory; lower ... and run the same command again

    Args:
        doing: what is done, for the message.
        remedy: what to do where a file cannot be read or written.

    Raises:
        UserError: where memory ran out, or a file could not be read or written.
    """
    try:
        yield
    except (UserError, RunError):
        raise
    except OSError as error:
        if error.errno == errno.ENOMEM:
            raise _memory_ran_out(doing, error) from error
        where = f" '{error.filename}'" if error.filename else ""
        raise UserError(f"{doing}: {error.strerror or error}{where}; {remedy}") from error
    except Exception as error:  # every library has an exception of its own for it
        if not out_of_memory(error):
            raise
        raise _memory_ran_out(doing, error) from error


def _memory_ran_out(doing: str, error: BaseException) -> UserError:
    words = " ".join(str(error).split())
    return UserError(
        f"{doing}: out of memory{f' ({words[:200]})' if words else ''}; lower [run] batch_size, [calibration] "
        "batch_size, or cache_mb and inputs_limit of [repair], and run the same command again"
    )


def out_of_memory(error: BaseException) -> bool:
    """Whether a failure says that a tensor is larger than memory.

    >>> out_of_memory(RuntimeError("could not create a primitive"))
    True
    >>> out_of_memory(RuntimeError("could not create a primitive descriptor for a convolution"))
    False
    """
    return isinstance(error, MemoryError) or TOO_LARGE.search(str(error)) is not None


@contextmanager
def users_code(what: str, remedy: str) -> Iterator[None]:
    """A failure in a user's own code ends with what it was, where, and what to do; memory that ran out passes.

    >>> with users_code("loss = 'own:loss'", "fix the function"):
    ...     raise KeyError("width")
    Traceback (most recent call last):
    infoprune.errors.UserError: loss = 'own:loss' fails: KeyError: 'width' (...); fix the function

    Args:
        what: the code, as the user named it.
        remedy: what to do, for the message.

    Raises:
        UserError: where the code raises anything, `SystemExit` too.
    """
    try:
        yield
    except (UserError, RunError):
        raise
    except (Exception, SystemExit) as error:
        if out_of_memory(error) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
            raise
        raise UserError(f"{what} fails: {told(error)}; {remedy}") from error


def told(error: BaseException) -> str:
    """What a failure in a user's own code was, and where.

    >>> try:
    ...     {}["width"]
    ... except KeyError as error:
    ...     told(error)
    "KeyError: 'width' (<doctest infoprune.errors.told[0]>, line 2)"
    """
    frames = list(traceback.extract_tb(error.__traceback__))
    if isinstance(error, SystemExit):  # raised by `exit` or argparse; who called them is wanted
        library = (sysconfig.get_path("stdlib"), "<frozen ")
        frames = [each for each in frames if "-packages" in each.filename or not each.filename.startswith(library)]
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}{f': {words}' if words else ''}{'' if isinstance(error, SyntaxError) else where}"


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
    more = f", … and {len(known) - MOST_NAMES} more" if len(known) > MOST_NAMES else ""
    return f"; known: {', '.join(known[:MOST_NAMES]) or 'none'}{more}"
