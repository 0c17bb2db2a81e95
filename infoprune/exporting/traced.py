"""What comes out of torch's tracer: the program, ONNX, and ONNX in 8-bit integers."""

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from infoprune.errors import RunError, UserError
from infoprune.exporting.agreement import Run

# Protocol buffers hold no more than 2 GiB, a little of which goes to the graph.
LARGEST_ONNX = 2_000_000_000


def trace(clone: nn.Module, example: Tensor) -> ExportedProgram:
    """The graph for any batch size; strictly so, where the ONNX exporter would quietly fall back to a fixed one.

    Raises:
        RunError: where the model fixes the batch size or branches on values.
    """
    # Two samples, as a batch of one is taken for a constant. Zeros, as the program keeps the inputs it was traced on.
    zeros = torch.zeros(2, *example.shape[1:])
    try:
        with _quiet():
            traced = torch.export.export(clone, (zeros,), dynamic_shapes=({0: Dim("batch")},))
    except Exception as error:  # the tracer raises a dozen kinds, most of them private
        raise RunError(
            f"the model cannot be traced for a batch of any size: {str(error).strip().splitlines()[0]}\n"
            "Its forward may not fix the batch size (write x.flatten(1), not x.view(8, -1)) nor branch on values; "
            'formats = ["state_dict"] needs no trace.'
        ) from error
    for node in traced.graph.nodes:
        node.meta.pop("stack_trace", None)  # paths of this machine, which are nobody's business
    return traced


def write_program(path: Path, traced: ExportedProgram) -> Run:
    """Writes a `torch.export` program and reads it again."""
    torch.export.save(traced, path)
    return torch.export.load(path).module()


def write_onnx(path: Path, traced: ExportedProgram) -> Run:
    """Writes one self-contained ONNX file, checks it, and reads it again.

    Raises:
        UserError: where the weights are more than one file can hold.
    """
    import onnx

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
    return OnnxModel(path)


def write_int8(path: Path, traced: ExportedProgram, images: Iterable[Tensor], *, dynamic: bool) -> Run:
    """Writes the ONNX model in 8-bit integers, one scale per filter of each weight, and reads it again.

    Args:
        path: where to.
        traced: the model.
        images: batches whose smallest and largest activations set the scales of static quantization, held in the file
            (pairs of QuantizeLinear and DequantizeLinear, which every runtime knows).
        dynamic: find the scales again at every input instead, at some cost in time.

    Raises:
        UserError: as `write_onnx`.
    """
    import onnx
    from onnxruntime import quantization

    plain = path.with_suffix(".float.onnx")
    write_onnx(plain, traced)
    model = onnx.load(plain)
    plain.unlink()
    del model.graph.value_info[:]  # shapes of transposed weights among them, which the quantizer takes for another's
    with _quiet():
        if dynamic:
            quantization.quantize_dynamic(model, path, per_channel=True)
        else:
            quantization.quantize_static(model, path, _reader(images), per_channel=True)
    onnx.checker.check_model(path)
    return OnnxModel(path)


def _reader(images: Iterable[Tensor]) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """The batches one by one, as the quantizer asks for them."""

        def __init__(self) -> None:
            self.left = iter(images)

        def get_next(self) -> dict[str, Any] | None:
            batch = next(self.left, None)
            return None if batch is None else {"input": batch.detach().to("cpu", torch.float32).numpy()}

    return Reader()


class OnnxModel(nn.Module):
    """An ONNX file run by ONNX Runtime on the CPU, so that it can be measured as any model is.

    It maps a batch of images to the list of the file's outputs, or to the only one.
    """

    def __init__(self, path: Path | str) -> None:
        import onnxruntime

        super().__init__()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # Left to itself the runtime pins threads to processors, and warns where a container does not let it.
        options.intra_op_num_threads = torch.get_num_threads()
        content = Path(path).read_bytes()
        self.session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def forward(self, images: Tensor) -> Tensor | list[Tensor]:
        outputs = [torch.from_numpy(each) for each in self.session.run(None, {"input": images.cpu().numpy()})]
        return outputs[0] if len(outputs) == 1 else outputs


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences what torch and ONNX Runtime log and draw about a graph: an error that follows says it.

    Standard output and Python warnings pass: neither uses them, so what comes there is the model's own.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stderr(StringIO()):
            yield
    finally:
        logging.disable(before)
