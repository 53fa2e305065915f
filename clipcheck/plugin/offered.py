"""The options of the pytest plugin: names, placeholders and help."""

from __future__ import annotations

from clipcheck.backends.names import OF_ARCHIVES
from clipcheck.harness import declarations

SEEDED_MODELS = ("tiny-vit", "tiny-resnet", "ViT-B/32")
"""Architectures of ``--clip-seeded`` without ``--clip-model``; they take a minute."""

OF_A_CHECK = (
    "reference",
    "architecture",
    "device",
    "backend",
    "dtype",
    "atol",
    "rtol",
    "budget",
    "map",
    "require",
    "examples",
    "images",
    "prompts",
    "seed",
    "isolation",
    "key",
)
"""The options of a check that pytest has. The others may stand in ``[tool.clipcheck]``."""

_DEFAULTS = {
    "device": "cpu; cuda gives each worker a GPU of its own",
    "backend": f"{OF_ARCHIVES}; for a program by its format",
    "dtype": "float32, and on a GPU also float16",
}
"""Defaults that are not those of the command line, in words."""


def _metavar_and_help(name: str) -> tuple[str, str]:
    declared = declarations.OPTIONS[name]
    default = _DEFAULTS.get(name) if declared.default is None else str(declared.default)
    return declared.metavar, declared.sentences(default)


OPTIONS = {
    "--clip-model": (
        "M",
        "A path, a released name (downloaded if necessary), 'all' for the nine released ones, or "
        "'seeded:' and an architecture, such as seeded:ViT-B/32. Repeatable.",
    ),
    **{f"--clip-{name}": _metavar_and_help(name) for name in OF_A_CHECK},
    "--clip-report": ("DIR", "Write results.json, report.txt and the failing inputs to DIR."),
}
"""Placeholder of the value and help of each option."""

FLAGS = {
    "--clip-seeded": "Judge seeded weights (not trained) of each architecture that --clip-model "
    f"names. Default: {', '.join(SEEDED_MODELS)}.",
}
"""Help of each option without a value."""

REPEATABLE = (
    "--clip-model",
    *(f"--clip-{name}" for name in OF_A_CHECK if declarations.OPTIONS[name].several),
)
