"""Measure the loading of a full-size ViT-B/32 archive by clipcheck, clip-anytorch and openai-clip.

Each load runs in a separate process, in turn, for several rounds; the table has medians. Both other
packages have a module named ``clip``: install openai-clip into a separate folder with
``pip install --no-deps --target FOLDER openai-clip==1.0.1`` and give it as ``--openai FOLDER``.

    python -m benchmarks.load --openai FOLDER
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.tables import add_option, table

WORKER = """
import json, resource, sys, time, warnings
package, way, path, folder = sys.argv[1:]
warnings.simplefilter("ignore")
if folder:
    sys.path.insert(0, folder)
started = time.perf_counter()
if package == "clipcheck":
    import clipcheck as clip
    clip.load, clip.load_both
else:
    import clip
imported = time.perf_counter()
ways = {
    "eager": lambda: clip.load(path, "cpu"),
    "jit": lambda: clip.load(path, "cpu", jit=True),
    "both": lambda: (clip.load(path, "cpu", jit=True), clip.load(path, "cpu")),
}
if package == "clipcheck":
    ways["both"] = lambda: clip.load_both(path, "cpu")
try:
    kept = ways[way]()
    error = None
except Exception as failure:
    error = f"{type(failure).__name__}: {failure}"
loaded = time.perf_counter()
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
print(json.dumps({"import": imported - started, "load": loaded - imported, "peak": peak,
                  "error": error}))
"""

WAYS = ("eager", "jit", "both")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--openai", default="", help="folder with openai-clip 1.0.1")
    parser.add_argument("--checkpoint", type=Path, help="an archive; by default one is written")
    parser.add_argument("--rounds", type=int, default=7)
    add_option(parser)
    arguments = parser.parse_args()
    packages = {"clipcheck": "", "clip-anytorch": ""}
    if arguments.openai:
        packages["openai-clip"] = arguments.openai
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = arguments.checkpoint or write_archive(Path(folder))
        measured = measure(packages, checkpoint, arguments.rounds)
    report(measured, arguments.rounds, arguments.tables)


def write_archive(folder: Path) -> Path:
    from clipcheck.checkpoints.architecture import ARCHITECTURES
    from clipcheck.checkpoints.checkpoint import Format
    from clipcheck.writers.convert import write
    from clipcheck.writers.synthesize import synthesize

    path = folder / "ViT-B-32.pt"
    architecture = ARCHITECTURES["ViT-B/32"]
    write(architecture, synthesize(architecture), path, Format.ARCHIVE)
    return path


def measure(packages: dict[str, str], checkpoint: Path, rounds: int) -> dict:
    """Measure all rounds, by package and kind of load. The first only warms the page cache."""
    measured: dict = {}
    for number in range(rounds + 1):
        for way in WAYS:
            for package, folder in packages.items():
                found = run(package, way, checkpoint, folder)
                if number:
                    measured.setdefault((package, way), []).append(found)
    return measured


def run(package: str, way: str, checkpoint: Path, folder: str) -> dict:
    command = [sys.executable, "-c", WORKER, package, way, str(checkpoint), folder]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def report(measured: dict, rounds: int, folder: Path | None) -> None:
    print(f"Medians of {rounds} rounds; each load in a process of its own. Times as much: of")
    print("clipcheck's own, round by round.\n")
    columns = ["way", "package", "import", "load", "load, times as much", "peak memory"]
    with table("load", [*columns, "of clipcheck's"], folder) as row:
        for way in WAYS:
            base = measured["clipcheck", way]
            for package in dict.fromkeys(package for package, _ in measured):
                row(way, package, *cells(measured[package, way], base))


def cells(found: list[dict], base: list[dict]) -> list[str]:
    if found[0]["error"]:
        return ["", f"fails: {found[0]['error']}", "", "", ""]
    median = {key: statistics.median(f[key] for f in found) for key in ("import", "load", "peak")}
    ratio = statistics.median(f["load"] / b["load"] for f, b in zip(found, base, strict=True))
    memory = statistics.median(f["peak"] / b["peak"] for f, b in zip(found, base, strict=True))
    return [
        f"{median['import']:.2f} s",
        f"{median['load']:.2f} s",
        f"{ratio:.2f}",
        f"{median['peak']:.2f} GB",
        f"{memory:.2f}",
    ]


if __name__ == "__main__":
    main()
