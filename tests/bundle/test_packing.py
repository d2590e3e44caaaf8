"""Packing, comparing and signing real bundles."""

import hashlib
import io
import json
import lzma
import os
import shutil
import signal
import subprocess
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from tiny_project import RECIPE, bundle_files, command, edgeopt_run, environment, write_project

from edgeopt.bundle.coding import coded_size
from edgeopt.bundle.packing import pack, unpack
from edgeopt.cli.main import main
from edgeopt.errors import BundleError, StorageError
from edgeopt.parity import manifest_digest


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_project(tmp_path_factory.mktemp("packing") / "project")
    done = edgeopt_run(folder, "build", "--target", "arm64", "--target", "x86")
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def bundle(project: Path, tmp_path: Path) -> Path:
    """A bundle of this test's own."""
    return Path(shutil.copytree(project / "build" / "edgeopt" / "arm64", tmp_path / "arm64"))


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pairs of keys: ours and a stranger's."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("our", "strange"):
        key = ec.generate_private_key(ec.SECP256R1())
        (folder / f"{name}.pem").write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        (folder / f"{name}.pub").write_bytes(
            key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
        )
    return folder


# ---------------------------------------------------------------- pack and unpack


def test_pack_gives_the_same_bytes_when_times_modes_and_folder_differ(bundle: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(bundle, tmp_path / "elsewhere" / "ünicode"))
    for path in other.rglob("*"):
        os.utime(path, (1, 1))
        path.chmod(0o755 if path.is_dir() else 0o600)
    first, second = pack(bundle, tmp_path / "a.tar.xz"), pack(other, tmp_path / "b.tar.xz")
    assert first.path.read_bytes() == second.path.read_bytes()
    assert first.files == second.files


def test_pack_dates_files_by_source_date_epoch_when_it_is_set(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    with tarfile.open(pack(bundle, tmp_path / "a.tar.xz").path) as archive:
        assert {entry.mtime for entry in archive} == {1_700_000_000}
        assert archive.getnames()[0] == "bundle.json"
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    assert main(["bundle", "pack", str(bundle), "-o", str(tmp_path / "b.tar.xz")]) == 2
    assert "SOURCE_DATE_EPOCH" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar.xz", "arm64"]


def test_unpack_gives_back_every_file_when_packed(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bundle", "pack", str(bundle), "--json", "-"]) == 0
    said = json.loads(capsys.readouterr().out)
    archive = tmp_path / "edgeopt-arm64.edgeopt.tar.xz"
    assert said["path"] == str(archive)
    assert said["bytes"] == archive.stat().st_size < said["unpacked"]
    assert said["files"]["model.tflite"]["bytes"] == (bundle / "model.tflite").stat().st_size
    assert main(["bundle", "unpack", str(archive), str(tmp_path / "back")]) == 0
    assert bundle_files(tmp_path / "back") == bundle_files(bundle)
    assert main(["verify", str(tmp_path / "back"), "--quiet"]) == 0


def test_pack_leaves_out_what_the_bundle_does_not_list(bundle: Path, tmp_path: Path) -> None:
    (bundle / "notes.txt").write_text("mine")
    assert unpack(pack(bundle, tmp_path / "a.tar.xz").path, tmp_path / "back").joinpath("notes.txt").exists() is False


def test_pack_refuses_and_writes_nothing_when_a_file_was_changed(bundle: Path, tmp_path: Path) -> None:
    (bundle / "model.tflite").write_bytes(b"x")
    with pytest.raises(BundleError, match=r"model\.tflite is not the file that was built"):
        pack(bundle, tmp_path / "a.tar.xz")
    assert not (tmp_path / "a.tar.xz").exists()


def test_pack_refuses_when_there_is_no_bundle_or_a_folder_in_its_place(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"is not a bundle: it has no bundle\.json"):
        pack(tmp_path)
    (tmp_path / "taken").mkdir()
    with pytest.raises(StorageError, match=r"cannot write .*taken"):
        pack(bundle, tmp_path / "taken")
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".tmp")] == []


@pytest.mark.parametrize("end", ["full", "interrupted"])
def test_pack_leaves_the_old_archive_and_nothing_else_when_it_is_cut_short(
    project: Path, bundle: Path, tmp_path: Path, end: str
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    archive = pack(bundle, out / "a.tar.xz").path
    before = archive.read_bytes()
    with (bundle / "model.tflite").open("ab") as stream:  # not to be compressed in an instant, nor to one block
        stream.write(np.random.default_rng(0).bytes(8_000_000))
    (bundle / "bundle.json").write_text(resealed(bundle))
    if end == "full":  # the shell's limit on the size of a file stands for a disk that is full
        limited = ["sh", "-c", 'ulimit -f 1000; trap "" XFSZ; exec "$@"', "sh"]
        done = edgeopt_run(tmp_path, "bundle", "pack", str(bundle), "-o", str(archive), wrapper=limited)
        assert done.returncode == 14, done.stderr
        assert f"cannot write {archive}: File too large" in done.stderr
    else:
        program = command("bundle", "pack", str(bundle), "-o", str(archive))
        running = subprocess.Popen(program, env=environment(), stderr=subprocess.PIPE, text=True)
        while not list(out.glob(".*.tmp")):
            assert running.poll() is None
            time.sleep(0.01)
        running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=60)
        assert running.returncode == 130, said
        assert "Traceback" not in said
    assert archive.read_bytes() == before
    assert [path.name for path in out.iterdir()] == ["a.tar.xz"]


def resealed(bundle: Path) -> str:
    """Return bundle.json for a model that was changed."""
    manifest = json.loads((bundle / "bundle.json").read_text())
    content = (bundle / "model.tflite").read_bytes()
    manifest["files"]["model.tflite"] = {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
    manifest["digest"] = manifest_digest(manifest)
    return json.dumps(manifest)


def archive_with(folder: Path, name: str, kind: bytes = tarfile.REGTYPE, link: str = "", content: bytes = b"x") -> Path:
    path = folder / "made.tar.xz"
    with tarfile.open(path, "w:xz") as archive:
        entry = tarfile.TarInfo(name)
        entry.type, entry.linkname, entry.size = kind, link, len(content) if kind == tarfile.REGTYPE else 0
        archive.addfile(entry, io.BytesIO(content))
    return path


@pytest.mark.parametrize(
    ("name", "kind", "link"),
    [
        ("../outside", tarfile.REGTYPE, ""),
        ("/tmp/outside", tarfile.REGTYPE, ""),
        ("a/../../outside", tarfile.REGTYPE, ""),
        ("..\\outside", tarfile.REGTYPE, ""),
        ("model.tflite", tarfile.SYMTYPE, "/etc/passwd"),
        ("model.tflite", tarfile.LNKTYPE, "/etc/passwd"),
        ("model.tflite", tarfile.CHRTYPE, ""),
        ("model.tflite", tarfile.FIFOTYPE, ""),
    ],
)
def test_unpack_refuses_when_a_name_leads_outside_or_is_no_file(
    tmp_path: Path, name: str, kind: bytes, link: str
) -> None:
    with pytest.raises(BundleError, match="which is no file inside a bundle"):
        unpack(archive_with(tmp_path, name, kind, link), tmp_path / "in" / "back")
    assert list((tmp_path / "in").iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "made.tar.xz"]


def test_unpack_refuses_before_writing_when_sizes_are_absurd(tmp_path: Path, bundle: Path) -> None:
    path = tmp_path / "bomb.tar.xz"
    entry = tarfile.TarInfo("model.tflite")
    entry.size = 5_000_000_000
    path.write_bytes(lzma.compress(entry.tobuf(tarfile.GNU_FORMAT) + bytes(10_240)))
    with pytest.raises(BundleError, match="unpacks to more than"):
        unpack(path, tmp_path / "back")
    assert not (tmp_path / "back").exists()


@pytest.mark.parametrize("damage", ["cut", "flip", "text"])
def test_unpack_refuses_when_the_archive_is_damaged(bundle: Path, tmp_path: Path, damage: str) -> None:
    path = pack(bundle, tmp_path / "a.tar.xz").path
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
    path.write_bytes({"cut": content[: len(content) // 2], "flip": content, "text": b"no archive"}[damage])
    with pytest.raises(BundleError, match=r"a\.tar\.xz"):
        unpack(path, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_unpack_refuses_when_the_archive_holds_more_than_the_bundle(bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "more.tar.xz"
    with tarfile.open(path, "w:xz") as archive:
        for name, content in {**bundle_files(bundle), "run_me.sh": b"x"}.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    with pytest.raises(BundleError, match=r"holds 'run_me\.sh', which bundle\.json does not list"):
        unpack(path, tmp_path / "back")


def test_unpack_refuses_when_the_folder_is_there(bundle: Path, tmp_path: Path) -> None:
    archive = pack(bundle, tmp_path / "a.tar.xz").path
    assert main(["bundle", "unpack", str(archive), str(bundle)]) == 2


# ---------------------------------------------------------------- coded models


@pytest.mark.parametrize(("target", "model"), [("arm64", "model.tflite"), ("x86", "model.onnx")])
def test_unpack_gives_back_every_file_when_the_model_was_coded(
    project: Path, tmp_path: Path, target: str, model: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, archive = project / "build" / "edgeopt" / target, tmp_path / "a.tar.xz"
    assert main(["bundle", "pack", str(bundle), "--coded", "-o", str(archive), "--json", "-"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert model not in said["files"]
    assert said["model"]["bytes"] == said["files"][f"{model}.coded"]["bytes"] < (bundle / model).stat().st_size
    # 3 x 3 x 3 x 8 + 8 of the convolution, and 8 x 4 + 4 of the last layer.
    assert said["model"]["float_bytes"] == 4 * (216 + 8 + 32 + 4)
    assert said["model"]["compression_ratio"] == said["model"]["float_bytes"] / said["model"]["bytes"]
    assert bundle_files(unpack(archive, tmp_path / "back")) == bundle_files(bundle)
    assert archive.read_bytes() == pack(bundle, tmp_path / "b.tar.xz", coded=True).path.read_bytes()


def test_verify_decodes_at_load_when_the_bundle_is_packed(bundle: Path, keys: Path, tmp_path: Path) -> None:
    assert sign(bundle, keys) == 0
    archive = pack(bundle, tmp_path / "a.tar.xz", coded=True).path
    assert main(["verify", str(archive), "--quiet", "--require-signature", str(keys / "our.pub")]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar.xz", "arm64"]
    archive.write_bytes(archive.read_bytes()[:-100])
    assert main(["verify", str(archive), "--quiet"]) == 11


def test_decode_gives_back_the_model_file_when_it_was_coded(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bundle", "code", str(bundle)]) == 0
    shown = capsys.readouterr().out
    assert "bits each" in shown
    assert "times smaller than the weights as float32 (1,040 bytes)" in shown
    coded = tmp_path / "edgeopt-arm64.tflite.coded"  # beside the bundle, which stays as it was built
    assert shown.endswith(f"\n{coded}\n")
    assert main(["verify", str(bundle), "--quiet"]) == 0
    assert main(["bundle", "decode", str(coded), str(tmp_path / "model.tflite")]) == 0
    assert (tmp_path / "model.tflite").read_bytes() == (bundle / "model.tflite").read_bytes()
    assert main(["bundle", "code", str(tmp_path / "model.tflite"), "--json", "-"]) == 0
    assert (tmp_path / "model.tflite.coded").read_bytes() == coded.read_bytes()
    assert main(["bundle", "code", str(coded)]) == 4
    assert main(["bundle", "decode", str(tmp_path / "model.tflite"), str(tmp_path / "x")]) == 11
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("change", "message"), [("flip", "CRC-32|damaged|expected|ends too early"), ("twice", "holds model.tflite twice")]
)
def test_unpack_refuses_when_the_coded_model_is_damaged_or_there_twice(
    bundle: Path, tmp_path: Path, change: str, message: str
) -> None:
    files = bundle_files(unpack(pack(bundle, tmp_path / "a.tar.xz").path, tmp_path / "there"))
    coded = bytearray(coded_size(bundle / "model.tflite").content)
    if change == "flip":
        del files["model.tflite"]
        coded[len(coded) // 2] ^= 1
    path = tmp_path / "made.tar.xz"
    with tarfile.open(path, "w:xz") as archive:
        for name, content in {**files, "model.tflite.coded": bytes(coded)}.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    with pytest.raises(BundleError, match=message):
        unpack(path, tmp_path / "back")
    assert not (tmp_path / "back").exists()


# ---------------------------------------------------------------- diff


def test_diff_says_the_same_when_nothing_differs(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bundle", "diff", str(bundle), str(bundle), "--exit-code"]) == 0
    assert capsys.readouterr().out == "the same bundle\n"


def test_diff_names_each_fact_when_a_recipe_changed(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_project(tmp_path / "other", recipe=RECIPE.replace("min_cosine = 0.5", "min_cosine = 0.25"))
    assert edgeopt_run(other, "build", "--target", "arm64").returncode == 0
    first, second = project / "build/edgeopt/arm64", other / "build/edgeopt/arm64"
    assert main(["bundle", "diff", str(first), str(second), "--exit-code", "--json", "-"]) == 1
    found = {
        item["fact"]: (item["first"], item["second"]) for item in json.loads(capsys.readouterr().out)["differences"]
    }
    assert found == {"limits.min_cosine": (0.5, 0.25), "recipe.parity.min_cosine": (0.5, 0.25)}


def test_diff_names_scales_and_files_when_targets_differ(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = project / "build" / "edgeopt"
    assert main(["bundle", "diff", str(folder / "arm64"), str(folder / "x86")]) == 0
    shown = capsys.readouterr().out
    assert "files.model.tflite.sha256" in shown
    assert "inputs.image.dtype" in shown


# ---------------------------------------------------------------- signatures


def sign(bundle: Path, keys: Path, name: str = "our") -> int:
    return main(["bundle", "sign", str(bundle), "key", "--private_key", str(keys / f"{name}.pem")])


def check(bundle: Path, keys: Path) -> int:
    return main(["bundle", "verify-signature", str(bundle), "key", "--public_key", str(keys / "our.pub")])


def test_signature_holds_when_nothing_changed(bundle: Path, keys: Path, tmp_path: Path) -> None:
    assert sign(bundle, keys) == 0
    assert check(bundle, keys) == 0
    assert main(["verify", str(bundle), "--quiet", "--require-signature", str(keys / "our.pub")]) == 0
    back = unpack(pack(bundle, tmp_path / "a.tar.xz").path, tmp_path / "back")
    assert check(back, keys) == 0
    assert sign(bundle, keys) == 0  # again, over the old one
    assert check(bundle, keys) == 0


def test_verify_refuses_when_the_bundle_is_not_signed(
    bundle: Path, keys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(bundle), "--require-signature", str(keys / "our.pub")]) == 11
    assert "is not signed" in capsys.readouterr().err


def test_signature_does_not_hold_when_a_stranger_signed(
    bundle: Path, keys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sign(bundle, keys, "strange") == 0
    assert check(bundle, keys) == 11
    assert "the signature does not hold" in capsys.readouterr().err


@pytest.mark.parametrize("change", ["flip", "add", "remove"])
def test_signature_does_not_hold_when_a_file_was_touched(
    bundle: Path, keys: Path, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sign(bundle, keys) == 0
    name = {"flip": "README.md", "add": "extra.txt", "remove": "README.md"}[change]
    if change == "remove":
        (bundle / name).unlink()
    else:
        (bundle / name).write_text("changed")
    assert check(bundle, keys) == 11
    assert name in capsys.readouterr().err


def test_sign_refuses_and_leaves_nothing_when_the_key_is_none(
    bundle: Path, keys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bundle", "sign", str(bundle), "key", "--private_key", str(keys / "our.pub")]) == 2
    assert "was not signed" in capsys.readouterr().err
    assert not [path.name for path in bundle.iterdir() if "sig" in path.name]


def test_sign_refuses_when_the_bundle_was_changed(bundle: Path, keys: Path) -> None:
    (bundle / "README.md").write_text("changed")
    assert sign(bundle, keys) == 11
