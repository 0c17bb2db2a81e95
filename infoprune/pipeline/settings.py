"""A whole recipe bound to signatures before the first expensive second."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infoprune.config import registry
from infoprune.config.ranges import type_name
from infoprune.config.recipe import Option, Recipe, Table, bind, options
from infoprune.data.fingerprints import depth_of
from infoprune.errors import UserError, did_you_mean
from infoprune.evaluation import profile
from infoprune.evaluation.metrics import ModelReference
from infoprune.exporting import export
from infoprune.pipeline.options import CalibrationOptions, CompareOptions, PlaneOptions, RunOptions
from infoprune.planning import latency, planner, search, sensitivity
from infoprune.planning.ranking import BEST
from infoprune.repairing import repair
from infoprune.training import finetune

# Recipe table -> the function whose keyword-only arguments it sets; [run] seed stands for every seed of theirs.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "depth": search.choose_blocks,
    "sensitivity": sensitivity.measure_sensitivities,
    "timings": latency.measure_timings,
    "plan": planner.plan,
    "choose": search.choose_ranking,
    "search": search.search,
    "repair": repair.repair,
    "finetune": finetune.finetune,
    "train": finetune.finetune,
    "evaluate": profile.profile,
    "export": export.export,
}
# What refuses options of a table that do not go together; called as soon as the recipe is bound.
CHECKS: dict[str, Callable[..., None]] = {
    "sensitivity": sensitivity.check_options,
    "timings": latency.check_options,
    "finetune": finetune.check_options,
    "train": finetune.check_options,
    "export": export.check_options,
}
SEEDED = ("finetune", "train")


# Tables that belong to no function.
TABLES: dict[str, type[Any]] = {
    "run": RunOptions,
    "calibration": CalibrationOptions,
    "plane": PlaneOptions,
    "compare": CompareOptions,
}


@dataclass(frozen=True)
class Settings:
    """All tables of a recipe, bound.

    Attributes:
        model: how to build the network.
        weights: its weights file as the recipe names it; `None` for initial weights.
        data: name and options of the data set.
        analyses: options per analysis.
        asked: the analyses that a plan goes by, each with an option that names it.
        tables: keyword arguments per table of `FUNCTIONS`.
    """

    recipe: Recipe
    run: RunOptions
    calibration: CalibrationOptions
    plane: PlaneOptions
    compare: CompareOptions
    model: ModelReference
    weights: str | None
    data: tuple[str, Mapping[str, Any]]
    analyses: Mapping[str, Mapping[str, Any]]
    asked: Mapping[str, str]
    tables: Mapping[str, Mapping[str, Any]]

    @property
    def folder(self) -> Path:
        """Where relative paths in the recipe are looked for."""
        return self.recipe.folder


def bind_recipe(recipe: Recipe) -> Settings:
    """Checks every table and option of a recipe against what they name.

    Raises:
        UserError: for an unknown table, option, analysis, model or data set, and for a value of the wrong type or out
            of range.
    """
    registry.look_in(recipe.folder)
    known = ("model", "data", "analyses", *TABLES, *FUNCTIONS)
    for name in recipe.tables:
        if name not in known:
            raise UserError(f"no table [{name}] in recipes{did_you_mean(name, known)}")
    tables = {name: bind(verb, recipe.table(name), name, skip=_skipped(name)) for name, verb in FUNCTIONS.items()}
    for name, check in CHECKS.items():
        check(**tables[name])
    model, weights = _model(recipe.table("model"))
    asked = _asked(tables)
    return Settings(
        recipe=recipe,
        **{name: table(**bind(table, recipe.table(name), name)) for name, table in TABLES.items()},
        model=model,
        weights=weights,
        data=_data(recipe.table("data")),
        analyses=_analyses(recipe.table("analyses"), asked),
        asked=asked,
        tables=tables,
    )


def _skipped(table: str) -> tuple[str, ...]:
    return ("seed",) if table in SEEDED else ()


def _named(table: Table, where: str) -> str:
    name = table.pop("name", None)
    if not isinstance(name, str):
        raise UserError(f'[{where}] needs name = "…": one of ours or your own package.module:function; came {name!r}')
    return name


def _model(table: Table) -> tuple[ModelReference, str | None]:
    name, weights = _named(table, "model"), table.pop("weights", None)
    if weights is not None and not isinstance(weights, str):
        raise UserError(f"[model] weights = {weights!r}: expected a file name")
    build = registry.find("models", name)
    # A user's own function may take anything; ours state their options.
    return ModelReference(name, table if ":" in name else bind(build, table, "model")), weights


def _data(table: Table) -> tuple[str, Mapping[str, Any]]:
    name = _named(table, "data")
    load = registry.find("datasets", name)
    if ":" not in name:
        return name, bind(load, table, "data")
    depth_of(load, table)  # refuses a wrong value
    return name, table


def _asked(tables: Mapping[str, Table]) -> dict[str, str]:
    """The analyses that a plan goes by, each with an option that names it."""
    chosen, ranking = tables["plan"], tables["plan"]["rank_by"]
    among = [part for name in tables["choose"]["among"] for part in name.split("+")]
    if ranking == BEST and not among:
        raise UserError(f"[plan] rank_by = '{BEST}', but [choose] among is empty; name the rankings to try")
    rankings = [ranking] if isinstance(ranking, str) else ranking
    named: list[tuple[str, registry.Given, Sequence[str]]] = [
        ("[plan] rank_by", "importance", [] if ranking == BEST else rankings),
        ("[choose] among", "importance", among),
        ("[plan] redundancy_by", "importance", chosen["redundancy_by"]),
        ("[plan] width_by", "widths", chosen["width_by"] or ()),
        ("[depth] depth_by", "removable", tables["depth"]["depth_by"] or ()),
    ]
    asked: dict[str, str] = {}
    for option, what, names in named:
        for name in names:
            registry.check_given(name, what, option)
            if ranking == BEST or option != "[choose] among":  # else nothing is chosen, and these do not run
                asked.setdefault(name, option)
    return asked


def _analyses(tables: Table, asked: Iterable[str]) -> dict[str, Table]:
    """Every analysis that the recipe names; those that a plan goes by need no table of their own."""
    named = {**tables, **{name: {} for name in asked if name not in tables}}
    bound = {}
    for name, table in named.items():
        if not isinstance(table, dict):
            raise UserError(f"[analyses] {name} = {table!r}: expected a table, such as [analyses.{name}]")
        bound[name] = bind(registry.find("analyses", name), table, f"analyses.{name}")
    return bound


def tables() -> list[str]:
    """The names that `describe` takes."""
    kinds: tuple[registry.Kind, ...] = ("models", "datasets", "analyses")
    heads = {"models": "model", "datasets": "data", "analyses": "analyses"}
    named = [f"{heads[kind]}.{name}" for kind in kinds for name in registry.names(kind)]
    return [*TABLES, *FUNCTIONS, *named]


def declaring(table: str) -> Callable[..., Any]:
    """The function or class whose keyword-only arguments are the options of a recipe table.

    Raises:
        UserError: for an unknown table.
    """
    head, _, name = table.partition(".")
    kinds: dict[str, registry.Kind] = {"model": "models", "data": "datasets", "analyses": "analyses"}
    if head in kinds and name:
        return registry.find(kinds[head], name)
    known: dict[str, Callable[..., Any]] = {**TABLES, **FUNCTIONS}
    if table not in known:
        raise UserError(f"no recipe table '{table}'{did_you_mean(table, tables())}")
    return known[table]


def describe(table: str) -> list[tuple[str, str, str, str]]:
    """Name, type and range, default and meaning of every option of a recipe table.

    >>> describe("calibration")[0][:3]
    ('batches', 'int, 1 to 1,000,000', '8')

    Raises:
        UserError: for an unknown table.
    """
    rows = options(declaring(table), skip=_skipped(table)).values()
    return [
        (row.name, type_name(row.type), "required" if row.default is Option.REQUIRED else repr(row.default), row.help)
        for row in rows
    ]
