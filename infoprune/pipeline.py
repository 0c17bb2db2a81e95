"""Recipe -> run directory: each step leaves one artifact, and is skipped where that came from equal inputs."""

import copy
import csv
import dataclasses
import io
import platform
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec
import torch

from infoprune import __version__, checkpoint, reporting, store
from infoprune.artifacts import Analysis, EpochRecord, Finding, StageMetrics, Verification
from infoprune.encoding import from_json, to_json
from infoprune.exporting import export
from infoprune.observing import analyze
from infoprune.planning import group_scores, plan
from infoprune.profiling import profile
from infoprune.pruning import prune
from infoprune.recipe import Recipe
from infoprune.repairing import repair
from infoprune.repairing.probing import measure_sensitivity
from infoprune.training import evaluate, finetune
from infoprune.verifying import verify
from infoprune.workspace import MADE_FROM, Progress, Workspace

STAGES = ("base", "pruned", "repaired", "finetuned")
# Activations of all of them are kept at once, and losses of single groups need no more.
SENSITIVITY_BATCHES = 4
STEPS = ("analyze", "plan", "prune", "repair", "finetune", "evaluate", "export", "report")


def run(recipe: Recipe, out: Path | str, progress: Progress | None = None) -> Mapping[str, StageMetrics]:
    """Runs all steps of a recipe.

    Args:
        recipe: from `infoprune.recipe.read`.
        out: the run directory; steps whose artifact in it came from equal inputs are skipped.
        progress: told about each step.

    Returns:
        What `metrics.json` says of each stage.

    Raises:
        UserError: for anything in the recipe, the data or the model that the user has to mend.
        RunError: where a step fails, such as a verification that does not hold.
    """
    job = Run(recipe, out, progress)
    job.until("report")
    return job.metrics()


class Run(Workspace):
    """The steps of a recipe, in their order; each first does those before it."""

    def until(self, step: str) -> None:
        """Runs one step of `STEPS` and all that it needs."""
        getattr(self, step)()

    def analyze(self) -> None:
        """Runs the analyses whose findings are missing or came from something else, in one pass."""
        stale: dict[str, Analysis] = {}
        made_from = {name: self._made_from(options) for name, options in self.settings.analyses.items()}
        for name, analysis in self._analyses.items():
            path = self._finding_file(name)
            if not path.exists() or self._origin_of(path) != made_from[name]:
                stale[name] = analysis
        if not stale:
            if "analyze" not in self._told:
                self.progress.step("analyze", "up to date")
            self._told.add("analyze")
            return
        self.progress.step("analyze", "running")
        groups = [group for group in self.graph.groups if not group.refusal]
        layers = [member.layer for group in groups for member in group.members if member.side == "out"]
        total = len(self.calibration)
        found = analyze(
            self.base,
            self.calibration,
            list(stale.values()),
            lambda done: self.progress.advance("analyze", done, total),
            layers=layers,
        )
        for name, finding in zip(stale, found, strict=True):
            store.write_json(self._finding_file(name), {MADE_FROM: made_from[name], **to_json(finding)})
        self.progress.step("analyze", "done")
        self._told.add("analyze")

    def _finding_file(self, name: str) -> Path:
        return self.out / "findings" / f"{name.replace(':', '.').replace('/', '.')}.json"

    def findings(self) -> list[Finding]:
        """What all analyses of the recipe found."""
        paths = [self._finding_file(name) for name in self.settings.analyses]
        return [from_json(store.read_json(path), Finding, str(path)) for path in paths]

    def plan(self) -> None:
        """Chooses the channels to keep and writes `plan.json`, which may be edited by hand afterwards."""
        self.analyze()
        path, options = self.out / "plan.json", self.settings.verbs["plan"]
        inputs = [self._finding_file(name) for name in self.settings.analyses]
        if options["allocation"] == "sensitivity":
            inputs.append(self._measure_sensitivity())
        made_from = self._made_from(options, *inputs)

        def make() -> None:
            chosen = plan(self.findings(), self.graph, self._sensitivity(), **options)
            store.write_json(path, {MADE_FROM: made_from, **to_json(chosen)})

        self._step("plan", path, made_from, make)

    def _measure_sensitivity(self) -> Path:
        """Measures, if the plan wants it, what each group costs at several widths; `sensitivity.json` keeps it."""
        options, how = self.settings.verbs["sensitivity"], self.settings.verbs["plan"]
        path, finding = self.out / "sensitivity.json", self._finding_file(how["rank_by"])
        made_from = self._made_from({**options, "reduce": how["reduce"]}, finding)

        def make() -> None:
            ranking = from_json(store.read_json(finding), Finding, str(finding))
            free = [group for group in self.graph.groups if not group.refusal]
            scores = {group.name: group_scores(ranking, group, how["reduce"]) for group in free}
            few = self.calibration[:SENSITIVITY_BATCHES]
            table = measure_sensitivity(self.base, self.graph, scores, few, self._advance("sensitivity"), **options)
            store.write_json(path, {MADE_FROM: made_from, "losses": table})

        self._step("sensitivity", path, made_from, make)
        return path

    def _sensitivity(self) -> dict[str, dict[int, float]] | None:
        path = self.out / "sensitivity.json"
        if self.settings.verbs["plan"]["allocation"] != "sensitivity":
            return None
        losses = store.read_json(path).get("losses", {})
        return {group: {int(width): loss for width, loss in row.items()} for group, row in losses.items()}

    def prune(self) -> None:
        """Removes the channels, proves the result against the masked twin, and writes `pruned.safetensors`."""
        self.plan()
        made_from = self._made_from({}, self.out / "plan.json")

        def make() -> None:
            smaller = prune(self.base, self.planned)
            images = self.calibration[0][0]
            proof = verify(self.base, smaller, self.graph, self.planned.kept(), images)
            self._save("pruned", smaller, made_from, verification=to_json(proof))

        self._step("prune", self._file("pruned"), made_from, make)

    def repair(self) -> None:
        """Brings accuracy back without training and writes `repaired.safetensors`."""
        self.prune()
        options = self.settings.verbs["repair"]
        made_from = self._made_from(options, self._file("pruned"))

        def make() -> None:
            model = copy.deepcopy(self._model("pruned"))
            kept = self.planned.kept()
            repair(model, self.base, self.graph, kept, self.calibration, self._advance("repair"), **options)
            self._save("repaired", model, made_from)

        self._step("repair", self._file("repaired"), made_from, make)

    def finetune(self) -> None:
        """Trains the repaired model with the unpruned one as teacher and writes `finetuned.safetensors`."""
        self.repair()
        options, run_options = self.settings.verbs["finetune"], self.settings.run
        given = {**options, "batch_size": run_options.batch_size}
        made_from = self._made_from(given, self._file("repaired"), calibrated=False)

        def make() -> None:
            model = copy.deepcopy(self._model("repaired"))
            history = finetune(
                model,
                self._batches("train"),
                self._batches("validation"),
                self.base,
                self._advance("finetune"),
                seed=run_options.seed,
                **options,
            )
            self._write_history("history.csv", history)
            self._save("finetuned", model, made_from)

        self._step("finetune", self._file("finetuned"), made_from, make)

    def _write_history(self, name: str, history: list[EpochRecord]) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, [field.name for field in dataclasses.fields(EpochRecord)])
        writer.writeheader()
        writer.writerows(dataclasses.asdict(record) for record in history)
        store.write_atomically(self.out / name, lambda path: path.write_text(text.getvalue(), encoding="utf-8"))

    def _history(self, name: str) -> list[EpochRecord]:
        with (self.out / name).open(encoding="utf-8", newline="") as file:
            return msgspec.convert(list(csv.DictReader(file)), list[EpochRecord], strict=False)

    def evaluate(self) -> None:
        """Measures all four stages on the test split and writes `metrics.json`."""
        self.finetune()
        options = self.settings.verbs["evaluate"]
        if not self._file("base").exists() or self._origin_of(self._file("base")) != self._made_from({}):
            self._save("base", self.base, self._made_from({}))
        made_from = self._made_from(options, *(self._file(stage) for stage in STAGES), calibrated=False)

        def make() -> None:
            rows = {stage: to_json(self._measure(stage, options)) for stage in STAGES}
            proof = checkpoint.header_of(self._file("pruned"))["verification"]
            store.write_json(self.out / "metrics.json", {MADE_FROM: made_from, **rows, "verification": proof})

        self._step("evaluate", self.out / "metrics.json", made_from, make)

    def _measure(self, stage: str, options: Mapping[str, Any]) -> StageMetrics:
        model = self._model(stage)
        score = evaluate(model, self._batches("test"), self._advance(f"evaluate {stage}"))
        cost = profile(model, self.calibration[0][0], **options)
        size = self._file(stage).stat().st_size
        return StageMetrics(score.accuracy, score.loss, cost.parameters, cost.macs, size, cost.latency)

    def metrics(self) -> dict[str, StageMetrics]:
        """What `metrics.json` says of each stage."""
        found = store.read_json(self.out / "metrics.json")
        return {stage: from_json(found[stage], StageMetrics, "metrics.json") for stage in STAGES if stage in found}

    def export(self) -> None:
        """Writes the fine-tuned model in other formats, each checked against it, under `export/`."""
        self.finetune()
        options, index = self.settings.verbs["export"], self.out / "export" / "export.json"
        made_from = self._made_from(options, self._file("finetuned"))

        def make() -> None:
            images = self.calibration[0][0][:8]
            files = export(self._model("finetuned"), images, index.parent, **options)
            rows = [{**dataclasses.asdict(file), "path": file.path.name} for file in files]
            store.write_json(index, {MADE_FROM: made_from, "files": rows})

        self._step("export", index, made_from, make)

    def report(self) -> None:
        """Writes `report.html`."""
        self.evaluate()
        self.export()
        page, index = self.out / "report.html", self.out / "report.json"
        findings = [self._finding_file(name) for name in self.settings.analyses]
        inputs = (*findings, self.out / "plan.json", self.out / "metrics.json", self.out / "export" / "export.json")
        made_from = self._made_from({"recipe": self.settings.recipe.text}, *inputs)

        def make() -> None:
            reporting.report(page, self._report_contents())
            store.write_json(index, {MADE_FROM: made_from, "page": page.name})

        self._step("report", index if page.exists() else page, made_from, make)

    def _report_contents(self) -> reporting.ReportContents:
        proof = store.read_json(self.out / "metrics.json")["verification"]
        return reporting.ReportContents(
            title=self.settings.recipe.name,
            recipe_text=self.settings.recipe.text,
            plan=self.planned,
            metrics=self.metrics(),
            verification=from_json(proof, Verification, "metrics.json"),
            findings=self.findings(),
            history=self._history("history.csv"),
            versions={
                "infoprune": __version__,
                "Python": platform.python_version(),
                **{name: metadata.version(name) for name in ("torch", "torchvision", "torch-pruning")},
            },
            notes=self.planned.notes,
        )

    def train(self) -> StageMetrics:
        """Trains the recipe's model from scratch and writes `trained.safetensors`: how shipped weights are made."""
        seed, options = self.settings.run.seed, self.settings.verbs["train"]
        torch.manual_seed(seed)
        model = checkpoint.build(self.settings.model).to(self.device)
        self.progress.step("train", "running")
        history = finetune(
            model,
            self._batches("train"),
            self._batches("validation"),
            None,
            self._advance("train"),
            seed=seed,
            **options,
        )
        self._write_history("training.csv", history)
        checkpoint.save(self._file("trained"), model, self.settings.model)
        self._models["trained"] = model
        self.progress.step("train", "done")
        return self._measure("trained", self.settings.verbs["evaluate"])
