"""Spectral roll-off points: the baseline of Table 2, frog and digit (Figs. 2, 3), pretrained and random (Fig. 5).

    INFOPRUNE_DATA=DATA python -m benchmarks.papers.srop [--output benchmarks/results/papers]

Figures of "Spectral Roll-off Points Variations". The profiles are of MobileNetV2 and a quarter-wide MobileNetV1 on the
images of NIPS 2017 and of ResNet-56 on CIFAR-10, behind every activation.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from benchmarks.papers.common import Pair, Report, mean_and_spread, panels
from infoprune.analyses.base import LayerView
from infoprune.analyses.runner import analyze
from infoprune.analyses.spectral_rolloff import SpectralRolloff
from infoprune.data.dataset import Batches
from infoprune.evaluation.accuracy import evaluate
from infoprune.evaluation.metrics import ModelReference
from infoprune.information.spectrum import radial_bins, radial_profile, roll_off
from infoprune.io import checkpoint, storage
from infoprune.io.checkpoint import load_data
from infoprune.training.finetune import finetune

SIZES = (224, 112, 56, 28, 14, 7)
PUBLISHED = (0.852, 0.399, 0.198, 0.098, 0.048, 0.025)
"""Baseline column of Table 2."""
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {"preset": "paper"},
    "paper, m + 1 bins": {"preset": "paper", "bins": "m+1"},
    "printed": {"preset": "printed"},
    "corrected": {"preset": "corrected"},
}
FROG = 0
"""The first frog of CIFAR-10's training split."""
CASES = {"I": "in the ones", "II": "in all"}
Make = Callable[[str | None], nn.Module]
"""Builds a network with a weights file, or with random weights."""


class MobileNetV1(nn.Module):
    """MobileNetV1 (1704.04861) at a quarter of its width, with LeakyReLU(0.1), named as its published weights are."""

    def __init__(self) -> None:
        super().__init__()
        self.stage1 = nn.Sequential(layer(3, 8, 2), separable(8, 16, 1), separable(16, 32, 2), separable(32, 32, 1))
        self.stage1.extend([separable(32, 64, 2), separable(64, 64, 1)])
        self.stage2 = nn.Sequential(separable(64, 128, 2), *(separable(128, 128, 1) for _ in range(5)))
        self.stage3 = nn.Sequential(separable(128, 256, 2), separable(256, 256, 1))
        self.fc = nn.Linear(256, 1000)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.stage3(self.stage2(self.stage1(images))).mean((2, 3)))
        return logits


def layer(inputs: int, outputs: int, stride: int, kernel: int = 3, groups: int = 1) -> nn.Sequential:
    """Convolution, norm, activation."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.LeakyReLU(0.1))


def separable(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """A depthwise layer and a 1x1 one."""
    return nn.Sequential(*layer(inputs, inputs, stride, groups=inputs), *layer(inputs, outputs, 1, kernel=1))


def mobilenet_v1(weights: str | None) -> nn.Module:
    """With its published weights or without."""
    model = MobileNetV1()
    if weights is not None:
        storage.fit_weights(model, storage.read_tensors(checkpoint.find_file(weights)), weights)
    return model.eval()


MOBILENET_V2 = partial(checkpoint.build, ModelReference("mobilenet_v2", {"folded": True, "padding": "same"}))
RESNET_56 = partial(checkpoint.build, ModelReference("cifar_resnet", {"depth": 56}))
NETWORKS: dict[str, tuple[Make, str, str, dict[str, Any]]] = {
    "MobileNetV2": (MOBILENET_V2, "mobilenet_v2_int8.pth", "nips2017", {"normalisation": "symmetric"}),
    "MobileNetV1": (mobilenet_v1, "mobilenetv1_x0.25.pth", "nips2017", {}),
    "ResNet-56": (RESNET_56, "resnet56-4bfd9763.th", "cifar10", {}),
}
Profile = dict[str, tuple[int, float, float]]
"""Layer -> size of its maps, SROP, baseline."""


def main() -> None:
    report = Report(__doc__ or "", "srop", images=2000, epochs=3, weights=[0.0, 0.4, 0.6, 0.8, 0.9, 1.0])
    report.say("Mean SROP through 2x2 max-pools alone, as the baseline of Table 2; sizes of the maps in the head.")
    report.table(["input", "preset", *map(str, SIZES)], baselines())
    report.say(
        f"A CIFAR-10 frog, of share w, over MNIST digits; {report.options.images} training images, "
        f"{report.options.epochs} epochs, two 3x3 convolutions of 8 and 16 filters (published: 60,000, 20, PyTorch's "
        "example network of 32 and 64). Case I: the frog is in all ones and in no other digit. Case II: it is in all. "
        "SROP of the second convolution's maps behind ReLU, preset paper; the frog's own, and the mean over test "
        "images."
    )
    frogs: dict[tuple[str, float], list[tuple[float, float, Tensor]]] = {}
    columns = ["case", "w", "accuracy", "SROP of the frog", "SROP of test images", "their quartiles"]
    report.table(columns, frog_rows(report, frogs))
    report.say(
        "Pretrained against random weights (batch norm at its initial statistics), 32 training images, behind every "
        "activation, preset paper:"
    )
    profiles: dict[str, dict[str, Profile]] = {name: profile_of(*given) for name, given in NETWORKS.items()}
    columns = ["network", "maps", "layers", "pretrained", "random", "pooling baseline"]
    report.table([*columns, "pretrained below random", "lowest of a layer / baseline"], profile_rows(profiles))
    report.close(picture(frogs, profiles))


class Pools(nn.Sequential):
    """Identities to look at between max-pools."""

    def __init__(self) -> None:
        super().__init__()
        for size in SIZES:
            self.append(nn.ReLU6() if size == SIZES[0] else nn.Sequential(nn.MaxPool2d(2), nn.ReLU6()))


def baselines() -> Iterator[list[str]]:
    """White noise and photographs; the ReLUs are there to be observed, and change nothing on 0..6."""
    yield ["published", "", *(f"{value:.3f}" for value in PUBLISHED)]
    noise = torch.randn(32, 3, 224, 224, generator=torch.Generator().manual_seed(0)) * 0.5 + 3
    photographs = next(iter(load_data("nips2017", {"normalisation": "symmetric"}).batches("train", batch_size=32)))[0]
    for name, images in (("white noise", noise), ("NIPS 2017", photographs + 1)):
        analyses = [SpectralRolloff(**options) for options in PRESETS.values()]
        for analysis in analyses:
            analysis.observes = (nn.ReLU6,)
        found = analyze(Pools(), [(images, torch.zeros(32).long())], analyses)
        for preset, finding in zip(PRESETS, found, strict=True):
            yield [name, preset, *(f"{float(each['SROP'].value):.3f}" for each in finding.measures.values())]


def frog() -> Tensor:
    """A grey frog of 28x28, 0..1."""
    images, labels = load_data("cifar10").train.tensors  # type: ignore[attr-defined]
    grey = images[labels == 6][FROG].float().mean(0) / 255
    return F.interpolate(grey[None, None], size=28, mode="bilinear", align_corners=False)[0]


def mixed(images: Tensor, labels: Tensor, case: str, weight: float, animal: Tensor) -> Tensor:
    """Digits with the frog over them, standardised."""
    images = images.float() / 255
    both = (1 - weight) * images + weight * animal
    chosen = (labels == 1).view(-1, 1, 1, 1) | torch.tensor(case == "II")
    return (torch.where(chosen, both, images) - 0.1307) / 0.3081


def example_network() -> nn.Sequential:
    """PyTorch's MNIST example without its dropout, a quarter as wide."""
    layers = [nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(2304, 64), nn.ReLU(), nn.Linear(64, 10))


def points(model: nn.Module, images: Tensor) -> Tensor:
    """Mean SROP of each image's maps behind the second convolution, `samples`."""
    with torch.no_grad():
        maps = model[:4](images)  # type: ignore[index]
    places = roll_off(radial_profile(maps, power=False, reduce="mean", dc=False))
    return places.nanmean(1) / radial_bins(28)


def frog_rows(report: Report, found: dict[tuple[str, float], list[tuple[float, float, Tensor]]]) -> Iterator[list[str]]:
    """Fig. 3: one row per case and share of the frog."""
    given, data, animal = report.options, load_data("mnist"), frog()
    images, labels = (tensor[: given.images] for tensor in data.train.tensors)  # type: ignore[attr-defined]
    test_images, test_labels = (tensor[:2000] for tensor in data.test.tensors)  # type: ignore[attr-defined]
    for case in CASES:
        for weight in given.weights:
            for seed in report.seeds:
                torch.manual_seed(seed)
                model = example_network()
                trained = TensorDataset(mixed(images, labels, case, weight, animal), labels)
                batches = Batches(trained, batch_size=64, seed=seed)
                finetune(model, batches, epochs=given.epochs, optimizer="adamw", learning_rate=1e-3, seed=seed)
                shown = mixed(test_images, test_labels, case, weight, animal)
                accuracy = 100 * evaluate(model, [(shown, test_labels)]).accuracy
                own = float(points(model, ((animal - 0.1307) / 0.3081)[None])[0])
                found.setdefault((case, weight), []).append((accuracy, own, points(model, shown)))
            accuracies, own_points, spread = zip(*found[case, weight], strict=True)
            every = torch.cat(spread)
            quartiles = every[~every.isnan()].quantile(torch.tensor([0.25, 0.75]).double())
            yield [
                f"{case}: {CASES[case]}",
                f"{weight:g}",
                mean_and_spread(accuracies, 1),
                mean_and_spread(own_points, 3),
                f"{every.nanmean():.3f}",
                f"{quartiles[0]:.3f}–{quartiles[1]:.3f}",
            ]


class Sized(SpectralRolloff):
    """Looks behind activations and remembers the size of the maps."""

    observes = (nn.ReLU, nn.ReLU6, nn.LeakyReLU)

    def observe(self, view: LayerView) -> None:
        self.sizes = {**getattr(self, "sizes", {}), view.layer: view.activations.shape[-1]}
        super().observe(view)


def profile_of(make: Make, weights: str, data_name: str, options: dict[str, Any]) -> dict[str, Profile]:
    """SROP behind every activation, with pretrained and with random weights."""
    batch: Pair = next(iter(load_data(data_name, options).batches("train", batch_size=32, seed=0)))
    found = {}
    for kind, file in (("pretrained", weights), ("random", None)):
        torch.manual_seed(0)
        analysis = Sized(preset="paper")
        measures = analyze(make(file), [batch], [analysis])[0].measures
        found[kind] = {
            name: (analysis.sizes[name], float(each["SROP"].value), float(each["baseline"].value))
            for name, each in measures.items()
        }
    return found


def profile_rows(profiles: dict[str, dict[str, Profile]]) -> Iterator[list[str]]:
    """One row per network and size of maps."""
    for name, kinds in profiles.items():
        trained, chance = kinds["pretrained"], kinds["random"]
        for size in sorted({size for size, _, _ in trained.values()}, reverse=True):
            layers = [layer for layer, row in trained.items() if row[0] == size]
            baseline = trained[layers[0]][2]
            mean = [sum(kind[layer][1] for layer in layers) / len(layers) for kind in (trained, chance)]
            below = sum(trained[layer][1] < chance[layer][1] for layer in layers)
            lowest = min(trained[layer][1] for layer in layers)
            shown = [f"{value:.3f}" for value in (*mean, baseline)]
            yield [
                name,
                f"{size}x{size}",
                str(len(layers)),
                *shown,
                f"{below} of {len(layers)}",
                f"{lowest / baseline:.2f}",
            ]


def picture(frogs: Any, profiles: dict[str, dict[str, Profile]]):  # type: ignore[no-untyped-def]
    """Fig. 3, the distributions of Fig. 2 at three shares, and Fig. 5."""
    figure, axes = panels(2, 3, figsize=(9, 4.8))
    weights = sorted({weight for _, weight in frogs})
    for case, color in zip(CASES, ("C0", "C3"), strict=True):
        means = [[sum(run[i] for run in frogs[case, w]) / len(frogs[case, w]) for w in weights] for i in (0, 1)]
        axes[0][0].plot(weights, [value / 100 for value in means[0]], color + "s--", ms=3, label=f"{case}, accuracy")
        axes[0][0].plot(weights, means[1], color + "o-", ms=3, label=f"{case}, SROP of the frog")
    axes[0][0].set_xlabel("share of the frog")
    axes[0][0].legend()
    for place, case in enumerate(CASES, start=1):
        for weight in (weights[0], weights[len(weights) // 2], weights[-1]):
            every = torch.cat([run[2] for run in frogs[case, weight]])
            heights, edges = every[~every.isnan()].float().histogram(30, range=(0.0, 1.0))
            axes[0][place].stairs(heights / heights.sum(), edges, label=f"w = {weight:g}")
        axes[0][place].set_title(f"case {case}: test images")
        axes[0][place].set_xlabel("mean SROP")
        axes[0][place].legend()
    for panel, (name, kinds) in zip(axes[1], profiles.items(), strict=False):
        for kind, style in (("pretrained", "C0-"), ("random", "C7--")):
            panel.semilogy([row[1] for row in kinds[kind].values()], style, lw=0.9, label=kind)
        panel.semilogy([row[2] for row in kinds["pretrained"].values()], "k:", lw=0.8, label="pooling alone")
        panel.set_title(name)
        panel.set_xlabel("activation")
    axes[1][0].set_ylabel("SROP")
    axes[1][0].legend()
    return figure


if __name__ == "__main__":
    main()
