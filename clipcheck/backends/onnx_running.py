"""A program that runs in ONNX Runtime, whose session can be replaced by another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipcheck.backends.calling import Array, translating
from clipcheck.backends.onnx_rewrites import rewrites
from clipcheck.backends.onnx_sessions import LEVELS, Sessions, line_for
from clipcheck.backends.optimiser import Optimiser, Setting, find_cause
from clipcheck.checkpoints.onnx_data import located, piece_of
from clipcheck.errors import RunError
from clipcheck.gates.optimised import Rewrites

if TYPE_CHECKING:
    import onnx


class Running:
    """A program in a session, which can be replaced by one with other settings.

    Args:
        own: setting that it runs with at first.

    Attributes:
        setting: that it runs with.
    """

    def __init__(self, path: Path, sessions: Sessions, own: Setting) -> None:
        self._path = path
        self._sessions = sessions
        self._own = self.setting = own
        self._first: Any = None
        self.session: Any = None

    def open(self) -> None:
        """Open the first session.

        Raises:
            RunError: it cannot be opened; the message says if optimisation is the reason.
        """
        try:
            with translating("onnxruntime", "opening the program"):
                self.use(None)
        except RunError as error:
            optimiser = self.optimiser
            if optimiser is None:
                raise
            cause = find_cause(optimiser, lambda: False, restore=False)
            if cause is None:
                raise
            raise RunError(
                f"{error.problem}. Without graph optimisation it opens: {cause} breaks it",
                remedy=f"Set the session's options so: {line_for(cause.sound)}",
            ) from error

    def use(self, setting: Setting | None) -> None:
        """Open a session with a setting; the first one again for None."""
        self.setting = setting or self._own
        if setting is not None:
            self.session = self._sessions.open(self._path, setting)
            return
        self._first = self._first or self._sessions.open(self._path, self._own)
        self.session = self._first

    @property
    def optimiser(self) -> Optimiser | None:
        """Control how far it is optimised; None where it is not."""
        levels = LEVELS[: LEVELS.index(self._own.level) + 1]
        if len(levels) == 1:
            return None
        return Optimiser(levels, self._use, self._passes, self._rewrites)

    def _use(self, setting: Setting | None) -> None:
        with translating("onnxruntime", "opening the program with other optimisation"):
            self.use(setting)

    def _passes(self, setting: Setting) -> list[str]:
        return self._sessions.passes(self._path, setting)

    def _rewrites(self, before: Setting, after: Setting, arrays: Sequence[Array]) -> Rewrites:
        with translating("onnxruntime", "comparing the optimised programs"):
            return rewrites(self._path, self._sessions, before, after, arrays)


def read(path: Path) -> onnx.ModelProto:
    """Read a program with all its data."""
    import onnx

    # onnx's own reader of data files refuses the symbolic links of a hub's cache.
    program = onnx.load(path, load_external_data=False)
    for each in program.graph.initializer:
        if each.data_location == onnx.TensorProto.EXTERNAL:
            each.raw_data = _contents(path, {pair.key: pair.value for pair in each.external_data})
            each.data_location = onnx.TensorProto.DEFAULT
            del each.external_data[:]
    return program


def _contents(path: Path, entries: Mapping[str, str]) -> bytes:
    """Read the bytes of a tensor from a data file."""
    piece = piece_of(entries, path)
    with located(path, piece.location).open("rb") as file:
        file.seek(piece.offset)
        return file.read(-1 if piece.length is None else piece.length)
