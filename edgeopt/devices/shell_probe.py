"""What a device without Python is, asked with a POSIX shell and the tools that the smallest Linux has."""

from __future__ import annotations

import re
import shlex
from typing import Any

from edgeopt.devices.probe import told_by_linux

# The C library says its version when its loader is run; before glibc 2.33 only these tools say it.
_SCRIPT = """\
echo == architecture; uname -m
echo == cpuinfo; cat /proc/cpuinfo
echo == meminfo; cat /proc/meminfo
echo == libc
getconf GNU_LIBC_VERSION
ldd --version
for file in /lib/ld-linux*.so.* /lib64/ld-linux*.so.* /lib/ld-musl-*.so.*; do
    if [ -x "$file" ]; then "$file" --version; fi
done
echo == libstdcxx
for file in /usr/lib*/libstdc++.so.6 /usr/lib*/*/libstdc++.so.6 /lib*/libstdc++.so.6 /lib*/*/libstdc++.so.6; do
    if [ -e "$file" ]; then readlink -f "$file"; fi
done
echo == free
folder={folder}
while ! [ -d "$folder" ]; do folder=$(dirname "$folder"); done
df -Pk "$folder"
"""


def question(folder: str) -> str:
    """Return a shell's command; ``folder`` is where a bundle would be put."""
    return f"exec sh -c {shlex.quote(_SCRIPT.format(folder=shlex.quote(folder)))} 2>&1 </dev/null"


def understood(answer: str) -> dict[str, Any]:
    """Return what :func:`edgeopt.devices.probe.look` would say, and the version of libstdc++.

    Raises:
        ValueError: it is no answer to :func:`question`.
    """
    parts = re.split(r"^== (\w+)\n", answer, flags=re.MULTILINE)
    said = dict(zip(parts[1::2], parts[2::2], strict=True))
    if not {"architecture", "cpuinfo", "meminfo", "libc", "libstdcxx", "free"} <= said.keys():
        raise ValueError("the shell did not answer everything")
    free = re.search(r"^\S+\s+\d+\s+\d+\s+(\d+)\s+\d+%", said["free"], re.MULTILINE)
    library = re.search(r"libstdc\+\+\.so\.6\.0\.(\d+)", said["libstdcxx"])
    linux = told_by_linux(said["cpuinfo"], said["meminfo"])
    return {
        **linux,
        "num_cpus": linux["num_cpus"] or 1,
        "features": tuple(linux["features"]),
        "architecture": said["architecture"].strip(),
        "libc": _c_library(said["libc"]),
        "libstdcxx": f"GLIBCXX_3.4.{library[1]}" if library else "none",
        "python": None,
        "runtimes": {},
        "free_bytes": int(free[1]) * 1024 if free else None,
    }


def _c_library(said: str) -> str:
    version = re.search(r"(?:glibc |GLIBC |GNU libc\) |release version )(\d+\.\d+)", said)
    return f"glibc {version[1]}" if version else "musl" if "musl" in said else ""
