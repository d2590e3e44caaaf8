"""``edgeopt bundle``: pack, compare and sign what was built."""

from __future__ import annotations

from pathlib import Path

import click

from edgeopt.bundle.signing import METHODS
from edgeopt.cli.console import bytes_text, print_table, shown_path, write_json
from edgeopt.cli.options import json_option

_EXAMPLES = """\b
Examples:
  edgeopt bundle pack build/mnist5k/arm64
  edgeopt bundle unpack mnist5k-arm64.edgeopt.tar.xz received
  edgeopt bundle diff build/mnist5k/arm64 received
  edgeopt bundle sign build/mnist5k/arm64 key --private_key release.pem
  edgeopt bundle verify-signature received key --public_key release.pub
"""
_PASSED_ON = {"ignore_unknown_options": True, "allow_interspersed_args": False}
_MOST_SHOWN = 60  # characters of one fact


@click.group(epilog=_EXAMPLES)
def bundle() -> None:
    """Pack, compare and sign bundles."""


@bundle.command()
@click.argument("folder", metavar="BUNDLE", type=click.Path(path_type=Path))
@click.option("-o", "--output", metavar="FILE", type=click.Path(path_type=Path), help="[default: beside the bundle]")
@json_option
def pack(folder: Path, output: Path | None, json_to: str | None) -> None:
    """Write BUNDLE as one compressed file, the same bytes for the same bundle.

    Times in it are SOURCE_DATE_EPOCH, or 1970.
    """
    from edgeopt.bundle.packing import pack as pack_bundle

    packed = pack_bundle(folder, output)
    unpacked = sum(file.size_bytes for file in packed.files)
    files = {file.name: {"bytes": file.size_bytes, "compressed": file.compressed_bytes} for file in packed.files}
    write_json(json_to, {"path": str(packed.path), "bytes": packed.size_bytes, "unpacked": unpacked, "files": files})
    if json_to == "-":
        return
    rows = ((file.name, f"{file.size_bytes:,}", f"{file.compressed_bytes:,}") for file in packed.files)
    print_table(("file", "bytes", "compressed alone"), rows)
    ratio = unpacked / packed.size_bytes
    click.echo(f"\n{shown_path(packed.path)}: {bytes_text(packed.size_bytes)}, {ratio:.1f} times smaller than unpacked")


@bundle.command()
@click.argument("archive", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("destination", type=click.Path(path_type=Path))
def unpack(archive: Path, destination: Path) -> None:
    """Unpack ARCHIVE into the new folder DESTINATION and check every file."""
    from edgeopt.bundle.packing import unpack as unpack_bundle

    click.echo(shown_path(unpack_bundle(archive, destination)))


@bundle.command()
@click.argument("first", type=click.Path(path_type=Path))
@click.argument("second", type=click.Path(path_type=Path))
@click.option("--exit-code", is_flag=True, help="Exit with 1 if they differ, as git diff does.")
@json_option
def diff(first: Path, second: Path, exit_code: bool, json_to: str | None) -> None:
    """Say in which facts and files two bundles differ; both are checked first."""
    from edgeopt.bundle.comparison import differences
    from edgeopt.verdict import checked_manifest

    found = differences(checked_manifest(first), checked_manifest(second))
    write_json(json_to, {"differences": [difference.to_json() for difference in found]})
    if json_to != "-":
        if found:
            print_table(
                ("fact", str(first), str(second)),
                ((item.fact, _text(item.first), _text(item.second)) for item in found),
            )
        else:
            click.echo("the same bundle")
    if found and exit_code:
        raise click.exceptions.Exit(1)


@bundle.command(context_settings=_PASSED_ON)
@click.argument("folder", metavar="BUNDLE", type=click.Path(path_type=Path))
@click.argument("method", type=click.Choice(METHODS))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[METHOD'S OPTIONS]...")
def sign(folder: Path, method: str, arguments: tuple[str, ...]) -> None:
    """Sign BUNDLE with OpenSSF model-signing; the options behind METHOD are that library's.

    With key: --private_key FILE, an EC key in PEM, such as openssl ecparam -name prime256v1 -genkey writes it. The
    bundle is checked first.
    """
    from edgeopt.bundle.signing import sign as sign_bundle
    from edgeopt.verdict import checked_manifest

    checked_manifest(folder)
    click.echo(shown_path(sign_bundle(folder, method, arguments)))


@bundle.command("verify-signature", context_settings=_PASSED_ON)
@click.argument("folder", metavar="BUNDLE", type=click.Path(path_type=Path))
@click.argument("method", type=click.Choice(METHODS))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, metavar="[METHOD'S OPTIONS]...")
def verify_signature(folder: Path, method: str, arguments: tuple[str, ...]) -> None:
    """Check who signed BUNDLE, and that no file of it was changed, added or taken away since.

    With key: --public_key FILE. The exit code is 0 if the signature holds, 11 if not.
    """
    from edgeopt.bundle.signing import verify_signature as verify_bundle_signature

    verify_bundle_signature(folder, method, arguments)
    click.echo(f"{shown_path(folder)}: the signature holds")


def _text(value: object) -> str:
    text = "-" if value is None else str(value)
    return text if len(text) <= _MOST_SHOWN else text[: _MOST_SHOWN - 3] + "..."
