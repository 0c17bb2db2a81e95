"""How fast fine-tuning goes: `finetune` against a plain loop, batches alone, and what each option costs.

    python -m benchmarks.finetuning [--device cuda] [--batches 8] [--output NOTE.md]

ResNet-56 on images of CIFAR-10's size and type; what they show does not matter for time. Rounds alternate between the
rows, so that other work on the machine reaches all of them, and the median round counts. Processor seconds per image
are given beside, since on a shared machine they scatter less.
"""

import argparse
import io
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import TensorDataset
from torchvision.transforms import v2

from benchmarks.information.machine import header
from infoprune.data.dataset import Batches
from infoprune.datasets._arrays import _standardise
from infoprune.datasets.cifar10 import crop_and_mirror
from infoprune.models import cifar_resnet
from infoprune.training.finetune import finetune

Row = Callable[[], int]


def loader(count: int, size: int, device: str) -> Batches:
    """Batches as CIFAR-10's: stored as bytes, cropped, mirrored and standardised on the device."""
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8)
    prepare = partial(_standardise, mean=torch.tensor([0.485, 0.456, 0.406]), std=torch.tensor([0.229, 0.224, 0.225]))
    data = TensorDataset(images, torch.arange(count) % 10)
    return Batches(data, batch_size=size, seed=0, device=device, prepare=prepare, augment=crop_and_mirror)


def batches_alone(batches: Batches) -> int:
    """Loading and augmenting, nothing else."""
    return sum(len(labels) for _, labels in batches)


def plain_loop(batches: Batches) -> int:
    """What a reader would write: no schedule, no checks, no records."""
    model = cifar_resnet.build(depth=56).to(batches.device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    seen = 0
    for images, labels in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        seen += len(labels)
    return seen


def ours(batches: Batches, taught: bool = False, **options: object) -> int:
    """One epoch of `finetune`."""
    teacher = cifar_resnet.build(depth=56).to(batches.device) if taught else None
    model = cifar_resnet.build(depth=56).to(batches.device)
    finetune(model, batches, None, teacher, epochs=1, **options)  # type: ignore[arg-type]
    return len(batches.dataset)  # type: ignore[arg-type]


def decoded(count: int) -> int:
    """A photograph's way to a network's input: JPEG of 500x375, short side to 256, middle 224, as bytes."""
    smooth = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(smooth).resize((500, 375), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
    stored = v2.Compose([v2.Resize(256), v2.CenterCrop(256), v2.PILToTensor()])
    for _ in range(count):
        stored(Image.open(io.BytesIO(file.getvalue())).convert("RGB"))
    return count


def measured(rows: dict[str, Row], rounds: int, device: str) -> dict[str, tuple[float, float]]:
    """Images per second, median of rounds, and processor milliseconds per image."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in rows}
    for number in range(rounds + 1):
        for name, row in rows.items():
            wall, processor = time.perf_counter(), time.process_time()
            count = row()
            if device == "cuda":
                torch.cuda.synchronize()
            taken = (count / (time.perf_counter() - wall), 1e3 * (time.process_time() - processor) / count)
            if number:  # the first round warms up
                found[name].append(taken)
    return {
        name: (statistics.median(t[0] for t in times), statistics.median(t[1] for t in times))
        for name, times in found.items()
    }


def main() -> None:
    """Measures and prints, or writes, the note."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    if given.threads:
        torch.set_num_threads(given.threads)
    few = loader(given.batches * given.batch_size, given.batch_size, given.device)
    many = loader(20 * given.batches * given.batch_size, given.batch_size, given.device)
    rows: dict[str, Row] = {
        "batches alone (index, crop, mirror, standardise)": partial(batches_alone, many),
        "plain loop": partial(plain_loop, few),
        "`finetune`": partial(ours, few, precision="float32", channels_last=False),
        "`finetune`, channels_last": partial(ours, few, precision="float32", channels_last=True),
        "`finetune`, bfloat16": partial(ours, few, precision="bfloat16", channels_last=False),
        "`finetune`, bfloat16, channels_last": partial(ours, few, precision="bfloat16", channels_last=True),
        "`finetune`, ema": partial(ours, few, precision="float32", channels_last=False, ema=0.999),
        "`finetune`, distillation": partial(
            ours, few, taught=True, precision="float32", channels_last=False, distillation=0.5
        ),
        "decode one JPEG of 500x375 (one thread)": partial(decoded, 200),
    }
    results = measured(rows, given.rounds, given.device)
    plain = results["plain loop"]
    command = f"python -m benchmarks.finetuning --device {given.device} --batches {given.batches}"
    command += f" --rounds {given.rounds} --threads {torch.get_num_threads()}"
    lines = [*header(command), "| | images/s (median) | of the plain loop | processor ms/image |", "|---|---|---|---|"]
    lines += [f"| {n} | {r[0]:,.0f} | {r[0] / plain[0]:.2f} | {r[1]:.2f} |" for n, r in results.items()]
    text = "\n".join(lines) + "\n"
    print(text)
    if given.output:
        given.output.write_text(f"# Fine-tuning ResNet-56, images of 32x32\n\n{text}", encoding="utf-8")


if __name__ == "__main__":
    main()
