"""The protocol of a way to run a checkpoint, and the errors for its failures.

A backend is a file in this folder; the file itself is a `Way`, named as the file is.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Protocol

from clipcheck.backends.calling import Array, Named, Pixels, Tokens
from clipcheck.gates.integrity import Evidence
from clipcheck.inputs.examples import Frontend


class Backend(Protocol):
    """A model that takes and gives numpy arrays.

    N images of R pixels a side, M texts of L tokens, features of E components.
    """

    @property
    def name(self) -> str:
        """The name that results and reports use."""

    def encode_image(self, pixels: Pixels) -> Array:
        """Pixels [N, 3, R, R] to features [N, E], not normalised."""

    def encode_text(self, tokens: Tokens) -> Array:
        """Ids [M, L] to features [M, E], not normalised."""

    def __call__(self, pixels: Pixels, tokens: Tokens) -> tuple[Array, Array]:
        """Pixels and ids to logits per image [N, M] and per text [M, N]."""

    def outputs(self, pixels: Pixels, tokens: Tokens) -> Named:
        """All four outputs by name, see `clipcheck.gates.result.OUTPUTS`.

        Raises:
            RunError: the model cannot be run, or gives something else.
        """

    def evidence(self) -> Evidence:
        """Return the evidence for the gate ``integrity``. To be called after the backend has
        run."""

    @property
    def frontend(self) -> Frontend | None:
        """Return how it takes raw images and texts, or None where it has no dimensions of its own
        for that."""

    @property
    def absent(self) -> frozenset[str]:
        """Outputs that it does not have by its own signature. To be asked for after it has run."""

    @property
    def size(self) -> int | None:
        """Bytes of the artefact that it runs, or None where it has none of its own."""

    def close(self) -> None:
        """Let go of all that it opened. It cannot be run any more."""


@dataclass(frozen=True)
class Missing:
    """Why a backend cannot run on this machine.

    Attributes:
        reason: what is missing, as a phrase without a full stop.
        remedy: what to do about it, as a sentence.
    """

    reason: str
    remedy: str


def too_old(distribution: str, oldest: str) -> Missing | None:
    """Why an installed library cannot be used, or None; one whose version is not known can.

    Args:
        distribution: that brings it.
        oldest: the first version that works here.
    """
    from packaging.version import Version

    try:
        found = version(distribution)
    except PackageNotFoundError:
        return None
    if Version(found) >= Version(oldest):
        return None
    return Missing(
        f"{distribution} {found} is installed, and {oldest} is the oldest that works",
        f"Upgrade it: pip install --upgrade '{distribution}>={oldest}'.",
    )


@dataclass(frozen=True)
class Option:
    """Something that can be chosen of a backend.

    Attributes:
        default: its value where nothing is said.
        values: what it may be; none where that is for the backend's library to say.
        meaning: for people.
    """

    default: str
    values: tuple[str, ...]
    meaning: str


class Methods(Protocol):
    """CLIP's three methods, each to be called by itself; see `Backend`."""

    def encode_image(self, pixels: Pixels) -> Array:
        """Pixels [N, 3, R, R] to features [N, E], not normalised."""

    def encode_text(self, tokens: Tokens) -> Array:
        """Ids [M, L] to features [M, E], not normalised."""

    def __call__(self, pixels: Pixels, tokens: Tokens) -> tuple[Array, Array]:
        """Pixels and ids to logits per image [N, M] and per text [M, N]."""


def outputs_of_methods(methods: Methods, pixels: Pixels, tokens: Tokens) -> Named:
    """All four outputs by name, of what has a method for each: so each tower runs twice.

    Raises:
        RunError: the model cannot be run, or gives something else.
    """
    logits_per_image, logits_per_text = methods(pixels, tokens)
    return {
        "image_features": methods.encode_image(pixels),
        "text_features": methods.encode_text(tokens),
        "logits_per_image": logits_per_image,
        "logits_per_text": logits_per_text,
    }


def evidence_of_closed() -> Evidence:
    """Return the evidence of a closed backend: nothing is known of it any more."""
    return Evidence(None, doubts=["the candidate was closed"])
