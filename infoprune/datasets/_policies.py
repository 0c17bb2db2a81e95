"""Augmentation policies of torchvision, drawn again for every image and from a given generator."""

from typing import Any, Literal

import torch
from torch import Tensor

from infoprune.data.dataset import Augment

Policy = Literal["none", "trivial", "rand", "auto"]


def with_policy(augment: Augment | None, policy: Policy) -> Augment | None:
    """Changes every image by a policy, then the batch by `augment`.

    Args:
        augment: random changes to a batch of stored images; `None` for no others.
        policy: "trivial" (TrivialAugment, 2103.10158), "rand" (RandAugment, 1909.13719), "auto" (AutoAugment's for
            CIFAR-10, 1805.09501), or "none".
    """
    if policy == "none":
        return augment
    # Imported where used: torchvision's transforms take a second to import.
    from torchvision.transforms import v2

    transforms: dict[Policy, Any] = {
        "trivial": v2.TrivialAugmentWide,
        "rand": v2.RandAugment,
        "auto": lambda: v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10),
    }
    transform = transforms[policy]()

    def changed(images: Tensor, generator: torch.Generator) -> Tensor:
        # The transforms draw from torch's global state, which is put back; one image at a time, so that each has its
        # own draw, and on the CPU, where they are quick and the same seed means the same changes on every device.
        seed = int(torch.randint(0, 2**62, (1,), generator=generator))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            drawn = torch.stack([transform(image) for image in images.cpu()]).to(images.device)
        return drawn if augment is None else augment(drawn, generator)

    return changed
