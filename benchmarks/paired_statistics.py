"""Paired bootstrap comparisons of two models: oaplug against the straightforward loop over scikit-learn.

Both take the study's random stream, so their intervals must agree; the loop is timed on a part of the
resamples and its time multiplied up, which is said in the output. With --large also a test set of
100,000 cases, for time and memory.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from sklearn.metrics import accuracy_score, f1_score, roc_auc_score

from oaplug.core.bootstrap import redrawn
from oaplug.core.comparison import Contender, measure_together
from oaplug.core.predictions import TargetPredictions, read_predictions
from oaplug.core.target import Target

RESAMPLES = 10_000
KL = Target(name="kl", kind="ordinal", grades=(0, 1, 2, 3, 4))
OA = Target(name="oa", kind="binary", grades=(0, 1))
PAIRS = {"oa": "single_oa", "kl": "single_kl"}
METRICS = ("auc", "accuracy", "f1")
Pair = list[TargetPredictions]


def main() -> None:
    """Print a row per comparison: seconds of processor time of both, and how far their intervals differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tables", type=Path, help="folder with the study's published NAME_preds.csv")
    parser.add_argument("--loop-resamples", type=int, default=200, help="resamples the loop is timed on")
    parser.add_argument("--large", action="store_true", help="also 100,000 cases x 1,000 resamples")
    arguments = parser.parse_args()
    pairs = read_pairs(arguments.tables) if arguments.tables else make_pairs(98, seed=0)
    print(f"{RESAMPLES} resamples; the loop ran {arguments.loop_resamples} and is extrapolated")
    print(f"{'comparison':<16}{'loop s':>9}{'oaplug s':>10}{'ratio':>8}{'largest difference':>20}")
    totals = np.zeros(2)
    for target, pair in pairs.items():
        for metric in METRICS:
            totals += compare(f"{target} {metric}", pair, metric, loop_resamples=arguments.loop_resamples)
    print(f"{'all':<16}{totals[0]:>9.1f}{totals[1]:>10.3f}{totals[0] / totals[1]:>8.0f}")
    if arguments.large:
        measure_large()


def read_pairs(folder: Path, *, backbone: str = "resnet3d") -> dict[str, Pair]:
    """Per target the predictions of the single-target model and of the dual one."""
    dual = read_predictions(folder / f"{backbone}_dual_preds.csv")
    singles = {name: read_predictions(folder / f"{backbone}_{PAIRS[name]}_preds.csv") for name in PAIRS}
    return {name: [singles[name].targets[name], dual.targets[name]] for name in PAIRS}


def make_pairs(cases: int, *, seed: int) -> dict[str, Pair]:
    """Made-up predictions of two models, one noisier than the other."""
    rng = np.random.default_rng(seed)
    grades = rng.integers(0, 5, cases)
    pairs: dict[str, Pair] = {"oa": [], "kl": []}
    for noise_std in (1.6, 1.1):
        logits = -((grades[:, None] + rng.normal(0, noise_std, (cases, 1)) - np.arange(5)) ** 2)
        kl = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        oa = np.stack([kl[:, :2].sum(axis=1), kl[:, 2:].sum(axis=1)], axis=1)
        pairs["kl"].append(answers(KL, grades, kl))
        pairs["oa"].append(answers(OA, (grades >= 2).astype(np.int64), oa))
    return pairs


def answers(target: Target, truth: np.ndarray, probabilities: np.ndarray) -> TargetPredictions:
    predicted = probabilities.argmax(axis=1)
    return TargetPredictions(target=target, truth=truth, predicted=predicted, probabilities=probabilities)


def compare(name: str, pair: Pair, metric: str, *, loop_resamples: int) -> tuple[float, float]:
    """Seconds of the loop (extrapolated) and of oaplug for one comparison, printed as a row."""
    loop_seconds, expected = timed(lambda: in_a_loop(pair, metric, resamples=loop_resamples))
    loop_seconds *= RESAMPLES / loop_resamples
    seconds, found = min((timed(lambda: ours(pair, metric)) for _ in range(3)), key=lambda one: one[0])
    apart = np.abs(found[:loop_resamples] - expected).max()
    ratio = loop_seconds / seconds
    print(f"{name:<16}{loop_seconds:>9.1f}{seconds:>10.3f}{ratio:>8.0f}{apart:>20.1e}", flush=True)
    return loop_seconds, seconds


def timed(work: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def ours(pair: Pair, metric: str, *, resamples: int = RESAMPLES, seed: int = 42) -> np.ndarray:
    """Differences (B,) of resampled cases."""
    counts = redrawn(np.arange(pair[0].truth.size), resamples=resamples, rng=np.random.default_rng(seed))
    contenders = [Contender(name=str(index), runs=(one,)) for index, one in enumerate(pair)]
    first, second = measure_together(contenders, counts, [metric])
    return (second[metric] - first[metric])[:, 0]


def in_a_loop(pair: Pair, metric: str, *, resamples: int, seed: int = 42) -> np.ndarray:
    """The same, one resample and one call of scikit-learn at a time."""
    rng, cases = np.random.default_rng(seed), pair[0].truth.size
    differences = []
    for _ in range(resamples):
        rows = rng.integers(0, cases, size=cases)
        first, second = (by_scikit_learn(one, metric, rows) for one in pair)
        differences.append(second - first)
    return np.array(differences)


def by_scikit_learn(one: TargetPredictions, metric: str, rows: np.ndarray) -> float:
    truth, binary = one.truth[rows], len(one.target.grades) == 2
    if metric == "auc":
        scores = one.probabilities[rows, 1] if binary else one.probabilities[rows]
        return float(roc_auc_score(truth, scores, multi_class="ovr", average="macro"))
    if metric == "f1":
        return float(f1_score(truth, one.predicted[rows], average="binary" if binary else "macro"))
    return float(accuracy_score(truth, one.predicted[rows]))


def measure_large(cases: int = 100_000, resamples: int = 1000) -> None:
    """Time and memory of the macro AUC of one comparison on a large test set."""
    pair = make_pairs(cases, seed=1)["kl"]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    seconds, _ = timed(lambda: ours(pair, "auc", resamples=resamples))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"kl auc of {cases} cases x {resamples} resamples: {seconds:.0f} s, peak memory {after:.0f} MB "
        f"({after - before:.0f} MB above what was in use)"
    )


if __name__ == "__main__":
    main()
