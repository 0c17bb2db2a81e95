"""What training lowers and how it steps, each option against a known answer."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from infoprune.config.recipe import bind
from infoprune.data.dataset import Batches
from infoprune.errors import UserError
from infoprune.evaluation.accuracy import evaluate
from infoprune.training.augment import Mixer
from infoprune.training.finetune import check_options, finetune
from infoprune.training.losses import Similarity
from infoprune.training.optimizer import Options

PLAIN: dict[str, Any] = {"learning_rate": 0.5, "warmup": 0.0, "weight_decay": 0.0, "momentum": 0.0, "epochs": 1}

OWN = """
import torch
from torch.nn import functional as F


def doubled(logits, labels):
    return 2 * F.cross_entropy(logits, labels)


def number(logits, labels):
    return 1.0


def each(logits, labels):
    return F.cross_entropy(logits, labels, reduction="none")


def of_class_0(logits, labels):
    assert len(labels) == 96, "the whole split at once"
    return (logits.argmax(1) == labels)[labels == 0].float().mean()


def worse_later(logits, labels):
    worse_later.calls = getattr(worse_later, "calls", 0) + 1
    return -worse_later.calls


def nan(logits, labels):
    return float("nan")


def bad(logits, labels):
    return {}["width"]


def one_argument(logits):
    return logits.mean()


def leaves(logits, labels):
    raise SystemExit(3)


def nothing(logits, labels):
    return None


def too_much(logits, labels):
    raise MemoryError
"""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """These networks are so small that a second thread only costs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def own(tmp_path: Path) -> str:
    """A file with losses and metrics of the user's own."""
    (tmp_path / "own.py").write_text(OWN)
    return str(tmp_path / "own.py")


def points(count: int = 96) -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(count) % 3
    return TensorDataset(F.one_hot(labels, 4).float() * 3 + torch.randn(count, 4, generator=generator), labels)


def batches(seed: int | None = 0, size: int = 32) -> Batches:
    return Batches(points(), batch_size=size, seed=seed)


def line() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(4, 3)


def options(**changes: Any) -> Options:
    return Options.among({"feature_layers": (), "seed": 0, **bind(finetune, changes, "finetune")})


# --- the user's own ---


def test_own_loss_is_what_is_lowered(own: str) -> None:
    ours, theirs = line(), line()
    finetune(ours, batches(), **PLAIN)
    record = finetune(theirs, batches(), **{**PLAIN, "learning_rate": 0.25}, loss=f"{own}:doubled")[0]
    torch.testing.assert_close(ours.weight, theirs.weight)
    assert record.train_loss == pytest.approx(2 * finetune(line(), batches(), **PLAIN)[0].train_loss, rel=1e-5)


def test_own_metric_sees_the_whole_split_and_chooses_the_best(own: str) -> None:
    model = line()
    first = finetune(model, batches(), batches(None), **PLAIN, metric=f"{own}:of_class_0")[0]
    logits, labels = model(points().tensors[0]), points().tensors[1]
    expected = (logits.argmax(1) == labels)[labels == 0].float().mean().item()
    assert first.validation_metric == pytest.approx(expected)
    kept, after_one = line(), line()
    many = {**PLAIN, "epochs": 3, "schedule": "cosine"}
    finetune(kept, batches(), batches(None), **many, metric=f"{own}:worse_later", keep="best")
    weights: list[Tensor] = []
    seen = lambda done, _: weights.append(after_one.weight.detach().clone()) if done == 3 else None  # noqa: E731
    finetune(after_one, batches(), batches(None), None, seen, **many)
    assert torch.equal(kept.weight, weights[0])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"loss": "{own}:number"}, "gave float; expected one number as a tensor"),
        ({"loss": "{own}:each"}, r"gave a tensor of shape \[32\]"),
        ({"loss": "{own}:missing"}, "has no function or class 'missing'"),
        ({"loss": "cross_entropy"}, "names no function; write package.module:function"),
        ({"loss": "nowhere_at_all:f"}, "no module named 'nowhere_at_all'"),
        ({"loss": "{own}:doubled", "mixup": 0.2}, "set those to 0"),
        ({"loss": "{own}:doubled", "label_smoothing": 0.1}, "set those to 0"),
        ({"metric": "{own}:nan"}, "your metric gave nan"),
        ({"metric": "{own}:nothing"}, "your metric gave None; expected one number"),
        ({"metric": "{own}:each"}, r"your metric gave a tensor of shape \[96\]; expected one number"),
    ],
)
def test_what_is_wrong_with_own_functions_is_said(own: str, given: dict[str, Any], words: str) -> None:
    given = {name: value.format(own=own) if isinstance(value, str) else value for name, value in given.items()}
    with pytest.raises(UserError, match=words):
        finetune(line(), batches(), batches(None), **PLAIN, **given)


@pytest.mark.parametrize("kind", ["loss", "metric"])
@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("{own}:bad", r"KeyError: 'width' \(own.py, line \d+\); it is called with the logits"),
        ("{own}:one_argument", "TypeError: .*takes 1 positional argument but 2 were given"),
        ("{own}:leaves", "SystemExit: 3"),
        ("os:getcwd", "TypeError"),
    ],
)
def test_failures_of_own_functions_are_told(own: str, kind: str, function: str, words: str) -> None:
    reference = function.format(own=own)
    with pytest.raises(UserError, match=f"^{kind} = '{reference}' fails: {words}"):
        finetune(line(), batches(), batches(None), **PLAIN, **{kind: reference})


@pytest.mark.parametrize("kind", ["loss", "metric"])
def test_memory_that_runs_out_in_own_functions_is_no_fault_of_theirs(own: str, kind: str) -> None:
    with pytest.raises(MemoryError):
        finetune(line(), batches(), batches(None), **PLAIN, **{kind: f"{own}:too_much"})


class Detached(nn.Linear):
    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            return super().forward(images)


def test_a_forward_without_gradients_is_named(own: str) -> None:
    for loss in (None, f"{own}:doubled"):
        with pytest.raises(UserError, match=r"no gradient reaches .*its forward runs under torch.no_grad\(\)"):
            finetune(Detached(4, 3), batches(), **PLAIN, loss=loss)


def test_options_are_refused_before_anything_is_loaded() -> None:
    check_options(**bind(finetune, {"epochs": 3}, "finetune"))
    with pytest.raises(UserError, match="nowhere_at_all"):
        check_options(**bind(finetune, {"metric": "nowhere_at_all:f"}, "finetune"))
    for change, words in (
        ({"ema": 1.0}, "ema = 1.0: expected a number from 0 to 0.999999"),
        ({"accumulation": 0}, "accumulation = 0: expected a whole number from 1"),
        ({"learning_rate": math.inf}, "learning_rate = inf: expected a number from 0 to 100"),
    ):
        with pytest.raises(UserError, match=words):
            finetune(line(), batches(), **change)
    with pytest.raises(UserError, match="set patience = 0"):
        finetune(line(), batches(), patience=2)
    with pytest.raises(UserError, match="measured on validation batches"):
        finetune(line(), batches(), metric="math:sqrt")
    with pytest.raises(UserError, match="set feature_distillation = 0"):
        finetune(line(), batches(), feature_distillation=1.0)


# --- steps ---


def test_accumulated_batches_are_one_large_batch() -> None:
    large, small = line(), line()
    finetune(large, batches(size=60), **PLAIN)  # 60 and 36
    seen: list[tuple[int, int]] = []
    # 20, 20, 20 and 20, 16: a smaller last batch counts by its samples
    finetune(small, batches(size=20), None, None, lambda *at: seen.append(at), **PLAIN, accumulation=3)
    torch.testing.assert_close(small.weight, large.weight)
    assert seen == [(1, 2), (2, 2)]


def test_running_mean_is_the_one_by_hand() -> None:
    model, plain = nn.Sequential(line(), nn.BatchNorm1d(3)), nn.Sequential(line(), nn.BatchNorm1d(3))
    mean: list[dict[str, Tensor]] = []

    def average(*_: int) -> None:
        state = {name: value.detach().clone().double() for name, value in plain.state_dict().items()}
        mean[:] = [state if not mean else {name: 0.75 * mean[0][name] + 0.25 * state[name] for name in state}]

    finetune(plain, batches(), None, None, average, **PLAIN)
    history = finetune(model, batches(), batches(None), **PLAIN, ema=0.75)
    for name in ("0.weight", "0.bias", "1.running_mean", "1.running_var", "1.weight"):
        torch.testing.assert_close(model.state_dict()[name].double(), mean[0][name], rtol=1e-5, atol=1e-6)
    assert history[-1].validation_loss == evaluate(model, batches(None)).loss  # what is scored is what is kept


def test_early_stop_waits_as_long_as_told(own: str) -> None:
    for patience in (1, 3):
        given = {**PLAIN, "epochs": 9, "metric": f"{own}:worse_later"}
        assert len(finetune(line(), batches(), batches(None), **given, patience=patience)) == 1 + patience
    assert len(finetune(line(), batches(), batches(None), **given)) == 9


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_lower_precision_learns_and_leaves_full_weights(precision: Any) -> None:
    model, full = line(), line()
    given = {**PLAIN, "epochs": 10, "learning_rate": 0.2}
    finetune(model, batches(), **given, precision=precision, gradient_clip=10.0)
    finetune(full, batches(), **given, precision="auto")
    assert model.weight.dtype == torch.float32
    assert not torch.equal(model.weight, full.weight)  # otherwise this test shows nothing
    assert evaluate(model, batches(None)).loss == pytest.approx(evaluate(full, batches(None)).loss, abs=0.02)


# --- features ---


def test_similarity_is_the_papers() -> None:
    student, teacher = nn.Sequential(nn.Conv2d(2, 3, 3)), nn.Sequential(nn.Conv2d(2, 7, 3))  # of other widths
    images = torch.randn(5, 2, 6, 6)
    similarity = Similarity(student, teacher, [])
    ours, theirs = student(images).flatten(1), teacher(images).flatten(1)
    value = similarity.loss()
    grams = [maps @ maps.T for maps in (ours, theirs)]
    rows = [gram / gram.norm(dim=1, keepdim=True) for gram in grams]
    assert value.item() == pytest.approx(((rows[0] - rows[1]) ** 2).sum().item() / 25, rel=1e-5)
    similarity.remove()
    assert not student[0]._forward_hooks


def test_similarity_does_not_see_scale_and_order_of_channels() -> None:
    student = nn.Sequential(nn.Conv2d(2, 3, 3, bias=False))
    teacher = nn.Sequential(nn.Conv2d(2, 3, 3, bias=False))
    teacher[0].weight.data = 3 * student[0].weight.data.flip(0)
    similarity, images = Similarity(student, teacher, ["0"]), torch.randn(4, 2, 6, 6)
    student(images), teacher(images)
    assert similarity.loss().item() == pytest.approx(0, abs=1e-10)


def test_feature_distillation_moves_features_towards_the_teachers() -> None:
    def net(width: int, seed: int) -> nn.Sequential:
        torch.manual_seed(seed)
        return nn.Sequential(nn.Conv2d(2, width, 3), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, 3))

    images, labels = torch.randn(24, 2, 6, 6), torch.arange(24) % 3
    distances = []
    for weight in (0.0, 300.0):
        student, teacher = net(3, 1), net(8, 2)
        given = {**PLAIN, "epochs": 30, "learning_rate": 0.05, "feature_distillation": weight}
        finetune(student, [(images, labels)], None, teacher, **given, feature_layers=["0"])
        similarity = Similarity(student, teacher, ["0"])
        student(images), teacher(images)
        distances.append(similarity.loss().item())
        similarity.remove()
        assert not student[0]._forward_hooks
        assert not teacher[0]._forward_hooks
    assert distances[1] < distances[0] / 2
    with pytest.raises(UserError, match="the student has no 'conv'"):
        finetune(net(3, 1), [(images, labels)], None, net(8, 2), **{**given, "feature_layers": ["conv"]})
    with pytest.raises(UserError, match="no convolution; name layers"):
        finetune(line(), batches(), None, line(), **PLAIN, feature_distillation=1.0)


# --- mixing ---


class Classes(nn.Module):
    """Tells the mixer that there are four classes."""

    def forward(self, images: Tensor) -> Tensor:
        return images.new_zeros(len(images), 4)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixed_targets_are_the_images_shares(kind: str) -> None:
    # Image i is constant at i, so that the mean says what was mixed into it.
    images = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 3, 8, 8).contiguous()
    mixed, target = Mixer(Classes(), options(**{kind: 1.0}))(images, torch.arange(4))
    torch.testing.assert_close(target.sum(1), torch.ones(4))
    torch.testing.assert_close(mixed.mean((1, 2, 3)), target @ torch.arange(4.0))
    assert (target > 0).sum() > 4


def test_erasing_takes_another_place_in_every_image() -> None:
    images = torch.ones(6, 1, 16, 16)
    erased, target = Mixer(Classes(), options(erasing=1.0))(images, torch.arange(6) % 4)
    holes = {tuple(map(tuple, (image[0] == 0).nonzero().tolist())) for image in erased}
    assert len(holes) == 6
    assert target.dtype == torch.int64
    assert torch.equal(images, torch.ones(6, 1, 16, 16))


def test_labels_out_of_range_are_named_when_mixing_too() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    with pytest.raises(UserError, match=r"labels 0\.\.3, but the model has 3 outputs"):
        finetune(net, [(torch.zeros(4, 1, 4, 4), torch.arange(4))], **PLAIN, mixup=0.2)
    with pytest.raises(UserError, match="are for images"):
        finetune(line(), batches(), **PLAIN, mixup=0.2)
