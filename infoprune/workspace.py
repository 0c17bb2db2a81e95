"""A run directory and what the steps in it share: the recipe's model and data, and where each artifact came from."""

import copy
import logging
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from infoprune import __version__, checkpoint, distributed, registry, store
from infoprune.artifacts import ChannelGraph, Plan
from infoprune.datasets.image_folder import NAMES as SPLIT_NAMES
from infoprune.encoding import differing, from_json, to_json
from infoprune.errors import UserError, shortages
from infoprune.exporting import EXPORTED
from infoprune.histories import write_history
from infoprune.planes import PlaneFile
from infoprune.planning.masks import compose
from infoprune.provenance import sources
from infoprune.pruning import channel_graph, check_plan
from infoprune.recipe import Recipe
from infoprune.resuming import EpochFile
from infoprune.run_directory import RunDirectory
from infoprune.settings import Settings, bind_recipe
from infoprune.splits import Batches, Data, SplitName, first
from infoprune.training import finetune
from infoprune.vetting import make_analysis

LOGGER = logging.getLogger(__name__)
# Under this key every artifact says which options and inputs it came from.
MADE_FROM = "made_from"
# What the two verbs that train leave: a model, and the history of its training.
FITS = {"finetune": ("finetuned", "history.csv"), "train": ("trained", "training.csv")}
WHOLE = ("base", "trained")  # stages in which nothing is pruned, or no more than it was
SPLIT_FOLDERS = [name for names in SPLIT_NAMES.values() for name in names]
WEIGHTS = ("base", "pruned", "repaired", "finetuned", "finetuned-best", "finetuned-last")
TRAINED = ("trained", "trained-best", "trained-last")
# Every file that a step may leave, but for findings, whose names are the recipe's.
ARTIFACTS = (
    *("sensitivity.json", "timings.json", "depth.json", "depth-trials.json", "search.json", "choice.json", "plan.json"),
    *(f"{stage}{store.SAFETENSORS}" for stage in (*WEIGHTS, *TRAINED)),
    *("history.csv", "training.csv", "plane-finetuned.json", "plane-trained.json", "metrics.json"),
    *(f"export/{name}" for name in EXPORTED),
    *("report.html", "report.json", "compare.json", "compare.csv", "widths.json", "depth_advice.json"),
)


class Progress(Protocol):
    """What a caller may want to hear while steps run."""

    def step(self, name: str, state: str) -> None:
        """A step is "running", "done" or "up to date"."""

    def advance(self, what: str, done: int, total: int) -> None:
        """A long step got this far; `total` is 0 where nobody knows."""


class Silence:
    """Progress for nobody."""

    def step(self, name: str, state: str) -> None:
        """Says nothing."""

    def advance(self, what: str, done: int, total: int) -> None:
        """Says nothing."""


class Workspace:
    """One recipe and one run directory; what is costly is made at first use.

    Args:
        recipe: from `infoprune.recipe.read`; bound as a whole before anything is loaded.
        out: the run directory.
        progress: told about each step.
        force: accept a folder that holds other files; they stay as they are.

    Raises:
        UserError: for a recipe that cannot be bound, a folder that is no run directory, or an input that lies in it.
    """

    def __init__(self, recipe: Recipe, out: Path | str, progress: Progress | None = None, force: bool = False) -> None:
        self.directory = RunDirectory(out)
        self.settings: Settings = bind_recipe(recipe)
        self.out = self.directory.path
        self.progress: Progress = progress or Silence()
        # Made now, so that what their constructors refuse is refused before anything is loaded.
        made = {name: make_analysis(name, options) for name, options in self.settings.analyses.items()}
        blind = [] if self.settings.calibration.labels else [name for name, each in made.items() if each.needs_labels]
        self._analyses = {name: analysis for name, analysis in made.items() if name not in blind}
        self.left_out = dict.fromkeys(blind, "it needs labels, and [calibration] labels = false")
        self._models: dict[str, nn.Module] = {}
        self._told: set[str] = set()
        self._sources: dict[str, dict[str, str]] = {}
        self._graphs: dict[tuple[str, ...], ChannelGraph] = {}
        self.device = checkpoint.device_for(distributed.start(self.settings.run.device))
        if distributed.is_first():
            self._check_inputs()
            self._check_data()
            self.directory.claim(self._names(), force)
        if self.settings.run.threads:
            torch.set_num_threads(self.settings.run.threads)

    @cached_property
    def data(self) -> Data:
        """The data set; all processes ask for it at the same step."""
        with distributed.in_turn():  # what the first downloads, the others find
            data: Data = checkpoint.load_data(*self.settings.data)
        return data

    @cached_property
    def base(self) -> nn.Module:
        """The unpruned model with its weights."""
        torch.manual_seed(self.settings.run.seed)
        weights = self.settings.weights
        return checkpoint.build(self.settings.model, weights, self.settings.folder).to(self.device)

    @cached_property
    def first_round(self) -> Plan | None:
        """By which plan the recipe's weights were pruned already; `None` where the model is whole."""
        weights = self.settings.weights
        return None if weights is None else checkpoint.plan_of(checkpoint.find_file(weights, self.settings.folder))

    @cached_property
    def calibration(self) -> list[tuple[Tensor, Tensor]]:
        """The calibration batches, on the device; of equal size, since entropy estimates depend on it."""
        wanted = self.settings.calibration
        batches = self.data.batches(
            wanted.split, batch_size=wanted.batch_size, seed=self.settings.run.seed, device=self.device
        )
        taken = [pair for _, pair in zip(range(wanted.batches), batches, strict=False)]
        if len(taken) < wanted.batches or len(taken[-1][0]) < wanted.batch_size:
            raise UserError(
                f"[calibration] asks for {wanted.batches} batches of {wanted.batch_size}, but the {wanted.split} split "
                f"of '{self.data.name}' holds fewer; lower batches or batch_size"
            )
        return taken

    @cached_property
    def graph(self) -> ChannelGraph:
        """Channel groups of the unpruned model."""
        return self.graph_of(())

    def graph_of(self, removed: Sequence[str]) -> ChannelGraph:
        """Channel groups of the unpruned model without some of its blocks."""
        key = tuple(removed)
        if key not in self._graphs:
            example, tell = self.calibration[0][0][:1], self._advance("channel groups")
            self._graphs[key] = channel_graph(self.base, example, key, tell)
        return self._graphs[key]

    @cached_property
    def _weights(self) -> str:
        """Fingerprint of the recipe's weights file, or of the initial weights where it names none."""
        weights = self.settings.weights
        if weights is None:
            return store.tensors_fingerprint(self.base.state_dict())
        return store.file_fingerprint(checkpoint.find_file(weights, self.settings.folder))

    def code(self, references: Sequence[str | None]) -> dict[str, dict[str, str]]:
        """Fingerprints of the source files behind each reference to the user's own code."""
        for reference in references:
            if reference is not None and reference not in self._sources:
                self._sources[reference] = sources(reference)
        return {reference: self._sources[reference] for reference in references if reference and ":" in reference}

    def _names(self) -> list[str]:
        """Every file that a step of this recipe may write."""
        return [*ARTIFACTS, *(self._finding_name(name) for name in self._analyses)]

    def _finding_name(self, name: str) -> str:
        return f"findings/{name.replace(':', '.').replace('/', '.')}.json"

    def _check_data(self) -> None:
        """Refuses a run directory among the images of a data set, where it would count as a class."""
        root = self.settings.data[1].get("root")
        if isinstance(root, str) and any(
            self.out.resolve().is_relative_to((Path(root).expanduser() / name).resolve()) for name in SPLIT_FOLDERS
        ):
            raise UserError(
                f"the run directory '{self.out}' lies among the data, [data] root = '{root}'; choose another with --out"
            )

    def _check_inputs(self) -> None:
        """Refuses inputs that this run would replace while it reads them: weights and masks that lie in the run
        directory, and code that an earlier run exported there.

        What `train` left there is no result of the other steps, and may be read.
        """
        held = self.directory.entries()
        for option, file in self._input_files():
            name = self.directory.name_of(file)
            if name is None:
                continue
            trained = name in held and held[name].of == self._name("trained")
            if not trained and (name in held or file.suffix != ".py"):
                raise UserError(
                    f"{option} = '{file}' is '{name}' of the run directory '{self.out}', whose files this run "
                    "replaces; choose another run directory with --out, or copy the file"
                )

    def _input_files(self) -> list[tuple[str, Path]]:
        """The files that the recipe names and that exist, each with the option that names it."""
        verbs, folder = self.settings.verbs, self.settings.folder
        named = [("[model] weights", self.settings.weights), ("[plan] masks", verbs["plan"]["masks"])]
        found = [(option, checkpoint.locate(file, folder)) for option, file in named if isinstance(file, str)]
        code = [("[model] name", self.settings.model.name), ("[data] name", self.settings.data[0])]
        code += [(f"[{verb}] {key}", verbs[verb][key] or "") for verb in FITS for key in ("loss", "metric")]
        code += [("[analyses]", name) for name in self.settings.analyses]
        for option, reference in code:
            places = [each / reference.rpartition(":")[0] for each in registry.folders()]
            found.append((option, next((place for place in places if place.suffix == ".py" and place.is_file()), None)))
        return [(option, file) for option, file in found if file is not None]

    def made_from(
        self,
        options: Mapping[str, Any],
        *inputs: str,
        code: Sequence[str | None] = (),
        calibrated: bool = True,
        weighted: bool = True,
    ) -> dict[str, Any]:
        """Under which an artifact is known to come from these options and inputs, this model and this data.

        Args:
            options: of the step.
            inputs: names of the artifacts that it reads.
            code: references that may be to the user's own code, beside model and data.
            calibrated: whether it looks at the calibration batches.
            weighted: whether it starts from the recipe's weights, which training from scratch does not.
        """
        origin = {
            "model": to_json(self.settings.model),
            "weights": self._weights if weighted else None,
            "data": self.data.fingerprint,
            "seed": self.settings.run.seed,
            "code": self.code([self.settings.model.name, self.settings.data[0]]),
        }
        made_from: dict[str, Any] = to_json(
            {
                "versions": versions(),
                "options": dict(options),
                "code": self.code(code),
                "origin": origin,
                "calibration": self.settings.calibration if calibrated else None,
                "inputs": {name: self.directory.fingerprint(name) for name in inputs},
            }
        )
        return made_from

    def _step(
        self, name: str, artifact: str, made_from: Mapping[str, Any], make: Callable[[], None], together: bool = False
    ) -> None:
        """Makes an artifact, unless the one that is there is whole and came from the same.

        Of several processes the first decides and makes; the others take part where it is made `together`, and wait.
        """
        if name in self._told:
            return
        if self._is_there(artifact, made_from):
            self.progress.step(name, "up to date")
        else:
            self.progress.step(name, "running")
            if together or distributed.is_first():
                with shortages(name):
                    make()
            distributed.wait()
            if distributed.is_first():
                self.directory.retire(artifact, store.value_fingerprint(made_from))
            self.progress.step(name, "done")
        self._told.add(name)

    def _is_there(self, artifact: str, made_from: Mapping[str, Any]) -> bool:
        """Whether an artifact is whole and came from these options and inputs, as the first process finds it."""

        def current() -> bool:
            if self.directory.is_current(artifact, store.value_fingerprint(made_from)):
                return True
            self._say_why(artifact, made_from)
            return False

        return distributed.decide(current)

    def _say_why(self, artifact: str, made_from: Mapping[str, Any]) -> None:
        """Says why an artifact is made again."""
        if changed := self.directory.changed(artifact):
            LOGGER.warning(
                "%s changed after the run wrote it: made again; what was there is kept in %s",
                ", ".join(changed),
                self.directory.private("changed"),
            )
        elif self.directory.state(artifact) == "whole":
            differences = differing(self._origin_of(artifact), made_from)
            LOGGER.info("%s is made again; changed: %s", artifact, ", ".join(differences) or "a part of it is missing")

    def _origin_of(self, artifact: str) -> Any:
        path = self.out / artifact
        if path.suffix == store.SAFETENSORS:
            return checkpoint.header_of(path).get(MADE_FROM)
        return store.read_json(path).get(MADE_FROM)

    def _write_json(self, name: str, made_from: Mapping[str, Any], content: Mapping[str, Any], of: str = "") -> None:
        """Writes an artifact, or a part of one, with what it came from."""
        origin = store.value_fingerprint(made_from)
        self.directory.write_json(name, {MADE_FROM: made_from, **content}, of, origin)

    def _name(self, stage: str) -> str:
        return f"{stage}{store.SAFETENSORS}"

    def _file(self, stage: str) -> Path:
        return self.out / self._name(stage)

    def _model(self, stage: str) -> nn.Module:
        """The model of a stage: the one just made, or read from its file."""
        if stage == "base":
            return self.base
        if stage not in self._models:
            whole = checkpoint.without_weights(self.settings.model) if self.first_round else copy.deepcopy(self.base)
            # This run wrote the file, so that what it asks for is what the recipe asked for.
            self._models[stage] = checkpoint.load(self._file(stage), whole, trust_code=True).to(self.device)
        return self._models[stage]

    def _save(self, stage: str, model: nn.Module, made_from: Mapping[str, Any], of: str = "", **notes: Any) -> None:
        self._models[stage] = model
        if not distributed.is_first():
            return
        pruning = None if stage.startswith(WHOLE) else self.planned
        if not stage.startswith("trained") and self.first_round is not None:
            pruning = self.first_round if pruning is None else compose(self.first_round, pruning)

        def write(path: Path) -> None:
            checkpoint.save(path, model, self.settings.model, pruning, **{MADE_FROM: made_from}, **notes)

        self.directory.write(self._name(stage), write, of, store.value_fingerprint(made_from))

    def _fit(self, verb: str, model: nn.Module, teacher: nn.Module | None, made_from: Mapping[str, Any]) -> None:
        """Trains a model in place, going on where a killed run got to, and writes it, its history and its counterpart.

        That is the best epoch's weights where the last one's are kept, and the other way round.
        """
        options, (stage, history) = self.settings.verbs[verb], FITS[verb]
        epochs, seed, main = self._epochs(verb, made_from), self.settings.run.seed, self._name(FITS[verb][0])
        batches, validation = self.batches("train"), self.batches("validation")
        watch = self._watch(verb, model, made_from)
        records = finetune(model, batches, validation, teacher, watch, epochs, seed=seed, **options)
        other: Literal["best", "last"] = "best" if options["keep"] == "last" else "last"
        if distributed.is_first():
            origin = store.value_fingerprint(made_from)
            self.directory.write(history, lambda temporary: write_history(temporary, records), main, origin)
        if weights := epochs.weights(other):
            counterpart = copy.deepcopy(model)
            store.fit_weights(counterpart, weights, str(epochs.path))
            self._save(f"{stage}-{other}", counterpart, made_from, main)
        self._save(stage, model, made_from)
        distributed.wait()

    def _watch(self, verb: str, model: nn.Module, made_from: Mapping[str, Any]) -> Callable[[int, int], None]:
        """What is done after each step of a training: progress, and a look at the information plane."""
        advance = self._advance(verb)
        if not self.settings.plane.points or not distributed.is_first():
            return advance
        options = self.settings.analyses.get("information_plane", {})
        name, main = self._plane_name(verb), self._name(FITS[verb][0])

        def save(content: Mapping[str, Any]) -> None:
            self.directory.write_json(name, content, main, store.value_fingerprint(made_from))

        planes = PlaneFile(self.directory.recall(name), save, made_from, self.settings.plane.steps, options)
        planes.look(model, self.calibration, 0, 1)

        def watch(done: int, total: int) -> None:
            advance(done, total)
            planes.look(model, self.calibration, done, total)

        return watch

    def _plane_name(self, verb: str) -> str:
        return f"plane-{FITS[verb][0]}.json"

    def _epochs(self, verb: str, made_from: Mapping[str, Any]) -> EpochFile:
        """Where the state of a training lies until its artifact is written."""
        return EpochFile(self.directory.private(f"{FITS[verb][0]}.epochs{store.SAFETENSORS}"), made_from)

    def _advance(self, what: str) -> Callable[[int, int], None]:
        return lambda done, total: self.progress.advance(what, done, total)

    def batches(self, split: SplitName, seed: int | None = None, images: int = 0) -> Batches:
        """A split, or its first images; the training one is augmented, and shuffled by a seed, the recipe's if none."""
        training = split == "train"
        part: dict[str, Any] = {split: first(getattr(self.data, split), images)}
        return replace(self.data, **part).batches(
            split,
            batch_size=self.settings.run.batch_size,
            seed=(self.settings.run.seed if seed is None else seed) if training else None,
            augment=training,
            device=self.device,
            shared=True,
        )

    @cached_property
    def planned(self) -> Plan:
        """The plan as its file says, checked against the model."""
        path = self.out / "plan.json"
        chosen = from_json(store.read_json(path), Plan, str(path))
        check_plan(chosen, self.graph_of(chosen.removed), str(path))
        return chosen


def versions() -> dict[str, str]:
    """What results depend on, by name."""
    libraries = {name: metadata.version(name) for name in ("torch", "torchvision", "torch-pruning")}
    return {"infoprune": __version__, "Python": platform.python_version(), **libraries}
