"""One streaming pass over the float graph: samples in, one range a tensor out, in constant memory.

Only the tensors that some scheme quantizes become outputs of the graph, so that ONNX Runtime keeps its fusions; the
reduction is NumPy's. Measured on EfficientNet-Lite0 by ``scripts/bench``, which prints it beside ONNX Runtime's own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray

from edgeopt.artifacts import FloatModel, Ranges, TensorRange, canonical_json
from edgeopt.calibrate.observers import MinMaxObserver
from edgeopt.dataset import sample_digest
from edgeopt.errors import DataError
from edgeopt.samples import Sample
from edgeopt.session import OnnxSession
from edgeopt.stage import track


def calibrate(
    source: FloatModel, tensors: Sequence[str], samples: Iterable[Sample], num_samples: int, out_dir: Path
) -> tuple[Ranges, tuple[str, ...]]:
    """Observe ``tensors`` and all inputs and outputs on every sample; return ranges and the samples' digests, sorted.

    Args:
        source: the float graph.
        tensors: names of tensors in it, those that some scheme quantizes.
        samples: checked samples (see :func:`edgeopt.dataset.checked_samples`).
        num_samples: how many there are, for the progress bar.
        out_dir: where ``ranges.json`` is written.

    Raises:
        DataError: if there are no samples, a tensor is not finite, or an input never changes.
    """
    border = (tensor.name for tensor in (*source.inputs, *source.outputs))
    observers = {name: MinMaxObserver() for name in dict.fromkeys((*tensors, *border))}
    session = _observing_session(source, tuple(observers))
    digests: list[str] = []
    for sample in track(samples, total=num_samples, description="calibrate"):
        digests.append(sample_digest(sample))
        answers = session.run(dict(sample.inputs))
        for name, observer in observers.items():
            values = sample.inputs[name] if name in sample.inputs else answers[name]
            observer.update(_floating(values), name, sample.name)
    if not digests:
        raise DataError("calibration needs at least one sample, got none")
    found = {name: observer.range() for name, observer in observers.items()}
    _refuse_constant_inputs(source, found)
    return write_ranges(found, sorted(digests), out_dir / "ranges.json")


def write_ranges(
    tensors: Mapping[str, TensorRange], digests: Sequence[str], path: Path
) -> tuple[Ranges, tuple[str, ...]]:
    """Write ranges as JSON (``float.hex`` loses no bit) and return them as an artifact."""
    content = {
        "tensors": {
            name: {"minimum": item.minimum.hex(), "maximum": item.maximum.hex()} for name, item in tensors.items()
        },
        "samples": list(digests),
    }
    path.write_text(canonical_json(content), encoding="utf-8")
    return read_ranges(path)


def read_ranges(path: Path) -> tuple[Ranges, tuple[str, ...]]:
    """Read what :func:`write_ranges` wrote."""
    content = json.loads(path.read_text(encoding="utf-8"))
    tensors = {
        name: TensorRange(float.fromhex(item["minimum"]), float.fromhex(item["maximum"]))
        for name, item in content["tensors"].items()
    }
    return Ranges(path, tensors, len(content["samples"])), tuple(content["samples"])


def _observing_session(source: FloatModel, tensors: Sequence[str]) -> OnnxSession:
    """Open the float graph with every observed tensor as an additional output."""
    model = onnx.load(str(source.path), load_external_data=False)
    present = {value.name for value in (*model.graph.input, *model.graph.output)}
    described = {value.name: value for value in model.graph.value_info}
    for name in tensors:
        if name not in present:
            if name not in described:
                raise DataError(f"the float graph has no tensor {name!r} to observe")
            model.graph.output.append(described[name])
    return OnnxSession(model.SerializeToString(), external_data_folder=source.path.parent)


def _refuse_constant_inputs(source: FloatModel, found: Mapping[str, TensorRange]) -> None:
    for tensor in source.inputs:
        item = found.get(tensor.name)
        if item is not None and item.minimum == item.maximum:
            raise DataError(
                f"input {tensor.name!r} is {item.minimum:g} everywhere in every calibration sample",
                hint="ranges from one black image cost an EfficientNet-Lite0 all of its accuracy: give real samples",
            )


def _floating(values: NDArray[np.generic]) -> NDArray[np.floating]:
    if not np.issubdtype(values.dtype, np.floating):
        raise DataError(f"only floating-point tensors are observed, got {values.dtype}")
    return values  # type: ignore[return-value]
