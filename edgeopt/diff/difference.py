"""``diff``: two forms of one network on the same samples, and the first tensor that went wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeopt.diff.comparison import TensorDifference, compare
from edgeopt.diff.finding import DEFAULT_LIMIT_DB, Finding, first_under
from edgeopt.errors import UsageError
from edgeopt.recipe import LoadedRecipe, load_recipe
from edgeopt.samples import Split
from edgeopt.stage import stage


@dataclass(frozen=True)
class Difference:
    """How two forms differ: every tensor that both have, in graph order, and the first under the limit."""

    first: str
    second: str
    samples: tuple[str, ...]
    limit_db: float
    tensors: tuple[TensorDifference, ...]
    finding: Finding | None

    def to_json(self) -> dict[str, Any]:
        """Return the same as JSON types."""
        return {
            "first": self.first,
            "second": self.second,
            "samples": list(self.samples),
            "limit_db": self.limit_db,
            "tensors": [tensor.to_json() for tensor in self.tensors],
            "finding": None if self.finding is None else self.finding.to_json(),
        }


def diff(
    first: str,
    second: str,
    *,
    recipe: LoadedRecipe | str | Path,
    target: str = "arm64",
    out: Path | None = None,
    overrides: Mapping[str, object] | None = None,
    split: Split = "held_out",
    num_samples: int = 8,
    only: tuple[str, ...] = (),
    limit_db: float = DEFAULT_LIMIT_DB,
) -> Difference:
    """Compare two forms of a recipe's network, tensor by tensor.

    Args:
        first: ``torch``, ``float``, ``corrected`` (the float graph with what ``[correct]`` changed), ``qdq``,
            ``bundle``, or the path of a bundle or of a float ``.onnx`` file.
        second: the same; it is what is compared with ``first``.
        recipe: a loaded recipe, the path of one, or the name of a built-in one.
        target: whose QDQ graph and bundle are meant.
        out: where builds and their cache go; left out, ``./build``.
        overrides: recipe values by dotted key.
        split: where samples come from.
        num_samples: how many of them, from the first on.
        only: names of samples; left out, all of these.
        limit_db: the ratio of signal to difference under which a tensor counts as wrong.

    Raises:
        UsageError: there is no such form or sample, or two forms that have nothing in common.
        EdgeoptError: what is not built yet cannot be built.
    """
    from edgeopt.diff.forms import Forms
    from edgeopt.pipeline import DEFAULT_OUT

    loaded = recipe if isinstance(recipe, LoadedRecipe) else load_recipe(recipe, overrides)
    forms = Forms(loaded, target, (out or DEFAULT_OUT).absolute())
    one, other = (forms.open(_seen_from(name, of)) for name, of in ((first, second), (second, first)))
    with stage("diff"):
        samples = [s for s in forms.samples(split, num_samples) if not only or s.name in only]
        if missing := set(only) - {sample.name for sample in samples}:
            raise UsageError(
                f"there is no sample {min(missing)!r} among the first {num_samples} of {split}",
                hint="--samples takes more of them",
            )
        tensors = compare(one, other, samples, forms.tensors)
        finding = first_under(tensors, limit_db)
    names = tuple(sample.name for sample in samples)
    return Difference(one.title, other.title, names, limit_db, tuple(tensors), finding)


def _seen_from(name: str, other: str) -> str:
    """Return the form that is meant: a quantized one has the corrected graph's tensors, which may be scaled."""
    return "corrected" if name == "float" and other not in ("torch", "float", "corrected") else name
