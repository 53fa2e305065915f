"""Runs of a checkpoint: judge it, or load it for tests of the user's own."""

from __future__ import annotations

import traceback
import warnings
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from clipcheck.errors import OutputError, first_line
from clipcheck.plugin import subjects
from clipcheck.plugin.choices import Choices
from clipcheck.plugin.sharing import Case, Finding, Findings
from clipcheck.system import memory

if TYPE_CHECKING:
    from clipcheck.backends.base import Backend
    from clipcheck.harness.options import CheckOptions
    from clipcheck.plugin.needs import Needs
    from clipcheck.results.judgement import Judgement, Result


@dataclass(frozen=True)
class Pair:
    """A checkpoint, to be run in two ways.

    Attributes:
        reference: the eager model.
        candidate: what is compared with it.
    """

    reference: Backend
    candidate: Backend


class Run:
    """Judges and loads what a run of pytest asks for, each once.

    Args:
        choices: what is asked for.
        start: the folder that paths start from.
        folder: what all workers of the run share.
        needs: the gates that are tested; all of a case that is not there.
    """

    def __init__(
        self, choices: Choices, start: Path, folder: Path, needs: Needs | None = None
    ) -> None:
        self.findings = Findings(folder)
        self._choices = choices
        self._start = start
        self._needs = needs or {}
        self._loaded: tuple[Case, Pair] | None = None
        self._open = ExitStack()

    def judgement(self, case: Case) -> Judgement:
        """Return the result of a check of the case."""
        return self.findings.once(case, lambda: self._judge(case)).judgement

    def pair(self, case: Case) -> Pair:
        """Both models. Only the last one is kept: tests of one checkpoint stand together.

        Raises:
            ClipcheckError: the checkpoint cannot be loaded both ways; the subclass tells why.
        """
        if self._loaded is None or self._loaded[0] != case:
            self._loaded = None  # before the next comes, not after
            self._open.close()
            self._loaded = case, self._load(case)
        return self._loaded[1]

    def _judge(self, case: Case) -> Finding:
        size = subjects.size(case.model, self._start)
        with memory.reserved(self.findings.folder, memory.estimate(size)):
            try:
                # The user's filters may make errors of them: a warning is no verdict.
                with warnings.catch_warnings():
                    warnings.simplefilter("default")
                    return self._check(case)
            # Whatever it is, it is of this checkpoint alone, and is not tried for each gate anew.
            except Exception as error:
                traceback.print_exc()
                return Finding(case, _failed(case, error))

    def _check(self, case: Case) -> Finding:
        from clipcheck.harness.checking import check_files

        subject = self._find(case)
        result = check_files(subject.checkpoint, self._options(case, subject))
        (judgement,) = result.judgements
        judgement = replace(judgement, checkpoint=subject.label)
        source = subject.source if judgement.path else ""  # else it was not fetched
        return Finding(case, self._kept(replace(result, judgements=(judgement,))), source)

    def _kept(self, result: Result) -> Judgement:
        """The judgement, with its failing input in a folder, to be run again."""
        from clipcheck.report.evidence import INPUTS, keep_inputs

        # The verdict stands without it, and a report that cannot be written is told at the end.
        with suppress(OutputError):
            result = keep_inputs(result, (self._choices.report or self.findings.folder) / INPUTS)
        (judgement,) = result.judgements
        return judgement

    def _load(self, case: Case) -> Pair:
        from clipcheck.backends.cells import cell_for
        from clipcheck.backends.loading import build, opened_sides, require_runs
        from clipcheck.backends.modules import ModuleBackend
        from clipcheck.checkpoints.opening import open_pair
        from clipcheck.models.loader import resolve_device

        found = self._find(case)
        options = self._options(case, found)
        subject, reference = open_pair(
            found.checkpoint,
            options.reference,
            options.download_root,
            key=options.key,
            architecture=options.told,
        )
        (choice,) = options.choices
        require_runs(choice, subject)
        device = resolve_device(case.device)
        cell = self._open.enter_context(cell_for(subject, device, options.apart))
        opened = opened_sides(
            subject,
            reference,
            device,
            case.dtype,
            archive=choice.backend.needs_archive,
            cell=cell,
            artefacts=options.artefacts,
        )
        source = self._open.enter_context(opened).source
        return Pair(ModuleBackend("eager", source.model, device), build(choice, source))

    def _options(self, case: Case, subject: subjects.Subject) -> CheckOptions:
        """Return the options of its check. A checkpoint that this run has written is one model,
        whose architecture is known, and its code runs in this process if nothing else is said."""
        common = self._choices.options
        if subject.own:
            apart = common.isolation or "none"
            common = replace(common, key=None, architecture=None, reference=None, isolation=apart)
        needed = self._needs.get(case)
        if needed is not None:
            gates = [gate for gate in common.gates if gate in needed]
            common = replace(common, select=gates, ignore=None)
        return replace(common, backend=case.backend, device=case.device, dtype=case.dtype)

    def _find(self, case: Case) -> subjects.Subject:
        return subjects.find(case.model, self._start, self.findings.folder)


def _failed(case: Case, error: Exception) -> Judgement:
    from clipcheck.results.judgement import Judgement

    return Judgement(
        case.model,
        case.device,
        backend=case.backend,
        dtype=case.dtype,
        error=f"expected a judgement, found {type(error).__name__}: {first_line(error)}. The "
        "traceback is in what this test printed; if it is not for want of memory, please report "
        "it.",
    )
