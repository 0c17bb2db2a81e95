"""The tables of a recipe that configure no single function: [run], [calibration], [plane], [compare]."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from msgspec import Meta

from infoprune.config import ranges, registry
from infoprune.config.ranges import BatchSize, Epochs, Images, PositiveShare, Seed
from infoprune.data.dataset import SplitName
from infoprune.errors import UserError, did_you_mean
from infoprune.pruning.baselines import CRITERIA

# How criteria are named in [compare]: the library as it comes, an analysis at uniform widths, the recipe's own way.
PEER, UNIFORM, RECIPE = "torch_pruning.", "uniform.", "recipe"


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The table `[run]`.

    Args:
        seed: of everything random in training: initialisation, shuffling, augmentation.
        device: "auto" (an accelerator where there is one), "cpu", "cuda", "cuda:1" …
        threads: CPU threads; 0 leaves torch's own number.
        batch_size: samples per batch in training and evaluation.
    """

    seed: Seed = 0
    device: str = "auto"
    threads: Annotated[int, Meta(ge=0, le=1_024)] = 0
    batch_size: BatchSize = 128

    def __post_init__(self) -> None:
        ranges.check(type(self), "[run]", vars(self))


@dataclass(frozen=True, kw_only=True)
class CalibrationOptions:
    """The table `[calibration]`: the batches that analyses and repair look at.

    Args:
        batches: number of batches.
        batch_size: samples per batch; entropy estimates depend on it, 128 is the papers'.
        split: where they come from; the test split would make the final figure worthless and is refused.
        labels: whether analyses may see the labels; without them those that need labels are left out.
        views: how often the gradient steps of repair see the same images once more, each time changed at random as in
            training: few images are soon learnt by heart.
    """

    batches: Annotated[int, Meta(ge=1, le=1_000_000)] = 8
    batch_size: Annotated[int, Meta(ge=2, le=1_048_576)] = 128
    split: SplitName = "train"
    labels: bool = True
    views: Annotated[int, Meta(ge=0, le=10_000)] = 0

    def __post_init__(self) -> None:
        ranges.check(type(self), "[calibration]", vars(self))
        if self.split == "test":
            raise UserError(
                "[calibration] split = 'test': the test split is for the final figure; use train or validation"
            )


@dataclass(frozen=True, kw_only=True)
class PlaneOptions:
    """The table `[plane]`.

    Args:
        points: how many steps of `train` and `finetune` the information plane is taken at, evenly in the logarithm of
            the step, the start and the end among them; 0 for none. Each costs one pass over the calibration batches.
    """

    points: Annotated[int, Meta(ge=0, le=10_000)] = 0

    def __post_init__(self) -> None:
        ranges.check(type(self), "[plane]", vars(self))
        if self.points == 1:
            raise UserError(f"[plane] points = {self.points}: expected 0, or 2 or more")

    def steps(self, total: int) -> set[int]:
        """The steps at which it is taken.

        >>> sorted(PlaneOptions(points=5).steps(1000))
        [0, 1, 10, 100, 1000]
        """
        if not self.points:
            return set()
        points = min(self.points, total + 2)  # there are no more steps than that
        return {0} | {round(total ** (k / max(1, points - 2))) for k in range(points - 1)}


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """The table `[compare]`.

    Args:
        criteria: what to compare: analyses that give importance, under the recipe's plan, or several joined by "+";
            "uniform.NAME", the same at uniform widths; "torch_pruning.NAME", that library as it comes; "recipe", the
            recipe's own ranking.
        shares: budgets in multiply-accumulates, as shares of the unpruned network's.
        seeds: repetitions of what is random.
        controls: whether random filters at the recipe's widths, uniform L2, and (with fine-tuning) a small dense
            network of the recipe's widths trained from scratch stand beside it.
        cut: whether networks are also measured without repair.
        epochs: of fine-tuning, as `[finetune]` says otherwise; 0 for none.
        images: training images that fine-tuning sees, the first of the split; 0 for all.
    """

    criteria: Sequence[str] = ("recipe", "l1", "l2", "taylor", "torch_pruning.l2", "torch_pruning.taylor")
    shares: Sequence[PositiveShare] = (0.67, 0.47, 0.38, 0.25, 0.125)
    seeds: Annotated[int, Meta(ge=1, le=1_000)] = 3
    controls: bool = True
    cut: bool = True
    epochs: Epochs = 0
    images: Images = 0

    def __post_init__(self) -> None:
        ranges.check(type(self), "[compare]", vars(self))
        if not self.shares or not self.criteria:
            raise UserError("[compare] needs at least one criterion and one share")
        for name in self.criteria:
            peer = name.startswith(PEER)
            known = CRITERIA if peer else (*registry.names("analyses"), RECIPE)
            for part in name.removeprefix(PEER if peer else UNIFORM).split("+"):
                if part not in known and ":" not in part:
                    raise UserError(f"[compare] criteria: no '{name}'{did_you_mean(part, known)}")
                if not peer and part != RECIPE:
                    registry.check_given(part, "importance", "[compare] criteria")
