from __future__ import annotations

from itertools import permutations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from clipcheck.checkpoints.architecture import ARCHITECTURES, Architecture
from clipcheck.checkpoints.keys import specs
from clipcheck.families.eager import build
from clipcheck.sweep.cost import Flops, Rates, flops, makespan, rates, seconds_of_check
from tests.samples import MINUTE
from tests.thorough import parametrize

RATES = Rates(
    machine="a machine",
    fixed=2.0,
    start=5.0,
    per_gigabyte=1.0,
    per_gigaflop={1: 0.5, 4: 0.25},
    build={"compile": 60.0},
    fetch=100.0,
)


def counted(architecture: Architecture) -> Flops:
    """Count the eager model's operations with torch's own counter."""
    with torch.device("meta"):
        tensors = {key: torch.zeros(spec.shape) for key, spec in specs(architecture)}
        model = build(architecture, tensors)
        images = torch.zeros(1, 3, architecture.image_resolution, architecture.image_resolution)
        texts = torch.zeros(1, architecture.context_length, dtype=torch.long)
    found = []
    for call, given_ in ((model.encode_image, images), (model.encode_text, texts)):
        with FlopCounterMode(display=False) as counter:
            call(given_)
        found.append(counter.get_total_flops() / 1e9)
    return Flops(*found)


@parametrize("name", sorted(ARCHITECTURES, key=["RN50", "ViT-B/32"].__contains__, reverse=True))
def test_operations_are_those_that_torch_counts(name: str) -> None:
    architecture = ARCHITECTURES[name]
    image, text = counted(architecture)
    assert flops(architecture).image == pytest.approx(image, rel=0.01)
    assert flops(architecture).text == pytest.approx(text, rel=0.01)


def test_seconds_have_a_fixed_part_one_for_bytes_and_one_for_operations() -> None:
    def seconds(gigaflops: float, size: int = 0, threads: int = 1) -> float:
        one = Flops(gigaflops, 0.0)
        return seconds_of_check(one, size, ["jit"], "float32", 10, threads, RATES)

    assert seconds(0.0) == 2.0
    assert seconds(0.0, size=3 * 10**9) == 5.0
    per_image = seconds(1.0) - seconds(0.0)
    assert seconds(7.0) - seconds(0.0) == pytest.approx(7 * per_image)
    # 10 passes of 10 images at half a second: 3 for all backends, and 7 of the archive.
    assert per_image == pytest.approx(10 * 0.5 * 88 / 9)
    assert seconds(1.0, threads=4) - 2.0 == pytest.approx(per_image / 2)
    assert seconds(1.0, threads=3) == seconds(1.0)


def test_a_backend_that_is_built_takes_that_time_as_well() -> None:
    nothing = Flops(0.0, 0.0)

    def seconds(*backends: str) -> float:
        return seconds_of_check(nothing, 0, backends, "float32", 10, 1, RATES)

    assert seconds("compile:dynamic=auto") == 62.0
    assert seconds("jit", "compile") == 62.0


def test_another_backend_costs_less_than_another_check() -> None:
    one = Flops(1.0, 1.0)
    alone = seconds_of_check(one, 0, ["trace"], "float32", 10, 1, RATES)
    both = seconds_of_check(one, 0, ["trace", "script"], "float32", 10, 1, RATES)
    assert alone < both < 2 * alone


def test_modules_are_looked_into_in_archives_and_in_float32_alone() -> None:
    def seconds(backend: str, dtype: str) -> float:
        return seconds_of_check(Flops(1.0, 0.0), 0, [backend], dtype, 10, 1, RATES)

    assert seconds("jit", "float32") == seconds("", "") > seconds("jit", "float16")
    assert seconds("trace", "float32") == seconds("jit", "float16")


def test_what_is_not_known_is_guessed_by_its_size() -> None:
    known = flops(ARCHITECTURES["ViT-B/32"])
    arguments = (354_000_000, ["jit"], "float32", 30, 1)
    guessed = seconds_of_check(None, *arguments)
    assert guessed == pytest.approx(seconds_of_check(known, *arguments), rel=0.5)


def test_one_worker_takes_the_sum_and_many_take_the_longest() -> None:
    seconds = [1.0, 2.0, 3.0, 10.0]
    assert makespan(seconds, 1, measured=RATES) == 5.0 + 16.0
    assert makespan(seconds, 64, measured=RATES) == 5.0 + 10.0
    assert makespan([], 8, measured=RATES) == 0.0


def test_downloads_are_bounded_by_the_shared_connection() -> None:
    assert makespan([1.0] * 10, 10, 10_000, RATES) == 100.0
    assert makespan([1.0] * 10, 10, 100, RATES) == 6.0


@given(st.lists(st.floats(0.1, 100.0), min_size=1, max_size=6), st.integers(1, 4))
def test_longest_first_is_within_a_third_of_the_best(seconds: list[float], workers: int) -> None:
    """Graham 1969: (4/3 - 1/(3 m)) times the best, and never better than that."""
    took = makespan(seconds, workers, measured=RATES) - RATES.start
    best = min(listed(order, workers) for order in permutations(seconds))
    assert best - 1e-9 <= took <= best * (4 / 3) + 1e-9


def listed(order: tuple[float, ...], workers: int) -> float:
    free = [0.0] * workers
    for each in order:
        free[free.index(min(free))] += each
    return max(free)


def test_what_was_measured_can_be_read_and_names_its_machine() -> None:
    measured = rates()
    assert measured.machine
    assert measured.fixed > 0
    assert measured.gigaflop(1) >= measured.gigaflop(2) > 0
    assert flops(MINUTE).image > 0
