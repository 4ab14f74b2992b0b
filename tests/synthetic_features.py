"""Made-up features: grades along one direction of many, with noise, and a source that gives them."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from synthetic_predictions import KL, OA, make_study, make_table

from oaplug.core.features import Features

FEATURES = 12


def make_features(truth, case_ids, *, fold="0", noise_std=0.5, seed=0, width=FEATURES, model="m"):
    """Features (N,width) of cases whose grade lies along a direction that `fold` and `seed` choose."""
    rng = np.random.default_rng([seed, len(fold), *map(ord, fold)])
    direction, rest = np.linalg.qr(rng.normal(size=(width, width)))[0][:2]
    along = np.random.default_rng([seed, 1, len(truth)])
    severity = truth + along.normal(0, noise_std, len(truth))
    table = np.outer(severity, direction) + np.outer(along.normal(0, 0.4, len(truth)), rest)
    table += along.normal(0, 0.1, table.shape)
    return Features(
        model=model,
        checkpoint="final",
        case_ids=tuple(case_ids),
        subject_ids=tuple(case_ids),
        folds={fold: table.astype(np.float32)},
        weights={fold: f"digest {fold}"},
        targets={"kl": KL, "oa": OA},
        truths={"kl": truth, "oa": (truth >= 2).astype(np.int64)},
    )


@dataclass(frozen=True)
class GivenFeatures:
    """Test and training features held in memory."""

    test: Features
    train: dict

    def lacks(self, need):
        return "" if need in {"features", "train_features"} else f"no {need} here"

    def features(self):
        return self.test

    def train_features(self):
        return self.train


def given(table, *, folds=("0",), train_cases=60, **settings):
    """A source for the cases of `table`: every fold has a direction of its own."""
    truth = table.targets["kl"].truth
    test = [make_features(truth, table.case_ids, fold=fold, **settings) for fold in folds]
    train_truth = np.arange(train_cases) % 5
    ids = [f"train{index}" for index in range(train_cases)]
    merged = replace(
        test[0],
        folds={name: one.folds[name] for one, name in zip(test, folds, strict=True)},
        weights={name: f"digest {name}" for name in folds},
    )
    train = {fold: make_features(train_truth, ids, fold=fold, **settings) for fold in folds}
    return GivenFeatures(test=merged, train=train)


def make_axis_study(settings, *, resamples=50, **table_settings):
    """A study of models with features, by their settings for `given`."""
    table = make_table(**table_settings)
    study = make_study(dict.fromkeys(settings, table), resamples=resamples)
    models = (
        replace(
            model, source=given(table, **settings[model.name]) if settings[model.name] is not None else None
        )
        for model in study.models
    )
    return replace(study, models=tuple(models))
