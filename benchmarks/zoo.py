"""Judge every architecture of open_clip's list and class of transformers, with seeded weights.

Each model is created, judged by the backends trace, export and onnxruntime in a job of a sweep, and
deleted. The ledger of the sweep keeps the results, so the same command resumes where it stopped. It
prints a table of all results so far, and below it the runs that did not pass.

The models of `FAULTS` are judged first, then the smallest of each family, then the next of each, so
that a list that is not complete has every family.

Without ``--full`` each tower has two layers in classes of transformers and in the models of
`FAULTS`, one layer in others, or one block in each stage, and a vocabulary larger than CLIP's is
cut; widths, heads and image sizes are those of the architecture. ``--faults`` instead plants a
fault into some of these models and judges it by trace. ``--small`` instead judges the small models
of ``clipcheck audit --family``, for backends that take minutes for others. ``--audits`` instead
reads the files of ``clipcheck audit --family NAME --json``, and prints the results by model.

    python -m benchmarks.zoo --examples 8 --tables docs/evidence/tables
    python -m benchmarks.zoo --only 'open_clip:EVA*' --backend trace
    python -m benchmarks.zoo --faults --tables docs/evidence/tables
    python -m benchmarks.zoo --small --backend script --backend compile --backend aotinductor
    python -m benchmarks.zoo --audits seeds.json --tables docs/evidence/tables
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from benchmarks.tables import add_option, table
from clipcheck.audit.small import SMALL, small
from clipcheck.checkpoints.architecture import Architecture
from clipcheck.checkpoints.library import (
    LibraryArchitecture,
    default_config,
    read_transformers,
)
from clipcheck.checkpoints.told import OPEN_CLIP, TRANSFORMERS, named
from clipcheck.harness.options import CheckOptions
from clipcheck.inputs.counts import EDGE_CASES
from clipcheck.inputs.tokenizer import VOCABULARY_SIZE
from clipcheck.sweep import worker
from clipcheck.sweep.catalogue import Entry
from clipcheck.sweep.engines.local import LocalEngine
from clipcheck.sweep.jobs import Job, Source
from clipcheck.sweep.ledger import Ledger
from clipcheck.sweep.plan import Plan, Setting, Unit, plan
from clipcheck.sweep.run import Row, run

BACKENDS = ("trace", "export", "onnxruntime")
VOCABULARY = 8192
"""Number of ids that are kept of a vocabulary larger than CLIP's."""

GELU = " with GELU"
SMALL_MODEL = "small:"
CLIP_GELU = f"{TRANSFORMERS}CLIPModel{GELU}"

FAMILIES = {
    "ModifiedResNet": r"RN\d",
    "CLIPA": r".*CLIPA",
    "MetaCLIP 2": r".*worldwide",
    "text towers of transformers": r"(coca_|xlm-)?roberta|mt5|nllb",
    "SigLIP 2": r".*SigLIP2",
    "SigLIP": r".*SigLIP",
    "CoCa": r"coca",
    "EVA": r"EVA",
    "MobileCLIP": r"MobileCLIP",
    "ViTamin": r"ViTamin",
    "PE-Core": r"PE-Core",
    "ConvNeXt": r"convnext",
    "other towers of timm": r"swin|vit_",
    "plain ViT": r"ViT",
}
"""Families of open_clip's list, by the prefix of the names of their configurations."""

STAGES = {
    r"convnext|swin": {"depths": [1, 1, 1, 1]},
    r"fastvit_mci[34]": {"layers": [1] * 5},
    r"fastvit": {"layers": [1] * 4},
}
"""Arguments of timm for one block in each stage, by the prefix of the tower's name; other towers
take a number of layers."""

MASK, EPSILONS = "causal-mask-dropped", "epsilons-of-another-library"

FAULTS = {
    f"{OPEN_CLIP}ViT-B-32": MASK,
    f"{OPEN_CLIP}ViT-H-14": MASK,
    f"{OPEN_CLIP}ViT-B-16-SigLIP2": EPSILONS,
    f"{OPEN_CLIP}MobileCLIP2-S0": EPSILONS,
    f"{OPEN_CLIP}EVA02-B-16": EPSILONS,
    f"{OPEN_CLIP}ViTamin-S": EPSILONS,
    f"{OPEN_CLIP}convnext_base": EPSILONS,
    f"{OPEN_CLIP}PE-Core-T-16-384": EPSILONS,
    f"{OPEN_CLIP}coca_ViT-B-32": EPSILONS,
    f"{OPEN_CLIP}roberta-ViT-B-32": EPSILONS,
    CLIP_GELU: MASK,
    f"{TRANSFORMERS}SiglipModel": EPSILONS,
    f"{TRANSFORMERS}Siglip2Model": EPSILONS,
    f"{TRANSFORMERS}ChineseCLIPModel": EPSILONS,
    f"{TRANSFORMERS}CLIPTextModelWithProjection": EPSILONS,
}
"""Faults that ``--faults`` plants, by model."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", action="append", metavar="PATTERN", help="names; default: all")
    parser.add_argument("--full", action="store_true", help="judge models at full size")
    parser.add_argument("--backend", action="append", help=f"default: {', '.join(BACKENDS)}")
    parser.add_argument(
        "--examples", type=int, default=EDGE_CASES, help="images; default: the edge cases"
    )
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--ledger", type=Path, default=Path("zoo.sqlite"), metavar="FILE")
    parser.add_argument("--known", action="store_true", help="only print the results so far")
    parser.add_argument("--faults", action="store_true", help="plant faults instead")
    parser.add_argument("--small", action="store_true", help="judge small models instead")
    parser.add_argument("--audits", nargs="+", type=Path, metavar="JSON", help="print these audits")
    parser.add_argument("--name", default="zoo-power", help="of the table of audits")
    add_option(parser)
    arguments = parser.parse_args()
    if arguments.audits:
        power(arguments.audits, arguments.name, arguments.tables)
        return
    chosen = [
        name
        for name in (FAULTS if arguments.faults else names(small=arguments.small))
        if any(fnmatch.fnmatch(name, pattern) for pattern in arguments.only or ["*"])
    ]
    if arguments.faults:
        plant(chosen, arguments.tables)
        return
    units = judged(chosen, arguments)
    report(units, "zoo-small" if arguments.small else "zoo", arguments.tables)


def names(*, small: bool = False) -> list[str]:
    """List all architectures of open_clip's list, and all judged classes of transformers; or the
    small models of both."""
    if small:
        return [f"{SMALL_MODEL}{name}" for name in SMALL]
    import open_clip

    from clipcheck.checkpoints.kinds import KINDS, TOWERS

    classes = ["CLIPModel", *(kind.name for kind in KINDS.values()), *TOWERS]
    return [
        *(f"{OPEN_CLIP}{name}" for name in open_clip.list_models() if ":" not in name),
        *(f"{TRANSFORMERS}{name}" for name in classes),
        CLIP_GELU,
    ]


# ------------------------------------------------------------------------------ models


def described(name: str, scratch: Path, *, full: bool) -> Architecture | LibraryArchitecture:
    """Return the architecture of this name, at full size or made shallow.

    Args:
        name: one of `names`.
        scratch: a folder that exists as long as the model.
        full: whether the model has its full size.
    """
    from clipcheck.writers.synthesize import shallow

    if name.startswith(SMALL_MODEL):
        return small(name.removeprefix(SMALL_MODEL))
    if name == CLIP_GELU:
        config = default_config("clip")
        for tower in ("text_config", "vision_config"):
            config[tower]["hidden_act"] = "gelu"
        found, _ = read_transformers(config, Path(name))
    else:
        found = named(name, asked="", text_config=True).model
    if full:
        return found
    layers = 2 if name in FAULTS or name.startswith(TRANSFORMERS) else 1
    if isinstance(found, LibraryArchitecture):
        settings = found.settings
        if found.library == "transformers":
            _cut(settings.get("text_config", settings))
        else:
            _cut(settings["model_cfg"]["text_cfg"])
            make_shallow(settings["model_cfg"]["vision_cfg"], scratch, layers)
        files = tuple((name, _cut_file(text)) for name, text in found.files)
        found = replace(found, config=json.dumps(settings, sort_keys=True), files=files)
    return shallow(found, layers)


def make_shallow(vision: dict[str, Any], folder: Path, layers: int) -> None:
    """Make a tower of timm shallow, by a folder: a configuration of open_clip cannot set the
    depth."""
    name = vision.get("timm_model_name")
    if name:
        import timm

        stages = (args for begin, args in STAGES.items() if re.match(begin, name))
        args = next(stages, {"depth": layers})
        known = timm.get_pretrained_cfg(name)
        if known is None:
            raise ValueError(f"timm has no configuration of {name}")
        size = {"input_size": known.input_size, "fixed_input_size": known.fixed_input_size}
        config = {"architecture": name, "model_args": args, "pretrained_cfg": size}
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        vision["timm_model_name"] = f"local-dir:{folder}"


def _cut(text: dict[str, Any]) -> None:
    """Cut a vocabulary that is larger than CLIP's."""
    if text.get("vocab_size", 0) > VOCABULARY_SIZE:
        text["vocab_size"] = VOCABULARY


def _cut_file(text: str) -> str:
    config = json.loads(text)
    _cut(config)
    return json.dumps(config, sort_keys=True)


def write(name: str, found: Architecture | LibraryArchitecture, folder: Path) -> None:
    """Write a folder of the model's library, with seeded weights."""
    from clipcheck.checkpoints.checkpoint import Checkpoint, Format
    from clipcheck.writers.directories import write_open_clip, write_transformers
    from clipcheck.writers.library import write_folder
    from clipcheck.writers.synthesize import synthesize

    if isinstance(found, LibraryArchitecture):
        write_folder(found, folder)
    else:
        weights = synthesize(found)
        drawn = Checkpoint(
            path=folder, format=Format.STATE_DICT, model=found, tensors=weights, told="drawn here"
        )
        (write_open_clip if name.startswith(OPEN_CLIP) else write_transformers)(drawn, folder)


# ------------------------------------------------------------------------------ the sweep


def judged(chosen: Sequence[str], arguments: argparse.Namespace) -> Sequence[Unit]:
    """Judge the models that the ledger lacks; return all, with or without a result."""
    from benchmarks.zoo import perform  # by the module's own name, which workers can import

    depth = "full" if arguments.full else "shallow"
    backends = tuple(arguments.backend or BACKENDS)
    entries = [
        # Like models of a hub: a worker makes them, judges them and deletes them.
        Entry(
            label=name,
            source=Source("hub", f"seeded/{depth}/{name}"),
            backends=backends,
            devices=("cpu",),
        )
        for name in chosen
    ]
    options = CheckOptions(examples=arguments.examples, isolation="none", cache=False)
    with Ledger(arguments.ledger) as ledger, tempfile.TemporaryDirectory() as scratch:
        engine = LocalEngine(arguments.workers, Path(scratch), perform=perform)
        setting = Setting(options, Path(scratch), "cpu", engine.threads())
        with closing(engine), suppress(KeyboardInterrupt):
            if not arguments.known:
                run(in_turn(plan(entries, ledger, setting)), engine, ledger, tell=print)
        return plan(entries, ledger, setting).units


def in_turn(whole: Plan) -> Plan:
    """Order jobs: the models of `FAULTS` first, then the smallest of each family, then the next of
    each."""
    families = defaultdict(list)
    for job in sorted(whole.jobs, key=lambda job: (size_of(job.label), job.label)):
        families["" if job.label in FAULTS else family_of(job.label)].append(job)
    first = families.pop("", [])
    rounds = zip_longest(*families.values())
    rest = [job for each in rounds for job in each if job is not None]
    return replace(whole, jobs=[*first, *rest])


def size_of(name: str) -> int:
    """Return a number that grows with the time of a model's check: pixels of an image, times the
    channels of its features."""
    if name.startswith(SMALL_MODEL):
        return 0
    import open_clip

    from clipcheck.families.registry import sizes_of

    if name.startswith(OPEN_CLIP):
        config = open_clip.get_model_config(name.removeprefix(OPEN_CLIP))
        side, channels = config["vision_cfg"].get("image_size", 224), config["embed_dim"]
    else:
        sizes = sizes_of(named(name.removesuffix(GELU)).model)
        side, channels = sizes.image_resolution, sizes.embed_dim
    return int(side) ** 2 * int(channels)


def perform(job: Job) -> str:
    """Create the model of a job and judge it, in a worker."""
    _, depth, name = job.source.place.split("/", 2)
    with tempfile.TemporaryDirectory(dir=job.scratch) as folder:
        path = Path(folder) / "model"
        write(name, described(name, Path(folder), full=depth == "full"), path)
        return worker.perform(replace(job, source=Source("path", str(path))))


# ------------------------------------------------------------------------------ the table


def report(units: Sequence[Unit], title: str, tables: Path | None) -> None:
    """Print the results by family, and the runs that did not pass."""
    families = defaultdict(list)
    for unit in units:
        families[family_of(unit.entry.label)].append(unit)
    backends = list(dict.fromkeys(unit.backend for unit in units))
    columns = ["family", "models", "pairs", "judged", "passed", *backends, "seconds"]
    with table(title, columns, tables) as row:
        for family, members in families.items():
            row(*line(family, members, backends))
        row(*line("**all**", units, backends))
    for told in problems(units):
        print(told)


def line(family: str, units: Sequence[Unit], backends: Sequence[str]) -> list[object]:
    """Format the results of a family, with its largest error as a share of a `fidelity` limit."""
    rows = known(units)
    labels = list(dict.fromkeys(unit.entry.label for unit in units))
    seconds = {row.unit.entry.label: row.cost.seconds or 0 for row in rows}
    return [
        family,
        len(labels),
        sum(map(pairs, labels)),
        f"{sum(row.state != 'not judged' for row in rows)} of {len(units)}",
        sum(row.state == "consistent" for row in rows),
        *(most([row for row in rows if row.unit.backend == each]) for each in backends),
        f"{sum(seconds.values()):,.0f}",
    ]


def known(units: Sequence[Unit]) -> list[Row]:
    """List the results."""
    return [Row(u, u.verdict.found, u.verdict.cost) for u in units if u.verdict is not None]


def most(rows: Sequence[Row]) -> str:
    """Return the largest error, in percent of a limit of the gate `fidelity`."""
    margins = [
        gate.margin
        for row in rows
        for each in row.found.results
        for gate in each.gates
        if gate.name == "fidelity"
    ]
    return f"{100 * max(margins):.0f} %" if margins else "-"


def problems(units: Sequence[Unit]) -> Iterator[str]:
    """List the runs that did not pass, each with its reason."""
    for row in known(units):
        for each in row.found.results:
            if not each.passed:
                failed = [f"{gate.name}: {gate.message}" for gate in each.gates if not gate.passed]
                yield f"{each.checkpoint}, {each.backend}: {each.error or '; '.join(failed)}"


# ------------------------------------------------------------------------------ faults


def plant(chosen: Sequence[str], tables: Path | None) -> None:
    """Plant its fault into each of these models, and print the results of the gates."""
    from clipcheck.audit.auditing import CATALOGUE
    from clipcheck.audit.bench import Bench, Model

    variants = {variant.name: variant for variant in CATALOGUE}
    columns = ["model", "fault", "caught by", "times the limit", "classic assertion"]
    with table("zoo-faults", columns, tables) as row:
        for name in chosen:
            fault = FAULTS[name]
            with tempfile.TemporaryDirectory() as folder:
                found = described(name, Path(folder), full=False)
                model = Model(name, 0, "seeded", "float32")
                finding = Bench(model, Path(folder), found).find(variants[fault], BACKENDS[0])
            classic = "fails" if finding.classic_caught else "passes"
            row(name, fault, finding.gate or "nothing", f"{finding.margin:,.1f}", classic)


def power(audits: Sequence[Path], name: str, tables: Path | None) -> None:
    """Print the results of audits, by model and backend.

    Args:
        name: of the table.
    """
    from benchmarks.calibration import by_limit, margin

    read = [json.loads(path.read_text()) for path in audits]
    faults = [entry for each in read for entry in each["faults"]]
    clean = [entry for each in read for entry in each["clean"]]
    columns = ["model", "backend", "seeds", "caught", "classic", "weakest", "passed", "most"]
    with table(name, columns, tables) as row:
        for model, backend in dict.fromkeys((e["architecture"], e["backend"]) for e in faults):
            planted, others = (
                [e for e in entries if (e["architecture"], e["backend"]) == (model, backend)]
                for entries in (faults, clean)
            )
            weakest = min(planted, key=margin)
            row(
                model,
                backend,
                ", ".join(map(str, sorted({e["seed"] for e in planted}))),
                f"{sum(e['caught'] for e in planted)} of {len(planted)}",
                sum(e["classic_caught"] for e in planted),
                f"{margin(weakest):,.2g}, {weakest['name']}",
                f"{sum(e['passed'] for e in others)} of {len(others)}",
                f"{max(map(margin, others)):.2f}",
            )
    print("\n".join(by_limit(faults, clean)))


def family_of(name: str) -> str:
    """Return the family of a name, for the table; a small model has its family's name."""
    if name.startswith(SMALL_MODEL):
        return name.removeprefix(SMALL_MODEL)
    if name.startswith(TRANSFORMERS):
        return "transformers"
    own = name.removeprefix(OPEN_CLIP)
    return next(family for family, begin in FAMILIES.items() if re.match(begin, own))


def pairs(name: str) -> int:
    """Return how many (architecture, tag) pairs of open_clip's list have this architecture."""
    from open_clip.pretrained import list_pretrained_tags_by_model

    own = name.removeprefix(OPEN_CLIP)
    return 0 if own == name else len(list_pretrained_tags_by_model(own))


if __name__ == "__main__":
    main()
