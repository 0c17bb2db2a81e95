"""What the command line prints: progress, quiet, verbose and JSON; completion; and how it ends when interrupted."""

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from infoprune import cli
from infoprune.cli import display
from tests.cli.test_cli import QUICK, call

SCRIPT = Path(sys.executable).parent / "infoprune"
NOISY = QUICK[1:]  # the same overrides, without -q


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory in which everything up to export is there."""
    folder = tmp_path_factory.mktemp("runs") / "digits"
    for step in ("evaluate", "export"):
        result = call(step, "digits", "--out", folder, *QUICK)
        assert result.exit_code == 0, result.output
    return folder


@pytest.mark.parametrize("command", ["analyze", "plan", "prune", "repair", "finetune", "evaluate", "export", "inspect"])
def test_steps_print_json_and_nothing_else(done: Path, command: str) -> None:
    result = call(command, "digits", "--out", done, "--json", *NOISY)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) is not None
    assert result.stderr == ""


def test_json_says_what_the_files_say(done: Path) -> None:
    def said(*arguments: str) -> object:
        return json.loads(call(*arguments, "digits", "--out", done, "--json", *NOISY).stdout)

    assert said("analyze")["information_bottleneck"]["importance"]
    plan = json.loads((done / "plan.json").read_text())
    assert said("plan")["groups"] == plan["groups"]
    metrics = json.loads((done / "metrics.json").read_text())
    assert said("prune")["verification"] == metrics["verification"]
    assert said("evaluate") == {stage: metrics[stage] for stage in ("base", "pruned", "repaired", "finetuned")}
    explained = said("plan", "--explain", "layer1.0.conv1")
    assert explained["group"] == "layer1.0.conv1"
    assert dict(explained["known"])["why"]


@pytest.mark.parametrize("command", [["options"], ["options", "plan"], ["recipes"], ["doctor"]])
def test_commands_without_a_recipe_print_json(command: list[str]) -> None:
    result = call(*command, "--json")
    assert json.loads(result.stdout)
    assert result.stderr == ""


def test_every_command_has_its_help() -> None:
    for name, command in cli.main.commands.items():
        assert command.help, f"{name} says nothing of itself"
        assert call(name, "--help").exit_code == 0
        takes = {option for parameter in command.params for option in parameter.opts}
        if "recipe" in takes:
            assert {"--quiet", "--verbose", "--json", "--set", "--out"} <= takes
        elif name not in ("new", "completion"):
            assert "--json" in takes, f"{name} has no --json"


def test_quiet_leaves_the_results(done: Path) -> None:
    result = call("evaluate", "digits", "--out", done, *QUICK)
    assert "finetuned" in result.stdout
    assert result.stderr == ""
    assert "✓ evaluate (up to date)" in call("evaluate", "digits", "--out", done, *NOISY).stderr


def test_verbose_says_why_a_step_runs_again(done: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(done, tmp_path / "run")
    result = call("plan", "digits", "--out", folder, "-v", *NOISY, "--set", "plan.macs=0.6")
    assert result.exit_code == 0, result.output
    said = " ".join(result.stderr.split())
    assert "plan.json is made again; changed: options.macs" in said
    assert "device cpu" in said
    wrong = call("plan", "digits", "--out", folder, "-v", *NOISY, "--set", "plan.macs=0.0001")
    assert wrong.exit_code == 2
    assert "Traceback" in wrong.stderr


def test_a_long_step_tells_the_time_left_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    said = io.StringIO()
    monkeypatch.setattr(display, "err", Console(file=said, width=100))
    now = [0.0]
    with display.Display(clock=lambda: now[0]) as shown:
        shown.step("finetune", "running")
        for step in range(1, 101):
            now[0] += 1.0
            shown.advance("finetune", step, 100)
        shown.step("finetune", "done")
    lines = said.getvalue().splitlines()
    assert lines[0] == "  finetune …"
    # The rate is that since the first word of it, so that a resumed training is not thought to be fast.
    assert lines[1].startswith("  finetune: 11 of 100, 1 min 2")
    assert len(lines) == 2 + 9
    assert lines[-1] == "✓ finetune 1 min 40 s"


@pytest.mark.parametrize(("quiet", "expected"), [(False, True), (True, False)])
def test_a_terminal_gets_a_bar_and_quiet_nothing(monkeypatch: pytest.MonkeyPatch, quiet: bool, expected: bool) -> None:
    said = io.StringIO()
    monkeypatch.setattr(display, "err", Console(file=said, width=100, force_terminal=True))
    with display.Display(quiet) as shown:
        shown.advance("sensitivity", 3, 8)
        shown.bars.refresh()
        shown.advance("nobody knows how long", 3, 0)
        shown.bars.refresh()
    assert ("sensitivity" in said.getvalue()) == expected
    assert ("3/8" in said.getvalue()) == expected


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["recipes"], ["completion", "zsh"]])
def test_help_imports_no_torch(arguments: list[str]) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "infoprune", *arguments]
    found = subprocess.run(command, capture_output=True, text=True, check=True)
    imported = {line.rpartition("|")[2].strip().split(".")[0] for line in found.stderr.splitlines()}
    assert "click" in imported
    assert not imported & {"torch", "numpy", "scipy", "matplotlib", "onnx", "torchvision", "sklearn"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_ask_for_what_can_follow(shell: str) -> None:
    script = call("completion", shell)
    assert script.exit_code == 0
    assert f"_INFOPRUNE_COMPLETE={shell}_complete" in script.stdout
    words = {"COMP_WORDS": "infoprune run dig", "COMP_CWORD": "dig" if shell == "fish" else "2"}
    environment = {**os.environ, **words, "_INFOPRUNE_COMPLETE": f"{shell}_complete"}
    found = subprocess.run([SCRIPT], env=environment, capture_output=True, text=True, check=True)
    assert "digits" in found.stdout
    if program := shutil.which(shell):  # the shell itself reads its script without complaint
        subprocess.run([program, "-n"], input=script.stdout, text=True, check=True)


def test_bash_completes_commands_recipes_and_files(tmp_path: Path) -> None:
    bash = shutil.which("bash")
    assert bash is not None
    (tmp_path / "mine.toml").touch()
    (tmp_path / "completion").write_text(call("completion", "bash").stdout)
    ask = 'source completion; COMP_WORDS=(infoprune "$@"); COMP_CWORD=$#; _infoprune_completion infoprune; '
    path = f"{SCRIPT.parent}{os.pathsep}{os.environ['PATH']}"

    def completed(*words: str) -> list[str]:
        command = [bash, "-c", ask + 'echo "${COMPREPLY[@]}"', "bash", *words]
        found = subprocess.run(
            command, cwd=tmp_path, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
        )
        return found.stdout.split()

    assert completed("eval") == ["evaluate"]
    assert completed("run", "vgg") == ["vgg16_cifar10"]
    assert "--json" in completed("run", "--js")


INTERRUPTED = """
import os, signal, sys, time
from infoprune import cli
from infoprune.cli import interrupt as interrupting
from infoprune.pipeline import run
interrupting.GRACE = 0.5

def swallowed(job):
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(30)
    except BaseException:
        pass
    {then}

run.run_until = lambda context, last: swallowed(context)
cli.main({arguments})
"""


@pytest.mark.parametrize("then", ["time.sleep(30)", "raise AttributeError('half-loaded')", "raise KeyboardInterrupt"])
def test_interrupts_end_a_run_even_where_they_are_swallowed(tmp_path: Path, then: str) -> None:
    script = INTERRUPTED.format(then=then, arguments=["analyze", "digits", "-q", "--out", str(tmp_path)])
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert found.returncode == 130, found.stderr
    assert found.stderr == f"interrupted; what is done is in {tmp_path}, and the same command again goes on\n"


def test_interrupts_that_code_raises_itself(tmp_path: Path) -> None:
    script = (
        "from infoprune import cli\nfrom infoprune.pipeline import run\n"
        "def raising(context, last):\n    raise KeyboardInterrupt\n"
        f"run.run_until = raising\ncli.main(['analyze', 'digits', '-q', '--out', {str(tmp_path)!r}])"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert found.returncode == 130, found.stderr
    assert found.stderr == f"interrupted; what is done is in {tmp_path}, and the same command again goes on\n"


def test_interrupted_without_a_run() -> None:
    script = (
        "import os, signal; from infoprune import cli; from infoprune.cli import diagnosis as diagnosing; "
        "diagnosing.diagnose = lambda: os.kill(os.getpid(), signal.SIGINT); cli.main(['doctor'])"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (found.returncode, found.stderr) == (130, "interrupted\n")


def test_the_promised_recipes_are_listed_with_a_line_each() -> None:
    lines = json.loads(call("recipes", "--json").stdout)
    promised = ["digits", "lenet5_mnist", "resnet20_cifar10", "resnet56_cifar10", "vgg16_cifar10", "alexnet_fruits360"]
    assert {*promised, "mobilenetv2_nips2017", "resnet50_imagenet"} <= lines.keys()
    assert all(20 < len(line) < 110 for line in lines.values())
    assert call("recipes", "-q").stdout.split() == list(lines)
