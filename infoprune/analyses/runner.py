"""One pass over the calibration batches feeds every analysis at once, one layer at a time."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infoprune.analyses.base import Analysis, BatchView, Finding, Joinable, LayerView
from infoprune.analyses.checks import check_analysis, conclude, make_analysis, name_of, telling
from infoprune.errors import RunError, UserError, did_you_mean, out_of_memory, told
from infoprune.utils import distributed
from infoprune.utils.module_mode import evaluating


def analyze(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    analyses: Sequence[Analysis | str],
    on_batch: Callable[[int], None] | None = None,
    *,
    layers: Sequence[str] | None = None,
) -> list[Finding]:
    """Runs analyses over calibration batches.

    Every forward hook hands each analysis a view of its layer; nothing keeps activations beyond the hook, so memory is
    one layer plus running sums. Only where an analysis needs gradients does autograd keep what backward needs.

    Args:
        model: any module; its mode, parameters and hooks are afterwards as before.
        batches: pairs `(images, labels)`: `samples x channels x height x width` and class indices `samples`; a
            `distributed.Share` of them where processes share the work, whose running sums are then joined.
        analyses: names of analyses, to be run with their defaults, or instances, the user's own included.
        on_batch: called with the number of batches done.
        layers: dotted names to observe; by default all layers of the kinds that an analysis observes. An analysis
            with `across_layers = True` relates layers to each other and always sees all.

    Returns:
        One finding per analysis, in their order.

    Raises:
        UserError: for no batches, a layer name that the model lacks, labels that do not fit the logits, a NaN or
            infinite activation, a layer that puts out no tensor, or a model or an analysis of the user's own that
            fails.
    """
    running = [make_analysis(each, {}) if isinstance(each, str) else each for each in analyses]
    for each in running:
        check_analysis(each, name_of(each))
    joint = distributed.sharers(batches) > 1
    # An analysis whose sums cannot be joined sees all batches on every process.
    alone = [analysis for analysis in running if joint and not isinstance(analysis, Joinable)]
    shared = [analysis for analysis in running if not joint or isinstance(analysis, Joinable)]
    count = 0
    for some, part in ((shared, batches), (alone, getattr(batches, "whole", ()))):
        if some:
            count += _observe(model, part, some, _watched(model, some, layers), on_batch)
    if running and count == 0:
        raise UserError("no calibration batches came; give at least one batch of images and labels")
    if joint:
        _join([analysis for analysis in shared if isinstance(analysis, Joinable)])
    return [conclude(analysis) for analysis in running]


def _observe(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    analyses: Sequence[Analysis],
    watched: Mapping[str, tuple[nn.Module, list[Analysis]]],
    on_batch: Callable[[int], None] | None,
) -> int:
    gradients = any(analysis.needs_gradients for analysis in analyses)
    first, stride = getattr(batches, "rank", 0), distributed.sharers(batches)
    count = 0
    with evaluating(model), ExitStack() as hooks:
        batch: list[BatchView] = []
        faults: list[Exception] = []
        for name, (module, observers) in watched.items():
            hooks.callback(module.register_forward_hook(_hook(name, observers, batch, faults)).remove)
        for count, (images, labels) in enumerate(batches, start=1):
            batch[:] = [BatchView(images, labels, first + stride * (count - 1))]
            with _telling_model(batch[0].index, faults):
                if gradients:
                    _forward_and_backward(model, images, labels)
                else:
                    with torch.no_grad():
                        model(images)
            if on_batch is not None:
                on_batch(count)
    return count


@contextmanager
def _telling_model(index: int, faults: Sequence[Exception]) -> Iterator[None]:
    """Says on which batch a model fails; what analyses raise inside its forward, the faults, is theirs and passes."""
    try:
        yield
    except (UserError, RunError):
        raise
    except Exception as error:  # A user's forward raises whatever it likes.
        if out_of_memory(error) or any(error is fault for fault in faults):
            raise
        raise UserError(
            f"the model fails on calibration batch {index}: {told(error)}; check that data and model match"
        ) from error


def _join(analyses: Sequence[Joinable]) -> None:
    """All running sums of all analyses in one all-reduce."""
    named = [(f"{number}.", analysis) for number, analysis in enumerate(analyses)]
    mine = {prefix + name: value for prefix, analysis in named for name, value in analysis.sums().items()}
    rows = distributed.gather(mine)
    for prefix, analysis in named:
        parts = [
            {name.removeprefix(prefix): value for name, value in row.items() if name.startswith(prefix)} for row in rows
        ]
        analysis.join(parts)


def _watched(
    model: nn.Module, analyses: Sequence[Analysis], layers: Sequence[str] | None
) -> dict[str, tuple[nn.Module, list[Analysis]]]:
    """Which analyses see which modules."""
    modules = dict(model.named_modules())
    for name in layers or ():
        if name not in modules:
            raise UserError(f"the model has no layer '{name}'{did_you_mean(name, modules)}")
    watched = {}
    for name, module in modules.items():
        chosen = layers is None or name in layers
        observers = [
            analysis
            for analysis in analyses
            if isinstance(module, analysis.observes) and (chosen or getattr(analysis, "across_layers", False))
        ]
        if observers:
            watched[name] = (module, observers)
    return watched


def _forward_and_backward(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    # A gradient at the images reaches every layer on the way, also where all parameters are frozen, and unlike
    # loss.backward() it leaves the parameters' own gradients alone.
    leaf = images.detach().requires_grad_()
    with torch.enable_grad():
        logits = model(leaf)
        if not isinstance(logits, Tensor):
            raise UserError(
                f"the model puts out a {type(logits).__name__}, but gradients are those of the loss of class logits in "
                "one tensor; leave out the analyses that need gradients, or wrap the model"
            )
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < logits.shape[-1]:
            raise UserError(
                f"labels run from {int(labels.min())} to {int(labels.max())}, but the model has {logits.shape[-1]} "
                "outputs; check the data set's classes against the model's"
            )
        torch.autograd.grad(F.cross_entropy(logits, labels), leaf)


def _filters_second(module: nn.Module, maps: Tensor) -> Tensor:
    """Linear layers over maps put their filters last, convolutions second, where analyses look for them."""
    return maps.movedim(-1, 1) if isinstance(module, nn.Linear) and maps.dim() > 2 else maps


def _hook(
    name: str, analyses: Sequence[Analysis], batch: Sequence[BatchView], faults: list[Exception]
) -> Callable[[nn.Module, object, object], None]:
    def at_forward(module: nn.Module, _: object, output: object) -> None:
        if not isinstance(output, Tensor):
            raise UserError(
                f"layer '{name}', a {type(module).__name__}, puts out a {type(output).__name__}; expected a tensor. "
                "Derive such a layer from torch.nn.Module instead"
            )
        activations = output.detach()
        # The sum is NaN or infinite as soon as one element is, and costs one pass without a temporary.
        if not torch.isfinite(activations.sum(dtype=torch.float64)):
            raise UserError(
                f"layer '{name}' put out NaN or infinity on calibration batch {batch[0].index}; check the weights and "
                "that the images are normalised as the model expects"
            )
        activations = _filters_second(module, activations)
        view = LayerView(name, module, activations, batch[0])
        show(view, [analysis for analysis in analyses if not analysis.needs_gradients])
        if later := [analysis for analysis in analyses if analysis.needs_gradients]:
            # Copied, since an in-place activation may follow before backward comes by.
            kept = activations.clone()
            output.register_hook(  # type: ignore[no-untyped-call]
                lambda gradient: show(
                    LayerView(name, module, kept, batch[0], _filters_second(module, gradient.detach())), later
                )
            )

    def show(view: LayerView, observers: Sequence[Analysis]) -> None:
        for analysis in observers:
            try:
                with telling(analysis, f"layer '{name}', calibration batch {batch[0].index}"):
                    analysis.observe(view)
            except Exception as error:
                faults.append(error)
                raise

    return at_forward
