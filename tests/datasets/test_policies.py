"""Augmentation policies: seeded, one draw per image, and torch's global state as it was."""

import pytest
import torch
from torch import Tensor

from infoprune.config.recipe import options
from infoprune.datasets import cifar10
from infoprune.datasets._policies import Policy, with_policy


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def images() -> Tensor:
    return torch.randint(0, 256, (24, 3, 16, 16), dtype=torch.uint8, generator=generator(7))


@pytest.mark.parametrize("policy", ["trivial", "rand", "auto"])
def test_the_seed_decides_and_nothing_else(policy: Policy, images: Tensor) -> None:
    change = with_policy(None, policy)
    assert change is not None
    state, before = torch.get_rng_state(), images.clone()
    first = change(images, generator())
    torch.rand(3)
    assert torch.equal(first, change(images, generator()))
    assert not torch.equal(first, change(images, generator(1)))
    torch.set_rng_state(state)
    change(images, generator())
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(images, before)
    assert (first.shape, first.dtype) == (images.shape, torch.uint8)


def test_every_image_has_its_own_draw() -> None:
    same = torch.randint(0, 256, (1, 3, 16, 16), dtype=torch.uint8, generator=generator(3)).expand(16, -1, -1, -1)
    change = with_policy(None, "trivial")
    assert change is not None
    assert len({image.numpy().tobytes() for image in change(same, generator())}) > 8


def test_the_usual_changes_follow(images: Tensor) -> None:
    change = with_policy(lambda batch, _: batch.flip(3), "trivial")
    plain = with_policy(None, "trivial")
    assert change is not None
    assert plain is not None
    assert torch.equal(change(images, generator()), plain(images, generator()).flip(3))
    assert with_policy(cifar10.crop_and_mirror, "none") is cifar10.crop_and_mirror


def test_recipes_can_ask_for_it() -> None:
    assert options(cifar10.load)["policy"].default == "none"
