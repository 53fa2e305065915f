"""Judge checkpoints, and load them for the user's own tests."""

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
    """The two models of a checkpoint.

    Attributes:
        reference: the eager model.
        candidate: the model that is compared with it.
    """

    reference: Backend
    candidate: Backend


class Run:
    """Judges and loads the checkpoints of a run of pytest, each once.

    Args:
        folder: shared by all workers of the run.
        needs: gates to run, by case; all gates for a case that is missing.
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
        return self.findings.find_or_judge(case, lambda: self._judge(case)).judgement

    def pair(self, case: Case) -> Pair:
        """Return both models. Only the last pair is kept: tests of one checkpoint are adjacent.

        Raises:
            ClipcheckError: one of them cannot be loaded; the subclass tells why.
        """
        if self._loaded is None or self._loaded[0] != case:
            self._loaded = None  # frees its memory before the next is loaded
            self._open.close()
            self._loaded = case, self._load(case)
        return self._loaded[1]

    def _judge(self, case: Case) -> Finding:
        size = subjects.size(case.model, self._start)
        with memory.reserved(self.findings.folder, memory.estimate(size)):
            try:
                # The user's filters may turn warnings into errors, which are no verdict.
                with warnings.catch_warnings():
                    warnings.simplefilter("default")
                    return self._check(case)
            # Any error is this checkpoint's result, so that it is not repeated for each gate.
            except Exception as error:
                traceback.print_exc()
                return Finding(case, _failed_judgement(case, error))

    def _check(self, case: Case) -> Finding:
        from clipcheck.harness.checking import check_files

        subject = self._find(case)
        result = check_files(subject.checkpoint, self._options(case, subject))
        (judgement,) = result.judgements
        judgement = replace(judgement, checkpoint=subject.label)
        source = subject.source if judgement.path else ""  # without a path it was not found
        return Finding(
            case, self._with_saved_inputs(replace(result, judgements=(judgement,))), source
        )

    def _with_saved_inputs(self, result: Result) -> Judgement:
        """Save the failing input for a replay, and return the judgement with its path."""
        from clipcheck.report.evidence import INPUTS, keep_inputs

        # The verdict does not need the saved input; output errors are reported at the end.
        with suppress(OutputError):
            result = keep_inputs(result, (self._choices.report or self.findings.folder) / INPUTS)
        (judgement,) = result.judgements
        return judgement

    def _load(self, case: Case) -> Pair:
        from clipcheck.backends.loading import build, opened_sides, require_runs
        from clipcheck.backends.modules import ModuleBackend
        from clipcheck.backends.sandboxes import sandbox_for
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
        sandbox = self._open.enter_context(sandbox_for(subject, device, options.apart))
        opened = opened_sides(
            subject,
            reference,
            device,
            case.dtype,
            archive=choice.backend.needs_archive,
            sandbox=sandbox,
            artefacts=options.artefacts,
            names=options.names,
        )
        source = self._open.enter_context(opened).source
        return Pair(ModuleBackend("eager", source.model, device), build(choice, source))

    def _options(self, case: Case, subject: subjects.Subject) -> CheckOptions:
        """Return the options of the case's check.

        For a checkpoint that this run wrote, key, architecture and reference do not apply, and by
        default its code runs in this process.
        """
        common = self._choices.options
        if subject.own:
            apart = common.isolation or "none"
            common = replace(common, key=None, architecture=None, reference=None, isolation=apart)
        needed = self._needs.get(case)
        applying = self._choices.gates_of(case.model, case.backend, case.dtype)
        if needed is not None and not needed.issuperset(applying):
            gates = [gate for gate in common.gates if gate in needed]
            common = replace(common, select=gates, ignore=None)
        return replace(common, backend=case.backend, device=case.device, dtype=case.dtype)

    def _find(self, case: Case) -> subjects.Subject:
        return subjects.find(case.model, self._start, self.findings.folder)


def _failed_judgement(case: Case, error: Exception) -> Judgement:
    from clipcheck.results.judgement import Judgement

    return Judgement(
        case.model,
        case.device,
        backend=case.backend,
        dtype=case.dtype,
        error=f"expected a result, found {type(error).__name__}: {first_line(error)}. The "
        "traceback is in the output of this test; unless memory ran out, please report it.",
    )
