"""Response information: closed forms, copies, dead filters, and the path from a filter to the next response."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infoprune.analyses.response_information import ResponseInformation
from infoprune.analyses.runner import analyze
from infoprune.errors import UserError
from infoprune.information.elimination import backward_elimination, rises_along


def covariances(variables: int, responses: int) -> tuple[Tensor, Tensor, Tensor]:
    root = torch.randn(variables + responses, variables + responses, dtype=torch.float64)
    whole = root @ root.T
    return whole[:variables, :variables], whole[:variables, variables:], whole[variables:, variables:]


def left_over(kept: list[int], block: int, t: Tensor, cross: Tensor, r: Tensor) -> Tensor:
    """Σ_{R|S} as it is defined."""
    rows = [i * block + j for i in kept for j in range(block)]
    return r - cross[rows].T @ torch.linalg.solve(t[rows][:, rows], cross[rows]) if rows else r


@pytest.mark.parametrize("criterion", ["information", "error"])
@pytest.mark.parametrize("block", [1, 3])
def test_each_step_of_the_elimination_is_its_definition(criterion: str, block: int) -> None:
    t, cross, r = covariances(5 * block, 3)
    noise = 0.05 * r.trace() / 3 * torch.eye(3)
    found = backward_elimination(t, cross, r, block=block, noise=0.05, criterion=criterion)
    kept = list(range(5))
    for step, gone in enumerate(found.order.tolist()):
        before = left_over(kept, block, t, cross, r)
        costs = {}
        for i in kept:
            after = left_over([j for j in kept if j != i], block, t, cross, r)
            information = (torch.logdet(after + noise) - torch.logdet(before + noise)) / (2 * math.log(2))
            error = (after - before).trace() / r.trace()
            costs[i] = (float(information if criterion == "information" else error), float(error))
        assert gone == min(costs, key=lambda i: costs[i])
        assert (float(found.cost[step]), float(found.error[step])) == pytest.approx(costs[gone], rel=1e-3)
        kept.remove(gone)


def test_what_an_order_costs_is_what_its_elimination_says() -> None:
    t, cross, r = covariances(12, 4)
    found = backward_elimination(t, cross, r, block=3)
    torch.testing.assert_close(rises_along(t, cross, r, found.order, block=3), found.error.cumsum(0))


def test_chain_rule() -> None:
    t, cross, r = covariances(4, 2)
    found = backward_elimination(t, cross, r, noise=0.1)
    noise = 0.1 * r.trace() / 2 * torch.eye(2)
    nothing, everything = (left_over(kept, 1, t, cross, r) + noise for kept in ([], [0, 1, 2, 3]))
    together = (torch.logdet(nothing) - torch.logdet(everything)) / (2 * math.log(2))
    torch.testing.assert_close(found.cost.sum(), together, rtol=1e-4, atol=0)


def test_independent_gaussians_are_ranked_by_their_weights() -> None:
    weights = torch.tensor([0.5, -2.0, 0.0, 1.0]).double()
    cross = weights[:, None]
    found = backward_elimination(torch.eye(4).double(), cross, cross.T @ cross, noise=0.01)
    assert found.order.tolist() == [2, 0, 3, 1]
    noise = 0.01 * float(weights.square().sum())
    expected = 0.5 * torch.log2(1 + weights.square() / noise)
    torch.testing.assert_close(found.given_all, expected, rtol=1e-3, atol=1e-6)


def test_a_response_that_never_changes_ranks_by_nothing() -> None:
    found = backward_elimination(torch.eye(3).double(), torch.zeros(3, 2).double(), torch.zeros(2, 2).double())
    assert found.order.tolist() == [0, 1, 2]
    assert found.cost.tolist() == [0, 0, 0]


def test_wrong_covariances_are_refused() -> None:
    t, cross, r = covariances(4, 2)
    with pytest.raises(ValueError, match="block = 3"):
        backward_elimination(t, cross, r, block=3)
    with pytest.raises(ValueError, match="NaN or Inf"):
        backward_elimination(t, cross * torch.nan, r)


@pytest.fixture
def net() -> nn.Sequential:
    """Filter 1 is a copy of filter 0, filter 2 is dead, and the rest differ."""
    model = nn.Sequential(nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.ReLU())
    with torch.no_grad():
        model[0].weight[1], model[0].bias[1] = model[0].weight[0], model[0].bias[0]
        model[0].weight[2], model[0].bias[2] = 0, -1
    return model.eval()


def batches(model: nn.Module, count: int = 3) -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(16, 2, 8, 8), torch.zeros(16, dtype=torch.long)) for _ in range(count)]


@pytest.mark.parametrize("criterion", ["information", "error"])
def test_one_of_two_copies_and_the_dead_filter_go_for_nothing(net: nn.Module, criterion: str) -> None:
    found = analyze(net, batches(net), [ResponseInformation(criterion=criterion, tolerance=1e-4)])[0]
    scores = found.importance["0"]
    gone = set(scores.argsort()[:2].tolist())
    assert 2 in gone
    assert gone & {0, 1}
    assert scores.sort().values[:2].max() < 1e-3 < scores.sort().values[2]
    assert found.widths["0"] == 4
    assert float(found.measures["0"]["explained"].value) == pytest.approx(1, abs=1e-5)
    assert "3" not in found.importance, "no layer responds to the last"


def test_without_the_copy_its_twin_counts_in_full(net: nn.Module) -> None:
    given = analyze(net, batches(net), [ResponseInformation()])[0].measures["0"]["given all others"].value
    assert max(given[0], given[1]) < 1e-3
    with torch.no_grad():
        net[0].weight[1].zero_()
        net[0].bias[1] = 0
    alone = analyze(net, batches(net), [ResponseInformation()])[0].measures["0"]["given all others"].value
    assert alone[0] > 0.1


def test_a_closed_form_refit_leaves_the_error_that_it_says(net: nn.Module) -> None:
    net[1].running_var.fill_(0.5)
    data = batches(net, 1)
    found = analyze(net, data, [ResponseInformation(criterion="error", positions=36)])[0]
    error, scores = found.measures["0"]["error once gone"].value, found.importance["0"]
    kept = scores.argsort()[3:]
    with torch.no_grad():
        read, response = net[:3](data[0][0]), net[:4](data[0][0])
        patches = F.unfold(read[:, kept], 3).transpose(1, 2).flatten(0, 1).double()
        rows = response.flatten(2).transpose(1, 2).flatten(0, 1).double()
        design = torch.cat([patches, torch.ones(len(patches), 1).double()], 1)
        rest = rows - design @ torch.linalg.lstsq(design, rows).solution
    expected = rest.square().sum() / (rows - rows.mean(0)).square().sum()
    assert float(error.sort().values[2]) == pytest.approx(float(expected), rel=0.02)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "stride": 2, "padding": 1},
        {"kernel_size": (1, 3), "padding": "same"},
        {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
        {"kernel_size": 2, "dilation": 2, "groups": 2},
    ],
)
def test_rows_are_what_the_layer_reads(options: dict[str, object]) -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.Tanh(), nn.Conv2d(4, 6, **options))
    found = analyze(model, batches(model), [ResponseInformation()])[0]
    assert float(found.measures["0"]["explained"].value) == pytest.approx(1, abs=1e-4)


def test_flattened_maps_reach_a_linear_layer_and_depthwise_layers_pass() -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 3, groups=4), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()
    )
    model.append(nn.Linear(16, 3))
    data = [(torch.randn(64, 2, 8, 8), torch.zeros(64, dtype=torch.long)) for _ in range(2)]
    found = analyze(model, data, [ResponseInformation()])[0]
    assert set(found.importance) == {"0"}
    assert float(found.measures["0"]["explained"].value) == pytest.approx(1, abs=1e-4)


def test_a_projection_shares_the_score_of_the_branch_it_is_added_to() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.project = nn.Conv2d(2, 3, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(2, 4, 1)
            self.relu, self.next = nn.ReLU(), nn.Conv2d(4, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.next(self.relu(self.b(self.a(x)) + self.project(x)))

    model = Block()
    found = analyze(model, batches(model), [ResponseInformation()])[0]
    torch.testing.assert_close(found.importance["b"], found.importance["project"])
    assert found.importance["a"].shape == (3,)
    assert float(found.measures["b"]["explained"].value) == pytest.approx(1, abs=1e-4)


def test_weighted_by_the_loss_gradient_what_the_loss_does_not_see_goes_first() -> None:
    model = nn.Sequential(nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    model.append(nn.Linear(2, 3))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[9.0, 0.0], [0.0, 1.0]]).view(2, 2, 1, 1))
        model[4].weight[:, 0] = 0  # the loss sees only the response's second channel
    found, blind = (analyze(model, batches(model), [ResponseInformation(weighted=w)])[0] for w in (True, False))
    assert found.importance["0"].argmax() == 1
    assert blind.measures["0"]["error once gone"].value.argmax() == 0


def test_the_width_has_an_interval_over_batches(net: nn.Module) -> None:
    found = analyze(net, batches(net, 5), [ResponseInformation(positions=2)])[0]
    for name in ("width", "explained"):
        measure = found.measures["0"][name]
        assert measure.low <= measure.value <= measure.high
    assert float(found.measures["0"]["width"].value) == found.widths["0"]
    alone = analyze(net, batches(net, 1), [ResponseInformation(positions=2)])[0]
    assert alone.measures["0"]["width"].low is None


def test_batches_add_up() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Conv2d(4, 3, 1))
    first, second = batches(model, 2)
    whole = (torch.cat([first[0], second[0]]), torch.cat([first[1], second[1]]))
    apart = analyze(model, [first, second], [ResponseInformation(positions=64)])[0]
    together = analyze(model, [whole], [ResponseInformation(positions=64)])[0]
    torch.testing.assert_close(apart.importance["0"], together.importance["0"])


@pytest.mark.parametrize(
    "option",
    [{"criterion": "mse"}, {"noise": 0.0}, {"tolerance": 1.0}, {"positions": 0}, {"inputs_limit": 0}, {"seed": -1}],
)
def test_wrong_options_are_refused(option: dict[str, object]) -> None:
    with pytest.raises(UserError, match=rf"\[analyses.response_information\] {next(iter(option))} = .*: expected"):
        ResponseInformation(**option)
