"""The gates in their order, with explanations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from clipcheck.errors import UsageError, nearest
from clipcheck.gates import headlines
from clipcheck.gates.tolerances import BUDGETS, LIMITS, LOGIT_SCALE, Allclose

if TYPE_CHECKING:
    from clipcheck.gates.result import GateResult

_SINGLE, _HALF, _BFLOAT = LIMITS["float32"], LIMITS["float16"], LIMITS["bfloat16"]
_CLASSIC = Allclose()


@dataclass(frozen=True, kw_only=True)
class Gate:
    """A gate and its explanation.

    Attributes:
        name: in reports and options.
        title: a few words.
        passes_when: the rule, in a sentence.
        explanation: why it exists, and what its limit is based on.
        remedy: what to do if it fails.
        dtypes: in which it applies.
        needs_modules: whether it applies only to backends whose modules can be called alone.
        needs_reference: whether it applies only with another file as the reference.
        needs_logits: whether it applies only to candidates with logits.
        needs_repeats: whether it needs repeated rows.
        needs_lengths: whether it needs prompts of every length.
        needs_budget: whether it applies only with ``--budget``.
        beside_budget: whether it can fail with a budget; other gates are only measured.
        headline: writes the main figure of a result.
        noise: factor by which its margin may vary between runs of an unchanged checkpoint, see
            `UNMEASURED`; None if that was not measured.
    """

    name: str
    title: str
    passes_when: str
    explanation: str
    remedy: str
    dtypes: tuple[str, ...] = tuple(LIMITS)
    needs_modules: bool = False
    needs_reference: bool = False
    needs_logits: bool = False
    needs_repeats: bool = False
    needs_lengths: bool = False
    needs_budget: bool = False
    beside_budget: bool = False
    headline: Callable[[GateResult, headlines.Times], str] = headlines.of_ratios
    noise: float | None = None


GATES = (
    Gate(
        name="weights",
        beside_budget=True,
        headline=headlines.of_weights,
        title="The weights are the reference's.",
        passes_when="Each weight equals the weight of --reference, correctly rounded to the dtype "
        "that the file stores.",
        explanation="Judges only with --reference. Keys are mapped between the layouts of the "
        "reference implementation, open_clip and transformers. There is no tolerance: rounding to "
        "the nearest number has one correct result. A difference is reported in ulps. The outputs "
        "are then compared with the reference's weights rounded in the same way, so that the "
        "stored dtype does not count as an error of the conversion.",
        remedy="Look at the weights that the message names. If one tensor is wrong, the conversion "
        "mapped or transposed it wrongly. If all differ by a few ulps, they were cast twice. If "
        "all differ entirely, the file is another checkpoint, perhaps with EMA weights (--key). "
        "`clipcheck convert` writes the weights bit for bit.",
        needs_reference=True,
    ),
    Gate(
        name="integrity",
        beside_budget=True,
        headline=headlines.of_integrity,
        needs_repeats=True,
        title="The candidate is complete, and not the reference itself.",
        passes_when="The candidate is not the reference itself; every output exists, is finite, "
        "and has the right shape and dtype; the weights are the file's, bit for bit where they can "
        "be compared; all weights are used, and running the model changes none; an image with a "
        "NaN gives NaN, as in the eager model.",
        explanation="The other gates compare numbers, and would pass if there is nothing to "
        "compare: a model compared with itself, a missing output, an empty batch. There is no "
        "tolerance.",
        remedy="`clipcheck inspect FILE` shows what the file is. If a weight has no effect or an "
        "output is missing, the export is wrong: export the model again, in evaluation mode, with "
        "all its methods. If outputs are not finite, run `clipcheck localize FILE`, or try --dtype "
        "float32. If outputs have numbers in place of NaN, remove torch.nan_to_num or similar code "
        "from the model, and export it again.",
    ),
    Gate(
        name="allclose",
        headline=headlines.of_allclose,
        noise=4.0,
        needs_logits=True,
        title="The classic assertion on probabilities.",
        passes_when=f"np.allclose(candidate, reference, atol={_CLASSIC.atol:g}, "
        f"rtol={_CLASSIC.rtol:g}) holds for the softmax of both logits, or for their sigmoid in a "
        "model that was trained with sigmoid loss.",
        explanation="The reference implementation's own test asserts this, and users of `load` "
        "rely on it. The tolerances are the same; --atol and --rtol change them. They are wide: "
        "`clipcheck audit` shows how many known faults pass. If the eager model itself is further "
        f"from float64 than {_SINGLE.allclose:g} of the limit (in bfloat16 always), the gate "
        "reports the differences but does not fail.",
        remedy="Users will see different results. Look at `fidelity` and `modules`, which say "
        "where the error starts, and replay the failing input.",
    ),
    Gate(
        name="fidelity",
        noise=2.5,
        needs_lengths=True,
        title="As close to float64 as the eager model.",
        passes_when="For each output, the candidate's error against float64 is at most "
        f"{_SINGLE.features:g} times the eager model's over a whole batch, and at most "
        f"{_SINGLE.feature_row:g} times in a single row.",
        explanation="A float32 model is never exact. Another correct way to compute the same "
        "function has an error of the same size; a fault has one that is larger by orders of "
        "magnitude. The error is the root mean square against the eager model in float64. The "
        "limits lie between the worst correct variant that was measured (1.4 for features, 2.9 for "
        "a row of logits) and the weakest fault (86).",
        remedy="The report names the row and, for an archive, the first module that departs. "
        "`clipcheck replay` runs the smallest failing input again. If the report says that the "
        "file equals another architecture, say so with --architecture; otherwise `clipcheck "
        "convert` writes an archive with the same weights and correct code.",
        dtypes=("float32",),
    ),
    Gate(
        name="modules",
        noise=2.0,
        title="Each module as close to float64 as the eager one.",
        passes_when="Each module of an archive or a program, given the input that it has in there, "
        f"has at most {_SINGLE.module:g} times the error of the eager module against float64.",
        explanation="End to end, the rounding of later layers hides a small fault; in its module "
        "alone it is visible. Modules are also called on inputs that they rarely get in the whole "
        "model: nearly constant rows, large values, attention scores of 95. The worst correct "
        "variant measured 1.43, the weakest fault 161. A module may be further off if the residual "
        "block around it is not: then the block divides its work differently.",
        remedy="Compare the code of the module in the message with the reference implementation: "
        "activation, epsilon, scale, mask. `clipcheck localize` compares only the modules, and is "
        "faster.",
        dtypes=("float32",),
        needs_modules=True,
    ),
    Gate(
        name="precision",
        noise=2.5,
        needs_lengths=True,
        title="Fidelity in half precision and bfloat16.",
        passes_when="As `fidelity`, compared with the eager model in the same dtype, and no "
        f"logit's error is greater than {_HALF.cap:g} ulps or {_HALF.logit_row:g} times the eager "
        "model's error in its row, whichever is more.",
        explanation="float16 has 11 significant bits and bfloat16 8, so correct models with "
        "trained weights have errors above 8 ulps in a third of the runs; then the eager model's "
        "error in the same dtype is the measure. An ulp is that of a logit from 16 to 32, for a "
        "logit scale of 100.",
        remedy="Check whether float32 passes (--dtype float32). If it does, look for a sum or a "
        "norm that is computed in half precision, and in float32 in the eager model.",
        dtypes=("float16", "bfloat16"),
    ),
    Gate(
        name="top1",
        headline=headlines.of_top1,
        needs_logits=True,
        title="The best match agrees.",
        passes_when="In every row of logits, the greatest logit is the same as in float64, unless "
        "rounding alone could change that.",
        explanation="Users of zero-shot classification or retrieval see this. A row counts if its "
        "best match leads by more than twice the limit of a logit's error; the others are ties, "
        "and are ignored.",
        remedy="The message names the image and the prompts that changed places. `fidelity` and "
        "`modules` say where the error starts.",
    ),
    Gate(
        name="budget",
        headline=headlines.of_budget,
        needs_budget=True,
        beside_budget=True,
        title="A lossy candidate stays within its budget.",
        passes_when="Over random images and prompts, the lower end of each figure's 95 % interval "
        "keeps the limit of --budget: the least and the median cosine of features with float64's "
        "(`cosine`, `median`), the share of rows whose best match is float64's (`top1`), the share "
        "of float64's five best matches that are kept (`top5`), and the rank correlation "
        f"(`spearman`). In addition, the logit scale is within {LOGIT_SCALE:.0%} of the "
        "reference's; for int8, no quantised weight has fewer than "
        f"{BUDGETS['int8'].levels} levels in its range.",
        explanation="A program in int8 or 4 bits is lossy on purpose, with errors far above "
        "rounding. With a budget, `modules` does not run; `allclose`, `fidelity`, `precision` "
        "and `top1` are measured and shown, but cannot fail. `integrity` compares quantised "
        "weights by their scales and zero points. `repeatability` repeats only whole batches, "
        "because a scale may depend on the batch. Shares have Wilson's interval, other figures a "
        "bootstrap's, and a least value is its own interval. Enough inputs run that a share passes "
        "if its shortfall is a third of the allowed one. A budget that needs too many inputs is "
        "refused.",
        remedy="The report lists the layers by how much they add to the error: leave the first "
        "ones in float (`nodes_to_exclude` of onnxruntime.quantization). A low least cosine points "
        "at ranges that were calibrated on different data. If one layer stands out, quantise by "
        "channel.",
    ),
    Gate(
        name="repeatability",
        beside_budget=True,
        headline=headlines.of_repeatability,
        noise=2.0,
        needs_repeats=True,
        title="The same input gives the same output.",
        passes_when="Rows that run again (alone, in other batches, after many calls, and in other "
        f"forms of the input) change by at most {2 * _SINGLE.feature_row:g} times the eager "
        "model's error against float64.",
        explanation="TorchScript changes its execution plan on the second and third call, and a "
        "batch of another size is summed in another order. Each may change a result by its "
        "rounding error, and two such errors may add up. A result that depends on the batch, on "
        "the number of the call or on the form of the input changes more.",
        remedy="The message says in which call the result changed. Look for code that depends on "
        "the batch size, for buffers that are reused, for state between calls, and for dropout "
        "that is still active.",
    ),
)
"""In the order of reports."""

NAMES = tuple(gate.name for gate in GATES)

UNMEASURED = max(gate.noise for gate in GATES if gate.noise is not None)
"""Noise of a gate for which it was not measured.

Measured with `python -m benchmarks.noise`: both small architectures, ten seeds with one thread and
with two, on torch 2.9.1 and 2.14.1 in float32, and five seeds in float16 and bfloat16. The greatest
margin of a file divided by its least was

- ``allclose``: 3.22; ``fidelity``: 2.01; ``modules``: 1.60; ``precision``: 1.82;
  ``repeatability``: 1.72

and is rounded up. ``integrity`` and ``top1`` had 0 each time: there is nothing to measure.
"""


def find_gate(name: str) -> Gate | None:
    """Return the gate of this name; None if there is none: a later version may have others."""
    return next((gate for gate in GATES if gate.name == name), None)


def gate_named(name: str) -> Gate:
    """Return the gate of that name.

    Raises:
        UsageError: there is none.
    """
    found = find_gate(name)
    if found is None:
        raise UsageError(
            f"expected a gate, found {name!r}",
            remedy=f"{nearest(str(name), NAMES)}; all of them: {', '.join(NAMES)}.",
        )
    return found


def gates_in(
    dtype: str,
    *,
    modules: bool,
    reference: bool = False,
    logits: bool = True,
    budget: bool = False,
) -> tuple[str, ...]:
    """Return the names of the gates that apply to a run.

    Args:
        modules: whether modules can be called alone.
        reference: whether weights are compared with another file's.
        budget: whether it was said what may be lost.
    """
    return tuple(
        gate.name
        for gate in GATES
        if dtype in gate.dtypes
        if reference or not gate.needs_reference
        if modules or not gate.needs_modules
        if logits or not gate.needs_logits
        if budget or not gate.needs_budget
    )


def nothing_judged(applying: Sequence[str], *, budget: bool) -> UsageError:
    """Return the error of a run in which no selected gate can fail.

    Args:
        applying: names of the gates that apply to the run.
        budget: whether it was said what may be lost.
    """
    able = [name for name in applying if gate_named(name).beside_budget or not budget]
    beside = " with a budget" if budget else ""
    return UsageError(
        f"none of the selected gates can fail in this run{beside}, so nothing is judged",
        remedy=f"Select one of these: {', '.join(able)}.",
    )


def aside(found: GateResult) -> GateResult:
    """Return a result as it counts with a budget: if its gate cannot fail there, as measured."""
    gate = find_gate(found.name)
    if gate is None or gate.beside_budget:
        return found
    message = f"cannot fail with a budget; {found.message}"
    return replace(found, passed=True, message=message, judged=False)


def gates_named(select: Sequence[str], ignore: Sequence[str]) -> tuple[str, ...]:
    """Return the gates that judge, in their order.

    Args:
        select: names of gates to run; empty for all.

    Raises:
        UsageError: there is no such gate, or none is left.
    """
    for name in (*select, *ignore):
        gate_named(name)
    chosen = tuple(n for n in NAMES if (n in select or not select) and n not in ignore)
    if not chosen:
        raise UsageError(
            "expected at least one gate, found that every selected gate is ignored",
            remedy="Ignore fewer gates.",
        )
    return chosen
