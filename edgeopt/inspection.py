"""What a model file holds: operators, how many of them run on integers, and what goes in and comes out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class TensorFacts:
    """One input or output of a model file.

    ``scale`` and ``zero_point`` say which real number an integer stands for, and ``integer_dtype`` which integers: a
    float tensor that is quantized right behind the border has them too. An output that is never quantized has a
    ``scale``, to tell differences in steps, but no ``integer_dtype``. ``layout`` is ``"any"`` for what is no image.
    ``is_dynamic`` says of an output that activations before it are quantized while the network runs.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    layout: str = "any"
    scale: float | None = None
    zero_point: int | None = None
    integer_dtype: str | None = None
    is_dynamic: bool = False


@dataclass(frozen=True)
class Place:
    """Where a tensor of the network lies in a model file: under which name, and in which order of axes.

    Axis ``i`` of the stored tensor is axis ``order[i]`` of the network's; an empty order is the network's own.
    """

    name: str
    order: tuple[int, ...] = ()


@dataclass(frozen=True)
class Border:
    """What a graph takes and gives, in order."""

    inputs: tuple[TensorFacts, ...]
    outputs: tuple[TensorFacts, ...]


@dataclass(frozen=True)
class Inspection:
    """Counts that do not wobble: what a runtime will execute of a model file.

    ``integer_coverage`` is the share of multiply-accumulates that integer kernels execute, 0 if there are none at all;
    ``operators`` counts by type and ``float_operators`` names those that still calculate in float.
    """

    kind: str
    size_bytes: int
    operators: Mapping[str, int]
    num_operators: int
    integer_operators: int
    num_macs: int
    integer_coverage: float
    float_operators: tuple[str, ...]
    border: Border

    @property
    def inputs(self) -> tuple[TensorFacts, ...]:
        """Return what the model takes."""
        return self.border.inputs

    @property
    def outputs(self) -> tuple[TensorFacts, ...]:
        """Return what the model gives."""
        return self.border.outputs

    def to_json(self) -> dict[str, object]:
        """Return the same as JSON types."""
        return asdict(self)
