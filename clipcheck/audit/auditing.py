"""Measure what the gates detect: plant and judge each fault and clean variant of the catalogue."""

from __future__ import annotations

import itertools
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from clipcheck.audit.bench import Bench, Model
from clipcheck.audit.faults import CLEAN, FAULTS
from clipcheck.audit.faults.by_backend import BACKEND_FAULTS, CLEAN_BACKENDS
from clipcheck.audit.faults.by_type import CLEAN_TYPES, TYPE_FAULTS
from clipcheck.audit.faults.lossy import CLEAN_LOSSY, LOSSY_FAULTS
from clipcheck.audit.faults.variant import Variant
from clipcheck.audit.findings import Audit, Finding
from clipcheck.audit.small import SMALL, model_named
from clipcheck.backends import names, registry
from clipcheck.backends.names import OF_ARCHIVES
from clipcheck.checkpoints.architecture import ResNet
from clipcheck.errors import ClipcheckError, RunError, UsageError, nearest
from clipcheck.families.registry import parameters_of
from clipcheck.gates.tolerances import LIMITS
from clipcheck.system.processes import Processes
from clipcheck.system.progress import Progress, Span, silent
from clipcheck.system.workers import cores
from clipcheck.system.workers import threads as threads_for
from clipcheck.writers.synthesize import architecture_named
from clipcheck.writers.trained import KINDS, require_trainable

ARCHITECTURES = ("tiny-vit", "tiny-resnet")
"""The architectures that are audited by default."""

BACKENDS = tuple(name for name in names.BACKENDS if not registry.find(name).needs_reference)
"""The backends that faults can be planted into: all except the reference."""

_OF_SMALL = "trace"
"""Backend for the small models of families by default: it shows the modules of any model."""

_COPIES = 4
"""Maximum number of float32 copies of a model in a worker: the reference, the altered and traced
model, the written archive, and the model loaded from it."""

CATALOGUE = (
    *FAULTS,
    *CLEAN,
    *BACKEND_FAULTS,
    *CLEAN_BACKENDS,
    *TYPE_FAULTS,
    *CLEAN_TYPES,
    *LOSSY_FAULTS,
    *CLEAN_LOSSY,
)
"""All variants: for archives, for other backends, for models of libraries, and those that a budget
judges, in this order."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One variant, to be planted into one backend of one model.

    Attributes:
        place: index of the variant in the catalogue.
        localize: whether to look for the place of a fault.
        memory: estimate of the bytes it needs; a job waits until there is room for it.
    """

    number: int
    model: Model
    backend: str
    place: int
    threads: int
    localize: bool
    memory: int

    @property
    def variant(self) -> Variant:
        """The variant, which is looked up here because it cannot be pickled."""
        return CATALOGUE[self.place]

    def __str__(self) -> str:
        return f"{self.variant.name} in {self.model} ({self.backend})"


def audit(
    architectures: Sequence[str] = ARCHITECTURES,
    *,
    seeds: Sequence[int] = (0,),
    weights: Sequence[str] = ("seeded",),
    dtypes: Sequence[str] = ("float32",),
    backends: Sequence[str] | None = None,
    families: Sequence[str] = (),
    only: Sequence[str] = (),
    threads: int | None = None,
    localize: bool = False,
    progress: Progress | None = None,
) -> Audit:
    """Judge every variant of the catalogue in every architecture with every set of weights.

    Args:
        architectures: released names, ``tiny-vit`` or ``tiny-resnet``.
        seeds: seeds of the weights.
        weights: kinds of weights, see `clipcheck.writers.trained.KINDS`; ``trained`` takes a minute
            for each small architecture and seed, the first time.
        dtypes: dtypes in which archives are judged. Variants of other backends have their own
            dtypes, and are judged only if float32 is given.
        backends: backends to plant into, from `BACKENDS`; ``all`` for each that can run on this
            machine. By default ``jit``, and ``trace`` for the small models of families.
            ``compile`` and ``aotinductor`` take most of a minute for each variant.
        families: names of small models, from `clipcheck.audit.small.SMALL`, for which the model
            of their library is the reference; ``all`` for each of them.
        only: names of variants; by default the whole catalogue.
        threads: threads of torch in each process; by default the cores are divided.
        localize: find the first place where each fault of an archive departs, and compare it with
            the place where it was planted.
        progress: called with a short text at the start and after each model; a
            `clipcheck.system.progress.Gauge` also gets the fraction done.

    Raises:
        UnknownModelError: no architecture has this name.
        UsageError: no kind of weights, dtype, backend or variant has this name, or there is
            nothing to audit.
        UnavailableError: a backend that was named cannot run on this machine.
        RunError: a worker process ended while it judged a variant.
    """
    small = SMALL if registry.ALL in families else tuple(families)
    _require_known(architectures, small, seeds, weights, dtypes, only)
    written = _defaults(architectures, small) if backends is None else backends
    able, left_out = _backends(written)
    if not able:
        raise UsageError(
            "expected a backend to plant faults into, found none",
            remedy=f"They are: {', '.join(BACKENDS)}.",
        )
    names = (*architectures, *small)
    models = [Model(*each) for each in itertools.product(names, seeds, weights, dtypes)]
    jobs = _jobs(models, able, frozenset(only), threads, localize)
    found = _performed(jobs, Span(progress or silent))
    # By backend, then in the order of the catalogue, then by model.
    order = {job.number: (BACKENDS.index(job.backend), job.place) for job in jobs}
    return Audit([found[number] for number in sorted(found, key=lambda n: order[n])], left_out)


def _jobs(
    models: Sequence[Model],
    backends: Sequence[str],
    only: frozenset[str],
    threads: int | None,
    localize: bool,
) -> list[Job]:
    """List a job for each variant of each model, model by model, so that consecutive jobs share the
    reference."""
    planned = [
        (model, backend, place)
        for model in models
        for backend in backends
        for place, variant in enumerate(CATALOGUE)
        if not only or variant.name in only
        if variant.dtype is None or model.dtype == "float32"
        if variant.budget is None or _keeps_budgets(model)
        if variant.applies_to(model_named(model.architecture), backend)
    ]
    # Small models gain nothing from threads.
    share = threads or threads_for(cores(), len(planned))
    memory = {
        model: _COPIES * 4 * parameters_of(model_named(model.architecture)) for model in models
    }
    return [
        Job(
            number=number,
            model=model,
            backend=backend,
            place=place,
            threads=share,
            localize=localize,
            memory=memory[model],
        )
        for number, (model, backend, place) in enumerate(planned)
    ]


def _keeps_budgets(model: Model) -> bool:
    """Whether correct programs of the model keep the budgets, measured on trained weights.

    Those in int8 of a ResNet with seeded weights do not: 1.8 times the limit if quantised
    dynamically, 2.5 times if statically.
    """
    vision = getattr(model_named(model.architecture), "vision", None)
    return model.weights != "seeded" or not isinstance(vision, ResNet)


def _performed(jobs: Sequence[Job], span: Span) -> dict[int, Finding]:
    """Judge all jobs in worker processes; return the findings by job number."""
    left = Counter(job.model for job in jobs)
    counts, models = dict(left), len(left)
    span.say(f"judging {_counted(len(jobs), 'variant')} of {_counted(models, 'model')}")
    found: dict[int, Finding] = {}
    waiting = list(reversed(jobs))
    with tempfile.TemporaryDirectory(prefix="clipcheck-audit-") as scratch:
        workers = Processes(min(cores(), max(1, len(jobs))), Path(scratch), perform)
        try:
            while len(found) < len(jobs):
                while waiting and workers.has_room(waiting[-1]):
                    workers.submit(waiting.pop())
                for outcome in workers.wait():
                    job = jobs[outcome.job]
                    found[job.number] = _finding(job, outcome.found, outcome.reason)
                    span.reach(len(found) / len(jobs))
                    left[job.model] -= 1
                    if not left[job.model]:
                        done = sum(not count for count in left.values())
                        told = _counted(counts[job.model], "variant")
                        span.say(f"{job.model}: {told} judged ({done} of {models})")
        finally:
            workers.close()
    return found


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _finding(job: Job, found: object, reason: str) -> Finding:
    if isinstance(found, Finding):
        return found
    if isinstance(found, ClipcheckError):
        raise found
    raise RunError(
        f"{job}: the worker process ended while it judged this variant ({reason})",
        remedy="Run this variant alone, with --only, to see its output.",
    )


def perform(job: Job) -> Finding | ClipcheckError:
    """Judge one variant, in a worker process."""
    import torch

    torch.set_num_threads(job.threads)
    try:
        return _bench(job.model).find(job.variant, job.backend, localize=job.localize)
    except ClipcheckError as error:
        return error


@lru_cache(maxsize=1)
def _bench(model: Model) -> Bench:
    """Return the bench of a model; only the last is kept, in the worker's temporary folder."""
    return Bench(model, Path(tempfile.mkdtemp()))


def _backends(written: Sequence[str]) -> tuple[tuple[str, ...], dict[str, str]]:
    """Return the backends to run, and why the others of ``all`` cannot run here."""
    named = {_known(each) for each in written if each != registry.ALL}
    for name in named:
        registry.require_available(registry.Choice(name))
    left_out = {}
    if registry.ALL in written:
        missing = {name: registry.find(name).available() for name in BACKENDS}
        left_out = {name: f"{m.reason}. {m.remedy}" for name, m in missing.items() if m}
        named = set(BACKENDS) - left_out.keys()
    return tuple(name for name in BACKENDS if name in named), left_out


def _defaults(architectures: Sequence[str], small: Sequence[str]) -> tuple[str, ...]:
    """Return the backends to use if none is named."""
    return (*([OF_ARCHIVES] if architectures else []), *([_OF_SMALL] if small else []))


def _known(written: str) -> str:
    choice = registry.parse(written)
    if choice.options or choice.name not in BACKENDS:
        raise UsageError(
            f"expected a backend to plant faults into, found {written!r}",
            remedy=f"They are, without options: {', '.join(BACKENDS)}.",
        )
    return choice.name


def _require_known(
    architectures: Sequence[str],
    small: Sequence[str],
    seeds: Sequence[int],
    weights: Sequence[str],
    dtypes: Sequence[str],
    only: Sequence[str],
) -> None:
    for name in small:
        if name not in SMALL:
            raise UsageError(
                f"expected a small model of a family, found {name!r}",
                remedy=f"{nearest(name, SMALL)}; all of them: {', '.join(SMALL)}.",
            )
    if small and set(weights) != {"seeded"}:
        raise UsageError(
            f"expected seeded weights for the small models of families, found {', '.join(weights)}",
            remedy="Leave --weights out.",
        )
    for name in architectures:
        architecture = architecture_named(name)
        if "trained" in weights:
            require_trainable(architecture)
    for what, known, given in (
        ("a kind of weights", KINDS, weights),
        ("a dtype", tuple(LIMITS), dtypes),
    ):
        for each in given:
            if each not in known:
                raise UsageError(
                    f"expected {what}, found {each!r}", remedy=f"Known are {', '.join(known)}."
                )
    names = {variant.name for variant in CATALOGUE}
    for name in only:
        if name not in names:
            raise UsageError(
                f"no variant is named {name!r}",
                remedy=f"{nearest(name, sorted(names))}; `clipcheck audit --list` lists all.",
            )
    if not ((architectures or small) and seeds and weights and dtypes):
        raise UsageError(
            "expected an architecture, a seed, a kind of weights and a dtype, found none",
            remedy="Give one of each.",
        )
