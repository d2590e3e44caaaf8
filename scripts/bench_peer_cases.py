"""Convert ONNX's node cases with onnx2tf and run them: the peer of ``bench node-cases --onnx2tf-python``.

It runs in an environment of its own, which has onnx2tf and not edgeopt. Version 1 of onnx2tf goes through TensorFlow's
converter, version 2 writes its files itself; both are called as ``onnx2tf -i`` calls them, in a process for each case,
so that one that crashes or hangs takes no other with it.

    python bench_peer_cases.py CASES RESULTS.jsonl SECONDS

``CASES`` has a folder for each case: ``model.onnx`` and ``case.npz`` with ``input/NAME``, ``output/NAME``, ``rtol`` and
``atol``. Results are appended, and a case that is among them is not run again. The judge is kind to the peer: two ways
are tried (inputs kept as they are, and channels last as it prefers), and its answers may come in any order, channels
last, with axes of size 1 more or less, and in another integer dtype.
"""

from __future__ import annotations

import hashlib
import importlib
import itertools
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from bench_peer_onnx2tf import write_pictures

_WAYS = ("as they are", "channels last")
_ORDER = {"passed": 0, "wrong": 1, "not run": 2, "not converted": 3}  # of two ways, the better one counts


def judge(folder: Path) -> dict[str, str]:
    """Convert and run one case in both ways; the verdict is ``passed``, ``wrong``, ``not run`` or ``not converted``."""
    with np.load(folder / "case.npz") as stored:
        case = {name: stored[name] for name in stored.files}
    found: list[tuple[str, str]] = []
    for way in _WAYS:
        with tempfile.TemporaryDirectory() as scratch:
            model = Path(shutil.copy(folder / "model.onnx", scratch))  # onnx2tf rewrites the file it is given
            found.append(_judge_way(model, case, way, Path(scratch)))
        if found[-1][0] == "passed":
            break
    verdict, reason = min(found, key=lambda pair: _ORDER[pair[0]])
    return {"verdict": verdict, "reason": reason}


def _judge_way(model: Path, case: Mapping[str, Any], way: str, scratch: Path) -> tuple[str, str]:
    from ai_edge_litert.interpreter import Interpreter

    try:
        file = _convert(model, way, scratch)
    except (Exception, SystemExit) as error:  # whatever the peer raises is its own
        return "not converted", _short(error)
    try:
        interpreter = Interpreter(model_path=str(file), num_threads=1)
        interpreter.allocate_tensors()
        answers = _run(interpreter, _section(case, "input/"), way)
    except (RuntimeError, ValueError, KeyError) as error:
        return "not run", _short(error)
    expected = list(_section(case, "output/").values())
    orders = itertools.permutations(answers, len(expected))
    if any(all(map(answers_match, expected, order, itertools.repeat(case))) for order in orders):
        return "passed", ""
    return "wrong", f"got {[answer.shape for answer in answers]}, expected {[array.shape for array in expected]}"


def _convert(model: Path, way: str, scratch: Path) -> Path:
    import onnx
    import onnx2tf  # type: ignore[import-not-found]

    names = [value.name for value in onnx.load(model).graph.input]
    kept = {"keep_shape_absolutely_input_names": names} if way == _WAYS[0] else {}
    onnx2tf.convert(
        input_onnx_file_path=str(model),
        output_folder_path=str(scratch / "out"),
        non_verbose=True,
        verbosity="error",
        **kept,
    )
    files = sorted(scratch.glob("out/*float32.tflite"))
    if not files:
        raise FileNotFoundError("it wrote no file")
    return files[0]


def _run(interpreter: Any, inputs: Mapping[str, Any], way: str) -> list[Any]:
    details = interpreter.get_input_details()
    plain = {detail["name"].removeprefix("serving_default_").split(":")[0]: detail for detail in details}
    by_name = set(plain) >= set(inputs)
    if not by_name and len(details) != len(inputs):
        raise ValueError(f"it takes {len(details)} inputs, expected {len(inputs)}")
    for index, (name, array) in enumerate(inputs.items()):
        detail = plain[name] if by_name else details[index]
        last = _channels_last(array)
        given = last if way == _WAYS[1] and list(last.shape) == list(detail["shape"]) else array
        interpreter.set_tensor(detail["index"], given.astype(detail["dtype"]))
    interpreter.invoke()
    return [interpreter.get_tensor(detail["index"]) for detail in interpreter.get_output_details()]


def answers_match(expected: Any, actual: Any, case: Mapping[str, Any]) -> bool:
    """Whether an answer has the expected numbers, in order or channels last."""
    for array in (expected, _channels_last(expected)):
        if np.squeeze(array).shape == np.squeeze(actual).shape and np.allclose(
            np.squeeze(actual), np.squeeze(array), rtol=case["rtol"], atol=case["atol"], equal_nan=True
        ):
            return True
    return False


def _channels_last(array: Any) -> Any:
    return np.moveaxis(array, 1, -1) if array.ndim > 2 else array


def _section(case: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): array for name, array in case.items() if name.startswith(prefix)}


def _short(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    return f"{type(error).__name__}: {lines[-1]}"[:200]


def _judge_quietly(folder: Path, results: Any) -> None:
    with open(os.devnull, "w") as nowhere:  # both write pages
        os.dup2(nowhere.fileno(), 1)
        os.dup2(nowhere.fileno(), 2)
        results.send(judge(folder))


def judge_apart(folder: Path, seconds: float) -> dict[str, str]:
    """Judge one case in a process of its own, forked so that packages are imported once."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_judge_quietly, args=(folder, there))
    process.start()
    there.close()
    try:
        if here.poll(seconds):
            outcome: dict[str, str] = here.recv()
            return outcome
        return {"verdict": "not converted", "reason": f"not done in {seconds:g} s"}
    except EOFError:
        return {"verdict": "not converted", "reason": "the process ended"}
    finally:
        process.kill()
        process.join()


def _done(results: Path) -> set[tuple[str, str]]:
    lines = results.read_text().splitlines() if results.exists() else []
    return {(entry["name"], entry["digest"]) for entry in map(json.loads, lines)}


def _place(folder: Path) -> bytes:
    """Return what cases are ordered by: as if at random, so that those of a run that was cut off are a fair sample."""
    return hashlib.sha256(folder.name.encode()).digest()


def main(arguments: Sequence[str]) -> None:
    """Run from a command line."""
    cases, results, seconds = Path(arguments[0]).resolve(), Path(arguments[1]).resolve(), float(arguments[2])
    importlib.import_module("onnx2tf.onnx2tf")  # once for all that are forked
    done = _done(results)
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        write_pictures()
        for folder in sorted((path for path in cases.iterdir() if path.is_dir()), key=_place):
            digest = hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
            if (folder.name, digest) not in done:
                entry = {"name": folder.name, "digest": digest, **judge_apart(folder, seconds)}
                with results.open("a") as stream:
                    stream.write(json.dumps(entry) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
