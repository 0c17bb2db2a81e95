"""The digits: fixed splits that share no image, and augmentation that a seed repeats."""

from typing import Any

import pytest
import torch
from torch import Tensor

from infoprune.data.dataset import Data
from infoprune.datasets import digits
from infoprune.errors import UserError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def stored(data: Data, split: str) -> tuple[Tensor, Tensor]:
    images, labels = getattr(data, split).tensors
    return images, labels


def test_digits_splits_have_all_images_once_and_equal_class_shares() -> None:
    data = digits.load()
    images = torch.cat([stored(data, split)[0] for split in ("train", "validation", "test")])
    labels = [stored(data, split)[1] for split in ("train", "validation", "test")]
    assert [len(part) for part in labels] == [1078, 270, 449]
    assert len(images.flatten(1).unique(dim=0)) == 1797  # no two images are equal, so none is in two splits
    shares = torch.stack([part.bincount(minlength=10) / len(part) for part in labels])
    assert (shares.amax(0) - shares.amin(0)).max() < 0.01


def test_digits_are_the_same_every_time_and_others_with_another_seed() -> None:
    once, again, other = digits.load(), digits.load(), digits.load(seed=1)
    assert torch.equal(stored(once, "test")[0], stored(again, "test")[0])
    assert once.fingerprint == again.fingerprint
    assert other.fingerprint != once.fingerprint
    assert digits.load(size=20).fingerprint != once.fingerprint


def test_digits_reach_the_network_standardised() -> None:
    images, labels = next(iter(digits.load().batches("train", batch_size=2000)))
    assert images.shape == (1078, 1, 16, 16)
    assert labels.dtype == torch.int64
    assert abs(images.mean()) < 0.01
    assert abs(images.std() - 1) < 0.01


def test_jitter_without_range_changes_nothing() -> None:
    images = torch.rand(4, 1, 8, 8)
    same = digits.jitter(images, generator(), shift=0, rotation=0, scaling=0)
    torch.testing.assert_close(same, images)


def test_jitter_moves_every_image_by_its_own_amount_within_the_range() -> None:
    images = torch.zeros(64, 1, 16, 16)
    images[:, :, 7:9, 7:9] = 1
    moved = digits.jitter(images, generator(), shift=0.125, rotation=0, scaling=0)
    place = torch.arange(16) + 0.5
    centres = torch.stack([(moved.sum(2) * place).sum(-1), (moved.sum(3) * place).sum(-1)]) / moved.sum((1, 2, 3)).view(
        -1, 1
    )
    assert 1.5 < (centres - 8).abs().max() <= 2 + 1e-4  # an eighth of 16 pixels
    assert len(centres[0].unique()) == 64


def test_augmentation_repeats_with_its_seed() -> None:
    data = digits.load()
    first, again, other = (
        next(iter(data.batches("train", batch_size=8, seed=seed, augment=True)))[0] for seed in (3, 3, 4)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert digits.load(augment=False).augment is None


@pytest.mark.parametrize("option", [{"size": 4}, {"shift": 1.0}, {"rotation": -1.0}, {"scaling": 2.0}])
def test_digits_refuse_options_out_of_range(option: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"{next(iter(option))} = .*: expected a (whole )?number from"):
        digits.load(**option)
