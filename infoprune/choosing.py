"""From a recipe to its plan: blocks to remove, the ranking, the search for a budget, each measured on validation."""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from infoprune import checkpoint, distributed, store
from infoprune.artifacts import Plan
from infoprune.encoding import from_json, to_json
from infoprune.errors import UserError
from infoprune.planning import LIMITS, check_fit, plan, recount
from infoprune.planning.masks import read_masks
from infoprune.planning.ranking import BEST
from infoprune.planning.searching import DEPTH, choose_blocks, choose_ranking, search
from infoprune.profiling import measure_latency
from infoprune.pruning import check_kept, check_plan, prune
from infoprune.repairing import repair
from infoprune.surveying import Surveying, by_sensitivity
from infoprune.timing import CLOSE, plan_within
from infoprune.training import evaluate
from infoprune.workspace import MADE_FROM

LOGGER = logging.getLogger(__name__)
# Plan options by name of the ranking that they have; the name is empty where there is nothing to choose.
Ways = Mapping[str, Mapping[str, Any]]


class Choosing(Surveying):
    """The steps that lead to a plan; each first does those before it."""

    def plan(self) -> None:
        """Chooses the channels to keep and writes `plan.json`, which may be edited by hand afterwards."""
        options = dict(self.settings.verbs["plan"])
        if isinstance(options["masks"], str):
            found = checkpoint.find_file(options["masks"], self.settings.folder)
            options["masks"] = read_masks(found)
        self._check_fit(options)
        self.analyze()
        inputs = [self._finding_name(name) for name in self._analyses]
        ways = self.ways(options)
        inputs += self._measurements(ways)
        verbs = self.settings.verbs
        searching = {"search": verbs["search"]} if verbs["search"]["max_loss"] is not None else {}
        choosing = {} if "" in ways else {"choose": verbs["choose"]}
        repaired = {"repair": verbs["repair"]} if searching or choosing else {}
        made_from = self.made_from({**options, **searching, **choosing, **repaired}, *inputs)

        def make() -> None:
            if searching:
                chosen = self._searched(ways, made_from)
            elif choosing:
                _, known, remember = self._remembered("choice.json", made_from, len(ways), "plan.json")
                chosen, _ = self._best(ways, known, remember)
            else:
                chosen = self._planned(*ways.values())
            groups = {group.name: group for group in self.graph_of(chosen.removed).groups}
            for name, kept in chosen.kept().items():
                check_kept(groups[name], kept)
            self._write_json("plan.json", made_from, to_json(chosen))

        if distributed.is_first():
            self._accept_edits(made_from)
        distributed.wait()
        self._step("plan", "plan.json", made_from, make)

    def _accept_edits(self, made_from: Mapping[str, Any]) -> None:
        """Takes a plan that was edited by hand, its figures counted again, as long as what it came from is the same."""
        path = self.out / "plan.json"
        if self.directory.state("plan.json") != "changed" or self.directory.damaged("plan.json") != ["plan.json"]:
            return
        content = store.read_json(path, "correct it, or remove it to have a plan made again")
        if content.get(MADE_FROM) != made_from:
            return  # a plan is made again, and the edited one put aside
        edited = from_json(content, Plan, str(path))
        chosen = recount(edited, self.graph_of(edited.removed), str(path))
        check_plan(chosen, self.graph_of(chosen.removed), str(path))
        self._write_json("plan.json", made_from, to_json(chosen))
        LOGGER.warning("%s was edited by hand: it is used as it is, with widths and MACs counted again", path)

    def _check_fit(self, options: Mapping[str, Any]) -> None:
        """Refuses what does not fit the network before anything is analysed."""
        depth = self.settings.verbs["depth"]
        if options["masks"] is not None:
            check_fit(self.graph, **options)
            return
        for name, option in self.settings.asked.items():
            if name in self.left_out:
                raise UserError(f"{option} goes by '{name}', which is left out: {self.left_out[name]}")
        by = DEPTH if depth["depth_by"] is None else depth["depth_by"]
        if self.settings.verbs["search"]["max_loss"] is not None or any(name in self._analyses for name in by):
            options = {**options, **dict.fromkeys(LIMITS)}  # what can be reached is only known later
        check_fit(self.graph_of(depth["remove"]), **options)

    def ways(self, options: Mapping[str, Any]) -> Ways:
        """The plan options of every ranking that is to be tried; one entry, as they are, where nothing is to choose."""
        if options["rank_by"] != BEST or options["masks"] is not None:
            return {"": options}
        return {name: {**options, "rank_by": name.split("+")} for name in self.settings.verbs["choose"]["among"]}

    def _measurements(self, ways: Ways) -> list[str]:
        """What the plan wants to have measured before, in the order in which it is."""
        files: list[str] = []
        options = next(iter(ways.values()))
        depth = self.settings.verbs["depth"]
        blocks = any(finding.removable for finding in self.findings()) and depth["depth_by"] != []
        if options["masks"] is None and (blocks or depth["remove"]):
            files.append(self._choose_blocks())
        removed = self._removed()
        if by_sensitivity(options) and any(not group.refusal for group in self.graph_of(removed).groups):
            files.append(self._measure_sensitivity(list(ways.values()), removed))
        if {options["latency"], options["latency_ms"]} != {None} or self.settings.verbs["search"][
            "budget"
        ] == "latency":
            files.append(self._measure_timings())
        return files

    def _planned(self, options: Mapping[str, Any]) -> Plan:
        """A plan for these options; for a latency, corrected by what the pruned network really takes."""
        graph = self.graph_of(self._removed())
        if options["latency"] is None and options["latency_ms"] is None:
            return self._plan(options)
        timings = self._timings()
        images = self.calibration[0][0][: timings.batch]
        whole = measure_latency(self.base, images).median
        asked = min(options["latency"] or 1.0, (options["latency_ms"] or whole) / whole)

        def plan_for(target: float) -> Plan:
            limit = {**options, "latency": target, "latency_ms": None}
            return self._plan(limit, lambda widths: timings.predict(graph, widths))

        def time_of(found: Plan) -> float:
            return measure_latency(prune(self.base, found), images).median

        found, taken = plan_within(asked, whole, plan_for, time_of)
        note = f"measured: {taken:.3g} ms of {whole:.3g} ms ({taken / whole:.1%}) for a batch of {timings.batch}"
        if taken > CLOSE * asked * whole:
            note += f"; {asked:.1%} was asked for and not reached, since what layers take is not all that takes time"
        return replace(found, notes=(*found.notes, note))

    def _plan(self, options: Mapping[str, Any], predict: Callable[[Mapping[str, int]], float] | None = None) -> Plan:
        """A plan for these options, with a note where it lacks the sensitivities that it should have gone by."""
        graph = self.graph_of(self._removed())
        found = plan(self.findings(), graph, self._sensitivity(options), predict, **options)
        why = self._unmeasured(options)
        note = f"widths are uniform, since sensitivity could not be measured: {why}"
        return replace(found, notes=(*found.notes, note)) if why else found

    def _best(
        self,
        ways: Ways,
        known: Mapping[str, float] | None = None,
        remember: Callable[[Mapping[str, float]], None] | None = None,
    ) -> tuple[Plan, float]:
        """The plan of these that keeps most accuracy on validation data after repair, and that accuracy."""
        plans: dict[str, Plan] = {}

        def attempt(name: str) -> float:
            plans[name] = self._planned(ways[name])
            return self.validated(plans[name])

        found = choose_ranking(attempt, known, remember, among=list(ways))
        chosen = plans.get(found.best) or self._planned(ways[found.best])
        if len(ways) > 1:
            others = ", ".join(f"{name} {found.tried[name]:.2%}" for name in ways if name != found.best)
            note = f"ranked by {found.best}: {found.tried[found.best]:.2%} on validation after repair ({others})"
            chosen = replace(chosen, notes=(*chosen.notes, note))
        return chosen, found.tried[found.best]

    def _searched(self, ways: Ways, made_from: Mapping[str, Any]) -> Plan:
        """The smallest budget's plan that loses no more on validation data than asked for."""
        how = self.settings.verbs["search"]
        budget = how["budget"]
        unlimited = dict.fromkeys(("macs", "parameters", "bytes", "latency", "latency_ms"))
        plans: dict[float, Plan] = {}

        def limited(share: float) -> Ways:
            return {name: {**way, **unlimited, budget: share} for name, way in ways.items()}

        def attempt(share: float) -> float:
            try:
                plans[share], accuracy = self._best(limited(share))
            except UserError:  # out of reach; the next share up is tried
                return math.nan
            return accuracy

        halvings = math.ceil(math.log2(max(1.0, (1 - how["least"]) / max(how["tolerance"], 1e-6))))
        base, known, remember = self._remembered("search.json", made_from, 1 + halvings, "plan.json")
        found = search(attempt, base, known, remember, **how)
        # Of a search that went on, the plan is made again; where nothing is to choose, its accuracy is known.
        chosen = plans.get(found.share) or self._best(limited(found.share), {"": found.accuracy})[0]
        note = (
            f"the smallest share of {budget} tried that loses at most {how['max_loss']:g} points on validation is "
            f"{found.share:.1%} ({base:.2%} before, {found.accuracy:.2%} after repair; {len(found.tried)} tried)"
        )
        return replace(chosen, notes=(*chosen.notes, note))

    def _choose_blocks(self) -> str:
        """Decides, if analyses name any or the recipe does, which blocks go; `depth.json` keeps what was tried."""
        file, trials, options = "depth.json", "depth-trials.json", self.settings.verbs["depth"]
        inputs = [self._finding_name(name) for name in self._analyses]
        made_from = self.made_from({**options, "repair": self.settings.verbs["repair"]}, *inputs)

        def make() -> None:
            named = {block for finding in self.findings() for block in finding.removable}
            base, known, remember = self._remembered(trials, made_from, 2 * len(named), file)

            def attempt(blocks: tuple[str, ...]) -> float:
                graph = self.graph_of(blocks)
                return self.validated(
                    Plan((), {}, graph.unpruned.macs, graph.macs({}), graph.input_shape, removed=blocks)
                )

            found = choose_blocks(self.findings(), attempt, base, known, remember, **options)
            self._write_json(file, made_from, {"base": base, **to_json(found)})
            self.directory.remove(trials)

        self._step("depth", file, made_from, make)
        return file

    def confirmed_blocks(self) -> tuple[dict[str, float], tuple[str, ...], float]:
        """What validation says of the blocks that analyses name: accuracies tried, blocks that go, and the base's."""
        path = self.out / self._choose_blocks()
        found = store.read_json(path)
        base: float = from_json(found.get("base"), float, str(path))
        return from_json(found.get("tried"), dict[str, float], str(path)), self._removed(), base

    def _removed(self) -> tuple[str, ...]:
        path = self.out / "depth.json"
        if "depth" not in self._told:
            return ()
        return from_json(store.read_json(path).get("removed"), tuple[str, ...], str(path))

    def _remembered(
        self, file: str, made_from: Mapping[str, Any], most: int, of: str
    ) -> tuple[float, dict[str, float], Callable[[Mapping[str, float]], None]]:
        """The unpruned model's validation accuracy, what was tried before of `most`, and how to note what is.

        The file is a part of the artifact `of`, so that damage to it is noticed.
        """
        before, path = self.directory.recall(file), str(self.out / file)
        if before.get(MADE_FROM) != made_from:
            before = {"base": self._accuracy(self.base), "tried": {}}
        base: float = from_json(before.get("base"), float, path)
        tried = from_json(before.get("tried"), dict[str, float | None], path)
        known = {key: math.nan if value is None else value for key, value in tried.items()}

        def remember(tried: Mapping[str, float]) -> None:
            self.progress.advance("trials", len(tried), max(most, len(tried)))
            rows = {key: None if math.isnan(value) else value for key, value in tried.items()}
            self._write_json(file, made_from, {"base": base, "tried": rows}, of)

        return base, known, remember

    def validated(self, chosen: Plan) -> float:
        """Validation accuracy of a plan's network after repair."""
        model = prune(self.base, chosen)
        options = self.settings.verbs["repair"]
        graph, kept = self.graph_of(chosen.removed), chosen.kept()
        repair(model, self.base, graph, kept, self.calibration, None, self.views, **options)
        return self._accuracy(model)

    def _accuracy(self, model: nn.Module) -> float:
        batches = self.data.batches("validation", batch_size=self.settings.run.batch_size, device=self.device)
        return evaluate(model, batches).accuracy

    def sensitivity(self) -> dict[str, dict[int, float]]:
        """Per group, width -> loss, as measured for the plan; empty where it needed none."""
        options = self.settings.verbs["plan"]
        return self._sensitivity({**options, "rank_by": self.planned.ranked_by})
