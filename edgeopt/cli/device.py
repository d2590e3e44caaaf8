"""``edgeopt device``: what bundles can be run on, what it is, and setting up emulation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeopt.cli.console import bytes_text, print_table, reporting, shown_path, write_json
from edgeopt.cli.options import json_option, verbosity_options

if TYPE_CHECKING:
    from edgeopt.devices.device import DeviceFacts

_EXAMPLES = """\b
Examples:
  edgeopt device list
  edgeopt device setup qemu                         no root, nothing on the host is touched
  edgeopt device setup board                        a whole emulated machine with an ssh server
  edgeopt device setup compiler                     builds the C runner for aarch64 devices without Python
  edgeopt device info qemu:pi5
  edgeopt device info ssh://pi@raspberrypi.local --bundle build/mnist5k/arm64
"""


@click.group(epilog=_EXAMPLES)
def device() -> None:
    """Look at the devices that bundles can be verified on.

    A device is local, qemu:BOARD (real aarch64 code in emulation), board:BOARD (a whole emulated machine),
    ssh://user@host[:port][/folder] or adb[:serial].
    """


@device.command("list")
@json_option
def list_devices(json_to: str | None) -> None:
    """Show the devices that have a name of their own."""
    from edgeopt.devices.named import known_devices

    known = known_devices()
    write_json(json_to, {name: {"title": item.title, "ready": item.ready} for name, item in known.items()})
    if json_to == "-":
        return
    rows = ((name, "yes" if item.ready else "no", item.title) for name, item in known.items())
    print_table(("device", "ready", "what it is"), rows)
    click.echo("\nssh://user@host[:port][/folder] is any Linux board, adb[:serial] a phone or an Android board.")
    missing = dict.fromkeys(name.partition(":")[0] for name, item in known.items() if not item.ready)
    for kind in missing:
        click.echo(f"edgeopt device setup {kind} makes {kind}:* ready.")


@device.command()
@click.argument("name", metavar="DEVICE")
@click.option("--bundle", type=click.Path(path_type=Path), help="Say too whether this bundle can run there.")
@json_option
@verbosity_options
def info(name: str, bundle: Path | None, json_to: str | None, verbose: bool, quiet: bool) -> None:
    """Show CPU, memory, libraries and runtimes of DEVICE; nothing is copied to it.

    With --bundle the exit code is 15 if the bundle cannot run there.
    """
    with reporting(verbose=verbose, quiet=quiet):
        from edgeopt.devices.named import open_device

        with open_device(name) as opened:
            facts = opened.facts()
        reasons = [] if bundle is None else _reasons_against(bundle, facts)
    content = facts.to_json() | ({} if bundle is None else {"unfit": reasons})
    write_json(json_to, content)
    if json_to != "-" and not quiet:
        _show(facts)
        if bundle is not None and not reasons:
            click.echo(f"\n{shown_path(bundle)} can run there")
    if reasons:
        from edgeopt.errors import DeviceError

        raise DeviceError(f"{name} cannot run {bundle}: {'; '.join(reasons)}")


@device.command()
@click.argument("kind", metavar="KIND", type=click.Choice(["qemu", "board", "compiler"]))
@click.option("--force", is_flag=True, help="Fetch everything again, even if it is there.")
@verbosity_options
def setup(kind: str, force: bool, verbose: bool, quiet: bool) -> None:
    """Fetch what emulated devices need into the user's cache, without root.

    KIND is qemu, or board, which needs qemu too, or compiler, which builds the C runner for aarch64 devices without
    Python. Packages come from this machine's own apt sources and from pip's index; both check them. About 85 MB are
    fetched for qemu, 65 MB more for board, and 55 MB for compiler. What was fetched before Ctrl-C or a full disk is not
    fetched again.
    """
    with reporting(verbose=verbose, quiet=quiet):
        done = {"qemu": _set_up_qemu, "board": _set_up_board, "compiler": _set_up_compiler}[kind](force)
    if not quiet:
        click.echo("\n".join(done))


def _set_up_qemu(force: bool) -> list[str]:
    from edgeopt.devices.qemu import set_up

    emulation = set_up(force=force)
    return [
        f"qemu {emulation.qemu} and Python {emulation.python} for aarch64 in {emulation.folder}",
        *(f"  {name} {found[name]} with NumPy {found['numpy']}" for name, found in emulation.runtimes.items()),
    ]


def _set_up_board(force: bool) -> list[str]:
    from edgeopt.devices.board_image import set_up

    image = set_up(force=force)
    return [f"qemu {image.qemu} and Linux {image.linux} for aarch64 in {image.folder}"]


def _set_up_compiler(force: bool) -> list[str]:
    from edgeopt.devices.compiler import set_up

    return [f"C compiler for aarch64: {set_up(force=force).command[0]}"]


def _reasons_against(bundle: Path, facts: DeviceFacts) -> list[str]:
    from edgeopt.devices.device import RunRequest
    from edgeopt.devices.runner import chosen_runner, ready_runner
    from edgeopt.preflight import reasons_against
    from edgeopt.verdict import checked_manifest

    manifest, request = checked_manifest(bundle), RunRequest()
    with ready_runner(chosen_runner(None, facts, manifest), bundle, facts.architecture, None) as runner:
        return list(reasons_against(bundle, manifest, facts, replace(request, runner=runner)))


def _show(facts: DeviceFacts) -> None:
    runtimes = ", ".join(f"{name} {version}" for name, version in facts.runtimes.items()) or "none"
    rows = {
        "device": facts.device + (" (emulated)" if facts.is_emulated else ""),
        "CPU": f"{facts.cpu}, {facts.num_cpus} cores, {facts.architecture}",
        "features": " ".join(facts.features) or "not said",
        "memory": "not said" if facts.memory_bytes is None else bytes_text(facts.memory_bytes),
        "C library": facts.libc or "not said",
        "Python": facts.python or "none",
        "runtimes": runtimes,
        "free space": "not said" if facts.free_bytes is None else bytes_text(facts.free_bytes),
    }
    for label, text in rows.items():
        click.echo(f"{label:<12}{text}")
