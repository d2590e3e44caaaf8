"""Make a block of PyTorch work give the same bits every time, and leave the caller's settings as they were."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from edgeopt.compress.parallel import num_processes


@contextmanager
def deterministic(seed: int, threads: int) -> Iterator[None]:
    """Seed PyTorch, allow only deterministic kernels and fix the number of threads inside the block.

    Sums over several threads depend on how many there are, so the thread count is part of what makes a result. The
    processes of a group share the threads among them.
    On the way out the caller's random state, kernels and threads come back.
    """
    threads_before = torch.get_num_threads()
    kernels_before = torch.are_deterministic_algorithms_enabled()
    only_warned = torch.is_deterministic_algorithms_warn_only_enabled()
    with torch.random.fork_rng(devices=[]):
        try:
            torch.manual_seed(seed)
            torch.set_num_threads(max(1, threads // num_processes()))
            torch.use_deterministic_algorithms(True)
            yield
        finally:
            torch.use_deterministic_algorithms(kernels_before, warn_only=only_warned)
            torch.set_num_threads(threads_before)
