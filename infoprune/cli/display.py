"""What every command shares: consoles, progress, and how failures end."""

import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn, TextIO, cast

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from infoprune.errors import RunError, UserError, told

# torchrun numbers the processes that it starts; only the first shows how far the job is and what came of it.
PROCESS = int(os.environ.get("RANK", "0")) if "TORCHELASTIC_RUN_ID" in os.environ else 0
# Seconds between plain lines where no terminal can show a bar.
EVERY = 10.0
out = Console()
err = Console(stderr=True)


class Display:
    """Draws how far a command is: a line per step, and a bar with the remaining time for what takes long.

    Without a terminal, plain lines stand for the bar, one every `EVERY` seconds.

    Args:
        quiet: show nothing.
        clock: seconds, for tests.
    """

    def __init__(self, quiet: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self.quiet, self.clock = quiet or PROCESS > 0, clock
        columns = (
            TextColumn("  {task.description}"),
            BarColumn(),
            TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self.bars = Progress(*columns, console=err, transient=True, disable=self.quiet or not err.is_terminal)
        self._task: Any = None
        self._what, self._counted = "", False
        self._step = self._begun = self._said = clock()
        self._first = 0

    def __enter__(self) -> "Display":
        self.bars.start()
        self._show("starting", 0, 0)
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def step(self, name: str, state: str) -> None:
        """A step is "running", "done" or "up to date"."""
        self._show(name if state == "running" else "working", 0, 0)
        if state == "running":
            self._step = self.clock()
            if not err.is_terminal:
                self._print(f"  {name} …")
        else:
            took = self.clock() - self._step
            said = f" [dim]({state})[/]" if state != "done" else f" [dim]{duration(took)}[/]" if took >= 1 else ""
            self._print(f"[green]✓[/] {name}{said}")

    def advance(self, what: str, done: int, total: int) -> None:
        """A long step got this far; `total` is 0 where nobody knows."""
        self._show(what, done, total)
        now = self.clock()
        if err.is_terminal or not self._first < done < total or now - self._said < EVERY:
            return
        left = (now - self._begun) / (done - self._first) * (total - done)
        self._print(f"  {what}: {done} of {total}, {duration(left)} left")
        self._said = now

    def _show(self, what: str, done: int, total: int) -> None:
        # Begun again with the first figure, so that the rate is this process's own where a step is resumed.
        if what != self._what or self._task is None or bool(total) != self._counted:
            if self._task is not None:
                self.bars.remove_task(self._task)
            self._what, self._counted, self._first = what, bool(total), done
            self._begun = self._said = self.clock()
            self._task = self.bars.add_task(what, total=total or None, count="")
        self.bars.update(self._task, completed=done, total=total or None, count=f"{done}/{total}" if total else "")

    def _print(self, text: str) -> None:
        if not self.quiet:
            err.print(text, highlight=False)


def duration(seconds: float) -> str:
    """A time as one says it.

    >>> duration(7.4), duration(200), duration(7400)
    ('7 s', '3 min 20 s', '2 h 3 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


@contextmanager
def failures(known: Mapping[str, Any]) -> Iterator[None]:
    """A user's mistake ends with exit code 2 and a message, a failed run with 1; anything else is a bug of ours.

    A user's own code that calls `exit` makes a mistake too: whatever it meant to say, nobody would hear it. So does
    code that raises what `except Exception` does not catch, but for what Python itself ends programs and generators by.

    Args:
        known: what the command has said of itself until then: whether it is "verbose".
    """
    try:
        yield
    except (UserError, RunError, SystemExit) as error:
        if known.get("verbose"):
            traceback.print_exc()
        _end(error)
    except (Exception, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:
        if known.get("verbose"):
            traceback.print_exc()
        _end(RunError(f"code of your own raised {told(error)}; raise a subclass of Exception instead, or catch it"))


def _end(error: UserError | RunError | SystemExit) -> NoReturn:
    words = str(error)
    if isinstance(error, SystemExit):
        words = f"code of your own ended the process by {told(error)}; raise an error instead, or take the call out"
    who = f"process {PROCESS}: " if PROCESS else ""
    err.print(f"[bold red]error:[/] {who}{escape(words)}", highlight=False, soft_wrap=True)
    sys.exit(1 if isinstance(error, RunError) else 2)


class _Unwritable(Exception):
    """Standard output takes no more."""

    def __init__(self, cause: OSError) -> None:
        super().__init__(cause.strerror)
        self.closed = isinstance(cause, BrokenPipeError)


class _Output:
    """A stream whose failures can be told from those of other files."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            raise _Unwritable(error) from error

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            raise _Unwritable(error) from error


@contextmanager
def standard_output() -> Iterator[None]:
    """Ends the process with exit code 1 where standard output takes no more: with a message, unless its reader left.

    Everything is written before the end, since nobody hears of what the interpreter cannot write after it.
    """
    before = sys.stdout
    if before is None:  # closed before this process began
        yield
        return
    guarded = _Output(before)
    sys.stdout = cast(TextIO, guarded)
    try:
        try:
            yield
        finally:
            guarded.flush()
    except _Unwritable as error:
        # What is left in the buffer would be tried again, and complained about, at the very end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), before.fileno())
        if error.closed:
            sys.exit(1)
        _end(RunError(f"cannot write to standard output: {error}; make room there, or send it elsewhere"))
    finally:
        sys.stdout = before
