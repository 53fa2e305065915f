from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from clipcheck.checkpoints.formats import open_checkpoint
from clipcheck.checkpoints.training import read_record
from tests.samples import minute_weights, saved

RECORDS = {
    "texts and numbers": ({"name": "ViT-B-32", "epoch": 3, "best": 0.5, "amp": True},) * 2,
    "nested": ({"config": {"layers": [3, 4], "a": {"b": "c"}}},) * 2,
    "tuples": ({"layers": (3, 4)}, {"layers": [3, 4]}),
    "tensors": ({"w": torch.ones(1), "state": {"w": torch.ones(1)}, "epoch": 1}, {"epoch": 1}),
    "lists with tensors": ({"a": [1, torch.ones(1)]}, {}),
    "keys that are not text": ({1: 2, ("a",): "b", "c": {1: 2}}, {}),
    "long texts": ({"a": "x" * 1001, "x" * 1001: "a", "b": ["x" * 1001]}, {}),
    "large numbers": ({"a": 1 << 63, "b": float("nan"), "c": -(1 << 62)}, {"c": -(1 << 62)}),
    "deeply nested": ({"a": {"b": {"c": {"d": {"e": {"f": 1}}}}, "g": 1}}, {"a": {"g": 1}}),
    "many tensors": (dict.fromkeys(map(str, range(2000)), torch.ones(1)) | {"n": 1}, {"n": 1}),
    "long lists": ({"a": [1] * 1001, "b": dict.fromkeys(map(str, range(1001)), 1)}, {}),
    "not a mapping": ([1], {}),
}


@pytest.mark.parametrize("case", RECORDS)
def test_a_record_has_the_small_values_of_the_top_level(case: str) -> None:
    found, expected = RECORDS[case]
    assert read_record(found) == expected


def test_a_record_is_bounded() -> None:
    wide = dict.fromkeys(map(str, range(2000)), 1)
    assert len(read_record(wide)) == 1000
    laughing: object = 1
    for _ in range(60):
        laughing = [laughing, laughing]
    assert read_record({"a": laughing}) == {}


class Endless(list[int]):
    def __len__(self) -> int:
        return 1 << 40

    def __iter__(self) -> Iterator[int]:
        raise AssertionError("it was gone through")


def test_long_values_are_not_read() -> None:
    assert read_record({"a": Endless()}) == {}


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_a_checkpoint_has_the_record_of_its_training(tmp_path: Path, legacy: bool) -> None:
    path = tmp_path / "file"
    beside = {"epoch": 3, "name": "ViT-B-32"}
    args = argparse.Namespace(model="RN50", layers=[1])
    state = {**beside, "args": args, "state_dict": minute_weights()}
    path.write_bytes(saved(state, legacy=legacy))
    assert open_checkpoint(path).record == {**beside, "args": {"model": "RN50", "layers": [1]}}
