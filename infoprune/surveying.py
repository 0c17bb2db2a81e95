"""What a plan is made from: what analyses find, what widths cost, what layers take; each measured once and kept."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from torch import Tensor, nn

from infoprune import distributed, store
from infoprune.artifacts import Analysis, Finding, Timings
from infoprune.encoding import from_json, to_json
from infoprune.errors import UserError, shortages
from infoprune.observing import analyze
from infoprune.planning import first_channels
from infoprune.planning.constraints import Constraints
from infoprune.planning.ranking import Ranking
from infoprune.pruning import prune
from infoprune.repairing.probing import measure_sensitivities
from infoprune.timing import measure_timings
from infoprune.workspace import Workspace

# Activations of all of them are kept at once, and losses of single groups need no more.
SENSITIVITY_BATCHES = 4


class Surveying(Workspace):
    """The steps that measure the unpruned network."""

    def analyze(self) -> None:
        """Runs the analyses whose findings are missing or came from something else, in one pass."""
        if "analyze" in self._told:
            return
        self._told.add("analyze")
        made_from = {
            name: self.made_from(options, code=[name])
            for name, options in self.settings.analyses.items()
            if name in self._analyses
        }
        stale: dict[str, Analysis] = {
            name: analysis
            for name, analysis in self._analyses.items()
            if not self._is_there(self._finding_name(name), made_from[name])
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
            # Options name an analysis as the recipe does, whatever a user's own calls its finding.
            content = to_json(replace(finding, analysis=name))
            self._write_json(self._finding_name(name), made_from[name], content)
        distributed.wait()
        self.progress.step("analyze", "done")

    def findings(self) -> list[Finding]:
        """What all analyses of the recipe found."""
        paths = [self.out / self._finding_name(name) for name in self._analyses]
        return [from_json(store.read_json(path), Finding, str(path)) for path in paths]

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

    def _measure_sensitivity(self, ways: Sequence[Mapping[str, Any]], removed: Sequence[str]) -> str:
        """Measures what each group costs at several widths, filters ranked as each of these plan options says."""
        file, options = "sensitivity.json", self.settings.verbs["sensitivity"]
        graph, signals = self.graph_of(removed), ("rank_by", "redundancy_by", "redundancy_weight", "reduce", "scale")
        ranked = [{key: how[key] for key in signals} for how in ways]
        rankings = [Ranking(self.findings(), *each.values()) for each in ranked]
        used = dict.fromkeys(finding.analysis for each in rankings for finding in (*each.main, *each.more))
        refused = Constraints(protect=ways[0]["protect"], only=ways[0]["only"]).refused(graph)
        free = [group for group in graph.groups if group.name not in refused]
        made_from = self.made_from(
            {**options, "rankings": ranked, "removed": removed, "groups": [group.name for group in free]},
            *(self._finding_name(name) for name in used),
        )

        def make() -> None:
            scores = {each.key: each.of(free) for each in rankings}
            few = self.calibration[:SENSITIVITY_BATCHES]
            try:
                tables = measure_sensitivities(self.base, graph, scores, few, self._advance("sensitivity"), **options)
                self._write_json(file, made_from, {"losses": tables})
            except UserError as error:
                if ways[0]["allocation"] is not None:
                    raise
                # Not every model can be traced, and nobody asked for it: widths are uniform then.
                self._write_json(file, made_from, {"losses": {}, "refused": str(error)})

        self._step("sensitivity", file, made_from, make)
        return file

    def _sensitivity(self, how: Mapping[str, Any]) -> dict[str, dict[int, float]]:
        """Per group, width -> loss, as measured for these plan options; empty where they need none."""
        path, by = self.out / "sensitivity.json", how["rank_by"]
        if not by_sensitivity(how) or not path.exists():
            return {}
        losses = from_json(store.read_json(path).get("losses"), dict[str, dict[str, dict[int, float]]], str(path))
        return losses.get(by if isinstance(by, str) else "+".join(by), {})

    def _unmeasured(self, how: Mapping[str, Any]) -> str:
        """Why sensitivities that these plan options would go by could not be measured; empty where they were."""
        path = self.out / "sensitivity.json"
        if not by_sensitivity(how) or not path.exists():
            return ""
        return from_json(store.read_json(path).get("refused", ""), str, str(path))

    def _measure_timings(self) -> str:
        """Measures, if the plan wants it, what layers take at several widths; `timings.json` keeps it."""
        file, options = "timings.json", self.settings.verbs["timings"]
        made_from = self.made_from({**options, "device": str(self.device)})

        def narrowed(share: float) -> tuple[nn.Module, Mapping[str, int]]:
            chosen = first_channels(self.graph, share)
            return prune(self.base, chosen), {group.group: group.width_after for group in chosen.groups}

        def make() -> None:
            images = self.calibration[0][0]
            found = measure_timings(self.base, images, self.graph, narrowed, self._advance("timings"), **options)
            self._write_json(file, made_from, to_json(found))

        self._step("timings", file, made_from, make)
        return file

    def _timings(self) -> Timings:
        path = self.out / "timings.json"
        return from_json(store.read_json(path), Timings, str(path))


def by_sensitivity(options: Mapping[str, Any]) -> bool:
    """Whether a plan with these options goes by measured sensitivity, where there is any."""
    asked = options["allocation"] in ("sensitivity", None) and options["width_as"] != "prior"
    return asked and options["masks"] is None
