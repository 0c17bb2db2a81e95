"""Criteria at equal budgets, with controls: what a recipe's way of pruning is worth."""

import copy
import csv
import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from typing import Any

import torch
from torch import nn

from infoprune.analyses.base import Finding
from infoprune.analyses.checks import make_analysis
from infoprune.analyses.runner import analyze as run_analyses
from infoprune.config import registry
from infoprune.config.recipe import bind
from infoprune.errors import UserError
from infoprune.evaluation.accuracy import evaluate
from infoprune.evaluation.metrics import Cell
from infoprune.evaluation.profile import count_parameters, measure_latency
from infoprune.io import checkpoint
from infoprune.io.encoding import from_json, to_json
from infoprune.pipeline.architecture import narrowed
from infoprune.pipeline.artifacts import MADE_FROM, origin
from infoprune.pipeline.choose import (
    BUDGETS,
    Candidates,
    Evidence,
    best_plan,
    by_sensitivity,
    candidates,
    plan_for,
    ranking_of,
)
from infoprune.pipeline.context import Context
from infoprune.pipeline.options import PEER, RECIPE, UNIFORM, CompareOptions
from infoprune.pipeline.step import run_step
from infoprune.pipeline.steps import analyze, depth, sensitivity
from infoprune.planning.plan import GroupPlan, Plan
from infoprune.planning.planner import plan
from infoprune.planning.ranking import best
from infoprune.pruning.baselines import masks_of
from infoprune.pruning.prune import prune
from infoprune.repairing.repair import repair
from infoprune.training.finetune import finetune
from infoprune.utils import distributed

FILE = "compare.json"
RANDOM, SMALL = "control.random", "control.small_dense"
CONTROLS = (RANDOM, f"{UNIFORM}l2", SMALL)
# Plan options that every row sets for itself, and those that only the recipe's own row, and its controls, go by.
SET = (*BUDGETS, "masks")
OWN, BY_RECIPE = ("rank_by", "redundancy_by", "redundancy_weight", "width_by"), (RECIPE, RANDOM, SMALL)


class Comparison:
    """The grid of one recipe: cells are measured one by one, and each is written down at once.

    Args:
        context: the recipe in its run directory.
        options: what to compare.
    """

    def __init__(self, context: Context, options: CompareOptions) -> None:
        self.context, self.options = context, options
        self.path = str(context.out / FILE)
        self._findings: dict[str, tuple[Finding, float]] = {}
        self._losses: dict[tuple[str, tuple[str, ...], int], tuple[tuple[sensitivity.Losses, str], float]] = {}
        self._own: dict[float, tuple[Plan, float]] = {}
        self._removed: tuple[tuple[str, ...], float] | None = None

    def run(self) -> list[Cell]:
        """Measures every cell that is not known yet; `compare.json` and `compare.csv` hold all of them."""
        context, options = self.context, self.options
        tables = {name: context.settings.tables[name] for name in ("plan", "repair", "finetune")}
        tables["plan"] = {name: value for name, value in tables["plan"].items() if name not in (*SET, *OWN)}
        how = {"cut": options.cut, "epochs": options.epochs, "images": options.images}
        own = [tables["finetune"]["loss"], tables["finetune"]["metric"]]
        made_from = origin(context, {**tables, **how}, code=own)
        wanted = self._wanted()
        criteria = to_json({name: self._options(name) for name in dict.fromkeys(name for name, _, _ in wanted)})
        before = context.directory.recall(FILE)
        if before.get(MADE_FROM) != made_from:
            before = {}
        known_criteria = from_json(before.get("criteria", {}), dict[str, Any], self.path)
        criteria = {**known_criteria, **criteria}
        cells = from_json(before.get("cells", []), list[Cell], self.path)
        cells = [cell for cell in cells if known_criteria.get(cell.criterion) == criteria.get(cell.criterion)]
        known = {(cell.criterion, cell.share, cell.seed) for cell in cells}
        context.progress.advance("compare", 0, len(wanted))
        for done, key in enumerate(wanted, start=1):
            if key not in known:
                cells.append(self._cell(*key))
                content = {MADE_FROM: made_from, "criteria": criteria, "cells": to_json(cells)}
                context.directory.write_json(FILE, content)
                self._write_csv(cells)
            context.progress.advance("compare", done, len(wanted))
        if context.directory.state("compare.csv") != "whole":
            self._write_csv(cells)
        place = {key: number for number, key in enumerate(wanted)}
        chosen = [cell for cell in cells if (cell.criterion, cell.share, cell.seed) in place]
        return sorted(chosen, key=lambda cell: place[cell.criterion, cell.share, cell.seed])

    def _options(self, criterion: str) -> Mapping[str, Any]:
        """What the rows of a criterion alone depend on: where it changes, they are measured again, and no others."""
        context = self.context
        tables, analyses = context.settings.tables, context.settings.analyses
        if criterion.startswith(PEER):
            return {}
        measured = by_sensitivity(tables["plan"]) and not criterion.startswith(UNIFORM)
        widths = {"sensitivity": tables["sensitivity"]} if measured else {}
        if criterion in BY_RECIPE:
            own = {name: tables["plan"][name] for name in OWN}
            code = context.sources_of(list(analyses))
            shared = {name: tables[name] for name in ("choose", "depth")}
            return {"plan": own, **shared, "analyses": analyses, "code": code, **widths}
        names = criterion.removeprefix(UNIFORM).split("+")
        options = {name: self._of_analysis(name) for name in names}
        return {"analyses": options, "code": context.sources_of(names), **widths}

    def _of_analysis(self, name: str) -> Mapping[str, Any]:
        """The options of an analysis, as the recipe has them or by default."""
        known = self.context.settings.analyses
        return known[name] if name in known else bind(registry.find("analyses", name), {}, f"analyses.{name}")

    def _wanted(self) -> list[tuple[str, float, int]]:
        names = list(self.options.criteria)
        if self.options.controls:
            names += [name for name in CONTROLS if name not in names and (name != SMALL or self.options.epochs)]
        return [
            (name, share, seed)
            for share in self.options.shares
            for name in names
            for seed in range(self.options.seeds if self._varies(name) else 1)
        ]

    def _varies(self, name: str) -> bool:
        return self.options.epochs > 0 or name == RANDOM or name.endswith("random")

    def _cell(self, criterion: str, share: float, seed: int) -> Cell:
        """Chooses, prunes, repairs, trains where asked for, and looks at the test split once for each stage."""
        context, chosen, seconds = self.context, *self._plan(criterion, share, seed)
        tables, scores = context.settings.tables, {}
        if criterion == SMALL:
            model = self._small(chosen, seed)
        else:
            model = prune(context.model, chosen)
            if self.options.cut:
                scores["cut"] = self._accuracy(model, "test")
            graph, kept = context.graph_without(chosen.removed), chosen.kept()
            repair(model, context.model, graph, kept, context.calibration, None, context.views, **tables["repair"])
            scores["repaired"] = self._accuracy(model, "test")
        if self.options.epochs:
            how = {**tables["finetune"], "epochs": self.options.epochs}
            batches = context.batches("train", seed, self.options.images)
            # The small dense network has no teacher: it is what one would train without the large one.
            teacher = None if criterion == SMALL else context.model
            if teacher is None:
                how |= {"distillation": 0.0, "feature_distillation": 0.0}
            finetune(model, batches, context.batches("validation"), teacher, seed=seed, **how)
            scores["finetuned"] = self._accuracy(model, "test")
        latency = measure_latency(model, context.calibration[0][0][:1]).median
        stages = {name: scores.get(name) for name in ("cut", "repaired", "finetuned")}
        validation = self._accuracy(model, "validation")
        return Cell(
            criterion, share, seed, chosen.macs_after, count_parameters(model), latency, **stages,
            validation=validation, seconds=seconds,
        )  # fmt: skip

    def _accuracy(self, model: nn.Module, split: Any) -> float:
        return evaluate(model, self.context.batches(split)).accuracy

    def _plan(self, criterion: str, share: float, seed: int) -> tuple[Plan, float]:
        """The plan of a cell, and the seconds that choosing took, analyses included."""
        context, start = self.context, time.perf_counter()
        if criterion.startswith(PEER):
            graph, name = context.graph, criterion.removeprefix(PEER)
            masks = masks_of(context.model, graph, context.calibration, name, share * graph.unpruned.macs, seed)
            return plan([], graph, masks=masks), time.perf_counter() - start
        if criterion in (RANDOM, SMALL):
            like, _ = self._plan(RECIPE, share, 0)
            return (like if criterion == SMALL else self._shuffled(like, seed)), time.perf_counter() - start
        if criterion == RECIPE:
            return self._recipes(share)
        ranking = criterion.removeprefix(UNIFORM).split("+")
        own: dict[str, Any] = {"rank_by": ranking, "redundancy_by": [], "width_by": []}
        if criterion.startswith(UNIFORM):
            own["allocation"] = "uniform"
        options = {**self._limited(share), **own}
        evidence, spent = self._evidence(ranking, {"": options}, (), seed)
        start = time.perf_counter()
        return plan_for(context, options, evidence), spent + time.perf_counter() - start

    def _recipes(self, share: float) -> tuple[Plan, float]:
        """The recipe's own plan, by the same functions as in a run: its blocks, its ranking or the best of several."""
        if share not in self._own:
            context = self.context
            removed, spent = self._blocks()
            tried = candidates(self._limited(share), context.settings.tables["choose"]["among"])
            evidence, more = self._evidence(list(context.analyses), tried, removed, 0)
            start = time.perf_counter()
            if len(tried) > 1:
                chosen, _ = best_plan(context, tried, evidence)
            else:
                chosen = plan_for(context, next(iter(tried.values())), evidence)
            self._own[share] = chosen, spent + more + time.perf_counter() - start
        return self._own[share]

    def _blocks(self) -> tuple[tuple[str, ...], float]:
        """The blocks that the recipe removes, and the seconds that deciding took."""
        if self._removed is None:
            start = time.perf_counter()
            if depth.possible(self.context):
                for step in (analyze.STEP, depth.STEP):
                    if step.wanted(self.context):
                        run_step(self.context, step)
                self._removed = depth.removed(self.context), time.perf_counter() - start
            else:
                self._removed = (), 0.0
        return self._removed

    def _limited(self, share: float) -> dict[str, Any]:
        """The recipe's plan options with this budget alone."""
        options = {**self.context.settings.tables["plan"], **dict.fromkeys(SET), "macs": share}
        if options["allocation"] == "sensitivity":
            options["allocation"] = None  # one grid spans all budgets: below what was measured, widths are uniform
        return options

    def _evidence(
        self, names: Sequence[str], tried: Candidates, removed: Sequence[str], seed: int
    ) -> tuple[Evidence, float]:
        """What plans go by, and the seconds that finding it out took: analyses, and sensitivities where they count."""
        found = [self._finding(name, seed) for name in names]
        findings, spent = [finding for finding, _ in found], sum(seconds for _, seconds in found)
        options = list(tried.values())
        if not by_sensitivity(options[0]):
            return Evidence(findings, removed), spent
        rankings = "/".join(ranking_of(findings, each).key for each in options)
        key = rankings, tuple(removed), seed if "random" in rankings else 0
        if key not in self._losses:
            start = time.perf_counter()
            # One grid spans all budgets, so that uniform widths stand in where the model cannot be traced.
            asked = [{**each, "allocation": self.context.settings.tables["plan"]["allocation"]} for each in options]
            self._losses[key] = sensitivity.measure(self.context, asked, findings, removed), time.perf_counter() - start
        (losses, refused), more = self._losses[key]
        return Evidence(findings, removed, losses, refused), spent + more

    def _finding(self, name: str, seed: int) -> tuple[Finding, float]:
        """What an analysis finds, run alone so that its cost is its own."""
        key = f"{name} {seed}" if name == "random" else name
        if key not in self._findings:
            context, options = self.context, {"seed": seed} if name == "random" else self._of_analysis(name)
            layers, analysis = analyze.prunable_layers(context), make_analysis(name, options)
            start = time.perf_counter()
            finding = run_analyses(context.model, context.calibration, [analysis], layers=layers)[0]
            self._findings[key] = replace(finding, analysis=name), time.perf_counter() - start
        return self._findings[key]

    def _shuffled(self, like: Plan, seed: int) -> Plan:
        """A plan of the same widths that keeps channels drawn by chance."""
        generator = torch.Generator().manual_seed(seed)
        groups = {group.name: group for group in self.context.graph_without(like.removed).groups}
        masks = {}
        for entry in like.groups:
            group = groups[entry.group]
            scores = torch.rand(group.width, generator=generator)
            masks[entry.group] = list(best(scores, entry.width_after, group.partitions))
        drawn = tuple(
            GroupPlan(**{**vars(entry), "kept": tuple(masks[entry.group]), "reason": "drawn by chance"})
            for entry in like.groups
        )
        return Plan(**{**vars(like), "groups": drawn, "ranked_by": ""})

    def _small(self, like: Plan, seed: int) -> nn.Module:
        """A network of a plan's widths with new weights."""
        context = self.context
        graph = context.graph_without(like.removed)
        found = graph.layer_widths({group.group: group.width_after for group in like.groups})
        widths = {layer: own for layer, (_, own) in found.items()}
        reference = narrowed(context.settings.model, context.model, widths, like.removed)
        torch.manual_seed(seed)
        if reference is not None:
            return checkpoint.build(reference).to(context.device)
        # A family without such arguments: the pruned architecture, its layers initialised again.
        model = copy.deepcopy(prune(context.model, like))
        for module in model.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
        return model

    def _write_csv(self, cells: Sequence[Cell]) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, [field.name for field in fields(Cell)])
        writer.writeheader()
        writer.writerows(asdict(cell) for cell in cells)
        self.context.directory.write("compare.csv", lambda path: path.write_text(text.getvalue(), encoding="utf-8"))


def compare(context: Context, options: CompareOptions) -> list[Cell]:
    """Compares criteria at equal budgets on a recipe's model and data.

    Args:
        context: the recipe in its run directory.
        options: what to compare.

    Returns:
        One cell per criterion, budget and seed, in that order; cells that are known from before are not measured again.

    Raises:
        UserError: for criteria that give no importance, and budgets out of reach.
    """
    if distributed.world() > 1:
        raise UserError("compare runs in one process; start it without torchrun")
    return Comparison(context, options).run()
