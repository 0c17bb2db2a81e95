"""The command line as a user meets it: exit codes, messages, and a quick start."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from infoprune import cli

QUICK = ["finetune.epochs=0", "evaluate.latency_repeats=2", "calibration.batches=2", "plan.allocation=uniform"]
QUICK = ["-q", *(part for override in QUICK for part in ("--set", override))]


def call(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def test_help_is_a_map_of_the_job() -> None:
    result = call("--help")
    assert result.exit_code == 0
    listed = ["run", "train", "inspect", "widths", "depth", "check-estimator", "options", "recipes", *cli.STEPS]
    assert all(f"\n  {name} " in result.output for name in listed)


def test_starting_up_imports_nothing_heavy() -> None:
    script = "import sys, infoprune.cli; print(sorted({'torch', 'numpy', 'matplotlib', 'onnx'} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_module_runs_as_a_command(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "infoprune", "plan", "digits", "--out", str(tmp_path / "run"), *QUICK]
    found = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert found.returncode == 0, found.stderr
    assert "layer1.0.conv1" in found.stdout
    assert json.loads((tmp_path / "run" / "plan.json").read_text())["groups"]


def test_run_ends_with_the_table(tmp_path: Path) -> None:
    result = call("run", "digits", "--out", tmp_path, *QUICK)
    assert result.exit_code == 0, result.output
    for stage in ("base", "pruned", "repaired", "finetuned"):
        assert stage in result.output
    assert (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "digit"], "did you mean 'digits'"),
        (["run", "digits", "--set", "finetune.epoch=3"], "no option 'epoch' in [finetune]; did you mean 'epochs'?"),
        (["run", "digits", "--set", "finetune.epochs=three"], "expected a whole number from 0 to 100,000, got str"),
        (["run", "digits", "--set", "plan.rank_by=nothing"], "no analysis 'nothing'"),
        (["run", "digits", "--set", "plan.macs=0.0001"], "the smallest reachable is"),
        (["run", "digits", "--set", "model.weights=gone.pth"], "no file 'gone.pth'"),
        (["run", "digits", "--set", "model.classes=4"], "does not fit"),
        (["analyze", "digits", "--set", "analyses.information_bottleneck.beta=-1"], "expected a number from 0"),
        (["plan"], "Missing argument 'RECIPE'"),
        (["options", "finetun"], "did you mean 'finetune'"),
        (["check-estimator", "--rule", "nothing"], "nothing"),
        (["check-estimator", "--alpha", "-1"], "alpha"),
        (["no-such-command"], "No such command"),
    ],
)
def test_mistakes_end_with_2_and_a_message(arguments: list[str], message: str, tmp_path: Path) -> None:
    if len(arguments) > 1 and arguments[0] in ("run", "analyze"):
        arguments = [*arguments, "--out", str(tmp_path / "run")]
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output


def test_unwritable_run_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    result = call("analyze", "digits", "--out", tmp_path / "file" / "run", *QUICK)
    assert result.exit_code == 2
    assert "choose another folder with --out" in " ".join(result.output.split())
    assert (tmp_path / "file").read_text() == "mine"


def user_files(folder: Path) -> Path:
    """A user's own model and data, with a recipe for them."""
    (folder / "nets.py").write_text(
        "import torch\nfrom torch import nn\n"
        "def net(width, poison=False, prunable=True):\n"
        "    middle = [nn.Conv2d(1, width, 3), nn.ReLU(), nn.Conv2d(width, width, 3), nn.ReLU()] if prunable else []\n"
        "    model = nn.Sequential(*middle, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.LazyLinear(3))\n"
        "    model(torch.zeros(1, 1, 10, 10))\n"
        "    if poison:\n        nn.init.constant_(model[0].weight, float('nan'))\n"
        "    return model\n"
    )
    (folder / "data.py").write_text(
        "import torch\nfrom torch.utils.data import TensorDataset\nfrom infoprune.data.dataset import Data\n"
        "def nothing():\n    return 3\n"
        "def load(top=2):\n"
        "    generator = torch.Generator().manual_seed(0)\n"
        "    labels = torch.arange(96) % (top + 1)\n"
        "    images = torch.randn(96, 1, 10, 10, generator=generator) + labels.view(-1, 1, 1, 1)\n"
        "    part = TensorDataset(images, labels)\n"
        "    return Data('own', part, part, part, 3, lambda x: x, 'v1')\n"
    )
    (folder / "own.toml").write_text(
        "# own\n[model]\nname = 'nets.py:net'\nwidth = 8\n[data]\nname = 'data.py:load'\n"
        "[calibration]\nbatches = 2\nbatch_size = 32\n[finetune]\nepochs = 1\n[evaluate]\nlatency_repeats = 2\n"
    )
    return folder / "own.toml"


def test_users_own_model_and_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = call("run", user_files(tmp_path), "-q")
    assert result.exit_code == 0, result.output
    metrics = json.loads((tmp_path / "runs" / "own" / "metrics.json").read_text())
    assert metrics["pruned"]["macs"] <= 0.5 * metrics["base"]["macs"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.top=3", "labels"),
        ("model.poison=true", "NaN or infinity"),
        ("model.prunable=false", "there is nothing to prune"),
        ("model.wide=3", "do not fit 'nets.py:net'"),
        ("model.name=nets.py:nett", "did you mean 'net'"),
        ("model.name=gone.py:net", "no file 'gone.py'"),
        ("data.name=data.py:nothing", "gave a int, expected infoprune.data.dataset.Data"),
        ("calibration.batch_size=97", "holds fewer"),
    ],
)
def test_mistakes_in_users_own_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, override: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    result = call("run", user_files(tmp_path), "-q", "--set", override)
    assert result.exit_code == 2, result.output
    assert message in " ".join(result.output.split())


def test_options_are_printed_from_signatures() -> None:
    result = call("options", "plan")
    assert "rank_by" in result.output
    assert "min_share" in result.output
    listed = call("options").output.split()
    assert {"run", "plan", "finetune", "model.cifar_resnet", "data.digits", "analyses.taylor"} <= set(listed)


def test_recipes_are_listed() -> None:
    result = call("recipes")
    assert "digits" in result.output
    assert "resnet56_cifar10" in result.output


def test_check_estimator_prints_truth_beside_estimate() -> None:
    result = call("check-estimator", "--samples", "32", "--repeats", "1", "--permutations", "2", "--json")
    rows = json.loads(result.output)
    assert any(row["truth"] == 1.0 and row["raw"] == pytest.approx(1.0) for row in rows)
    assert call("check-estimator", "--samples", "32", "--repeats", "1", "--permutations", "2").exit_code == 0


def test_interrupted_run_goes_on(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "infoprune",
        "run",
        "digits",
        "--out",
        str(tmp_path),
        "--set",
        "finetune.epochs=200",
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "NO_COLOR": "1"})
    deadline = time.monotonic() + 300  # a busy machine
    while not (tmp_path / "repaired.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    process.send_signal(2)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert said.splitlines()[-1] == f"interrupted; what is done is in {tmp_path}, and the same command again goes on"
    result = call("repair", "digits", "--out", tmp_path)
    assert result.output.count("up to date") == 5


def test_model_that_refuses_the_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = user_files(tmp_path)
    (tmp_path / "nets.py").write_text(
        "from torch import nn\nclass net(nn.Conv2d):\n"
        "    def __init__(self, width):\n        super().__init__(1, width, 1)\n"
        "    def forward(self, images):\n        assert images.shape[-1] == 224, 'expected 224'\n"
    )
    result = call("plan", recipe, "-q")
    assert result.exit_code == 2, result.output
    assert "does not run on an input of shape (1, 1, 10, 10): expected 224" in " ".join(result.output.split())


def test_two_runs_in_one_directory_are_kept_apart(tmp_path: Path) -> None:
    script = (
        "import sys, time; from pathlib import Path; from infoprune.pipeline.run_directory import RunDirectory; "
        f"mine = RunDirectory(Path({str(tmp_path)!r})); mine.claim(); print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        result = call("inspect", "digits", "--out", tmp_path, *QUICK)
        assert result.exit_code == 2
        assert "another process is working in" in " ".join(result.output.split())
        other.kill()  # a killed process leaves no lock behind
        other.wait()
    assert call("inspect", "digits", "--out", tmp_path, *QUICK).exit_code == 0
