"""A loaded model that answers: what stages and targets run their graphs in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[np.generic]]


class Session(Protocol):
    """One loaded model; ``run`` takes and returns arrays by name."""

    def run(self, inputs: Arrays) -> dict[str, NDArray[np.generic]]:
        """Return every output for one batch of inputs."""


class OnnxSession:
    """ONNX Runtime on the CPU.

    Args:
        model: a path, or the bytes of a model.
        threads: intra-operator threads; results of float graphs may depend on it in the last bit.
        optimize: fuse and rewrite the graph as ONNX Runtime does by default; off, the graph runs as written.
        optimized_path: where to write the graph that really runs, to look at.
        external_data_folder: where the external data of a model given as bytes lies.
    """

    def __init__(
        self,
        model: Path | bytes,
        *,
        threads: int = 2,
        optimize: bool = True,
        optimized_path: Path | None = None,
        external_data_folder: Path | None = None,
    ) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        # A thread that waits must not keep a core busy: on a machine with other work that doubles the time.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if not optimize:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        if optimized_path is not None:
            options.optimized_model_filepath = str(optimized_path)
        if external_data_folder is not None:
            options.add_session_config_entry(
                "session.model_external_initializers_file_folder_path", str(external_data_folder)
            )
        source = model if isinstance(model, bytes) else str(model)
        self._session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        self.input_names: Sequence[str] = [value.name for value in self._session.get_inputs()]
        self.output_names: Sequence[str] = [value.name for value in self._session.get_outputs()]

    def run(self, inputs: Arrays) -> dict[str, NDArray[np.generic]]:
        """Return every output for one batch of inputs."""
        return dict(zip(self.output_names, self._session.run(None, dict(inputs)), strict=True))
