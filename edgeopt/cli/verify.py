"""``edgeopt verify``: run a bundle on one or many devices and say yes or no."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeopt.cli.console import percent_text, print_table, reporting, write_json
from edgeopt.cli.junit import write_junit
from edgeopt.cli.options import json_option, verbosity_options
from edgeopt.cli.report import OUTPUT_COLUMNS, output_cells

if TYPE_CHECKING:
    from edgeopt.errors import EdgeoptError
    from edgeopt.verdict import ParityReport

_EXAMPLES = """\b
Examples:
  edgeopt verify build/mnist5k/arm64
  edgeopt verify build/mnist5k/arm64 --runtime tensorflow    a second opinion
  edgeopt verify build/mnist5k/x86 --json parity.json
  edgeopt verify build/mnist5k/arm64 --device qemu:pi4       real aarch64 code
  edgeopt verify build/mnist5k/arm64 --device ssh://pi@raspberrypi.local
  edgeopt verify build/mnist5k/arm64 --device local --device qemu:pi3 --junit parity.xml
"""


@click.command(epilog=_EXAMPLES)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--runtime", metavar="NAME", help="Run it in this runtime.  [default: the target's own]")
@click.option(
    "--device",
    "devices",
    metavar="DEVICE",
    multiple=True,
    default=("local",),
    show_default=True,
    help="Where to run it: local, qemu[:pi3|pi4|pi5] or ssh://user@host[:port][/folder]. Give several at once.",
)
@click.option(
    "--timeout",
    "timeout_s",
    metavar="SECONDS",
    type=click.FloatRange(min=1),
    default=600.0,
    show_default=True,
    help="How long another device may take.",
)
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
    public_key: Path | None,
    junit_to: Path | None,
    json_to: str | None,
    verbose: bool,
    quiet: bool,
) -> None:
    """Run BUNDLE and compare it with its references.

    Two questions: does the device answer what the quantized reference answers, in integer steps; and how far is the
    quantized network from the float one. The exit code is 0 for yes and 12 for no; with several devices, 0 only if
    all of them say yes. An emulator's milliseconds are no latency and are not shown.
    """
    names = list(dict.fromkeys(devices))
    if public_key is not None:
        from edgeopt.bundle.signing import verify_signature

        verify_signature(bundle, "key", ["--public_key", str(public_key)])
    with reporting(verbose=verbose, quiet=quiet):
        verdicts = _verify_all(bundle, names, runtime, timeout_s)
    if junit_to is not None:
        write_junit(junit_to, str(bundle), dict(zip(names, verdicts, strict=True)))
    write_json(json_to, _json_of(names, verdicts))
    if json_to != "-" and not quiet:
        for name, verdict in zip(names, verdicts, strict=True):
            _show(name, verdict, many=len(names) > 1)
    _raise_worst(bundle, verdicts)


def _verify_all(
    bundle: Path, names: Sequence[str], runtime: str | None, timeout_s: float
) -> list[ParityReport | EdgeoptError]:
    """Verify on all devices side by side; what goes wrong on one of several does not stop the others."""
    from edgeopt.errors import EdgeoptError
    from edgeopt.verdict import verify as verify_bundle

    def verdict_on(name: str) -> ParityReport | EdgeoptError:
        try:
            return verify_bundle(bundle, runtime=runtime, device=name, timeout_s=timeout_s)
        except EdgeoptError as error:
            return error

    if len(names) == 1:
        return [verdict_on(names[0])]
    with ThreadPoolExecutor(max_workers=len(names)) as pool:
        waiting = [pool.submit(copy_context().run, verdict_on, name) for name in names]
        return [future.result() for future in waiting]


def _json_of(names: Sequence[str], verdicts: Sequence[ParityReport | EdgeoptError]) -> dict[str, object]:
    """Return one report as it is, and several under their devices' names."""
    from edgeopt.errors import EdgeoptError

    found = {
        name: {"passed": False, "error": verdict.message, "exit_code": verdict.exit_code}
        if isinstance(verdict, EdgeoptError)
        else verdict.to_json()
        for name, verdict in zip(names, verdicts, strict=True)
    }
    if len(names) == 1:
        return found[names[0]]
    return {"passed": all(item["passed"] for item in found.values()), "devices": found}


def _show(name: str, verdict: ParityReport | EdgeoptError, *, many: bool) -> None:
    from edgeopt.errors import EdgeoptError

    if many:
        click.echo(f"{name}:")
    if isinstance(verdict, EdgeoptError):
        if many:
            click.echo(f"no verdict: {verdict}\n")
        return
    rows = (output_cells(output, steps_judged=verdict.steps_judged) for output in verdict.outputs)
    print_table(OUTPUT_COLUMNS, rows)
    word = "passed" if verdict.passed else "failed"
    where = "" if name == "local" else f" on {name}"
    click.echo(f"\n{word} in {verdict.runtime}{where} on {verdict.num_samples} samples")
    click.echo(f"{percent_text(verdict.integer_coverage)} of the multiply-accumulates run on integers")
    if many:
        click.echo()


def _raise_worst(bundle: Path, verdicts: Sequence[ParityReport | EdgeoptError]) -> None:
    """Raise a verdict of no before a verdict that could not be had; the first of each kind."""
    from edgeopt.errors import EdgeoptError, ParityError

    for verdict in verdicts:
        if not isinstance(verdict, EdgeoptError) and not verdict.passed:
            where = "" if verdict.device == "local" else f" on {verdict.device}"
            raise ParityError(f"{bundle} in {verdict.runtime}{where}: " + "; ".join(verdict.failures))
    for verdict in verdicts:
        if isinstance(verdict, EdgeoptError):
            raise verdict
