"""All tests of one checkpoint and device go to one worker of pytest-xdist.

``--dist loadgroup`` is what pytest-xdist has for it. It finds the groups by a change that it makes
to the ids of tests, which has no effect in pytest 9.2 (pytest-dev/pytest-xdist#1386), and leaves
its trace in reports elsewhere. So the groups are told from the ids as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain, combinations
from typing import Any

from xdist.scheduler import LoadGroupScheduling  # type: ignore[import-untyped]

from clipcheck.plugin.choices import NAMES, Choices


class CheckpointScheduling(LoadGroupScheduling):  # type: ignore[misc] # xdist has no types
    """`LoadGroupScheduling`, with a group for each checkpoint and device.

    Args:
        config: the controller's.
        log: as pytest-xdist gives it.
        choices: what is asked for.
    """

    def __init__(self, config: Any, log: Any, choices: Choices) -> None:
        super().__init__(config, log)
        self._groups = groups(choices)

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid, self._groups) or str(super()._split_scope(nodeid))

    def remove_node(self, node: Any) -> str | None:
        """Give what a worker has not done to others, and name the test that it died over.

        That one has failed by it, and is not run again. What is done is not handed out once more:
        a worker that has nothing to do in a group would never ask for the next.
        """
        units: dict[str, dict[str, bool]] = self.assigned_work[node]
        waiting = [(unit, test) for unit in units.values() for test in unit if not unit[test]]
        for unit, test in waiting[:1]:
            unit[test] = True
        for scope in [scope for scope, unit in units.items() if all(unit.values())]:
            del units[scope]
        super().remove_node(node)
        return waiting[0][1] if waiting else None


def groups(choices: Choices) -> dict[str, str]:
    """The group of every test that asks for a checkpoint, by what is in the brackets of its id."""
    sizes = range(1, len(NAMES) + 1)
    found: dict[str, str] = {}
    for names in chain.from_iterable(combinations(NAMES, size) for size in sizes):
        if "clip_model" in names:
            for each in choices.combinations(names):
                # As pytest writes what is not ASCII.
                label = "-".join(each.values()).encode("unicode_escape").decode()
                device = each.get("clip_device", choices.devices[0])
                found[label] = f"{each['clip_model']} on {device}"
    return found


def group_of(nodeid: str, groups: Mapping[str, str]) -> str | None:
    """The group of a test, which may have other parameters before or behind; None for others."""
    label = nodeid.rpartition("::")[2].partition("[")[2].removesuffix("]")
    fitting = [key for key in groups if f"-{key}-" in f"-{label}-"]
    return groups[max(fitting, key=len)] if fitting else None
