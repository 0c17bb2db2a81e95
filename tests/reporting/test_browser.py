"""The report as a browser shows it: nothing overflows, every figure is there, and nothing that a user names runs."""

import html
import json
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

from infoprune.evaluation.metrics import EpochRecord
from infoprune.planning.plan import GroupPlan, Plan
from infoprune.reporting.contents import LayerChange, ReportContents
from infoprune.reporting.report import report, report_side_by_side
from tests.reporting.test_figures import cells, found, stretched
from tests.reporting.test_report import stage

CHROMIUM = os.environ.get("CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable"))), None
)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium found: install one, or set CHROMIUM to its path")

RUNS = "parent.ran = 1; alert(1)"
HOSTILE = f'</code></svg><script>{RUNS}</script><img src=x onerror="{RUNS}">'
WIDTHS = (360, 1200)

# Loads the page at each width, opens what is folded, and writes down what there is to see.
MEASURING = """<body><script>
const widths = %s, seen = [];
const done = () => document.body.textContent = "MEASURED" + JSON.stringify({ran: window.ran === 1, seen}) + "END";
for (const width of widths) {
  const frame = document.createElement("iframe");
  frame.style.cssText = `width:${width}px;height:900px;border:0`;
  frame.onload = () => {
    const page = frame.contentDocument, root = page.documentElement;
    page.querySelectorAll("details").forEach(each => each.open = true);
    const boxes = [...page.querySelectorAll("svg")].map(each => each.getBoundingClientRect());
    seen.push({
      width, over: root.scrollWidth - root.clientWidth, figures: boxes.length,
      least: Math.min(...boxes.map(box => Math.min(box.width, box.height))),
      text: Math.min(...[...page.querySelectorAll("svg text")].map(each => each.getBoundingClientRect().height)),
      scripts: page.scripts.length, images: page.images.length, title: page.title,
      // A box that scrolls may hold more than the page is wide; nothing else may.
      wide: [...page.querySelectorAll("main *")].filter(each =>
        each.getBoundingClientRect().right > root.clientWidth + 1 && !each.closest(".scroll, pre, svg")).length,
    });
    if (seen.length == widths.length) done();
  };
  frame.src = "%s";
  document.body.append(frame);
}
</script></body>"""


def shown(page: Path) -> dict[str, object]:
    """What a browser makes of a page."""
    frame = page.with_name("frame.html")
    frame.write_text(MEASURING % (json.dumps(WIDTHS), page.name))
    switches = "--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --disable-quic"
    command = [str(CHROMIUM), *switches.split(), "--disable-component-update", "--disable-sync"]
    command += [f"--user-data-dir={page.with_name('profile')}", "--allow-file-access-from-files"]
    command += ["--window-size=1300,1000", "--virtual-time-budget=20000", "--dump-dom", frame.as_uri()]
    dumped = subprocess.run(command, capture_output=True, text=True, timeout=400, check=True).stdout
    return json.loads(html.unescape(dumped.partition("MEASURED")[2].partition("END")[0]))


@cache
def contents(layers: int) -> ReportContents:
    """A run with every analysis, compared and fine-tuned, whose layers bear the worst of names."""
    names = [f"features.denseblock{i}.{HOSTILE if i == 1 else 'denselayer'}.conv" for i in range(layers)]
    groups = tuple(GroupPlan(name, (0, 1, 2), 6, 3, 2000, 1000, f"because {HOSTILE}") for name in names)
    plane = {step: stretched(found()["information_plane"], names) for step in (0, 10)}
    return ReportContents(
        title=f"job {HOSTILE}",
        recipe_text=f'[model]\nname = "{HOSTILE}"\n# ' + "long " * 80,
        plan=Plan(groups, {f"head {HOSTILE}": "the network's output"}, 40_000, 20_000, (1, 8, 8), (HOSTILE,)),
        metrics={"base": stage(0.98, 4, 1.0), "pruned": stage(0.5, 2, 0.5), "finetuned": stage(0.97, 2, 0.5)},
        layers=[LayerChange(name, 6, 3, 2000, 1000, name) for name in names],
        findings=[stretched(finding, names) for finding in found().values()],
        cells=cells(),
        history=[EpochRecord(epoch, 0.1, 0.5, 0.8, 0.4, 0.9, 2.0) for epoch in range(3)],
        planes=plane,
        versions={"torch": HOSTILE},
    )


@pytest.mark.parametrize("layers", [3, 150])
def test_a_report_fits_a_phone_and_a_desk(tmp_path: Path, layers: int) -> None:
    page = report(tmp_path / "report.html", contents(layers))
    assert page.stat().st_size < 40e6
    check(shown(page), page.read_text(encoding="utf-8").count("<svg "), f"job {HOSTILE} – pruning report")


def test_two_runs_side_by_side_fit_too(tmp_path: Path) -> None:
    page = report_side_by_side(tmp_path / "pair.html", [contents(3), contents(3)])
    title = f"job {HOSTILE} (1) and job {HOSTILE} (2) – pruning report"
    check(shown(page), page.read_text(encoding="utf-8").count("<svg "), title)


def check(found: dict[str, object], figures: int, title: str) -> None:
    """What holds at every width."""
    assert found["ran"] is False
    rows = found["seen"]
    assert isinstance(rows, list)
    assert [row["width"] for row in sorted(rows, key=lambda row: row["width"])] == list(WIDTHS)
    for row in rows:
        assert (row["over"], row["wide"]) == (0, 0), row
        assert (row["scripts"], row["images"]) == (0, 0)
        assert row["title"] == title
        assert row["figures"] == figures > 0
        assert row["least"] > 20
        assert row["text"] >= 6
