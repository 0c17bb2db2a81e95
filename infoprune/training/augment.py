"""Augmentation of whole batches behind the data's own: mixup, CutMix and random erasing, as torchvision has them."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infoprune.errors import UserError
from infoprune.training.optimizer import Options
from infoprune.utils.module_mode import evaluating


class Mixer:
    """Turns a batch into images and targets to learn from; draws from torch's own random state.

    Args:
        model: asked once for its number of classes.
        options: of the training.
    """

    def __init__(self, model: nn.Module, options: Options) -> None:
        self.model, self.classes = model, 0
        self.mixes, self.erase = _transforms(options)

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Images and class indices, or probabilities `samples x classes` where images are mixed.

        Raises:
            UserError: where there is something to mix or erase, and the inputs are no images.
        """
        if images.ndim != 4 and (self.mixes or self.erase is not None):
            raise UserError(
                f"mixup, cutmix and erasing are for images, samples x channels x height x width; came "
                f"{list(images.shape)}; set them to 0"
            )
        if self.erase is not None:
            # Image by image: over a batch, torchvision would erase the same place everywhere.
            images = torch.stack([self.erase(image) for image in images])
        target = labels.long()
        if not self.mixes:
            return images, target
        if not self.classes:
            with evaluating(self.model), torch.no_grad():
                self.classes = self.model(images[:1]).shape[1]
        if int(target.min()) < 0 or int(target.max()) >= self.classes:
            return images, target  # refused with a reason where the logits are checked
        # One of them at random for each batch, as in torchvision's own training.
        mix = self.mixes[int(torch.randint(len(self.mixes), ()))]
        mixed, soft = mix(images, F.one_hot(target, self.classes).float())
        return mixed, soft


def _transforms(options: Options) -> tuple[list[Any], Any]:
    if not (options.mixup or options.cutmix or options.erasing):
        return [], None
    # Imported where used: torchvision's transforms take a second to import.
    from torchvision.transforms import v2

    kinds = ((v2.MixUp, options.mixup), (v2.CutMix, options.cutmix))
    return (
        [kind(alpha=alpha) for kind, alpha in kinds if alpha],
        v2.RandomErasing(p=options.erasing) if options.erasing else None,
    )
