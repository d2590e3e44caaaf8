"""``edgeopt bundle``: pack, code, compare and sign what was built."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from edgeopt.bundle.signing import METHODS
from edgeopt.cli.console import bytes_text, percent_text, print_table, shown_path, write_json
from edgeopt.cli.options import json_option

if TYPE_CHECKING:
    from edgeopt.bundle.coding import CodedModel, CodedTensor

_EXAMPLES = """\b
Examples:
  edgeopt bundle pack build/mnist5k/arm64
  edgeopt bundle pack build/mnist5k/arm64 --coded     pruned and shared weights take few bits
  edgeopt bundle code build/mnist5k/arm64             the model alone, for firmware that decodes it at load
  edgeopt bundle decode build/mnist5k/mnist5k-arm64.tflite.coded model.tflite
  edgeopt bundle unpack mnist5k-arm64.edgeopt.tar.xz received
  edgeopt bundle diff build/mnist5k/arm64 received
  edgeopt bundle sign build/mnist5k/arm64 key --private_key release.pem
  edgeopt bundle verify-signature received key --public_key release.pub
"""
_PASSED_ON = {"ignore_unknown_options": True, "allow_interspersed_args": False}
_MOST_SHOWN = 60  # characters of one fact
_FORMS = ("raw", "huffman", "sparse", "range", "blocks", "lzma", "zstd")  # as columns


@click.group(epilog=_EXAMPLES)
def bundle() -> None:
    """Pack, code, compare and sign bundles."""


@bundle.command()
@click.argument("folder", metavar="BUNDLE", type=click.Path(path_type=Path))
@click.option("-o", "--output", metavar="FILE", type=click.Path(path_type=Path), help="[default: beside the bundle]")
@click.option("--coded", is_flag=True, help="Code the model's weights, each tensor in its smallest form; see code.")
@json_option
def pack(folder: Path, output: Path | None, coded: bool, json_to: str | None) -> None:
    """Write BUNDLE as one compressed file, the same bytes for the same bundle.

    Times in it are SOURCE_DATE_EPOCH, or 1970. Unpacking gives back every file as it was, a coded model too.
    """
    from edgeopt.bundle.packing import pack as pack_bundle

    packed = pack_bundle(folder, output, coded=coded)
    unpacked = sum(file.size_bytes for file in packed.files)
    files = {file.name: {"bytes": file.size_bytes, "compressed": file.compressed_bytes} for file in packed.files}
    facts = {"path": str(packed.path), "bytes": packed.size_bytes, "unpacked": unpacked, "files": files}
    write_json(json_to, facts | ({} if packed.model is None else {"model": _coded_json(packed.model)}))
    if json_to == "-":
        return
    if packed.model is not None:
        _show_coded(packed.model)
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
@click.argument("model", metavar="BUNDLE|MODEL", type=click.Path(path_type=Path, exists=True))
@click.option("-o", "--output", metavar="FILE", type=click.Path(path_type=Path), help="[default: beside it]")
@json_option
def code(model: Path, output: Path | None, json_to: str | None) -> None:
    """Write a model file with its weights coded, each tensor in whichever form takes the fewest bytes.

    The forms: raw; lzma; huffman, a Huffman code of the values; sparse, the distances between weights that are not the
    most frequent one, and their values, both as Huffman codes; range, an adaptive range coder that knows how dense row
    and column have been; blocks, 4 bits and a factor for each block, where low_bit made such. decode gives back the
    same bytes, and so does firmware/edgeopt_decode.h of a TFLite bundle.
    """
    from edgeopt.atomic import write_bytes
    from edgeopt.bundle.coding import coded_size

    file, beside = _model_file(model)
    coded = coded_size(file)
    place = output or beside
    write_bytes(place, coded.content)
    write_json(json_to, {"path": str(place), **_coded_json(coded)})
    if json_to != "-":
        _show_coded(coded)
        click.echo(f"\n{shown_path(place)}")


@bundle.command()
@click.argument("coded", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("model", type=click.Path(path_type=Path))
def decode(coded: Path, model: Path) -> None:
    """Write the model file that CODED was made of as MODEL."""
    from edgeopt.atomic import write_bytes
    from edgeopt.bundle.coding import decode_model

    write_bytes(model, decode_model(coded.read_bytes()))
    click.echo(shown_path(model))


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


def _model_file(model: Path) -> tuple[Path, Path]:
    """Return a bundle's model file, or the file itself that was named, and where its coded form lies beside that."""
    from edgeopt.bundle.coding import SUFFIX
    from edgeopt.verdict import checked_manifest

    if model.is_file():
        return model, model.with_name(model.name + SUFFIX)
    manifest = checked_manifest(model)
    file = model / manifest["model"]["file"]
    return file, model.absolute().with_name(f"{manifest['name']}-{manifest['target']}{file.suffix}{SUFFIX}")


def _coded_json(coded: CodedModel) -> dict[str, object]:
    return {
        "bytes": coded.size_bytes,
        "model_bytes": coded.model_bytes,
        "rest_bytes": coded.rest_bytes,
        "float_bytes": coded.float_bytes,
        "compression_ratio": coded.compression_ratio,
        "tensors": [asdict(tensor) for tensor in coded.tensors],
    }


def _show_coded(coded: CodedModel) -> None:
    """Print what each coded tensor takes, in each form too, and all of them."""
    forms = [form for form in _FORMS if any(form in tensor.sizes for tensor in coded.tensors)]
    columns = ("tensor", "items", "zeros", "values", "form", "bits each", "bytes", *forms)
    print_table(columns, (_coded_row(tensor, forms) for tensor in coded.tensors if tensor.sizes))
    click.echo(
        f"\ngraph and small tensors: {coded.rest_bytes:,} bytes; in all {coded.size_bytes:,}, "
        f"{coded.model_bytes / coded.size_bytes:.1f} times smaller than the model file, "
        f"{coded.compression_ratio:.1f} times smaller than the weights as float32 ({coded.float_bytes:,} bytes)"
    )


def _coded_row(tensor: CodedTensor, forms: Sequence[str]) -> tuple[str, ...]:
    return (
        tensor.name,
        f"{tensor.num_items:,}",
        percent_text(tensor.zeros / tensor.num_items),
        f"{tensor.num_values:,}",
        tensor.form,
        f"{8 * tensor.coded_bytes / tensor.num_items:.2f}",
        f"{tensor.coded_bytes:,}",
        *(f"{tensor.sizes[form]:,}" if form in tensor.sizes else "-" for form in forms),
    )


def _text(value: object) -> str:
    text = "-" if value is None else str(value)
    return text if len(text) <= _MOST_SHOWN else text[: _MOST_SHOWN - 3] + "..."
