"""The command line of ``scripts/bench``: which sections to measure, on which networks, and how to show the figures."""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from bench_accuracy import accuracy_figures, accuracy_networks
from bench_build import build_figures, footprint_figures
from bench_calibration import calibration_figures
from bench_compression import compression_figures, compression_networks
from bench_compression_pruning import pruning_figures
from bench_figures import Figure, as_json, read_goals, table, verdict
from bench_latency import latency_figures
from bench_lowering import chain_figures, lowering_figures
from bench_methods import method_figures
from bench_network import Network, NotMeasured
from bench_node_cases import node_case_figures
from bench_parity import agreement_figures, parity_figures
from bench_peers import find_peers
from bench_size import size_figures
from bench_timing import load

_SEEDED = tuple(
    str(path)
    for path in sorted(Path(__file__).parent.glob("bench_recipes/*.toml"))
    if 'dataset = "seeded"' in path.read_text(encoding="utf-8")
)
_NETWORKS: Mapping[str, tuple[str, ...]] = {
    "build": ("efficientnet_lite0",),
    "calibration": ("efficientnet_lite0",),
    "lowering": ("efficientnet_lite0",),
    "parity": ("efficientnet_lite0", "mobilenet_v2", "mnist5k"),
    "latency": ("efficientnet_lite0", "mobilenet_v2", "mnist5k", *_SEEDED),
    "agreement": ("efficientnet_lite0", "mobilenet_v2"),
    "accuracy": accuracy_networks(),
    "compression": compression_networks(),
    "methods": ("mnist5k",),
    "pruning": ("mnist5k",),
    "footprint": ("efficientnet_lite0", "mobilenet_v2"),
    "node-cases": (),
    "size": (),
}
_WITHOUT_NETWORK = ("lowering", "node-cases", "size")
_PACKAGES = ("edgeopt", "onnxruntime", "ai-edge-litert", "torch", "numpy")
_COUNTS = (
    ("--samples", 100, "held-out samples"),
    ("--rounds", 40, "rounds of ten inferences for latency"),
    ("--calibration-samples", 128, "at most so many calibration samples"),
    ("--calibration-rounds", 5, "rounds of each calibrator"),
    ("--peer-cases", 100_000, "at most so many of ONNX's node cases for each peer"),
)
_EPILOG = """\
sections:
  build         a whole build from nothing and an unchanged rebuild: time and memory
  calibration   each method beside ONNX Runtime's calibrators and plain inference: time and memory
  lowering      a QDQ file to a .tflite file: time and memory; chains of 100 to 10,000 nodes
  parity        the arm64 against the x86 bundle in their runtimes, value by value
  latency       int8 against float on one thread, paired; integer kernels; the peers
  accuracy      what int8 costs under the accuracy contract: drop, its interval, what was moved
  compression   each network against its float teacher: bytes, latency, accuracy (an hour; --work resumes it)
  methods       what each method of [[compress]] was asked for and what the target gained of it (10 minutes)
  pruning       which importance and scope keep most at the same MACs (4 minutes)
  agreement     each bundle against the float network: class and noise
  footprint     sizes of files, multiplications on integers
  node-cases    ONNX's own cases of single operators, through ours and through onnx2tf (which takes an hour)
  size          lines of the lowering
  all           every one of them

examples:
  scripts/bench all --json bench.json
  scripts/bench parity agreement --samples 300
  scripts/bench latency --network mobilenet_v2 --rounds 100
  scripts/bench node-cases --work build/bench --peer-python /path/to/peer/bin/python
  scripts/bench footprint --network my.toml --work build/bench
  scripts/bench compression --network scripts/bench_recipes/gestures.toml --work build/bench
  scripts/bench latency --peer-python /path/to/peer/bin/python --peer-python /path/to/another/bin/python
  scripts/bench latency --network scripts/bench_recipes/resnet18.toml --peer-python /path/to/peer/bin/python

Peers are other converters, each in an environment of its own (Python 3.11):
  litert-torch with ai-edge-quantizer (tried: both 0.10.0, torch 2.13.0; torch first, for CPUs if you have no GPU)
    python3 -m venv /path/to/peer
    /path/to/peer/bin/pip install torch==2.13.0
    /path/to/peer/bin/pip install litert-torch ai-edge-quantizer
  onnx2tf 1, which goes through TensorFlow's converter (tried: 1.29.24, TensorFlow 2.19.0)
    /path/to/peer/bin/pip install onnx2tf==1.29.24
  onnx2tf 2, which writes its files itself (tried: 2.6.9; it asks for Python 3.12, and runs on 3.11)
    /path/to/peer/bin/pip install --ignore-requires-python onnx2tf==2.6.9

Times depend on what else the machine does: the table shows its load. Ratios come from runs in turns and suffer less.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print the table.

    Returns:
        1 if ``--check`` was given and a goal was not shown to be met, 130 after Ctrl-C, else 0.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        options.peers = find_peers(options.peer_python)
    except NotMeasured as reason:
        parser.error(str(reason))
    goals = read_goals()
    with tempfile.TemporaryDirectory(prefix="edgeopt-bench-") as scratch:
        try:
            figures = list(_measured(options, options.work or Path(scratch)))
        except KeyboardInterrupt:
            kept = f"--work {options.work} goes on from there" if options.work else "without --work nothing is kept"
            sys.stderr.write(f"\ninterrupted; {kept}\n")
            return 130
    sys.stdout.write(table(figures, goals))
    if options.json is not None:
        content = as_json(figures, goals, _facts())
        options.json.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    verdicts = {verdict(figure, goals.get(figure.key)) for figure in figures}
    return 1 if options.check and verdicts & {"missed", "not measured"} else 0


def _measured(options: argparse.Namespace, work: Path) -> Iterator[Figure]:
    networks: dict[str, Network] = {}
    sections = list(_NETWORKS) if "all" in options.sections else list(dict.fromkeys(options.sections))
    for section in sections:
        for reference in _NETWORKS[section] and (options.network or _NETWORKS[section]):
            network = networks.setdefault(reference, Network(reference, work))
            sys.stderr.write(f"{section} {network.name} ({load()}) ...\n")
            yield from _shown(_section(section, network, options), section, network.name)
        if section in _WITHOUT_NETWORK:
            sys.stderr.write(f"{section} ({load()}) ...\n")
            yield from _shown(_without_network(section, options, work), section, "-")


def _shown(figures: Iterator[Figure], section: str, network: str) -> Iterator[Figure]:
    """Tell of each figure as it comes, so that it is known if the rest is cut off."""
    try:
        for figure in figures:
            sys.stderr.write(f"  {figure.name}: {figure.shown}\n")
            yield figure
    except NotMeasured as reason:
        yield Figure(section, network, "-", None, "", str(reason))


def _section(section: str, network: Network, options: argparse.Namespace) -> Iterator[Figure]:
    if section == "build":
        return build_figures(network)
    if section == "calibration":
        return calibration_figures(network, options.calibration_samples, options.calibration_rounds)
    if section == "lowering":
        return lowering_figures(network)
    if section == "parity":
        return parity_figures(network, options.samples)
    if section == "latency":
        return latency_figures(network, options.samples, options.rounds, options.peers)
    if section == "accuracy":
        return accuracy_figures(network)
    if section == "compression":
        return compression_figures(network)
    if section == "methods":
        return method_figures(network)
    if section == "pruning":
        return pruning_figures(network)
    if section == "agreement":
        return agreement_figures(network, options.samples)
    return footprint_figures(network)


def _without_network(section: str, options: argparse.Namespace, work: Path) -> Iterator[Figure]:
    if section == "lowering":
        return chain_figures()
    if section == "node-cases":
        return node_case_figures(options.peers, work, options.peer_cases)
    return size_figures()


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measure edgeopt and show each figure beside its goal. Every figure comes from this one run.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sections", nargs="+", metavar="SECTION", choices=(*_NETWORKS, "all"), help="what to measure")
    parser.add_argument(
        "--network", action="append", metavar="RECIPE", help="on which network, repeatable [each section's own]"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write figures, limits and verdicts to FILE")
    parser.add_argument("--check", action="store_true", help="exit with 1 if a goal is missed or a figure is missing")
    parser.add_argument("--work", type=Path, metavar="DIR", help="keep what is built there and use it again")
    for name, default, text in _COUNTS:
        parser.add_argument(name, type=_positive, default=default, metavar="N", help=f"{text} [{default}]")
    parser.add_argument(
        "--peer-python", action="append", type=Path, default=[], metavar="PATH", help="a Python with a peer, repeatable"
    )
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _facts() -> dict[str, Any]:
    return {
        "machine": platform.machine(),
        "python": platform.python_version(),
        "load": load(),
        "packages": {name: metadata.version(name) for name in _PACKAGES},
    }
