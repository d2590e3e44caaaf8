#!/usr/bin/env python3
"""Run a bundle's model on this device and say whether its answers are right: exit code 0 for yes, 12 for no.

This file travels in every bundle as ``run_parity.py``. It needs Python 3.8, NumPy and one runtime that can load the
model: for TFLite ai-edge-litert, tflite-runtime or tensorflow, for ONNX onnxruntime, for a microcontroller's TFLite
tflite-micro. Two questions are answered on the
samples in ``golden.npz``, each by its worst sample:

1. device against the quantized reference, in integer steps: a conversion or runtime bug shows here;
2. device against the float network, in dB, cosine and agreement on the class: the cost of int8 shows here.

    python run_parity.py                      the bundle that this file lies in
    python run_parity.py --json report.json   the same, and the report as JSON
    python run_parity.py --latency            the same, and how long an inference takes (run_latency.py does that)
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import importlib.util
import json
import math
import os
import platform
import sys
from typing import TYPE_CHECKING, Any, Callable, Dict

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

Array = Any  # a NumPy array; boards have releases of NumPy without types
Arrays = Dict[str, Any]
Facts = Dict[str, Any]
Run = Callable[[Arrays], Arrays]
Measure = Callable[[Callable[[], Any]], Facts]

SCHEMA_VERSION = 1
EXIT_DAMAGED, EXIT_FAILED, EXIT_NO_RUNTIME = 11, 12, 13

# Error-free answers have an infinite ratio, which JSON cannot hold; no int8 network comes near this figure.
MAX_SQNR_DB = 200.0

# In order of preference. Steps are judged for kernels like the reference's, and for TFLite's built-in kernels against
# what those answered where the bundle was built; on x86 the built-in kernels round in a third way, and are not judged.
TFLITE_RUNTIMES = ("ai-edge-litert", "tflite-runtime", "tensorflow")
TFLITE_MICRO = "tflite-micro"  # what microcontrollers run: it has the built-in reference kernels everywhere
LIKE_REFERENCE = ("ai-edge-litert", "onnxruntime")
BUILT_IN_ON_ARM = ("tflite-runtime",)
CPU_PROVIDER = "CPUExecutionProvider"
# TensorRT's takes int8 only if it is told to, and leaves what it does not know to CUDA's.
PROVIDERS = {
    "TensorrtExecutionProvider": [
        ("TensorrtExecutionProvider", {"trt_int8_enable": True}),
        "CUDAExecutionProvider",
    ]
}
MICRO_ARENA_BYTES = 64 << 20  # enough for any; what a model needs is measured when it is built


class BundleDamaged(Exception):
    """A file of the bundle is missing or not the one that was built."""


class RuntimeMissing(Exception):
    """No installed runtime can load the model."""


class Model:
    """A loaded model: called with ``{input name: array}`` it returns ``{output name: array}``."""

    def __init__(self, run: Run, kernels: str) -> None:
        """Keep what runs it, and whose kernels compute: "XNNPACK", "built-in", both with what is built in, ..."""
        self._run, self.kernels = run, kernels

    def __call__(self, inputs: Arrays) -> Arrays:
        """Run one inference."""
        return self._run(inputs)


# ---------------------------------------------------------------- metrics


def sqnr_db(reference: Array, actual: Array) -> float:
    """Return the signal-to-quantization-noise ratio in dB, within +-200; NaN if a value is NaN or infinite."""
    reference = np.asarray(reference, np.float64).ravel()
    actual = np.asarray(actual, np.float64).ravel()
    if not (np.isfinite(reference).all() and np.isfinite(actual).all()):
        return math.nan
    noise = float(np.sum((reference - actual) ** 2))
    signal = float(np.sum(reference**2))
    if noise == 0.0:
        return MAX_SQNR_DB
    if signal / noise == 0.0:
        return -MAX_SQNR_DB
    return max(-MAX_SQNR_DB, min(MAX_SQNR_DB, 10.0 * math.log10(signal / noise)))


def cosine(reference: Array, actual: Array) -> float:
    """Return the cosine between two arrays; 1 for two zero arrays, 0 if one is zero, NaN for NaN and infinity."""
    a = np.asarray(reference, np.float64).ravel()
    b = np.asarray(actual, np.float64).ravel()
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return math.nan
    # np.sum adds in the same order on every CPU, and so does the C runner; what BLAS calls behind np.dot do not.
    left, right = float(np.sum(a * a)), float(np.sum(b * b))
    norms = math.sqrt(left) * math.sqrt(right)
    if norms == 0.0:
        return 1.0 if left == right == 0.0 else 0.0
    return max(-1.0, min(1.0, float(np.sum(a * b)) / norms))


def to_steps(values: Array, facts: Facts) -> Array:
    """Return an output as integers if it has them or stands for them, else in units of one step of its scale."""
    if np.issubdtype(values.dtype, np.integer):
        return values.astype(np.int64)
    steps = values.astype(np.float64) / facts["scale"]
    return np.rint(steps) + facts["zero_point"] if facts["integer_dtype"] else steps


def to_real(values: Array, facts: Facts) -> Array:
    """Return an output as the real numbers it stands for."""
    if np.issubdtype(values.dtype, np.integer):
        return (values.astype(np.float64) - facts["zero_point"]) * facts["scale"]
    return values.astype(np.float64)


# ---------------------------------------------------------------- runtimes


def wanted_runtime(model: Facts, wanted: str | None) -> str | None:
    """Return the runtime that is asked for; unasked, a microcontroller's model runs in no other than its own."""
    return wanted or (TFLITE_MICRO if model.get("runtime_package") == TFLITE_MICRO else None)


def find_runtime(model_format: str, wanted: str | None = None) -> str:
    """Return the name of the runtime to use: the one asked for, else the first that is installed.

    Raises:
        RuntimeMissing: if there is none, or the one asked for cannot load this format.
    """
    known = (*TFLITE_RUNTIMES, TFLITE_MICRO) if model_format == "tflite" else ("onnxruntime",)
    if wanted is not None and wanted not in known:
        raise RuntimeMissing(f"{wanted} cannot load a .{model_format} model; choose from {', '.join(known)}")
    for name in (wanted,) if wanted else known[: len(TFLITE_RUNTIMES)]:
        if importlib.util.find_spec(name.replace("-", "_")) is not None:
            return name
    raise RuntimeMissing(f"no runtime for a .{model_format} model is installed: pip install {wanted or known[0]}")


def open_model(path: str, runtime: str, threads: int = 1, provider: str | None = None) -> Model:
    """Load a model; ``provider`` is one of ONNX Runtime's, and left out the CPU's."""
    if runtime == "onnxruntime":
        return _open_onnx(path, threads, provider or CPU_PROVIDER)
    if runtime == TFLITE_MICRO:
        return _open_tflite_micro(path)
    if runtime == "tensorflow":
        interpreter_class = _tensorflow_interpreter()
    else:
        package = "ai_edge_litert" if runtime == "ai-edge-litert" else "tflite_runtime"
        interpreter_class = importlib.import_module(package + ".interpreter").Interpreter
    return _open_tflite(interpreter_class, path, threads)


def runtime_version(runtime: str) -> str:
    """Return the installed version of a runtime."""
    from importlib import metadata

    for name in (runtime, runtime.replace("-", "_")):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return str(getattr(importlib.import_module(runtime.replace("-", "_")), "__version__", "unknown"))


def _tensorflow_interpreter() -> Any:
    """Return TensorFlow's own interpreter; 2.21 has it and says that it will go."""
    lite = getattr(importlib.import_module("tensorflow"), "lite", None)
    interpreter_class = getattr(lite, "Interpreter", None)
    if interpreter_class is None:
        raise RuntimeMissing("this tensorflow has no tf.lite.Interpreter any more: pip install tensorflow==2.21")
    return interpreter_class


def _open_tflite(interpreter_class: Any, path: str, threads: int) -> Model:
    interpreter = interpreter_class(model_path=str(path), num_threads=threads)
    interpreter.allocate_tensors()
    runner = interpreter.get_signature_runner()

    def run(inputs: Arrays) -> Arrays:
        return {name: np.array(value) for name, value in runner(**inputs).items()}

    return Model(run, _tflite_kernels(interpreter))


def _tflite_kernels(interpreter: Any) -> str:
    """Return whose kernels compute, by the nodes that the interpreter has; it applies no delegate but XNNPACK's.

    The nodes that a delegate took stay in the list, and its own nodes come behind them: a node is taken if a
    delegate's outputs are computed from it, on this side of the delegate's inputs.
    """
    nodes = interpreter._get_ops_details() if hasattr(interpreter, "_get_ops_details") else []
    delegates = [node for node in nodes if "DELEGATE" in node["op_name"].upper()]
    own = [node for node in nodes if node not in delegates]
    maker = {tensor: node["index"] for node in own for tensor in node["outputs"]}
    taken = set()
    for delegate in delegates:
        known, wanted = set(delegate["inputs"]), list(delegate["outputs"])
        while wanted:
            tensor = wanted.pop()
            if tensor in maker and tensor not in known:
                known.add(tensor)
                taken.add(maker[tensor])
                wanted += [source for node in own if node["index"] == maker[tensor] for source in node["inputs"]]
    left = sorted({node["op_name"] for node in own if node["index"] not in taken})
    if not nodes:
        return "not said"
    if not delegates:
        return "built-in"
    return "XNNPACK" + (", built-in for " + " ".join(left) if left else "")


def _open_tflite_micro(path: str) -> Model:
    """Open a model in an interpreter that knows inputs and outputs only by their number."""
    runtime = importlib.import_module("tflite_micro").runtime
    with open(path, "rb") as stream:
        content = stream.read()
    try:
        interpreter = runtime.Interpreter.from_bytes(content, arena_size=MICRO_ARENA_BYTES)
    except RuntimeError as error:
        raise RuntimeMissing(f"{TFLITE_MICRO} does not take this model: {error}") from error
    model = runtime.convert_bytearray_to_object(content)
    graph, signature = model.subgraphs[0], model.signatureDefs[0]
    names = {entry.tensorIndex: entry.name.decode() for entry in (*signature.inputs, *signature.outputs)}

    def run(inputs: Arrays) -> Arrays:
        for number, tensor in enumerate(graph.inputs):
            interpreter.set_input(inputs[names[tensor]], number)
        interpreter.invoke()
        return {names[tensor]: np.array(interpreter.get_output(i)) for i, tensor in enumerate(graph.outputs)}

    return Model(run, "reference")


def _open_onnx(path: str, threads: int, provider: str) -> Model:
    """Open a model in one provider; what it does not take never goes to the CPU instead, unless that was asked for."""
    import onnxruntime

    if provider not in onnxruntime.get_available_providers():
        have = ", ".join(onnxruntime.get_available_providers())
        raise RuntimeMissing(f"this onnxruntime has no {provider}; it has {have}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if provider != CPU_PROVIDER:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=PROVIDERS.get(provider, [provider]))
    except Exception as error:  # ONNX Runtime's errors have no common class
        if provider == CPU_PROVIDER:
            raise
        raise RuntimeMissing(f"{provider} does not take the whole model: {error}") from error
    if session.get_providers()[0] != provider:
        raise RuntimeMissing(f"{provider} does not start: its libraries, its driver or the device are missing")
    names = [output.name for output in session.get_outputs()]

    def run(inputs: Arrays) -> Arrays:
        return dict(zip(names, session.run(names, inputs)))

    return Model(run, "ONNX Runtime " + " ".join(session.get_providers()))


# ---------------------------------------------------------------- the two questions


def feed(golden: Arrays, manifest: Facts, index: int) -> Arrays:
    """Return sample ``index`` as the model takes it: integers as they are, or the real numbers they stand for."""
    inputs = {}
    for facts in manifest["inputs"]:
        values = golden["input/" + facts["name"]][index : index + 1]
        if facts["dtype"] == "float32" and np.issubdtype(values.dtype, np.integer):
            values = (
                (values.astype(np.float32) - np.float32(facts["zero_point"])) * np.float32(facts["scale"])
            ).astype(np.float32)
        inputs[facts["name"]] = np.ascontiguousarray(values)
    return inputs


def judge(run: Run, golden: Arrays, manifest: Facts, runtime: str, tick: Callable[[int], None] | None = None) -> Facts:
    """Run every golden sample and return the report as a dictionary that JSON can hold.

    Args:
        run: from ``{input name: array}`` to ``{output name: array}``.
        golden: the arrays of ``golden.npz``.
        manifest: ``bundle.json``.
        runtime: its name; steps are judged only if its kernels are like the reference's.
        tick: called after each sample with how many are done.
    """
    names = [str(name) for name in golden["names"]]
    if not names:
        raise BundleDamaged("golden.npz has no samples, and a verdict on nothing would be a yes")
    labels = golden.get("labels")
    answers: Dict[str, Any] = {facts["name"]: [] for facts in manifest["outputs"]}
    for index in range(len(names)):
        outputs = run(feed(golden, manifest, index))
        for name, found in answers.items():
            found.append(outputs[name][0])
        if tick is not None:
            tick(index + 1)
    limits = manifest["limits"]
    like_reference = runtime in LIKE_REFERENCE
    reports = [_judge_output(facts, answers[facts["name"]], golden, names, labels) for facts in manifest["outputs"]]
    if has_built_in_kernels(runtime, platform.machine()):
        for facts, report in zip(manifest["outputs"], reports):
            report["built_in_steps"] = _built_in_steps(facts, answers[facts["name"]], golden)
    failures = [failure for report in reports for failure in failures_of(report, limits, like_reference, len(names))]
    if runtime == TFLITE_MICRO and not any(name.startswith("built_in/") for name in golden):
        failures.append("there are no answers of TFLite's reference kernels to compare with")
    if not manifest["integer_coverage"] >= limits["min_integer_coverage"]:
        failures.append(
            f"{manifest['integer_coverage']:.1%} of the multiplications run on integers, "
            f"limit {limits['min_integer_coverage']:.1%}"
        )
    return {
        "passed": not failures,
        "failures": failures,
        "num_samples": len(names),
        "steps_judged": like_reference,
        "integer_coverage": manifest["integer_coverage"],
        "outputs": reports,
    }


def _judge_output(facts: Facts, answers: list[Array], golden: Arrays, names: list[str], labels: Array | None) -> Facts:
    name = facts["name"]
    quantized, reference = golden["quantized/" + name], golden["float/" + name]
    steps, ratios, cosines, equal, agree = [], [], [], 0, 0
    for index, answer in enumerate(answers):
        difference = _difference(to_steps(answer, facts), to_steps(quantized[index], facts))
        # Outputs that stay float are compared in parts of a step; less than a thousandth is rounding, not a step.
        steps.append(math.nan if np.isnan(difference).any() else math.ceil(float(difference.max()) - 1e-3))
        equal += int(np.count_nonzero(difference < 1e-3))
        real = to_real(answer, facts)
        ratios.append(sqnr_db(reference[index], real))
        cosines.append(cosine(reference[index], real))
        agree += int(np.argmax(real) == np.argmax(reference[index]))
    worst_steps, worst_ratio, worst_cosine = _worst(steps, max), _worst(ratios, min), _worst(cosines, min)
    is_class = reference.ndim == 2 and reference.shape[1] > 1
    report = {
        "name": name,
        "max_steps": _number(steps[worst_steps]),
        "worst_steps_sample": names[worst_steps],
        "equal_fraction": equal / float(np.size(quantized)),
        "sqnr_db": _number(ratios[worst_ratio]),
        "worst_sample": names[worst_ratio],
        "cosine": _number(cosines[worst_cosine]),
        "worst_cosine_sample": names[worst_cosine],
        "top1_agreement": agree / float(len(names)) if is_class else None,
    }
    if is_class and labels is not None:
        truth = np.asarray(labels)
        actual = np.array([np.argmax(to_real(answer, facts)) for answer in answers])
        report["float_accuracy"] = float(np.mean(np.argmax(reference, axis=1) == truth))
        report["accuracy"] = float(np.mean(actual == truth))
    return report


def has_built_in_kernels(runtime: str, machine: str) -> bool:
    """Return whether a runtime computes as TFLite's reference kernels do, but for a step now and then."""
    return runtime == TFLITE_MICRO or (runtime in BUILT_IN_ON_ARM and machine in ("aarch64", "arm64", "armv7l"))


def _built_in_steps(facts: Facts, answers: list[Array], golden: Arrays) -> float | None:
    """Return how far the answers are from the reference kernels'; ``None`` without these, or if one is NaN."""
    expected = golden.get("built_in/" + facts["name"])
    if expected is None:
        return None
    worst = max(_difference(to_steps(a, facts), to_steps(e, facts)).max() for a, e in zip(answers, expected))
    return None if math.isnan(worst) else math.ceil(float(worst) - 1e-3)


def _difference(actual: Array, expected: Array) -> Array:
    """Return how far apart two answers are; NaN where one is NaN or infinite."""
    finite = np.isfinite(actual) & np.isfinite(expected)
    return np.where(finite, np.abs(np.where(finite, actual, 0) - np.where(finite, expected, 0)), math.nan)


def _worst(figures: list[float], choose: Callable[[list[float]], float]) -> int:
    """Return the index of the worst figure; NaN is worse than everything."""
    for index, figure in enumerate(figures):
        if math.isnan(figure):
            return index
    return figures.index(choose(figures))


def _number(figure: float) -> float | None:
    """Return ``None`` for NaN, which JSON cannot hold and which fails every limit."""
    return None if math.isnan(figure) else figure


def failures_of(report: Facts, limits: Facts, judge_steps: bool, num_samples: int) -> Iterator[str]:
    """Yield every limit that the figures of one output break."""
    name, agreement = report["name"], report["top1_agreement"]
    if None in (report["max_steps"], report["sqnr_db"], report["cosine"]):
        yield f"{name}: NaN or infinite on sample {report['worst_sample']}"
        return
    if judge_steps and report["max_steps"] > limits["max_steps"]:
        where = f"on sample {report['worst_steps_sample']}, limit {limits['max_steps']}"
        yield f"{name}: {report['max_steps']} steps from the quantized reference {where}"
    built_in = report.get("built_in_steps")
    if built_in is not None and built_in > limits["max_built_in_steps"]:
        yield f"{name}: {built_in} steps from TFLite's built-in kernels, limit {limits['max_built_in_steps']}"
    if report["sqnr_db"] < limits["min_sqnr_db"]:
        where = f"on sample {report['worst_sample']}, limit {limits['min_sqnr_db']:.1f}"
        yield f"{name}: {report['sqnr_db']:.1f} dB to the float network {where}"
    if report["cosine"] < limits["min_cosine"]:
        where = f"on sample {report['worst_cosine_sample']}, limit {limits['min_cosine']:.4f}"
        yield f"{name}: cosine {report['cosine']:.4f} to the float network {where}"
    # In whole samples, so that one of sixteen does not break a limit of 95 % that was kept on a hundred.
    allowed = math.ceil((1 - limits["min_top1_agreement"]) * num_samples - 1e-9)
    if agreement is not None and round((1 - agreement) * num_samples) > allowed:
        where = f"of the samples, limit {limits['min_top1_agreement']:.1%}"
        yield f"{name}: same class as the float network on {agreement:.1%} {where}"


# ---------------------------------------------------------------- a bundle on disk


def manifest_digest(manifest: Facts) -> str:
    """Return the SHA-256 that ``bundle.json`` states of itself, over everything in it but that statement."""
    content = {key: value for key, value in manifest.items() if key != "digest"}
    text = json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def read_bundle(folder: str) -> Facts:
    """Read ``bundle.json``, check every file against it, and return it.

    Raises:
        BundleDamaged: if a file is missing, was changed, or the schema is another one.
    """
    path = os.path.join(folder, "bundle.json")
    try:
        with open(path, encoding="utf-8") as stream:
            manifest: Facts = json.load(stream)
        version, digest = manifest["schema_version"], manifest["digest"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleDamaged(f"{path} cannot be read: {error}") from error
    if version != SCHEMA_VERSION:
        raise BundleDamaged(f"bundle.json has schema version {version}, this tool reads {SCHEMA_VERSION}")
    try:
        is_as_built = digest == manifest_digest(manifest)
    except ValueError:  # NaN, which we never write
        is_as_built = False
    if not is_as_built:
        raise BundleDamaged("bundle.json was changed after it was built")
    for needed in (manifest["model"]["file"], "golden.npz"):
        if needed not in manifest["files"]:
            raise BundleDamaged(f"bundle.json does not list {needed}")
    for name, facts in manifest["files"].items():
        if os.path.isabs(name) or ".." in name.replace("\\", "/").split("/"):
            raise BundleDamaged(f"bundle.json names a file outside the bundle: {name}")
        _check_file(os.path.join(folder, name), name, facts)
    return manifest


def _check_file(path: str, name: str, facts: Facts) -> None:
    try:
        with open(path, "rb") as stream:
            content = stream.read()
    except OSError as error:
        raise BundleDamaged(f"{name} is missing: {error.strerror}") from error
    if len(content) != facts["size_bytes"] or hashlib.sha256(content).hexdigest() != facts["sha256"]:
        raise BundleDamaged(f"{name} is not the file that was built: its SHA-256 differs from bundle.json")


def run_bundle(
    folder: str,
    runtime: str | None = None,
    threads: int = 1,
    measure: Measure | None = None,
    provider: str | None = None,
) -> Facts:
    """Check a bundle, run it in a runtime of this device, and return the report.

    ``measure`` gets a function that runs one inference, before any was run, and returns what goes into the report.
    """
    manifest = read_bundle(folder)
    chosen = find_runtime(manifest["model"]["format"], wanted_runtime(manifest["model"], runtime))
    with np.load(os.path.join(folder, "golden.npz"), allow_pickle=False) as golden:
        arrays = dict(golden)
    model = open_model(os.path.join(folder, manifest["model"]["file"]), chosen, threads, provider)
    inputs = feed(arrays, manifest, 0)
    measured = measure(lambda: model(inputs)) if measure is not None else {}
    report = judge(model, arrays, manifest, chosen)
    report.update(
        measured,
        name=manifest["name"],
        target=manifest["target"],
        digest=manifest["digest"],
        runtime=f"{chosen} {runtime_version(chosen)}",
        kernels=model.kernels,
        machine=platform.machine(),
        cpu=cpu_name(),
        threads=threads,
    )
    return report


def cpu_name(cpuinfo: str = "/proc/cpuinfo") -> str:
    """Return what Linux calls this CPU; ARM cores have only a part number there."""
    try:
        with open(cpuinfo, encoding="utf-8", errors="replace") as stream:
            lines = [line.partition(":") for line in stream]
    except OSError:
        return "unknown"
    told = {key.strip(): value.strip() for key, _, value in lines}
    return next((told[key] for key in ("model name", "CPU part") if key in told), "unknown")


def main(arguments: list[str] | None = None) -> int:
    """Run from a command line and return the exit code."""
    parser = argparse.ArgumentParser(description="Run this bundle here and say whether its answers are right.")
    parser.add_argument("bundle", nargs="?", default=os.path.dirname(os.path.abspath(__file__)))
    parser.add_argument("--runtime", help="ai-edge-litert, tflite-runtime, tensorflow, tflite-micro or onnxruntime")
    parser.add_argument("--provider", help="one of onnxruntime's, such as CUDAExecutionProvider; without it the CPU")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--json", metavar="FILE", help="write the report to FILE")
    parser.add_argument(
        "--latency", metavar="SECONDS", type=float, nargs="?", const=2.0, help="measure inferences for 2 SECONDS"
    )
    parser.add_argument("--sustained", metavar="SECONDS", type=float, help="run on and watch temperature and frequency")
    options = parser.parse_args(arguments)
    try:
        report = run_bundle(options.bundle, options.runtime, options.threads, _measurement(options), options.provider)
    except BundleDamaged as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_DAMAGED
    except RuntimeMissing as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_NO_RUNTIME
    if options.json:
        with open(options.json, "w", encoding="utf-8") as stream:
            json.dump(report, stream, indent=2, sort_keys=True, allow_nan=False)
    sys.stdout.write(describe(report))
    return 0 if report["passed"] else EXIT_FAILED


def _measurement(options: argparse.Namespace) -> Measure | None:
    """Return what measures, as it is asked for."""
    if options.latency is None and options.sustained is None:
        return None

    def measure(infer: Callable[[], Any]) -> Facts:
        spec: Any = importlib.util.spec_from_file_location(
            "run_latency", os.path.join(options.bundle, "run_latency.py")
        )
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)  # a file of the bundle, whose hash was checked
        return dict(module.measure(infer, options.threads, options.latency, options.sustained))

    return measure


def describe(report: Facts) -> str:
    """Return the report as lines for a person."""
    where = f"in {report['runtime']} ({report['kernels']}) on {report['machine']}, {report['cpu']}"
    lines = [f"{report['name']} for {report['target']} {where}"]
    for output in report["outputs"]:
        steps = f"{output['max_steps']} steps at most ({output['worst_steps_sample']})"
        ratio = "NaN" if output["sqnr_db"] is None else f"{output['sqnr_db']:.1f} dB at least"
        equal = f"{output['equal_fraction']:.2%} equal"
        lines.append(f"  {output['name']}: {steps}, {equal}, {ratio} ({output['worst_sample']})")
        if output.get("built_in_steps") is not None:
            lines.append(f"  {output['name']}: {output['built_in_steps']} steps at most from the built-in kernels")
    if not report["steps_judged"]:
        lines.append("  other kernels than the reference's: steps are shown, not judged")
    if "latency_ms" in report:
        figures = report["latency_ms"]
        percentiles = ", ".join(f"{name} {figures[name]:.3f} ms" for name in ("first", "p50", "p90", "p99"))
        lines.append(f"  {percentiles} over {figures['runs']} runs on {figures['threads']} threads")
    lines += ["  no: " + failure for failure in report["failures"]]
    lines.append("passed" if report["passed"] else "failed")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
