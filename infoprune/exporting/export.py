"""Writes a model for other tools, and runs every written file against the model before any gets its name."""

import copy
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from infoprune.errors import RunError, UserError, did_you_mean
from infoprune.evaluation.metrics import Score
from infoprune.exporting import source, traced
from infoprune.exporting.agreement import TOLERANCE, Run, batches_of, compare, outputs_of
from infoprune.exporting.results import ExportResult, Exports

Dtype = Literal["float32", "float16", "bfloat16"]
Format = Literal["state_dict", "source", "onnx", "program", "int8", "int8_dynamic"]

FILES: dict[Format, str] = {
    "state_dict": "model.safetensors",
    "source": "model.py",
    "onnx": "model.onnx",
    "program": "model.pt2",
    "int8": "model-int8.onnx",
    "int8_dynamic": "model-int8-dynamic.onnx",
}
TRACED = {"onnx", "program", "int8", "int8_dynamic"}
DTYPES: tuple[Dtype, ...] = ("float32", "float16", "bfloat16")
# Every file that a run's export may leave.
EXPORTED = (*FILES.values(), "model-float16.safetensors", "model-bfloat16.safetensors", "MODEL_CARD.md", "export.json")


@dataclass(frozen=True)
class _Job:
    """One file to be written: its format, the precision of what is in it, its name."""

    format: Format
    dtype: str
    name: str

    def __str__(self) -> str:
        return self.format if self.dtype in ("float32", "int8") else f"{self.dtype} {self.format}"


def export(
    model: nn.Module,
    example: Tensor,
    directory: Path | str,
    calibration: Iterable[Tensor] | None = None,
    score: Callable[[nn.Module], Score] | None = None,
    header: Mapping[str, str] | None = None,
    card: Callable[[Sequence[ExportResult], str], str] | None = None,
    *,
    formats: list[Format] = ["state_dict", "onnx"],  # noqa: B006  a recipe's list, shown as the default, never written to
    dtypes: list[Dtype] = ["float32"],  # noqa: B006
    license: str = "",
) -> Exports:
    """Writes the model in each format and checks each file against the model on the example.

    Traced files (onnx, program) and source take any batch size and are checked at three. All work is done on copies on
    the CPU, in float32 and evaluation mode: the model stays as it was. Files appear under their names only after all of
    them agreed with the model, up to `TOLERANCE` relative to the largest output; earlier files stay until then. Files
    in 8-bit integers and lower precision are scored as well.

    Args:
        model: any module that maps one tensor of samples to a tensor, or to a mapping or sequence of tensors.
        example: a batch of real inputs, `samples x channels x height x width`.
        directory: where the files go; it is made where it does not exist.
        calibration: batches whose activations set the scales of "int8"; the example if not given.
        score: measures a model, here one whose weights were rounded.
        header: text entries for the safetensors files; with those of a checkpoint `infoprune.load` reads them.
        card: the text of MODEL_CARD.md, from what was written and the licence; no card if not given.
        formats: which files to write: "state_dict" (weights, in safetensors), "source" (a Python file that builds the
            network without infoprune; its weights come along), "onnx" (one self-contained file), "program"
            (torch.export), "int8" (ONNX with 8-bit weights and activations, scales from calibration batches),
            "int8_dynamic" (scales found at every input).
        dtypes: precisions of the weights in the state_dict, one file each; all else starts from float32.
        license: of the weights, for the model card, such as "Apache-2.0".

    Returns:
        One row per file, in the order asked for.

    Raises:
        UserError: for an unknown format or dtype, an empty example, or a directory that cannot be written.
        RunError: where the model cannot be traced for a batch of any size, or a file disagrees with it.
    """
    jobs = _jobs(example, formats, dtypes)
    clone = copy.deepcopy(model).requires_grad_(False).to("cpu", torch.float32).eval()
    program = traced.trace(clone, example) if TRACED & {job.format for job in jobs} else None
    any_size = program is not None or "source" in formats
    batches = batches_of(example, any_size)
    expected = [outputs_of(clone, batch) for batch in batches]
    if not all(output.isfinite().all() for outputs in expected for output in outputs):
        raise RunError("the model's outputs on the example are not finite; look for NaN in its weights and its inputs")
    images = [example] if calibration is None else calibration
    rows = Exports()
    with _scratch(Path(directory)) as scratch:
        for job in jobs:
            path = scratch / job.name
            if job.format == "source":
                weights = next(each.name for each in jobs if each.format == "state_dict")
                run = source.write_source(path, copy.deepcopy(clone), example, weights)
            else:
                run = _write(job, path, clone, program, images, header)
            absolute, relative = compare(str(job), run, batches, expected, TOLERANCE[job.dtype])
            accuracy = None
            if score is not None and job.dtype != "float32" and isinstance(run, nn.Module):
                accuracy = score(run).accuracy
            sizes = tuple(len(batch) for batch in batches)
            rows.append(
                ExportResult(
                    job.format,
                    job.dtype,
                    Path(directory) / job.name,
                    path.stat().st_size,
                    absolute,
                    relative,
                    sizes,
                    accuracy,
                )
            )
        if card is not None:
            (scratch / "MODEL_CARD.md").write_text(card(rows, license), encoding="utf-8")
        umask = os.umask(0)
        os.umask(umask)
        for written in sorted(scratch.iterdir()):
            written.chmod(0o666 & ~umask)  # some writers make private files
            os.replace(written, Path(directory) / written.name)
    return rows


def _write(
    job: _Job,
    path: Path,
    clone: nn.Module,
    program: ExportedProgram | None,
    images: Iterable[Tensor],
    header: Mapping[str, str] | None,
) -> Run:
    """Writes one file and returns what it computes when it is read again."""
    if program is None or job.format == "state_dict":
        return _write_state_dict(path, clone, job.dtype, header)
    if job.format == "program":
        return traced.write_program(path, program)
    if job.format == "onnx":
        return traced.write_onnx(path, program)
    return traced.write_int8(path, program, images, dynamic=job.format == "int8_dynamic")


def _write_state_dict(path: Path, clone: nn.Module, dtype: str, header: Mapping[str, str] | None) -> Run:
    from safetensors.torch import load_file, save_file

    target: torch.dtype = getattr(torch, dtype)
    # Copies, since safetensors refuses tensors that share memory, as tied weights do.
    weights = {
        name: value.to(target if value.is_floating_point() else value.dtype, copy=True).contiguous()
        for name, value in clone.state_dict().items()
    }
    # One entry alone: several would stand in another order in every process, and equal runs write equal files.
    save_file(weights, path, metadata=dict(header or {"format": "pt"}))
    read = copy.deepcopy(clone)
    read.load_state_dict(load_file(path), strict=True)  # copies into float32 parameters
    return read


@contextmanager
def _scratch(directory: Path) -> Iterator[Path]:
    """A folder beside the files' final place, which goes with what is left in it."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=directory, prefix=".export-") as scratch:
            yield Path(scratch)
    except OSError as error:
        raise UserError(f"cannot write to {directory}: {error}; choose another directory or free it") from error


def check_options(*, formats: Sequence[str], dtypes: Sequence[str], **_: object) -> None:
    """Raises UserError for a format or a precision that `export` does not know."""
    for what, given, known in (("format", formats, FILES), ("dtype", dtypes, DTYPES)):
        if isinstance(given, str) or (not given and what == "dtype"):
            raise UserError(f"{what}s is {given!r}, expected a list such as {what}s = [{next(iter(known))!r}]")
        for name in given:
            if name not in known:
                raise UserError(f"no export {what} {name!r}{did_you_mean(name, known)}")


def _jobs(example: Tensor, formats: Sequence[Format], dtypes: Sequence[str]) -> list[_Job]:
    """The files asked for, checked."""
    if not isinstance(example, Tensor) or example.dim() < 2 or len(example) == 0:
        came = f"a tensor of shape {tuple(example.shape)}" if isinstance(example, Tensor) else type(example).__name__
        raise UserError(f"the example is {came}; give a batch with at least one sample, such as 1 x 3 x 224 x 224")
    check_options(formats=formats, dtypes=dtypes)
    jobs: list[_Job] = []
    wanted: dict[Format, None] = dict.fromkeys(formats)
    if "source" in wanted:
        wanted = {"state_dict": None, **wanted}  # without weights it would be of no use
    for name in wanted:
        for dtype in dict.fromkeys(dtypes) if name == "state_dict" else ["int8" if "int8" in name else "float32"]:
            stem, _, suffix = FILES[name].partition(".")
            rounded = name == "state_dict" and dtype != "float32"
            jobs.append(_Job(name, dtype, f"{stem}-{dtype}.{suffix}" if rounded else FILES[name]))
    return jobs
