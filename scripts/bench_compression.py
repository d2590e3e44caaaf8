"""What compression reaches: each network against its own float teacher, as it ships."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from bench_figures import Figure
from bench_network import Network, NotMeasured
from bench_pruned import agreement_figures, latency_figures, people_figures
from bench_seeds import drop_figure, trained_pairs

from edgeopt.bundle.coding import coded_size
from edgeopt.bundle.weight_buffers import read_constants

_RECIPES = Path(__file__).with_name("bench_recipes")
_SECTION = "compression"

Measure = Callable[[Network], Iterator[Figure]]


def coded_figures(network: Network) -> Iterator[Figure]:
    """Give the compression ratio of "Deep Compression": float weights against the whole coded model file."""
    pairs = trained_pairs(network)
    coded = [coded_size(pair.student) for pair in pairs]
    float_bytes = float_weights_bytes(pairs[0].teacher)
    ratios = [float_bytes / model.size_bytes for model in coded]
    sizes = ", ".join(f"{model.size_bytes:,}" for model in coded)
    remark = f"{float_bytes:,} bytes of float weights; {sizes} bytes with codebooks, graph and all"
    yield Figure(_SECTION, network.name, "float weights / coded model, worst seed", min(ratios), "x", remark)
    yield Figure(_SECTION, network.name, "float weights / coded model, mean", sum(ratios) / len(ratios), "x")
    stored = ", ".join(f"{pair.student.stat().st_size:,}" for pair in pairs)
    yield Figure(
        _SECTION, network.name, "model file as LiteRT runs it", pairs[0].student.stat().st_size, "bytes", stored
    )
    yield drop_figure(_SECTION, network.name, pairs)


def model_file_figures(network: Network) -> Iterator[Figure]:
    """Give the float teacher's file against the student's, both as LiteRT runs them, nothing unpacked."""
    pairs = trained_pairs(network)
    sizes = [(pair.teacher.stat().st_size, pair.student.stat().st_size) for pair in pairs]
    worst = min(teacher / student for teacher, student in sizes)
    remark = ", ".join(f"{teacher:,} -> {student:,}" for teacher, student in sizes) + " bytes of .tflite"
    yield Figure(_SECTION, network.name, "float teacher / model file, worst seed", worst, "x", remark)
    yield drop_figure(_SECTION, network.name, pairs)


def float_weights_bytes(model: Path) -> int:
    """Return what a model file's weights and biases take as float32."""
    return 4 * sum(constant.num_weights for constant in read_constants(model, model.read_bytes()))


_MEASURES: Mapping[str, Measure] = {
    "lenet_300_100": coded_figures,
    "lenet_5": coded_figures,
    "mnist5k": model_file_figures,
    "resnet20": latency_figures,
    "gestures": people_figures,
    "lite0_pruned": agreement_figures,
}


def compression_networks() -> tuple[str, ...]:
    """Return the recipes that are measured: built-in ones by name, those of the bench by path."""
    own = {path.stem: str(path) for path in _RECIPES.rglob("*.toml")}
    return tuple(own.get(name, name) for name in _MEASURES)


def compression_figures(network: Network) -> Iterator[Figure]:
    """Train a network and what its chain makes of it, and give the figures that its goals are about."""
    if network.name not in _MEASURES:
        raise NotMeasured(f"compression is measured of {', '.join(_MEASURES)}")
    return _MEASURES[network.name](network)
