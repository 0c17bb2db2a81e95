"""Trains: one loop for fine-tuning a pruned network and for training one from scratch."""

from collections.abc import Mapping
from typing import Annotated, Any, Protocol

import torch
from msgspec import Meta
from torch import Tensor, nn

from infoprune.config.ranges import Epochs, LearningRate, Seed, Share, in_range
from infoprune.evaluation.accuracy import Loader, Progress, device_of, evaluate
from infoprune.evaluation.metrics import EpochRecord
from infoprune.training.optimizer import Keep, Optimizer, Options, Precision, Schedule, rate_factor
from infoprune.training.trainer import Training
from infoprune.utils import distributed
from infoprune.utils.module_mode import mode_kept

__all__ = ["Resume", "check_options", "evaluate", "finetune", "rate_factor"]


# α of a beta distribution, of which mixing draws.
Mixing = Annotated[float, Meta(ge=0, le=1_000)]


class Resume(Protocol):
    """Where a training writes its state after each epoch, and finds it when it is started again."""

    def load(self, made_by: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """Tensors and JSON values as saved by a training with equal options; `None` where there are none."""

    def save(self, made_by: Mapping[str, Any], tensors: Mapping[str, Tensor], notes: Mapping[str, Any]) -> None:
        """Replaces what was saved before, whole or not at all."""


@in_range("[finetune]")
def finetune(
    model: nn.Module,
    batches: Loader,
    validation: Loader | None = None,
    teacher: nn.Module | None = None,
    on_step: Progress | None = None,
    resume: Resume | None = None,
    *,
    epochs: Epochs = 30,
    optimizer: Optimizer = "sgd",
    learning_rate: LearningRate | None = None,
    momentum: Annotated[float, Meta(ge=0, le=0.999)] = 0.9,
    weight_decay: Annotated[float, Meta(ge=0, le=100)] = 5e-4,
    schedule: Schedule = "cosine",
    warmup: Share = 0.1,
    label_smoothing: Share = 0.0,
    distillation: Share = 0.0,
    temperature: Annotated[float, Meta(ge=0.01, le=10_000)] = 4.0,
    feature_distillation: Annotated[float, Meta(ge=0, le=10**9)] = 0.0,
    feature_layers: list[str] | None = None,
    loss: str | None = None,
    metric: str | None = None,
    mixup: Mixing = 0.0,
    cutmix: Mixing = 0.0,
    erasing: Share = 0.0,
    gradient_clip: Annotated[float, Meta(ge=0, le=10**9)] = 0.0,
    accumulation: Annotated[int, Meta(ge=1, le=1_000_000)] = 1,
    ema: Annotated[float, Meta(ge=0, le=0.999999)] = 0.0,
    precision: Precision = "auto",
    channels_last: bool | None = None,
    patience: Epochs = 0,
    keep: Keep = "last",
    seed: Seed = 0,
) -> list[EpochRecord]:
    """Trains a model in place, one epoch per iteration over `batches`, and returns one record per epoch.

    Where processes share the batches (`Batches` made with `shared=True`, under torchrun), the model learns from all of
    them at once by DistributedDataParallel, each batch norm from its own process's part of a batch.

    Args:
        model: maps images to logits, `samples x classes`; trains on the device it is on.
        batches: images and class indices, `samples`; iterable again and again.
        validation: batches to score after each epoch.
        teacher: the network whose logits or features are imitated where an option asks for it.
        on_step: told after each step the number of steps done and of all.
        resume: saved to after each epoch; where it holds the state of a training with the same options, that goes on
            as if it had never been interrupted, on a CPU to the bit.
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
        feature_distillation: weight of the similarity of features (Tung and Mori, 2019, who take 3000); 0 for none.
        feature_layers: dotted names of the layers whose features are compared; if not given, the last convolution.
        loss: your own loss, "package.module:function" or "file.py:function", given logits and class indices, mean.
        metric: your own function of all validation logits and labels; the larger, the better, for "best".
        mixup: α of mixup (0.2 is common); 0 for none.
        cutmix: α of CutMix (1 is common); with mixup, one of the two for each batch; 0 for none.
        erasing: probability, 0..1, that a random rectangle of an image is erased.
        gradient_clip: longest gradient of all weights together (Euclidean norm); 0 sets no limit.
        accumulation: batches per step of the optimizer.
        ema: decay per step, such as 0.999, of a running mean of the weights, which is then what is kept; 0 for none.
        precision: of products: "auto" (bfloat16 on GPUs that have it), "float32", "bfloat16" or "float16".
        channels_last: memory layout of maps; if not given, on GPUs where the network computes with it.
        patience: epochs without a better validation after which training ends early; 0 for never.
        keep: the weights of the "last" epoch, or of the "best" on the validation batches.
        seed: of dropout and the like; the order of the images has its own seed, in the batches.

    Raises:
        UserError: for options out of range, empty batches, or labels that the logits do not have.
        RunError: where the loss becomes NaN or infinite.
    """
    options = Options.among({**locals(), "feature_layers": feature_layers or ()})
    options.check_needs(validation is not None, teacher is not None)
    if options.epochs == 0:
        return []
    device = device_of(model)
    # The caller's modes and random state are put back.
    with mode_kept(model), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        training = Training(model, batches, validation, options)
        with training.towards(teacher):
            _go_on(training, resume, options, on_step)
        training.deliver()
    return training.history


def _go_on(training: Training, resume: Resume | None, options: Options, on_step: Progress | None) -> None:
    saved = None if resume is None else resume.load(training.made_by)
    if saved is not None:
        training.restore(*saved)
    for epoch in range(len(training.history) + 1, options.epochs + 1):
        if training.has_settled():
            break
        training.run(epoch, on_step)
        if resume is not None and distributed.is_first():
            resume.save(training.made_by, *training.state())


def check_options(**options: Any) -> None:
    """Refuses what `finetune` would refuse of its options together, before anything is loaded.

    Raises:
        UserError: for options that exclude each other, or a loss or metric that cannot be found.
    """
    Options.among({"seed": 0, **options, "feature_layers": options.get("feature_layers") or ()})
