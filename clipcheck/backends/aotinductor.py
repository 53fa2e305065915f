"""Run the eager model as native code that Inductor compiled ahead of time into a file."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipcheck.backends.base import Backend, Missing
from clipcheck.backends.calling import Array, translating
from clipcheck.backends.opened import Opened, Receive, open_apart
from clipcheck.backends.programs import ProgramBackend, flat, key_of
from clipcheck.backends.signature import Declared, Raw
from clipcheck.backends.source import Source
from clipcheck.errors import UnsafeError
from clipcheck.gates.integrity import Evidence
from clipcheck.system.variables import variables

if TYPE_CHECKING:
    import torch

    from clipcheck.checkpoints.checkpoint import Checkpoint
    from clipcheck.families.sizes import Sizes
    from clipcheck.sandbox.process import Sandbox

_TOKENS = "clipcheck.tokens"
"""Key of a package's metadata for the dtype of its ids, which its code does not check."""


_INPUTS = {"pixels": "float32", "tokens": "int32"}


def compiler_missing() -> Missing | None:
    """Say that Inductor's C++ compiler (``CXX``, else g++, on macOS clang++) is missing, or return
    None."""
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    words = shlex.split(compiler)
    if words and shutil.which(words[0]):
        return None
    return Missing(
        f"there is no C++ compiler {compiler!r} here",
        "Install one, or set CXX to the path of a compiler.",
    )


class AOTInductor(ProgramBackend):
    """Native code that Inductor compiled ahead of time."""

    summary = "native code, compiled ahead of time and loaded from its package (AOTInductor)"
    least = 2  # torch's export treats a size of 1 as a case of its own.

    @classmethod
    def available(cls) -> Missing | None:
        """Require a C++ compiler."""
        return compiler_missing()

    @classmethod
    def unfit(cls, checkpoint: Checkpoint, device: torch.device, dtype: str) -> str | None:  # noqa: ARG003
        """Accept CPUs and CUDA: Inductor cannot package code for other devices."""
        if device.type in ("cpu", "cuda"):
            return None
        return f"AOTInductor packs no code for {device.type}"

    @classmethod
    def build(cls, source: Source) -> Backend:
        """Compile the eager model, or take the package of an earlier run, and load it."""

        def write(path: Path) -> None:
            with translating("aotinductor", "compiling"):
                _compile(source, path)

        wanted = {**key_of(source), "hardware": _hardware(source.device)}
        path = source.artefacts.get("package.pt2", wanted, write)
        declared = [Declared(name, None, dtype) for name, dtype in _INPUTS.items()]
        return cls(
            "aotinductor",
            _opened(_load(path), declared, source.device),
            sizes=source.sizes,
            path=path,
            evidence=_unknown,
            made_here=True,
        )

    @classmethod
    def open_here(
        cls,
        path: Path,
        device: torch.device | str,
        options: Mapping[str, str],  # noqa: ARG003
    ) -> Opened:
        """Open a package in this process."""
        import torch
        from torch.utils import _pytree as pytree

        package = _load(path)
        with translating("aotinductor", "reading the package"):
            ids = package.get_metadata().get(_TOKENS, "int64")
            spec = pytree.treespec_loads(package.loader.get_call_spec()[0])
            arguments, named = pytree.tree_unflatten(range(spec.num_leaves), spec)
            # Inputs by position have no names; those after the first two are unknown.
            count = len(pytree.tree_leaves(arguments))
            places = [*_INPUTS, *(f"argument {n}" for n in range(3, count + 1))]
            names = [*places[:count], *named]
        declared = [Declared(name, None, "float32" if "pixel" in name else ids) for name in names]
        # Its code would read behind the end of a batch that is smaller than it was compiled for.
        return _opened(package, declared, torch.device(device), {"AOTI_RUNTIME_CHECK_INPUTS": "1"})


def _compile(source: Source, path: Path) -> None:
    import torch
    from torch._inductor.utils import fresh_cache

    program = source.exported()
    settings = {
        # Precompiled headers pay off only for many programs: for one they take half of the time.
        "aot_inductor.precompile_headers": False,
        "aot_inductor.metadata": {_TOKENS: _INPUTS["tokens"]},
    }
    # Inductor's own cache would keep a second copy of all weights permanently.
    own = fresh_cache(dir=str(source.scratch))
    with quiet_about_cuda(source.device), torch.no_grad(), own:
        torch._inductor.aoti_compile_and_package(
            program, package_path=str(path), inductor_configs=settings
        )


def quiet_about_cuda(device: torch.device) -> AbstractContextManager[None]:
    """Hide the message that CUDA is installed without a GPU, while code for a CPU is compiled.

    torch logs it when it first looks for a compiler.
    """
    from clipcheck.writers.programs import without_record

    if device.type != "cpu":
        return nullcontext()
    return without_record("torch.utils.cpp_extension", "No CUDA runtime is found")


def _hardware(device: torch.device) -> str:
    """Name the hardware for which code is compiled: on other hardware it may crash."""
    import torch

    if device.type == "cpu":
        return torch.backends.cpu.get_cpu_capability()
    return f"{torch.cuda.get_device_name(device)} {torch.cuda.get_device_capability(device)}"


def open_package(
    path: Path,
    device: torch.device | str,
    sizes: Sizes,
    sandbox: Sandbox | None,
    names: Mapping[str, str] | None = None,
) -> Backend:
    """Open a package of AOTInductor from any source.

    Loading it runs native code of the file, so only a sandbox process loads it. The code
    does not check the dtype of its inputs: ids are int64 unless the package says otherwise.

    Args:
        device: for which it was compiled.
        sandbox: the sandbox process that runs it.
        names: see `ProgramBackend`.

    Raises:
        UnsafeError: there is no sandbox process.
        DamagedError: the file was altered.
        CheckpointError: it takes other inputs than a CLIP model.
        RunError: it cannot be loaded on this machine.
    """
    from clipcheck.checkpoints.records import MappedFile, Records

    # torch verifies no checksums, and does not delete unpacked files if loading fails.
    Records(MappedFile(path)).verify()
    if sandbox is None:
        raise UnsafeError(
            "it is native code, which runs as soon as it is loaded; nothing was run",
            remedy="Leave out --isolation none: a process without rights runs it.",
            path=path,
        )
    return AOTInductor(
        "aotinductor",
        open_apart("aotinductor", path, device, {}, sandbox),
        sizes=sizes,
        path=path,
        evidence=_unknown,
        names=names,
    )


def _load(path: Path) -> Any:
    import torch

    with translating("aotinductor", "loading"):
        return torch._inductor.aoti_load_package(str(path))


def _opened(
    package: Any,
    declared: Sequence[Declared],
    device: torch.device,
    environment: Mapping[str, str] | None = None,
) -> Opened:
    import torch
    from torch.utils import _pytree as pytree

    spec = pytree.treespec_loads(package.loader.get_call_spec()[0])

    def run(arrays: Sequence[Array]) -> Raw:
        given = [torch.from_numpy(array).to(device, copy=True) for array in arrays]
        with torch.inference_mode(), variables(environment or {}):
            arguments, named = pytree.tree_unflatten(given, spec)
            return flat(package(*arguments, **named))

    def weights(receive: Receive) -> None:
        """They are built in."""

    return Opened(declared=declared, run=run, weights=weights)


def _unknown(_: Opened, __: bool) -> Evidence:
    """Return no evidence of weights: they are compiled in."""
    return Evidence(weights=None)
