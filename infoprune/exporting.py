"""Writes a model for other tools, and runs every written file against the model before it gets its name."""

import copy
import logging
import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from infoprune.errors import RunError, UserError, did_you_mean

Dtype = Literal["float32", "float16", "bfloat16"]
Run = Callable[[Tensor], Any]

FILES = {"onnx": "model.onnx", "program": "model.pt2", "state_dict": "model.safetensors"}

TOLERANCE = {
    # Two correct float32 runtimes differ by 1e-7 to 1e-5 in deep networks; a wrong operator differs by far more.
    "float32": 1e-4,
    # Weights keep 11 and 8 significant bits: 5e-4 and 4e-3 each, which some fifty layers may add up.
    "float16": 2e-2,
    "bfloat16": 1e-1,
}

# Protocol buffers hold no more than 2 GiB, a little of which goes to the graph.
LARGEST_ONNX = 2_000_000_000


@dataclass(frozen=True)
class ExportResult:
    """One written file and how far its outputs are from the model's own.

    Attributes:
        format: "onnx", "program" or "state_dict".
        path: the file.
        bytes: its size.
        max_abs_difference: largest over all outputs and batches, in units of the output.
        max_rel_difference: the same relative to the largest absolute output of the model on that batch.
        batches: the batch sizes on which both were run.
    """

    format: str
    path: Path
    bytes: int
    max_abs_difference: float
    max_rel_difference: float
    batches: tuple[int, ...]


def export(
    model: nn.Module,
    example: Tensor,
    directory: Path | str,
    *,
    formats: list[str] = ["onnx"],  # noqa: B006  a recipe's list, shown as the default and never written to
    dtype: Dtype = "float32",
) -> list[ExportResult]:
    """Writes the model in each format and checks each file against the model on the example.

    Traced files (onnx, program) take any batch size and are checked at three. All work is done on a copy on the CPU,
    in float32 and evaluation mode: the model stays as it was. A file appears under its name only after it agreed with
    the model, up to `TOLERANCE` relative to the largest output; an earlier file of that name stays until then.

    Args:
        model: any module that maps one tensor of samples to a tensor, or to a mapping or sequence of tensors.
        example: a batch of real inputs, `samples x channels x height x width`.
        directory: where the files go; it is made where it does not exist.
        formats: which files to write: "onnx" (one self-contained file), "program" (torch.export), "state_dict"
            (safetensors).
        dtype: precision of the weights in the state_dict; onnx and program are always float32.

    Returns:
        One row per format, in the order asked for.

    Raises:
        UserError: for an unknown format or dtype, an empty example, or a directory that cannot be written.
        RunError: where the model cannot be traced for a batch of any size, or a file disagrees with it.
    """
    _check(example, formats, dtype)
    twin = copy.deepcopy(model).requires_grad_(False).to("cpu", torch.float32).eval()
    traced = _trace(twin, example) if {"onnx", "program"} & set(formats) else None
    batches = _batches(example, any_size=traced is not None)
    expected = [_outputs(twin, batch) for batch in batches]
    if not all(output.isfinite().all() for outputs in expected for output in outputs):
        raise RunError("the model's outputs on the example are not finite; look for NaN in its weights and its inputs")
    results = []
    for name in dict.fromkeys(formats):
        with _scratch(Path(directory)) as scratch:
            written = scratch / FILES[name]
            run = _write(name, written, twin, traced, dtype)
            tolerance = TOLERANCE[dtype if name == "state_dict" else "float32"]
            absolute, relative = _compare(name, run, batches, expected, tolerance)
            path = Path(directory) / FILES[name]
            os.replace(written, path)
        sizes = tuple(len(batch) for batch in batches)
        results.append(ExportResult(name, path, path.stat().st_size, absolute, relative, sizes))
    return results


def _write(name: str, path: Path, twin: nn.Module, traced: ExportedProgram | None, dtype: Dtype) -> Run:
    """Writes one file and returns what it computes when it is read again."""
    if traced is None or name == "state_dict":
        return _write_state_dict(path, twin, dtype)
    return _write_onnx(path, traced) if name == "onnx" else _write_program(path, traced)


def _write_state_dict(path: Path, twin: nn.Module, dtype: Dtype) -> Run:
    from safetensors.torch import load_file, save_file

    target: torch.dtype = getattr(torch, dtype)
    # Copies, since safetensors refuses tensors that share memory, as tied weights do.
    weights = {
        name: value.to(target if value.is_floating_point() else value.dtype, copy=True).contiguous()
        for name, value in twin.state_dict().items()
    }
    save_file(weights, path, metadata={"format": "pt"})
    read = copy.deepcopy(twin)
    read.load_state_dict(load_file(path), strict=True)  # copies into float32 parameters
    return read


def _write_program(path: Path, traced: ExportedProgram) -> Run:
    torch.export.save(traced, path)
    return torch.export.load(path).module()


def _write_onnx(path: Path, traced: ExportedProgram) -> Run:
    import onnx
    import onnxruntime

    size = sum(value.numel() * value.element_size() for value in traced.state_dict.values())
    if size > LARGEST_ONNX:
        raise UserError(
            f"the weights take {size / 1e9:.1f} GB, one ONNX file holds {LARGEST_ONNX / 1e9:.1f} GB; "
            'export with formats = ["program"]'
        )
    with _quiet():
        torch.onnx.export(
            traced,
            (),
            path,
            dynamo=True,
            external_data=False,
            verbose=False,
            input_names=["input"],
            # For the name of the axis only: what is dynamic was decided in the trace.
            dynamic_shapes=({0: Dim("batch")},),
        )
    onnx.checker.check_model(path, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Left to itself the runtime pins threads to processors, and warns where a container does not let it.
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    return lambda batch: [torch.from_numpy(output) for output in session.run(None, {"input": batch.numpy()})]


def _trace(twin: nn.Module, example: Tensor) -> ExportedProgram:
    """The graph for any batch size; strictly so, where the ONNX exporter would quietly fall back to a fixed one."""
    # Two samples, as a batch of one is taken for a constant. Zeros, as the program keeps the inputs it was traced on.
    zeros = torch.zeros(2, *example.shape[1:])
    try:
        with _quiet():
            traced = torch.export.export(twin, (zeros,), dynamic_shapes=({0: Dim("batch")},))
    except Exception as error:  # the tracer raises a dozen kinds, most of them private
        raise RunError(
            f"the model cannot be traced for a batch of any size: {str(error).strip().splitlines()[0]}\n"
            "Its forward may not fix the batch size (write x.flatten(1), not x.view(8, -1)) nor branch on values; "
            'formats = ["state_dict"] needs no trace.'
        ) from error
    for node in traced.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine, which are nobody's business
    return traced


def _compare(
    name: str, run: Run, batches: list[Tensor], expected: list[list[Tensor]], tolerance: float
) -> tuple[float, float]:
    """Largest absolute and relative difference between what the file computes and what the model computes."""
    absolute = relative = 0.0
    for batch, outputs in zip(batches, expected, strict=True):
        came = _outputs(run, batch)
        if [output.shape for output in came] != [output.shape for output in outputs]:
            shapes = [[tuple(output.shape) for output in each] for each in (came, outputs)]
            raise RunError(f"the {name} file puts out shapes {shapes[0]}, the model {shapes[1]}; nothing was written")
        for ours, theirs in zip(outputs, came, strict=True):
            difference = (ours - theirs).abs().max().item() if ours.numel() else 0.0
            difference = math.inf if math.isnan(difference) else difference
            largest = ours.abs().max().item() if ours.numel() else 0.0
            absolute = max(absolute, difference)
            relative = max(relative, difference / largest if largest else math.inf if difference else 0.0)
    if relative > tolerance:
        raise RunError(
            f"the {name} file differs from the model by {relative:.1e} of its largest output, at most {tolerance:.0e} "
            "is accepted; nothing was written. Try another format or dtype"
        )
    return absolute, relative


def _batches(example: Tensor, any_size: bool) -> list[Tensor]:
    """The example; for files that take any batch size also one sample more than it has, and one sample."""
    example = example.detach().to("cpu", torch.float32).contiguous()
    if not any_size:
        return [example]
    longer = torch.cat([example, example[:1]])
    return [example, longer, example[:1]] if len(example) > 1 else [example, longer]


def _outputs(run: Run, batch: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return [output.float() for output in _leaves(run(batch))]


def _leaves(outputs: Any) -> list[Tensor]:
    """The tensors of a possibly nested output, in the order in which exporters lay them out."""
    if isinstance(outputs, Tensor):
        return [outputs]
    if isinstance(outputs, Mapping):
        outputs = outputs.values()
    return [] if outputs is None else [leaf for output in outputs for leaf in _leaves(output)]


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences what torch logs and draws about a graph that it cannot trace: the error that follows says it.

    Standard output and Python warnings pass: torch uses neither, so what comes there is the model's own.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stderr(StringIO()):
            yield
    finally:
        logging.disable(before)


@contextmanager
def _scratch(directory: Path) -> Iterator[Path]:
    """A folder beside the files' final place, which goes with what is left in it."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory, prefix=".export-") as scratch:
            yield Path(scratch)
    except OSError as error:
        raise UserError(f"cannot write to {directory}: {error}; choose another directory or free it") from error


def _check(example: Tensor, formats: Sequence[str], dtype: str) -> None:
    if not isinstance(example, Tensor) or example.dim() < 2 or len(example) == 0:
        came = f"a tensor of shape {tuple(example.shape)}" if isinstance(example, Tensor) else type(example).__name__
        raise UserError(f"the example is {came}; give a batch with at least one sample, such as 1 x 3 x 224 x 224")
    if isinstance(formats, str):
        raise UserError(f"formats is the text {formats!r}, expected a list; write formats = [{formats!r}]")
    for name in formats:
        if name not in FILES:
            raise UserError(f"no export format {name!r}{did_you_mean(name, FILES)}")
    if dtype not in TOLERANCE:
        raise UserError(f"no export dtype {dtype!r}{did_you_mean(dtype, TOLERANCE)}")
