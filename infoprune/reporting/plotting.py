"""The report's figures of one finding or plan, for a notebook or a file of their own."""

import html
import re
from dataclasses import dataclass
from pathlib import Path

from infoprune.analyses.base import Finding
from infoprune.planning.plan import Plan
from infoprune.reporting.canvas import Drawing
from infoprune.reporting.figures import of_finding
from infoprune.reporting.figures.network import kept

# In a notebook the page is the notebook's: the figures bring their colours, and a ground that these are made for.
PLACE = "infoprune-figures"


@dataclass(frozen=True)
class Figures:
    """Figures that a notebook shows.

    Attributes:
        title: what they are of.
        drawings: the figures, each with its caption.
    """

    title: str
    drawings: tuple[Drawing, ...]

    def __len__(self) -> int:
        return len(self.drawings)

    def _repr_html_(self) -> str:
        figures = "".join(
            f"<figure>{drawing.svg}<figcaption>{html.escape(drawing.caption)}</figcaption></figure>"
            for drawing in self.drawings
        )
        rules = f".{PLACE} {{ background: var(--page); color: var(--ink); padding: 1em }}"
        rules += f" .{PLACE} svg {{ max-width: 100%; height: auto }}"
        return f'<div class="{PLACE}"><style>{_colours()} {rules}</style>{figures}</div>'

    def save(self, path: Path | str) -> Path:
        """Writes the figures as one page that needs nothing else.

        Args:
            path: the file, by custom `*.html`.
        """
        page = f"<!doctype html><meta charset=utf-8><title>{html.escape(self.title)}</title>{self._repr_html_()}"
        Path(path).write_text(page, encoding="utf-8")
        return Path(path)


def plot(shown: Finding | Plan) -> Figures:
    """The figures that the report has on a finding, or on the widths of a plan.

    Args:
        shown: what to draw.
    """
    if isinstance(shown, Finding):
        return Figures(f"Finding of {shown.analysis}", tuple(of_finding(shown)))
    drawn = kept([("kept", shown)])
    return Figures("Plan", () if drawn is None else (Drawing("Share of each channel group that is kept.", drawn),))


def _colours() -> str:
    """The page's colours, light and dark, for the place of the figures alone."""
    style = (Path(__file__).parent / "style.css").read_text(encoding="utf-8")
    start = re.match(r":root \{.*?\}\s*@media \(prefers-color-scheme: dark\) \{\s*:root \{.*?\}\s*\}", style, re.DOTALL)
    assert start is not None, "style.css begins with the colours"
    return start.group().replace(":root", f".{PLACE}")
