"""Batches: order, augmentation and weights depend on what they say they depend on."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight

from oaplug.core.case import Case
from oaplug.core.plan import AugmentationSettings
from oaplug.feed.source import BatchSource, VolumeStore, balanced_weights
from oaplug.prepare.folder import PreprocessedFolder
from oaplug.prepare.store import write_array

ALWAYS = AugmentationSettings(
    rotation_probability=1, scale_probability=1, shift_probability=1, noise_probability=1,
    brightness_probability=1, contrast_probability=1, gamma_probability=1,
)  # fmt: skip


@pytest.fixture
def source(tmp_path):
    folder = PreprocessedFolder(tmp_path)
    cases = [
        Case(case_id=f"c{i}", subject_id=f"c{i}", images=(), labels={"kl": i % 3 if i else -1})
        for i in range(7)
    ]
    for index, case in enumerate(cases):
        write_array(folder.array_path("plan", case.case_id), np.full((1, 4, 5, 6), index, dtype=np.float32))

    def build(**changes):
        settings = {
            "cases": cases, "store": VolumeStore(folder, "plan"), "targets": ("kl",), "batch_size": 3,
            "seed": 0, "fold": "0", "device": torch.device("cpu"),
        }  # fmt: skip
        return BatchSource(**(settings | changes))

    return build


def test_validation_gives_every_case_once_in_order_with_its_truth(source):
    batches = list(source().in_order())
    assert [case for b in batches for case in b.case_ids] == [f"c{i}" for i in range(7)]
    assert torch.cat([b.truth.targets["kl"] for b in batches]).tolist() == [-1, 1, 2, 0, 1, 2, 0]
    assert torch.cat([b.volume for b in batches])[:, 0, 0, 0, 0].tolist() == list(range(7))


def test_an_epoch_gives_full_batches_in_an_order_of_its_own(source):
    epochs = [[b.case_ids for b in source().epoch(e)] for e in (0, 1)]
    assert [len(ids) for ids in epochs[0]] == [3, 3]
    assert epochs[0] != epochs[1]
    assert [b.case_ids for b in source().epoch(0)] == epochs[0]
    assert len({case for ids in epochs[0] for case in ids}) == 6


def test_volumes_follow_their_cases_and_are_augmented_the_same_at_any_batch_size(source):
    augmented = source(augmentation=ALWAYS)
    alone = source(augmentation=ALWAYS, batch_size=1)
    by_case = {i: v for b in alone.epoch(4) for i, v in zip(b.case_ids, b.volume, strict=True)}
    for batch in augmented.epoch(4):
        for case_id, volume in zip(batch.case_ids, batch.volume, strict=True):
            torch.testing.assert_close(volume, by_case[case_id])


def test_balanced_weights_are_scikit_learns_and_reach_the_batch(source):
    labels = [0] * 5 + [1] * 3 + [2] * 2
    expected = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    np.testing.assert_allclose(balanced_weights([5, 3, 2]), expected)
    assert balanced_weights([4, 0, 4]) == [1.0, 0.0, 1.0]
    weighted = source(class_weights={"kl": [0.5, 2.0, 3.0]})
    weights = torch.cat([b.truth.case_weights for b in weighted.in_order()])
    assert weights.tolist() == [1.0, 2.0, 3.0, 0.5, 2.0, 3.0, 0.5]
