"""Which batch sizes share a configuration: tuned once per bucket, and borrowed from a neighbouring one at a look-up.

Buckets are 0, 1, 2, 4, ..., 64, then 96, 128, 192, 256, ... (times 1.5 and 2 in turn) without an end: 1 to 64 images in
seven steps, beyond that never half a bucket of padding.
"""

from __future__ import annotations

import math

DENSE_FROM = 64
"""Up to here buckets double; beyond it there is one more between two powers of two."""
NEARBY = 2.0
"""Ratio of two buckets up to which a configuration of one is used for the other."""


def bucket(batch: int) -> int:
    """The smallest bucket of at least `batch` images; less than twice as many.

    Raises:
        ValueError: for a negative batch.
    """
    if batch < 0:
        raise ValueError(f"batch must not be negative, but got {batch}")
    if batch == 0:
        return 0
    power = 1 << (batch - 1).bit_length()
    between = power // 4 * 3
    return between if power > DENSE_FROM and batch <= between else power


def distance(wanted: int, tuned: int) -> float | None:
    """How far apart the buckets of two batches are, as the logarithm of their ratio; None beyond `NEARBY`."""
    ours, theirs = bucket(wanted), bucket(tuned)
    if ours == theirs:
        return 0.0
    if not ours or not theirs:
        return None
    ratio = max(ours, theirs) / min(ours, theirs)
    return math.log(ratio) if ratio <= NEARBY else None
