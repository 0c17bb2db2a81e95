"""What happens to a run directory whose process is killed, whose files are damaged, or whose inputs change.

python -m benchmarks.faults [--output NOTE.md]                      all four tables
python -m benchmarks.faults --kills 100 [--seed 0]                  kills at moments drawn by chance
python -m benchmarks.faults --damage | --foreign | --stale          one of the other tables
python -m benchmarks.faults --steps                                 a kill before a file of each step
"""

import argparse
import re
import sys
import tempfile
from collections import Counter
from pathlib import Path

import torch

from benchmarks.faults import damage, foreign, kills, stale
from benchmarks.faults.project import Project
from benchmarks.information.machine import header

KILLS = 100
TITLES = {
    "damage": "Damaged artifacts",
    "foreign": "Files of the user's in the folder",
    "stale": "Changed inputs",
    "kills": "Killed runs",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int)
    parser.add_argument("--seed", type=int, default=0)
    for table in ("damage", "foreign", "stale", "steps"):
        parser.add_argument(f"--{table}", action="store_true")
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    asked = [table for table in TITLES if getattr(args, table)] or list(TITLES)
    about = header(f"python -m benchmarks.faults {' '.join(sys.argv[1:])}".strip())
    parts: list[str] = []
    total: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if args.steps:
            kills.steps(folder)
            return
        for table in asked:
            lines, found = _measured(table, folder, args.kills or KILLS, args.seed)
            parts += [f"## {TITLES[table]}", "", f"{found.total()} cases.", "", *lines, ""]
            total += found
    lines = ["# Faults", "", *about, *_sums(total), "", *parts]
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n"
    print(text)
    if args.output:
        args.output.write_text(text, encoding="utf-8")
    sys.exit(any(total[outcome] for outcome in (*kills.BAD, *damage.BAD, *foreign.BAD, *stale.BAD)))


def _measured(table: str, folder: Path, count: int, seed: int) -> tuple[list[str], Counter[str]]:
    if table == "kills":
        return kills.measure(folder, count, seed)
    if table == "stale":
        return stale.measure(folder)
    project = Project(folder / f"project-{table}")
    return damage.measure(project, folder) if table == "damage" else foreign.measure(project, folder)


def _sums(total: Counter[str]) -> list[str]:
    rows = {
        "cases": total.total(),
        "files of the user's touched": total[foreign.TOUCHED],
        "damaged artifacts accepted": total[damage.ACCEPTED],
        "stale artifacts accepted": total[stale.ACCEPTED],
        "tracebacks": total[damage.TRACEBACK],
        "otherwise not as specified": sum(
            total[each] for each in {kills.OTHERWISE, foreign.OTHERWISE, damage.NAMELESS, stale.UNNAMED, stale.NEEDLESS}
        ),
    }
    return ["| | |", "|---|---|", *(f"| {name} | {count} |" for name, count in rows.items())]


if __name__ == "__main__":
    main()
