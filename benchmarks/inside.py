"""Measure what it costs to localise a fault in an ONNX program, in plain passes of the program.

The program is exported from seeded weights. One copy has another epsilon in the second LayerNorm of
the last block, which only extreme inputs show; one has zeros for the bias of the last block's last
layer; one is unaltered. A plain pass runs the program on the inputs of the gate `modules`: two
images and three prompts. Times are of the processor, in one thread and one process, so that a busy
machine matters little; importing onnx is not counted. In an unaltered program the edge cases are
looked at as well: 36 rows in place of five.

    python -m benchmarks.inside
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.tables import add_option, table

FAULTS = ("epsilon 1e-7 in ln_2", "bias of c_proj dropped", "none")

WRITE = """
import sys
from pathlib import Path
import numpy as np
import onnx
import torch
from onnx import helper, numpy_helper
from clipcheck.checkpoints.checkpoint import Format
from clipcheck.checkpoints.formats import open_checkpoint
from clipcheck.models.loader import load_eager
from clipcheck.writers.convert import write
from clipcheck.writers.programs import write_onnx
from clipcheck.writers.synthesize import architecture_named, synthesize
folder, block = Path(sys.argv[2]), sys.argv[3]
architecture = architecture_named(sys.argv[1])
weights = folder / "weights.safetensors"
write(architecture, synthesize(architecture, 0), weights, Format.SAFETENSORS)
model = load_eager(open_checkpoint(weights), torch.device("cpu"), torch.float32)
write_onnx(model, folder / "none.onnx")
sound = onnx.load(folder / "none.onnx")
program = onnx.ModelProto()
program.CopyFrom(sound)
(node,) = [n for n in program.graph.node if n.op_type == "LayerNormalization"
           and any(name.endswith(f"{block}.ln_2.weight") for name in n.input)]
del node.attribute[[a.name for a in node.attribute].index("epsilon")]
node.attribute.append(helper.make_attribute("epsilon", 1e-7))
onnx.save(program, folder / "epsilon.onnx")
(bias,) = [i for i in sound.graph.initializer if i.name.endswith(f"{block}.mlp.c_proj.bias")]
zeros = np.zeros_like(numpy_helper.to_array(bias))
bias.CopyFrom(numpy_helper.from_array(zeros, bias.name))
onnx.save(sound, folder / "bias.onnx")
"""

LOCALISE = """
import json, onnx, resource, statistics, sys, time
from pathlib import Path
import torch
from clipcheck.backends.loading import opened_sides
from clipcheck.backends.onnxruntime import ONNXRuntime
from clipcheck.checkpoints.formats import open_checkpoint
from clipcheck.families.model_inputs import inputs_of
from clipcheck.harness.phases import Stopwatch
from clipcheck.harness.localising import first_departures
from clipcheck.inputs.batches import for_modules
torch.set_num_threads(1)
path, cpu = Path(sys.argv[1]), torch.device("cpu")
def timed(work):
    started = time.process_time()
    found = work()
    return time.process_time() - started, found
weights = open_checkpoint(path.with_name("weights.safetensors"))
with opened_sides(weights, None, cpu, "float32", archive=False) as sides:
    source = sides.source
    program = ONNXRuntime.open_program(source.file(path))
    batch = for_modules(inputs_of(source.checkpoint.model), 0)
    plain = lambda: timed(lambda: program.outputs(batch.pixels, batch.tokens))[0]
    plain()
    passes = [plain() for _ in range(3)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds, found = timed(lambda: first_departures(
        source, Stopwatch(), shown=program.runner, sizes=program.batch_sizes))
    passes += [plain() for _ in range(3)]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(json.dumps({"plain": statistics.median(passes), "localise": seconds,
                  "memory": (peak - before) / 1024,
                  "places": [[place.module, place.given] for place in found.found]}))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="ViT-B/32")
    parser.add_argument("--block", default="visual.transformer.resblocks.11")
    parser.add_argument("--keep", type=Path, help="folder for the programs, which is used again")
    add_option(parser)
    arguments = parser.parse_args()
    columns = ["altered", "found", "a plain pass", "localising", "in plain passes", "more memory"]
    with (
        tempfile.TemporaryDirectory() as scratch,
        table("inside", columns, arguments.tables) as row,
    ):
        folder = arguments.keep or Path(scratch)
        if not (folder / "bias.onnx").exists():
            run(WRITE, arguments.arch, str(folder), arguments.block)
        for fault, name in zip(FAULTS, ("epsilon", "bias", "none"), strict=True):
            row(fault, *cells(run(LOCALISE, str(folder / f"{name}.onnx"))))


def run(worker: str, *arguments: str) -> dict:
    command = [sys.executable, "-c", worker, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1]) if done.stdout else {}


def cells(found: dict) -> list[str]:
    return [
        ", ".join(f"{module} ({given})" for module, given in found["places"]) or "nothing",
        f"{found['plain']:.2f} s",
        f"{found['localise']:.2f} s",
        f"{found['localise'] / found['plain']:.1f}",
        f"{found['memory']:.0f} MB",
    ]


if __name__ == "__main__":
    main()
