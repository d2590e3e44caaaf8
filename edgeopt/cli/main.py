"""The command ``edgeopt``: one file a command beside this one, and how each ends is decided here."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import click

from edgeopt.cli.build import build
from edgeopt.cli.bundle import bundle
from edgeopt.cli.calibrate import calibrate
from edgeopt.cli.convert import convert
from edgeopt.cli.device import device
from edgeopt.cli.diff import diff
from edgeopt.cli.doctor import doctor
from edgeopt.cli.init import init
from edgeopt.cli.inspect import inspect
from edgeopt.cli.recipes import recipes
from edgeopt.cli.search import search
from edgeopt.cli.sweep import sweep
from edgeopt.cli.targets import targets
from edgeopt.cli.train import train
from edgeopt.cli.verify import verify
from edgeopt.errors import EdgeoptError

_INTERRUPTED = 130  # 128 + SIGINT, as every shell reports it
_PIPE_CLOSED = 141  # 128 + SIGPIPE

_EXAMPLES = """\b
Examples:
  edgeopt build                        the built-in example, from training to a verified bundle
  edgeopt init && edgeopt build        a recipe of your own, to change
  edgeopt doctor                       what can be verified on this machine

\b
Shell completion, of target and recipe names too:
  eval "$(_EDGEOPT_COMPLETE=bash_source edgeopt)"            in ~/.bashrc
  eval "$(_EDGEOPT_COMPLETE=zsh_source edgeopt)"             in ~/.zshrc
  _EDGEOPT_COMPLETE=fish_source edgeopt | source             in ~/.config/fish/config.fish
"""


def _print_version(context: click.Context, option: click.Parameter, asked: bool) -> None:
    if asked and not context.resilient_parsing:
        from importlib.metadata import version

        click.echo(f"edgeopt {version('edgeopt')}")
        context.exit()


class _Group(click.Group):
    """A group that reports a closed pipe as shells do; click would exit with 1, which is an error of ours."""

    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        """Read the arguments; ``--help`` prints here."""
        with _reader_may_leave():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        with _reader_may_leave():
            return super().invoke(ctx)


@contextmanager
def _reader_may_leave() -> Iterator[None]:
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError as error:
        raise click.exceptions.Exit(_PIPE_CLOSED) from error


@click.group(cls=_Group, epilog=_EXAMPLES, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--version", is_flag=True, expose_value=False, is_eager=True, callback=_print_version, help="Show it.")
def edgeopt() -> None:
    """Quantize a PyTorch network once, and ship it everywhere verified.

    Results go to stdout, progress and errors to stderr. Each class of error has its own exit code.
    """


_COMMANDS = (
    build, train, sweep, search, verify, convert, inspect, calibrate, diff, bundle, device, targets, recipes, init,
    doctor,
)  # fmt: skip
for command in _COMMANDS:
    edgeopt.add_command(command)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; mistakes in edgeopt itself keep their traceback."""
    try:
        code = edgeopt.main(arguments, prog_name="edgeopt", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except EdgeoptError as error:
        click.echo(str(error), err=True)
        return error.exit_code
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort as abort:
        click.echo(str(abort.__cause__ or "") or "interrupted", err=True)
        return _INTERRUPTED
    finally:
        _flush()


def _flush() -> None:
    """Write what is still buffered, or throw it away if the reader has gone: Python would complain at exit."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
