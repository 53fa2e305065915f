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
    """A strategy for examples, with a name.

    Attributes:
        name: part of the key of failures in the database.
        strategy: draws one example.
    """

    name: str
    strategy: SearchStrategy[Example]


class Source:
    """Draws raw inputs for a model, the same for the same seed.

    Earlier failures are tried in addition. Hypothesis keeps them in its database, in the folder
    ``.hypothesis`` or ``$HYPOTHESIS_STORAGE_DIRECTORY``.

    Args:
        inputs: sizes and rules of the model's inputs.
        name: of the checkpoint, part of the key of failures.
        seed: of the draws.
    """

    def __init__(self, inputs: Inputs, name: str, seed: int) -> None:
        self._inputs = inputs
        self._name = name
        self._seed = seed

    def pools(self, kind: Kind) -> list[Pool]:
        """Return the pools of single images or single prompts: texts, then ids that no text gives;
        without the model's tokenizer only ids."""
        if kind == "image":
            return [Pool("image", self._images().map(lambda image: Example(images=(image,))))]
        return [
            Pool(name, prompts.map(lambda prompt: Example(prompts=(prompt,))))
            for name, prompts in self._prompts().items()
        ]

    def together(self, kind: Kind) -> Pool:
        """Return the pool of several images, several prompts, or several of both."""
        from hypothesis import strategies as st

        def several(drawn: SearchStrategy[Any]) -> SearchStrategy[tuple[Any, ...]]:
            return st.lists(drawn, min_size=1, max_size=MOST_ROWS).map(tuple)

        nothing = st.just(())
        images = nothing if kind == "prompt" else several(self._images())
        prompts = nothing if kind == "image" else several(st.one_of(*self._prompts().values()))
        return Pool(f"several {kind}", st.builds(Example, images, prompts))

    def counts(self, images: int) -> dict[str, int]:
        """Return how many examples `draw` draws, by pool."""
        names = list(self._prompts())
        prompts = prompts_beside(images)
        shares = {name: len(range(n, prompts, len(names))) for n, name in enumerate(names)}
        return {"image": images, **shares}

    def draw(self, images: int) -> Example:
        """Draw this number of images, and the prompts that `packed` needs for them."""
        if images < 1:
            return Example()
        counts = self.counts(images)
        drawn, *texts = (
            self.gather(pool, counts[pool.name])
            for pool in (*self.pools("image"), *self.pools("prompt"))
        )
        # Interleaved, so that each batch has some of each.
        mixed = (text for each in itertools.zip_longest(*texts) for text in each if text)
        return Example(
            tuple(image for each in drawn for image in each.images),
            tuple(prompt for each in mixed for prompt in each.prompts),
        )

    def gather(self, pool: Pool, count: int) -> list[Example]:
        """Return the examples that `find` tries with this count: at most ``count``, and some
        earlier failures."""
        from hypothesis.database import ReadOnlyDatabase

        drawn: list[Example] = []
        # Nothing is tested here, so Hypothesis would delete earlier failures as passing.
        kept = ReadOnlyDatabase(self._database(pool))
        self._draw(pool, drawn.append, count, kept)
        self._try_again(pool, drawn.append, count, kept)
        return drawn

    def find(self, pool: Pool, condition: Callable[[Example], bool], count: int) -> Example | None:
        """Return the smallest example for which the condition holds, or None if it holds for none
        of `gather`."""
        database = self._database(pool)
        again = self._try_again(pool, condition, count, database)
        return self._draw(pool, condition, count, database) if again is None else again

    def _draw(
        self, pool: Pool, condition: _Condition, count: int, database: ExampleDatabase
    ) -> Example | None:
        from hypothesis import Phase

        if not count:  # with one prompt in all, the second pool has none
            return None
        return self._find(pool, condition, _settings(count, database, Phase.generate))

    def _try_again(
        self, pool: Pool, condition: _Condition, count: int, database: ExampleDatabase
    ) -> Example | None:
        """Try a few earlier failures: Hypothesis also keeps many that it did not shrink."""
        from unittest import SkipTest

        from hypothesis import Phase
        from hypothesis.errors import Unsatisfiable

        few = max(2, count // 10)
        try:
            return self._find(pool, condition, _settings(few, database, Phase.reuse))
        except (SkipTest, Unsatisfiable):  # no earlier failure, or none that can still be drawn
            return None

    def _find(self, pool: Pool, condition: _Condition, how: settings) -> Example | None:
        from hypothesis import given, seed

        found: list[Example] = []

        # In this order: a seed disables the database, and settings above it enable it again.
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
        """Return the database in Hypothesis's default folder, also in CI, where it is kept as an
        artifact."""
        from clipcheck.harness.search.database import NamedDatabase

        folder = os.environ.get("HYPOTHESIS_STORAGE_DIRECTORY", ".hypothesis")
        return NamedDatabase(Path(folder) / "examples", f"clipcheck {pool.name} {self._name} ")


class _Found(Exception):  # noqa: N818 - it is what was looked for, no error
    """An example for which the condition holds."""


def _settings(count: int, database: ExampleDatabase, phase: Phase) -> settings:
    """Return complete settings for Hypothesis: a profile of the caller would fill gaps."""
    from hypothesis import HealthCheck, Phase, Verbosity, settings

    return settings(
        max_examples=count,
        backend="hypothesis",
        database=database,
        derandomize=False,  # a profile for CI would replace the seed
        deadline=None,
        phases=(phase, Phase.shrink),
        report_multiple_bugs=False,
        # As in hypothesis.find: slow machines and nested tests are no errors of this search.
        suppress_health_check=list(HealthCheck),
        verbosity=Verbosity.quiet,
    )
