"""What a run costs: latency and memory where they mean something, and nothing that cannot be true."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from ssh_server import Server

from edgeopt import latency, verify
from edgeopt.cli.main import main
from edgeopt.devices.cost import Cost
from edgeopt.devices.device import read_report
from edgeopt.devices.local import LocalDevice, RunRequest
from edgeopt.devices.qemu import Emulation
from edgeopt.errors import DeviceError

Report = dict[str, Any]


@pytest.fixture(scope="module")
def manifest(bundle: Path) -> Report:
    return json.loads((bundle / "bundle.json").read_text())


@pytest.fixture(scope="module")
def measured(bundle: Path) -> Report:
    """What a real run reported."""
    return json.loads(LocalDevice().run(bundle, RunRequest(latency_s=0.05, sustained_s=0.1)))


def test_percentiles_are_times_that_were_measured_when_ranks_are_counted_by_hand() -> None:
    assert latency.percentiles([float(n) for n in range(200, 0, -1)]) == {"p50": 100.0, "p90": 180.0, "p99": 198.0}
    assert latency.percentiles([3.0, 1.0, 2.0]) == {"p50": 2.0, "p90": 3.0, "p99": 3.0}


def test_first_inference_is_apart_when_the_others_are_quicker() -> None:
    calls = []

    def infer() -> None:
        calls.append(1)
        sum(range(300_000 if len(calls) == 1 else 10))

    figures = latency.measure(infer, threads=3, seconds=0.001)["latency_ms"]
    assert figures["first"] > figures["p99"]
    assert (figures["runs"], figures["threads"]) == (len(calls) - 1, 3)
    assert figures["runs"] >= latency.MIN_RUNS


def test_peak_memory_is_linux_s_own_figure_when_there_is_one(tmp_path: Path) -> None:
    (tmp_path / "status").write_text("VmPeak:\t  999 kB\nVmHWM:\t  2000 kB\nVmRSS:\t 10 kB\n")
    assert latency.peak_memory_bytes(str(tmp_path / "status")) == 2000 * 1024
    own = latency.peak_memory_bytes(str(tmp_path / "none"))
    assert own is not None
    assert own > 10_000_000


def write(root: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return str(root)


CPU = "sys/devices/system/cpu/"
PI = {
    "sys/class/thermal/thermal_zone0/temp": "61845\n",
    "sys/class/thermal/thermal_zone1/temp": "40000\n",
    f"{CPU}cpu0/cpufreq/scaling_cur_freq": "1500000\n",
    f"{CPU}cpu1/cpufreq/scaling_cur_freq": "600000\n",
}
FIRMWARE = "sys/devices/platform/soc/soc:firmware/get_throttled"


@pytest.mark.parametrize(
    ("told", "throttled"), [("0", False), ("50000", False), ("50005", True), ("8", True)]
)  # the upper bits say what has been since the start
def test_thermal_state_is_the_hottest_zone_and_the_slowest_core_when_a_raspberry_pi_tells(
    tmp_path: Path, told: str, throttled: bool
) -> None:
    root = write(tmp_path, {**PI, FIRMWARE: told + "\n"})
    assert latency.thermal_state(root) == {"temperature_c": 61.845, "frequency_mhz": 600.0, "throttled": throttled}


def test_thermal_state_counts_throttlings_when_an_intel_cpu_tells(tmp_path: Path) -> None:
    counts = {f"{CPU}cpu{n}/thermal_throttle/core_throttle_count": "2\n" for n in (0, 1)}
    root = write(tmp_path, counts)
    assert latency.thermal_state(root, throttlings_before=4)["throttled"] is False
    assert latency.thermal_state(root, throttlings_before=3)["throttled"] is True


def test_thermal_state_is_none_when_the_kernel_tells_nothing(tmp_path: Path) -> None:
    nothing = {"temperature_c": None, "frequency_mhz": None, "throttled": None}
    assert latency.thermal_state(str(tmp_path)) == nothing
    assert latency.thermal_state(write(tmp_path, {"sys/class/thermal/thermal_zone0/temp": "\n"})) == nothing


def test_verify_measures_on_a_board_and_not_on_an_emulator_when_latency_is_asked_for(
    emulation: Emulation, server: Server, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    devices = [part for name in (server.url(), "qemu:pi4") for part in ("--device", name)]
    files = ["--json", str(tmp_path / "report.json"), "--junit", str(tmp_path / "junit.xml")]
    asked = ["--latency", "0.05", "--sustained", "1", "--threads", "1"]
    assert main(["verify", str(bundle), *devices, *files, *asked]) == 0
    shown = capsys.readouterr().out
    assert "p50" in shown
    assert "qemu:pi4: no latency: an emulator's milliseconds are no latency" in shown

    board, emulator = (
        json.loads((tmp_path / "report.json").read_text())["devices"][n] for n in (server.url(), "qemu:pi4")
    )
    assert 0 < board["latency_ms"]["p50"] <= board["latency_ms"]["p90"] <= board["latency_ms"]["p99"]
    assert board["latency_ms"]["threads"] == 1
    assert [window["end_s"] for window in board["sustained"]] == [pytest.approx(n / 10) for n in range(1, 11)]
    assert 10_000_000 < board["peak_memory_bytes"] < 1_000_000_000
    assert board["kernels"] == emulator["kernels"] == "XNNPACK"
    assert not {"latency_ms", "peak_memory_bytes", "sustained"} & set(emulator)
    cases = ElementTree.parse(tmp_path / "junit.xml").getroot()
    told = [{item.get("name"): item.get("value") for item in case.iter("property")} for case in cases]
    assert float(told[0]["latency_p50_ms"]) == pytest.approx(board["latency_ms"]["p50"], abs=1e-3)
    assert told[1]["not_measured"] == "an emulator's milliseconds are no latency"


def test_report_is_taken_when_a_run_measured(measured: Report, manifest: Report) -> None:
    cost = Cost.of_report(read_report(json.dumps(measured), manifest, "board"))
    assert cost.latency_ms is not None
    assert len(cost.sustained) == latency.NUM_WINDOWS


def latency_of(**figures: object) -> Callable[[Report], Report]:
    return lambda report: {**report, "latency_ms": {**report["latency_ms"], **figures}}


def output_of(**figures: object) -> Callable[[Report], Report]:
    return lambda report: {**report, "outputs": [{**report["outputs"][0], **figures}]}


GARBAGE = {
    "p50 over p99": latency_of(p50=2.0, p90=2.0, p99=1.0),
    "a negative time": latency_of(p50=-1.0),
    "no time at all": latency_of(first=0),
    "NaN for a time": latency_of(p99=float("nan")),
    "a time that is text": latency_of(p90="3 ms"),
    "no run": latency_of(runs=0),
    "half a thread": latency_of(threads=0.5),
    "an unknown figure": latency_of(p42=1.0),
    "no memory": lambda report: {**report, "peak_memory_bytes": -1},
    "windows backwards": lambda report: {**report, "sustained": report["sustained"][::-1]},
    "a window's p99 under its p50": lambda report: {
        **report, "sustained": [{**report["sustained"][0], "p99_ms": 1e-9}],
    },
    "an infinite temperature": lambda report: {
        **report, "sustained": [{**report["sustained"][0], "temperature_c": float("inf")}],
    },
    "a yes with too many steps": output_of(max_steps=99),
    "a yes with NaN dB": output_of(sqnr_db=float("nan")),
    "a yes on a cosine of -1": output_of(cosine=-1.0),
    "fewer samples than the bundle has": lambda report: {**report, "num_samples": 1},
}  # fmt: skip


@pytest.mark.parametrize("spoil", GARBAGE.values(), ids=GARBAGE)
def test_report_is_refused_when_it_has(spoil: Callable[[Report], Report], measured: Report, manifest: Report) -> None:
    with pytest.raises(DeviceError, match="answered no report"):
        read_report(json.dumps(spoil(measured)), manifest, "board")


def test_verify_measures_in_a_process_of_its_own_when_the_device_is_local(bundle: Path) -> None:
    report = verify(bundle, latency_s=0.05, threads=1)
    assert report.passed
    assert report.cost.latency_ms is not None
    assert report.cost.peak_memory_bytes is not None
    assert report.cost.peak_memory_bytes < 200_000_000  # this process has torch and more in it
