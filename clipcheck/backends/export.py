"""The eager model as a program of torch.export, run from the file that it was saved in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipcheck.backends.base import Backend, Missing, Option, Source, translating
from clipcheck.backends.eager import version as version

if TYPE_CHECKING:
    import torch
    from torch.export import ExportedProgram

    from clipcheck.checkpoints.architecture import Architecture
    from clipcheck.checkpoints.checkpoint import Checkpoint

SUMMARY = "a program of any batch sizes, saved and loaded back (torch.export)"
OPTIONS: dict[str, Option] = {}
VARIANTS: list[dict[str, str]] = [{}]


def available() -> Missing | None:
    """Wherever torch is."""
    return None


def unfit(checkpoint: Checkpoint, device: torch.device, dtype: str) -> str | None:  # noqa: ARG001
    """Fits all: its operations are those of the eager model."""
    return None


def build(source: Source) -> Backend:
    """Export the eager model, or take the program of an earlier run, and load it from its file.

    A source that is a program already is opened as it is.
    """
    if source.program is not None:
        from clipcheck.backends.artefact_files import open_file

        weights = source.model.state_dict()
        model = source.checkpoint.architecture
        return open_file(source.program, source.device, model, weights=weights)
    from clipcheck.backends import programs
    from clipcheck.writers.programs import write_pt2

    def write(path: Path) -> None:
        with translating("export", "exporting"):
            write_pt2(source.model, path)

    path = source.artefacts.get("program.pt2", programs.key(source), write)
    architecture = source.checkpoint.architecture
    return _loaded(path, source.device, architecture, source.model.state_dict())


def open_program(
    path: Path,
    device: torch.device,
    architecture: Architecture,
    weights: Mapping[str, torch.Tensor] | None = None,
) -> Backend:
    """Open a file that `torch.export.save` wrote, of whoever's making.

    torch reads parts of such a file by pickle and by ``eval``. A file where they are more than the
    data of a program is refused before torch sees it. What is run then is torch's operators.

    Args:
        path: the file.
        device: where to run it.
        architecture: what it is to be a model of.
        weights: those that it has to have, by the released keys.

    Raises:
        CheckpointError: it holds no such program; the subclass tells why.
    """
    from clipcheck.checkpoints.artefacts import require_inert

    require_inert(path)
    return _loaded(path, device, architecture, weights)


def _loaded(
    path: Path,
    device: torch.device,
    architecture: Architecture,
    weights: Mapping[str, torch.Tensor] | None,
) -> Backend:
    import torch
    from torch.export.passes import move_to_device_pass
    from torch.utils import _pytree as pytree

    from clipcheck.backends import signature
    from clipcheck.backends.programs import ProgramBackend, compared, flat
    from clipcheck.writers.programs import of_any_name

    with translating("export", "loading"), of_any_name():
        program = torch.export.load(path)
        held = program.state_dict
        if any(tensor.device.type != device.type for tensor in held.values()):
            program = move_to_device_pass(program, device)
            held = program.state_dict
        module = program.module()
    inputs = signature.inputs(_declared(program), architecture, path)
    spec = program.call_spec.in_spec

    def run(pixels: Any, tokens: Any) -> signature.Raw:
        given = [torch.from_numpy(each.value(pixels, tokens)).to(device) for each in inputs]
        arguments, named = pytree.tree_unflatten(given, spec)
        with torch.inference_mode():
            return flat(module(*arguments, **named))

    return ProgramBackend("export", run, architecture, path, lambda: compared(held, weights))


def _declared(program: ExportedProgram) -> list[Any]:
    """The inputs of a program, but for its weights."""
    from clipcheck.backends.signature import Declared

    nodes = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    values = {name: nodes[name].meta["val"] for name in program.graph_signature.user_inputs}
    return [
        Declared(
            name,
            tuple(size if isinstance(size, int) else None for size in value.shape),
            str(value.dtype).removeprefix("torch."),
        )
        for name, value in values.items()
    ]
