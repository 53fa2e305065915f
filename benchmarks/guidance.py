"""Compare searches with and without `hypothesis.target`, on faults that show on few inputs.

Each fault adds an error to chosen inputs: a step, as most planted faults, or an error that grows
with the input. A search of 100 examples has found the fault if the error is 8 times the usual.
With guidance Hypothesis gets the error of every example, which it then tries to increase.

    python -m benchmarks.guidance
"""

from __future__ import annotations

import argparse
import math
import warnings
from collections.abc import Callable

import numpy as np
from hypothesis import HealthCheck, Phase, Verbosity, given, seed, settings, target
from hypothesis.strategies import SearchStrategy

from clipcheck.inputs.examples import Preprocessing
from clipcheck.inputs.strategies import images, prompts, token_ids

EXAMPLES = 100
PREPROCESSING = Preprocessing(resolution=32, context_length=77)

Excess = Callable[[np.ndarray], float]


def most_often(row: np.ndarray) -> int:
    return int(np.bincount(row[1 : row.argmax()], minlength=1).max())


ON_IMAGES: dict[str, Excess] = {
    "highlights above 2.1, grows": lambda x: 1e4 * float((np.clip(x - 2.1, 0, None) ** 2).mean()),
    "contrast above 1.5, grows": lambda x: 25 * max(0.0, float(x.std()) - 1.5),
    "a corner all black, step": lambda x: 100.0 * (x[:, :8, :8].max() < -1.7),
    "left bright and right dark, step": lambda x: (
        100.0 * (x[:, :, :16].mean() > 1.2 and x[:, :, 16:].mean() < -1.2)
    ),
}
ON_PROMPTS: dict[str, Excess] = {
    "over 10 ids above 40,000, grows": lambda row: max(
        0.0, float(((row > 40_000) & (row < 49_406)).sum()) - 10
    ),
    "one id over 10 times, grows": lambda row: 0.5 * max(0, most_often(row) - 10),
    "ids 31,000 to 31,100, step": lambda row: 100.0 * ((row >= 31_000) & (row < 31_100)).any(),
    "longer than 74, step": lambda row: 100.0 * (row.argmax() >= 74),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=12)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    pixels = images(max_side=128).map(PREPROCESSING.pixels)
    tokens = prompts().map(PREPROCESSING.tokens) | token_ids()
    print("| fault | found without guidance | with |")
    print("|---|---|---|")
    totals = [0, 0]
    for strategy, faults in ((pixels, ON_IMAGES), (tokens, ON_PROMPTS)):
        for name, excess in faults.items():
            found = [
                sum(finds(strategy, excess, number, guided) for number in range(arguments.seeds))
                for guided in (False, True)
            ]
            totals = [total + count for total, count in zip(totals, found, strict=True)]
            print(f"| {name} | {found[0]} of {arguments.seeds} | {found[1]} |", flush=True)
    print(f"| all | {totals[0]} | {totals[1]} |")


def finds(strategy: SearchStrategy[np.ndarray], excess: Excess, number: int, guided: bool) -> bool:
    found: list[float] = []
    phases = [Phase.generate, Phase.target] if guided else [Phase.generate]

    @settings(
        max_examples=EXAMPLES,
        database=None,
        deadline=None,
        phases=phases,
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.quiet,
    )
    @seed(number)
    @given(strategy)
    def look(x: np.ndarray) -> None:
        ratio = 1 + excess(x)
        if guided:
            target(math.log(ratio))
        if ratio > 8:
            found.append(ratio)

    look()
    return bool(found)


if __name__ == "__main__":
    main()
