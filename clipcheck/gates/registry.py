"""The gates, in their order, and what each judges, in words."""

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
    """A gate, for people.

    Attributes:
        name: in reports and options.
        title: what it judges, in a few words.
        passes_when: the rule, in a sentence.
        explanation: why it is there, and what its limit is based on.
        remedy: what to do when it fails.
        dtypes: those that it judges in.
        needs_modules: whether it judges only what runs modules that can be called one by one.
        needs_reference: whether it judges only what is compared with another file.
        needs_logits: whether it judges only what gives logits.
        needs_repeats: whether it needs rows to be run again.
        needs_lengths: whether it needs prompts of every length.
        needs_budget: whether it judges only where it was said what may be lost.
        beside_budget: whether it judges there as well; the others are measured, and judge nothing.
        headline: the figure of its result that says most, in a few words.
        noise: how many times as much its margin may be though the checkpoint stays the same, see
            `UNMEASURED`; None where that was not measured.
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
        "the nearest number has one right result, and a difference is reported in ulps. The "
        "outputs are then compared with the reference's weights rounded alike, so that the stored "
        "dtype is not held against the conversion.",
        remedy="Look at the weights that the message names. One wrong tensor is a mapping or a "
        "transposition in the conversion; all of them off by a few ulps were cast twice; all of "
        "them entirely different are another checkpoint, perhaps the EMA weights (--key). "
        "`clipcheck convert` writes the weights bit for bit.",
        needs_reference=True,
    ),
    Gate(
        name="integrity",
        beside_budget=True,
        headline=headlines.of_integrity,
        needs_repeats=True,
        title="The candidate is complete, and is what it is called.",
        passes_when="The candidate is not the reference itself; every output is there, finite, and "
        "of the right shape and dtype; the weights are the file's, bit for bit where they can be "
        "told; all of them are used, and running the model changes none; an image with a NaN in it "
        "gives NaN, as in the eager model.",
        explanation="The other gates compare numbers, and would pass on nothing: a model compared "
        "with itself, an output that is missing, an empty batch. There is no tolerance.",
        remedy="`clipcheck inspect FILE` shows what the file is. A weight that has no effect, or "
        "an output that is missing, points at the export: export the model again, in evaluation "
        "mode, with all its methods. Outputs that are not finite: run `clipcheck localize FILE`, "
        "or try --dtype float32. Numbers in place of NaN: take torch.nan_to_num, or what stands "
        "for it, out of the model, and export it again.",
    ),
    Gate(
        name="allclose",
        headline=headlines.of_allclose,
        noise=4.0,
        needs_logits=True,
        title="The classic assertion on probabilities.",
        passes_when=f"np.allclose(candidate, reference, atol={_CLASSIC.atol:g}, "
        f"rtol={_CLASSIC.rtol:g}) holds for the softmax of both logits; for "
        "their sigmoid, in a model that was trained by sigmoid loss.",
        explanation="This is what the reference implementation's own test asserts, and what users "
        "of `load` rely on. The tolerances are theirs; --atol and --rtol change them. It is wide: "
        "`clipcheck audit` shows how many known faults pass it. Where the eager model itself is "
        f"further from float64 than {_SINGLE.allclose:g} of what is allowed (in bfloat16 always), "
        "the differences are shown and judge nothing.",
        remedy="A failure here changes results that users see. Look at `fidelity` and `modules`, "
        "which say where it begins, and replay the failing input.",
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
        "function makes an error of the same size; a fault makes one that is larger by orders of "
        "magnitude. The error is the root mean square against the eager model run in float64. The "
        "limits lie between the worst sound variant that was measured (1.4 for features, 2.9 for a "
        "row of logits) and the weakest fault (86).",
        remedy="The report names the row and, for an archive, the first module that departs. "
        "`clipcheck replay` runs the smallest failing input again. If the report says that the "
        "file equals another architecture, say so with --architecture; otherwise `clipcheck "
        "convert` writes an archive of the same weights with code that is right.",
        dtypes=("float32",),
    ),
    Gate(
        name="modules",
        noise=2.0,
        title="Each module as close to float64 as the eager one.",
        passes_when="Each module of an archive, given the input that it has inside the archive, "
        f"has at most {_SINGLE.module:g} times the error of the eager module against float64.",
        explanation="Judged end to end, a small fault drowns in the rounding of the layers after "
        "it. Judged alone it stands out, and is named. Modules are also called on inputs that the "
        "whole model rarely gives them: nearly constant rows, large values, attention scores of "
        "95. The worst sound variant measured 1.43, the weakest fault 161. A module may be further "
        "off where the residual block around it is not: then the work is shared out differently.",
        remedy="Compare the code of the module that is named with the reference implementation: "
        "its activation, epsilon, scale or mask. `clipcheck localize` looks at the modules alone, "
        "and faster.",
        dtypes=("float32",),
        needs_modules=True,
    ),
    Gate(
        name="precision",
        noise=2.5,
        needs_lengths=True,
        title="Fidelity in half precision and bfloat16.",
        passes_when="As `fidelity`, with the eager model in the same dtype as the yardstick, and "
        f"no logit off by more than {_HALF.cap:g} ulps or {_HALF.logit_row:g} times the eager "
        "model's error in its row, whichever is more.",
        explanation="Half precision keeps 11 bits and bfloat16 8, so that sound models of trained "
        "weights are off by more than 8 ulps in a third of the runs; what the eager model in that "
        "dtype is off by is then the measure. An ulp is counted at a logit from 16 to 32, for a "
        "logit scale of 100.",
        remedy="See whether float32 passes (--dtype float32). If it does, look for a sum or a norm "
        "that is computed in half where the eager model computes it in float32.",
        dtypes=("float16", "bfloat16"),
    ),
    Gate(
        name="top1",
        headline=headlines.of_top1,
        needs_logits=True,
        title="The best match agrees.",
        passes_when="In every row of logits, the highest one is where float64 has it, unless "
        "rounding alone could exchange it with another.",
        explanation="This is what a user of zero-shot classification or retrieval sees. A row "
        "counts where the best match leads by more than twice what a logit may be off by; the "
        "others are ties, and are ignored.",
        remedy="The message names the image and the prompts that were exchanged. `fidelity` and "
        "`modules` say where the error begins.",
    ),
    Gate(
        name="budget",
        headline=headlines.of_budget,
        needs_budget=True,
        beside_budget=True,
        title="No more is lost than was allowed.",
        passes_when="Over images and prompts that are drawn, each figure that --budget limits "
        "keeps its limit by the lower end of its 95 % interval: the least and the median cosine of "
        "features with float64's (`cosine`, `median`), the share of rows whose best match is "
        "float64's (`top1`), how much of its five best is kept (`top5`), and the correlation of "
        "ranks (`spearman`). Beside that, the logit scale is within "
        f"{LOGIT_SCALE:.0%} of the reference's; and for int8 no quantised weight has fewer than "
        f"{BUDGETS['int8'].levels} levels in its range.",
        explanation="A program of int8 or 4 bits is lossy on purpose, and far beyond rounding: "
        "with a budget `allclose`, `fidelity`, `precision`, `modules` and `top1` are measured and "
        "shown, and judge nothing. `integrity` compares quantised weights by their scales and zero "
        "points, and `repeatability` the same batch alone, as a scale may be of a whole batch. "
        "Shares have Wilson's interval, the others that of a bootstrap; of a least value it is the "
        "value itself. So many inputs are drawn that a share that falls short of 1 by a third of "
        "what is allowed passes. A budget that no number of inputs could decide is refused.",
        remedy="The report lists the layers by what they add to the error: leave the first ones in "
        "float (`nodes_to_exclude` of onnxruntime.quantization). Ranges that were calibrated on "
        "other data than is run show as a low least cosine; quantise by channel where one layer "
        "stands out.",
    ),
    Gate(
        name="repeatability",
        beside_budget=True,
        headline=headlines.of_repeatability,
        noise=2.0,
        needs_repeats=True,
        title="The same input gives the same output.",
        passes_when="Rows that are run again, alone, in other batches, after many calls and in "
        f"other forms of the input, move by at most {2 * _SINGLE.feature_row:g} times the eager "
        "model's error against float64.",
        explanation="TorchScript changes its plan on the second and third call, and a batch of "
        "another size is summed in another order; each may move a result by the size of its "
        "rounding error, and two such errors may add up. A result that depends on the batch, on "
        "the number of the call or on the form of the input moves further.",
        remedy="The message says after which call it moved. Look for what depends on the size of "
        "the batch, for buffers that are reused, for state that is kept between calls, and for "
        "dropout that is still active.",
    ),
)
"""In the order of reports."""

NAMES = tuple(gate.name for gate in GATES)

UNMEASURED = max(gate.noise for gate in GATES if gate.noise is not None)
"""Noise of a gate whose own was not measured.

The others were, with `python -m benchmarks.noise`, as its docstring tells: both small
architectures, ten seeds with one thread and with two, on torch 2.9.1 and 2.14.1 in float32, and
five seeds in float16 and bfloat16. The greatest margin of a file over its least was

- ``allclose``: 3.22; ``fidelity``: 2.01; ``modules``: 1.60; ``precision``: 1.82;
  ``repeatability``: 1.72

and rounded up. ``integrity`` and ``top1`` had 0 each time: there is nothing to measure.
"""


def find_gate(name: str) -> Gate | None:
    """Return the gate of that name; None where there is none, as in what a later version wrote."""
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
    """Return the names of the gates that have something to judge in a run.

    Args:
        modules: whether its modules can be called one by one.
        reference: whether its weights are compared with those of another file.
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


def aside(found: GateResult) -> GateResult:
    """Return a result as it stands beside a budget: that of a gate which does not judge there tells
    what it found, and passes."""
    gate = find_gate(found.name)
    if gate is None or gate.beside_budget:
        return found
    message = f"judges nothing beside a budget; {found.message}"
    return replace(found, passed=True, message=message, margin=0.0)


def gates_named(select: Sequence[str], ignore: Sequence[str]) -> tuple[str, ...]:
    """Return the gates that count, in their order.

    Args:
        select: their names; none for all.

    Raises:
        UsageError: there is no such gate, or none is left.
    """
    for name in (*select, *ignore):
        gate_named(name)
    chosen = tuple(n for n in NAMES if (n in select or not select) and n not in ignore)
    if not chosen:
        raise UsageError(
            "expected at least one gate, found that each that is selected is ignored",
            remedy="Ignore fewer of them.",
        )
    return chosen
