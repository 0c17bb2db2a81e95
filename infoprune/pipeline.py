"""Recipe -> run directory: each step leaves one artifact, and is skipped where that came from equal inputs."""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from infoprune import checkpoint, distributed, reporting, store
from infoprune.artifacts import ExportResult, Exports, Metrics, Score, StageMetrics, Verification
from infoprune.choosing import Choosing
from infoprune.encoding import differing, from_json, to_json
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
from infoprune.workspace import Progress, versions

STEPS = ("analyze", "plan", "prune", "repair", "finetune", "evaluate", "export", "report")


def run(recipe: Recipe, out: Path | str, progress: Progress | None = None, *, force: bool = False) -> Metrics:
    """Runs all steps of a recipe.

    Args:
        recipe: from `infoprune.recipe.read`.
        out: the run directory; steps whose artifact in it came from equal inputs are skipped.
        progress: told about each step; in a notebook, bars if not given.
        force: accept a folder that holds other files; they stay as they are.

    Returns:
        What `metrics.json` says of each stage.

    Raises:
        UserError: for anything in the recipe, the data or the model that the user has to mend.
        RunError: where a step fails, such as a verification that does not hold.
    """
    job = Run(recipe, out, progress or bars_in_notebook(), force)
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
        made_from = self.made_from({}, "plan.json")

        def make() -> None:
            smaller = prune(self.base, self.planned)
            images = self.calibration[0][0]
            proof = verify(self.base, smaller, self.graph_of(self.planned.removed), self.planned.kept(), images)
            self._save("pruned", smaller, made_from, verification=to_json(proof))

        self._step("prune", self._name("pruned"), made_from, make)

    def repair(self) -> None:
        """Brings accuracy back without training and writes `repaired.safetensors`."""
        self.prune()
        options = self.settings.verbs["repair"]
        made_from = self.made_from(options, self._name("pruned"))
        # Gradient steps and running statistics are no sums: those methods are the first process's alone.
        shared = options["method"] == "compensate" and not options["match"]

        def make() -> None:
            model = copy.deepcopy(self._model("pruned"))
            batches = distributed.Share(self.calibration) if shared else self.calibration
            graph = self.graph_of(self.planned.removed)
            kept, tell = self.planned.kept(), self._advance("repair")
            repair(model, self.base, graph, kept, batches, tell, self.views, **options)
            self._save("repaired", model, made_from)

        self._step("repair", self._name("repaired"), made_from, make, together=shared)

    def finetune(self) -> None:
        """Trains the repaired model with the unpruned one as teacher and writes `finetuned.safetensors`."""
        self.repair()
        options = self.settings.verbs["finetune"]
        given = {**options, "batch_size": self.settings.run.batch_size, **self._plane_wanted()}
        own = [options["loss"], options["metric"]]
        made_from = self.made_from(given, self._name("repaired"), code=own, calibrated=False)

        def make() -> None:
            self._fit("finetune", copy.deepcopy(self._model("repaired")), self.base, made_from)

        self._step("finetune", self._name("finetuned"), made_from, make, together=True)
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
        if not self._is_there(self._name("base"), origin):
            self._save("base", self.base, origin)
            distributed.wait()
        made_from = self.made_from(options, *(self._name(stage) for stage in STAGES), calibrated=False)

        def make() -> None:
            scores = {stage: self._score(stage) for stage in STAGES}
            if not distributed.is_first():
                return
            rows = {}
            for done, (stage, score) in enumerate(scores.items(), start=1):
                rows[stage] = to_json(self._measure(stage, score, options))
                self.progress.advance("evaluate latency", done, len(scores))
            proof = to_json(checkpoint.proof_of(self._file("pruned")))
            self._write_json("metrics.json", made_from, {**rows, "verification": proof})

        self._step("evaluate", "metrics.json", made_from, make, together=True)

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
        options, index = self.settings.verbs["export"], "export/export.json"
        made_from = self.made_from(options, self._name("finetuned"), "metrics.json")

        def make() -> None:
            images, header = [batch for batch, _ in self.calibration], store.read_metadata(self._file("finetuned"))
            with self.directory.scratch() as folder:
                model = self._model("finetuned")
                files = export(model, images[0][:8], folder, images, self._scored, header, self._card, **options)
                for path in sorted(folder.iterdir()):
                    self.directory.place(path, f"export/{path.name}", index, store.value_fingerprint(made_from))
            rows = [{**to_json(file), "path": file.path.name} for file in files]
            self._write_json(index, made_from, {"files": rows})

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
        index = "report.json"
        findings = [self._finding_name(name) for name in self._analyses]
        inputs = [*findings, "plan.json", "metrics.json", "export/export.json"]
        inputs += ["compare.json"] if self.directory.state("compare.json") == "whole" else []
        made_from = self.made_from({"recipe": self.settings.recipe.text}, *inputs)

        def make() -> None:
            about = self._about(findings)
            contents, origin = gather(self.out, about), store.value_fingerprint(made_from)
            self.directory.write("report.html", lambda path: reporting.report(path, contents), index, origin)
            self._write_json(index, made_from, {"page": "report.html", "about": to_json(about)})

        self._step("report", index, made_from, make)

    def _about(self, findings: Sequence[str]) -> About:
        """What the report needs and no other artifact says."""
        return About(
            title=self.settings.recipe.name,
            recipe=self.settings.recipe.text,
            findings=tuple(findings),
            planes=self._plane_name("finetune") if self.settings.plane.points else "",
            layers=tuple(layer_changes(self.graph, self.graph_of(self.planned.removed), self.planned)),
            versions=versions(),
        )

    def train(self, replace: bool = False) -> StageMetrics:
        """Trains the recipe's model from scratch and writes `trained.safetensors`: how shipped weights are made.

        Args:
            replace: train again where weights lie there that came from other options.

        Raises:
            UserError: where such weights lie there, and they are not to be replaced.
        """
        with distributed.together():
            options = self.settings.verbs["train"]
            given = {**options, "batch_size": self.settings.run.batch_size, **self._plane_wanted()}
            own = [options["loss"], options["metric"]]
            made_from = self.made_from(given, code=own, calibrated=False, weighted=False)
            if not replace:
                self._keep_earlier_training(made_from)

            def make() -> None:
                torch.manual_seed(self.settings.run.seed)
                self._fit("train", checkpoint.build(self.settings.model).to(self.device), None, made_from)

            self._step("train", self._name("trained"), made_from, make, together=True)
            self._epochs("train", made_from).clear()
            score = self._score("trained")
            with distributed.in_turn():
                return self._measure("trained", score, self.settings.verbs["evaluate"])

    def _keep_earlier_training(self, made_from: Mapping[str, Any]) -> None:
        """Raises UserError where weights of a training with other options would be replaced."""
        name = self._name("trained")
        if self.directory.state(name) == "absent" or self._is_there(name, made_from):
            return
        damaged = self.directory.damaged(name)
        changes = ", ".join(damaged or differing(self._origin_of(name), made_from)) or "files beside it"
        raise UserError(
            f"'{self._file('trained')}' holds weights of an earlier training and would be replaced (changed: "
            f"{changes}); add --replace to train again, or choose another folder with --out"
        )
