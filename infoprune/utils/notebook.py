"""Progress in a notebook: one output that is written again as the job goes on, without widgets."""

import html
import sys
import time
from collections.abc import Callable
from typing import Any

INTERVAL = 0.2  # seconds between two writings: more often is more than anybody sees


class Bars:
    """Steps that are done, and a bar with the time left for what is being done.

    `infoprune.run` shows one by itself in a notebook. For a single function, `Bars().of("finetune")` is
    what it takes as its callback.
    """

    def __init__(self) -> None:
        from IPython.display import HTML, display

        self._html: Callable[[str], Any] = HTML
        self._output = display(HTML(""), display_id=True)
        self._done: list[str] = []
        self._began: dict[str, float] = {}
        self._shown = 0.0

    def step(self, name: str, state: str) -> None:
        """A step is "running", "done" or "up to date"."""
        self._began.clear()
        if state != "running":
            self._done.append(f"✓ {name}" + ("" if state == "done" else f" ({state})"))
        self._write([f"{name} …"] if state == "running" else [])

    def advance(self, what: str, done: int, total: int = 0) -> None:
        """A long step got this far; `total` is 0 where nobody knows."""
        now = time.monotonic()
        began = self._began.setdefault(what, now)
        if now - self._shown < INTERVAL and done != total:
            return
        left = ""
        if total and done and now > began:
            seconds = round((now - began) / done * (total - done))
            left = f", {seconds // 60}:{seconds % 60:02d} left"
        self._write([f"{what} {done}" + (f" of {total}{left}" if total else "")], (done, total) if total else None)

    def of(self, what: str) -> Callable[..., None]:
        """A callback for one function: called with how much is done and, where that is known, of how much."""
        return lambda done, total=0: self.advance(what, done, total)

    def _write(self, going: list[str], bar: tuple[int, int] | None = None) -> None:
        self._shown = time.monotonic()
        lines = "<br>".join(html.escape(line) for line in [*self._done, *going])
        drawn = "" if bar is None else f' <progress value="{bar[0]}" max="{bar[1]}"></progress>'
        self._output.update(self._html(f"<div>{lines}{drawn}</div>"))


def bars_in_notebook() -> Bars | None:
    """Bars where this code runs in a notebook; `None` anywhere else."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return Bars() if getattr(shell, "kernel", None) is not None else None
