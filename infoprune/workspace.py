"""A run directory and what the steps in it share: the recipe's model and data, and where each artifact came from."""

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from infoprune import __version__, checkpoint, distributed, store
from infoprune.artifacts import ChannelGraph, Plan
from infoprune.encoding import differing, from_json, to_json
from infoprune.errors import UserError, shortages
from infoprune.histories import write_history
from infoprune.planes import PlaneFile
from infoprune.planning.masks import compose
from infoprune.pruning import channel_graph, check_plan
from infoprune.recipe import Recipe
from infoprune.resuming import EpochFile
from infoprune.settings import Settings, bind_recipe
from infoprune.splits import Batches, Data, SplitName, first
from infoprune.training import finetune
from infoprune.vetting import make_analysis

LOGGER = logging.getLogger(__name__)
# Under this name every artifact says which options and inputs it came from.
MADE_FROM = "made_from"
# What the two verbs that train leave: a model, and the history of its training.
FITS = {"finetune": ("finetuned", "history.csv"), "train": ("trained", "training.csv")}
WHOLE = ("base", "trained")  # stages in which nothing is pruned, or no more than it was


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
    """

    def __init__(self, recipe: Recipe, out: Path | str, progress: Progress | None = None) -> None:
        self.settings: Settings = bind_recipe(recipe)
        self.out = Path(out)
        self.progress: Progress = progress or Silence()
        # Made now, so that what their constructors refuse is refused before anything is loaded.
        made = {name: make_analysis(name, options) for name, options in self.settings.analyses.items()}
        blind = [] if self.settings.calibration.labels else [name for name, each in made.items() if each.needs_labels]
        self._analyses = {name: analysis for name, analysis in made.items() if name not in blind}
        self.left_out = dict.fromkeys(blind, "it needs labels, and [calibration] labels = false")
        self._models: dict[str, nn.Module] = {}
        self._told: set[str] = set()
        self._graphs: dict[tuple[str, ...], ChannelGraph] = {}
        self.device = checkpoint.device_for(distributed.start(self.settings.run.device))
        if distributed.is_first():
            store.check_writable(self.out)
            self._lock = store.claim(self.out)
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
    def _weights(self) -> str | None:
        """Fingerprint of the recipe's weights."""
        weights = self.settings.weights
        return None if weights is None else store.file_fingerprint(checkpoint.find_file(weights, self.settings.folder))

    def made_from(
        self, options: Mapping[str, Any], *inputs: Path, calibrated: bool = True, weighted: bool = True
    ) -> dict[str, Any]:
        """Under which an artifact is known to come from these options and inputs, this model and this data.

        Args:
            options: of the step.
            inputs: artifacts that it reads.
            calibrated: whether it looks at the calibration batches.
            weighted: whether it starts from the recipe's weights, which training from scratch does not.
        """
        origin = {
            "model": to_json(self.settings.model),
            "weights": self._weights if weighted else None,
            "data": self.data.fingerprint,
            "seed": self.settings.run.seed,
        }
        made_from: dict[str, Any] = to_json(
            {
                "version": __version__,
                "options": dict(options),
                "origin": origin,
                "calibration": self.settings.calibration if calibrated else None,
                "inputs": {path.relative_to(self.out).as_posix(): store.file_fingerprint(path) for path in inputs},
            }
        )
        return made_from

    def _step(
        self, name: str, path: Path, made_from: Mapping[str, Any], make: Callable[[], None], together: bool = False
    ) -> None:
        """Makes an artifact, unless the one that is there says it came from the same.

        Of several processes the first decides and makes; the others take part where it is made `together`, and wait.
        """
        if name in self._told:
            return
        if self._is_there(path, made_from):
            self.progress.step(name, "up to date")
        else:
            self.progress.step(name, "running")
            if together or distributed.is_first():
                with shortages(name):
                    make()
            distributed.wait()
            self.progress.step(name, "done")
        self._told.add(name)

    def _is_there(self, path: Path, made_from: Mapping[str, Any]) -> bool:
        """Whether an artifact came from these options and inputs, as the first process finds it."""
        return distributed.decide(lambda: path.exists() and self._came_from(path, made_from))

    def _came_from(self, path: Path, made_from: Mapping[str, Any]) -> bool:
        if changed := differing(self._origin_of(path), made_from):
            LOGGER.info("%s is made anew: changed are %s", path.name, ", ".join(changed))
        return not changed

    def _origin_of(self, path: Path) -> Any:
        if path.suffix == store.SAFETENSORS:
            return checkpoint.header_of(path).get(MADE_FROM)
        return store.read_json(path).get(MADE_FROM)

    def _file(self, stage: str) -> Path:
        return self.out / f"{stage}{store.SAFETENSORS}"

    def _model(self, stage: str) -> nn.Module:
        """The model of a stage: the one just made, or read from its file."""
        if stage == "base":
            return self.base
        if stage not in self._models:
            whole = checkpoint.build(self.settings.model) if self.first_round else copy.deepcopy(self.base)
            self._models[stage] = checkpoint.load(self._file(stage), whole).to(self.device)
        return self._models[stage]

    def _save(self, stage: str, model: nn.Module, made_from: Mapping[str, Any], **notes: Any) -> None:
        self._models[stage] = model
        if distributed.is_first():
            pruning = None if stage.startswith(WHOLE) else self.planned
            if not stage.startswith("trained") and self.first_round is not None:
                pruning = self.first_round if pruning is None else compose(self.first_round, pruning)
            checkpoint.save(self._file(stage), model, self.settings.model, pruning, **{MADE_FROM: made_from}, **notes)

    def _fit(self, verb: str, model: nn.Module, teacher: nn.Module | None, made_from: Mapping[str, Any]) -> None:
        """Trains a model in place, going on where a killed run got to, and writes it, its history and its other half.

        That is the best epoch's weights where the last one's are kept, and the other way round.
        """
        options, (stage, history) = self.settings.verbs[verb], FITS[verb]
        epochs, seed = self._epochs(verb, made_from), self.settings.run.seed
        batches, validation = self.batches("train"), self.batches("validation")
        watch = self._watch(verb, model, made_from)
        records = finetune(model, batches, validation, teacher, watch, epochs, seed=seed, **options)
        other: Literal["best", "last"] = "best" if options["keep"] == "last" else "last"
        if distributed.is_first():
            write_history(self.out / history, records)
            self._file(f"{stage}-{other}").unlink(missing_ok=True)
        if weights := epochs.weights(other):
            twin = copy.deepcopy(model)
            twin.load_state_dict(weights)
            self._save(f"{stage}-{other}", twin, made_from)
        self._save(stage, model, made_from)
        distributed.wait()

    def _watch(self, verb: str, model: nn.Module, made_from: Mapping[str, Any]) -> Callable[[int, int], None]:
        """What is done after each step of a training: progress, and a look at the information plane."""
        advance = self._advance(verb)
        if not self.settings.plane.points or not distributed.is_first():
            return advance
        options = self.settings.analyses.get("information_plane", {})
        planes = PlaneFile(self._plane_file(verb), made_from, self.settings.plane.steps, options)
        planes.look(model, self.calibration, 0, 1)

        def watch(done: int, total: int) -> None:
            advance(done, total)
            planes.look(model, self.calibration, done, total)

        return watch

    def _plane_file(self, verb: str) -> Path:
        return self.out / f"plane-{FITS[verb][0]}.json"

    def _epochs(self, verb: str, made_from: Mapping[str, Any]) -> EpochFile:
        """Where the state of a training lies until its artifact is written."""
        return EpochFile(self.out / f".{FITS[verb][0]}.epochs{store.SAFETENSORS}", made_from)

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
