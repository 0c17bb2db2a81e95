"""Mutation testing: small faults go into the code, one at a time, and the tests have to see each.

    pip install cosmic-ray
    python -m benchmarks.mutations [--each 8] [--seed 0] [--only infoprune/pruning/prune.py …] [--output NOTE.md]

cosmic-ray makes the faults (another operator, a number one off, a condition turned round); of each module some are
drawn at random. They go into a copy of the checkout, never into this one. A fault is killed where a test of that part
fails or does not end; what survives is listed as a difference, to be killed by a test or explained. Every try is a fork
of a process that has imported the libraries, but nothing of this package.
"""

import argparse
import difflib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import beartype  # noqa: F401
import pytest
import torch
import torch.fx
import torch_pruning  # noqa: F401
import torchvision  # noqa: F401
from cosmic_ray.ast import ast_nodes, get_ast_from_path
from cosmic_ray.mutating import use_mutation
from cosmic_ray.plugins import get_operator, operator_names

from benchmarks.information.machine import header

# The tests that know a part; each module's own examples come first.
PARTS = {
    "infoprune/information": ["tests/information", "tests/analyses"],
    "infoprune/planning": [
        *("tests/planning", "tests/graph/test_costs.py", "tests/pipeline/test_advise.py"),
    ],
    "infoprune/pruning/prune.py": [
        f"tests/pruning/test_{name}.py" for name in ("prune", "silent_failures", "norms", "verify", "users_modules")
    ],
}
# Unions of types and of options, where another operator is no program at all; decorators are no behaviour of ours.
SENSELESS = ("BinaryOperator_BitOr", "RemoveDecorator", "Is_", "_Is")
SECONDS = 120


def faults(path: Path) -> list[tuple[str, int]]:
    """All faults for a file: an operator of cosmic-ray, and which of the places where it applies."""
    tree, found, lines = get_ast_from_path(path), [], path.read_text(encoding="utf-8").splitlines()

    def separates(line: int, column: int) -> bool:
        """Whether this is the star behind which arguments have names, which cosmic-ray takes for a product."""
        return lines[line - 1][column : column + 2] == "*,"

    for name in operator_names():
        operator = get_operator(name)
        if operator.arguments() or any(part in name for part in SENSELESS):
            continue
        places = [start for node in ast_nodes(tree) for start, _ in operator().mutation_positions(node)]
        found += [(name, number) for number, start in enumerate(places) if not separates(*start)]
    return found


def outcome(tests: list[str]) -> str:
    """Runs tests in a fork: "survived" where all pass, else "killed", also where they do not end."""
    sys.stdout.flush()
    process = os.fork()
    if process == 0:
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1), os.dup2(silence, 2)
        os.setpgid(0, 0)
        # What is imported already cannot have its assertions rewritten, and needs not.
        quiet = ["-W", "ignore::pytest.PytestAssertRewriteWarning", "-p", "no:cacheprovider"]
        os._exit(int(pytest.main(["-x", "-q", *quiet, *tests])))
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return "survived" if os.waitstatus_to_exitcode(status) == 0 else "killed"
        time.sleep(0.05)
    os.killpg(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return "killed"


def tried(path: Path, tests: list[str], each: int, seed: int, before: str) -> Iterator[tuple[str, str]]:
    """The outcome of each fault that is drawn, and the fault as a difference of lines; `before` is an earlier note."""
    every = faults(path)
    # As long as a module has as many possible faults, the same ones are drawn, and what was killed stays killed.
    known = f"| {path} | {len(every)} | {min(each, len(every))} |" in before
    for name, number in random.Random(f"{seed} {path}").sample(every, min(each, len(every))):
        with use_mutation(path, get_operator(name)(), number) as (sound, broken):
            lines = difflib.unified_diff(sound.splitlines(), broken.splitlines(), str(path), str(path), "", "", 1, "")
            fault = "\n".join(list(lines)[2:])
            yield "killed" if known and fault not in before else outcome([str(path), *tests]), fault


def main() -> None:
    """Prints the note."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--each", type=int, default=8, help="faults per module")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", default=[], help="these modules")
    parser.add_argument("--again", type=Path, help="an earlier note of the same draw: only its survivors are tried")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    sys.dont_write_bytecode = True
    here, command = Path.cwd(), f"python -m benchmarks.mutations {' '.join(sys.argv[1:])}"
    rows, survivors, counts = [], [], [0, 0]
    before = args.again.read_text(encoding="utf-8") if args.again else ""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        ignored = shutil.ignore_patterns(".*", "runs", "__pycache__", "build", "dist")
        shutil.copytree(here, copy, ignore=ignored)
        os.chdir(copy)
        sys.path[0] = str(copy)
        for part, tests in PARTS.items():
            paths = [Path(part)] if part.endswith(".py") else sorted(Path(part).glob("*.py"))
            paths = [path for path in paths if not args.only or str(path) in args.only]
            if paths and outcome([part, *tests]) != "survived":
                raise SystemExit(f"the tests of {part} fail before anything is changed")
            for path in paths:
                found = list(tried(path, tests, args.each, args.seed, before))
                killed = sum(how == "killed" for how, _ in found)
                counts = [counts[0] + killed, counts[1] + len(found)]
                rows.append(f"| {path} | {len(faults(path))} | {len(found)} | {killed} |")
                print(rows[-1], flush=True)
                print("\n".join(fault for how, fault in found if how == "survived"), flush=True)
                survivors += [(path, fault) for how, fault in found if how == "survived"]
        os.chdir(here)
    lines = ["# Mutation testing", "", *header(command), "", f"{counts[0]} of {counts[1]} faults are killed.", ""]
    lines += ["| module | possible faults | tried | killed |", "|---|---|---|---|", *rows, "", "## Survivors", ""]
    lines += [f"`{path}`\n\n```diff\n{fault}\n```\n" for path, fault in survivors]
    print("\n".join(lines))
    if args.output:
        args.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
