"""What all steps of a run read: the recipe's options, its model and data, and the run directory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from infoprune.analyses.base import Analysis, Finding
from infoprune.analyses.checks import make_analysis
from infoprune.config import registry
from infoprune.config.provenance import sources
from infoprune.config.recipe import Recipe
from infoprune.data.dataset import Batches, Data, SplitName, first
from infoprune.datasets.image_folder import NAMES as SPLIT_NAMES
from infoprune.errors import UserError
from infoprune.graph.channels import ChannelGraph
from infoprune.io import checkpoint, storage
from infoprune.pipeline.artifacts import ARTIFACTS, finding_name, weights_name
from infoprune.pipeline.run_directory import RunDirectory
from infoprune.pipeline.settings import Settings, bind_recipe
from infoprune.planning.plan import Plan
from infoprune.pruning.channel_graph import channel_graph
from infoprune.utils import distributed

SPLIT_FOLDERS = [name for names in SPLIT_NAMES.values() for name in names]


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


@dataclass(frozen=True, eq=False)
class Context:
    """One recipe in its run directory; what is costly is made at first use and kept.

    Attributes:
        settings: the bound recipe.
        directory: where artifacts go.
        device: where the model computes.
        progress: told about each step.
        analyses: those of the recipe, by name, ready to run; without those that `left_out` names.
        left_out: analyses that do not take part, with the reason.
        networks: those of stages that were made or read already, by stage.
        findings_read: findings that were read already, by file and its fingerprint.
    """

    settings: Settings
    directory: RunDirectory
    device: torch.device
    progress: Progress
    analyses: Mapping[str, Analysis]
    left_out: Mapping[str, str]
    _graphs: dict[tuple[str, ...], ChannelGraph] = field(default_factory=dict)
    networks: dict[str, nn.Module] = field(default_factory=dict)
    findings_read: dict[tuple[str, str], Finding] = field(default_factory=dict)
    _sources: dict[str, dict[str, str]] = field(default_factory=dict)

    @property
    def out(self) -> Path:
        """The run directory's path."""
        return self.directory.path

    @cached_property
    def data(self) -> Data:
        """The data set; all processes ask for it at the same step."""
        with distributed.in_turn():  # what the first downloads, the others find
            data: Data = checkpoint.load_data(*self.settings.data)
        return data

    @cached_property
    def model(self) -> nn.Module:
        """The unpruned model with its weights."""
        torch.manual_seed(self.settings.run.seed)
        weights = self.settings.weights
        return checkpoint.build(self.settings.model, weights, self.settings.folder).to(self.device)

    @cached_property
    def earlier_plan(self) -> Plan | None:
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

    @cached_property
    def weights_fingerprint(self) -> str:
        """SHA-256 of the recipe's weights file, or of the initial weights where it names none."""
        weights = self.settings.weights
        if weights is None:
            return storage.tensors_fingerprint(self.model.state_dict())
        return storage.file_fingerprint(checkpoint.find_file(weights, self.settings.folder))

    def sources_of(self, references: Sequence[str | None]) -> dict[str, dict[str, str]]:
        """Hashes of the source files behind each reference to the user's own code, as they were at first sight."""
        own = [reference for reference in references if reference is not None and ":" in reference]
        for reference in own:
            if reference not in self._sources:
                self._sources[reference] = sources(reference)
        return {reference: self._sources[reference] for reference in own}

    @property
    def graph(self) -> ChannelGraph:
        """Channel groups of the unpruned model."""
        return self.graph_without(())

    def graph_without(self, blocks: Sequence[str]) -> ChannelGraph:
        """Channel groups of the unpruned model without some of its blocks."""
        key = tuple(blocks)
        if key not in self._graphs:
            example = self.calibration[0][0][:1]
            self._graphs[key] = channel_graph(self.model, example, key, self.counter("channel groups"))
        return self._graphs[key]

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

    def counter(self, what: str) -> Any:
        """Takes how much of something is done, and of how much, and tells the progress."""
        return lambda done, total: self.progress.advance(what, done, total)


def open_run(recipe: Recipe, out: Path | str, progress: Progress | None = None, *, force: bool = False) -> Context:
    """Binds a recipe as a whole and claims its run directory; nothing is loaded yet.

    Args:
        recipe: from `infoprune.config.recipe.read`.
        out: the run directory.
        progress: told about each step.
        force: accept a folder that holds other files; they stay as they are.

    Raises:
        UserError: for a recipe that cannot be bound, a folder that is no run directory, or an input that lies in it.
    """
    directory, settings = RunDirectory(out), bind_recipe(recipe)
    # Made now, so that what their constructors refuse is refused before anything is loaded.
    made = {name: make_analysis(name, options) for name, options in settings.analyses.items()}
    blind = [] if settings.calibration.labels else [name for name, each in made.items() if each.needs_labels]
    analyses = {name: analysis for name, analysis in made.items() if name not in blind}
    device = checkpoint.device_for(distributed.start(settings.run.device))
    if distributed.is_first():
        _check_inputs(settings, directory)
        _check_data(settings, directory)
        directory.claim([*ARTIFACTS, *map(finding_name, analyses)], force)
    if settings.run.threads:
        torch.set_num_threads(settings.run.threads)
    left_out = dict.fromkeys(blind, "it needs labels, and [calibration] labels = false")
    return Context(settings, directory, device, progress or Silence(), analyses, left_out)


def _check_inputs(settings: Settings, directory: RunDirectory) -> None:
    """Refuses inputs that this run would replace while it reads them.

    These are weights and masks that lie in the run directory, and code that an earlier run exported there. What `train`
    left there is no result of the other steps, and may be read.
    """
    held = directory.entries()
    for option, file in _input_files(settings):
        name = directory.name_of(file)
        if name is None:
            continue
        trained = name in held and held[name].of == weights_name("trained")
        if not trained and (name in held or file.suffix != ".py"):
            raise UserError(
                f"{option} = '{file}' is '{name}' of the run directory '{directory.path}', whose files this run "
                "replaces; choose another run directory with --out, or copy the file"
            )


def _check_data(settings: Settings, directory: RunDirectory) -> None:
    """Refuses a run directory among the images of a data set, where it would count as a class."""
    root, out = settings.data[1].get("root"), directory.path
    if isinstance(root, str) and any(
        out.resolve().is_relative_to((Path(root).expanduser() / name).resolve()) for name in SPLIT_FOLDERS
    ):
        raise UserError(
            f"the run directory '{out}' lies among the data, [data] root = '{root}'; choose another with --out"
        )


def _input_files(settings: Settings) -> list[tuple[str, Path]]:
    """The files that a recipe names and that exist, each with the option that names it."""
    tables, folder = settings.tables, settings.folder
    named = [("[model] weights", settings.weights), ("[plan] masks", tables["plan"]["masks"])]
    found = [(option, checkpoint.locate(file, folder)) for option, file in named if isinstance(file, str)]
    code = [("[model] name", settings.model.name), ("[data] name", settings.data[0])]
    code += [
        (f"[{verb}] {key}", tables[verb][key] or "") for verb in ("finetune", "train") for key in ("loss", "metric")
    ]
    code += [("[analyses]", name) for name in settings.analyses]
    for option, reference in code:
        places = [each / reference.rpartition(":")[0] for each in registry.folders()]
        found.append((option, next((place for place in places if place.suffix == ".py" and place.is_file()), None)))
    return [(option, file) for option, file in found if file is not None]
