"""``edgeopt verify``: run a bundle on one or many devices and say yes or no."""

from __future__ import annotations

from pathlib import Path

import click

from edgeopt.cli.console import reporting, write_json
from edgeopt.cli.costs import show_costs
from edgeopt.cli.junit import write_junit
from edgeopt.cli.options import (
    counting_options,
    device_options,
    json_option,
    measuring_options,
    runner_options,
    verbosity_options,
)
from edgeopt.cli.verdicts import raise_worst, show_verdicts, verdicts_json, verify_on

_EXAMPLES = """\b
Examples:
  edgeopt verify build/mnist5k/arm64
  edgeopt verify mnist5k-arm64.edgeopt.tar.xz                what edgeopt bundle pack wrote
  edgeopt verify build/mnist5k/arm64 --runtime tensorflow    a second opinion
  edgeopt verify build/mnist5k/x86 --json parity.json
  edgeopt verify build/mnist5k/arm64 --device qemu:pi4       real aarch64 code
  edgeopt verify build/mnist5k/arm64 --device ssh://pi@raspberrypi.local
  edgeopt verify build/mnist5k/arm64 --device adb
  edgeopt verify build/mnist5k/arm64 --device ssh://root@gateway --runner c     needs no Python there
  edgeopt verify build/mnist5k/arm64 --device local --device qemu:pi3 --junit parity.xml
  edgeopt verify build/mnist5k/arm64 --device ssh://pi@raspberrypi.local --latency --sustained 300
  edgeopt verify build/mnist5k/arm64 --device qemu:pi4 --instructions --max-instructions 600000
"""


@click.command(epilog=_EXAMPLES)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--runtime", metavar="NAME", help="Run it in this runtime.  [default: the target's own]")
@device_options
@measuring_options
@counting_options
@runner_options
@click.option(
    "--require-signature",
    "public_key",
    metavar="KEY",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Refuse a bundle that this public key did not sign; see edgeopt bundle sign.",
)
@click.option("--junit", "junit_to", metavar="FILE", type=click.Path(path_type=Path), help="Write JUnit XML for CI.")
@json_option
@verbosity_options
def verify(
    bundle: Path,
    runtime: str | None,
    devices: tuple[str, ...],
    timeout_s: float,
    latency_s: float | None,
    sustained_s: float | None,
    threads: int,
    instructions: bool,
    max_instructions: int | None,
    runner: str | None,
    compiler: str | None,
    public_key: Path | None,
    junit_to: Path | None,
    json_to: str | None,
    verbose: bool,
    quiet: bool,
) -> None:
    """Run BUNDLE, folder or packed, and compare it with references.

    Two questions: does the device answer what the quantized reference answers, in integer steps; and how far is the
    quantized network from the float one. The exit code is 0 for yes and 12 for no; with several devices, 0 only if
    all of them say yes. An emulator's milliseconds are no latency and are not shown.
    """
    if max_instructions is not None and not any(name.partition(":")[0] == "qemu" for name in devices):
        raise click.UsageError("--max-instructions needs a device that counts them: --device qemu:pi4")
    folder = _folder_of(bundle)
    if public_key is not None:
        from edgeopt.bundle.signing import verify_signature

        verify_signature(folder, "key", ["--public_key", str(public_key)])
    with reporting(verbose=verbose, quiet=quiet):
        verdicts = verify_on(
            folder, devices, runtime=runtime, timeout_s=timeout_s, latency_s=latency_s, sustained_s=sustained_s,
            threads=threads, instructions=instructions, max_instructions=max_instructions,
            runner=runner, compiler=compiler,
        )  # fmt: skip
    if junit_to is not None:
        write_junit(junit_to, str(bundle), verdicts)
    write_json(json_to, verdicts_json(verdicts))
    if json_to != "-" and not quiet:
        show_verdicts(verdicts)
        show_costs(verdicts)
        for remark in _remarks(folder):
            click.echo(f"note: {remark}")
    raise_worst(bundle, verdicts)


def _folder_of(bundle: Path) -> Path:
    """Return a bundle's folder; a packed bundle is unpacked until the command ends."""
    if not bundle.is_file():
        return bundle
    from edgeopt.bundle.packing import unpacked

    return click.get_current_context().with_resource(unpacked(bundle))


def _remarks(bundle: Path) -> list[str]:
    from edgeopt import parity
    from edgeopt.bundle.readme import sample_remarks

    try:
        return list(sample_remarks(parity.read_bundle(str(bundle))))
    except parity.BundleDamaged:
        return []  # the verdict says it
