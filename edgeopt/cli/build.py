"""``edgeopt build``: from a recipe to one verified bundle per target."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast

import click

from edgeopt.cli.accuracy import show_accuracy
from edgeopt.cli.console import bytes_text, percent_text, print_table, reporting, shown_path, write_json
from edgeopt.cli.costs import show_costs
from edgeopt.cli.options import RecipeName, TargetName, device_options, json_option, named_targets, verbosity_options
from edgeopt.cli.report import VERDICT_COLUMNS, verdict_cells
from edgeopt.cli.verdicts import raise_worst, show_verdicts, verdicts_json, verify_on
from edgeopt.errors import AccuracyError, EdgeoptError, LatencyError, ParityError

if TYPE_CHECKING:
    from edgeopt.cli.verdicts import Verdicts
    from edgeopt.pipeline import BuildResult

_EXAMPLES = """\b
Examples:
  edgeopt build                                        ./edgeopt.toml, else the built-in mnist5k
  edgeopt build mobilenet_v2 --target all              a built-in recipe for every target
  edgeopt build my.toml --target arm64 --target x86    two targets from one calibration
  edgeopt build --set compress.prune.pruning_ratio=0.3 replace one value of the recipe
  edgeopt build my.toml --set quantize.precision=dynamic       int8 weights, activations quantized at run time
  edgeopt build my.toml --json build.json --depfile build.d    for Make and Ninja
  edgeopt build my.toml --set correct.rounding=learned  round weights by what samples show
  edgeopt build my.toml --set accuracy.max_drop=0.005  hold the accuracy more closely
  edgeopt build my.toml --device qemu:pi4 --device ssh://pi@raspberrypi.local
"""


@click.command(epilog=_EXAMPLES)
@click.argument("recipe", required=False, type=RecipeName())
@click.option(
    "-t",
    "--target",
    "targets",
    multiple=True,
    metavar="NAME",
    type=TargetName(),
    default=("arm64",),
    show_default=True,
    help="A target, or 'all'; can be given several times. 'edgeopt targets' lists them.",
)
@click.option("-o", "--out", metavar="DIR", type=click.Path(path_type=Path), help="Where to write.  [default: build]")
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Replace a value of the recipe; the value is TOML or a bare word. Paths are relative to the recipe.",
)
@json_option
@click.option(
    "--depfile",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Write the inputs that were read, as Make and Ninja understand them.",
)
@device_options
@click.option(
    "--instructions/--no-instructions",
    default=True,
    show_default=True,
    help="On qemu: devices count an inference's instructions, and warn if int8 takes more than float.",
)
@click.option(
    "--allow-random-calibration",
    "allow_random",
    is_flag=True,
    help="Take a data set of random numbers, too; every bundle says so.",
)
@click.option("--force", is_flag=True, help="Build every stage anew, cached or not.")
@click.option("--no-verify", is_flag=True, help="Do not run the bundles: no verdict, no accuracy contract, no timing.")
@click.option("--allow-slower", is_flag=True, help="Ship a bundle that is slower than the float network, too.")
@verbosity_options
def build(
    recipe: str | None,
    targets: tuple[str, ...],
    out: Path | None,
    overrides: tuple[str, ...],
    json_to: str | None,
    depfile: Path | None,
    devices: tuple[str, ...],
    timeout_s: float,
    instructions: bool,
    force: bool,
    no_verify: bool,
    allow_slower: bool,
    allow_random: bool,
    verbose: bool,
    quiet: bool,
) -> None:
    """Build RECIPE into one verified bundle per target.

    RECIPE is a TOML file or the name of a built-in recipe. Its network is pruned, distilled, exported, calibrated and
    quantized once, then lowered for each target and run. A bundle is a folder that holds the model, what is to be
    known about it, and a test that runs on the device. Finished stages are cached.

    A recipe with [accuracy] says what int8 may cost: operators leave int8 until it is held, and the build fails with
    exit code 16 if nothing holds it. A bundle that is certainly slower than the float network fails with 18.

    Every build runs the bundles on this machine; with --device the finished bundles are run there too.
    """
    with reporting(verbose=verbose, quiet=quiet), _resumable():
        from edgeopt.recipe import load_recipe, parse_override

        # The recipe is read before torch is imported: a typo is reported at once.
        values = dict(parse_override(text) for text in overrides)
        if allow_random:
            values["calibration.allow_random"] = True
        if allow_slower:
            values["latency.allow_slower"] = True
        loaded = load_recipe(recipe or _default(quiet=quiet), values)
        from edgeopt import pipeline

        names = named_targets(targets)
        try:
            result = pipeline.build(loaded, targets=names, out=out, verify=not no_verify, force=force)
        except (ParityError, AccuracyError, LatencyError) as refused:
            # A verdict of no has the same report as a yes, but no depfile: what depends on it must not be built.
            _report(cast("BuildResult", refused.result), {}, json_to, quiet=quiet)
            raise
        others = [name for name in devices if name != "local"]
        elsewhere = {
            bundle.path: _elsewhere(bundle.path, others, result.float_model, timeout_s, instructions)
            for bundle in result.bundles
            if others
        }
    _report(result, elsewhere, json_to, quiet=quiet)
    for bundle, verdicts in elsewhere.items():
        raise_worst(bundle, verdicts)
    if depfile is not None:
        _write_depfile(depfile, json_to, result)


def _elsewhere(
    bundle: Path, devices: Sequence[str], float_model: Path, timeout_s: float, instructions: bool
) -> Verdicts:
    """Verify a bundle on other devices, and count the float network's instructions where its own were counted."""
    from edgeopt.float_cost import with_float

    verdicts = verify_on(bundle, devices, timeout_s=timeout_s, instructions=instructions)
    return {
        name: verdict if isinstance(verdict, EdgeoptError) else with_float(verdict, bundle, float_model, timeout_s)
        for name, verdict in verdicts.items()
    }


def _report(result: BuildResult, elsewhere: Mapping[Path, Verdicts], json_to: str | None, *, quiet: bool) -> None:
    on_devices = {path.name: {name: verdicts_json({name: v[name]}) for name in v} for path, v in elsewhere.items()}
    write_json(json_to, result.to_json() | ({"devices": on_devices} if elsewhere else {}))
    if json_to != "-" and not quiet:
        _show(result)
        for path, verdicts in elsewhere.items():
            click.echo(f"\n{path.name} elsewhere:")
            show_verdicts(verdicts)
            show_costs(verdicts)


@contextmanager
def _resumable() -> Iterator[None]:
    """Say on Ctrl-C what was kept; ``edgeopt.cli.main`` prints it."""
    try:
        yield
    except KeyboardInterrupt as interrupt:
        kept = "interrupted; finished stages are cached; run the same command again to go on"
        raise KeyboardInterrupt(kept) from interrupt


def _default(*, quiet: bool) -> str | Path:
    from edgeopt.recipe import default_recipe

    recipe = default_recipe()
    if isinstance(recipe, str) and not quiet:
        click.echo(f"no recipe named and no edgeopt.toml here: building the built-in {recipe}", err=True)
    return recipe


def _write_depfile(path: Path, json_to: str | None, result: BuildResult) -> None:
    from edgeopt.atomic import write_text
    from edgeopt.depfile import depfile

    manifests = [bundle.path / "bundle.json" for bundle in result.bundles]
    outputs = manifests if json_to in (None, "-") else [Path(str(json_to))]
    write_text(path, depfile(outputs, result.inputs_read))


def _show(result: BuildResult) -> None:
    stages = (
        (record.name, "cached" if record.cached else f"{record.seconds:.1f} s", record.summary)
        for record in result.stages
    )
    print_table(("stage", "time", "result"), stages)
    click.echo()
    bundles = (
        (
            bundle.target,
            *verdict_cells(bundle.report),
            percent_text(bundle.integer_coverage),
            bytes_text(bundle.size_bytes),
            shown_path(bundle.path),
        )
        for bundle in result.bundles
    )
    print_table(("target", *VERDICT_COLUMNS, "integer", "size", "bundle"), bundles)
    for bundle in result.bundles:
        if bundle.memory is not None:
            memory = f"{bundle.memory.ram_bytes:,} bytes of RAM for tensors, {bundle.memory.flash_bytes:,} of flash"
            click.echo(f"{bundle.target}: {memory} for the model; the runtime's code is not counted")
        if bundle.accuracy is not None:
            show_accuracy(bundle.target, bundle.accuracy)
        if bundle.speed is not None:
            click.echo(f"\nlatency of {bundle.target}: {bundle.speed.summary}")
