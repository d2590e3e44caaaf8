"""Fixtures that every folder of tests may use."""

from pathlib import Path

import pytest
from tiny_project import write_project


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder with a tiny recipe, its network and its samples; nothing is built."""
    return write_project(tmp_path / "project")
