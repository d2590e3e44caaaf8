"""What each method of ``[[compress]]`` was asked for and what the target gained of it, all on one trained teacher."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from ai_edge_litert.interpreter import Interpreter
from bench_figures import Figure
from bench_network import Network, NotMeasured
from bench_timing import Timings, interleaved, ratio

from edgeopt.explore.trial import TrialResult, run_trial
from edgeopt.tflite.inspect import inspect_tflite

_SECTION = "methods"
_TARGET = "arm64"
_ROUNDS, _REPEATS = 30, 20

_TRAINING = {"epochs": 8, "batch_size": 64, "learning_rate": 3e-3, "max_shift": 2, "validation_share": 0.0}
_GENTLE = {**_TRAINING, "learning_rate": 5e-4}
_FINETUNE = {"method": "finetune", **_TRAINING}
_DISTILL = {"method": "distill", **_TRAINING, "alpha": 0.9}
_PRUNE = {"method": "prune", "pruning_ratio": 0.6}
_SHARE = {"method": "share", "conv_values": 16, "linear_values": 16, "finetune": _GENTLE}
_SPARSIFY = {"method": "sparsify", "sparsity": 0.9, "schedule": "gradual", "finetune": _TRAINING}

# One scale a tensor, and nothing that gives a channel one of its own: else few values become many.
_FEW_VALUES = {"quantize.weights": "per_tensor", "correct.equalize": "off", "correct.smooth": "off"}


@dataclass(frozen=True)
class Variant:
    """A chain to build: its steps, and what else the recipe says."""

    asked: str
    steps: tuple[Mapping[str, Any], ...]
    values: Mapping[str, object] = field(default_factory=dict)

    @property
    def overrides(self) -> dict[str, object]:
        """The recipe's values that make it."""
        return {"compress": [dict(step) for step in self.steps], **self.values}


def _features(kind: str, layer: str) -> dict[str, Any]:
    """Return a distillation that also learns from what a layer of the teacher gives."""
    return {**_DISTILL, "features": [{"student": layer, "loss": kind}]}


VARIANTS: tuple[Variant, ...] = (
    Variant("teacher, int8 alone", ()),
    Variant("prune 60 % of channels, finetune", (_PRUNE, _FINETUNE)),
    Variant("prune to 15 % of the MACs, finetune", ({"method": "prune", "budget": {"num_macs": 0.15}}, _FINETUNE)),
    Variant("prune 60 %, distil answers", (_PRUNE, _DISTILL)),
    Variant("prune 60 %, distil a hint", (_PRUNE, _features("hint", "9"))),
    Variant("prune 60 %, distil attention", (_PRUNE, _features("attention", "9"))),
    Variant("prune 60 %, distil relations", (_PRUNE, _features("relational", "17"))),
    Variant("prune 60 %, distil, distil rounded to int8", (_PRUNE, _DISTILL, {
        "method": "distill", **_GENTLE, "epochs": 4, "alpha": 0.9, "quantization_aware": "asymmetric",
    })),
    Variant("sparsify 90 %", (_SPARSIFY,)),
    Variant("sparsify 2:4", ({"method": "sparsify", "pattern": "2:4", "finetune": _TRAINING},)),
    Variant("share 16 values a tensor", (_SHARE,), _FEW_VALUES),
    Variant("share 16 values, then a scale a channel", (_SHARE,)),
    Variant("sparsify 90 %, share 16 values", (_SPARSIFY, _SHARE), _FEW_VALUES),
    Variant("prune 60 %, distil, sparsify 70 %, share 16", (
        _PRUNE, _DISTILL, {**_SPARSIFY, "sparsity": 0.7}, _SHARE,
    ), _FEW_VALUES),
    Variant("int4 weights", ({"method": "low_bit", "weights": "int4", "finetune": _GENTLE},)),
    Variant("int4 weights in blocks of 32", ({
        "method": "low_bit", "weights": "int4", "block_size": 32, "finetune": _GENTLE,
    },)),
    Variant("ternary weights", ({"method": "low_bit", "weights": "ternary", "finetune": _TRAINING},)),
    Variant("binary weights", ({"method": "low_bit", "weights": "binary", "finetune": _TRAINING},)),
    Variant("factorize (Tucker-2) to half of the MACs, finetune", (
        {"method": "factorize", "max_macs": 0.5}, _FINETUNE,
    )),
    Variant("factorize (CP) to half of the MACs, finetune", (
        {"method": "factorize", "form": "cp", "max_macs": 0.5}, {**_FINETUNE, **_GENTLE},
    )),
    Variant("ReLU -> ReLU6, finetune", ({"method": "replace_activations"}, {**_FINETUNE, **_GENTLE})),
)  # fmt: skip


def method_figures(network: Network) -> Iterator[Figure]:
    """Build every variant of the network's recipe for arm64, and give each beside the teacher's int8 model."""
    out = network.folder / "methods"
    results = {}
    for variant in VARIANTS:
        values = {**variant.overrides, "latency.compare": False}
        results[variant.asked] = run_trial(network.reference, _TARGET, values, out)
    models = {asked: _model(out, result) for asked, result in results.items() if result.bundle is not None}
    first = VARIANTS[0].asked
    if first not in models:
        raise NotMeasured(f"the teacher could not be built: {results[first].error}")
    taken = interleaved({asked: _inference(model) for asked, model in models.items()}, rounds=_ROUNDS, repeats=_REPEATS)
    for asked, result in results.items():
        if asked not in models:
            yield Figure(_SECTION, network.name, asked, None, "x", result.error.replace("\n", " "))
        else:
            yield _figure(network, asked, result, results[first], models, (taken[first], taken[asked]))


def _figure(
    network: Network,
    asked: str,
    result: TrialResult,
    teacher: TrialResult,
    models: Mapping[str, Path],
    taken: tuple[Timings, Timings],
) -> Figure:
    """Return how much smaller the packed model is; the remark has what else changed."""
    here, before = result.figures, teacher.figures
    assert None not in (here.packed_bytes, before.packed_bytes, here.metric, before.metric)
    inspected = inspect_tflite(models[asked])
    faster = ratio(*taken)
    low, high = _middle_half(*taken)
    remark = (
        f"{here.packed_bytes:,} bytes packed, {here.model_bytes:,} as it runs, {here.num_macs:,} MACs, "
        f"{inspected.num_operators} operators ({100 * inspected.integer_coverage:.0f} % integer); "
        f"latency teacher / this {faster:.2f} ({low:.2f}-{high:.2f}); {here.metric_name} {100 * here.metric:.1f} %"  # type: ignore[operator]
        f", teacher {100 * before.metric:.1f} %"  # type: ignore[operator]
    )
    if result.status != "ok":
        remark += f"; {result.status}: {result.error.splitlines()[0]}"
    return Figure(_SECTION, network.name, asked, before.packed_bytes / here.packed_bytes, "x", remark)  # type: ignore[operator]


def _middle_half(teacher: Timings, student: Timings) -> tuple[float, float]:
    ratios = sorted(a / b for a, b in zip(teacher.wall, student.wall, strict=True))
    return ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]


def _model(out: Path, result: TrialResult) -> Path:
    bundle = out / str(result.bundle)
    manifest = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    return bundle / str(manifest["model"]["file"])


def _inference(model: Path) -> Callable[[], object]:
    interpreter = Interpreter(model_path=str(model), num_threads=1)
    interpreter.allocate_tensors()
    return partial(interpreter.invoke)
