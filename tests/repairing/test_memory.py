"""Repair within a bound on memory: time grows, or images are left out and a note says so; and where blocks are cut."""

import copy

import pytest
import torch
from torch import Tensor

from infoprune.errors import UserError
from infoprune.models import mobilenet_v2
from infoprune.planning.plan import GroupPlan, Plan
from infoprune.planning.sensitivity import measure_sensitivity
from infoprune.pruning.channel_graph import channel_graph
from infoprune.pruning.prune import prune
from infoprune.repairing.graph_replay import Walker
from infoprune.repairing.reconstruct import find_blocks, reconstruct

SMALL = {"classes": 5, "widths": [4, 4, 4, 4, 6, 6, 8], "width_multiplier": 1.0, "folded": True, "small_images": True}
GROUP = "features.3.conv.0.0"


@pytest.fixture(scope="module")
def batches() -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    return [(torch.randn(8, 3, 8, 8), torch.zeros(8)) for _ in range(3)]


@pytest.fixture(scope="module")
def model() -> mobilenet_v2.MobileNetV2:
    torch.manual_seed(0)
    return mobilenet_v2.build(**SMALL).eval()  # type: ignore[arg-type]


def test_sensitivity_is_the_same_whatever_is_kept(
    model: mobilenet_v2.MobileNetV2, batches: list[tuple[Tensor, Tensor]]
) -> None:
    graph = channel_graph(model, batches[0][0])
    scores = {name: torch.arange(24.0) for name in (GROUP, "features.5.conv.0.0")}
    large = measure_sensitivity(model, graph, scores, batches, shares=(0.5,))
    none = measure_sensitivity(model, graph, scores, batches, shares=(0.5,), cache_mb=0)
    assert large == none
    assert large[GROUP][12] > 0


def test_inverted_residual_blocks_stay_whole(model: mobilenet_v2.MobileNetV2) -> None:
    layers = {name: range(len(module.weight)) for name, module in model.named_modules() if hasattr(module, "weight")}
    blocks = [block.modules for block in find_blocks(Walker(model), model, layers)]
    assert ("features.3.conv.0.0", "features.3.conv.1.0", "features.3.conv.2") in blocks
    assert blocks[-1] == ("features.18.0", "classifier.1")


def test_gradient_steps_leave_out_images_that_do_not_fit_and_say_so(
    model: mobilenet_v2.MobileNetV2, batches: list[tuple[Tensor, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = channel_graph(model, batches[0][0])
    kept = {GROUP: tuple(range(12))}
    plan = Plan((GroupPlan(GROUP, kept[GROUP], 24, 12, 0, 0, ""),), {}, 0, 0, graph.input_shape)
    pruned = prune(model, plan)
    seen: list[int] = []
    monkeypatch.setattr("infoprune.repairing.reconstruct.train", lambda task, *_: seen.append(len(task.read)) or (1, 1))
    assert not reconstruct(copy.deepcopy(pruned), model, graph, kept, batches).notes
    assert set(seen) == {24}
    seen.clear()
    # Of an image of 32x32 pixels the second block reads 4 channels and puts out 4: twice 4·8·1024 bytes.
    large = [(torch.randn(8, 3, 32, 32), torch.zeros(8)) for _ in range(3)]
    notes = reconstruct(copy.deepcopy(pruned), model, graph, kept, large, cache_mb=1).notes
    assert set(seen) == {2**20 // (2 * 4 * 8 * 1024)}
    assert notes == ("gradient steps see 16 of 24 images: cache_mb holds no more",)
    with pytest.raises(UserError, match="holds the maps of no image"):
        reconstruct(copy.deepcopy(pruned), model, graph, kept, large, cache_mb=0)
