"""Every network of torchvision pruned at random: equal to its masked reference model, or refused beforehand.

    python -m benchmarks.model_sweep [--only 'resnet*' 'timm:*'] [--output benchmarks/results/model-sweep.md]

All classification and segmentation networks of torchvision, and five of timm (`pip install timm`, or leave them out),
with random weights: norms and scales drawn again, batch statistics from eight random images, so that every channel
matters. Every group that can be cut keeps a random 75, 50 and 25 % of its channels. Each network has a process of its
own, with a limit on time and on address space.
"""

import argparse
import json
import random
import re
import resource
import subprocess
import sys
import time
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.information.machine import header, peak_memory_gib, reset_peak_memory
from infoprune.errors import RunError, UserError
from infoprune.graph.channels import ChannelGraph
from infoprune.models import torchvision as torchvision_models
from infoprune.planning.plan import GroupPlan, Plan
from infoprune.pruning.channel_graph import channel_graph
from infoprune.pruning.prune import prune
from infoprune.pruning.verify import verify

RATIOS = (0.75, 0.5, 0.25)
TIMM = ("mobilenetv4_conv_small", "ghostnet_100", "hrnet_w18_small", "convnext_atto", "vit_tiny_patch16_224")
SIDE = 64
SIDES = {"maxvit_t": 224, "inception_v3": 96, "timm:vit_tiny_patch16_224": 224}


def names() -> list[str]:
    """All networks of the sweep."""
    from torchvision import models

    segmenting = models.list_models(module=models.segmentation)
    return [*models.list_models(module=models), *segmenting, *(f"timm:{name}" for name in TIMM)]


def build(name: str) -> tuple[nn.Module, int]:
    """A network and the side of the images that it is tried on."""
    if name.startswith("timm:"):
        import timm

        return timm.create_model(name.removeprefix("timm:"), pretrained=False), SIDES.get(name, SIDE)
    if name.startswith("vit_"):  # of a fixed size, which may be a small one
        from torchvision import models

        side = 56 if name == "vit_h_14" else SIDE
        return models.get_model(name, weights=None, image_size=side), side
    return torchvision_models.build(architecture=name), SIDES.get(name, SIDE)


def enliven(model: nn.Module, side: int) -> None:
    """Gives initial weights, which leave heads and branches at zero or next to it, a say in the output."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.abs().max() < 1e-3:  # zero-initialised heads, layer scales
                parameter.normal_(0, 0.1) if name.endswith("bias") else parameter.uniform_(0.2, 0.8)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d | nn.LayerNorm | nn.GroupNorm) and module.weight is not None:
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.2)
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = None
        model.train()(torch.randn(8, 3, side, side))
    model.eval()


def drawn(graph: ChannelGraph, ratio: float) -> Plan:
    """A random legal plan."""
    groups = []
    for group in graph.groups:
        if not group.refusal:
            part = group.width // group.partitions
            own = sorted(random.Random(f"{group.name} {ratio}").sample(range(part), max(1, round(part * ratio))))
            kept = tuple(channel + part * i for i in range(group.partitions) for channel in own)
            groups.append(GroupPlan(group.name, kept, group.width, len(kept), 0, 0, "random"))
    return Plan(tuple(groups), {}, 0, 0, graph.input_shape)


def sweep(name: str) -> dict[str, Any]:
    """What came of one network."""
    torch.manual_seed(0)
    model, side = build(name)
    enliven(model, side)
    size = sum(tensor.numel() * tensor.element_size() for tensor in model.state_dict().values()) / 2**30
    row: dict[str, Any] = {"side": side, "size": size, "groups": 0, "refusals": [], "macs": []}
    images = torch.randn(2, 3, side, side)
    reset_peak_memory()
    before, start = peak_memory_gib(), time.perf_counter()
    graph = channel_graph(model, images)
    row["graph_seconds"] = time.perf_counter() - start
    row["groups"] = len(graph.groups)
    row["refusals"] = [(group.name, group.refusal) for group in graph.groups if group.refusal]
    worst, precision = 0.0, "float32"
    for ratio in RATIOS:
        plan = drawn(graph, ratio)
        pruned = prune(model, plan)
        row["peak"] = peak_memory_gib() - before
        found = verify(model, pruned, graph, plan.kept(), images)
        worst, precision = max((worst, precision), (found.max_rel_difference, found.dtype))
        widths = {group.group: group.width_after for group in plan.groups}
        row["macs"].append(graph.macs(widths) / graph.macs({}))
        del pruned
    return {**row, "worst": worst, "precision": precision, "seconds": time.perf_counter() - start}


def one(name: str) -> dict[str, Any]:
    """As `sweep`, with what ended it early."""
    try:
        return {"outcome": "pass", **sweep(name)}
    except UserError as error:
        return {"outcome": "refused", "error": str(error)}
    except RunError as error:
        return {"outcome": "FAIL", "error": str(error)}
    except MemoryError:
        return {"outcome": "FAIL", "error": "out of memory"}


def apart(name: str, seconds: int, gib: int) -> dict[str, Any]:
    """As `one`, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.model_sweep", "--one", name, "--gib", str(gib)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return {"outcome": "FAIL", "error": f"not done after {seconds} s"}
    if done.returncode:
        return {"outcome": "FAIL", "error": done.stderr.strip().rpartition("\n")[2]}
    found: dict[str, Any] = json.loads(done.stdout.strip().rpartition("\n")[2])
    return found


def note(rows: dict[str, dict[str, Any]], opening: list[str]) -> str:
    """The note: a table, and below it every reason for a refusal."""
    counts = {
        outcome: sum(row["outcome"] == outcome for row in rows.values()) for outcome in ("pass", "refused", "FAIL")
    }
    lines = [
        "# Random plans on every network of torchvision",
        "",
        "Pruned against masked reference model: the largest difference over the largest output, the worst of three "
        "plans that "
        "keep 75, 50 and 25 % of every group that can be cut. The head is always refused, and not counted as such. "
        "Peak: resident memory in GiB beyond the model and what was there before, while graphs are built and the "
        "network is pruned, activations included.",
        "",
        *opening,
        f"{counts['pass']} pass, {counts['refused']} refused, {counts['FAIL']} failed.",
        "",
        "| network | side | groups | refused | MACs kept | difference | in | graph, s | all, s | model, GiB | peak |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    reasons: dict[str, list[str]] = {}
    for name, row in rows.items():
        if row["outcome"] != "pass":
            lines.append(f"| {name} | {row['outcome']}: {row['error'][:300]} | | | | | | | | | |")
            continue
        refused = [(layer, why) for layer, why in row["refusals"] if why != "its channels are the network's output"]
        for layer, why in refused:
            general = re.sub(r"'[^']*'", "…", why)
            general = re.sub(r"\[[\d, ]+\]|\([\d, ]+\)|\b\d+ channels|\b\d+ but got.*", "…", general)
            reasons.setdefault(f"{name}: {general[:220]}", []).append(layer)
        macs = ", ".join(f"{share:.0%}" for share in row["macs"])
        lines.append(
            f"| {name} | {row['side']} | {row['groups']} | {len(refused)} | {macs} | {row['worst']:.1e} | "
            f"{row['precision']} | {row['graph_seconds']:.1f} | {row['seconds']:.1f} | {row['size']:.2f} | "
            f"{row['peak']:.2f} |"
        )
    lines += ["", "Refused groups, by the layer that names them:", ""]
    for reason, layers in reasons.items():
        shown = ", ".join(layers[:4]) + (f" and {len(layers) - 4} more" if len(layers) > 4 else "")
        lines.append(f"- {reason} ({shown})")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--only", nargs="*", default=["*"], help="patterns of names")
    parser.add_argument("--one", help="a single network, in this process, as JSON")
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--gib", type=int, default=16, help="of address space")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    if args.one:
        torch.set_num_threads(1)
        resource.setrlimit(resource.RLIMIT_AS, (args.gib << 30, args.gib << 30))
        print(json.dumps(one(args.one)))
        return
    opening, rows = header("python -m benchmarks.model_sweep"), {}
    for name in names():
        if any(fnmatchcase(name, pattern) for pattern in args.only):
            rows[name] = apart(name, args.seconds, args.gib)
            print(name, rows[name]["outcome"], rows[name].get("error", f"{rows[name].get('worst', 0):.1e}"), flush=True)
            if args.output:
                args.output.write_text(note(rows, opening), encoding="utf-8")


if __name__ == "__main__":
    main()
