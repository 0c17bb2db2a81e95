"""The benchmarks are not installed: their folder is the repository's."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2]))
