"""Measure how much margins vary for an unchanged checkpoint: see `clipcheck.gates.registry`.

Reads the results of checks of the same files with several seeds, numbers of threads and versions of
torch. Prints for each gate the ratio of the largest to the smallest margin of a file in a dtype.

    for arch in tiny-vit tiny-resnet; do
      clipcheck synthesize $arch -o $arch.pt
      for threads in 1 2; do for seed in 0 1 2 3 4 5 6 7 8 9; do
        for dtype in float32 float16 bfloat16; do
          OMP_NUM_THREADS=$threads clipcheck check $arch.pt --seed $seed --dtype $dtype \\
            --json noise-$arch-$threads-$seed-$dtype.json
        done
      done; done
    done
    python -m benchmarks.noise noise-*.json

To add the effect of an upgrade, run the loop on the same files with another version of torch.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

from clipcheck.results.history import read_results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="+", type=Path, metavar="JSON")
    margins: dict[str, dict[object, list[float]]] = defaultdict(lambda: defaultdict(list))
    for path in parser.parse_args().results:
        for entry in read_results(path).entries:
            for gate in entry.gates:
                margins[gate.name][entry.sha256, entry.dtype].append(gate.margin)
    for name, found in margins.items():
        factors = [max(each) / min(each) if min(each) else 1.0 for each in found.values()]
        print(f"{name:<12} {sum(map(len, found.values())):>4} runs, factor {max(factors):.2f}")


if __name__ == "__main__":
    main()
