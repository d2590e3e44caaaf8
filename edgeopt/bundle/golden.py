"""Golden vectors on disk: held-out samples as the model takes them, and the answers expected to them.

``input/NAME`` are integers on the input's grid, ``float/NAME`` the float network's answers, ``quantized/NAME`` the
quantized network's (integers, unless the output stays float), each ``(N, ...)``; ``names`` ``(N,)``, and ``labels``
``(N,)`` if every sample has one. ``built_in/NAME`` ``(M, ...)`` are the answers of TFLite's reference kernels to the
first M samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Golden = dict[str, NDArray[np.generic]]


def first_samples(golden: Mapping[str, NDArray[np.generic]], count: int) -> Golden:
    """Return the golden vectors of the first ``count`` samples."""
    return {name: array[:count] for name, array in golden.items()}


def save_golden(golden: Golden, path: Path) -> None:
    """Write golden vectors; the same arrays give the same bytes, because NumPy dates every entry 1980-01-01.

    They are stored, not compressed, so that the C runner needs no decompressor; photos would not shrink by much.
    """
    np.savez(path, **{name: golden[name] for name in sorted(golden)})  # type: ignore[arg-type]


def load_golden(path: Path) -> Golden:
    """Read golden vectors; nothing is unpickled."""
    with np.load(path, allow_pickle=False) as stored:
        return dict(stored)
