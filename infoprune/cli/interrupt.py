"""Ctrl-C: what is done is kept, one line says how to go on, and the process does end."""

import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any

from infoprune.cli.display import PROCESS

INTERRUPTED = 130
# Seconds that a step has to remove its temporary files.
GRACE = 5.0


def farewell(known: Mapping[str, Any]) -> str:
    """The line that says how to go on.

    Args:
        known: what the command has said of itself until then: its "run" directory, once there is one.
    """
    kept = f"; what is done is in {known['run']}, and the same command again goes on" if "run" in known else ""
    return f"interrupted{kept}"


@contextmanager
def interruptible(known: Mapping[str, Any]) -> Iterator[None]:
    """Ends the process on Ctrl-C, also where a KeyboardInterrupt would be lost.

    Libraries that catch everything, above all around imports, swallow it and go on half-loaded. So the process ends at
    once as long as there is no run directory, and some seconds later where a step did not end by itself. That is safe
    at any moment: artifacts are written whole or not at all. A second Ctrl-C ends it at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    owner, came = os.getpid(), threading.Event()

    def leave() -> None:
        # Neither Python's streams nor a bar that is being drawn can be relied on here.
        if not PROCESS:
            shown = "\x1b[?25h\r\x1b[2K" if sys.stderr.isatty() else ""  # the cursor, and an empty line
            os.write(2, f"{shown}{farewell(known)}\n".encode())
        os._exit(INTERRUPTED)

    def on_signal(number: int, frame: FrameType | None) -> None:
        if os.getpid() == owner:
            if came.is_set() or "run" not in known:
                leave()
            came.set()
            late = threading.Timer(GRACE, leave)
            late.daemon = True
            late.start()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, on_signal)
    try:
        yield
    except BaseException as error:
        # Whatever became of the interrupt on its way, or code that raises one itself.
        if came.is_set() or isinstance(error, KeyboardInterrupt):
            leave()
        raise
    finally:
        signal.signal(signal.SIGINT, before)
