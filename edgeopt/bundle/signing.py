"""Signatures of bundles: OpenSSF model-signing, with a key in a file or any other method that the library has.

The signature lies in the bundle as ``bundle.sig`` and covers every other file, so that nothing can be added either.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from edgeopt.errors import BundleError, MissingDependencyError, UsageError

SIGNATURE = "bundle.sig"
METHODS = ("key", "certificate", "sigstore", "pkcs11-key", "pkcs11-certificate")


def sign(bundle: Path, method: str, arguments: Sequence[str]) -> Path:
    """Sign a bundle and return the signature's place; an older signature is replaced.

    Args:
        bundle: the folder; whether its files are as built is for the caller to check.
        method: one of :data:`METHODS`.
        arguments: the method's own, such as ``--private_key FILE``, as the library's command line takes them.

    Raises:
        MissingDependencyError: model-signing is not installed.
        UsageError: the library refuses the method or its arguments; its own words are in the message.
    """
    place = bundle / SIGNATURE
    new = bundle / f".{SIGNATURE}.new"
    new.unlink(missing_ok=True)
    ignored = ["--ignore-paths", str(place), "--no-ignore-git-paths"]
    try:
        done = _library("sign", method, "--signature", str(new), *ignored, *arguments, str(bundle))
        if done.returncode != 0 or not new.is_file():
            raise UsageError(f"{bundle} was not signed: {_last_words(done)}")
        new.replace(place)
    finally:
        new.unlink(missing_ok=True)
    return place


def verify_signature(bundle: Path, method: str, arguments: Sequence[str]) -> None:
    """Check a bundle's signature over all of its files.

    Args:
        bundle: the folder.
        method: one of :data:`METHODS`.
        arguments: the method's own, such as ``--public_key FILE``.

    Raises:
        MissingDependencyError: model-signing is not installed.
        BundleError: there is no signature, it is not by this key, or a file was changed, added or taken away.
    """
    place = bundle / SIGNATURE
    if not place.is_file():
        raise BundleError(f"{bundle} is not signed: it has no {SIGNATURE}", hint="edgeopt bundle sign signs a bundle")
    ignored = ["--ignore-paths", str(place), "--no-ignore-git-paths"]
    done = _library("verify", method, "--signature", str(place), *ignored, *arguments, str(bundle))
    if done.returncode != 0:
        raise BundleError(f"{bundle}: the signature does not hold: {_last_words(done)}")


def _library(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run model-signing's own command line, which has every method."""
    for module in ("model_signing", "OpenSSL"):  # the library uses pyOpenSSL without asking for it
        if importlib.util.find_spec(module) is None:
            raise MissingDependencyError(f"{module} is not installed", hint="pip install 'edgeopt[signing]'")
    command = [sys.executable, "-m", "model_signing", *arguments]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)


def _last_words(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    return lines[-1].strip() if lines else f"exit code {done.returncode}"
