"""Gradient steps on the last blocks towards the unpruned network's predictions."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from infoprune.data.dataset import Batches
from infoprune.errors import UserError
from infoprune.models import cifar_resnet
from infoprune.planning.plan import GroupPlan, Plan
from infoprune.pruning.channel_graph import channel_graph
from infoprune.pruning.prune import prune
from infoprune.repairing import repair as repairing
from infoprune.repairing.distill import match_predictions
from infoprune.repairing.repair import repair

Pair = tuple[nn.Module, nn.Module, tuple[object, dict[str, tuple[int, ...]], list[tuple[Tensor, Tensor]]]]


@pytest.fixture
def pair() -> Pair:
    """A network, the same with half of each block's inner filters, and what repair asks for."""
    torch.manual_seed(0)
    model = cifar_resnet.build(depth=8, shortcut="projection").eval()
    batches = [(torch.randn(16, 3, 16, 16), torch.zeros(16, dtype=torch.long)) for _ in range(4)]
    graph = channel_graph(model, batches[0][0][:1])
    kept = {group.name: tuple(range(group.width // 2)) for group in graph.groups if group.name.endswith("conv1")}
    kept = {name: own for name, own in kept.items() if name.startswith("layer")}
    widths = {group.name: group.width for group in graph.groups}
    groups = tuple(GroupPlan(n, k, widths[n], len(k), 0, 0, "") for n, k in kept.items())
    pruned = prune(model, Plan(groups, {}, 0, 0, graph.input_shape)).eval()
    return model, pruned, (graph, kept, batches)


def divergence(pruned: nn.Module, model: nn.Module, images: Tensor) -> float:
    with torch.no_grad():
        ours, theirs = pruned(images).log_softmax(1), model(images).log_softmax(1)
    return float(F.kl_div(ours, theirs, reduction="batchmean", log_target=True))


def test_predictions_come_nearer(pair: Pair) -> None:
    model, pruned, rest = pair
    images = torch.cat([images for images, _ in rest[2]])
    before, weights = divergence(pruned, model, images), copy.deepcopy(model.state_dict())
    report = match_predictions(pruned, model, *rest, blocks=2, steps=40, learning_rate=1e-3)
    assert divergence(pruned, model, images) < 0.7 * before
    (row,) = report.layers
    assert row.target == "predictions"
    assert row.error_after < row.error_before
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in pruned.parameters())


def test_only_the_last_blocks_change(pair: Pair) -> None:
    model, pruned, rest = pair
    before = copy.deepcopy(pruned.state_dict())
    match_predictions(pruned, model, *rest, blocks=1, steps=10, learning_rate=1e-2)
    changed = {
        name.rsplit(".", 1)[0] for name, value in pruned.state_dict().items() if not torch.equal(value, before[name])
    }
    assert changed
    assert not any(name.startswith(("conv1", "layer1", "layer2")) for name in changed)


def test_a_rate_that_ruins_the_network_changes_nothing(pair: Pair) -> None:
    model, pruned, rest = pair
    before = copy.deepcopy(pruned.state_dict())
    report = match_predictions(pruned, model, *rest, blocks=2, steps=8, learning_rate=1e3)
    assert report.layers[0].error_after == report.layers[0].error_before
    after = pruned.state_dict()
    for name, module in pruned.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            assert torch.equal(after[f"{name}.weight"], before[f"{name}.weight"])


def test_it_follows_any_refit(pair: Pair) -> None:
    model, pruned, rest = pair
    report = repair(pruned, model, *rest, match=2, match_steps=4)
    assert [row.target for row in report.layers][-1] == "predictions"
    assert {row.target for row in report.layers[:-1]} <= {"sum", "norm", "output"}


def test_only_classifiers_have_predictions(pair: Pair) -> None:
    model, _, rest = pair

    class Maps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x).relu())

    model = Maps()
    graph = channel_graph(model, rest[2][0][0][:1])
    with pytest.raises(UserError, match="only a classifier"):
        match_predictions(copy.deepcopy(model), model, graph, {}, rest[2])
    with pytest.raises(UserError, match="match = -1: expected a whole number from 0"):
        repair(copy.deepcopy(model), model, graph, {}, rest[2], match=-1)


def test_views_keep_every_image_in_its_place() -> None:
    """What is held out of one view is held out of all."""
    images = torch.arange(40, dtype=torch.float32).view(40, 1, 1, 1).expand(40, 1, 2, 2).clone()

    def shake(batch: Tensor, generator: torch.Generator) -> Tensor:
        return batch + 0.4 * torch.rand(batch.shape, generator=generator)

    data = TensorDataset(images, torch.arange(40))
    views = [
        list(Batches(data, batch_size=16, seed=3, augment=shake if view else None, view=view)) for view in range(3)
    ]
    for plain, first, second in zip(*views, strict=True):
        assert torch.equal(plain[1], first[1])
        assert torch.equal(plain[1], second[1])
        assert torch.equal(first[0].floor(), plain[0])
        assert not torch.equal(first[0], second[0])


def test_only_gradient_steps_see_views(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    model, pruned, (graph, kept, batches) = pair
    seen: dict[str, int] = {}

    def note(name: str) -> None:
        original = getattr(repairing, name)

        def noting(*arguments: object, **options: object) -> object:
            seen[name] = len(arguments[4])  # type: ignore[arg-type]
            return original(*arguments, **options)

        monkeypatch.setattr(repairing, name, noting)

    for name in ("compensate", "reconstruct", "match_predictions"):
        note(name)
    views = [(images.flip(3), labels) for images, labels in batches]
    repair(pruned, model, graph, kept, batches, None, views, method="reconstruct", steps=1, match=1, match_steps=1)
    assert seen == {"compensate": 4, "reconstruct": 8, "match_predictions": 8}
