"""Criteria at equal budgets, with controls: what a recipe's way of pruning is worth."""

import copy
import csv
import io
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, fields, replace
from typing import Any

import torch
from torch import nn

from infoprune import checkpoint, distributed, registry
from infoprune.artifacts import Cell, Finding, GroupPlan, Plan
from infoprune.choosing import Choosing
from infoprune.encoding import from_json, to_json
from infoprune.errors import UserError
from infoprune.narrowing import narrowed
from infoprune.observing import analyze
from infoprune.option_tables import PEER, RECIPE, UNIFORM, CompareOptions
from infoprune.peers import masks_of
from infoprune.planning import plan
from infoprune.planning.ranking import Ranking, best
from infoprune.planning.searching import choose_ranking
from infoprune.profiling import count_parameters, measure_latency
from infoprune.pruning import prune
from infoprune.recipe import bind
from infoprune.repairing import repair
from infoprune.repairing.probing import measure_sensitivity
from infoprune.surveying import by_sensitivity
from infoprune.training import evaluate, finetune
from infoprune.vetting import make_analysis
from infoprune.workspace import MADE_FROM

FILE = "compare.json"
RANDOM, SMALL = "control.random", "control.small_dense"
RANKED = ("rank_by", "redundancy_by", "redundancy_weight", "reduce", "scale")
CONTROLS = (RANDOM, f"{UNIFORM}l2", SMALL)
# Plan options that all rows set anew, and those that only the recipe's own way, and what has its widths, goes by.
BUDGETS = ("macs", "parameters", "bytes", "latency", "latency_ms", "masks")
OWN, BY_RECIPE = ("rank_by", "redundancy_by", "redundancy_weight", "width_by"), (RECIPE, RANDOM, SMALL)


class Comparison:
    """The grid of one recipe: cells are measured one by one, and each is written down at once.

    Args:
        job: the recipe in its run directory.
        options: what to compare.
    """

    def __init__(self, job: Choosing, options: CompareOptions) -> None:
        self.job, self.options = job, options
        self.path = str(job.out / FILE)
        self._findings: dict[str, tuple[Finding, float]] = {}
        self._tables: dict[str, tuple[Mapping[str, Mapping[int, float]], float]] = {}
        self._own: dict[float, tuple[Plan, float]] = {}

    def run(self) -> list[Cell]:
        """Measures every cell that is not known yet; `compare.json` and `compare.csv` hold all of them."""
        job, options = self.job, self.options
        verbs = {name: job.settings.verbs[name] for name in ("plan", "repair", "finetune")}
        verbs["plan"] = {name: value for name, value in verbs["plan"].items() if name not in (*BUDGETS, *OWN)}
        how = {"cut": options.cut, "epochs": options.epochs, "images": options.images}
        own = [verbs["finetune"]["loss"], verbs["finetune"]["metric"]]
        made_from = job.made_from({**verbs, **how}, code=own)
        wanted = self._wanted()
        criteria = to_json({name: self._options(name) for name in dict.fromkeys(name for name, _, _ in wanted)})
        before = job.directory.recall(FILE)
        if before.get(MADE_FROM) != made_from:
            before = {}
        known_criteria = from_json(before.get("criteria", {}), dict[str, Any], self.path)
        criteria = {**known_criteria, **criteria}
        cells = from_json(before.get("cells", []), list[Cell], self.path)
        cells = [cell for cell in cells if known_criteria.get(cell.criterion) == criteria.get(cell.criterion)]
        known = {(cell.criterion, cell.share, cell.seed) for cell in cells}
        job.progress.advance("compare", 0, len(wanted))
        for done, key in enumerate(wanted, start=1):
            if key not in known:
                cells.append(self._cell(*key))
                content = {MADE_FROM: made_from, "criteria": criteria, "cells": to_json(cells)}
                job.directory.write_json(FILE, content)
                self._write_csv(cells)
            job.progress.advance("compare", done, len(wanted))
        if job.directory.state("compare.csv") != "whole":
            self._write_csv(cells)
        place = {key: number for number, key in enumerate(wanted)}
        chosen = [cell for cell in cells if (cell.criterion, cell.share, cell.seed) in place]
        return sorted(chosen, key=lambda cell: place[cell.criterion, cell.share, cell.seed])

    def _options(self, criterion: str) -> Mapping[str, Any]:
        """What the rows of a criterion depend on that others do not: where it changes, they alone are measured anew."""
        verbs, analyses = self.job.settings.verbs, self.job.settings.analyses
        if criterion.startswith(PEER):
            return {}
        measured = by_sensitivity(verbs["plan"]) and not criterion.startswith(UNIFORM)
        widths = {"sensitivity": verbs["sensitivity"]} if measured else {}
        if criterion in BY_RECIPE:
            own = {name: verbs["plan"][name] for name in OWN}
            code = self.job.code(list(analyses))
            return {"plan": own, "choose": verbs["choose"], "analyses": analyses, "code": code, **widths}
        names = criterion.removeprefix(UNIFORM).split("+")
        return {"analyses": {name: self._of_analysis(name) for name in names}, "code": self.job.code(names), **widths}

    def _of_analysis(self, name: str) -> Mapping[str, Any]:
        """The options of an analysis, as the recipe has them or by default."""
        known = self.job.settings.analyses
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
        job, chosen, seconds = self.job, *self._plan(criterion, share, seed)
        verbs, scores = job.settings.verbs, {}
        if criterion == SMALL:
            model = self._small(chosen, seed)
        else:
            model = prune(job.base, chosen)
            if self.options.cut:
                scores["cut"] = self._accuracy(model, "test")
            graph = job.graph_of(chosen.removed)
            repair(model, job.base, graph, chosen.kept(), job.calibration, None, job.views, **verbs["repair"])
            scores["repaired"] = self._accuracy(model, "test")
        if self.options.epochs:
            how = {**verbs["finetune"], "epochs": self.options.epochs}
            batches = job.batches("train", seed, self.options.images)
            # The small dense network has no teacher: it is what one would train without the large one.
            teacher = None if criterion == SMALL else job.base
            if teacher is None:
                how |= {"distillation": 0.0, "feature_distillation": 0.0}
            finetune(model, batches, job.batches("validation"), teacher, seed=seed, **how)
            scores["finetuned"] = self._accuracy(model, "test")
        latency = measure_latency(model, job.calibration[0][0][:1]).median
        stages = {name: scores.get(name) for name in ("cut", "repaired", "finetuned")}
        validation = self._accuracy(model, "validation")
        return Cell(
            criterion, share, seed, chosen.macs_after, count_parameters(model), latency, **stages,
            validation=validation, seconds=seconds,
        )  # fmt: skip

    def _accuracy(self, model: nn.Module, split: Any) -> float:
        return evaluate(model, self.job.batches(split)).accuracy

    def _plan(self, criterion: str, share: float, seed: int) -> tuple[Plan, float]:
        """The plan of a cell, and the seconds that choosing took, analyses included."""
        job, start = self.job, time.perf_counter()
        graph = job.graph
        if criterion.startswith(PEER):
            name = criterion.removeprefix(PEER)
            masks = masks_of(job.base, graph, job.calibration, name, share * graph.unpruned.macs, seed)
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
        findings, spent = self._found(ranking, seed)
        chosen, more = self._planned({**self._limited(share), **own}, findings, seed)
        return chosen, spent + more

    def _recipes(self, share: float) -> tuple[Plan, float]:
        """The recipe's own plan, by its ranking or the one of several that keeps most accuracy on validation data."""
        if share not in self._own:
            job = self.job
            findings, spent = self._found(list(job.settings.analyses), 0)
            plans = {way: self._planned(how, findings, 0) for way, how in job.ways(self._limited(share)).items()}
            spent += sum(seconds for _, seconds in plans.values())
            best, start = next(iter(plans)), time.perf_counter()
            if len(plans) > 1:
                best = choose_ranking(lambda way: job.validated(plans[way][0]), among=list(plans)).best
            self._own[share] = plans[best][0], spent + time.perf_counter() - start
        return self._own[share]

    def _limited(self, share: float) -> dict[str, Any]:
        """The recipe's plan options with this budget alone."""
        options = {**self.job.settings.verbs["plan"], **dict.fromkeys(BUDGETS), "macs": share}
        if options["allocation"] == "sensitivity":
            options["allocation"] = None  # one grid spans all budgets: below what was measured, widths are uniform
        return options

    def _planned(self, options: Mapping[str, Any], findings: Sequence[Finding], seed: int) -> tuple[Plan, float]:
        """A plan by these findings, and the seconds that it took, measured sensitivities included."""
        table, spent = None, 0.0
        if by_sensitivity(options):
            table, spent = self._table(Ranking(findings, *(options[name] for name in RANKED)), seed)
        start = time.perf_counter()
        return plan(findings, self.job.graph, table, **options), spent + time.perf_counter() - start

    def _found(self, names: Sequence[str], seed: int) -> tuple[list[Finding], float]:
        """What analyses find, and the seconds of all of them."""
        found = [self._finding(name, seed) for name in names]
        return [finding for finding, _ in found], sum(seconds for _, seconds in found)

    def _finding(self, name: str, seed: int) -> tuple[Finding, float]:
        """What an analysis finds, run alone so that its cost is its own."""
        key = f"{name} {seed}" if name == "random" else name
        if key not in self._findings:
            job = self.job
            options = {"seed": seed} if name == "random" else self._of_analysis(name)
            groups = [group for group in job.graph.groups if not group.refusal]
            layers = [member.layer for group in groups for member in group.members if member.side == "out"]
            start = time.perf_counter()
            finding = analyze(job.base, job.calibration, [make_analysis(name, options)], layers=layers)[0]
            self._findings[key] = replace(finding, analysis=name), time.perf_counter() - start
        return self._findings[key]

    def _table(self, ranking: Ranking, seed: int) -> tuple[Mapping[str, Mapping[int, float]], float]:
        key = f"{ranking.name} {seed if 'random' in ranking.name else 0}"
        if key not in self._tables:
            job, start = self.job, time.perf_counter()
            scores = ranking.of(group for group in job.graph.groups if not group.refusal)
            few, verbs = job.calibration[:4], job.settings.verbs
            # Where the model cannot be traced, and nobody asked for it, widths are uniform, as in a run.
            table: Mapping[str, Mapping[int, float]] = {}
            with nullcontext() if verbs["plan"]["allocation"] else suppress(UserError):
                table = measure_sensitivity(job.base, job.graph, scores, few, **verbs["sensitivity"])
            self._tables[key] = table, time.perf_counter() - start
        return self._tables[key]

    def _shuffled(self, like: Plan, seed: int) -> Plan:
        """A plan of the same widths that keeps channels drawn by chance."""
        generator = torch.Generator().manual_seed(seed)
        groups = {group.name: group for group in self.job.graph_of(like.removed).groups}
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
        job = self.job
        graph = job.graph_of(like.removed)
        found = graph.layer_widths({group.group: group.width_after for group in like.groups})
        widths = {layer: own for layer, (_, own) in found.items()}
        reference = narrowed(job.settings.model, job.base, widths, like.removed)
        torch.manual_seed(seed)
        if reference is not None:
            return checkpoint.build(reference).to(job.device)
        # A family without such arguments: the pruned architecture, its layers initialised anew.
        model = copy.deepcopy(prune(job.base, like))
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
        self.job.directory.write("compare.csv", lambda path: path.write_text(text.getvalue(), encoding="utf-8"))


def compare(job: Choosing, options: CompareOptions) -> list[Cell]:
    """Compares criteria at equal budgets on a recipe's model and data.

    Args:
        job: the recipe in its run directory.
        options: what to compare.

    Returns:
        One cell per criterion, budget and seed, in that order; cells that are known from before are not measured again.

    Raises:
        UserError: for criteria that give no importance, and budgets out of reach.
    """
    if distributed.world() > 1:
        raise UserError("compare runs in one process; start it without torchrun")
    return Comparison(job, options).run()
