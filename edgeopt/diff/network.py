"""A network in one of its forms, opened so that the tensors inside can be seen.

Every form names its tensors as the float ONNX graph does; which tensor that is in a file is what the pipeline recorded
when it wrote the file (:class:`edgeopt.inspection.Place`), never guessed from a name or a shape.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgeopt.samples import Sample

Answers = Mapping[str, NDArray[np.floating]]


class Network(Protocol):
    """One form of a network."""

    @property
    def title(self) -> str:
        """Return what the form is called in reports."""

    @property
    def tensors(self) -> Sequence[str]:
        """Return the names of the tensors that it can show, in no particular order."""

    def watch(self, tensors: Sequence[str]) -> None:
        """Prepare to show these tensors."""

    def answers(self, sample: Sample) -> Answers:
        """Return the real numbers that the watched tensors hold on a sample, with the axes of the float graph."""


def in_network_order(array: NDArray[np.generic], order: Sequence[int]) -> NDArray[np.generic]:
    """Return a stored tensor with its axes as in the network: the inverse of storing it in ``order``."""
    return array.transpose(tuple(np.argsort(order))) if order else array
