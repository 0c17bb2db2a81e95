"""A pruned model in one safetensors file: how to build the original, the plan, and the weights."""

import inspect
import os
import sys
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from infoprune import __version__
from infoprune.config import registry
from infoprune.config.recipe import bind
from infoprune.data.dataset import Data
from infoprune.data.fingerprints import depth_of, fingerprints_of
from infoprune.data.loaders import from_loaders
from infoprune.errors import RunError, UserError, told
from infoprune.evaluation.metrics import ModelReference, Verification
from infoprune.io import bounds, storage
from infoprune.planning.plan import Plan
from infoprune.pruning.prune import check_consistent, prune
from infoprune.utils.module_mode import set_mode

FORMAT = 1
KEY = "infoprune"
# What a header may hold of arguments for a model's function: levels of lists and tables, and characters.
MOST_LEVELS, MOST_TEXT = 8, 100_000
# Characters of torch's own words in a message; for some devices it lists all that it can do on the others.
MOST_WORDS = 120
# Options of our data sets that say where they lie and how they are read.
PLACING = ("root", "download", "workers", "fingerprint")


def build(reference: ModelReference, weights: str | Path | None = None, folder: Path | None = None) -> nn.Module:
    """Builds an unpruned model, in evaluation mode.

    Args:
        reference: a model family of ours, or the user's own function, with its arguments.
        weights: a weights file; looked for as given, beside the recipe, under `INFOPRUNE_DATA` and in the package. A
            checkpoint of a pruned model gives that pruned model.
        folder: where the recipe lies.

    Raises:
        UserError: for an unknown model, arguments it does not take, a missing weights file, or weights that do not fit.
    """
    if weights is None:
        return _network(_make("models", reference.name, reference.arguments), reference)
    path = find_file(weights, folder)
    plan, model = plan_of(path), without_weights(reference)
    # A family may know the names under which others have published its weights.
    tensors = getattr(model, "translate", dict)(storage.read_tensors(path))
    if plan is not None:
        model = _replayed(model, plan, tensors, str(weights))
    storage.fit_weights(model, tensors, str(weights))
    return model.eval()


def without_weights(reference: ModelReference) -> nn.Module:
    """Builds an unpruned model whose weights will be replaced: where a family can load published ones, it does not.

    Raises:
        UserError: for an unknown model, or arguments it does not take.
    """
    return _network(_make("models", reference.name, reference.arguments, weights=False), reference)


def _network(made: Any, reference: ModelReference) -> nn.Module:
    """What a model's function gave, in evaluation mode, if it is a network."""
    if not isinstance(made, nn.Module):
        raise UserError(f"model '{reference.name}' gave a {type(made).__name__}, expected a torch.nn.Module")
    for name, value in made.state_dict().items():
        if not isinstance(value, Tensor) or value.is_quantized:
            kind = "a quantized tensor" if isinstance(value, Tensor) else f"a {type(value).__name__}"
            raise UserError(
                f"model '{reference.name}' holds {kind} as '{name}' of its state_dict, expected plain tensors; prune "
                "the float model, then quantize it"
            )
    if any(each.is_meta for each in (*made.parameters(), *made.buffers())):
        raise UserError(f"model '{reference.name}' has weights without data (device 'meta'); build it on the CPU")
    set_mode(made, training=False)
    return made


def plan_of(path: Path) -> Plan | None:
    """By which plan the model in a weights file was pruned; `None` where it is whole.

    Raises:
        UserError: where a checkpoint of ours has a damaged header, or a plan that contradicts itself.
    """
    if path.suffix != storage.SAFETENSORS or KEY not in storage.read_metadata(path):
        return None
    return _plan_in(path, header_of(path))


def _plan_in(path: Path, header: Mapping[str, Any]) -> Plan | None:
    plan: Plan | None = _convert(path, header.get("plan"), Plan | None)
    if plan is not None:
        check_consistent(plan, str(path))
    return plan


def load_data(name: str, options: Mapping[str, Any] | None = None) -> Data:
    """A data set, as a recipe's `[data]` table would give it.

    Args:
        name: a data set of ours, or the user's own function, which returns `infoprune.data.dataset.Data`, a
            `DataLoader`, or a dictionary of them (`infoprune.data.loaders.from_loaders` says how they are split).
        options: its keyword arguments; for a function of the user's own also `fingerprint`, "files" or "content".

    Returns:
        The data, with a fingerprint that is also of the options.

    Raises:
        UserError: for an unknown name or option, or data that cannot be found.
    """
    load, said = registry.find("datasets", name), options or {}
    depth, given = depth_of(load, said) if ":" in name else ("files", bind(load, said, "data"))
    made = _make("datasets", name, given)
    data = made if isinstance(made, Data) else from_loaders(made, name, depth)
    known = {"content": data.fingerprint} if isinstance(data.fingerprint, str) else dict(data.fingerprint)
    if data is made and depth == "content":
        known |= fingerprints_of({"train": data.train, "validation": data.validation, "test": data.test}, name, depth)
    # A user's own function may mean anything by its options.
    counted = sorted(key for key in given if ":" in name or key not in PLACING)
    return replace(data, fingerprint={f"options.{key}": repr(given[key]) for key in counted} | known)


def _make(kind: registry.Kind, name: str, arguments: Mapping[str, Any], weights: bool = True) -> Any:
    """Calls what a name stands for; ours have checked options, a user's own function may take anything.

    A family of ours that can load published weights has another function that does not, for where none are wanted.
    """
    function, table = registry.find(kind, name), "model" if kind == "models" else "data"
    if ":" not in name:
        arguments = bind(function, arguments, table)
        if not weights:
            function = getattr(sys.modules[function.__module__], "without_weights", function)
    else:
        try:
            inspect.signature(function).bind(**arguments)
        except TypeError as error:
            raise UserError(f"arguments {dict(arguments)} do not fit '{name}': {error}") from error
    try:
        return function(**arguments)
    except (UserError, RunError):
        raise
    except (Exception, SystemExit) as error:  # whatever code of a user's own, or torch with such arguments, raises
        given = f" with {dict(arguments)}" if ":" in name else ""  # of ours, that would be the table of all options
        raise UserError(f"[{table}] '{name}' fails{given}: {told(error)}; fix the arguments or the code") from error


def locate(name: str | Path, folder: Path | None = None) -> Path | None:
    """As `find_file`, but `None` where there is no such file."""
    return next((place for place in _places(name, folder) if place.is_file()), None)


def _places(name: str | Path, folder: Path | None) -> list[Path]:
    """Where a file that a recipe names may lie; the first that exists counts."""
    data = os.environ.get("INFOPRUNE_DATA")
    bases = [Path(), *([folder] if folder else []), *([Path(data), Path(data) / "weights"] if data else [])]
    return [base / Path(name).expanduser() for base in (*bases, Path(__file__).parent.parent / "weights")]


def find_file(name: str | Path, folder: Path | None = None) -> Path:
    """A file that a recipe names.

    Raises:
        UserError: where it is in none of the places, which the message lists.
    """
    if (found := locate(name, folder)) is not None:
        return found
    looked = ", ".join(str(place.parent.resolve()) for place in _places(name, folder))
    hint = "" if "INFOPRUNE_DATA" in os.environ else "; INFOPRUNE_DATA is not set"
    hint += "; infoprune train makes it" if Path(name).name == "trained.safetensors" else ""
    raise UserError(f"no file '{name}' in {looked}{hint}; give the full path")


def save(path: str | Path, model: nn.Module, reference: ModelReference, plan: Plan | None = None, **notes: Any) -> None:
    """Writes a model, whole or not at all.

    Args:
        path: where to; by custom `*.safetensors`.
        model: the model as it is now.
        reference: how to build the unpruned one again.
        plan: what was pruned; `None` for an unpruned model.
        notes: further JSON values for the header, such as where the file came from.
    """
    storage.write_tensors(Path(path), model.state_dict(), metadata(reference, plan, **notes))


def metadata(reference: ModelReference, plan: Plan | None = None, **notes: Any) -> dict[str, str]:
    """The text entries that make a checkpoint of a safetensors file; arguments as for `save`."""
    header = {
        "format": FORMAT,
        "version": __version__,
        "reference": msgspec.to_builtins(reference),
        "plan": None if plan is None else msgspec.to_builtins(plan),
        **notes,
    }
    return {KEY: msgspec.json.encode(header).decode()}


def header_of(path: Path) -> dict[str, Any]:
    """What a checkpoint says about itself.

    Raises:
        UserError: where the file is missing, damaged, or no checkpoint of this format.
    """
    text = storage.read_metadata(path).get(KEY)
    if text is None:
        raise UserError(f"'{path}' holds weights only, no infoprune checkpoint; load it with [model] weights = …")
    try:
        header: dict[str, Any] = msgspec.json.decode(text, type=dict)
    except (msgspec.DecodeError, RecursionError) as error:
        raise UserError(f"'{path}' has a damaged header: {error}; write the checkpoint again") from error
    if header.get("format") != FORMAT:
        raise UserError(
            f"'{path}' has checkpoint format {header.get('format')}, this version reads {FORMAT}; use the version of "
            f"infoprune that wrote it ({header.get('version', 'unknown')}), or remove it to have it made again"
        )
    return header


def load(path: str | Path, model: nn.Module | None = None, *, trust_code: bool = False) -> nn.Module:
    """The model of a checkpoint, in evaluation mode, equal to the saved one bit for bit.

    Builds the original architecture, replays the plan, and loads the weights strictly. Nothing is unpickled, and
    nothing outside the file is read: published weights that the model was once built with are not asked for again.

    Args:
        path: a file written by `save` or by a run.
        model: the unpruned architecture, where the checkpoint refers to code of the user's own.
        trust_code: import and call that code instead, and build and run networks of any size; only for checkpoints
            whose origin you trust.

    Raises:
        UserError: where the file is missing or damaged, does not fit the model, refers to code that is not ours and
            neither `model` nor `trust_code` is given, or asks for a network far larger than what it holds.
    """
    path = Path(path)
    header = header_of(path)
    reference: ModelReference = _convert(path, header.get("reference"), ModelReference)
    plan = _plan_in(path, header)
    tensors = storage.read_tensors(path)
    if model is None:
        if ":" in reference.name and not trust_code:
            raise UserError(
                f"'{path}' was made from the code '{reference.name[:200]}'; give that model as load(path, model), or "
                "trust_code=True to have it imported and called"
            )
        model = without_weights(reference) if trust_code else _bounded(reference, tensors, str(path))
    if plan is not None:
        model = prune(model, plan) if trust_code else _replayed(model, plan, tensors, str(path))
    storage.fit_weights(model, tensors, str(path))
    return model.eval()


def _is_deep(value: Any, levels: int) -> bool:
    """Whether containers are nested in more levels."""
    within = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return bool(within) and (levels == 0 or any(_is_deep(each, levels - 1) for each in within))


def _bounded(reference: ModelReference, tensors: Mapping[str, Tensor], source: str) -> nn.Module:
    """The model that a file from anywhere refers to, unless it is larger than the file can be the rest of."""
    if _is_deep(reference.arguments, MOST_LEVELS) or len(msgspec.json.encode(reference)) > MOST_TEXT:
        raise UserError(
            f"'{source}' has a damaged header: arguments of its model in more than {MOST_LEVELS} levels or "
            f"{MOST_TEXT:,} characters; write the checkpoint again"
        )
    # First without memory and numbers, which is quick; networks that need either to be built are stopped on their way.
    try:
        with bounds.building(tensors, source), torch.device("meta"):
            _make("models", reference.name, reference.arguments, weights=False)
    except bounds.BeyondBounds:
        raise
    except (UserError, RunError):
        pass  # comes again where it is not for the lack of memory and numbers
    with bounds.building(tensors, source):
        return without_weights(reference)


def _replayed(model: nn.Module, plan: Plan, tensors: Mapping[str, Tensor], source: str) -> nn.Module:
    """A model pruned by the plan in a file from anywhere, whose tensors will be loaded into it."""
    bounds.check_rest(model, plan, tensors, source)
    bounds.check_forward(model, plan, source)
    return prune(model, plan)


def proof_of(path: Path) -> Verification:
    """How closely the pruned model in a checkpoint was found to equal its masked reference model.

    Raises:
        UserError: where the checkpoint does not say so, or is damaged.
    """
    proof: Verification = _convert(path, header_of(path).get("verification"), Verification)
    return proof


def _convert(path: Path, value: Any, kind: Any) -> Any:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise UserError(f"'{path}' has a damaged header: {error}; write the checkpoint again") from error


def device_for(name: str) -> torch.device:
    """The device behind "auto" (an accelerator where there is one), "cpu", "cuda", "cuda:1" …

    Raises:
        UserError: for a name that torch does not know, or a device that is not there or cannot compute.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of names that torch has given up
            device = torch.device(name)
            torch.zeros(1, device=device).sum().item()  # some devices hold tensors and cannot compute
    except Exception as error:  # each backend has its own for what it lacks
        words = str(error).partition("\n")[0][:MOST_WORDS]
        raise UserError(f"[run] device = '{name}' is not to be had: {words}; use 'cpu' or 'auto'") from error
    return device
