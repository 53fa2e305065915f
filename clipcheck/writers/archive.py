"""Write a TorchScript archive in the layout of the released ones.

The modules of `clipcheck.writers.legacy` are traced over batches of no rows: the operations are
recorded with the shapes as values, and nothing is computed, whatever the size of the model.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipcheck.checkpoints.architecture import BUFFERS, Architecture
from clipcheck.checkpoints.records import MappedFile, Records
from clipcheck.checkpoints.told import EXTRA, encode
from clipcheck.system import torchscript_support

if TYPE_CHECKING:
    import torch

    from clipcheck.writers.legacy import Multimodal

Alter = Callable[["Multimodal"], None]

RELEASED_DEVICE = "cuda:0"
"""Device on which the released archives were traced, and which their code names."""

_CODE_SIZE = 4 << 20
"""Most bytes of an archive's code and constants; the largest released one has 2 MB."""


def write_archive(
    architecture: Architecture,
    tensors: Mapping[str, torch.Tensor],
    path: Path,
    *,
    alter: Alter | None = None,
) -> None:
    """Write an archive with the tensors and code for them.

    Args:
        tensors: the weights by the released keys, in the archive's dtypes; the integer buffers may
            be missing.
        path: the file; a temporary file is written beside it.
        alter: called with the modules before tracing. Its changes get into the archive's code;
            `clipcheck.audit.faults` uses it.

    Raises:
        UnavailableError: this torch or Python has no TorchScript.
    """
    torchscript_support.require()
    weights = {**buffers(architecture), **tensors}
    weights["logit_scale"] = weights["logit_scale"].reshape(())
    with torchscript_support.silenced():
        traced = _trace(architecture, weights, alter)
        for graph in _graphs(traced):
            _set_devices(graph)
        scratch = path.with_name(f"{path.name}.traced")
        traced.save(str(scratch))
    # Released files do not record the architecture.
    computes = {EXTRA: encode(architecture).encode()} if architecture.departures() else {}
    _relocate(scratch, path, computes)
    scratch.unlink()


def room(tensors: Mapping[str, torch.Tensor]) -> int:
    """Return the free bytes on the disk that writing an archive needs.

    Twice its size, because it is written twice. The caller must check beforehand: on a full disk
    torch's writer ends the process.
    """
    return 2 * (sum(tensor.nbytes for tensor in tensors.values()) + _CODE_SIZE)


def buffers(architecture: Architecture) -> dict[str, torch.Tensor]:
    """Return the three integer buffers of a released archive, int64 scalars."""
    import torch

    values = (architecture.image_resolution, architecture.context_length, architecture.vocab_size)
    return {key: torch.tensor(value) for key, value in zip(BUFFERS, values, strict=True)}


def filled(architecture: Architecture, weights: Mapping[str, torch.Tensor]) -> Multimodal:
    """Return the modules that archives are traced from, in evaluation mode, with these weights."""
    import torch

    from clipcheck.writers.legacy import Multimodal

    with torch.device("meta"):
        model = Multimodal(architecture)
    placed = {key: tensor.detach().contiguous() for key, tensor in weights.items()}
    for key, counter in model.named_buffers():
        # Some training code drops BatchNorm's counters.
        if key not in placed:
            placed[key] = torch.zeros_like(counter, device="cpu")
    model.load_state_dict(placed, assign=True)
    return model.eval()


def _trace(
    architecture: Architecture, weights: Mapping[str, torch.Tensor], alter: Alter | None
) -> Any:
    import torch

    model = filled(architecture, weights)
    if alter is not None:
        alter(model)
    side = architecture.image_resolution
    image = torch.zeros(0, 3, side, side)
    text = torch.zeros(0, architecture.context_length, dtype=torch.int64)
    methods = {"encode_image": (image,), "encode_text": (text,), "forward": (image, text)}
    return torch.jit.trace_module(model, methods, check_trace=False, _store_inputs=False)


def _graphs(module: Any) -> Iterator[Any]:
    for submodule in module.modules():
        for name in submodule._c._method_names():
            yield submodule._c._get_method(name).graph


def _set_devices(graph: Any) -> None:
    """Set the released device in all constants, except in ``arange``, which is on the CPU."""
    for node in graph.findAllNodes("prim::Constant"):
        if str(node.output().type()) != "Device":
            continue
        if all(use.user.kind() == "aten::arange" for use in node.output().uses()):
            continue
        node.s_("value", RELEASED_DEVICE)


def _relocate(source: Path, path: Path, more: Mapping[str, bytes]) -> None:
    """Copy an archive, and set the released device in its pickles.

    torch writes the actual device, the CPU. A released file needs ``map_location`` on a machine
    without a GPU, and a written one must do so too.
    """
    import torch

    records = Records(MappedFile(source))
    writer = torch._C.PyTorchFileWriter(str(path))
    try:
        for name in records.names():
            if name == "version" or name.startswith(".data/"):
                continue  # The writer adds these itself.
            if name.endswith(".debug_pkl"):
                continue  # Paths of the source on this machine, which nothing reads.
            data = records.read(name)
            if name in ("data.pkl", "constants.pkl"):
                data = _with_location(data)
            writer.write_record(name, data, len(data))
        for name, data in more.items():
            writer.write_record(name, data, len(data))
    finally:
        # After a failure, too: the destructor would otherwise close it, and end the process.
        writer.write_end_of_file()


def _with_location(pickled: bytes) -> bytes:
    """Replace the string ``cpu`` in a pickle by the released device."""
    pieces: list[bytes] = []
    copied = 0
    for opcode, argument, position in pickletools.genops(pickled):
        if opcode.name == "BINUNICODE" and argument == "cpu" and position is not None:
            location = RELEASED_DEVICE.encode()
            pieces += [pickled[copied:position], b"X", len(location).to_bytes(4, "little")]
            pieces.append(location)
            copied = position + 5 + len(argument)
    return b"".join([*pieces, pickled[copied:]])
