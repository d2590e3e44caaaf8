"""Every int8 operator on an emulated ARM CPU: LiteRT's kernels there give what its kernels here give."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import test_operators
import test_transposed
from ai_edge_litert.interpreter import Interpreter
from tflite_runtimes import lowered, random_feeds

from edgeopt.devices.qemu import Emulation, QemuDevice

ON_THE_BOARD = """
import json, sys
from pathlib import Path
import numpy as np
from ai_edge_litert.interpreter import Interpreter
differing = {}
files = sorted(Path(sys.argv[1]).glob("*.tflite"))
for file in files:
    stored = dict(np.load(file.with_suffix(".npz")))
    expected = stored.pop("answer")
    interpreter = Interpreter(str(file), num_threads=1)
    interpreter.allocate_tensors()
    (answer,) = interpreter.get_signature_runner()(**stored).values()
    if (answer != expected).any():
        differing[file.stem] = int((answer != expected).sum())
print(json.dumps([len(files), differing]))
"""


def models() -> dict[str, onnx.ModelProto]:
    integer = test_operators.INTEGER_CASES.items()
    tables = test_operators.TABLES.items()
    return {
        **{
            name: test_operators.quantized_model(build, *shapes, output=out)
            for name, (build, shapes, out, _) in integer
        },
        **{
            f"{name}, float between": test_operators.quantized_model(
                build, (1, 4, 8, 8), output=(0.0191, -70), opset=20
            )
            for name, (build, _) in tables
        },
        **{
            f"transposed, {name}": test_transposed.graph(attributes, kernel, quantized=True)
            for name, (attributes, kernel, _) in test_transposed.CASES.items()
        },
    }


def write_files(folder: Path) -> int:
    """Write each file with an input and what LiteRT makes of it here."""
    for index, model in enumerate(models().values()):
        content = lowered(model)
        runner = Interpreter(model_content=content, num_threads=1).get_signature_runner()
        details = runner.get_input_details()
        stored = {}
        for name, array in random_feeds(model).items():
            scale, point = details[name]["quantization"]
            stored[name] = np.clip(np.rint(array / np.float32(scale)) + point, -128, 127).astype(np.int8)
        (answer,) = runner(**stored).values()
        (folder / f"{index}.tflite").write_bytes(content)
        np.savez(folder / f"{index}.npz", answer=answer, **stored)
    return len(models())


@pytest.mark.parametrize("board", ["pi3", "pi5"])
def test_operators_answer_on_a_board_as_they_do_here(emulation: Emulation, tmp_path: Path, board: str) -> None:
    count = write_files(tmp_path)
    script = tmp_path / "compare.py"
    script.write_text(ON_THE_BOARD)
    finished = QemuDevice(board, emulation).python("ai-edge-litert", [str(script), str(tmp_path)], 300)
    assert finished.returncode == 0, finished.last_words()
    assert json.loads(finished.stdout.splitlines()[-1]) == [count, {}]
    assert count > 50
