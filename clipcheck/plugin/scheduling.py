"""Send all tests of one checkpoint and device to one worker of pytest-xdist.

``--dist loadgroup`` of pytest-xdist marks groups by a suffix on the ids of tests, which has no
effect in pytest 9.2 (pytest-dev/pytest-xdist#1386), and shows in reports before it. Here the groups
are derived from the unchanged ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain, combinations
from typing import Any

from xdist.scheduler import LoadGroupScheduling  # type: ignore[import-untyped]

from clipcheck.plugin.choices import NAMES, Choices


class CheckpointScheduling(LoadGroupScheduling):  # type: ignore[misc] # xdist has no types
    """`LoadGroupScheduling`, with a group for each checkpoint and device."""

    def __init__(self, config: Any, log: Any, choices: Choices) -> None:
        super().__init__(config, log)
        self._groups = groups(choices)

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid, self._groups) or str(super()._split_scope(nodeid))

    def remove_node(self, node: Any) -> str | None:
        """Give the remaining tests of a dead worker to others.

        The test that it died in is not run again. Finished groups are removed: a worker that gets
        a group without a test to run would never ask for the next.

        Returns:
            The test that it died in.
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
    """Return the group of each test that uses a checkpoint, by the brackets of its id."""
    sizes = range(1, len(NAMES) + 1)
    found: dict[str, str] = {}
    for names in chain.from_iterable(combinations(NAMES, size) for size in sizes):
        if "clip_model" in names:
            for each in choices.combinations(names):
                # pytest escapes characters that are not ASCII like this.
                label = "-".join(each.values()).encode("unicode_escape").decode()
                device = each.get("clip_device", choices.devices[0])
                found[label] = f"{each['clip_model']} on {device}"
    return found


def group_of(nodeid: str, groups: Mapping[str, str]) -> str | None:
    """Return the group of a test, or None; its id may have other parameters before and after."""
    label = nodeid.rpartition("::")[2].partition("[")[2].removesuffix("]")
    fitting = [key for key in groups if f"-{key}-" in f"-{label}-"]
    return groups[max(fitting, key=len)] if fitting else None
