"""Tools that convert the same networks, each in an environment of its own, found by what is installed there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from bench_network import Network, NotMeasured, last_line
from bench_timing import run_watched

_HERE = Path(__file__).parent
_PACKAGES = ("litert-torch", "ai-edge-quantizer", "onnx2tf", "tensorflow", "torch", "onnx")
_ASK = """
import importlib.metadata, json
print(json.dumps({found.metadata["Name"]: found.version for found in importlib.metadata.distributions()}))
"""


@dataclass(frozen=True)
class Peer:
    """A converter: ``litert-torch``, ``onnx2tf 1`` (through TensorFlow's converter) or ``onnx2tf 2``."""

    name: str
    python: Path
    versions: Mapping[str, str]

    @property
    def tools(self) -> str:
        """Name the packages that took part, with versions."""
        return ", ".join(f"{name} {version}" for name, version in self.versions.items())

    def file_of(self, network: Network) -> Path:
        """Return the int8 file that it makes of a network, made now or by an earlier run for the same float graph.

        Raises:
            NotMeasured: if the peer cannot.
        """
        source = network.float_graph.path.read_bytes() + self.tools.encode()
        path = network.folder / f"{self.name} {hashlib.sha256(source).hexdigest()[:12]}.tflite"
        if not path.exists():
            self._convert(network, path)
        return path

    def _convert(self, network: Network, path: Path) -> None:
        """Let it convert, calibrated on the samples that calibrated ours."""
        stored = network.folder / "peer.npy"
        samples = network.samples("calibration", network.loaded.recipe.calibration.num_samples)
        (name,) = network.inputs
        np.save(stored, np.stack([sample.inputs[name] for sample in samples]))
        if self.name == "litert-torch":
            script, source = "bench_peer_litert_torch.py", network.exported_program()
        else:
            script, source = "bench_peer_onnx2tf.py", network.float_graph.path
        finished = run_watched([str(self.python), str(_HERE / script), str(source), str(stored), str(path)])
        if finished.exit_code != 0:
            raise NotMeasured(f"{self.name}: {last_line(finished.errors)}")


def find_peers(pythons: Sequence[Path]) -> list[Peer]:
    """Return the peer of each environment.

    Raises:
        NotMeasured: if one has no converter that is known here.
    """
    return [_peer(python) for python in pythons]


def _peer(python: Path) -> Peer:
    finished = run_watched([str(python), "-c", _ASK])
    if finished.exit_code != 0:
        raise NotMeasured(f"{python}: {last_line(finished.errors)}")
    installed = {name.lower().replace("_", "-"): version for name, version in json.loads(finished.output).items()}
    versions = {name: installed[name] for name in _PACKAGES if name in installed}
    if "litert-torch" in versions:
        return Peer("litert-torch", python, versions)
    if "onnx2tf" in versions:
        return Peer(f"onnx2tf {versions['onnx2tf'].split('.')[0]}", python, versions)
    raise NotMeasured(f"{python} has neither litert-torch nor onnx2tf")
