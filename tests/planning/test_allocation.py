"""Levels, thresholds and first channels: how a budget is shared out."""

import torch

from infoprune.graph.channels import ChannelGroup
from infoprune.planning.allocation import Span, above_one_threshold
from infoprune.planning.planner import first_channels
from tests.planning.test_planner import line


def test_levels_take_whole_channels_whatever_rounding_does() -> None:
    span = Span(ChannelGroup("a", 12, ()), 1, 12, 3)
    assert [span.clamp(width) for width in (0.0, 3 - 1e-12, 3.0, 8.9, 9.0, 12.0, 99.0)] == [1, 3, 3, 6, 9, 12, 12]


def test_one_threshold_compares_shapes() -> None:
    """Relative to its mean above its least score, the one outstanding filter of b lies above all of a."""
    share_of = above_one_threshold({"a": torch.tensor([7.0, 8, 9, 10]), "b": torch.tensor([0.0, 0, 0, 10])})
    a, b = ChannelGroup("a", 4, ()), ChannelGroup("b", 4, ())
    assert [(share_of(a, level), share_of(b, level)) for level in (0.0, 0.2, 0.35)] == [
        (0, 0.25),
        (0.25, 0.25),
        (0.5, 0.25),
    ]


def test_the_first_channels_of_every_part() -> None:
    graph = line(8, 4, partitions=2)
    kept = first_channels(graph, 0.5).kept()
    assert kept == {"conv0": (0, 1, 4, 5)}
