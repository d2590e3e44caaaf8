"""What a recipe can say, as frozen records; every field with a default is optional in the TOML file.

The names here are the names in the file: ``[prune] pruning_ratio = 0.5`` is ``PruneSettings.pruning_ratio``.
A section that is ``None`` switches its stage off.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from edgeopt.errors import RecipeError, did_you_mean
from edgeopt.steps import DistillSettings, Step
from edgeopt.training import TrainSettings

INPUT_DTYPES = ("float32", "int32", "int64")


@dataclass(frozen=True)
class InputSettings:
    """One input of the network, with the batch first: ``shape = [1, 3, 224, 224]``.

    Integers (token ids, masks) go in as ``dtype`` says, never narrowed, and are not quantized.

    ``value_range`` is the smallest and the largest value that a preprocessed sample can have, ``[0, 1]`` or
    ``[-1, 1]``; samples that do not fit are warned about. Left out, it is that of the data set, if its
    ``calibration.toml`` says one.
    """

    shape: tuple[int, ...]
    dtype: Literal["float32", "int32", "int64"] = "float32"
    layout: Literal["NCHW", "NHWC", "any"] = "NCHW"
    dynamic_batch: bool = False
    value_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        """Refuse what no runtime can feed."""
        if self.value_range is not None and not self.value_range[0] < self.value_range[1]:
            raise RecipeError(f"'value_range' is [smallest, largest], got {list(self.value_range)}")
        if not self.shape or any(size < 1 for size in self.shape):
            raise RecipeError(f"an input shape must be positive sizes, batch first, got {list(self.shape)}")
        if self.layout != "any" and len(self.shape) != 4:
            raise RecipeError(
                f"layout {self.layout!r} needs four dimensions, got shape {list(self.shape)}",
                hint="write layout = 'any' for an input that is not an image",
            )
        if self.shape[0] != 1:
            raise RecipeError(
                f"the batch size of an input shape must be 1, got {list(self.shape)}",
                hint="write dynamic_batch = true for a network that takes any batch size",
            )


@dataclass(frozen=True)
class ModelSettings:
    """Where the network comes from: ``factory`` (with ``weights``), or ``path`` to a ``.pt2`` or ``.onnx`` file.

    ``factory`` is ``"package.module:function"`` or ``"file.py:function"``, called with ``arguments`` as keywords.
    ``weights`` is a path or ``"package:path/in/package"``; safetensors, or a state dict that
    ``torch.load(weights_only=True)`` accepts.
    """

    inputs: Mapping[str, InputSettings] = field(default_factory=dict)
    factory: str | None = None
    arguments: Mapping[str, object] = field(default_factory=dict)
    weights: str | None = None
    path: Path | None = None
    outputs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a model with two sources or none."""
        if (self.factory is None) == (self.path is None):
            raise RecipeError(
                "the model needs either 'factory' or 'path', got " + ("neither" if self.factory is None else "both")
            )
        if self.path is not None and self.weights is not None:
            raise RecipeError("'weights' go with 'factory'; a model file brings its own")
        if self.path is not None and self.arguments:
            raise RecipeError("'arguments' go with 'factory'; the graph of a model file is fixed")
        if not self.inputs:
            raise RecipeError("the model has no inputs", hint="add [model.inputs.NAME] with shape = [1, ...]")
        if len({settings.dynamic_batch for settings in self.inputs.values()}) > 1:
            raise RecipeError("dynamic_batch must be the same for every input")


@dataclass(frozen=True)
class CalibrationSettings:
    """Which samples ranges come from, and which held-out samples judge the result; the two are always disjoint.

    ``dataset`` is the name of a folder in ``calibration/`` or a path to such a folder; ``options`` go to its
    ``preprocess.py`` as they are. ``num_golden`` of the held-out samples travel in the bundle.

    ``method`` says what becomes of a tensor's values: ``minmax`` keeps all, ``percentile`` the middle ``percentile`` %,
    ``mse`` those that cost least in squared error, ``entropy`` those whose distribution changes least; ``auto`` takes
    for each tensor the one that moves the network's answers least.
    """

    dataset: str
    num_samples: int = 128
    num_held_out: int = 64
    num_golden: int = 16
    method: Literal["minmax", "percentile", "entropy", "mse", "auto"] = "minmax"
    percentile: float = 99.99
    allow_random: bool = False
    options: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse empty sets: a range of nothing and a verdict on nothing."""
        if min(self.num_samples, self.num_held_out, self.num_golden) < 1:
            raise RecipeError("num_samples, num_held_out and num_golden must be at least 1")
        if not 50 < self.percentile <= 100:
            raise RecipeError(f"'percentile' is a share of the values in (50, 100] %, got {self.percentile:g}")


@dataclass(frozen=True)
class ExportSettings:
    """How PyTorch becomes ONNX; ``max_relative_error`` is against the largest magnitude of each output."""

    opset: int = 18
    max_relative_error: float = 1e-4
    num_samples: int = 4

    def __post_init__(self) -> None:
        """Refuse a comparison that cannot fail."""
        if self.num_samples < 1 or not 0 < self.max_relative_error < 1:
            raise RecipeError("num_samples must be at least 1 and max_relative_error in (0, 1)")


Switch = Literal["auto", "on", "off"]
Precision = Literal["int8", "int16", "dynamic", "float", "float16"]


@dataclass(frozen=True)
class CorrectSettings:
    """What is done against the cost of int8, before the ranges are measured and after the graph is quantized.

    A correction that is ``"on"`` is applied, one that is ``"auto"`` only if the quantized network comes nearer to the
    float one by it, on those of the first ``num_samples`` calibration samples that did not teach it. ``rounding`` of
    weights is to the ``"nearest"`` integer, or ``"learned"`` on the samples; that takes a while.
    """

    fold_batch_norm: Switch = "auto"
    clamp_masks: Switch = "auto"
    smooth: Switch = "auto"
    equalize: Switch = "auto"
    correct_bias: Switch = "auto"
    rounding: Literal["nearest", "learned", "auto"] = "nearest"
    num_samples: int = 32

    def __post_init__(self) -> None:
        """Refuse corrections that look at nothing."""
        if self.num_samples < 1:
            raise RecipeError(f"'num_samples' must be at least 1, got {self.num_samples}")

    @property
    def refines(self) -> bool:
        """Whether anything is to be done to the quantized graph."""
        return {self.correct_bias, self.learns_rounding} != {"off"}

    @property
    def learns_rounding(self) -> Switch:
        """``rounding`` as a switch."""
        switches: Mapping[str, Switch] = {"nearest": "off", "learned": "on", "auto": "auto"}
        return switches[self.rounding]


@dataclass(frozen=True)
class QuantizeSettings:
    """What operators compute in; the scheme itself (symmetric or not) is a fact of the target.

    ``precision`` holds for all operators that the scheme knows, ``nodes`` for single ones by their name in the float
    graph. ``int16`` are activations of 16 bits with weights of 8. ``dynamic`` are int8 weights with activations of 8
    bits whose scale each inference finds, row by row: products and convolutions have it, what else there is stays
    float. An operator that moves values without changing them follows the one before it, unless it is named.
    ``float16`` is for the whole network alone. ``weights`` have a scale for each output channel or for the tensor.
    ``reduce_range`` leaves them 7 bits, for x86 CPUs whose products saturate.
    """

    precision: Precision = "int8"
    nodes: Mapping[str, Precision] = field(default_factory=dict)
    weights: Literal["per_channel", "per_tensor"] = "per_channel"
    reduce_range: bool = False

    def __post_init__(self) -> None:
        """Refuse float16 beside anything else."""
        if self.nodes and "float16" in (self.precision, *self.nodes.values()):
            raise RecipeError("'float16' is a precision of the whole network, and goes with no 'nodes'")


COUNTING_BOARDS = ("pi3", "pi4", "pi5")
"""The emulated boards on which instructions are counted, ``qemu:pi3`` and so on."""


@dataclass(frozen=True)
class ParityLimits:
    """Where the verdict turns to no; each figure is judged on the worst held-out sample, agreement on all of them.

    ``max_steps`` left out takes the target's fact: how far its kernels were measured from the quantized reference.
    ``max_built_in_steps`` is the same for runtimes with TFLite's built-in kernels, from what those kernels answered
    where the bundle was built. ``min_integer_coverage``, the least share of multiplications on integers, is 0.95 where
    nothing is said, and 0 with float16. ``max_instructions`` are an inference's on emulated CPUs, ``{ pi4 = 600000 }``:
    no latency, but a figure that never wobbles.
    """

    max_steps: int | None = None
    max_built_in_steps: int | None = None
    min_sqnr_db: float = 10.0
    min_cosine: float = 0.95
    min_top1_agreement: float = 0.9
    min_integer_coverage: float | None = None
    max_instructions: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse limits that no answer can break or keep."""
        for name in ("max_steps", "max_built_in_steps"):
            steps = getattr(self, name)
            if steps is not None and not 0 <= steps <= 255:
                raise RecipeError(f"'{name}' must be in [0, 255], got {steps}")
        for name in ("min_top1_agreement", "min_integer_coverage"):
            share = getattr(self, name)
            if share is not None and not 0 <= share <= 1:
                raise RecipeError(f"'{name}' is a share in [0, 1], got {share}")
        if not -1 <= self.min_cosine <= 1:
            raise RecipeError(f"'min_cosine' must be in [-1, 1], got {self.min_cosine}")
        for board, count in self.max_instructions.items():
            if board not in COUNTING_BOARDS:
                hint = did_you_mean(board, COUNTING_BOARDS)
                raise RecipeError(f"'max_instructions' names boards that are emulated, got {board!r}", hint=hint)
            if count < 1:
                raise RecipeError(f"'max_instructions' must be at least 1, got {count} for {board}")


METRICS = ("top1", "top5", "miou", "mae", "psnr", "cosine")


@dataclass(frozen=True)
class AccuracySettings:
    """What int8 may cost: the drop of ``metric`` from the float network, on the held-out samples.

    ``metric`` is one of :data:`METRICS` or ``"file.py:function"``. ``max_drop`` is in the metric's own unit: 0.01 is
    one point of top-1. ``output`` is needed where the network has several. Over the limit, nodes are moved to those
    of ``precisions`` that the target has, the first that can help first; ``max_trials`` plans are tried at most, for
    ``max_minutes``. ``"int16"`` has to be named: XNNPACK has no kernels of 16 bits, and LiteRT's own took 45 times as
    long as float ones on x86-64.
    """

    metric: str
    max_drop: float
    output: str | None = None
    precisions: tuple[Precision, ...] = ("dynamic", "float")
    max_trials: int = 24
    max_minutes: float = 30.0

    def __post_init__(self) -> None:
        """Refuse a metric that is not there, a limit that nothing can break, and a budget of nothing."""
        if ":" not in self.metric and self.metric not in METRICS:
            raise RecipeError(
                f"there is no metric {self.metric!r}",
                hint=f"{did_you_mean(self.metric, METRICS)}; a function of your own is 'file.py:function'",
            )
        if self.max_drop < 0:
            raise RecipeError(f"'max_drop' must be at least 0, got {self.max_drop}")
        if self.metric in METRICS[:3] and self.max_drop >= 1:
            raise RecipeError(
                f"'max_drop' of {self.metric} is a share in [0, 1), got {self.max_drop:g}", hint="0.01 is one point"
            )
        if self.max_trials < 1 or not self.max_minutes > 0:
            raise RecipeError(
                f"a search needs a budget: max_trials at least 1 and max_minutes above 0, got {self.max_trials} and "
                f"{self.max_minutes:g}",
                hint="max_trials = 1 measures the plan of [quantize] and searches no other",
            )
        if any(precision == "int8" for precision in self.precisions):
            raise RecipeError("'precisions' are what nodes are moved to from int8, got 'int8'")


@dataclass(frozen=True)
class LatencySettings:
    """Whether a bundle is timed against the float network in the same runtime, and may be slower than it."""

    compare: bool = True
    allow_slower: bool = False


@dataclass(frozen=True)
class LabelSettings:
    """The names of an output's classes: ``names``, or a text ``file`` with one a line."""

    names: tuple[str, ...] = ()
    file: Path | None = None

    def __post_init__(self) -> None:
        """Refuse names from two places or from none."""
        if bool(self.names) == (self.file is not None):
            raise RecipeError("labels are either 'names' or a 'file', got " + ("both" if self.file else "neither"))


@dataclass(frozen=True)
class SearchSettings:
    """What ``edgeopt search`` looks for; its options go before.

    ``space`` has recipe values by dotted key, each with an array of choices or a range, ``"LOW:HIGH"`` or
    ``"LOW:HIGH:log"``. ``maximize`` and ``minimize`` are figures of a trial, and ``budget`` the most that some may be.
    ``trials`` networks are built, drawn by ``sampler``.
    """

    space: Mapping[str, object] = field(default_factory=dict)
    maximize: tuple[str, ...] = ("metric",)
    minimize: tuple[str, ...] = ("num_macs",)
    budget: Mapping[str, float] = field(default_factory=dict)
    trials: int = 30
    sampler: Literal["tpe", "nsga2"] = "tpe"

    def __post_init__(self) -> None:
        """Refuse a search of nothing, and values that are neither choices nor a range."""
        if self.trials < 1:
            raise RecipeError(f"'trials' must be at least 1, got {self.trials}")
        for key, values in self.space.items():
            if not isinstance(values, str | list) or not values:
                raise RecipeError(f"'space' of {key!r} is an array of choices or \"LOW:HIGH\", got {values!r}")


MEMORY_BUDGETS = ("max_ram_bytes", "max_flash_bytes")


@dataclass(frozen=True)
class TargetOverrides:
    """What one target does differently: ``[targets.NAME]`` replaces whole values of ``[parity]`` and ``[quantize]``.

    ``max_ram_bytes`` and ``max_flash_bytes`` are for microcontrollers: a build that needs more fails.
    """

    parity: Mapping[str, object] = field(default_factory=dict)
    quantize: Mapping[str, object] = field(default_factory=dict)
    input_layout: Literal["NCHW", "NHWC"] | None = None
    output_layout: Literal["NCHW", "NHWC"] | None = None
    max_batch: int = 32
    max_ram_bytes: int | None = None
    max_flash_bytes: int | None = None

    def __post_init__(self) -> None:
        """Refuse a budget that nothing keeps."""
        for name in MEMORY_BUDGETS:
            budget = getattr(self, name)
            if budget is not None and budget < 1:
                raise RecipeError(f"'{name}' must be at least 1, got {budget}")


@dataclass(frozen=True)
class Recipe:
    """A whole recipe with every default filled in; ``folder`` is what its relative paths start from."""

    name: str
    model: ModelSettings
    calibration: CalibrationSettings
    train: TrainSettings | None = None
    compress: Mapping[str, Step] = field(default_factory=dict)
    export: ExportSettings = ExportSettings()
    correct: CorrectSettings = CorrectSettings()
    quantize: QuantizeSettings = QuantizeSettings()
    accuracy: AccuracySettings | None = None
    parity: ParityLimits = ParityLimits()
    latency: LatencySettings = LatencySettings()
    labels: Mapping[str, LabelSettings] = field(default_factory=dict)
    targets: Mapping[str, TargetOverrides] = field(default_factory=dict)
    search: SearchSettings | None = None

    def __post_init__(self) -> None:
        """Refuse stages that the model's source cannot serve."""
        asked = [*(["[train]"] if self.train else []), *(["[[compress]]"] if self.compress else [])]
        if asked and self.model.factory is None:
            suffix = self.model.path.suffix if self.model.path else ""
            raise RecipeError(
                f"{asked[0]} needs a model with layers, got a {suffix} file, whose graph is fixed",
                hint=f"name a 'factory' that builds the network, or remove {asked[0]}",
            )
        first = next(iter(self.compress), None)
        if first is not None and isinstance(self.compress[first], DistillSettings):
            raise RecipeError(
                f"[compress.{first}] needs a student that is not its teacher",
                hint="let a step before it change the network: prune, factorize, transfer ...",
            )
