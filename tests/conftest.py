"""Fixtures that every test file may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real photos beside the checkout; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("POMONA_SHARED", Path(__file__).parents[1] / ".." / "shared")).resolve()
    if not (folder / "data").is_dir():
        pytest.skip(f"real photos are not here: {folder}; name their folder in POMONA_SHARED")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _private_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep the tests out of the user's cache, and let them share one."""
    os.environ["POMONA_CACHE"] = str(tmp_path_factory.mktemp("cache"))
