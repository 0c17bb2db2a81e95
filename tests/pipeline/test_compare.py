"""The grid: every cell once, controls of equal widths, resumable, and torch-pruning as it comes."""

import csv
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from infoprune.config import recipe
from infoprune.data.dataset import Batches
from infoprune.errors import UserError
from infoprune.evaluation.metrics import Cell
from infoprune.io import storage
from infoprune.models import cifar_resnet
from infoprune.pipeline import compare as comparing
from infoprune.pipeline.compare import RANDOM, SMALL, Comparison, compare
from infoprune.pipeline.context import Context, open_run
from infoprune.pipeline.run import run_until
from infoprune.pipeline.steps.evaluate import metrics as metrics_of
from infoprune.pipeline.steps.plan import planned
from infoprune.planning.planner import plan
from infoprune.pruning.baselines import CRITERIA, masks_of
from infoprune.pruning.channel_graph import channel_graph
from tests.cli.test_cli import call, user_files

GRID = ["compare.shares=[0.5]", "compare.seeds=2", "compare.criteria=['recipe', 'uniform.l1', 'torch_pruning.l2']"]


def job(folder: Path, *overrides: str) -> Context:
    path = user_files(folder)
    own = [f"model.name={folder / 'nets.py'}:net", f"data.name={folder / 'data.py'}:load", "plan.allocation=uniform"]
    return open_run(recipe.read(path, [*own, *GRID, *overrides]), folder / "run")


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The criteria of the cells that are measured."""
    seen: list[str] = []
    original = Comparison._cell

    def counting(self: Comparison, criterion: str, share: float, seed: int) -> Cell:
        seen.append(criterion)
        return original(self, criterion, share, seed)

    monkeypatch.setattr(Comparison, "_cell", counting)
    return seen


def test_every_cell_is_measured_once_and_written_down(tmp_path: Path, measured: list[str]) -> None:
    made = job(tmp_path)
    cells = compare(made, made.settings.compare)
    keys = [(cell.criterion, cell.seed) for cell in cells]
    assert keys == [
        ("recipe", 0),
        ("uniform.l1", 0),
        ("torch_pruning.l2", 0),
        (RANDOM, 0),
        (RANDOM, 1),
        ("uniform.l2", 0),
    ]
    whole = made.graph.macs({})
    for cell in cells:
        assert cell.macs <= 0.5 * whole
        assert 0 <= cell.cut <= 1
        assert 0 <= cell.repaired <= 1
        assert cell.finetuned is None
        assert cell.latency_ms > 0
    with (tmp_path / "run" / "compare.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["criterion"] for row in rows] == [criterion for criterion, _ in keys]
    assert [float(row["repaired"]) for row in rows] == [cell.repaired for cell in cells]
    # A cell that is missing is measured again, the others are not.
    kept = storage.read_json(tmp_path / "run" / "compare.json")
    again = job(tmp_path)
    again.directory.write_json("compare.json", {**kept, "cells": kept["cells"][:4] + kept["cells"][5:]})
    measured.clear()
    again = job(tmp_path)
    found = compare(again, again.settings.compare)
    assert measured == [RANDOM]
    assert [(c.criterion, c.seed, c.repaired) for c in found] == [(c.criterion, c.seed, c.repaired) for c in cells]
    # Options of one analysis concern the rows that go by it, others concern all.
    for override, stale in (
        ("plan.macs=0.9", []),  # every row has its own budget
        ("plan.rank_by=l1", ["recipe", RANDOM, RANDOM]),
        ("analyses.l2={}", ["recipe", RANDOM, RANDOM]),
        ("repair.scope=consumers", [criterion for criterion, _ in keys]),
    ):
        measured.clear()
        other = job(tmp_path, override)
        compare(other, other.settings.compare)
        assert measured == stale


def test_sensitivities_concern_the_rows_whose_widths_go_by_them(tmp_path: Path, measured: list[str]) -> None:
    by_sensitivity = ["plan.allocation=sensitivity", "compare.criteria=['recipe', 'l2', 'torch_pruning.l2']"]
    made = job(tmp_path, *by_sensitivity)
    compare(made, made.settings.compare)
    measured.clear()
    other = job(tmp_path, *by_sensitivity, "sensitivity.shares=[0.5, 0.1]")
    compare(other, other.settings.compare)
    assert measured == ["recipe", "l2", RANDOM, RANDOM]


def test_the_best_of_several_rankings_is_a_row_among_theirs(tmp_path: Path) -> None:
    among = ["l1", "taylor", "l1+taylor"]
    made = job(tmp_path, "plan.rank_by=best", f"choose.among={among}", f"compare.criteria={['recipe', *among]}")
    cells = {cell.criterion: cell for cell in compare(made, made.settings.compare) if cell.seed == 0}
    best = max(among, key=lambda name: cells[name].validation or 0.0)
    assert best != among[0], "or the first would do"
    assert cells["recipe"].repaired == cells[best].repaired
    assert cells["recipe"].validation == cells[best].validation
    assert cells["recipe"].macs == cells[best].macs == cells[RANDOM].macs


def test_fine_tuning_on_the_first_images_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def note(model: nn.Module, batches: Batches, *_: object, **__: object) -> None:
        seen.append(sum(len(labels) for _, labels in batches))

    monkeypatch.setattr(comparing, "finetune", note)
    one = ["compare.epochs=1", "compare.seeds=1", "compare.criteria=['recipe']", "compare.controls=false"]
    for images in (0, 7, 10**6):
        made = job(tmp_path, *one, f"compare.images={images}")
        compare(made, made.settings.compare)
    whole = len(made.data.train)
    assert whole > 7
    assert seen == [whole, 7, whole]


def test_joined_criteria_rank_by_all_of_them(tmp_path: Path) -> None:
    made = job(tmp_path)
    plans = [
        Comparison(made, made.settings.compare)._plan(f"uniform.{name}", 0.5, 0)[0] for name in ("l2", "l2+taylor")
    ]
    assert all("ranked highest by l2 and taylor" in group.reason for group in plans[1].groups if group.width_after > 1)
    assert not any("taylor" in group.reason for group in plans[0].groups)


def test_budgets_below_the_widths_that_were_measured_are_part_of_a_grid(tmp_path: Path) -> None:
    made = job(tmp_path, "plan.allocation=sensitivity", "sensitivity.shares=[0.9]")
    chosen, _ = Comparison(made, made.settings.compare)._plan("l2", 0.3, 0)
    assert chosen.macs_after <= 0.3 * chosen.macs_before
    assert any("so widths are uniform" in note for note in chosen.notes)


def test_controls_have_the_recipes_widths(tmp_path: Path) -> None:
    made = job(tmp_path)
    grid = Comparison(made, made.settings.compare)
    own, _ = grid._plan("recipe", 0.5, 0)
    first, _ = grid._plan(RANDOM, 0.5, 0)
    second, _ = grid._plan(RANDOM, 0.5, 1)
    widths = [[group.width_after for group in each.groups] for each in (own, first, second)]
    assert widths[0] == widths[1] == widths[2]
    assert first.kept() != second.kept()
    assert first.kept() == grid._plan(RANDOM, 0.5, 0)[0].kept()


def test_fine_tuned_cells_and_the_small_dense_network(tmp_path: Path) -> None:
    made = job(tmp_path, "compare.epochs=1", "compare.seeds=1", "compare.criteria=['recipe']", "compare.cut=false")
    cells = {cell.criterion: cell for cell in compare(made, made.settings.compare)}
    assert cells.keys() == {"recipe", RANDOM, "uniform.l2", SMALL}
    assert all(cell.cut is None and cell.finetuned is not None for cell in cells.values())
    assert cells[SMALL].repaired is None
    assert cells[SMALL].macs == cells["recipe"].macs
    assert cells[SMALL].parameters == cells["recipe"].parameters


@pytest.fixture
def resnet() -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    model = cifar_resnet.build(depth=8, widths=[8, 8, 8], shortcut="projection").eval()
    return model, [(torch.randn(8, 3, 8, 8), torch.arange(8) % 10)]


@pytest.mark.parametrize("criterion", CRITERIA)
def test_torch_pruning_as_it_comes(criterion: str, resnet: tuple[nn.Module, list[tuple[Tensor, Tensor]]]) -> None:
    model, batches = resnet
    state = {name: value.clone() for name, value in model.state_dict().items()}
    graph = channel_graph(model, batches[0][0])
    masks = masks_of(model, graph, batches, criterion, 0.5 * graph.macs({}))
    found = plan([], graph, masks=masks)
    assert 0.3 < found.macs_after / found.macs_before <= 0.5
    assert len({group.width_after for group in found.groups}) == 1, "one ratio for all"
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert not any(parameter.grad is not None for parameter in model.parameters())


def test_its_l2_is_l2(resnet: tuple[nn.Module, list[tuple[Tensor, Tensor]]]) -> None:
    model, batches = resnet
    graph = channel_graph(model, batches[0][0])
    inner = model.layer1[0].conv1
    with torch.no_grad():
        inner.weight[[1, 4]] *= 1e-3
        model.layer1[0].conv2.weight[:, [1, 4]] *= 1e-3
        model.layer1[0].bn1.weight[[1, 4]] *= 1e-3
    kept = masks_of(model, graph, batches, "l2", 0.7 * graph.macs({}))["layer1.0.conv1"]
    assert not {1, 4} & set(kept)
    with pytest.raises(UserError, match="no criterion 'l3' here"):
        masks_of(model, graph, batches, "l3", 1.0)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("compare.criteria=['l3']", "no 'l3'; known: "),
        ("compare.criteria=['torch_pruning.l3']", "no 'torch_pruning.l3'"),
        ("compare.criteria=[]", "at least one criterion"),
        ("compare.shares=[]", "at least one criterion and one share"),
        ("compare.shares=[2.0]", "expected a list of numbers, each above 0 and up to 1"),
        ("compare.seeds=0", "seeds = 0: expected a whole number from 1 to 1,000"),
    ],
)
def test_wrong_grids(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        job(tmp_path, override)


def test_the_command_prints_the_grid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    options = [part for override in (*GRID, "plan.allocation=uniform") for part in ("--set", override)]
    result = call("compare", user_files(tmp_path), "-q", *options)
    assert result.exit_code == 0, result.output
    assert "torch_pruning.l2" in result.stdout
    assert comparing.RANDOM in result.stdout
    assert "±" in result.stdout


def test_models_that_cannot_be_traced_are_compared_at_uniform_widths(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise UserError("torch.fx cannot trace the model")

    monkeypatch.setattr("infoprune.pipeline.steps.sensitivity.measure_sensitivities", refuse)
    grid = ["compare.criteria=['l2', 'uniform.l2']", "compare.controls=false"]
    asked = job(tmp_path, *grid, "plan.allocation=sensitivity")
    unasked = [f"model.name={tmp_path / 'nets.py'}:net", f"data.name={tmp_path / 'data.py'}:load", *GRID, *grid]
    made = open_run(recipe.read(user_files(tmp_path), unasked), tmp_path / "unasked")
    measured, uniform = compare(made, made.settings.compare)
    assert (measured.macs, measured.repaired) == (uniform.macs, uniform.repaired)
    with pytest.raises(UserError, match="cannot trace"):
        compare(asked, asked.settings.compare)


def test_the_recipes_row_is_the_recipes_own_run(tmp_path: Path) -> None:
    """With blocks left out, a group protected and the best of several rankings: the same plan and accuracies."""
    sets = [
        *("depth.remove=['layer1.1']", "plan.protect=['layer2.0.conv1']", "plan.rank_by=best", "plan.macs=0.5"),
        *("choose.among=['l1', 'l2']", "calibration.batches=2", "finetune.epochs=0", "evaluate.latency_repeats=1"),
        *("compare.criteria=['recipe']", "compare.shares=[0.5]", "compare.controls=false"),
    ]
    own = open_run(recipe.read("digits", sets), tmp_path / "run")
    run_until(own, "evaluate")
    assert planned(own).removed == ("layer1.1",)
    measured = metrics_of(own)
    compared = open_run(recipe.read("digits", sets), tmp_path / "compare")
    (cell,) = compare(compared, compared.settings.compare)
    assert (cell.macs, cell.parameters) == (measured["pruned"].macs, measured["pruned"].parameters)
    assert (cell.cut, cell.repaired) == (measured["pruned"].accuracy, measured["repaired"].accuracy)
