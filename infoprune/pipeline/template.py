"""A recipe to start from, for a model and a data set."""

import json
import textwrap
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from infoprune.config.recipe import Option, Recipe, apply_overrides, options
from infoprune.config.registry import find
from infoprune.errors import UserError
from infoprune.pipeline.settings import FUNCTIONS, bind_recipe

# The tables that most want to change, with the options shown as if they were asked for.
SHOWN: Mapping[str, Sequence[str]] = {
    "plan": ("rank_by", "macs", "allocation", "round_to", "protect"),
    "repair": ("method",),
    "finetune": ("epochs", "learning_rate", "distillation"),
}


def starting_recipe(title: str, model: str, data: str, weights: str | None = None, given: Sequence[str] = ()) -> str:
    """The text of a recipe that binds, with every option of model and data at hand in a comment.

    Args:
        title: its first line.
        model: a model family of ours or the user's own `package.module:function`.
        data: a data set of ours or the user's own.
        weights: a weights file.
        given: overrides such as `model.depth=56`, which are written out.

    Raises:
        UserError: for unknown names, and for required options that are not given.
    """
    chosen: dict[str, Any] = {"model": {"name": model}, "data": {"name": data}}
    if weights is not None:
        chosen["model"]["weights"] = weights
    apply_overrides(chosen, given)
    lines = [f"# {title}", "#", "# infoprune options lists every table and option; lines behind # show the defaults."]
    lines += ["", "[run]", "seed = 0"]
    for table, kind in (("model", "models"), ("data", "datasets")):
        name = chosen[table]["name"]
        known = {} if ":" in name else options(find("models" if kind == "models" else "datasets", name))
        lines += ["", f"[{table}]", *_rows(chosen.pop(table), known)]
    lines += ["", "[calibration]", *_rows({"batches": 8, "batch_size": 128, **chosen.pop("calibration", {})}, {})]
    for table, names in SHOWN.items():
        known = {name: option for name, option in options(FUNCTIONS[table]).items() if name in names}
        lines += ["", f"[{table}]", *_rows(chosen.pop(table, {}), known)]
    for table, rows in chosen.items():
        lines += ["", f"[{table}]", *_rows(rows, {})]
    text = "\n".join(lines) + "\n"
    bind_recipe(Recipe("new", tomllib.loads(text), text, Path()))
    return text


def _rows(chosen: Mapping[str, Any], known: Mapping[str, Option]) -> list[str]:
    """Lines of one table: what was chosen, then the other options as comments."""
    rows = [f"{name} = {_toml(value)}" for name, value in chosen.items()]
    for name, option in known.items():
        if name not in chosen and option.default is not Option.REQUIRED:
            default = "(not set)" if option.default is None else _toml(option.default)
            rows += [f"# {name} = {default}" if option.default is not None else f"# {name} {default}"]
            rows[-1] += f"  # {textwrap.shorten(option.help, 90, placeholder=' …')}"
    return rows


def _toml(value: Any) -> str:
    """A value as TOML; what JSON writes for text, numbers, truth values and lists is TOML too."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(name)} = {_toml(item)}" for name, item in value.items()) + " }"
    try:
        return json.dumps(value, ensure_ascii=False)
    except TypeError as error:
        raise UserError(f"cannot write {value!r} into a recipe; give text, a number, true, false or a list") from error
