"""The model card says what was measured, and nothing that a user named can be more than text in it."""

import html
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from infoprune.config import recipe
from infoprune.errors import RunError
from infoprune.evaluation.metrics import Latency, ModelReference, StageMetrics, Verification
from infoprune.exporting.model_card import Origin, model_card, plain
from infoprune.exporting.results import ExportResult
from infoprune.io import storage
from infoprune.pipeline.context import Context, open_run
from infoprune.pipeline.run import run_until
from infoprune.pipeline.steps.evaluate import metrics as metrics_of
from infoprune.pipeline.steps.export import exports as exports_of
from infoprune.planning.plan import GroupPlan, Plan

EVIL = "<script>alert(1)</script> | `x` ![a](http://b) <img src=x onerror=alert(1)>\n\n# head"
FILE = ExportResult("state_dict", "float16", Path("export/model-float16.safetensors"), 1234, 0.1, 0.01, (4,), 0.875)


def origin(text: str) -> Origin:
    plan = Plan(
        (GroupPlan(text, (0,), 4, 1, 100, 25, text),), {text: text}, 100, 25, (3, 8, 8), notes=(text,), removed=(text,)
    )
    metrics = {"base": StageMetrics(0.93, 0.2, 10, 100, 40, Latency(1, 0.1, 1, "cpu", 1))}
    reference = ModelReference(f"{text}:net", {text: text})
    proof = Verification(1e-7, 2e-7, text)
    return Origin(text, text, reference, plan, metrics, proof, f"[run]\n\nseed = 0 # {text}", {text: text})


def test_it_says_what_was_measured_and_where_it_came_from() -> None:
    known = origin("mine")
    card = model_card(replace(known, reference=ModelReference("lenet")), [FILE], "CC-BY-4.0")
    for words in (
        "# mine",
        "| licence | CC-BY-4.0 |",
        "| base | 93.00% | 0.2 | 10 | 100 | 40 |",
        "| `model-float16.safetensors` | weights, float16 | 1,234 | 1.0e-02 | 87.50% |",
        'model = infoprune.load("model-float16.safetensors")',
        "| multiply-accumulates per sample | 100 → 25 (25.0%) |",
        "| mine | 4 → 1 | mine |",
        "seed = 0 # mine",
        "samples x 3 x 8 x 8",
    ):
        assert words in card, words
    assert "not stated" in model_card(known, [FILE])
    assert 'load("model-float16.safetensors", the_unpruned_model)' in model_card(known, [FILE])


def test_a_users_words_are_text_for_every_reader() -> None:
    card = model_card(origin(EVIL), [FILE], EVIL)
    tags = ("<script", "<img")
    assert not any(tag in card for tag in tags)
    rendered = MarkdownIt("commonmark", {"html": True}).enable("table").render(card)
    assert not any(tag in rendered for tag in tags)
    assert "<a " not in rendered
    # Structure is the card's alone: its own headings, and rows with as many cells as their heads.
    assert rendered.count("<h1>") == 1
    assert rendered.count("<h2>") == model_card(origin("mine"), [FILE]).count("\n## ")
    assert rendered.count("<td") == MarkdownIt().enable("table").render(model_card(origin("x"), [FILE])).count("<td")


@given(st.text())
def test_any_text_is_one_cell_and_no_tag(text: str) -> None:
    rendered = (
        MarkdownIt("commonmark", {"html": True}).enable("table").render(f"| a | b |\n|---|---|\n| x | {plain(text)} |")
    )
    assert set(re.findall(r"<(\w+)", rendered)) == {"table", "thead", "tbody", "tr", "th", "td"}
    assert rendered.count("<td>") == 2
    shown = html.unescape(re.findall(r"<td>(.*?)</td>", rendered, re.DOTALL)[1])
    assert shown.split() == text.replace("\0", "\ufffd").split()


QUICK = ["finetune.epochs=0", "plan.allocation=uniform", "calibration.batches=2", "evaluate.latency_repeats=2"]
QUICK += ["evaluate.latency_warmup=1", "repair.method=none"]


def test_the_step_leaves_a_card_and_drops_files_of_another_network(tmp_path: Path) -> None:
    def run(*overrides: str) -> Context:
        job = open_run(recipe.read("digits", [*QUICK, *overrides]), tmp_path)
        run_until(job, "export")
        return job

    first = run('export.formats=["state_dict","source"]', 'export.dtypes=["float16"]', "export.license=MIT")
    folder = tmp_path / "export"
    assert {path.name for path in folder.iterdir()} == {
        "MODEL_CARD.md",
        "export.json",
        "model-float16.safetensors",
        "model.py",
    }
    rows = storage.read_json(folder / "export.json")["files"]
    assert [row["bytes"] for row in rows] == [(folder / row["path"]).stat().st_size for row in rows]
    rounded = exports_of(first)[0]
    assert rounded.accuracy == pytest.approx(metrics_of(first)["finetuned"].accuracy, abs=0.02)
    card = (folder / "MODEL_CARD.md").read_text()
    assert "| licence | MIT |" in card
    assert f"| {rounded.bytes:,} |" in card
    second = run("plan.macs=0.8", 'export.formats=["state_dict"]')
    assert {path.name for path in folder.iterdir()} == {"MODEL_CARD.md", "export.json", "model.safetensors"}
    assert exports_of(second)[0].path == folder / "model.safetensors"


def test_a_failed_export_keeps_the_files_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def job(*overrides: str) -> Context:
        return open_run(recipe.read("digits", [*QUICK, 'export.formats=["state_dict"]', *overrides]), tmp_path)

    run_until(job(), "export")
    before = {path.name: path.read_bytes() for path in (tmp_path / "export").iterdir()}
    monkeypatch.setattr("infoprune.pipeline.steps.export.model_card", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_until(job("export.license=other"), "export")
    monkeypatch.setattr("infoprune.exporting.export.compare", lambda *_: (_ for _ in ()).throw(RunError("it differs")))
    with pytest.raises(RunError, match="it differs"):
        run_until(job("plan.macs=0.8"), "export")
    assert {path.name: path.read_bytes() for path in (tmp_path / "export").iterdir()} == before
