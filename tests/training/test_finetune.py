"""Training and evaluation: known answers for scores and rates, and a loop that repeats, restores and refuses."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from infoprune.data.dataset import Batches
from infoprune.errors import RunError, UserError
from infoprune.evaluation.accuracy import evaluate
from infoprune.training.finetune import finetune
from infoprune.training.optimizer import Schedule, rate_factor


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """These networks are so small that a second thread only costs."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def blobs(count: int = 96) -> tuple[Tensor, Tensor]:
    """Three classes of noisy points that a line tells apart, as `samples x 4`."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(count) % 3
    return F.one_hot(labels, 4).float() * 3 + torch.randn(count, 4, generator=generator), labels


def network(dropout: float = 0.0) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 3))


def batches(seed: int | None = 0, count: int = 96) -> Batches:
    return Batches(TensorDataset(*blobs(count)), batch_size=32, seed=seed)


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


# --- the learning rate ---


@pytest.mark.parametrize(("schedule", "warmup"), [("cosine", 0.0), ("one_cycle", 0.3), ("one_cycle", 0.1)])
def test_rates_are_those_of_torchs_schedulers(schedule: Schedule, warmup: float) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.4)
    torchs = (
        torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40)
        if schedule == "cosine"
        else torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.4, total_steps=40, pct_start=warmup)
    )
    for step in range(40):
        assert 0.4 * rate_factor(schedule, step, 40, warmup) == pytest.approx(
            optimizer.param_groups[0]["lr"], abs=1e-12
        )
        optimizer.step()
        torchs.step()


@pytest.mark.parametrize("schedule", ["cosine", "one_cycle"])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 10])
def test_rates_stay_between_nothing_and_the_highest(schedule: Schedule, warmup: float, steps: int) -> None:
    factors = [rate_factor(schedule, step, steps, warmup) for step in range(steps)]
    assert all(0 <= factor <= 1 for factor in factors)
    assert max(factors) > 0.5 or (schedule, steps) == ("one_cycle", 1)


# --- finetune ---


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("schedule", ["cosine", "one_cycle"])
def test_training_learns(optimizer: Any, schedule: Schedule) -> None:
    model = network()
    history = finetune(
        model, batches(), batches(None), epochs=20, optimizer=optimizer, schedule=schedule, learning_rate=0.02
    )
    assert history[-1].validation_accuracy > 0.9
    assert history[-1].train_loss < history[0].train_loss / 2
    assert [record.epoch for record in history] == list(range(1, 21))
    assert history[-1].validation_loss == evaluate(model, batches(None)).loss


def test_without_validation_its_columns_are_unknown() -> None:
    record = finetune(network(), batches(), epochs=1)[0]
    assert math.isnan(record.validation_loss)
    assert math.isnan(record.validation_accuracy)
    assert record.train_accuracy <= 1


def test_no_epochs_leave_the_model_untouched() -> None:
    model = network().train()
    before = state(model)
    assert finetune(model, batches(), batches(), network(), epochs=0, distillation=0.5) == []
    assert same(before, state(model))


def test_a_seed_repeats_training_and_the_callers_randomness_is_left_alone() -> None:
    results = []
    for seed in (5, 5, 6):
        model = network(dropout=0.5).eval()
        torch.manual_seed(seed + 10)
        expected = torch.rand(3)
        torch.manual_seed(seed + 10)
        finetune(model, batches(), epochs=2, seed=seed)
        assert torch.equal(torch.rand(3), expected)
        assert not model.training
        results.append(state(model))
    assert same(results[0], results[1])
    assert not same(results[0], results[2])


def test_weight_decay_spares_norms_and_biases() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 4), nn.Unflatten(1, (2, 2)), nn.LayerNorm((2, 2)), nn.Flatten())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0)
    # Equal inputs and weights make equal activations, a LayerNorm of zeros, and so no gradient on any weight before it.
    images, labels = torch.ones(8, 4), torch.arange(8) % 4
    finetune(model, [(images, labels)], epochs=1, learning_rate=0.1, warmup=0.0, weight_decay=1.0, momentum=0.0)
    values = {name: parameter.detach() for name, parameter in model.named_parameters()}
    torch.testing.assert_close(values["1.weight"], torch.full((4, 4), 0.9))
    torch.testing.assert_close(values["1.bias"], torch.ones(4))
    torch.testing.assert_close(values["3.weight"], torch.ones(2, 2))


def test_every_weight_learns_the_norms_too() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Unflatten(1, (2, 2)), nn.LayerNorm((2, 2)), nn.Flatten(), nn.Linear(4, 3))
    before = state(model)
    finetune(model, batches(), epochs=1)
    assert [name for name, tensor in state(model).items() if torch.equal(tensor, before[name])] == []


def test_one_step_is_the_textbook_step() -> None:
    model = nn.Linear(4, 3)
    images, labels = blobs(6)
    expected = nn.Linear(4, 3)
    expected.load_state_dict(model.state_dict())
    F.cross_entropy(expected(images), labels, label_smoothing=0.2).backward()
    plain: dict[str, Any] = {"learning_rate": 0.5, "warmup": 0.0, "weight_decay": 0.0, "momentum": 0.9}
    finetune(model, [(images, labels)], epochs=1, label_smoothing=0.2, **plain)
    with torch.no_grad():
        torch.testing.assert_close(
            model.weight, expected.weight - 0.5 * 1.9 * expected.weight.grad
        )  # Nesterov: 1 + momentum


def test_clipping_limits_the_length_of_a_step() -> None:
    model = nn.Linear(4, 3)
    before = model.weight.detach().clone(), model.bias.detach().clone()
    images, labels = blobs(6)
    options: dict[str, Any] = {"learning_rate": 1.0, "warmup": 0.0, "weight_decay": 0.0, "momentum": 0.0}
    finetune(model, [(images * 100, labels)], epochs=1, gradient_clip=0.01, **options)
    moved = torch.cat([(model.weight - before[0]).flatten(), model.bias - before[1]])
    assert moved.norm().item() == pytest.approx(0.01, rel=1e-3)


def test_distillation_alone_makes_the_student_imitate_the_teacher() -> None:
    teacher, student = network(dropout=0.5).train(), nn.Linear(4, 3)
    images, labels = blobs()
    wrong = [(images, (labels + 1) % 3)]
    finetune(teacher, [(images, labels)], epochs=30)
    taught = state(teacher)
    finetune(student, wrong, None, teacher, epochs=60, distillation=1.0, temperature=2.0, learning_rate=0.5)
    assert evaluate(student, [(images, labels)]).accuracy > 0.8  # as the teacher, not as the labels
    assert same(taught, state(teacher))
    assert teacher.training


def test_distillation_is_the_papers_loss() -> None:
    student, teacher = nn.Linear(4, 3), nn.Linear(4, 3)
    images, labels = blobs(6)
    p, q = F.softmax(teacher(images) / 3, 1), F.softmax(student(images) / 3, 1)
    divergence = (p * (p.log() - q.log())).sum(1).mean()
    expected = 0.75 * F.cross_entropy(student(images), labels) + 0.25 * 9 * divergence
    record = finetune(student, [(images, labels)], None, teacher, epochs=1, distillation=0.25, temperature=3.0)[0]
    assert record.train_loss == pytest.approx(expected.item(), rel=1e-5)


def test_best_keeps_the_epoch_that_validation_prefers() -> None:
    model, kept = network(), network()
    options: dict[str, Any] = {"epochs": 8, "learning_rate": 3.0, "weight_decay": 0.1}
    history = finetune(model, batches(), batches(None), **options)
    finetune(kept, batches(), batches(None), **options, keep="best")
    best = max((record.validation_accuracy, -record.validation_loss) for record in history)
    assert best[0] > history[-1].validation_accuracy  # otherwise this test shows nothing
    score = evaluate(kept, batches(None))
    assert (score.accuracy, -score.loss) == best


def test_progress_counts_all_steps() -> None:
    seen: list[tuple[int, int]] = []
    finetune(network(), batches(), None, None, lambda done, total: seen.append((done, total)), epochs=2)
    assert seen == [(step, 6) for step in range(1, 7)]


class WithoutLength:
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return iter(batches())


def test_batches_without_a_length_are_counted() -> None:
    rates = [
        [record.learning_rate for record in finetune(network(), loader, epochs=3)]
        for loader in (WithoutLength(), batches())
    ]
    assert rates[0] == rates[1]


def test_frozen_weights_stay() -> None:
    model = network()
    model[0].requires_grad_(False)
    before = state(model)
    finetune(model, batches(), epochs=1)
    assert torch.equal(model[0].weight, before["0.weight"])
    assert not torch.equal(model[4].weight, before["4.weight"])
    with pytest.raises(UserError, match="no weights to train"):
        finetune(model.requires_grad_(False), batches(), epochs=1)


@pytest.mark.parametrize("count", [32, 32 * 40])
def test_a_loss_that_is_not_finite_ends_the_run_with_a_remedy(count: int) -> None:
    images, labels = blobs(count)
    images[0] = math.nan
    seen: list[int] = []
    loader = Batches(TensorDataset(images, labels), batch_size=32)
    with pytest.raises(RunError, match=r"became nan .*lower learning_rate \(now 0.05\)"):
        finetune(network(), loader, None, None, lambda done, _: seen.append(done), epochs=3)
    assert len(seen) < 40  # long before the epoch ends


class Stubborn(nn.Linear):
    """A layer whose mode cannot be changed in one direction."""

    def __init__(self, mode: bool) -> None:
        super().__init__(4, 3)
        self.refused = mode

    def train(self, mode: bool = True) -> "Stubborn":
        if mode == self.refused:
            raise RuntimeError("stays as it is")
        return super().train(mode)  # type: ignore[no-any-return]


def test_models_whose_mode_cannot_be_changed() -> None:
    with pytest.raises(UserError, match=r"^Stubborn.eval\(\) fails: RuntimeError: stays as it is \(test_finetune.py"):
        evaluate(Stubborn(mode=False), [blobs()])
    with pytest.raises(UserError, match=r"^Stubborn.train\(\) fails: RuntimeError: stays as it is"):
        finetune(Stubborn(mode=True), [blobs()], epochs=1)


def test_statistics_that_overflow_end_the_run_with_a_remedy() -> None:
    images, labels = blobs()
    model = nn.Sequential(nn.BatchNorm1d(images.shape[1]), nn.Linear(images.shape[1], 3))
    model.register_buffer("mask", torch.tensor([-math.inf]))  # as it came, and no fault of training
    before = state(model)
    with pytest.raises(RunError, match=r"training diverged in epoch 1: 0\.running_var hold .*; lower learning_rate"):
        finetune(model, [(images * 1e25, labels)], epochs=1)
    model.load_state_dict(before)
    assert len(finetune(model, [(images, labels)], epochs=1)) == 1


@pytest.mark.parametrize("loader", [[], iter([blobs(32)])], ids=["empty", "once only"])
def test_nothing_to_train_on_is_said(loader: Any) -> None:
    with pytest.raises(UserError, match="nothing to train on"):
        finetune(network(), loader, epochs=2)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"epochs": -1}, "epochs = -1: expected a whole number from 0 to 100,000"),
        ({"learning_rate": math.nan}, "learning_rate"),
        ({"momentum": 1.0}, "momentum = 1.0"),
        ({"label_smoothing": 1.5}, "label_smoothing = 1.5: expected a number from 0 to 1"),
        ({"temperature": 0.0}, "temperature"),
        ({"gradient_clip": -1.0}, "gradient_clip"),
        ({"keep": "best"}, "set keep = 'last'"),
        ({"distillation": 0.5}, "set distillation = 0"),
    ],
)
def test_options_are_checked_before_anything_changes(options: dict[str, Any], words: str) -> None:
    model = network()
    before = state(model)
    with pytest.raises(UserError, match=words):
        finetune(model, batches(), **options)
    assert same(before, state(model))
