"""Plans and masks with every field changed: refused, or what they say is done."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from infoprune.config import registry
from infoprune.io import checkpoint, storage

CHANGES: list[Any] = [None, -1, 0, 10**12, 10**30, 2.5, True, "x", "", [], [0], {}, {"x": 1}]


def changed(value: Any, path: tuple[Any, ...], change: Any) -> Any:
    """A copy with one place changed; `...` takes it away."""
    found = copy.deepcopy(value)
    here = found
    for key in path[:-1]:
        here = here[key]
    if change is ...:
        del here[path[-1]]
    else:
        here[path[-1]] = change
    return found


def silenced(net: nn.Module, kept: dict[str, list[int]], images: Tensor) -> Tensor:
    """What the network computes whose other channels are silent, by hand: behind the norm, and behind the second."""
    hooks = []
    for group, layer in (("first", net.norm), ("second", net.second)):
        mask = torch.zeros(net.get_submodule(group).out_channels)
        mask[kept.get(group, list(range(len(mask))))] = 1
        mask = mask.view(1, -1, 1, 1)
        hooks.append(layer.register_forward_hook(lambda _, __, maps, mask=mask: maps * mask))
    with torch.no_grad():
        expected = net(images)
    for hook in hooks:
        hook.remove()
    return expected


def proven(workshop: Any) -> None:
    """The pruned file of the run directory computes what its plan says, judged without the package's own proof."""
    plan = storage.read_json(workshop.out / "plan.json")
    kept = {group["group"]: group["kept"] for group in plan["groups"]}
    build = registry.find("models", f"{workshop.folder}/nets.py:net")
    net = build().eval()
    net.load_state_dict(storage.read_tensors(workshop.weights))
    pruned, images = checkpoint.load(workshop.out / "pruned.safetensors", build()), torch.randn(4, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(pruned(images), silenced(net, kept, images), rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def done(workshop: Any) -> Any:
    """A run directory that went all the way, and what lies in it."""
    assert workshop.step("report").code == 0
    return workshop


def test_the_whole_plan_is_proven(done: Any) -> None:
    proven(done)


FIELDS = ["group", "kept", "width_before", "width_after", "macs_before", "macs_after", "reason"]
HEADS = ["groups", "refused", "macs_before", "macs_after", "input_shape", "notes", "removed"]
PLACES = [*(("groups", number, field) for number in (0, 1) for field in FIELDS), *((head,) for head in HEADS)]


@pytest.mark.parametrize("path", PLACES, ids=str)
def test_changed_plans(done: Any, path: tuple[Any, ...]) -> None:
    """Every field with every wrong value, or taken away."""
    file = done.out / "plan.json"
    whole = file.read_text()
    try:
        for change in (..., *CHANGES):
            value = json.loads(whole)
            if change is not ... and change == value[path[0]] and len(path) == 1:
                continue
            file.write_text(json.dumps(changed(value, path, change)))
            if done.step("prune").code == 0:
                proven(done)
    finally:
        file.write_text(whole)


KEPT = {
    "twice the same": [0, 0],
    "falling": [2, 0],
    "below zero": [-1, 0],
    "too large": [0, 4],
    "none": [],
    "text": ["0", "1"],
    "shares": [0.5, 1.0],
    "no numbers": [None, True],
    "nested": [[0], [1]],
    "more than there are": list(range(50)),
}


@pytest.mark.parametrize("name", KEPT)
@pytest.mark.parametrize("number", [0, 1])
def test_wrong_channels(done: Any, name: str, number: int) -> None:
    file = done.out / "plan.json"
    whole = file.read_text()
    plan = json.loads(whole)
    plan["groups"][number].update(kept=KEPT[name], width_after=len(KEPT[name]))
    try:
        file.write_text(json.dumps(plan))
        if name == "too large" and number == 1:  # the second layer has six
            assert done.step("prune").code == 0
            proven(done)
        else:
            assert plan["groups"][number]["group"] in (said := done.refuses("prune")) or "plan.json" in said
    finally:
        file.write_text(whole)


MASKS = {
    '{"first": [0, 1], "second": [0, 5]}': "",
    '{"first": [0]}': "",
    "{}": "",
    '{"first": []}': "is empty",
    '{"first": [0, 0]}': "not sorted",
    '{"first": [1, 0]}': "not sorted",
    '{"first": [-1]}': "each from 0 to 65,535",
    '{"first": [0, 4]}': "runs from 0 to 4",
    '{"first": [1000000000000]}': "each from 0 to 65,535",
    '{"first": [99999999999999999999999999]}': "mask",
    '{"first": [0.5]}': "is no mask file",
    '{"first": ["0"]}': "is no mask file",
    '{"first": [null]}': "is no mask file",
    '{"first": [true]}': "is no mask file",
    '{"first": 0}': "is no mask file",
    '{"first": {"0": 1}}': "is no mask file",
    '{"first": null}': "is no mask file",
    '{"third": [0]}': "no layer with filters",
    '{"": [0]}': "no layer with filters",
    '{"../first": [0]}': "no layer with filters",
    '{"norm": [0]}': "",
    '{"head": [0]}': "stays whole",
    '{"first": [0], "norm": [1]}': "mask",
    "[]": "is no mask file",
    "null": "is no mask file",
    "": "is no mask file",
    "{": "is no mask file",
    '{"first": [0]} x': "is no mask file",
    '{"first": [NaN]}': "is no mask file",
    "[" * 10_000: "is no mask file",
    '{"first": [' + "0," * 100_000 + "0]}": "not sorted",
}


@pytest.mark.parametrize("text", MASKS, ids=lambda text: text[:40])
def test_masks(done: Any, tmp_path: Path, text: str) -> None:
    file = tmp_path / "masks.json"
    file.write_text(text)
    ending = done.step("prune", f"plan.masks='{file}'")
    assert (ending.code == 2) == bool(MASKS[text]), ending.said
    assert MASKS[text] in ending.said
    if not MASKS[text]:
        proven(done)
