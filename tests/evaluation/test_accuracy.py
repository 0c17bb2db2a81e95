"""Evaluation: known scores, modes put back, refusals, and a memory layout that the network can compute with."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infoprune.errors import UserError
from infoprune.evaluation.accuracy import evaluate
from infoprune.training.finetune import finetune
from infoprune.training.optimizer import Options
from tests.training.test_finetune import batches, network, same, state
from tests.training.test_losses import PLAIN


def test_a_score_is_the_mean_over_samples_not_over_batches() -> None:
    logits, labels = torch.randn(7, 3), torch.tensor([0, 1, 2, 0, 1, 2, 0])
    parts = [(logits[:5], labels[:5]), (logits[5:], labels[5:])]
    score = evaluate(nn.Identity(), parts)
    assert score.samples == 7
    assert score.accuracy == pytest.approx((logits.argmax(1) == labels).float().mean().item())
    assert score.loss == pytest.approx(F.cross_entropy(logits, labels).item(), abs=1e-6)


def test_evaluation_uses_running_statistics_and_puts_every_mode_back() -> None:
    model = network(dropout=0.5).train()
    model[1].eval()  # norms frozen by the user
    before = state(model)
    assert evaluate(model, batches()) == evaluate(model, batches())
    assert same(before, state(model))
    assert [module.training for module in model] == [True, False, True, True, True]


def test_modes_come_back_after_an_error_too() -> None:
    model = network().train()
    with pytest.raises(UserError):
        evaluate(model, [])
    assert model.training


def test_progress_counts_batches() -> None:
    seen: list[tuple[int, int]] = []
    evaluate(network(), batches(), lambda done, total: seen.append((done, total)))
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(
    ("images", "labels", "words"),
    [
        (torch.zeros(2, 3), torch.tensor([0, 3]), r"labels 0..3, but the model has 3 outputs"),
        (torch.zeros(2, 3), torch.tensor([-1, 2]), r"labels -1..2"),
        (torch.tensor([[0.0, math.nan]]), torch.tensor([0]), "batch 1: the model's logits hold NaN"),
        (torch.zeros(2, 3, 4), torch.tensor([0, 1]), r"gave \[2, 3, 4\].*expected logits"),
        (torch.zeros(2, 3), torch.zeros(2, 3), r"for labels \[2, 3\]"),
    ],
)
def test_what_cannot_be_scored_is_named(images: Tensor, labels: Tensor, words: str) -> None:
    with pytest.raises(UserError, match=words):
        evaluate(nn.Identity(), [(images, labels)])
    if not images.isnan().any():
        with pytest.raises(UserError, match=words):
            finetune(nn.Sequential(nn.Identity(), nn.PReLU()), [(images, labels)], epochs=1)


class Viewed(nn.Sequential):
    """A network that views its maps as rows, as many do: contiguous maps alone can be viewed so."""

    def forward(self, input: Tensor) -> Tensor:
        maps = self[1](self[0](input))
        return self[2](maps.view(len(maps), -1))


def maps_network(kind: type[nn.Sequential], *between: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return kind(nn.Conv2d(2, 4, 3), nn.ReLU(), *between, nn.Linear(64, 3))


def watched(model: nn.Sequential) -> list[bool]:
    """Whether the convolution's maps had their channels last, pass by pass."""
    seen: list[bool] = []
    model[1].register_forward_hook(
        lambda *given: seen.append(given[2].is_contiguous(memory_format=torch.channels_last))
    )
    return seen


IMAGES, LABELS = torch.randn(20, 2, 6, 6, generator=torch.Generator().manual_seed(3)), torch.arange(20) % 3


def test_maps_have_their_channels_last_where_the_network_takes_that() -> None:
    model = maps_network(nn.Sequential, nn.Flatten())
    seen = watched(model)
    score = evaluate(model, [(IMAGES, LABELS)])
    assert seen == [True, True]  # a trial with two images, then the batch
    assert score.loss == pytest.approx(F.cross_entropy(model(IMAGES), LABELS).item(), abs=1e-6)
    assert model[0].weight.is_contiguous()


def test_a_network_that_views_its_maps_is_scored_all_the_same() -> None:
    model = maps_network(Viewed)
    with pytest.raises(RuntimeError, match="view"):
        model(IMAGES.contiguous(memory_format=torch.channels_last))  # otherwise this test shows nothing
    seen = watched(model)
    score = evaluate(model, [(IMAGES, LABELS), (IMAGES, LABELS)])
    assert seen == [True, False, False]
    assert score.loss == pytest.approx(F.cross_entropy(model(IMAGES), LABELS).item(), abs=1e-6)


@pytest.mark.parametrize("kind", [nn.Sequential, Viewed])
def test_training_finds_its_layout_too(kind: type[nn.Sequential], monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where channels come last unless told otherwise."""
    monkeypatch.setattr(Options, "channels_behind", lambda *_: True)
    model = maps_network(kind, *([nn.Flatten()] if kind is nn.Sequential else []))
    seen = watched(model)
    given: dict[str, Any] = {"epochs": 2, "learning_rate": 0.01}
    finetune(model, [(IMAGES, LABELS)], **given)
    assert seen == [True, kind is nn.Sequential, kind is nn.Sequential]
    assert model[0].weight.is_contiguous()


def test_channels_last_computes_the_same_and_is_undone() -> None:
    results = []
    for behind in (True, False, None):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
        layouts: list[bool] = []
        hook = model[1].register_forward_hook(
            lambda *seen, to=layouts: to.append(seen[2].is_contiguous(memory_format=torch.channels_last))
        )
        images, labels = torch.randn(30, 2, 6, 6), torch.arange(30) % 3
        finetune(model, [(images, labels)], **PLAIN, channels_last=behind)
        hook.remove()
        assert layouts == [behind is True]
        assert model[0].weight.is_contiguous()
        results.append(model[0].weight)
    torch.testing.assert_close(results[0], results[1])
    assert torch.equal(results[1], results[2])
