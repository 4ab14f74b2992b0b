"""Heads against torch.nn.functional by hand: losses, missing labels, weights, probabilities, scores."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import log_softmax as scipy_log_softmax
from torch import nn
from torch.nn import functional

from oaplug.core.batch import Batch
from oaplug.core.errors import PlanError
from oaplug.core.target import Target
from oaplug.model.build import build_head, targets_of_head
from oaplug.plug.registry import registry
from oaplug.plug.specs import HeadSpec
from oaplug.testing.toy import BINARY, HIERARCHY

KL_TRUTH = torch.tensor([0, 3, 1, 4, 2, 2, 0])
OA_TRUTH = (KL_TRUTH >= 2).long()
FEATURES = torch.randn(7, 6, generator=torch.Generator().manual_seed(0))


def make_head(name, targets=HIERARCHY, *, target=None, **options):
    spec = registry().spec(HeadSpec, name)
    torch.manual_seed(1)
    given_targets = targets_of_head(spec, targets, target=target)
    return build_head(spec, options, num_features=6, targets=given_targets, grade_counts={})


def truth(*, kl=KL_TRUTH, oa=OA_TRUTH, weights=None):
    return Batch(targets={"kl": kl, "oa": oa}, case_weights=weights)


def linear(layer, features=FEATURES):
    return features @ layer.weight.T + layer.bias


def equal(found, expected):
    torch.testing.assert_close(found, torch.as_tensor(expected, dtype=found.dtype), rtol=1e-5, atol=1e-6)


def test_single_binary_has_one_logit_and_binary_cross_entropy():
    head = make_head("single", target="oa")
    assert head.linear.out_features == 1
    logits = linear(head.linear)[:, 0]
    losses = head.loss(head(FEATURES), truth())
    equal(losses["total"], functional.binary_cross_entropy_with_logits(logits, OA_TRUTH.float()))
    equal(head.probabilities(head(FEATURES))["oa"][:, 1], torch.sigmoid(logits))


def test_single_ordinal_has_five_logits_and_cross_entropy():
    head = make_head("single")
    logits = linear(head.linear)
    assert logits.shape == (7, 5)
    equal(head.loss(head(FEATURES), truth())["total"], functional.cross_entropy(logits, KL_TRUTH))
    equal(head.probabilities(head(FEATURES))["kl"], logits.softmax(dim=1))


def test_single_ordinal_derives_oa_as_the_sum_of_the_grades_from_two_up():
    head = make_head("single")
    kl = linear(head.linear).softmax(dim=1)
    oa = head.probabilities(head(FEATURES))["oa"]
    equal(oa[:, 1], kl[:, 2] + kl[:, 3] + kl[:, 4])
    equal(oa[:, 0], kl[:, 0] + kl[:, 1])


def test_single_answers_a_plain_binary_target():
    head = make_head("single", BINARY)
    losses = head.loss(head(FEATURES), Batch(targets={"disease": OA_TRUTH}))
    expected = functional.binary_cross_entropy_with_logits(linear(head.linear)[:, 0], OA_TRUTH.float())
    equal(losses["total"], expected)


@pytest.mark.parametrize("weight", [1.0, 0.3])
def test_dual_adds_the_cross_entropies_of_both_levels_on_shared_features(weight):
    head = make_head("dual", coarse_weight=weight)
    kl, oa = linear(head.fine_linear), linear(head.coarse_linear["oa"])
    assert (kl.shape, oa.shape) == ((7, 5), (7, 2))
    losses = head.loss(head(FEATURES), truth())
    expected = {"kl": functional.cross_entropy(kl, KL_TRUTH), "oa": functional.cross_entropy(oa, OA_TRUTH)}
    equal(losses["total"], expected["kl"] + weight * expected["oa"])
    equal(losses["oa"], expected["oa"])
    probabilities = head.probabilities(head(FEATURES))
    equal(probabilities["oa"], oa.softmax(dim=1))
    equal(probabilities["kl"], kl.softmax(dim=1))


def test_dual_cascade_predicts_oa_from_the_five_kl_logits():
    head = make_head("dual_cascade")
    layer = head.coarse_linear["oa"]
    assert isinstance(layer, nn.Linear)
    assert (layer.in_features, layer.out_features) == (5, 2)
    kl = linear(head.fine_linear)
    oa = linear(layer, kl)
    equal(head(FEATURES)["oa"], oa)
    expected = functional.cross_entropy(kl, KL_TRUTH) + functional.cross_entropy(oa, OA_TRUTH)
    equal(head.loss(head(FEATURES), truth())["total"], expected)


@pytest.mark.parametrize("name", ["single", "dual", "dual_cascade", "ordinal"])
def test_missing_labels_leave_the_loss_of_the_cases_that_have_them(name):
    head = make_head(name)
    keep = torch.tensor([True, False, True, True, False, True, True])
    masked = truth(kl=KL_TRUTH.masked_fill(~keep, -1), oa=OA_TRUTH.masked_fill(~keep, -1))
    subset = truth(kl=KL_TRUTH[keep], oa=OA_TRUTH[keep])
    equal(head.loss(head(FEATURES), masked)["total"], head.loss(head(FEATURES[keep]), subset)["total"])


@pytest.mark.parametrize("name", ["dual", "dual_cascade"])
def test_a_case_that_lacks_the_fine_grade_still_teaches_the_coarse_one(name):
    head = make_head(name)
    kl = KL_TRUTH.clone()
    kl[:3] = -1
    logits = head(FEATURES)
    expected = functional.cross_entropy(logits["kl"][3:], KL_TRUTH[3:])
    expected = expected + functional.cross_entropy(logits["oa"], OA_TRUTH)
    equal(head.loss(logits, truth(kl=kl))["total"], expected)


def test_case_weights_equal_torch_s_weighted_cross_entropy():
    head = make_head("single")
    by_grade = torch.tensor([0.5, 2.0, 1.0, 3.0, 0.25])
    weighted = truth(weights=by_grade[KL_TRUTH])
    expected = functional.cross_entropy(linear(head.linear), KL_TRUTH, weight=by_grade)
    equal(head.loss(head(FEATURES), weighted)["total"], expected)


def test_case_weights_scale_binary_cross_entropy_too():
    head = make_head("single", target="oa")
    weights = torch.tensor([1.0, 2.0, 0.0, 0.5, 4.0, 1.0, 3.0])
    each = functional.binary_cross_entropy_with_logits(
        linear(head.linear)[:, 0], OA_TRUTH.float(), reduction="none"
    )
    equal(head.loss(head(FEATURES), truth(weights=weights))["total"], (weights * each).sum() / weights.sum())


def corn_loss_by_hand(logits, grades, weights=None):
    """CORN as its paper's text has it: task k sees the cases with grade >= k and asks whether grade > k."""
    total, count = 0.0, 0.0
    for row, grade in enumerate(grades.tolist()):
        weight = 1.0 if weights is None else float(weights[row])
        for step in range(logits.shape[1]):
            if grade >= step and grade != -1:
                probability = 1 / (1 + math.exp(-float(logits[row, step])))
                total -= weight * math.log(probability if grade > step else 1 - probability)
                count += weight
    return total / count


@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 2.0, 0.5, 1.0, 3.0, 0.0, 1.0])])
def test_ordinal_loss_equals_corn_s_loop(weights):
    head = make_head("ordinal")
    grades = KL_TRUTH.clone()
    grades[4] = -1
    logits = linear(head.linear).detach()
    assert logits.shape == (7, 4)
    found = head.loss(head(FEATURES), truth(kl=grades, weights=weights))["total"].detach()
    equal(found, corn_loss_by_hand(logits, grades, weights))


@given(arrays(np.float32, (5, 4), elements=st.floats(-20, 20, width=32)))
def test_ordinal_probabilities_follow_from_cumulative_ones_that_never_rise(values):
    head = make_head("ordinal")
    tables = head.probabilities({"kl": torch.from_numpy(values)})
    kl = tables["kl"].double()
    conditional = 1 / (1 + np.exp(-values.astype(np.float64)))
    above = np.cumprod(conditional, axis=1)
    np.testing.assert_allclose(kl.sum(dim=1), 1, atol=1e-5)
    assert (kl >= 0).all()
    exceed = kl.flip(1).cumsum(dim=1).flip(1)[:, 1:]  # P(grade > k), k = 0..3
    np.testing.assert_allclose(exceed, above, atol=1e-5)
    assert (exceed.diff(dim=1) <= 1e-7).all()
    np.testing.assert_allclose(tables["oa"][:, 1], above[:, 1], atol=1e-5)


def test_scores_are_logits_of_the_grade_asked_for_or_the_predicted_one():
    head = make_head("dual")
    logits = head(FEATURES)
    equal(head.score(logits, "kl", grade=3), logits["kl"][:, 3])
    equal(head.score(logits, "kl"), logits["kl"].max(dim=1).values)
    equal(head.score(logits, "oa"), logits["oa"][:, 1])


@pytest.mark.parametrize("name", ["single", "ordinal"])
def test_the_score_of_a_derived_target_is_its_log_odds(name):
    head = make_head(name)
    logits = head(FEATURES)
    positive = head.probabilities(logits)["oa"][:, 1]
    equal(head.score(logits, "oa"), torch.logit(positive))
    equal(head.score(logits, "oa", grade=0), -torch.logit(positive))


def test_dropout_of_a_head_acts_in_training_only():
    head = make_head("dual", dropout=0.5)
    assert not torch.equal(head(FEATURES)["oa"], head(FEATURES)["oa"])
    head.eval()
    assert torch.equal(head(FEATURES)["oa"], head(FEATURES)["oa"])


def test_a_hierarchy_with_two_derived_targets_trains_both():
    severe = Target(name="severe", kind="binary", grades=(0, 1), derived_from="kl", at_least=4)
    head = make_head("dual", {**HIERARCHY, "severe": severe})
    logits = head(FEATURES)
    batch = Batch(targets={"kl": KL_TRUTH, "oa": OA_TRUTH, "severe": (KL_TRUTH >= 4).long()})
    parts = [functional.cross_entropy(logits[name], batch.targets[name]) for name in ("kl", "oa", "severe")]
    equal(head.loss(logits, batch)["total"], sum(parts))
    assert set(head.probabilities(logits)) == {"kl", "oa", "severe"}


@pytest.mark.parametrize(("name", "layer"), [("single", "linear"), ("dual", "fine_linear")])
def test_soft_labels_are_a_divergence_from_probabilities_that_halve_with_each_grade(name, layer):
    head = make_head(name, soft_label_width=1 / math.log(2))
    halves = np.array([[0.5 ** abs(grade - true) for grade in range(5)] for true in KL_TRUTH.tolist()])
    wanted = halves / halves.sum(axis=1, keepdims=True)
    with torch.no_grad():
        log_probabilities = scipy_log_softmax(linear(getattr(head, layer)).numpy(), axis=1)
        found = head.loss(head(FEATURES), truth())["kl"]
    equal(found, -(wanted * log_probabilities).sum(axis=1).mean())


def test_soft_labels_of_a_derived_target_are_those_of_its_grades_or_hard_where_no_grade_is_known():
    head = make_head("dual", soft_label_width=1 / math.log(2))
    kl, oa = KL_TRUTH.clone(), OA_TRUTH.clone()
    kl[1], kl[2], oa[2] = -1, -1, -1  # a case of which only oa is known, and one of which nothing is
    positive = []
    for grade, label in zip(kl.tolist(), oa.tolist(), strict=True):
        weights = [0.5 ** abs(k - grade) for k in range(5)]
        positive.append(sum(weights[2:]) / sum(weights) if grade >= 0 else float(label))
    wanted = np.array(positive)[oa.numpy() >= 0]
    with torch.no_grad():
        table = scipy_log_softmax(linear(head.coarse_linear["oa"]).numpy(), axis=1)[oa.numpy() >= 0]
        found = head.loss(head(FEATURES), truth(kl=kl, oa=oa))["oa"]
    equal(found, -np.mean((1 - wanted) * table[:, 0] + wanted * table[:, 1]))


@pytest.mark.parametrize("name", ["single", "dual", "dual_cascade"])
def test_narrow_soft_labels_are_hard_ones_and_missing_ones_do_not_count(name):
    hard, soft = make_head(name), make_head(name, soft_label_width=0.02)
    some = truth(kl=torch.where(KL_TRUTH == 2, -1, KL_TRUTH))
    equal(soft.loss(soft(FEATURES), some)["total"], hard.loss(hard(FEATURES), some)["total"])


@pytest.mark.parametrize(
    ("width", "targets", "message"),
    [(-1.0, HIERARCHY, "must not be negative"), (1.0, BINARY, "'disease' is binary; set it to 0")],
)
def test_soft_labels_that_cannot_be_are_refused(width, targets, message):
    with pytest.raises(PlanError, match=message):
        make_head("single", targets, soft_label_width=width)
