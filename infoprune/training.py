"""Trains and evaluates: one loop for fine-tuning a pruned network and for training one from scratch."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infoprune.artifacts import EpochRecord, Score
from infoprune.errors import RunError, UserError

Loader = Iterable[tuple[Tensor, Tensor]]
Progress = Callable[[int, int], None]
Optimizer = Literal["sgd", "adamw"]
Schedule = Literal["cosine", "one_cycle"]
Keep = Literal["last", "best"]
USUAL_RATE = {"sgd": 0.05, "adamw": 0.001}
# In the order in which `_in_range` is called.
RANGES = {
    "epochs": (0, math.inf),
    "learning_rate": (0, math.inf),
    "momentum": (0, 0.999),
    "weight_decay": (0, math.inf),
    "warmup": (0, 1),
    "label_smoothing": (0, 1),
    "distillation": (0, 1),
    "temperature": (0.01, math.inf),
    "gradient_clip": (0, math.inf),
}
UNKNOWN = Score(accuracy=math.nan, loss=math.nan, samples=0)
CHECK_EVERY = 32  # steps between two looks for NaN: every look makes a GPU wait


def evaluate(model: nn.Module, batches: Loader, on_batch: Progress | None = None) -> Score:
    """Accuracy and loss of a model in evaluation mode; its own mode is put back afterwards.

    >>> round(evaluate(nn.Flatten(), [(torch.eye(3), torch.tensor([0, 1, 0]))]).accuracy, 3)  # images are the logits
    0.667

    Args:
        model: maps images to logits, `samples x classes`.
        batches: images and class indices, `samples`.
        on_batch: told after each batch the number of batches done and of all (0 where the batches have no length).

    Raises:
        UserError: where there are no samples, labels that the logits do not have, or logits that are not finite.
    """
    tally, total, device = _Tally(), _length(batches), _device_of(model)
    with _mode_put_back(model), torch.no_grad():
        model.eval()
        for done, (images, given) in enumerate(batches, start=1):
            logits, labels = model(images.to(device)), given.to(device)
            _check_batch(logits, labels, f"batch {done}")
            if not logits.isfinite().all():
                raise UserError(
                    f"batch {done}: the model's logits hold NaN or infinity; check its weights (were they loaded "
                    "completely?) and that the images are normalised as it expects"
                )
            tally.add(F.cross_entropy(logits, labels.long()), logits, labels)
            if on_batch is not None:
                on_batch(done, total)
    score = tally.score()
    if not score.samples:
        raise UserError("there is nothing to evaluate on: the batches are empty; check the split and its size")
    return score


def finetune(
    model: nn.Module,
    batches: Loader,
    validation: Loader | None = None,
    teacher: nn.Module | None = None,
    on_step: Progress | None = None,
    *,
    epochs: int = 30,
    optimizer: Optimizer = "sgd",
    learning_rate: float | None = None,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    schedule: Schedule = "cosine",
    warmup: float = 0.1,
    label_smoothing: float = 0.0,
    distillation: float = 0.0,
    temperature: float = 4.0,
    gradient_clip: float = 0.0,
    keep: Keep = "last",
    seed: int = 0,
) -> list[EpochRecord]:
    """Trains a model in place, one epoch per iteration over `batches`, and returns one record per epoch.

    Args:
        model: maps images to logits, `samples x classes`; trains on the device it is on.
        batches: images and class indices, `samples`; iterable again and again.
        validation: batches to score after each epoch.
        teacher: the network whose logits are imitated where `distillation` asks for it.
        on_step: told after each step the number of steps done and of all.
        epochs: passes over the training split; 0 leaves the model as it is.
        optimizer: "sgd" with Nesterov's momentum, or "adamw".
        learning_rate: the highest rate of the schedule; if not given, 0.05 for "sgd" and 0.001 for "adamw".
        momentum: of "sgd"; the first beta of "adamw".
        weight_decay: on the weights of convolutions and linear layers only, never on norms and biases.
        schedule: "cosine" (linear rise, cosine down to 0) or "one_cycle" (cosine up from a 25th, cosine down to 0).
        warmup: share of all steps, 0..1, in which the rate rises; "one_cycle" is commonly given 0.3.
        label_smoothing: share of the target, 0..1, that is spread evenly over all classes.
        distillation: weight, 0..1, of the divergence from the teacher's logits; the labels' loss gets the rest.
        temperature: divides the logits of both networks in the distillation.
        gradient_clip: longest gradient of all weights together (Euclidean norm); 0 sets no limit.
        keep: the weights of the "last" epoch, or of the "best" on the validation batches.
        seed: of dropout and the like; the order of the images has its own seed, in the batches.

    Raises:
        UserError: for options out of range, empty batches, or labels that the logits do not have.
        RunError: where the loss becomes NaN or infinite.
    """
    rate = USUAL_RATE[optimizer] if learning_rate is None else learning_rate
    _in_range(epochs, rate, momentum, weight_decay, warmup, label_smoothing, distillation, temperature, gradient_clip)
    _check_needs(keep, validation, distillation, teacher)
    if epochs == 0:
        return []
    steps, step, device = epochs * (_length(batches) or sum(1 for _ in batches)), 0, _device_of(model)
    loss_of = _objective(teacher, label_smoothing, distillation, temperature)
    descent = _optimizer(model, optimizer, rate, momentum, weight_decay)
    history: list[EpochRecord] = []
    best, best_state = (-math.inf, -math.inf), dict[str, Tensor]()
    with _mode_put_back(model), _own_randomness(device):
        for epoch in range(1, epochs + 1):
            began, tally = time.perf_counter(), _Tally()
            torch.manual_seed(seed * 100_003 + epoch)  # by epoch, so that none depends on what came before it
            model.train()
            for images, labels in batches:
                images, labels = images.to(device), labels.to(device)
                logits = model(images)
                if epoch == 1:
                    _check_batch(logits, labels, f"training batch {step + 1}")
                loss = loss_of(images, logits, labels.long())
                now = rate * rate_factor(schedule, step, steps, warmup)
                _descend(model, descent, now, loss, gradient_clip)
                tally.add(loss, logits, labels)
                step += 1
                if step % CHECK_EVERY == 0:
                    _check_loss(tally, step, rate)
                if on_step is not None:
                    on_step(step, steps)
            _check_loss(tally, step, rate)
            score = evaluate(model, validation) if validation is not None else UNKNOWN
            fit = tally.score()
            seconds = time.perf_counter() - began
            history.append(EpochRecord(epoch, now, fit.loss, fit.accuracy, score.loss, score.accuracy, seconds))
            if keep == "best" and (score.accuracy, -score.loss) > best:
                best, best_state = (score.accuracy, -score.loss), _copy(model)
    if best_state:
        model.load_state_dict(best_state)
    return history


def rate_factor(schedule: Schedule, step: int, steps: int, warmup: float) -> float:
    """The learning rate at a step (from 0) as a share of its highest.

    "cosine" is Loshchilov and Hutter, "SGDR", ICLR 2017, after a linear rise; "one_cycle" is Smith and Topin,
    "Super-convergence", 2018, in the form of torch's `OneCycleLR`, with constant momentum.

    >>> [round(rate_factor("cosine", step, 8, warmup=0.25), 2) for step in range(8)]
    [0.5, 1.0, 1.0, 0.93, 0.75, 0.5, 0.25, 0.07]
    """
    if schedule == "cosine":
        rising = round(warmup * steps)
        return (step + 1) / rising if step < rising else _cosine(1, 0, (step - rising) / max(steps - rising, 1))
    start, top, last = 1 / 25, warmup * steps - 1, steps - 1
    if step <= top:
        return _cosine(start, 1, step / top if top else 1)
    return _cosine(1, start / 1e4, (step - top) / (last - top))


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(share, 1))) / 2


class _Tally:
    """Running sums of loss and hits; they stay on the device until somebody asks."""

    def __init__(self) -> None:
        self.samples = 0
        self._loss: Tensor | float = 0.0
        self._hits: Tensor | int = 0

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        self.samples += len(labels)
        self._loss = self._loss + loss.detach().double() * len(labels)
        self._hits = self._hits + (logits.detach().argmax(1) == labels).sum()

    def score(self) -> Score:
        samples = max(self.samples, 1)
        return Score(accuracy=int(self._hits) / samples, loss=float(self._loss) / samples, samples=self.samples)


def _optimizer(
    model: nn.Module, name: Optimizer, rate: float, momentum: float, weight_decay: float
) -> torch.optim.Optimizer:
    # Vectors are biases and the scales and shifts of norms; a LayerNorm over maps has them in the shape of the map.
    norms = {id(p) for module in model.modules() if isinstance(module, nn.LayerNorm) for p in module.parameters()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise UserError("the model has no weights to train; set requires_grad on those that should be")
    decayed = [parameter for parameter in trained if parameter.ndim > 1 and id(parameter) not in norms]
    free = [parameter for parameter in trained if parameter.ndim <= 1 or id(parameter) in norms]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=rate, betas=(momentum, 0.999))
    return torch.optim.SGD(groups, lr=rate, momentum=momentum, nesterov=momentum > 0)


def _objective(
    teacher: nn.Module | None, smoothing: float, distillation: float, temperature: float
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The loss of `(images, logits, labels)`: (1 - d) CE(labels) + d T² KL(teacher || student), both softened by T.

    Hinton et al., "Distilling the knowledge in a neural network", 2015; T² keeps the gradient's size whatever T.
    """

    def loss_of(images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
        if teacher is None or not distillation:
            return loss
        with torch.no_grad(), _mode_put_back(teacher):
            softened = F.log_softmax(teacher.eval()(images) / temperature, dim=1)
        student = F.log_softmax(logits / temperature, dim=1)
        divergence = F.kl_div(student, softened, reduction="batchmean", log_target=True)
        return (1 - distillation) * loss + distillation * temperature**2 * divergence

    return loss_of


def _descend(model: nn.Module, descent: torch.optim.Optimizer, rate: float, loss: Tensor, clip: float) -> None:
    for group in descent.param_groups:
        group["lr"] = rate
    descent.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    if clip:
        nn.utils.clip_grad_norm_(model.parameters(), clip)
    descent.step()


@contextmanager
def _mode_put_back(model: nn.Module) -> Iterator[None]:
    """Every layer by itself: somebody may have frozen the norms of a model in training."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _own_randomness(device: torch.device) -> AbstractContextManager[None]:
    """Leaves the caller's random state as it was."""
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def _device_of(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def _length(batches: Loader) -> int:
    """Number of batches; 0 where only going through them would tell."""
    try:
        return len(batches)  # type: ignore[arg-type]
    except TypeError:
        return 0


def _check_batch(logits: Tensor, labels: Tensor, where: str) -> None:
    """Before the loss: on a GPU a label out of range would end the process without a word about labels."""
    if not isinstance(logits, Tensor) or logits.ndim != 2 or labels.shape != logits.shape[:1]:
        came = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(
            f"{where}: the model gave {came} for labels {list(labels.shape)}; expected logits, samples x classes, "
            "and one class index per sample"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= logits.shape[1]:
        raise UserError(
            f"{where}: labels {low}..{high}, but the model has {logits.shape[1]} outputs, for labels "
            f"0..{logits.shape[1] - 1}; check the data's labels and the model's number of classes"
        )


def _check_loss(tally: _Tally, step: int, rate: float) -> None:
    score = tally.score()
    if not score.samples:
        raise UserError("there is nothing to train on: the batches are empty, or can be gone through only once")
    if not math.isfinite(score.loss):
        raise RunError(
            f"the loss became {score.loss} within the first {step} steps; lower learning_rate (now {rate:g}), "
            "set gradient_clip = 1, or check the training images for NaN"
        )


def _check_needs(keep: Keep, validation: Loader | None, distillation: float, teacher: nn.Module | None) -> None:
    if keep == "best" and validation is None:
        raise UserError("keep = 'best' chooses by validation batches, and there are none; set keep = 'last'")
    if distillation and teacher is None:
        raise UserError(f"distillation = {distillation} imitates a teacher, and there is none; set distillation = 0")


def _in_range(*values: float) -> None:
    for value, (name, (lowest, highest)) in zip(values, RANGES.items(), strict=True):
        if not lowest <= value <= highest:
            raise UserError(f"{name} = {value} is out of range; expected {lowest:g} to {highest:g}")
