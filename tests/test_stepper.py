"""One optimizer step against plain loops and torch's own: averages, accumulation, clipping, rates."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from oaplug.core.batch import Batch
from oaplug.core.case import Case
from oaplug.core.errors import PlanError
from oaplug.core.plan import TrainSettings
from oaplug.feed.source import BatchSource, LoadedBatch, balanced_weights
from oaplug.model.network import Network
from oaplug.model.precision import choose_precision
from oaplug.train.schedule import learning_rate
from oaplug.train.stepper import Average, Stepper, parameter_groups
from oaplug.train.world import World

CPU = torch.device("cpu")


class Encoder(nn.Module):
    """Volumes (B,1,2,3,2) to features (B,4): a linear stem and block, optionally with batch normalisation."""

    num_features = 4
    cam_layer = None

    def __init__(self, *, has_norm):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.stem = nn.Linear(12, 5)
        self.norm = nn.BatchNorm1d(5) if has_norm else nn.Identity()
        self.block = nn.Linear(5, 4)

    def forward(self, volume):
        return self.block(torch.tanh(self.norm(self.stem(self.scale * volume.flatten(1)))))


class Head(nn.Module):
    """Mean squared distance to the grade: no normalisation by labels, so that halves add up to the whole."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 1)

    def forward(self, features):
        return {"kl": self.linear(features)}

    def loss(self, logits, truth):
        return {"total": (logits["kl"][:, 0] - truth.targets["kl"]).square().mean()}


def network(*, has_norm=False, seed=0):
    torch.manual_seed(seed)
    return Network(Encoder(has_norm=has_norm), Head())


def stepper(made, **settings):
    return Stepper(
        made,
        settings=TrainSettings(**settings),
        precision=choose_precision("float32", device=CPU, channels_last=False),
        world=World(),
    )


def batch(count=4, *, seed=0, first=0):
    drawn = torch.randn(9, 1, 2, 3, 2, generator=torch.Generator().manual_seed(seed))[: first + count]
    grades = torch.arange(first + count) % 5
    ids = tuple(f"case{i}" for i in range(first, first + count))
    return LoadedBatch(volume=drawn[first:], truth=Batch(targets={"kl": grades[first:]}), case_ids=ids)


def state(module):
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def assert_same(first, second):
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def test_two_half_batches_make_the_step_of_the_whole_batch():
    whole, halves = network(), network()
    one = stepper(whole).step([batch(6)], count=1, rate=0.01)
    parts = [batch(3), batch(3, first=3)]
    two = stepper(halves).step(parts, count=2, rate=0.01)
    assert two.losses["total"] == pytest.approx(one.losses["total"], rel=1e-6)
    assert two.case_ids == one.case_ids
    for (name, expected), found in zip(whole.named_parameters(), halves.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7, msg=name)


def test_clipping_is_torchs():
    mine, theirs = network(), network()
    ours = stepper(mine, gradient_clip=0.1, weight_decay=0.02)
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=0.01, weight_decay=0.02)
    for index in range(4):
        given = batch(seed=index)
        ours.step([given], count=1, rate=0.01)
        optimizer.zero_grad()
        theirs.loss(theirs(given.volume), given.truth)["total"].backward()
        norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), 0.1)
        assert norm > 0.1, "there is something to clip"
        optimizer.step()
    for found, expected in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def test_the_average_is_torchs_with_the_same_decays():
    from torch.optim.swa_utils import AveragedModel

    made = network(has_norm=True)
    ours = stepper(made, ema_decay=0.3)
    steps = [0]

    def move(average, current, _):
        decay = min(0.3, (2 + steps[0]) / (11 + steps[0]))
        return decay * average + (1 - decay) * current

    theirs = AveragedModel(made, avg_fn=move, use_buffers=True)
    theirs.n_averaged += 1  # else its first update copies
    for index in range(6):
        ours.step([batch(seed=index)], count=1, rate=0.05)
        theirs.update_parameters(made)
        steps[0] += 1
    own = state(made)
    with ours.averaged():
        for name, tensor in theirs.module.state_dict().items():
            if tensor.is_floating_point():
                torch.testing.assert_close(made.state_dict()[name], tensor, msg=name)
                assert not torch.equal(tensor, own[name])
    assert_same(state(made), own)


def test_the_decay_of_an_average_rises_to_its_value():
    made = nn.Linear(1, 1, bias=False)
    average = Average(made, decay=0.5)
    expected = made.weight.item()
    for step in range(1, 12):
        with torch.no_grad():
            made.weight.fill_(float(step))
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
        average.update(made)
        assert average.tensors["weight"].item() == pytest.approx(expected, rel=1e-6)


def test_a_network_without_an_average_is_left_alone():
    made = network()
    before = state(made)
    with stepper(made).averaged():
        assert_same(state(made), before)


def test_a_frozen_encoder_keeps_weights_and_running_statistics():
    made = network(has_norm=True)
    ours = stepper(made, freeze_encoder=True, weight_decay=0.1)
    before = state(made)
    for index in range(3):
        ours.train_mode()
        ours.step([batch(seed=index)], count=1, rate=0.1)
    after = state(made)
    changed = {name for name, tensor in after.items() if not torch.equal(tensor, before[name])}
    assert changed == {"head.linear.weight", "head.linear.bias"}
    ours = stepper(network(has_norm=True))
    ours.train_mode()
    ours.step([batch()], count=1, rate=0.1)
    assert ours.network.encoder.norm.num_batches_tracked == 1, "one that is not frozen keeps counting"


@pytest.mark.parametrize("skip", [0, 2])
def test_a_bad_step_leaves_weights_optimizer_and_average_as_they_were(skip):
    made = network(has_norm=True)
    ours = stepper(made, ema_decay=0.9, skip_bad_steps=skip)
    ours.train_mode()
    assert ours.step([batch()], count=1, rate=0.1).is_finite
    before, tensors = state(made), {name: t.clone() for name, t in ours.tensors().items()}
    bad = batch(seed=1)
    bad.volume[2] = math.inf
    result = ours.step([batch(seed=2), bad], count=2, rate=0.1)
    assert not result.is_finite
    assert result.case_ids == (*batch().case_ids, *bad.case_ids)
    kept = state(made) if skip else dict(made.named_parameters())
    assert_same(dict(kept), {name: before[name] for name in kept})
    assert_same(ours.tensors(), tensors)
    if skip:
        assert ours.step([batch(seed=3)], count=1, rate=0.1).is_finite


def test_a_stop_that_is_asked_for_during_a_step_is_heard_at_its_end():
    asked = []

    def batches():
        asked.append("now")
        yield batch()

    assert stepper(network()).step(batches(), count=1, rate=0.1, stop=asked).asked_to_stop


def test_layers_learn_the_slower_the_farther_they_are_from_the_head():
    made = network(has_norm=True)
    rates = {
        id(p): group["rate_factor"]
        for group in parameter_groups(made, layer_decay=0.5)
        for p in group["params"]
    }
    found = {name: rates[id(parameter)] for name, parameter in made.named_parameters()}
    assert {name.rsplit(".", 1)[0]: rate for name, rate in found.items()} == {
        "head.linear": 1.0,
        "encoder.block": 0.5,
        "encoder.norm": 0.25,
        "encoder.stem": 0.125,
        "encoder": 0.0625,  # encoder.scale
    }


def test_a_layers_rate_is_that_of_a_plain_optimizer_with_groups():
    mine, theirs = network(), network()
    stepper(mine, layer_decay=0.5, weight_decay=0.1).step([batch()], count=1, rate=0.08)
    groups = [(theirs.head, 1.0), (theirs.encoder.block, 0.5), (theirs.encoder.stem, 0.125)]
    parameters = [{"params": list(m.parameters()), "lr": 0.08 * factor} for m, factor in groups]
    parameters.append({"params": [theirs.encoder.scale], "lr": 0.08 * 0.0625})
    optimizer = torch.optim.AdamW(parameters, weight_decay=0.1)
    theirs.loss(theirs(batch().volume), batch().truth)["total"].backward()
    nn.utils.clip_grad_norm_(theirs.parameters(), 5.0)
    optimizer.step()
    for (name, found), expected in zip(mine.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7, msg=name)


def test_every_trainable_parameter_is_in_one_group():
    made = network(has_norm=True)
    for decay in (1.0, 0.9):
        ids = [id(p) for group in parameter_groups(made, layer_decay=decay) for p in group["params"]]
        assert sorted(ids) == sorted(id(p) for p in made.parameters())


def test_the_poly_schedule_is_torchs():
    settings = TrainSettings(epochs=5, learning_rate=0.02, warmup_epochs=0, schedule="poly")
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.02)
    theirs = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=35, power=0.9)
    for step in range(35):
        assert learning_rate(settings, step=step, steps_per_epoch=7) == pytest.approx(theirs.get_last_lr()[0])
        optimizer.step()
        theirs.step()


def source(grades, **settings):
    cases = [
        Case(case_id=f"c{i}", subject_id=f"s{i}", images=(), labels={"kl": g}) for i, g in enumerate(grades)
    ]
    store = SimpleNamespace(read=lambda case_id: np.full((1, 1, 1, 1), float(case_id[1:]), dtype=np.float16))
    defaults = {"batch_size": 4, "seed": 0, "fold": "0", "device": CPU, "readers": 0}
    return BatchSource(cases=cases, store=store, targets=("kl",), **(defaults | settings))


def drawn(made, epochs):
    return [i for epoch in range(epochs) for b in made.epoch(epoch) for i in b.case_ids]


def test_balanced_sampling_draws_grades_equally_often_and_cases_of_a_grade_alike():
    from scipy.stats import chisquare

    grades = [0] * 28 + [1] * 8 + [3] * 4
    weights = {"kl": balanced_weights([28, 8, 0, 4])}
    found = drawn(source(grades, sampling_weights=weights), 200)
    by_grade = np.bincount([grades[int(i[1:])] for i in found], minlength=4)
    assert by_grade[2] == 0
    assert chisquare(by_grade[[0, 1, 3]]).pvalue > 0.001
    of_last = np.unique([i for i in found if grades[int(i[1:])] == 3], return_counts=True)[1]
    assert chisquare(of_last).pvalue > 0.001
    even = np.bincount([grades[int(i[1:])] for i in drawn(source(grades), 20)], minlength=4)
    assert even.tolist() == [28 * 20, 8 * 20, 0, 4 * 20]


@pytest.mark.parametrize("cases", [8, 11, 13])
def test_processes_share_every_batch_of_one_process_and_every_validation_case(cases):
    grades = [0] * cases
    whole = [set(b.case_ids) for b in source(grades).epoch(3)]
    shares = [[set(b.case_ids) for b in source(grades, rank=r, world_size=2).epoch(3)] for r in (0, 1)]
    assert [a | b for a, b in zip(*shares, strict=True)] == whole
    assert all(len(part) == 2 for share in shares for part in share)
    seen = [[i for b in source(grades, rank=r, world_size=2).in_order() for i in b.case_ids] for r in (0, 1)]
    assert sorted(seen[0] + seen[1]) == sorted(f"c{i}" for i in range(cases))
    rounds = [
        source(grades, rank=r, world_size=2).idle_rounds
        + len(list(source(grades, rank=r, world_size=2).in_order()))
        for r in (0, 1)
    ]
    assert rounds[0] == rounds[1]


def test_synchronised_batch_normalisation_needs_gpus_and_several_processes():
    assert isinstance(
        stepper(network(has_norm=True), sync_batch_norm=True).network.encoder.norm, nn.BatchNorm1d
    )
    with pytest.raises(PlanError, match="sync_batch_norm needs CUDA"):
        Stepper(
            network(has_norm=True),
            settings=TrainSettings(sync_batch_norm=True),
            precision=choose_precision("float32", device=CPU, channels_last=False),
            world=World(rank=0, size=2),
        )
