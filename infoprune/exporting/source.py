"""A Python file that builds the network as it is now, without this package: its layers with their widths, its forward.

The forward is what torch.fx records while the model runs on stand-ins for tensors, so a model that branches on values
has none.
"""

import inspect
import json
import re
import runpy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, fx, nn

from infoprune import __version__
from infoprune.errors import RunError
from infoprune.exporting.agreement import Run

# What the file may import; a function from elsewhere would not be there.
ALLOWED = ("torch", "torchvision", "operator", "_operator", "math", "builtins")
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
LARGEST_CONSTANT = 4096  # numbers that a file for reading may write out

HEAD = '''"""A network pruned with infoprune {version}: needs {needs}, and safetensors to read its weights.

    from model import load
    outputs = load()(images)  # {shape}, float32

Layers have the names that they have in the weights file. What the forward pass does is what it did in evaluation mode:
layers such as dropout follow train(), functions of that kind stay switched off. Weights that were shared are copies.
"""

{imports}


class Part(nn.Module):
    """Layers, parameters and buffers under their names."""

    def __init__(self, parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)

    def __getitem__(self, name):
        return getattr(self, name)


class Network(Part):
    def __init__(self):
        super().__init__({parts})

    {forward}


def load(path=Path(__file__).with_name({weights!r})):
    """The network with its weights, in evaluation mode."""
    from safetensors.torch import load_file

    network = Network()
    network.load_state_dict(load_file(path))
    return network.eval()
'''


def write_source(path: Path, clone: nn.Module, example: Tensor, weights: str) -> Run:
    """Writes the file, and gives what it builds, with the model's weights.

    Args:
        path: where to.
        clone: a copy of the model in evaluation mode that may be changed.
        example: a batch, for the shape that the file names.
        weights: name of the weights file beside it.

    Raises:
        RunError: where the model cannot be written as a file; the message says what can be done.
    """
    try:
        text = source(clone, example, weights)
        path.write_text(text, encoding="utf-8")
        network: nn.Module = runpy.run_path(str(path))["Network"]()
        network.load_state_dict(clone.state_dict())
    except OSError:
        raise
    except Exception as error:  # the tracer and the user's forward raise whatever they like
        own = str(error) if isinstance(error, RunError) else f"{type(error).__name__}: {error}"
        raise RunError(
            f"the model cannot be written as a Python file: {' '.join(own.split())[:300]}\n"
            'formats = ["program"] holds the architecture too, as a torch.export program, and takes most models.'
        ) from error
    return network.eval()


def source(model: nn.Module, example: Tensor, weights: str) -> str:
    """The text of the file; the model may be changed by it.

    Raises:
        RunError: for what cannot be written out.
    """
    layers = {name: _constructor(module) for name, module in model.named_modules() if _is_layer(module)}
    found = {name: text for name, text in layers.items() if text}
    with _lengths(model):
        graph = _Tracer(found).trace(model, concrete_args=_defaults(model))
    _tidy(graph)
    code = graph.python_code("self")
    body = re.sub(r";  (\w+ = )+None$", "", code.src, flags=re.MULTILINE)  # frees memory early, at the cost of reading
    body = body[body.index("def forward") :].rstrip()
    inner = re.compile(r'getattr\((self(?:\.\w+|\["[^"\\]+"\])*), ("[^"\\]+")\)')
    while inner.search(body):
        body = inner.sub(r"\1[\2]", body)
    constants = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
    parts = _parts(model, "", found, constants, indent=8)
    imports = _imports(code.globals, parts + body)
    return HEAD.format(
        version=__version__,
        needs="torch and torchvision" if "torchvision" in imports else "torch alone",
        shape=" x ".join(["samples", *map(str, example.shape[1:])]),
        imports=imports,
        parts=parts,
        forward=body.replace("\n", "\n    "),
        weights=weights,
    )


class _Tracer(fx.Tracer):
    """Goes into every module that is not written out as a layer."""

    def __init__(self, layers: Mapping[str, str]) -> None:
        super().__init__()
        self.layers = layers

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        return qualified_name in self.layers


@contextmanager
def _lengths(model: nn.Module) -> Iterator[None]:
    """Makes `len(images)` the recorded `images.shape[0]` in the files of the model's classes: Python wants a number."""

    def length(value: Any) -> Any:
        shape: Any = value.shape if isinstance(value, fx.Proxy) else (len(value),)
        return shape[0]

    forwards: list[Any] = [inspect.unwrap(type(module).forward) for module in model.modules()]
    files = {id(each.__globals__): each.__globals__ for each in forwards}
    patched = [names for names in files.values() if "len" not in names]
    for names in patched:
        names["len"] = length
    try:
        yield
    finally:
        for names in patched:
            del names["len"]


def _defaults(model: nn.Module) -> dict[str, Any]:
    """Arguments of the forward beyond the images, which keep their defaults."""
    _, *others = inspect.signature(model.forward).parameters.values()
    return {each.name: each.default for each in others if each.default is not each.empty}


def _tidy(graph: fx.Graph) -> None:
    """Leaves one input, and no annotations, whose names the file would have to import."""
    graph.set_codegen(fx.graph.CodeGen())
    _, *doomed = (node for node in graph.nodes if node.op == "placeholder")
    for node in graph.nodes:
        node.type = None
        if any(each in doomed for each in node.all_input_nodes):
            doomed.append(node)  # the checks that arguments keep their defaults
        if getattr(node.target, "__name__", "") == "stochastic_depth" and node.args[3:] == (False,):
            node.replace_all_uses_with(node.args[0])  # switched off, and not worth an import of torchvision
            doomed.append(node)
    if any(node.op == "output" for node in doomed):
        raise RunError("its forward takes more than the images")
    for node in sorted(doomed, reverse=True):
        graph.erase_node(node)


def _is_layer(module: nn.Module) -> bool:
    return not isinstance(module, CONTAINERS) and getattr(nn, type(module).__name__, None) is type(module)


def _constructor(module: nn.Module) -> str:
    """The call that builds a layer of torch.nn; empty where its attributes do not tell."""
    signature = inspect.signature(type(module)).parameters
    given = {}
    for name, parameter in signature.items():
        value = getattr(module, name, parameter.default)
        if name == "bias" and not isinstance(value, bool | type):
            value = value is not None
        if name not in ("device", "dtype") and value is not parameter.empty and value != parameter.default:
            given[name] = value
    short = {name: _single(value) for name, value in given.items()}
    for arguments in ({k: v for k, v in short.items() if v != signature[k].default}, given):
        try:
            with torch.device("meta"):
                again = type(module)(**arguments)
        except Exception:  # whatever its constructor says to arguments that are none
            continue
        if _shapes(again) == _shapes(module) and _settings(again).items() <= _settings(module).items():
            written = ", ".join(f"{name}={value!r}" for name, value in arguments.items())
            return f"nn.{type(module).__name__}({written})"
    return ""


def _single(value: Any) -> Any:
    """3 for (3, 3): what most constructors make of it themselves."""
    pair = isinstance(value, tuple) and len(value) > 1 and len(set(value)) == 1
    return value[0] if pair else value


def _shapes(module: nn.Module) -> dict[str, Any]:
    return {name: (value.shape, value.dtype) for name, value in module.state_dict().items()}


def _settings(module: nn.Module) -> dict[str, str]:
    """What a layer was told, but for its mode."""
    plain = (bool, int, float, str, tuple, type(None))
    return {k: repr(v) for k, v in vars(module).items() if isinstance(v, plain) and k[0] != "_" and k != "training"}


def _parts(module: nn.Module, path: str, layers: Mapping[str, str], constants: set[str], indent: int) -> str:
    """The dictionary of what a module holds, level by level."""
    rows: dict[str, str] = {}
    kept = module.state_dict(keep_vars=True)
    for name, value in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
        kind = "Parameter" if isinstance(value, nn.Parameter) else "Buffer"
        dtype = "" if value.dtype == torch.float32 else f", dtype={value.dtype}"
        size = ", ".join(map(str, value.shape)) or "()"
        rows[name] = f"nn.{kind}(torch.empty({size}{dtype}))" if name in kept else _constant(value, path + name)
    for name, value in vars(module).items():
        if isinstance(value, Tensor) and path + name in constants:
            rows[name] = _constant(value, path + name)
    for name, child in module.named_children():
        inner = f"{path}{name}"
        rows[name] = layers.get(inner) or f"Part({_parts(child, f'{inner}.', layers, constants, indent + 4)})"
    for name in rows:
        if not re.fullmatch(r'[^"\\\r\n]+', name):
            raise RunError(f"a layer's name, {name!r}, has quotes, backslashes or line breaks in it")
    if not rows:
        return "{}"
    lines = "".join(
        f"\n{' ' * (indent + 4)}{json.dumps(name, ensure_ascii=False)}: {text}," for name, text in rows.items()
    )
    return "{" + lines + "\n" + " " * indent + "}"


def _constant(value: Tensor, name: str) -> str:
    if value.numel() > LARGEST_CONSTANT:
        raise RunError(
            f"'{name}' holds {value.numel()} numbers that the weights file lacks; register it as a persistent buffer"
        )
    return f"nn.Buffer(torch.tensor({value.tolist()!r}, dtype={value.dtype}), persistent=False)"


def _imports(used: Mapping[str, Any], text: str) -> str:
    """The import lines for the names that the forward uses."""
    lines = {"from pathlib import Path", "import torch", "from torch import nn"}
    for name, value in used.items():
        if not re.search(rf"\b{re.escape(name)}\b", text) or name == "torch":
            continue
        if isinstance(value, float):
            lines.add(f"from math import {name}")
        elif value is type(None):
            lines.add("from types import NoneType")
        else:
            lines.add(_import(name, value))
    lines |= {f"from math import {name}" for name in ("inf", "nan") if re.search(rf"\b{name}\b", text)}
    ours = {line for line in lines if "torch" in line.split()[1]}
    return "\n".join([*sorted(lines - ours), "", *sorted(ours)])


def _import(name: str, value: Any) -> str:
    module = value.__name__ if isinstance(value, ModuleType) else str(getattr(value, "__module__", ""))
    if module.split(".")[0] not in ALLOWED:
        raise RunError(f"its forward calls '{name}', which is neither torch's nor torchvision's")
    if isinstance(value, ModuleType):
        return f"import {module}" if module == name else f"import {module} as {name}"
    own = value.__qualname__
    return f"from {module} import {own}" + (f" as {name}" if own != name else "")
