"""Recipe -> run directory: each step leaves one artifact, and is skipped where that came from equal inputs."""

import copy
import dataclasses
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import nn

from infoprune import __version__, checkpoint, distributed, reporting, store
from infoprune.artifacts import ExportResult, Exports, Metrics, Score, StageMetrics, Verification
from infoprune.choosing import Choosing
from infoprune.encoding import from_json, to_json
from infoprune.errors import UserError
from infoprune.exporting import export
from infoprune.exporting.card import Origin, model_card
from infoprune.gathering import STAGES, About, gather, layer_changes
from infoprune.notebook import bars_in_notebook
from infoprune.profiling import profile
from infoprune.pruning import prune
from infoprune.recipe import Recipe
from infoprune.repairing import repair
from infoprune.training import evaluate
from infoprune.verifying import verify
from infoprune.workspace import MADE_FROM, Progress

STEPS = ("analyze", "plan", "prune", "repair", "finetune", "evaluate", "export", "report")


def run(recipe: Recipe, out: Path | str, progress: Progress | None = None) -> Metrics:
    """Runs all steps of a recipe.

    Args:
        recipe: from `infoprune.recipe.read`.
        out: the run directory; steps whose artifact in it came from equal inputs are skipped.
        progress: told about each step; in a notebook, bars if not given.

    Returns:
        What `metrics.json` says of each stage.

    Raises:
        UserError: for anything in the recipe, the data or the model that the user has to mend.
        RunError: where a step fails, such as a verification that does not hold.
    """
    job = Run(recipe, out, progress or bars_in_notebook())
    job.until("report")
    return job.metrics()


class Run(Choosing):
    """The steps of a recipe, in their order; each first does those before it."""

    def until(self, step: str) -> None:
        """Runs one step of `STEPS` and all that it needs."""
        with distributed.together():
            getattr(self, step)()

    def prune(self) -> None:
        """Removes the channels, proves the result against the masked twin, and writes `pruned.safetensors`."""
        self.plan()
        made_from = self.made_from({}, self.out / "plan.json")

        def make() -> None:
            smaller = prune(self.base, self.planned)
            images = self.calibration[0][0]
            proof = verify(self.base, smaller, self.graph_of(self.planned.removed), self.planned.kept(), images)
            self._save("pruned", smaller, made_from, verification=to_json(proof))

        self._step("prune", self._file("pruned"), made_from, make)

    def repair(self) -> None:
        """Brings accuracy back without training and writes `repaired.safetensors`."""
        self.prune()
        options = self.settings.verbs["repair"]
        made_from = self.made_from(options, self._file("pruned"))
        # Gradient steps and running statistics are no sums: those methods are the first process's alone.
        shared = options["method"] == "compensate" and not options["match"]

        def make() -> None:
            model = copy.deepcopy(self._model("pruned"))
            batches = distributed.Share(self.calibration) if shared else self.calibration
            graph = self.graph_of(self.planned.removed)
            kept, tell = self.planned.kept(), self._advance("repair")
            repair(model, self.base, graph, kept, batches, tell, self.views, **options)
            self._save("repaired", model, made_from)

        self._step("repair", self._file("repaired"), made_from, make, together=shared)

    def finetune(self) -> None:
        """Trains the repaired model with the unpruned one as teacher and writes `finetuned.safetensors`."""
        self.repair()
        options = self.settings.verbs["finetune"]
        given = {**options, "batch_size": self.settings.run.batch_size, **self._plane_wanted()}
        made_from = self.made_from(given, self._file("repaired"), calibrated=False)

        def make() -> None:
            self._fit("finetune", copy.deepcopy(self._model("repaired")), self.base, made_from)

        self._step("finetune", self._file("finetuned"), made_from, make, together=True)
        self._epochs("finetune", made_from).clear()

    def _plane_wanted(self) -> dict[str, int]:
        """What makes a training stale that took no look, or another one, at the information plane."""
        points = self.settings.plane.points
        return {"plane": points} if points else {}

    def evaluate(self) -> None:
        """Measures all four stages on the test split and writes `metrics.json`."""
        self.finetune()
        options = self.settings.verbs["evaluate"]
        origin = self.made_from({})
        if not self._is_there(self._file("base"), origin):
            self._save("base", self.base, origin)
            distributed.wait()
        made_from = self.made_from(options, *(self._file(stage) for stage in STAGES), calibrated=False)

        def make() -> None:
            scores = {stage: self._score(stage) for stage in STAGES}
            if not distributed.is_first():
                return
            rows = {}
            for done, (stage, score) in enumerate(scores.items(), start=1):
                rows[stage] = to_json(self._measure(stage, score, options))
                self.progress.advance("evaluate latency", done, len(scores))
            proof = checkpoint.header_of(self._file("pruned"))["verification"]
            store.write_json(self.out / "metrics.json", {MADE_FROM: made_from, **rows, "verification": proof})

        self._step("evaluate", self.out / "metrics.json", made_from, make, together=True)

    def _score(self, stage: str) -> Score:
        return evaluate(self._model(stage), self.batches("test"), self._advance(f"evaluate {stage}"))

    def _measure(self, stage: str, score: Score, options: Mapping[str, Any]) -> StageMetrics:
        cost = profile(self._model(stage), self.calibration[0][0], **options)
        size = self._file(stage).stat().st_size
        return StageMetrics(score.accuracy, score.loss, cost.parameters, cost.macs, size, cost.latency)

    def metrics(self) -> Metrics:
        """What `metrics.json` says of each stage."""
        found = store.read_json(self.out / "metrics.json")
        return Metrics(
            {stage: from_json(found[stage], StageMetrics, "metrics.json") for stage in STAGES if stage in found}
        )

    def export(self) -> None:
        """Writes the fine-tuned model in other formats, each checked against it, and a model card, under `export/`."""
        self.evaluate()
        options, index = self.settings.verbs["export"], self.out / "export" / "export.json"
        made_from = self.made_from(options, self._file("finetuned"), self.out / "metrics.json")

        def make() -> None:
            before: list[ExportResult] = []
            with suppress(UserError):  # none yet, or of an older version
                before = self.exports()
            images, header = [batch for batch, _ in self.calibration], store.read_metadata(self._file("finetuned"))
            files = export(
                self._model("finetuned"),
                images[0][:8],
                index.parent,
                images,
                self._scored,
                header,
                self._card,
                **options,
            )
            rows = [{**to_json(file), "path": file.path.name} for file in files]
            store.write_json(index, {MADE_FROM: made_from, "files": rows})
            for path in {file.path for file in before} - {file.path for file in files}:
                path.unlink(missing_ok=True)  # of another network by now

        self._step("export", index, made_from, make)

    def exports(self) -> Exports:
        """What `export/export.json` says of each file."""
        index = self.out / "export" / "export.json"
        rows = from_json(store.read_json(index).get("files"), list[ExportResult], str(index))
        return Exports(dataclasses.replace(row, path=index.parent / row.path.name) for row in rows)

    def _scored(self, model: nn.Module) -> Score:
        """On the split that `evaluate` uses, all of it in this process, on the CPU: what ONNX Runtime needs."""
        batches = self.data.batches("test", batch_size=self.settings.run.batch_size)
        return evaluate(model, batches, self._advance("export"))

    def _card(self, files: Sequence[ExportResult], license: str) -> str:
        proof = store.read_json(self.out / "metrics.json").get("verification")
        return model_card(
            Origin(
                title=self.settings.recipe.name,
                data=self.data.name,
                reference=self.settings.model,
                plan=self.planned,
                metrics=self.metrics(),
                verification=from_json(proof, Verification, "metrics.json"),
                recipe_text=self.settings.recipe.text,
                versions=versions(),
            ),
            files,
            license,
        )

    def report(self) -> None:
        """Writes `report.html`; with the cells of `compare.json`, where there is one."""
        self.export()
        page, index = self.out / "report.html", self.out / "report.json"
        findings = [self._finding_file(name) for name in self._analyses]
        inputs = [*findings, self.out / "plan.json", self.out / "metrics.json", self.out / "export" / "export.json"]
        compared = self.out / "compare.json"
        made_from = self.made_from(
            {"recipe": self.settings.recipe.text}, *inputs, *([compared] if compared.exists() else [])
        )

        def make() -> None:
            about = self._about(findings)
            reporting.report(page, gather(self.out, about))
            store.write_json(index, {MADE_FROM: made_from, "page": page.name, "about": to_json(about)})

        self._step("report", index if page.exists() else page, made_from, make)

    def _about(self, findings: Sequence[Path]) -> About:
        """What the report needs and no other artifact says."""
        return About(
            title=self.settings.recipe.name,
            recipe=self.settings.recipe.text,
            findings=tuple(path.relative_to(self.out).as_posix() for path in findings),
            planes=self._plane_file("finetune").name if self.settings.plane.points else "",
            layers=tuple(layer_changes(self.graph, self.graph_of(self.planned.removed), self.planned)),
            versions=versions(),
        )

    def train(self) -> StageMetrics:
        """Trains the recipe's model from scratch and writes `trained.safetensors`: how shipped weights are made."""
        with distributed.together():
            torch.manual_seed(self.settings.run.seed)
            model = checkpoint.build(self.settings.model).to(self.device)
            self.progress.step("train", "running")
            given = {**self.settings.verbs["train"], "batch_size": self.settings.run.batch_size, **self._plane_wanted()}
            made_from = self.made_from(given, calibrated=False, weighted=False)
            self._fit("train", model, None, made_from)
            self._epochs("train", made_from).clear()
            self.progress.step("train", "done")
            score = self._score("trained")
            with distributed.in_turn():
                return self._measure("trained", score, self.settings.verbs["evaluate"])


def versions() -> dict[str, str]:
    """What results depend on, by name."""
    libraries = {name: metadata.version(name) for name in ("torch", "torchvision", "torch-pruning")}
    return {"infoprune": __version__, "Python": platform.python_version(), **libraries}
