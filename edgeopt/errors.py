"""Every error that edgeopt raises on purpose, one exit code a class.

    EdgeoptError                1   the common root: ``except edgeopt.EdgeoptError`` catches all below
    ├── UsageError              2   the command line or a call's arguments (click's own code for it)
    ├── RecipeError             3   a recipe: unknown key, wrong type, a file that is missing
    ├── ModelError              4   the network: cannot be loaded, wrong weights, NaN in them
    ├── DataError               5   calibration or held-out samples: none, NaN, wrong shape, not disjoint
    ├── CompressionError        6   pruning or training: a layer that is not there, a loss that is NaN
    ├── ExportError             7   PyTorch to ONNX, or the two answer differently
    ├── QuantizationError       8   ranges or the QDQ graph
    ├── LoweringError           9   a graph that a target cannot express exactly
    ├── TargetError            10   a folder in ``targets/`` that is not a target
    ├── BundleError            11   a bundle that is damaged, tampered with or of another schema
    ├── ParityError            12   the verdict is no: the bundle's answers are outside the limits
    ├── MissingDependencyError 13   a runtime or package that the job needs is not installed
    ├── StorageError           14   the disk: full, read-only, not permitted
    ├── DeviceError            15   a board, emulator or cluster: not there, not fit, too slow, or it answers garbage
    ├── AccuracyError          16   int8 costs more than the recipe allows, and no plan within the budget costs less
    ├── MetricError            17   a metric: it raises, gives no number, or does not fit the output
    ├── LatencyError           18   a bundle is slower than the float network in the same runtime
    └── BudgetError            19   a microcontroller's bundle that needs more RAM or flash than the recipe gives

A message says *where: what, got X, expected Y*; ``hint`` says how to mend it. Ctrl-C exits with 130 as in every shell.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches


class EdgeoptError(Exception):
    """Root of every error that edgeopt raises on purpose."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.stage: str | None = None  # stamped by edgeopt.stage.stage

    def __str__(self) -> str:
        where = f"[{self.stage}] " if self.stage else ""
        hint = f"\n  hint: {self.hint}" if self.hint else ""
        return f"{where}{self.message}{hint}"


class UsageError(EdgeoptError):
    """The command line or the arguments of a call make no sense together."""

    exit_code = 2


class RecipeError(EdgeoptError):
    """A recipe has an unknown key, a value of the wrong type or names a file that is not there."""

    exit_code = 3


class ModelError(EdgeoptError):
    """The network cannot be loaded, or its weights are missing, do not fit or are not finite."""

    exit_code = 4


class DataError(EdgeoptError):
    """The samples are missing, not finite, of the wrong shape, constant or not disjoint."""

    exit_code = 5


class CompressionError(EdgeoptError):
    """Pruning or training cannot go on: an unknown layer, a loss that is not finite."""

    exit_code = 6


class ExportError(EdgeoptError):
    """The network cannot be exported to ONNX, or the exported graph answers differently."""

    exit_code = 7


class QuantizationError(EdgeoptError):
    """Ranges cannot become scales, or a QDQ graph breaks its own rules."""

    exit_code = 8


@dataclass(frozen=True)
class Refusal:
    """One node that a target cannot express exactly."""

    node: str
    op_type: str
    reason: str

    def __str__(self) -> str:
        return f"{self.op_type} {self.node!r}: {self.reason}"


class LoweringError(EdgeoptError):
    """A graph cannot be lowered exactly; ``refusals`` names every node that stands in the way."""

    exit_code = 9

    def __init__(self, message: str, *, refusals: Sequence[Refusal] = (), hint: str | None = None) -> None:
        lines = "".join(f"\n  - {refusal}" for refusal in refusals)
        super().__init__(message + lines, hint=hint)
        self.refusals = tuple(refusals)


class TargetError(EdgeoptError):
    """A folder in ``targets/`` has facts or functions that do not make a target."""

    exit_code = 10


class BundleError(EdgeoptError):
    """A bundle is damaged, was changed after it was built, or has another schema version."""

    exit_code = 11


class ParityError(EdgeoptError):
    """A bundle answers outside its limits; after a build, ``result`` is the whole ``BuildResult``."""

    exit_code = 12
    result: object = None


class MissingDependencyError(EdgeoptError):
    """A runtime or package that this job needs is not installed."""

    exit_code = 13


class StorageError(EdgeoptError):
    """The disk is full, read-only or not permitted."""

    exit_code = 14


class DeviceError(EdgeoptError):
    """A board, an emulator or a cluster cannot be reached, cannot run the bundle, takes too long or answers garbage."""

    exit_code = 15


class AccuracyError(EdgeoptError):
    """No plan within the budget keeps the recipe's accuracy; ``result`` is the whole ``BuildResult``."""

    exit_code = 16
    result: object = None


class MetricError(EdgeoptError):
    """A metric raises, gives no finite number, or does not fit the network's output."""

    exit_code = 17


class LatencyError(EdgeoptError):
    """A bundle is slower than the float network in the same runtime; ``result`` is the whole ``BuildResult``."""

    exit_code = 18
    result: object = None


class BudgetError(EdgeoptError):
    """A bundle for a microcontroller needs more RAM or flash than the recipe gives it."""

    exit_code = 19


def did_you_mean(word: str, known: Sequence[str]) -> str | None:
    """Return a hint that names the known word closest to ``word``, or every known word if none is close."""
    close = get_close_matches(word, known, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known: {', '.join(sorted(known))}" if known else None
