"""The leak guard: cases of a subject (or image) a model was trained on must never test it.

A model carries keyed hashes of what it was trained on, so that a shared model tells a leak without
telling who was in the training set.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from oaplug.core.predictions import TrainedOn

if TYPE_CHECKING:
    from collections.abc import Iterable

    from oaplug.core.predictions import PredictionTable


def keyed_hash(key: str, text: str) -> str:
    """Hex BLAKE2b-128 of `text` under `key`; without the key, guessing ids does not find them."""
    secret = hashlib.blake2b(key.encode(), digest_size=32).digest()
    return hashlib.blake2b(text.encode(), key=secret, digest_size=16).hexdigest()


def trained_on(subject_ids: Iterable[str], image_digests: Iterable[str], key: str) -> TrainedOn:
    """What a model remembers of its training cases: hashes of subjects and of image contents."""
    return TrainedOn(
        key=key,
        subjects=frozenset(keyed_hash(key, subject) for subject in subject_ids),
        images=frozenset(keyed_hash(key, digest) for digest in image_digests),
    )


def leaked_cases(table: PredictionTable) -> list[str]:
    """Case ids of `table` whose subject its model was trained on; none where that was not recorded."""
    seen = table.trained_on
    if seen is None:
        return []
    subjects = {
        subject for subject in set(table.subject_ids) if keyed_hash(seen.key, subject) in seen.subjects
    }
    return [
        case for case, subject in zip(table.case_ids, table.subject_ids, strict=True) if subject in subjects
    ]
