"""A whole recipe bound to signatures before the first expensive second."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infoprune import registry
from infoprune.artifacts import ModelReference
from infoprune.errors import UserError, did_you_mean
from infoprune.exporting import export
from infoprune.peers import CRITERIA
from infoprune.planning import plan
from infoprune.planning.searching import choose_blocks, search
from infoprune.profiling import profile
from infoprune.recipe import Option, Recipe, Table, bind, options, type_name
from infoprune.repairing import repair
from infoprune.repairing.probing import measure_sensitivity
from infoprune.splits import SplitName
from infoprune.timing import measure_timings
from infoprune.training import finetune

# Recipe table -> the verb whose keyword-only arguments it sets; [run] seed stands for every verb's own.
VERBS: dict[str, Callable[..., Any]] = {
    "depth": choose_blocks,
    "sensitivity": measure_sensitivity,
    "timings": measure_timings,
    "plan": plan,
    "search": search,
    "repair": repair,
    "finetune": finetune,
    "train": finetune,
    "evaluate": profile,
    "export": export,
}
SEEDED = ("finetune", "train")
# How criteria are named in [compare]: the library as it comes, an analysis at uniform widths, the recipe's own way.
PEER, UNIFORM, RECIPE = "torch_pruning.", "uniform.", "recipe"
MOST_THREADS = 1024


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The table `[run]`.

    Args:
        seed: of everything random in training: initialisation, shuffling, augmentation.
        device: "auto" (an accelerator where there is one), "cpu", "cuda", "cuda:1" …
        threads: CPU threads; 0 leaves torch's own number.
        batch_size: samples per batch in training and evaluation.
    """

    seed: int = 0
    device: str = "auto"
    threads: int = 0
    batch_size: int = 128

    def __post_init__(self) -> None:
        for name, least in (("seed", 0), ("threads", 0), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise UserError(f"[run] {name} = {getattr(self, name)}: expected {least} or more")
        if self.threads > MOST_THREADS:
            raise UserError(
                f"[run] threads = {self.threads}: expected {MOST_THREADS} at most; 0 leaves torch's own number"
            )


@dataclass(frozen=True, kw_only=True)
class CalibrationOptions:
    """The table `[calibration]`: the batches that analyses and repair look at.

    Args:
        batches: number of batches.
        batch_size: samples per batch; entropy estimates depend on it, 128 is the papers'.
        split: where they come from; the test split would make the final figure worthless and is refused.
        labels: whether analyses may see the labels; without them those that need labels are left out.
        views: how often the gradient steps of repair see the same images once more, each time changed at random as in
            training: few images are soon learnt by heart.
    """

    batches: int = 8
    batch_size: int = 128
    split: SplitName = "train"
    labels: bool = True
    views: int = 0

    def __post_init__(self) -> None:
        if self.batches < 1 or self.batch_size < 2 or self.views < 0:
            raise UserError(
                f"[calibration] batches = {self.batches}, batch_size = {self.batch_size}, views = {self.views}: "
                "expected at least 1 batch of 2, and 0 views or more"
            )
        if self.split == "test":
            raise UserError(
                "[calibration] split = 'test': the test split is for the final figure; use train or validation"
            )


@dataclass(frozen=True, kw_only=True)
class PlaneOptions:
    """The table `[plane]`.

    Args:
        points: how many steps of `train` and `finetune` the information plane is taken at, evenly in the logarithm of
            the step, the start and the end among them; 0 for none. Each costs one pass over the calibration batches.
    """

    points: int = 0

    def __post_init__(self) -> None:
        if self.points < 0 or self.points == 1:
            raise UserError(f"[plane] points = {self.points}: expected 0, or 2 or more")

    def steps(self, total: int) -> set[int]:
        """The steps at which it is taken.

        >>> sorted(PlaneOptions(points=5).steps(1000))
        [0, 1, 10, 100, 1000]
        """
        if not self.points:
            return set()
        points = min(self.points, total + 2)  # there are no more steps than that
        return {0} | {round(total ** (k / max(1, points - 2))) for k in range(points - 1)}


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """The table `[compare]`.

    Args:
        criteria: what to compare: analyses that give importance, under the recipe's plan, or several joined by "+";
            "uniform.NAME", the same at uniform widths; "torch_pruning.NAME", that library as it comes; "recipe", the
            recipe's own ranking.
        shares: budgets in multiply-accumulates, as shares of the unpruned network's.
        seeds: repetitions of what is random.
        controls: whether random filters at the recipe's widths, uniform L2, and (with fine-tuning) a small dense
            network of the recipe's widths trained from scratch stand beside it.
        cut: whether networks are also measured without repair.
        epochs: of fine-tuning, as `[finetune]` says otherwise; 0 for none.
        images: training images that fine-tuning sees, the first of the split; 0 for all.
    """

    criteria: Sequence[str] = ("recipe", "l1", "l2", "taylor", "torch_pruning.l2", "torch_pruning.taylor")
    shares: Sequence[float] = (0.67, 0.47, 0.38, 0.25, 0.125)
    seeds: int = 3
    controls: bool = True
    cut: bool = True
    epochs: int = 0
    images: int = 0

    def __post_init__(self) -> None:
        if not self.shares or not all(0 < share <= 1 for share in self.shares):
            raise UserError(f"[compare] shares = {list(self.shares)}: expected numbers above 0 and up to 1")
        if not 1 <= self.seeds <= 1000 or self.epochs < 0 or self.images < 0 or not self.criteria:
            raise UserError("[compare] needs at least one criterion, 1 to 1000 seeds, and 0 epochs and images or more")
        for name in self.criteria:
            peer = name.startswith(PEER)
            known = CRITERIA if peer else (*registry.names("analyses"), RECIPE)
            for part in name.removeprefix(PEER if peer else UNIFORM).split("+"):
                if part not in known and ":" not in part:
                    raise UserError(f"[compare] criteria: no '{name}'{did_you_mean(part, known)}")


# Tables that belong to no verb.
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
        verbs: keyword arguments per table of `VERBS`.
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
    verbs: Mapping[str, Mapping[str, Any]]

    @property
    def folder(self) -> Path:
        """Where relative paths in the recipe are looked for."""
        return self.recipe.folder


def bind_recipe(recipe: Recipe) -> Settings:
    """Checks every table and option of a recipe against what they name.

    Raises:
        UserError: for an unknown table, option, analysis, model or data set, and for a value of the wrong type.
    """
    registry.look_in(recipe.folder)
    known = ("model", "data", "analyses", *TABLES, *VERBS)
    for name in recipe.tables:
        if name not in known:
            raise UserError(f"no table [{name}] in recipes{did_you_mean(name, known)}")
    verbs = {name: bind(verb, recipe.table(name), name, skip=_skipped(name)) for name, verb in VERBS.items()}
    model, weights = _model(recipe.table("model"))
    return Settings(
        recipe=recipe,
        **{name: table(**bind(table, recipe.table(name), name)) for name, table in TABLES.items()},
        model=model,
        weights=weights,
        data=_data(recipe.table("data")),
        analyses=_analyses(recipe.table("analyses"), verbs["plan"], verbs["depth"]),
        verbs=verbs,
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
    return name, table if ":" in name else bind(load, table, "data")


def _analyses(tables: Table, planning: Table, depth: Table) -> dict[str, Table]:
    """Every analysis that the recipe names; those that a plan asks for need no table of their own."""
    ranking = planning["rank_by"]
    asked = [ranking] if isinstance(ranking, str) else [*ranking]
    asked += [*planning["redundancy_by"], *(planning["width_by"] or ()), *(depth["depth_by"] or ())]
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
    return [*TABLES, *VERBS, *named]


def describe(table: str) -> list[tuple[str, str, str, str]]:
    """Name, type, default and meaning of every option of a recipe table.

    >>> describe("calibration")[0][:3]
    ('batches', 'int', '8')

    Raises:
        UserError: for an unknown table.
    """
    head, _, name = table.partition(".")
    verb: Any
    if head in ("model", "data", "analyses") and name:
        kinds: dict[str, registry.Kind] = {"model": "models", "data": "datasets", "analyses": "analyses"}
        verb = registry.find(kinds[head], name)
    else:
        known = {**TABLES, **VERBS}
        if table not in known:
            raise UserError(f"no recipe table '{table}'{did_you_mean(table, tables())}")
        verb = known[table]
    rows = options(verb, skip=_skipped(table)).values()
    return [
        (row.name, type_name(row.type), "required" if row.default is Option.REQUIRED else repr(row.default), row.help)
        for row in rows
    ]
