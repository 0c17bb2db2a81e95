"""A small part of `benchmarks/model_sweep.py`: every family of torchvision, as small as its class builds it."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import nn
from torchvision.models import (
    ConvNeXt,
    DenseNet,
    EfficientNet,
    RegNet,
    ResNet,
    ShuffleNetV2,
    SqueezeNet,
    SwinTransformer,
    VisionTransformer,
    mobilenet_v2,
)
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.efficientnet import FusedMBConvConfig, MBConvConfig
from torchvision.models.regnet import BlockParams
from torchvision.models.resnet import Bottleneck
from torchvision.models.segmentation.fcn import FCN, FCNHead

from infoprune.graph import dependency
from infoprune.models import torchvision as torchvision_models
from infoprune.pruning.channel_graph import channel_graph

Prove = Callable[..., tuple[nn.Module, dict[str, str]]]


def enlivened(model: nn.Module) -> nn.Module:
    """Initial weights leave heads and branches at zero; statistics of batch norms are those of random images."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.abs().max() < 1e-3:
                parameter.normal_(0, 0.1) if name.endswith("bias") else parameter.uniform_(0.2, 0.8)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
        model.train()(torch.randn(8, 3, 32, 32))
    return model.eval()


def swin() -> nn.Module:
    return SwinTransformer([2, 2], 16, [2, 2], [2, 4], [4, 4], num_classes=5)


def segmentation() -> nn.Module:
    backbone = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU())

    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = backbone

        def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"out": self.body(images)}

    return FCN(Named(), FCNHead(12, 4))


CUT_WHOLE: dict[str, Callable[[], nn.Module]] = {
    "resnext": lambda: ResNet(Bottleneck, [1, 1, 1, 1], num_classes=5, groups=4, width_per_group=4),
    "regnet": lambda: RegNet(BlockParams([1, 2], [16, 24], [8, 8], [1.0, 1.0], [2, 2], 0.25), num_classes=5),
    "convnext": lambda: ConvNeXt([CNBlockConfig(12, 20, 2), CNBlockConfig(20, None, 1)], num_classes=5),
    "densenet": lambda: DenseNet(4, (2, 2), 8, num_classes=5),
    "squeezenet": lambda: SqueezeNet("1_1", num_classes=5),
    "mobilenet": lambda: mobilenet_v2(width_mult=0.1, num_classes=5),
    "efficientnet": lambda: EfficientNet(
        [FusedMBConvConfig(4, 3, 2, 8, 8, 1), MBConvConfig(4, 3, 2, 8, 16, 2, 1.0, 1.0)], 0.0, num_classes=5
    ),
    "fcn": segmentation,
}


@pytest.mark.parametrize("name", CUT_WHOLE)
def test_every_group_but_the_head_is_cut(name: str, prove: Prove) -> None:
    _, refused = prove(enlivened(CUT_WHOLE[name]()), torch.randn(2, 3, 32, 32))
    assert set(refused.values()) <= {"its channels are the network's output", "it has a single channel"}


def test_hidden_widths_of_shuffled_units(prove: Prove) -> None:
    model = enlivened(ShuffleNetV2([2, 2, 2], [8, 16, 24, 32, 64], num_classes=5))
    pruned, refused = prove(model, torch.randn(2, 3, 32, 32))
    for unit in ("stage2.0", "stage2.1", "stage3.1", "stage4.1"):
        assert (
            len(pruned.get_submodule(f"{unit}.branch2.0").weight)
            == len(model.get_submodule(f"{unit}.branch2.0").weight) // 2
        )
    assert "padded, rearranged or mixed" in refused["stage2.0.branch1.2"]  # goes through the shuffle


def test_hidden_widths_of_transformers(prove: Prove) -> None:
    vit = VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=5)
    pruned, refused = prove(enlivened(vit), torch.randn(2, 3, 32, 32))
    assert pruned.encoder.layers.encoder_layer_1.mlp[0].out_features == 16
    assert refused["conv_proj"].endswith("is a MultiheadAttention, whose channels cannot be counted")
    pruned, refused = prove(enlivened(swin()), torch.randn(2, 3, 32, 32))
    assert pruned.features[3][1].mlp[0].out_features == 64
    assert "features.0.0" in refused


def test_the_walk_through_the_graph_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dependency, "LIMIT", 1000)
    groups = channel_graph(enlivened(swin()), torch.randn(1, 3, 32, 32)).groups
    reasons = {group.refusal for group in groups if group.refusal}
    assert any("has more than 1,000 couplings to other layers" in reason for reason in reasons)
    assert [group for group in groups if not group.refusal]  # small groups are not concerned


@pytest.mark.parametrize("name", ["lraspp_mobilenet_v3_large", "googlenet"])
def test_networks_built_by_name(name: str, prove: Prove) -> None:
    build = partial(torchvision_models.build, architecture=name)
    model = enlivened(build(classes=3))
    _, refused = prove(model, torch.randn(2, 3, 64, 64), 0.25)
    assert set(refused.values()) == {"its channels are the network's output"}
