"""Open sessions of ONNX Runtime, with as much graph optimisation as is asked for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from clipcheck.backends.optimiser import Setting
from clipcheck.errors import UsageError

PLAIN = "disable"
"""The level without optimisation."""

LEVELS = (PLAIN, "basic", "extended", "layout", "all")
"""The levels of graph optimisation; ``layout`` since ONNX Runtime 1.23."""

_LEFT_OUT = "optimization.disable_specified_optimizers"
"""Key of the configuration for the names of passes that are left out."""

_RULES = {
    "Level1_RuleBasedTransformer": (
        "EliminateIdentity",
        "EliminateSlice",
        "UnsqueezeElimination",
        "EliminateDropout",
        "ExpandElimination",
        "CastElimination",
        "CastChainElimination",
        "PreShapeNodeElimination",
        "NoopElimination",
        "DivMulFusion",
        "FuseReluClip",
        "GemmSumFusion",
        "GemmTransposeFusion",
        "NotWhereFusion",
        "ConvAddFusion",
        "ConvMulFusion",
        "ConvBNFusion",
        "Pad_Fusion",
        "MatMul_BatchNormalization_Fusion",
        "LabelEncoderFusion",
    ),
    "Level2_RuleBasedTransformer": ("ClipQuantRewrite", "ReluQuantRewrite", "GemmTransposeFusion"),
}
"""Passes of several rules, which can be left out one by one; it does not tell which it applied."""

_CHANGED = re.compile(r"GraphTransformer (\S+) modified: 1 ")
"""How it logs that a pass changed a program."""

_LARGE = 1024
"""Bytes from which a tensor of an optimised program is saved in a file of its own."""


@dataclass(frozen=True)
class Sessions:
    """Opens sessions on a program and on variants of it.

    Attributes:
        folder: of the data files of programs in memory.
        providers: execution providers to use.
        threads: of an operator.
        entries: of the session's configuration, by key.
    """

    folder: Path
    providers: Sequence[str]
    threads: int
    entries: Mapping[str, str]

    def of(self, folder: Path) -> Sessions:
        """Return the same for programs with data files in another folder."""
        return replace(self, folder=folder)

    def open(self, program: Path | bytes, setting: Setting) -> Any:
        """Open a session; its library may raise any error."""
        return self._session(program, setting, self._options(setting))

    def save(self, program: Path | bytes, setting: Setting, path: Path) -> None:
        """Save the optimised program, with large tensors in another file."""
        options = self._options(setting)
        options.optimized_model_filepath = str(path)
        stem = "session.optimized_model_external_initializers"
        options.add_session_config_entry(f"{stem}_file_name", f"{path.stem}.bin")
        options.add_session_config_entry(f"{stem}_min_size_in_bytes", str(_LARGE))
        self._session(program, setting, options)

    def passes(self, program: Path | bytes, setting: Setting) -> list[str]:
        """Return the passes that change the program, also if they break it; none where ONNX Runtime
        is too old to pass on its log."""
        import onnxruntime

        if not hasattr(onnxruntime, "set_default_logger_callback"):
            return []
        options = self._options(setting)
        options.log_severity_level = 1
        # It may raise any error; what it logged before is asked for.
        with _logging() as lines, suppress(Exception):
            self._session(program, setting, options)
        names = [name for line in lines for name in _CHANGED.findall(line)]
        return [each for name in names for each in _RULES.get(name, (name,))]

    def _options(self, setting: Setting) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        level = "DISABLE_ALL" if setting.level == PLAIN else f"ENABLE_{setting.level.upper()}"
        known = onnxruntime.GraphOptimizationLevel
        options.graph_optimization_level = getattr(known, f"ORT_{level}")
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        # Hide its warnings on stderr about operators that it does not fold.
        options.log_severity_level = 3
        for key, value in self.entries.items():
            options.add_session_config_entry(key, value)
        return options

    def _session(self, program: Path | bytes, setting: Setting, options: Any) -> Any:
        import onnxruntime

        if isinstance(program, bytes):
            options.add_session_config_entry(
                "session.model_external_initializers_file_folder_path", str(self.folder)
            )
        # No fallback: it would print to stdout, and run another provider.
        return onnxruntime.InferenceSession(
            program,
            options,
            providers=list(self.providers),
            enable_fallback=0,
            disabled_optimizers=list(setting.without),
        )


def line_for(setting: Setting) -> str:
    """Return the line of Python that sets the options of a session so."""
    if setting.without:
        return f'options.add_session_config_entry("{_LEFT_OUT}", "{";".join(setting.without)}")'
    level = "DISABLE_ALL" if setting.level == PLAIN else f"ENABLE_{setting.level.upper()}"
    return f"options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_{level}"


def entries_in(written: str) -> dict[str, str]:
    """Return entries of a session's configuration, written as ``KEY=VALUE+KEY=VALUE``.

    Raises:
        UsageError: they are written in another way.
    """
    pairs = [each.partition("=") for each in written.split("+") if each]
    wrong = ["".join(pair) for pair in pairs if not all(pair[:2])]
    if wrong:
        raise UsageError(
            f"onnxruntime: expected config=KEY=VALUE, found {wrong[0]!r}",
            remedy="Join several by +: onnxruntime:config=KEY=VALUE+KEY=VALUE.",
        )
    return {key: value for key, _, value in pairs}


@contextmanager
def _logging() -> Iterator[list[str]]:
    """Collect what ONNX Runtime logs."""
    import onnxruntime

    lines: list[str] = []

    def take(_severity: int, _category: str, _id: str, _place: str, message: str) -> None:
        lines.append(message)

    onnxruntime.set_default_logger_callback(take)
    try:
        yield lines
    finally:
        onnxruntime.set_default_logger_callback(None)
