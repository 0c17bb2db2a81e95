"""Entropy of one large Gram matrix: exact, stochastic and low-rank, with stated and true errors, n to 8,192.

python -m benchmarks.information.large_batches [--largest 8192] [--output NOTE.md]
"""

import argparse
import time
from pathlib import Path

import torch

from benchmarks.information.machine import header
from infoprune.information.gram import filter_grams
from infoprune.information.traces import METHODS, estimate_entropy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--largest", type=int, default=8192)
    parser.add_argument("--dimensions", type=int, nargs="+", default=[2, 5, 100])
    parser.add_argument("--threads", type=int, help="of torch; processor seconds on one suffer least from others")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    dimensions = " ".join(map(str, options.dimensions))
    lines = header(
        f"python -m benchmarks.information.large_batches --largest {options.largest} --dimensions {dimensions}"
        + (f" --threads {options.threads}" if options.threads else "")
    )
    lines += [
        "Standard normal samples, default kernel width, α = 1. `exact` finds all eigenvalues; `stochastic` is 30 "
        "probes of 40 Lanczos steps, stated error one standard error; `low_rank` is pivoted Cholesky to 1e-6 of the "
        "trace, stated error an upper bound. One run each: the seconds are indicative, the errors are exact.",
        "",
        "| d | n | method | S, bit | stated error | true error | wall s | processor s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for dimension in options.dimensions:
        n = 512
        while n <= options.largest:
            generator = torch.Generator().manual_seed(n)
            gram = filter_grams(torch.randn(n, 1, dimension, generator=generator))[0]
            exact = 0.0
            for method in METHODS:
                if method == "low_rank" and dimension == 100:
                    continue  # the spectrum does not fall: the rank is n, and the route is the exact one in disguise
                start, busy = time.perf_counter(), time.process_time()
                found = estimate_entropy(gram, method=method, generator=generator)
                seconds, busy = time.perf_counter() - start, time.process_time() - busy
                if method == "exact":
                    exact = found.value
                line = (
                    f"| {dimension} | {n} | {method} | {found.value:.5f} | {found.error:.1e} | "
                    f"{abs(found.value - exact):.1e} | {seconds:.2f} | {busy:.2f} |"
                )
                print(line, flush=True)
                lines.append(line)
                if options.output:
                    options.output.write_text("\n".join(lines) + "\n")
            n *= 2


if __name__ == "__main__":
    main()
