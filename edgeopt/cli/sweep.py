"""``edgeopt sweep``: many builds of one recipe side by side, and one table of what came of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from edgeopt.cli.console import bytes_text, print_table, reporting, shown_path, write_json
from edgeopt.cli.options import RecipeName, TargetName, json_option, named_targets, verbosity_options

if TYPE_CHECKING:
    from edgeopt.explore.record import TrialRecord
    from edgeopt.explore.sweep import SweepResult

DEFAULT_OUT = Path("build") / "sweep"

_EXAMPLES = """\b
Examples:
  edgeopt sweep mnist5k --grid compress.prune.pruning_ratio=0.4,0.6,0.8
  edgeopt sweep my.toml --grid quantize.precision=int8,dynamic --target arm64 --target x86
  edgeopt sweep my.toml --search 20 --space compress.prune.pruning_ratio=0.3:0.9
  edgeopt sweep my.toml --search 9 --space train.learning_rate=1e-4:1e-2:log --seed 1
  edgeopt sweep my.toml --grid calibration.method=minmax,mse --jobs 4 --cpus 2 --json sweep.json
  edgeopt sweep my.toml --grid train.seed=0,1,2 --address 192.0.2.7:6379    on a cluster
"""

Figure = TypeVar("Figure", int, float)


@click.command(epilog=_EXAMPLES)
@click.argument("recipe", type=RecipeName())
@click.option(
    "--grid",
    metavar="KEY=A,B,C",
    multiple=True,
    help="Values of the recipe to build with, TOML or bare words; several grids give every combination.",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="KEY=VALUE",
    help="Replace a value of the recipe in every trial, as edgeopt build does.",
)
@click.option(
    "--search", "count", metavar="N", type=click.IntRange(min=1), help="Build N random points of --space, too."
)
@click.option(
    "--space",
    metavar="KEY=LOW:HIGH",
    multiple=True,
    help="What --search draws from: a range, LOW:HIGH:log for powers, or A,B,C.",
)
@click.option("--seed", metavar="N", type=click.IntRange(min=0), default=0, show_default=True, help="Of --search.")
@click.option(
    "-t",
    "--target",
    "targets",
    multiple=True,
    metavar="NAME",
    type=TargetName(),
    default=("arm64",),
    show_default=True,
    help="A target to build each point for, or 'all'; can be given several times.",
)
@click.option(
    "-o", "--out", metavar="DIR", type=click.Path(path_type=Path), help=f"Where to write.  [default: {DEFAULT_OUT}]"
)
@click.option(
    "--address",
    metavar="ADDRESS",
    help="A Ray cluster: auto, host:port or ray://host:port.  [default: Ray is started on this machine]",
)
@click.option("--jobs", metavar="N", type=click.IntRange(min=1), help="Trials side by side.  [default: as many as fit]")
@click.option(
    "--cpus", metavar="N", type=click.IntRange(min=1), help="CPUs of each trial.  [default: 2, as recipes train on two]"
)
@click.option(
    "--retries",
    metavar="N",
    type=click.IntRange(min=0),
    default=2,
    show_default=True,
    help="How often a trial whose process was killed or ran out of memory is tried again.",
)
@click.option("--instructions", is_flag=True, help="Count an arm64 inference's on an emulated Raspberry Pi 4, too.")
@json_option
@verbosity_options
def sweep(
    recipe: str,
    grid: tuple[str, ...],
    overrides: tuple[str, ...],
    count: int | None,
    space: tuple[str, ...],
    seed: int,
    targets: tuple[str, ...],
    out: Path | None,
    address: str | None,
    jobs: int | None,
    cpus: int | None,
    retries: int,
    instructions: bool,
    json_to: str | None,
    verbose: bool,
    quiet: bool,
) -> None:
    """Build RECIPE with many values, side by side.

    Every combination of the grids, each with every random point and for every target, is a trial: a build with a
    folder of its own below DIR, and one cache, so that what trials have in common is made once. The table is in
    DIR/sweep.json and DIR/sweep.csv too. The same command again runs what is missing or failed, whatever stopped it.

    Trials run on Ray (pip install 'edgeopt[sweep]'). The nodes of a cluster need the same edgeopt and the same Python;
    they get a copy of the recipe's folder, and keep the bundles under DIR unless that is a folder that all share.

    Verdicts of no are results like others. The exit code is 1 if a trial failed, and the others still have run.
    """
    from edgeopt.errors import EdgeoptError

    with reporting(verbose=verbose, quiet=quiet):
        from edgeopt.explore import space as spaces
        from edgeopt.explore.pool import PoolSettings
        from edgeopt.explore.sweep import plan
        from edgeopt.explore.sweep import sweep as run
        from edgeopt.recipe import parse_override

        if not (grid or space):
            raise click.UsageError("a sweep needs --grid KEY=A,B,C, or --search N and --space KEY=LOW:HIGH")
        if bool(count) != bool(space):
            raise click.UsageError("--search N and --space KEY=LOW:HIGH go together")
        spaces.parse_space([*grid, *space, *overrides])  # no key twice
        fixed = dict(parse_override(text) for text in overrides)
        asked = spaces.grid(spaces.parse_space(grid))
        drawn = spaces.draw(spaces.parse_space(space), count, seed) if count else [{}]
        points = [{**fixed, **one, **other} for one in asked for other in drawn]
        pool = PoolSettings(address, jobs, cpus, retries).filled()
        trials = plan(recipe, named_targets(targets), points, instructions=instructions)
        place = out or DEFAULT_OUT
        try:
            result = run(recipe, trials, place, pool, instructions=instructions)
        except KeyboardInterrupt as interrupt:
            kept = f"interrupted; what ended is in {shown_path(place.absolute())}; the same command again goes on"
            raise KeyboardInterrupt(kept) from interrupt
    write_json(json_to, result.to_json())
    if json_to != "-" and not quiet:
        _show(result, place)
    failed = [record for record in result.trials if record.result.status == "failed"]
    if failed:
        raise EdgeoptError(
            f"{len(failed)} of {len(result.trials)} trials failed: {failed[0].result.error}",
            hint="the same command again runs them again, and those alone",
        )


def _show(result: SweepResult, place: Path) -> None:
    from edgeopt.explore.table import varied_keys

    keys = varied_keys(result.trials)
    counted = any(record.result.figures.instructions for record in result.trials)
    measured = ("metric", "model", "packed", "MACs", "parameters", *(("instructions",) if counted else ()), "latency")
    columns = ("target", *_short(keys), "status", *measured, "time")
    print_table(columns, (_cells(record, keys, counted=counted) for record in result.trials))
    for record in result.trials:
        if record.result.error:
            values = [record.result.target, *(f"{key}={record.result.overrides.get(key, '-')}" for key in keys)]
            click.echo(f"\n{record.result.status}: {', '.join(values)}: {record.result.error}")
    known = f", {result.num_known} of them known from before" if result.num_known else ""
    click.echo(f"\n{len(result.trials)} trials{known}; bundles and tables in {shown_path(place.absolute())}")


def _short(keys: Sequence[str]) -> list[str]:
    """Return the last part of each key, and the whole of those whose last part is not theirs alone."""
    last = Counter(key.rpartition(".")[2] for key in keys)
    return [key if last[key.rpartition(".")[2]] > 1 else key.rpartition(".")[2] for key in keys]


def _cells(record: TrialRecord, keys: Sequence[str], *, counted: bool) -> list[str]:
    from edgeopt.accuracy.report import shown

    result, figures = record.result, record.result.figures
    return [
        result.target,
        *(str(result.overrides.get(key, "-")) for key in keys),
        result.status,
        _cell(figures.metric, lambda metric: shown(metric, figures.metric_unit)),
        _cell(figures.model_bytes, bytes_text),
        _cell(figures.packed_bytes, bytes_text),
        _cell(figures.num_macs, "{:,}".format),
        _cell(figures.num_parameters, "{:,}".format),
        *([_cell(figures.instructions, "{:,}".format)] if counted else []),
        _cell(figures.latency_ms, "{:.3g} ms".format),
        f"{result.seconds:.0f} s",
    ]


def _cell(figure: Figure | None, text: Callable[[Figure], str]) -> str:
    return "-" if figure is None else text(figure)
