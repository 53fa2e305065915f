from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest

from clipcheck.errors import UsageError
from clipcheck.gates.budget import (
    LEAST,
    Sample,
    budget,
    estimates,
    inputs_for,
    logit_scale,
    parse_budget,
    wilson,
)
from clipcheck.gates.result import Case, Outputs
from clipcheck.gates.tolerances import BUDGETS, Budget

DRAW = np.random.default_rng(0)
IMAGES, TEXTS = DRAW.normal(size=(24, 16)), DRAW.normal(size=(24, 16))


def outputs(images: np.ndarray, texts: np.ndarray, scale: float = 100.0) -> Outputs:
    cosines = unit(images) @ unit(texts).T
    return {
        "image_features": images,
        "text_features": texts,
        "logits_per_image": scale * cosines,
        "logits_per_text": scale * cosines.T,
    }


def unit(values: np.ndarray) -> np.ndarray:
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def sample(noise: float = 0.0, scale: float = 100.0) -> list[Case]:
    """Return two batches, one side of which has so much noise."""
    found = []
    draw = np.random.default_rng(1)
    for part in (slice(12), slice(12, None)):
        images, texts = IMAGES[part], TEXTS[part]
        exact = outputs(images, texts)
        own = outputs(
            images + noise * draw.normal(size=images.shape),
            texts + noise * draw.normal(size=texts.shape),
            scale,
        )
        found.append(Case(candidate=own, reference=exact, exact=exact))
    return found


def test_own_data_take_the_place_of_random_rows_if_there_are_enough() -> None:
    limits = Budget(cosine=0.5)
    own = {"image": Sample(np.full(LEAST, 0.4)), "prompt": Sample(np.full(LEAST - 1, 0.1))}
    found = budget(sample(), limits, own=own)
    assert not found.passed
    assert found.figures["cosine"]["found"] == 0.4
    assert found.message.endswith(
        f"over {LEAST} own images and 24 rows of random inputs "
        f"({LEAST - 1} own prompts not judged: it needs {LEAST})"
    )
    assert budget(sample(), limits, own={"prompt": own["prompt"]}).passed


def test_figures_are_those_of_the_definition() -> None:
    found = estimates(sample(0.1))
    both = sample(0.1)
    own = {
        n: np.concatenate([c.candidate[n] for c in both])
        for n in ("image_features", "text_features")
    }
    cosines = {
        n: np.sum(unit(values) * unit(IMAGES if n.startswith("image") else TEXTS), axis=1)
        for n, values in own.items()
    }
    assert found["cosine"].found == pytest.approx(min(each.min() for each in cosines.values()))
    scores = unit(own["image_features"]) @ unit(own["text_features"]).T
    exact = unit(IMAGES) @ unit(TEXTS).T
    shares = [
        np.mean(a.argmax(axis=1) == b.argmax(axis=1))
        for a, b in ((scores, exact), (scores.T, exact.T))
    ]
    assert found["top1"].found in [pytest.approx(share) for share in shares]
    assert found["top1"].lower == min(wilson(share, 24)[0] for share in shares)
    assert all(each.lower <= each.found <= each.upper for each in found.values())
    assert found.keys() == asdict(Budget()).keys() - {"levels"}


def test_equal_outputs_pass_and_others_fail_by_the_lower_end_of_the_interval() -> None:
    limits = Budget(cosine=0.99, top1=0.8, spearman=0.99)
    same = budget(sample(), limits)
    assert same.passed
    assert "best match agrees in 100 %, at least 86 % (limit 80 %)" in same.message
    # All agree, and so few rows cannot show that 9 of 10 do.
    assert not budget(sample(), Budget(top1=0.9)).passed
    noisy = budget(sample(0.5), limits)
    assert not noisy.passed
    assert noisy.margin == pytest.approx((1 - noisy.figures["cosine"]["lower"]) / 0.01)


def test_logits_that_are_clipped_do_not_move_the_scale() -> None:
    clipped = [
        Case(
            candidate={
                n: x.clip(max=40) if n.startswith("logits") else x for n, x in c.candidate.items()
            },
            reference=c.reference,
            exact=c.exact,
        )
        for c in sample()
    ]
    assert min(float(case.exact["logits_per_image"].max()) for case in clipped) > 45
    assert logit_scale(clipped) == pytest.approx(1, abs=0.002)


def test_a_logit_scale_that_is_off_fails_whatever_the_limits() -> None:
    assert logit_scale(sample(0.1)) == pytest.approx(1)
    off = budget(sample(scale=104.0), Budget(cosine=0.5))
    assert not off.passed
    assert "logits are 1.04 times those of its own features" in off.message


def test_a_weight_of_fewer_levels_than_a_preset_has_fails() -> None:
    limits = Budget(cosine=0.5, levels=64)
    assert budget(sample(), limits, {"a": 255, "b": 64}).passed
    found = budget(sample(), limits, {"a": 255, "b": 16})
    assert (found.passed, found.margin) == (False, 4)
    assert found.message.startswith("b has 16 levels (LIMIT 64); least cosine 1 (limit 0.5)")
    assert budget(sample(), Budget(cosine=0.5), {"b": 16}).passed


def test_for_one_tower_rows_are_ranked_against_each_other() -> None:
    alone = [
        Case(
            candidate={"image_features": IMAGES},
            reference={"image_features": IMAGES},
            exact={"image_features": IMAGES},
            absent=frozenset({"text_features", "logits_per_image", "logits_per_text"}),
        )
    ]
    found = estimates(alone)
    assert found["top1"].found == 1
    assert found["top1"].rows == 24
    assert logit_scale(alone) is None


def test_a_cosine_cannot_be_measured_from_logits_alone() -> None:
    absent = frozenset({"text_features", "image_features"})
    alone = [
        Case(candidate=c.candidate, reference=c.reference, exact=c.exact, absent=absent)
        for c in sample()
    ]
    assert budget(alone, Budget(top1=0.8)).passed
    found = budget(alone, Budget(cosine=0.9))
    assert not found.passed
    assert found.message.startswith("cosine cannot be measured: the candidate has no features")


def test_a_budget_is_a_preset_or_limits() -> None:
    assert parse_budget("int8") is BUDGETS["int8"]
    assert parse_budget("cosine=0.99, top1=0.95") == Budget(cosine=0.99, top1=0.95)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("int9", "expected a budget, found 'int9': 'int9' is not valid. The nearest"),
        ("", "found '': 'nothing' is not valid"),
        ("cosine", "'cosine' is not valid"),
        ("top1=0.9,top1=0.8", "'top1=0.8' is a second limit"),
        ("top1=1", "between 0 and 1, found '1', which no number of inputs can prove"),
        ("cosine=nan", "found 'nan'"),
        ("top1=0.99999", "expected a budget that needs at most 10,000 images and prompts"),
    ],
)
def test_an_invalid_budget_is_refused(text: str, told: str) -> None:
    with pytest.raises(UsageError, match=told.replace("(", r"\(")):
        parse_budget(text)


def test_enough_inputs_are_drawn_for_the_interval_to_decide() -> None:
    assert inputs_for(Budget(cosine=0.9)) == LEAST
    rows = inputs_for(Budget(top1=0.98))
    assert wilson(1 - 0.02 / 3, rows)[0] >= 0.98 > wilson(1 - 0.02 / 3, int(rows * 0.9))[0]
