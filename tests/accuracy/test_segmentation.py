"""The bench's segmenter, trained on the spot: the contract holds its mean overlap on the real runtimes."""

from pathlib import Path

from tiny_project import ROOT

import edgeopt
from edgeopt.tflite.inspect import read_tflite

RECIPE = ROOT / "scripts/bench_recipes/segmentation.toml"


def test_build_loses_at_most_one_point_of_overlap_when_it_segments(tmp_path: Path) -> None:
    result = edgeopt.build(RECIPE, targets=["arm64", "x86"], out=tmp_path, overrides={"latency.compare": False})
    for bundle in result.bundles:
        assert bundle.accuracy is not None
        found = bundle.accuracy.measured
        assert bundle.accuracy.passed
        assert found.float_figure > 0.8  # it has learnt something
        assert found.drop <= 0.01
        assert found.interval is not None
        assert found.interval.low <= found.drop <= found.interval.high
        assert bundle.integer_coverage == 1.0
    operators = {
        operator.builtin for operator in read_tflite((result.bundles[0].path / "model.tflite").read_bytes()).operators
    }
    assert {"PRELU", "TRANSPOSE_CONV", "CONCATENATION"} <= operators
