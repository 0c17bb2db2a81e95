"""How results show themselves: as text, as a table of rich in a terminal, as HTML in a notebook."""

import html
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Table:
    """Rows of text under a title; names in them are text whatever they hold.

    >>> print(Table("Widths", ("group", "channels"), (("conv1", "16"), ("layer1.0.conv1", "9")), ("half of it",)))
    Widths
    group           channels
    conv1                 16
    layer1.0.conv1         9
    half of it

    Attributes:
        title: a line above.
        columns: their heads.
        rows: a cell per column; numbers are set to the right.
        notes: lines below.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()

    def __str__(self) -> str:
        widths = [max(map(len, column)) for column in zip(self.columns, *self.rows, strict=True)]
        align = [str.rjust if right else str.ljust for right in self._right()]
        lines = [
            "  ".join(set_(cell, width) for set_, cell, width in zip(align, row, widths, strict=True)).rstrip()
            for row in (self.columns, *self.rows)
        ]
        return "\n".join([self.title, *lines, *self.notes])

    def __rich__(self) -> Any:
        from rich import box
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(title=Text(self.title), box=box.SIMPLE, caption=Text("\n".join(self.notes)))
        for number, (name, right) in enumerate(zip(self.columns, self._right(), strict=True)):
            table.add_column(Text(name), justify="right" if right else "left", no_wrap=right or number == 0)
        for row in self.rows:
            table.add_row(*map(Text, row))
        return table

    def _repr_html_(self) -> str:
        right = self._right()

        def line(tag: str, cells: Sequence[str]) -> str:
            styled = zip(cells, right, strict=True)
            return "".join(
                f'<{tag} style="text-align: {"right" if to_right else "left"}">{html.escape(cell)}</{tag}>'
                for cell, to_right in styled
            )

        body = "".join(f"<tr>{line('td', row)}</tr>" for row in self.rows)
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self.notes)
        return (
            f"<table><caption>{html.escape(self.title)}</caption><thead><tr>{line('th', self.columns)}</tr></thead>"
            f"<tbody>{body}</tbody></table>{notes}"
        )

    def _right(self) -> list[bool]:
        """For each column, whether it holds numbers."""
        columns = zip(*self.rows, strict=True) if self.rows else [()] * len(self.columns)
        return [any(column) and all(re.match(r"[-+]?\.?\d|$", cell) for cell in column) for column in columns]


class Tabular(ABC):
    """What has a table of itself shows that wherever it is shown; `repr` stays what Python makes of it."""

    def __init_subclass__(cls) -> None:
        # IPython takes the first class with a repr, such as a dataclass has, unless it has this of its own as well.
        cls._repr_pretty_ = Tabular._repr_pretty_  # type: ignore[method-assign]

    @abstractmethod
    def table(self) -> Table:
        """The object as rows of text."""

    def __str__(self) -> str:
        return str(self.table())

    def __rich__(self) -> Any:
        return self.table().__rich__()

    def _repr_html_(self) -> str:
        return self.table()._repr_html_()

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """For IPython in a terminal."""
        printer.text(str(self))


def short(number: float) -> str:
    """Three digits and a unit.

    >>> short(3287116), short(712)
    ('3.29 M', '712')
    """
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.0f}"


def size(count: int) -> str:
    """A number of bytes.

    >>> size(3287116), size(712)
    ('3.29 MB', '712 B')
    """
    return f"{short(count)}B" if count >= 1000 else f"{count} B"


def milliseconds(median: float, half: float) -> str:
    """As many decimals as leave three digits or so.

    >>> milliseconds(0.8217, 0.021), milliseconds(304.14, 55.5)
    ('0.82 ± 0.02 ms', '304 ± 56 ms')
    """
    decimals = 2 if median < 10 else 1 if median < 100 else 0
    return f"{median:.{decimals}f} ± {half:.{decimals}f} ms"
