"""Networks that cannot be pruned, or only in part: refused in words, or cut and proven."""

from pathlib import Path
from typing import Any

import pytest

from infoprune.io import storage

HEAD = """
import torch
from torch import nn
from torch.nn import functional as F

class Wrapped(nn.Module):
    def __init__(self, function, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self.function = function
    def forward(self, images):
        return self.function(self, images)

def ends(width, classes=3):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, classes))

def net():
    torch.manual_seed(0)
"""
PLAIN = "nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), nn.ReLU(), ends(4)"
NOTHING = "there is nothing to prune"
# The body of a user's `net`, and what is said: empty where it is pruned.
NETS = {
    "no network": ("return 3", "expected a torch.nn.Module"),
    "a class": ("return nn.Linear", "expected a torch.nn.Module"),
    "an error": ("raise ValueError('no')", "ValueError: no"),
    "a typing error": ("return nn.Conv3d(1)", "TypeError"),
    "no layers": ("return nn.Flatten()", "no convolution or linear layer"),
    "no convolution": ("return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))", ""),
    "no parameters": ("return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())", "no convolution or linear layer"),
    "one layer": ("return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))", NOTHING),
    "one convolution": ("return nn.Sequential(nn.Conv2d(1, 3, 8), nn.Flatten())", NOTHING),
    "identity": ("return nn.Identity()", "no convolution or linear layer"),
    "one filter each": ("return nn.Sequential(nn.Conv2d(1, 1, 3), nn.ReLU(), nn.Conv2d(1, 1, 3), ends(1))", NOTHING),
    "two filters": ("return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3), ends(2))", ""),
    "weights of zero": (
        f"net = nn.Sequential({PLAIN})\n    for p in net.parameters(): nn.init.zeros_(p)\n    return net",
        "",
    ),
    "dead filters everywhere": (
        f"net = nn.Sequential({PLAIN})\n    for i in (0, 2): nn.init.constant_(net[i].bias, -1e3)\n    return net",
        "",
    ),
    "one dead layer": (f"net = nn.Sequential({PLAIN})\n    nn.init.zeros_(net[2].weight)\n    return net", ""),
    "weights of NaN": (
        f"net = nn.Sequential({PLAIN})\n    nn.init.constant_(net[0].weight, float('nan'))\n    return net",
        "NaN",
    ),
    "weights of infinity": (
        f"net = nn.Sequential({PLAIN})\n    nn.init.constant_(net[2].bias, float('inf'))\n    return net",
        "infinity",
    ),
    "an output of NaN": (
        "return Wrapped(lambda s, x: s.b(s.a(x)) * float('nan'), a=nn.Conv2d(1, 6, 3), b=ends(6))",
        "puts out NaN or infinity; check its weights and the images' normalisation",
    ),
    "weights that decay in forward": (
        "def run(s, x):\n        s.a.weight.data.mul_(0.9)\n        return s.b(s.a(x))\n"
        "    return Wrapped(run, a=nn.Conv2d(1, 6, 3), b=ends(6))",
        "changes 'a.weight' in forward",
    ),
    "a recurrent layer behind a CNN": (
        "return Wrapped(lambda s, x: s.b(s.r(s.a(x).mean(2).transpose(1, 2))[0][:, -1]), b=nn.Linear(5, 3), "
        "a=nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3)), r=nn.GRU(4, 5, batch_first=True))",
        "",
    ),
    "large weights": (
        f"net = nn.Sequential({PLAIN})\n    nn.init.constant_(net[0].weight, 1e38)\n    return net",
        "NaN",
    ),
    "shared weights": (
        "conv = nn.Conv2d(4, 4, 3, padding=1)\n"
        "    return nn.Sequential(nn.Conv2d(1, 4, 3), conv, nn.ReLU(), conv, ends(4))",
        NOTHING,
    ),
    "a shared parameter": (
        "net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.Conv2d(6, 6, 3), nn.Conv2d(6, 6, 3), ends(6))\n"
        "    net[2].weight = net[1].weight\n    return net",
        NOTHING,
    ),
    "a layer never run": (
        f"net = nn.Sequential({PLAIN})\n    net[0].extra = nn.Conv2d(5, 5, 1)\n    return net",
        "",
    ),
    "dropout": ("return nn.Sequential(nn.Conv2d(1, 6, 3), nn.Dropout(0.5), nn.Conv2d(6, 4, 3), ends(4))", ""),
    "a batch norm without statistics": (
        "return nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6, track_running_stats=False), ends(6))",
        "",
    ),
    "a batch norm without weights": (
        "return nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6, affine=False), nn.ReLU(), ends(6))",
        "",
    ),
    "training only": (
        "return Wrapped(lambda s, x: s.b(s.d(s.a(x)) if s.training else s.a(x)), a=nn.Conv2d(1, 6, 3), "
        "d=nn.Dropout(), b=ends(6))",
        "",
    ),
    "a branch on values": (
        "return Wrapped(lambda s, x: s.b(s.a(x) if x.sum() > 0 else -s.a(x)), a=nn.Conv2d(1, 6, 3), b=ends(6))",
        "",
    ),
    "a branch on size": (
        "return Wrapped(lambda s, x: s.b(s.a(x) if len(x) > 1 else s.a(x) * 2), a=nn.Conv2d(1, 6, 3), b=ends(6))",
        None,
    ),
    "a loop": (
        "def run(s, x):\n        x = s.a(x)\n        for _ in range(3): x = torch.relu(s.c(x))\n        return s.b(x)\n"
        "    return Wrapped(run, a=nn.Conv2d(1, 6, 3), c=nn.Conv2d(6, 6, 3, padding=1), b=ends(6))",
        "",
    ),
    "at random": (
        "return Wrapped(lambda s, x: s.b(s.a(x) + torch.rand(1)), a=nn.Conv2d(1, 6, 3), b=ends(6))",
        "runs on the same images again",
    ),
    "a counter": (
        "def run(s, x):\n        s.n += 1\n        return s.b(s.a(x) * s.n)\n"
        "    net = Wrapped(run, a=nn.Conv2d(1, 6, 3), b=ends(6))\n    net.n = 0\n    return net",
        "runs on the same images again",
    ),
    "a fixed view": (
        "return Wrapped(lambda s, x: s.b(s.a(x).view(-1, 6 * 36)), a=nn.Conv2d(1, 6, 3), b=nn.Linear(216, 3))",
        NOTHING,
    ),
    "a fixed batch": (
        "return Wrapped(lambda s, x: s.b(s.a(x).view(8, -1)), a=nn.Conv2d(1, 6, 3), b=nn.Linear(216, 3))",
        "does not run",
    ),
    "two outputs": ("return Wrapped(lambda s, x: (s.b(s.a(x)), x), a=nn.Conv2d(1, 6, 3), b=ends(6))", None),
    "a mapping": ("return Wrapped(lambda s, x: {'out': s.b(s.a(x))}, a=nn.Conv2d(1, 6, 3), b=ends(6))", None),
    "no output": ("return Wrapped(lambda s, x: None, a=nn.Conv2d(1, 6, 3), b=ends(6))", None),
    "maps for logits": ("return nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), nn.Conv2d(6, 3, 3))", None),
    "one output": ("return nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), ends(6, 1))", None),
    "no outputs": ("return nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), ends(6, 0))", "puts out no number"),
    "detached": ("return Wrapped(lambda s, x: s.b(s.a(x).detach()), a=nn.Conv2d(1, 6, 3), b=ends(6))", None),
    "through NumPy": (
        "return Wrapped(lambda s, x: s.b(torch.from_numpy(s.a(x).detach().numpy())), a=nn.Conv2d(1, 6, 3), b=ends(6))",
        None,
    ),
    "frozen": (
        f"net = nn.Sequential({PLAIN})\n    for p in net.parameters(): p.requires_grad_(False)\n    return net",
        None,
    ),
    "half precision": (f"return nn.Sequential({PLAIN}).half()", "does not run"),
    "double precision": (f"return nn.Sequential({PLAIN}).double()", "does not run"),
    "on no device": (f"return nn.Sequential({PLAIN}).to('meta')", None),
    "lazy": ("return nn.Sequential(nn.LazyConv2d(6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3), ends(4))", None),
    "a recurrent layer": (
        "return Wrapped(lambda s, x: s.b(s.a(x.squeeze(1))[0][:, -1]), a=nn.LSTM(8, 6, batch_first=True), "
        "b=nn.Linear(6, 3))",
        None,
    ),
    "attention": (
        "return Wrapped(lambda s, x: s.b(s.a(*[x.squeeze(1)] * 3)[0].mean(1)), "
        "a=nn.MultiheadAttention(8, 2, batch_first=True), b=nn.Linear(8, 3))",
        None,
    ),
    "weight norm": (
        "conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 6, 3))\n"
        "    return nn.Sequential(conv, nn.ReLU(), nn.Conv2d(6, 4, 3), ends(4))",
        None,
    ),
    "a transposed convolution": (
        "return nn.Sequential(nn.Conv2d(1, 6, 3), nn.ConvTranspose2d(6, 4, 3), nn.ReLU(), ends(4))",
        None,
    ),
    "a bilinear layer": (
        "return Wrapped(lambda s, x: s.b(x.flatten(1), x.flatten(1)), b=nn.Bilinear(64, 64, 3))",
        None,
    ),
    "an embedding": ("return Wrapped(lambda s, x: s.a(x.long()).sum((1, 2, 3)), a=nn.Embedding(2, 3))", None),
    "jitted": (f"return torch.jit.trace(nn.Sequential({PLAIN}).eval(), torch.zeros(2, 1, 8, 8))", None),
    "a name of two dots": (
        "net = nn.Sequential(nn.Conv2d(1, 6, 3), nn.ReLU(), ends(6))\n"
        "    net.add_module('<script>alert(1)</script>', nn.Identity())\n    return net",
        "",
    ),
    "deep": (
        "return nn.Sequential(*[nn.Conv2d(1 if i == 0 else 4, 4, 3, padding=1) for i in range(20)], ends(4))",
        "",
    ),
}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.filterwarnings("ignore")  # what such a network makes torch say is its own affair
def test_networks(workshop: Any, tmp_path: Path, name: str) -> None:
    """Where nothing is said of a network, either end will do; the command's own proof stands behind each cut."""
    body, expected = NETS[name]
    (tmp_path / "nets.py").write_text(HEAD + "    " + body)
    recipe = tmp_path / "recipe.toml"
    text = "".join(line for line in workshop.recipe.read_text().splitlines(True) if "weights" not in line)
    recipe.write_text(text.replace(f"{workshop.folder}/nets.py", f"{tmp_path}/nets.py"))
    ending = workshop.step("evaluate", "finetune.epochs=0", recipe=recipe)
    if expected is not None:
        assert (ending.code == 2) == bool(expected), ending.said
        assert expected in ending.said
    if ending.code == 0:
        proof = storage.read_json(workshop.out / "metrics.json")["verification"]
        assert proof["max_rel_difference"] <= 1e-5


@pytest.mark.parametrize("size", [1, 3, 5, 15])
def test_a_last_batch_of_one(workshop: Any, size: int) -> None:
    """A batch norm cannot train on a single value per channel; on maps, and in evaluation, it can."""
    assert workshop.step("evaluate", f"run.batch_size={size}").code == 0
