"""Counter-based randomness: a draw depends on what it is for, never on when or where it is made."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


def derive_seed(seed: int, *purpose: int | str) -> int:
    """A 63-bit seed for one purpose, such as `derive_seed(0, "augment", fold, epoch, case_id)`."""
    text = "\x1f".join([str(int(seed)), *map(str, purpose)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def random_generator(seed: int, *purpose: int | str) -> np.random.Generator:
    """A NumPy generator (Philox, counter-based) for one purpose."""
    import numpy as np

    return np.random.Generator(np.random.Philox(derive_seed(seed, *purpose)))
