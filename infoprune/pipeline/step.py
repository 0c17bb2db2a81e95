"""A step of a run: what it leaves, what that comes from, and how it is made."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from infoprune.errors import shortages
from infoprune.io import storage
from infoprune.pipeline.artifacts import Origin, is_current
from infoprune.pipeline.context import Context
from infoprune.utils import distributed


def always(_: Context) -> bool:
    """Of a step that every recipe takes."""
    return True


def never(_: Context) -> bool:
    """Of a step that the first process makes alone."""
    return False


def nothing(_: Context, __: Mapping[str, Origin]) -> None:
    """Of a step that has nothing to do before or after."""


@dataclass(frozen=True)
class Step:
    """One step of a recipe.

    Attributes:
        name: for progress, and on the command line.
        origins: gives each artifact of the step with what it comes from; called once the steps before it are done.
        make: makes the artifacts that it is given, those that are missing or came from something else.
        wanted: whether a recipe takes the step.
        together: whether all processes take part in making; else the first does, and the others wait.
        before: what the first process does before it is decided whether the artifacts are up to date.
        after: what it does once they are.
        silent: whether the progress is told nothing.
    """

    name: str
    origins: Callable[[Context], Mapping[str, Origin]]
    make: Callable[[Context, Mapping[str, Origin]], None]
    wanted: Callable[[Context], bool] = always
    together: Callable[[Context], bool] = never
    before: Callable[[Context, Mapping[str, Origin]], None] = nothing
    after: Callable[[Context, Mapping[str, Origin]], None] = nothing
    silent: bool = False


def run_step(context: Context, step: Step) -> None:
    """Makes the artifacts of a step that are not up to date; of several processes the first decides."""
    origins = step.origins(context)
    if distributed.is_first():
        step.before(context, origins)
    distributed.wait()
    stale = {name: origin for name, origin in origins.items() if not is_current(context.directory, name, origin)}
    if stale:
        _make(context, step, stale)
    elif not step.silent:
        context.progress.step(step.name, "up to date")
    if distributed.is_first():
        step.after(context, origins)


def _make(context: Context, step: Step, stale: Mapping[str, Origin]) -> None:
    if not step.silent:
        context.progress.step(step.name, "running")
    if step.together(context) or distributed.is_first():
        with shortages(step.name):
            step.make(context, stale)
    distributed.wait()
    if distributed.is_first():
        for name, origin in stale.items():
            context.directory.retire(name, storage.value_fingerprint(origin))
    if not step.silent:
        context.progress.step(step.name, "done")
