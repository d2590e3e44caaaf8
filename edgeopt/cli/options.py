"""Options and arguments that several commands share, with their shell completion."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

Command = TypeVar("Command", bound=Callable[..., Any])

json_option = click.option(
    "--json",
    "json_to",
    metavar="FILE",
    type=click.Path(allow_dash=True),
    help="Write the result as JSON too; '-' is stdout, and then nothing else is printed there.",
)


def verbosity_options(command: Command) -> Command:
    """Add ``-v`` and ``-q``."""
    quiet = click.option("-q", "--quiet", is_flag=True, help="Print errors only; the exit code tells the rest.")
    verbose = click.option("-v", "--verbose", is_flag=True, help="Print what happens inside the stages too.")
    return verbose(quiet(command))


def device_options(command: Command) -> Command:
    """Add ``--device`` and ``--timeout``."""
    timeout = click.option(
        "--timeout",
        "timeout_s",
        metavar="SECONDS",
        type=click.FloatRange(min=1),
        default=600.0,
        show_default=True,
        help="How long another device may take.",
    )
    device = click.option(
        "--device",
        "devices",
        metavar="DEVICE",
        multiple=True,
        default=("local",),
        show_default=True,
        help="Where to run: local, qemu[:pi3|pi4|pi5], board[:pi3|pi4|pi5], ssh://user@host[:port][/folder] or "
        "adb[:serial]. Give several at once.",
    )
    return device(timeout(command))


def measuring_options(command: Command) -> Command:
    """Add ``--latency``, ``--sustained`` and ``--threads``."""
    threads = click.option(
        "--threads",
        metavar="N",
        type=click.IntRange(min=1),
        default=2,
        show_default=True,
        help="Threads of the runtime.",
    )
    sustained = click.option(
        "--sustained",
        "sustained_s",
        metavar="SECONDS",
        type=click.FloatRange(min=1),
        help="Then go on, and watch latency, temperature, frequency and throttling.",
    )
    latency = click.option(
        "--latency",
        "latency_s",
        metavar="[SECONDS]",
        is_flag=False,
        flag_value=2.0,
        type=click.FloatRange(min=0, min_open=True),
        help="Measure inferences for 2 or so many seconds, ten at least; and memory. Never on an emulator.",
    )
    return latency(sustained(threads(command)))


def counting_options(command: Command) -> Command:
    """Add ``--instructions`` and ``--max-instructions``."""
    limit = click.option(
        "--max-instructions",
        metavar="N",
        type=click.IntRange(min=1),
        help="Say no if an inference takes more on a qemu: device.  [default: the bundle's limit]",
    )
    count = click.option(
        "--instructions",
        is_flag=True,
        help="Count an inference's instructions on qemu: devices, by operator. These are not cycles.",
    )
    return count(limit(command))


def runner_options(command: Command) -> Command:
    """Add ``--runner`` and ``--cc``."""
    compiler = click.option(
        "--cc",
        "compiler",
        metavar="COMMAND",
        help="The compiler that builds the C runner for the device.  [default: one on PATH, or the one set up]",
    )
    runner = click.option(
        "--runner",
        type=click.Choice(["python", "c"]),
        help="The program that runs the test there.  [default: python; c on a device without Python]",
    )
    return runner(compiler(command))


class TargetName(click.ParamType[str]):
    """The name of a target, or ``all``; whether it exists is for the library to say."""

    name = "target"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the targets that start with what is typed."""
        from edgeopt.target import discover_targets

        return _starting(incomplete, [*discover_targets(), "all"])


def named_targets(names: Iterable[str]) -> tuple[str, ...]:
    """Return targets once each, with every one but microcontrollers in the place of ``all``."""
    from edgeopt.target import discover_targets

    every = [name for name, spec in discover_targets().items() if not spec.microcontroller]
    return tuple(dict.fromkeys(other for name in names for other in (every if name == "all" else (name,))))


class RecipeName(click.ParamType[str]):
    """The name of a built-in recipe or a TOML file."""

    name = "recipe"

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return the built-in recipes that start with what is typed, and let the shell add files."""
        from edgeopt.recipe import builtin_recipes

        names = _starting(incomplete, [recipe.name for recipe in builtin_recipes()])
        return [*names, CompletionItem(incomplete, type="file")]


def _starting(incomplete: str, names: Iterable[str]) -> list[CompletionItem]:
    return [CompletionItem(name) for name in names if name.startswith(incomplete)]
