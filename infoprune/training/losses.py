"""What training lowers: the labels' loss, the divergence from a teacher's logits, and from its features."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infoprune.config import registry
from infoprune.errors import UserError, did_you_mean, users_code
from infoprune.training.optimizer import Options
from infoprune.utils.module_mode import evaluating


class Objective:
    """The loss of `(images, logits, target)`: (1 - d) L(labels) + d T² KL(teacher || student) + γ similarity.

    Hinton et al., "Distilling the knowledge in a neural network", 2015: both networks' logits are divided by T, and
    T² keeps the gradient's size whatever T. L is cross-entropy or the user's own; the similarity that of `Similarity`.

    Args:
        student: the network in training; its layers are hooked between `__enter__` and `__exit__`.
        teacher: put into evaluation mode meanwhile; not asked where nothing is distilled.
        options: of the training.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module | None, options: Options) -> None:
        self.student, self.options = student, options
        asked = options.distillation > 0 or options.feature_distillation > 0
        self.teacher = teacher if asked else None
        self.loss_of_labels: Callable[[Tensor, Tensor], Tensor] = (
            _CrossEntropy(options.label_smoothing) if options.loss is None else registry.users_own(options.loss)
        )
        self.similarity: Similarity | None = None
        self._open = ExitStack()

    def __enter__(self) -> "Objective":
        if self.teacher is not None:
            self._open.enter_context(evaluating(self.teacher))
            if self.options.feature_distillation:
                self.similarity = Similarity(self.student, self.teacher, list(self.options.feature_layers))
                self._open.callback(self.similarity.remove)
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def __call__(self, images: Tensor, logits: Tensor, target: Tensor) -> Tensor:
        loss, distillation = self._labels(logits, target), self.options.distillation
        if self.teacher is None:
            return loss
        with torch.no_grad():
            taught = self.teacher(images)
        if distillation:
            loss = (1 - distillation) * loss + distillation * divergence(logits, taught, self.options.temperature)
        if self.similarity is not None:
            loss = loss + self.options.feature_distillation * self.similarity.loss()
        return loss

    def _labels(self, logits: Tensor, target: Tensor) -> Tensor:
        if not logits.requires_grad:
            raise UserError(
                "no gradient reaches the weights from the model's output: its forward runs under torch.no_grad(), or "
                "detaches what it computes; take that out of the forward to train the model"
            )
        loss: Any = self._users(logits, target) if self.options.loss else self.loss_of_labels(logits, target)
        if not isinstance(loss, Tensor) or loss.dim() or not loss.requires_grad:
            came = f"a tensor of shape {list(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise UserError(
                f"loss = '{self.options.loss}' gave {came}; expected one number as a tensor that the logits' gradient "
                "reaches: the mean over samples"
            )
        return loss

    def _users(self, logits: Tensor, target: Tensor) -> Any:
        remedy = "it is called with the logits, samples x classes, and one class index per sample; fix the function"
        with users_code(f"loss = '{self.options.loss}'", remedy):
            return self.loss_of_labels(logits, target)


class _CrossEntropy:
    def __init__(self, smoothing: float) -> None:
        self.smoothing = smoothing

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        return F.cross_entropy(logits, target, label_smoothing=self.smoothing)


def divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² KL(teacher || student), both softened by T, in nats per sample."""
    softened = F.log_softmax(teacher / temperature, dim=1)
    ours = F.log_softmax(student / temperature, dim=1)
    return temperature**2 * F.kl_div(ours, softened, reduction="batchmean", log_target=True)


class Similarity:
    """How differently two networks see which images of a batch are alike: Σ over layers ‖G_T − G_S‖² / b².

    G is the Gram matrix A Aᵀ of a layer's flattened maps, its rows of length 1 (Tung and Mori, "Similarity-preserving
    knowledge distillation", ICCV 2019, equations 2 to 4). It has the shape `samples x samples` whatever the width, so
    that a pruned layer needs no adapter.

    Raises:
        UserError: for a layer that either network lacks, or no layer named and no convolution to take.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, layers: list[str]) -> None:
        layers = layers or _last_convolution(student)
        self._seen: dict[str, dict[str, Tensor]] = {"student": {}, "teacher": {}}
        self._hooks: list[Any] = []
        for side, model in (("student", student), ("teacher", teacher)):
            modules = dict(model.named_modules())
            for layer in layers:
                if layer not in modules:
                    raise UserError(f"feature_layers: the {side} has no '{layer}'{did_you_mean(layer, modules)}")
                self._hooks.append(modules[layer].register_forward_hook(self._keeper(side, layer)))

    def _keeper(self, side: str, layer: str) -> Callable[[nn.Module, object, Tensor], None]:
        def keep(_: nn.Module, __: object, output: Tensor) -> None:
            self._seen[side][layer] = output

        return keep

    def loss(self) -> Tensor:
        """Of the maps seen last."""
        pairs = [(self._seen["student"][layer], seen) for layer, seen in self._seen["teacher"].items()]
        total = torch.stack([(_alike(ours) - _alike(theirs.detach())).square().mean() for ours, theirs in pairs]).sum()
        for side in self._seen.values():
            side.clear()
        return total

    def remove(self) -> None:
        """Takes the hooks off."""
        for hook in self._hooks:
            hook.remove()


def _alike(maps: Tensor) -> Tensor:
    flat = maps.flatten(1).float()
    return F.normalize(flat @ flat.T, dim=1)


def _last_convolution(model: nn.Module) -> list[str]:
    found = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d)]
    if not found:
        raise UserError("feature_distillation: the model has no convolution; name layers in feature_layers")
    return found[-1:]
