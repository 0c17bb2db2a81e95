"""The tables of a recipe that belong to no verb."""

from collections.abc import Sequence
from dataclasses import dataclass

from infoprune import registry
from infoprune.errors import UserError, did_you_mean
from infoprune.peers import CRITERIA
from infoprune.splits import SplitName

# How criteria are named in [compare]: the library as it comes, an analysis at uniform widths, the recipe's own way.
PEER, UNIFORM, RECIPE = "torch_pruning.", "uniform.", "recipe"
MOST_THREADS = 1024


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """The table `[run]`.

    Args:
        seed: of everything random in training: initialisation, shuffling, augmentation.
        device: "auto" (an accelerator where there is one), "cpu", "cuda", "cuda:1" …
        threads: CPU threads; 0 leaves torch's own number.
        batch_size: samples per batch in training and evaluation.
    """

    seed: int = 0
    device: str = "auto"
    threads: int = 0
    batch_size: int = 128

    def __post_init__(self) -> None:
        for name, least in (("seed", 0), ("threads", 0), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise UserError(f"[run] {name} = {getattr(self, name)}: expected {least} or more")
        if self.threads > MOST_THREADS:
            raise UserError(
                f"[run] threads = {self.threads}: expected {MOST_THREADS} at most; 0 leaves torch's own number"
            )


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

    batches: int = 8
    batch_size: int = 128
    split: SplitName = "train"
    labels: bool = True
    views: int = 0

    def __post_init__(self) -> None:
        if self.batches < 1 or self.batch_size < 2 or self.views < 0:
            raise UserError(
                f"[calibration] batches = {self.batches}, batch_size = {self.batch_size}, views = {self.views}: "
                "expected at least 1 batch of 2, and 0 views or more"
            )
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

    points: int = 0

    def __post_init__(self) -> None:
        if self.points < 0 or self.points == 1:
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
    shares: Sequence[float] = (0.67, 0.47, 0.38, 0.25, 0.125)
    seeds: int = 3
    controls: bool = True
    cut: bool = True
    epochs: int = 0
    images: int = 0

    def __post_init__(self) -> None:
        if not self.shares or not all(0 < share <= 1 for share in self.shares):
            raise UserError(f"[compare] shares = {list(self.shares)}: expected numbers above 0 and up to 1")
        if not 1 <= self.seeds <= 1000 or self.epochs < 0 or self.images < 0 or not self.criteria:
            raise UserError("[compare] needs at least one criterion, 1 to 1000 seeds, and 0 epochs and images or more")
        for name in self.criteria:
            peer = name.startswith(PEER)
            known = CRITERIA if peer else (*registry.names("analyses"), RECIPE)
            for part in name.removeprefix(PEER if peer else UNIFORM).split("+"):
                if part not in known and ":" not in part:
                    raise UserError(f"[compare] criteria: no '{name}'{did_you_mean(part, known)}")
                if not peer and part != RECIPE:
                    registry.check_given(part, "importance", "[compare] criteria")
