"""Draw raw inputs with Hypothesis."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from clipcheck.harness.search.constants import without_local_constants
from clipcheck.inputs.batches import MOST_ROWS, Inputs
from clipcheck.inputs.examples import Example, Kind, Prompt, ids_of, prompts_beside

if TYPE_CHECKING:
    from hypothesis import Phase, settings
    from hypothesis.database import ExampleDatabase
    from hypothesis.strategies import SearchStrategy
    from PIL import Image

_Condition: TypeAlias = Callable[[Example], Any]


@dataclass(frozen=True)
class Pool:
    """Strategy that examples are drawn from.

    Attributes:
        name: what failed is kept under it.
        strategy: draws one.
    """

    name: str
    strategy: SearchStrategy[Example]


class Source:
    """Draws raw inputs for a model, the same ones for the same seed.

    What failed before is tried as well, fixed or not, and takes no other's place: Hypothesis keeps
    it in its database, which is in the folder ``.hypothesis`` (or
    ``$HYPOTHESIS_STORAGE_DIRECTORY``).

    Args:
        inputs: what the model takes.
        name: of the checkpoint: failures are kept by it.
        seed: of what is drawn.
    """

    def __init__(self, inputs: Inputs, name: str, seed: int) -> None:
        self._inputs = inputs
        self._name = name
        self._seed = seed

    def pools(self, kind: Kind) -> list[Pool]:
        """Return the pools of single images or single prompts: texts first, and then ids that no
        text gives. Where no tokenizer is at hand these are ids alone."""
        if kind == "image":
            return [Pool("image", self._images().map(lambda image: Example(images=(image,))))]
        return [
            Pool(name, prompts.map(lambda prompt: Example(prompts=(prompt,))))
            for name, prompts in self._prompts().items()
        ]

    def together(self, kind: Kind) -> Pool:
        """Several images, several prompts, or several of both."""
        from hypothesis import strategies as st

        def several(drawn: SearchStrategy[Any]) -> SearchStrategy[tuple[Any, ...]]:
            return st.lists(drawn, min_size=1, max_size=MOST_ROWS).map(tuple)

        nothing = st.just(())
        images = nothing if kind == "prompt" else several(self._images())
        prompts = nothing if kind == "image" else several(st.one_of(*self._prompts().values()))
        return Pool(f"several {kind}", st.builds(Example, images, prompts))

    def counts(self, images: int) -> dict[str, int]:
        """Return how many examples `draw` asks for, by pool."""
        names = list(self._prompts())
        prompts = prompts_beside(images)
        shares = {name: len(range(n, prompts, len(names))) for n, name in enumerate(names)}
        return {"image": images, **shares}

    def draw(self, images: int) -> Example:
        """So many images, and the prompts that `packed` wants beside them."""
        if images < 1:
            return Example()
        counts = self.counts(images)
        drawn, *texts = (
            self.gather(pool, counts[pool.name])
            for pool in (*self.pools("image"), *self.pools("prompt"))
        )
        # In turn, so that each batch has some of each.
        mixed = (text for each in itertools.zip_longest(*texts) for text in each if text)
        return Example(
            tuple(image for each in drawn for image in each.images),
            tuple(prompt for each in mixed for prompt in each.prompts),
        )

    def gather(self, pool: Pool, count: int) -> list[Example]:
        """The examples that `find` will look at with that count: at most ``count``, and behind
        them some that failed before."""
        from hypothesis.database import ReadOnlyDatabase

        drawn: list[Example] = []
        # Looking at them is no verdict: what failed before must stay in the database.
        kept = ReadOnlyDatabase(self._database(pool))
        self._draw(pool, drawn.append, count, kept)
        self._try_again(pool, drawn.append, count, kept)
        return drawn

    def find(self, pool: Pool, condition: Callable[[Example], bool], count: int) -> Example | None:
        """The smallest example that the condition holds for, or None where none of those is that
        `gather` gives."""
        database = self._database(pool)
        again = self._try_again(pool, condition, count, database)
        return self._draw(pool, condition, count, database) if again is None else again

    def _draw(
        self, pool: Pool, condition: _Condition, count: int, database: ExampleDatabase
    ) -> Example | None:
        from hypothesis import Phase

        if not count:  # Of one prompt in all, the second kind of prompts has none.
            return None
        return self._find(pool, condition, _settings(count, database, Phase.generate))

    def _try_again(
        self, pool: Pool, condition: _Condition, count: int, database: ExampleDatabase
    ) -> Example | None:
        """Look at what failed before: a few, as Hypothesis keeps many that it has not shrunk."""
        from unittest import SkipTest

        from hypothesis import Phase
        from hypothesis.errors import Unsatisfiable

        few = max(2, count // 10)
        try:
            return self._find(pool, condition, _settings(few, database, Phase.reuse))
        except (SkipTest, Unsatisfiable):  # Nothing is kept, or nothing that is drawn today.
            return None

    def _find(self, pool: Pool, condition: _Condition, how: settings) -> Example | None:
        from hypothesis import given, seed

        found: list[Example] = []

        # In this order: a seed puts the database out of use, and settings above it say which.
        @how
        @seed(self._seed)
        @given(pool.strategy)
        def look(example: Example) -> None:
            if condition(example):
                found[:] = [example]
                raise _Found

        try:
            with without_local_constants():
                look()
        except _Found:
            return found[0]
        return None

    def _images(self) -> SearchStrategy[Image.Image]:
        from clipcheck.inputs.strategies import images

        return images()

    def _prompts(self) -> dict[str, SearchStrategy[Prompt]]:
        from clipcheck.inputs.strategies import prompts, rows_of

        i = self._inputs
        ids = rows_of(i.texts, i.context_length).map(lambda row: ids_of(row, i.texts))
        if i.texts.tokenizer is None:
            return {"ids": ids}
        return {"text": prompts(context_length=i.context_length), "ids": ids}

    def _database(self, pool: Pool) -> ExampleDatabase:
        """Return the database in the folder that Hypothesis uses by default, in CI as well: there
        it is kept as an artifact."""
        from clipcheck.harness.search.database import Named

        folder = os.environ.get("HYPOTHESIS_STORAGE_DIRECTORY", ".hypothesis")
        return Named(Path(folder) / "examples", f"clipcheck {pool.name} {self._name} ")


class _Found(Exception):  # noqa: N818 - it is what was looked for, no error
    """An example that a condition holds for."""


def _settings(count: int, database: ExampleDatabase, phase: Phase) -> settings:
    """Hypothesis's settings. What they leave open a profile of the caller's would decide."""
    from hypothesis import HealthCheck, Phase, Verbosity, settings

    return settings(
        max_examples=count,
        backend="hypothesis",
        database=database,
        derandomize=False,  # The seed is given; a profile for CI would have it from the code.
        deadline=None,
        phases=(phase, Phase.shrink),
        report_multiple_bugs=False,
        # As in hypothesis.find: a machine that is busy is no mistake of this search, nor is one
        # inside of somebody's own test.
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.quiet,
    )
