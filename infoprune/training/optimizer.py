"""The options of training, checked as a whole, and what follows from them: optimizer, learning rate, precision."""

import math
from dataclasses import dataclass, fields
from typing import Any, Literal

import torch
from torch import nn

from infoprune.config import registry
from infoprune.errors import UserError

Optimizer = Literal["sgd", "adamw"]
Schedule = Literal["cosine", "one_cycle"]
Keep = Literal["last", "best"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]
USUAL_RATE = {"sgd": 0.05, "adamw": 0.001}


@dataclass(frozen=True, kw_only=True)
class Options:
    """The keyword arguments of `finetune`, where each is described; refuses what cannot go together when made.

    Raises:
        UserError: for options that exclude each other, or a function that cannot be found.
    """

    epochs: int
    optimizer: Optimizer
    learning_rate: float | None
    momentum: float
    weight_decay: float
    schedule: Schedule
    warmup: float
    label_smoothing: float
    distillation: float
    temperature: float
    feature_distillation: float
    feature_layers: tuple[str, ...] | list[str]
    loss: str | None
    metric: str | None
    mixup: float
    cutmix: float
    erasing: float
    gradient_clip: float
    accumulation: int
    ema: float
    precision: Precision
    channels_last: bool | None
    patience: int
    keep: Keep
    seed: int

    def __post_init__(self) -> None:
        if self.loss is not None and (self.label_smoothing or self.mixup or self.cutmix):
            raise UserError(
                f"loss = '{self.loss}' is given class indices, which label_smoothing, mixup and cutmix would blur; "
                "set those to 0"
            )
        for reference in (self.loss, self.metric):
            if reference is not None:
                registry.users_own(reference)

    @classmethod
    def among(cls, arguments: dict[str, Any]) -> "Options":
        """From a mapping that holds other things too."""
        return cls(**{field.name: arguments[field.name] for field in fields(cls)})

    @property
    def rate(self) -> float:
        """The highest learning rate."""
        return USUAL_RATE[self.optimizer] if self.learning_rate is None else self.learning_rate

    def check_needs(self, validates: bool, teaches: bool) -> None:
        """Refuses what would need validation batches or a teacher where there are none."""
        for name, active in (("keep", self.keep == "best"), ("patience", self.patience > 0)):
            if active and not validates:
                raise UserError(
                    f"{name} = {getattr(self, name)!r} chooses by validation batches, and there are none; "
                    + ("set keep = 'last'" if name == "keep" else "set patience = 0")
                )
        if self.metric is not None and not validates:
            raise UserError(f"metric = '{self.metric}' is measured on validation batches, and there are none")
        for name in ("distillation", "feature_distillation"):
            if getattr(self, name) and not teaches:
                raise UserError(f"{name} = {getattr(self, name)} imitates a teacher, and there is none; set {name} = 0")

    def lower_precision(self, device: torch.device) -> torch.dtype | None:
        """The type in which convolutions and products are computed; `None` for the weights' own."""
        if self.precision == "auto":
            fit = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
            return torch.bfloat16 if fit else None
        return {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}[self.precision]

    def channels_behind(self, device: torch.device) -> bool:
        """Whether maps are laid out with their channels last."""
        return device.type == "cuda" if self.channels_last is None else self.channels_last


def optimizer_for(model: nn.Module, options: Options) -> torch.optim.Optimizer:
    """The optimizer; weight decay spares norms and biases.

    Raises:
        UserError: for a model without weights to train.
    """
    # Vectors are biases and the scales and shifts of norms; a LayerNorm over maps has them in the shape of the map.
    norms = {id(p) for module in model.modules() if isinstance(module, nn.LayerNorm) for p in module.parameters()}
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not trained:
        raise UserError("the model has no weights to train; set requires_grad on those that should be")
    decayed = [parameter for parameter in trained if parameter.ndim > 1 and id(parameter) not in norms]
    free = [parameter for parameter in trained if parameter.ndim <= 1 or id(parameter) in norms]
    groups = [{"params": decayed, "weight_decay": options.weight_decay}, {"params": free, "weight_decay": 0.0}]
    if options.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=options.rate, betas=(options.momentum, 0.999))
    return torch.optim.SGD(groups, lr=options.rate, momentum=options.momentum, nesterov=options.momentum > 0)


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
