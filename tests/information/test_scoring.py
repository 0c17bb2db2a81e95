"""Scores of a whole layer against the plain definition, one filter at a time."""

from collections.abc import Callable

import pytest
import torch

from infoprune.information import threads
from infoprune.information.entropy import joint_entropy, mutual_information, renyi_entropy
from infoprune.information.gram import delta, filter_grams
from infoprune.information.scoring import filter_information
from infoprune.information.widths import RULES


def unchecked(function: Callable[..., object]) -> Callable[..., object]:
    """The function as users call it, without the tests' shape checker in front."""
    return getattr(function, "__wrapped__", function)


@pytest.fixture
def layer() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    labels = torch.randint(4, (32,))
    maps = torch.randn(32, 7, 5, 5) + torch.randn(4, 7, 1, 1)[labels]
    maps[:, 3] = 0.1
    return maps, filter_grams(torch.randn(32, 1, 6))[0], labels


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("alpha", [1.0, 1.01, 2.0])
def test_scores_equal_the_definition(layer: tuple[torch.Tensor, ...], rule: str, alpha: float) -> None:
    maps, of_input, labels = layer
    grams = filter_grams(maps, rule=rule, labels=labels)
    for memory in (2**29, 100_000):
        found = filter_information(maps, of_input, labels, alpha=alpha, rule=rule, memory_limit=memory)
        assert torch.allclose(found.input, mutual_information(grams, of_input, alpha=alpha), atol=1e-7)
        assert torch.allclose(found.label, mutual_information(grams, delta(labels), alpha=alpha), atol=1e-7)
        assert torch.allclose(found.entropy, renyi_entropy(grams, alpha=alpha), atol=1e-7)
        assert torch.allclose(found.joint_entropy, joint_entropy(grams, of_input, alpha=alpha), atol=1e-7)
        assert torch.allclose(found.margin, 5 - found.joint_entropy)


def test_a_dead_filter_knows_nothing(layer: tuple[torch.Tensor, ...]) -> None:
    found = filter_information(*layer)
    assert found.entropy[3].item() == pytest.approx(0, abs=1e-8)
    assert found.input[3].item() == pytest.approx(0, abs=1e-8)
    assert found.label[3].item() == pytest.approx(0, abs=1e-8)


def test_channels_last_and_one_core_change_nothing(
    layer: tuple[torch.Tensor, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    maps, of_input, labels = layer
    plain = filter_information(maps, of_input, labels)
    other = filter_information(maps.contiguous(memory_format=torch.channels_last), of_input, labels)
    assert torch.allclose(plain.input, other.input, atol=1e-10)
    monkeypatch.setattr(threads, "core_count", lambda: 1)
    assert torch.allclose(plain.label, filter_information(maps, of_input, labels).label, atol=1e-10)


def test_all_samples_of_their_own_class(layer: tuple[torch.Tensor, ...]) -> None:
    maps, of_input, _ = layer
    found = filter_information(maps, of_input, torch.arange(32))
    assert torch.allclose(found.label, found.entropy, atol=1e-7)  # S(T, Y) = log2 n = H(Y)


def test_misfits_are_refused(layer: tuple[torch.Tensor, ...]) -> None:
    maps, of_input, labels = layer
    with pytest.raises(ValueError, match="use one batch"):
        unchecked(filter_information)(maps, torch.eye(8), labels)
    with pytest.raises(ValueError, match="NaN or Inf"):
        filter_information(maps / 0.0 * 0.0, of_input, labels)
    with pytest.raises(ValueError, match="float32"):
        unchecked(filter_information)(maps, of_input, labels.float())
    with pytest.raises(ValueError, match="at least 2"):
        filter_information(maps[:1], torch.eye(1), labels[:1])
    with pytest.raises(ValueError, match="empty"):
        filter_information(maps[:, :0], of_input, labels)
    with pytest.raises(ValueError, match="rule"):
        filter_information(maps, of_input, labels, rule="scott")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_maps_are_scored(layer: tuple[torch.Tensor, ...], dtype: torch.dtype) -> None:
    maps, of_input, labels = layer
    half = maps.to(dtype)
    found, known = filter_information(half, of_input, labels), filter_information(half.double(), of_input, labels)
    assert torch.allclose(found.input, known.input, atol=1e-9)
