"""Layers of all kinds, and of a user's own: cut right, or refused with the reason."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infoprune.evaluation.profile import count_macs
from infoprune.pruning.channel_graph import channel_graph
from tests.pruning.test_users_modules import IMAGES, Net, Prove


def test_subclasses_are_cut_and_counted_like_their_base(prove: Prove) -> None:
    class Standardised(nn.Conv2d):
        def forward(self, images: Tensor) -> Tensor:
            weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
            return F.conv2d(images, weight, self.bias, self.stride, self.padding)

    class Padded(nn.Conv2d):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(F.pad(images, (1, 1, 1, 1)))

    model, images = Net().eval(), torch.randn(IMAGES)
    model.one, model.two = Padded(3, 8, 3), Padded(8, 6, 3)
    pruned, refused = prove(model, images)
    assert list(refused) == ["head"]
    assert type(pruned.one) is Padded
    assert channel_graph(model, images).macs({}) == count_macs(model, images) == count_macs(Net(), images)
    # Its weights depend on each other along the inputs: removing some is not silencing them.
    model.two = Standardised(8, 6, 3)
    _, refused = prove(model, images)
    assert "first at 'two'" in refused["one"]


@pytest.mark.parametrize(
    "layers",
    [
        (nn.ConvTranspose2d(3, 8, 3), nn.ConvTranspose2d(8, 6, 3)),
        (nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 8, 3, groups=8)),
        (nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 8, 3, groups=2)),
        (nn.Conv2d(3, 8, 3), nn.PReLU(8)),
        (nn.Conv2d(3, 8, 3), nn.PReLU()),
        (nn.Conv2d(3, 8, 3), nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 1))),
        (nn.Conv2d(3, 8, 3), nn.utils.parametrizations.spectral_norm(nn.Conv2d(8, 8, 1))),
        (nn.Conv2d(3, 8, 3), nn.PixelShuffle(2)),
        (nn.Conv2d(3, 8, 3), nn.Upsample(scale_factor=2)),
        (nn.Conv2d(3, 8, 3), nn.ChannelShuffle(2)),
        (nn.Conv2d(3, 8, 3), nn.Softmax(1)),
        (nn.Conv2d(3, 8, 3), nn.Dropout2d()),
        (nn.Conv2d(3, 8, 3), nn.MaxPool2d(2)),
        (nn.Conv2d(3, 8, 3), nn.Unflatten(1, (8, 1)), nn.Flatten(1, 2)),
    ],
)
def test_layers_of_all_kinds_are_cut_right_or_refused(layers: tuple[nn.Module, ...], prove: Prove) -> None:
    model = nn.Sequential(*layers, nn.ReLU(), nn.LazyConv2d(5, 1), nn.ReLU(), nn.Conv2d(5, 2, 1))
    model(torch.randn(IMAGES))
    _, refused = prove(model.eval(), torch.randn(IMAGES))
    last = str(len(model) - 3)
    assert last not in refused  # whatever becomes of the others
    assert all(refused.values())


def test_one_dimensional_and_recurrent(prove: Prove) -> None:
    model = nn.Sequential(nn.Conv1d(2, 6, 3), nn.BatchNorm1d(6), nn.ReLU(), nn.Conv1d(6, 4, 3), nn.Flatten())
    model.append(nn.Linear(4 * 4, 3))
    pruned, refused = prove(model.eval(), torch.randn(5, 2, 8))
    assert list(refused) == ["5"]
    assert pruned[5].in_features == 8

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map, self.inner = nn.Linear(4, 8), nn.Linear(8, 6)
            self.lstm, self.head = nn.LSTM(6, 5, batch_first=True), nn.Linear(5, 2)

        def forward(self, values: Tensor) -> Tensor:
            return self.head(self.lstm(self.inner(F.relu(self.map(values))))[0])

    _, refused = prove(Recurrent().eval(), torch.randn(3, 7, 4))
    assert "map" not in refused
    assert "'lstm' is a LSTM, whose channels cannot be counted" in refused["inner"]
