"""What a layer's two sides are: how many channels it reads and puts out, and in how many parts."""

from torch import Tensor, nn

from infoprune.graph.channels import width_of

PRODUCERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def input_width(layer: nn.Module) -> int:
    """Number of channels that a convolution or linear layer reads.

    >>> input_width(nn.Conv2d(3, 8, 1))
    3

    Raises:
        TypeError: for any other kind of layer.
    """
    for attribute in ("in_channels", "in_features"):
        if isinstance(width := getattr(layer, attribute, None), int):
            return width
    raise TypeError(f"a {type(layer).__name__} has no input width")


def output_width(layer: nn.Module) -> int:
    """As `width_of`, and of norms that hold buffers alone.

    Raises:
        TypeError: for a module without channels of its own.
    """
    mean = getattr(layer, "running_mean", None)
    return len(mean) if isinstance(mean, Tensor) else width_of(layer)


def has_width(layer: nn.Module) -> bool:
    """Whether a module has channels of its own: convolutions, linear layers and norms do."""
    try:
        return output_width(layer) > 0
    except TypeError:
        return False


def is_depthwise(layer: nn.Module) -> bool:
    """Whether each filter of a convolution has a group of its own."""
    return isinstance(layer, PRODUCERS) and getattr(layer, "groups", 1) == width_of(layer) > 1


def is_channelwise(layer: nn.Module) -> bool:
    """Whether a group norm gives every channel a group of its own."""
    return isinstance(layer, nn.GroupNorm) and layer.num_groups == layer.num_channels


def partitions_of(layer: nn.Module) -> int:
    """Number of equal parts in which a layer works, and which have to stay equal: groups that mix channels.

    >>> partitions_of(nn.Conv2d(8, 8, 3, groups=4)), partitions_of(nn.Conv2d(8, 8, 3, groups=8))
    (4, 1)
    """
    if isinstance(layer, nn.GroupNorm):
        return 1 if is_channelwise(layer) else layer.num_groups
    return 1 if is_depthwise(layer) else int(getattr(layer, "groups", 1))
