"""The README of a bundle, for whoever receives it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from edgeopt.bundle.manifest import Manifest


def bundle_readme(manifest: Manifest) -> str:
    """Return Markdown: what the model takes and gives, how to run it, how to check it, and what was measured."""
    return "\n".join(_lines(manifest)) + "\n"


def _lines(manifest: Manifest) -> Iterator[str]:
    model = manifest["model"]
    yield f"# {manifest['name']} for {manifest['target']}"
    yield ""
    yield f"`{model['file']}` runs in {model['runtime']}. {model['device_note'].strip()}"
    yield ""
    if model["instruction_sets"]:
        yield f"Its answers are right on CPUs with one of {', '.join(model['instruction_sets'])}."
        yield ""
    yield "## Inputs and outputs"
    yield ""
    yield "| | name | dtype | shape | layout | scale | zero point |"
    yield "|---|---|---|---|---|---|---|"
    for kind, tensors in (("in", manifest["inputs"]), ("out", manifest["outputs"])):
        yield from (_tensor_row(kind, facts) for facts in tensors)
    yield ""
    yield "`real = scale * (integer - zero_point)`; a float input is quantized so inside the model."
    yield ""
    yield from _preprocessing(manifest["preprocessing"])
    yield from (f"**{remark}**\n" for remark in sample_remarks(manifest))
    yield "## Check it on the device"
    yield ""
    yield "    python3 run_parity.py"
    yield ""
    yield (
        "It needs NumPy and one runtime, checks every file against `bundle.json`, runs the samples of `golden.npz`, "
        "and exits with 0 for yes, 12 for no, 11 for a damaged bundle and 13 if no runtime is installed."
    )
    if "runner/Makefile" in manifest["files"]:
        yield "For a device without Python, `make -f runner/Makefile CC=...` builds the same test in C. It needs"
        yield "`libLiteRt.so` of LiteRT 2.2 or newer beside it."
    yield ""
    if model["notes"]:
        yield model["notes"].strip()
        yield ""
    yield "## Measured when it was built"
    yield ""
    yield f"- {manifest['integer_coverage']:.1%} of {manifest['num_macs']:,} multiply-accumulates in integer kernels"
    yield f"- operators: {', '.join(f'{count} {name}' for name, count in sorted(manifest['operators'].items()))}"
    if manifest["memory"]:
        yield "- {ram_bytes:,} bytes of arena, {flash_bytes:,} bytes of model".format(**manifest["memory"])
    if manifest["float_operators"]:
        yield f"- still float: {', '.join(manifest['float_operators'])}"
    yield from (f"- {gain['remark']}" for gain in manifest["weights"])
    yield from (_correction(gain) for gain in manifest["corrections"] if gain["kept"])
    yield from _parity(manifest["parity"])
    if manifest["accuracy"] is not None:
        yield from _accuracy(manifest["accuracy"])


def sample_remarks(manifest: Mapping[str, Any]) -> Iterator[str]:
    """Yield what the receiver of a bundle has to know about the samples that set its ranges, if anything."""
    calibration = manifest.get("calibration", {})
    if calibration.get("random"):
        yield "Calibrated on random numbers: the ranges fit no real input, and what was measured says nothing of one."
    yield from (f"Calibration samples: {warning}" for warning in calibration.get("warnings", ()))


def _tensor_row(kind: str, facts: dict[str, Any]) -> str:
    shape = " x ".join(str(size) for size in facts["shape"])
    scale = "" if facts["scale"] is None else f"{facts['scale']:.9g}"
    zero_point = "" if facts["zero_point"] is None else facts["zero_point"]
    return f"| {kind} | {facts['name']} | {facts['dtype']} | {shape} | {facts['layout']} | {scale} | {zero_point} |"


def _correction(gain: Mapping[str, Any]) -> str:
    without, with_it = gain["without_db"], gain["with_db"]
    return f"- {gain['correction']}: {without:.1f} to {with_it:.1f} dB on calibration samples, on their own ranges"


def _preprocessing(facts: dict[str, Any]) -> Iterator[str]:
    if not facts:
        return
    yield "## Preprocessing"
    yield ""
    for key, value in sorted(facts.items()):
        if isinstance(value, dict):
            yield from (f"- {key}, {name}: {item}" for name, item in sorted(value.items()))
        else:
            yield f"- {key}: {value}"
    yield ""


def _accuracy(report: dict[str, Any]) -> Iterator[str]:
    measured = report["measured"]
    share = 100 if measured["unit"] == "%" else 1
    figures = f"{share * measured['float_figure']:.4g} for float, {share * measured['figure']:.4g} for this model"
    whose = "the float network's own answers in the place of labels" if measured["is_proxy"] else "labels"
    yield (
        f"- contract, {measured['metric']} of {measured['output']} on {measured['num_samples']} held-out samples with "
        f"{whose}: {figures} {measured['unit']}, a drop of {share * measured['drop']:.4g}, limit "
        f"{share * report['max_drop']:g}"
    )
    if measured["interval"] is not None:
        low, high = share * measured["interval"]["low"], share * measured["interval"]["high"]
        looks = max(len(report["trials"]), 1)
        yield f"- the drop lies within {low:.4g} and {high:.4g} (95 %, for the best of {looks} plans)"
    for name, precision in sorted(report["nodes"].items()):
        yield f"- moved to {precision}: {name}"


def _parity(parity: dict[str, Any] | None) -> Iterator[str]:
    if parity is None:
        yield "- not verified: the build was told not to run it"
        return
    for output in parity["outputs"]:
        yield (
            f"- {output['name']}, {parity['num_samples']} held-out samples: at most {output['max_steps']} steps from "
            f"the quantized reference ({output['equal_fraction']:.2%} of the values equal); at least "
            f"{output['sqnr_db']:.1f} dB to the float network (worst: {output['worst_sample']})"
            if output["sqnr_db"] is not None
            else f"- {output['name']}: NaN on sample {output['worst_sample']}"
        )
        if output.get("built_in_steps") is not None:
            yield f"- {output['name']}: at most {output['built_in_steps']} steps from TFLite's reference kernels"
        if output["top1_agreement"] is not None:
            yield f"- {output['name']}: same class as the float network on {output['top1_agreement']:.2%}"
        if output.get("accuracy") is not None:
            yield f"- {output['name']}: accuracy {output['accuracy']:.2%}, float {output['float_accuracy']:.2%}"
    yield from (f"- **no**: {failure}" for failure in parity["failures"])
