"""From a recipe to its plan: analyses, blocks to remove, measured sensitivities and times, the search for a budget."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from infoprune import checkpoint, distributed, store
from infoprune.artifacts import Analysis, Finding, Plan, Timings
from infoprune.encoding import from_json, to_json
from infoprune.errors import UserError, shortages
from infoprune.observing import analyze
from infoprune.planning import first_channels, plan
from infoprune.planning.budgets import check_latency
from infoprune.planning.masks import read_masks
from infoprune.planning.ranking import Ranking
from infoprune.planning.searching import choose_blocks, search
from infoprune.profiling import measure_latency
from infoprune.pruning import check_kept, prune
from infoprune.repairing import repair
from infoprune.repairing.probing import measure_sensitivity
from infoprune.timing import CLOSE, measure_timings, plan_within
from infoprune.training import evaluate
from infoprune.workspace import MADE_FROM, Workspace

# Activations of all of them are kept at once, and losses of single groups need no more.
SENSITIVITY_BATCHES = 4


class Choosing(Workspace):
    """The steps that lead to a plan; each first does those before it."""

    def analyze(self) -> None:
        """Runs the analyses whose findings are missing or came from something else, in one pass."""
        if "analyze" in self._told:
            return
        self._told.add("analyze")
        made_from = {
            name: self.made_from(options) for name, options in self.settings.analyses.items() if name in self._analyses
        }
        stale: dict[str, Analysis] = {
            name: analysis
            for name, analysis in self._analyses.items()
            if not self._is_there(self._finding_file(name), made_from[name])
        }
        if not stale:
            self.progress.step("analyze", "up to date")
            return
        self.progress.step("analyze", "running")
        groups = [group for group in self.graph.groups if not group.refusal]
        layers = [member.layer for group in groups for member in group.members if member.side == "out"]
        share = distributed.Share(self.calibration)
        with shortages("analyze"):
            found = analyze(
                self.base,
                share,
                list(stale.values()),
                lambda done: self.progress.advance("analyze", done, len(share)),
                layers=layers,
            )
        for name, finding in zip(stale, found, strict=True) if distributed.is_first() else ():
            store.write_json(self._finding_file(name), {MADE_FROM: made_from[name], **to_json(finding)})
        distributed.wait()
        self.progress.step("analyze", "done")

    def _finding_file(self, name: str) -> Path:
        return self.out / "findings" / f"{name.replace(':', '.').replace('/', '.')}.json"

    @cached_property
    def views(self) -> list[tuple[Tensor, Tensor]]:
        """The calibration batches again, as often as asked for, with each image changed at random but in its place."""
        wanted, run = self.settings.calibration, self.settings.run
        if wanted.views and self.data.augment is None:
            raise UserError(
                f"[calibration] views = {wanted.views}, but '{self.data.name}' changes no images at random; set views "
                "to 0, or give the data an augmentation"
            )
        how: dict[str, Any] = {"batch_size": wanted.batch_size, "seed": run.seed, "device": self.device}
        views = [self.data.batches(wanted.split, augment=True, view=v + 1, **how) for v in range(wanted.views)]
        return [pair for view in views for _, pair in zip(range(wanted.batches), view, strict=False)]

    def findings(self) -> list[Finding]:
        """What all analyses of the recipe found."""
        paths = [self._finding_file(name) for name in self._analyses]
        return [from_json(store.read_json(path), Finding, str(path)) for path in paths]

    def plan(self) -> None:
        """Chooses the channels to keep and writes `plan.json`, which may be edited by hand afterwards."""
        self.analyze()
        path, options = self.out / "plan.json", dict(self.settings.verbs["plan"])
        inputs = [self._finding_file(name) for name in self._analyses]
        if isinstance(options["masks"], str):
            found = checkpoint.find_file(options["masks"], self.settings.folder)
            options["masks"] = read_masks(found)
        inputs += self._measurements(options)
        searching = self.settings.verbs["search"]
        wanted = searching["max_loss"] is not None
        made_from = self.made_from({**options, "search": searching} if wanted else options, *inputs)

        def make() -> None:
            chosen = self._searched(options, searching, made_from) if wanted else self._planned(options)
            groups = {group.name: group for group in self.graph_of(chosen.removed).groups}
            for name, kept in chosen.kept().items():
                check_kept(groups[name], kept)
            store.write_json(path, {MADE_FROM: made_from, **to_json(chosen)})

        self._step("plan", path, made_from, make)

    def _measurements(self, options: Mapping[str, Any]) -> list[Path]:
        """What the plan wants to have measured before, in the order in which it is."""
        files: list[Path] = []
        depth = self.settings.verbs["depth"]
        blocks = any(finding.removable for finding in self.findings()) and depth["depth_by"] != []
        if options["masks"] is None and (blocks or depth["remove"]):
            files.append(self._choose_blocks())
        free = any(not group.refusal for group in self.graph_of(self._removed()).groups)
        if free and _by_sensitivity(options):
            files.append(self._measure_sensitivity())
        if {options["latency"], options["latency_ms"]} != {None} or self.settings.verbs["search"][
            "budget"
        ] == "latency":
            files.append(self._measure_timings())
        return files

    def _planned(self, options: Mapping[str, Any]) -> Plan:
        """A plan for these options; for a latency, corrected by what the pruned network really takes."""
        check_latency(options["latency"], options["latency_ms"])
        graph = self.graph_of(self._removed())
        if options["latency"] is None and options["latency_ms"] is None:
            return plan(self.findings(), graph, self.sensitivity(), **options)
        timings = self._timings()
        images = self.calibration[0][0][: timings.batch]
        whole = measure_latency(self.base, images).median
        asked = min(options["latency"] or 1.0, (options["latency_ms"] or whole) / whole)

        def plan_for(target: float) -> Plan:
            limit = {**options, "latency": target, "latency_ms": None}
            return plan(self.findings(), graph, self.sensitivity(), lambda w: timings.predict(graph, w), **limit)

        def time_of(found: Plan) -> float:
            return measure_latency(prune(self.base, found), images).median

        found, taken = plan_within(asked, whole, plan_for, time_of)
        note = f"measured: {taken:.3g} ms of {whole:.3g} ms ({taken / whole:.1%}) for a batch of {timings.batch}"
        if taken > CLOSE * asked * whole:
            note += f"; {asked:.1%} was asked for and not reached, since what layers take is not all that takes time"
        return replace(found, notes=(*found.notes, note))

    def _searched(self, options: Mapping[str, Any], how: Mapping[str, Any], made_from: Mapping[str, Any]) -> Plan:
        """The smallest budget's plan that loses no more on validation data than asked for."""
        path, budget = self.out / "search.json", how["budget"]
        unlimited = {**options, "macs": None, "parameters": None, "bytes": None, "latency": None, "latency_ms": None}

        def attempt(share: float) -> float:
            try:
                found = self._planned({**unlimited, budget: share})
            except UserError:  # out of reach; the next share up is tried
                return math.nan
            return self._validated(found)

        halvings = math.ceil(math.log2(max(1.0, (1 - how["least"]) / max(how["tolerance"], 1e-6))))
        base, known, remember = self._remembered(path, made_from, 1 + halvings)
        found = search(attempt, base, known, remember, **how)
        chosen = self._planned({**unlimited, budget: found.share})
        note = (
            f"the smallest share of {budget} tried that loses at most {how['max_loss']:g} points on validation is "
            f"{found.share:.1%} ({base:.2%} before, {found.accuracy:.2%} after repair; {len(found.tried)} tried)"
        )
        return replace(chosen, notes=(*chosen.notes, note))

    def _choose_blocks(self) -> Path:
        """Decides, if analyses name any or the recipe does, which blocks go; `depth.json` keeps what was tried."""
        path, options = self.out / "depth.json", self.settings.verbs["depth"]
        inputs = [self._finding_file(name) for name in self._analyses]
        made_from = self.made_from({**options, "repair": self.settings.verbs["repair"]}, *inputs)
        trials = self.out / ".depth.json"

        def make() -> None:
            named = {block for finding in self.findings() for block in finding.removable}
            base, known, remember = self._remembered(trials, made_from, 2 * len(named))

            def attempt(blocks: tuple[str, ...]) -> float:
                graph = self.graph_of(blocks)
                return self._validated(
                    Plan((), {}, graph.unpruned.macs, graph.macs({}), graph.input_shape, removed=blocks)
                )

            found = choose_blocks(self.findings(), attempt, base, known, remember, **options)
            store.write_json(path, {MADE_FROM: made_from, "base": base, **to_json(found)})
            trials.unlink(missing_ok=True)

        self._step("depth", path, made_from, make)
        return path

    def confirmed_blocks(self) -> tuple[dict[str, float], tuple[str, ...], float]:
        """What validation says of the blocks that analyses name: accuracies tried, blocks that go, and the base's."""
        path = self._choose_blocks()
        found = store.read_json(path)
        base: float = from_json(found.get("base"), float, str(path))
        return from_json(found.get("tried"), dict[str, float], str(path)), self._removed(), base

    def _removed(self) -> tuple[str, ...]:
        path = self.out / "depth.json"
        if "depth" not in self._told:
            return ()
        return from_json(store.read_json(path).get("removed"), tuple[str, ...], str(path))

    def _remembered(
        self, path: Path, made_from: Mapping[str, Any], most: int
    ) -> tuple[float, dict[str, float], Callable[[Mapping[str, float]], None]]:
        """The unpruned model's validation accuracy, what was tried before of `most`, and how to note what is."""
        before = store.read_json(path) if path.exists() else {}
        if before.get(MADE_FROM) != made_from:
            before = {"base": self._accuracy(self.base), "tried": {}}
        base: float = from_json(before.get("base"), float, str(path))
        tried = from_json(before.get("tried"), dict[str, float | None], str(path))
        known = {key: math.nan if value is None else value for key, value in tried.items()}

        def remember(tried: Mapping[str, float]) -> None:
            self.progress.advance("trials", len(tried), max(most, len(tried)))
            rows = {key: None if math.isnan(value) else value for key, value in tried.items()}
            store.write_json(path, {MADE_FROM: made_from, "base": base, "tried": rows})

        return base, known, remember

    def _validated(self, chosen: Plan) -> float:
        """Validation accuracy of a plan's network after repair."""
        model = prune(self.base, chosen)
        options = self.settings.verbs["repair"]
        graph, kept = self.graph_of(chosen.removed), chosen.kept()
        repair(model, self.base, graph, kept, self.calibration, None, self.views, **options)
        return self._accuracy(model)

    def _accuracy(self, model: nn.Module) -> float:
        batches = self.data.batches("validation", batch_size=self.settings.run.batch_size, device=self.device)
        return evaluate(model, batches).accuracy

    def _measure_sensitivity(self) -> Path:
        """Measures, if the plan wants it, what each group costs at several widths; `sensitivity.json` keeps it."""
        options, how = self.settings.verbs["sensitivity"], self.settings.verbs["plan"]
        path = self.out / "sensitivity.json"
        ranked = {key: how[key] for key in ("rank_by", "redundancy_by", "redundancy_weight", "reduce", "scale")}
        ranking, removed = Ranking(self.findings(), *ranked.values()), self._removed()
        inputs = [self._finding_file(finding.analysis) for finding in (*ranking.main, *ranking.more)]
        made_from = self.made_from({**options, **ranked, "removed": removed}, *inputs)

        def make() -> None:
            graph = self.graph_of(removed)
            scores = {group.name: ranking.scores(group) for group in graph.groups if not group.refusal}
            few = self.calibration[:SENSITIVITY_BATCHES]
            try:
                table = measure_sensitivity(self.base, graph, scores, few, self._advance("sensitivity"), **options)
            except UserError:
                if how["allocation"] is not None:
                    raise
                table = {}  # Not every model can be traced, and nobody asked for it: widths are uniform then.
            store.write_json(path, {MADE_FROM: made_from, "losses": table})

        self._step("sensitivity", path, made_from, make)
        return path

    def sensitivity(self) -> dict[str, dict[int, float]]:
        """Per group, width -> loss, as measured; empty where the plan needs none."""
        path = self.out / "sensitivity.json"
        if not _by_sensitivity(self.settings.verbs["plan"]) or not path.exists():
            return {}
        return from_json(store.read_json(path).get("losses"), dict[str, dict[int, float]], str(path))

    def _measure_timings(self) -> Path:
        """Measures, if the plan wants it, what layers take at several widths; `timings.json` keeps it."""
        path, options = self.out / "timings.json", self.settings.verbs["timings"]
        made_from = self.made_from({**options, "device": str(self.device)})

        def narrowed(share: float) -> tuple[nn.Module, Mapping[str, int]]:
            chosen = first_channels(self.graph, share)
            return prune(self.base, chosen), {group.group: group.width_after for group in chosen.groups}

        def make() -> None:
            images = self.calibration[0][0]
            found = measure_timings(self.base, images, self.graph, narrowed, self._advance("timings"), **options)
            store.write_json(path, {MADE_FROM: made_from, **to_json(found)})

        self._step("timings", path, made_from, make)
        return path

    def _timings(self) -> Timings:
        path = self.out / "timings.json"
        return from_json(store.read_json(path), Timings, str(path))


def _by_sensitivity(options: Mapping[str, Any]) -> bool:
    """Whether a plan with these options goes by measured sensitivity, where there is any."""
    asked = options["allocation"] in ("sensitivity", None) and options["width_as"] != "prior"
    return asked and options["masks"] is None
