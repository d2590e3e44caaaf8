"""Whether there are enough samples for a limit."""

from __future__ import annotations

import math

from edgeopt.errors import MetricError
from edgeopt.settings import AccuracySettings


def check_resolution(settings: AccuracySettings, num_samples: int) -> None:
    """Refuse a limit that lies between no sample and one.

    Raises:
        MetricError: if the limit needs more samples than there are.
    """
    limit = settings.max_drop
    if settings.metric in ("top1", "top5") and 0 < limit * num_samples < 1:
        raise MetricError(
            f"max_drop = {limit:g} of {settings.metric} needs at least {math.ceil(1 / limit)} held-out samples, there "
            f"are {num_samples}: one of them is {1 / num_samples:.4g}",
            hint="raise calibration.num_held_out, or write max_drop = 0 if no sample may be lost",
        )
