"""Fixtures that every test file may use."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pomona.training import TrainResult


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


@pytest.fixture(scope="session")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tree of rendered photos, 8 each of Banana, Orange and Lemon, the last two under Citrus; not to be changed."""
    from pomona.samples import KINDS, SampleOptions, write_samples

    folder = tmp_path_factory.mktemp("rendered") / "fruit"
    write_samples(folder, SampleOptions(n_per_kind=8, kinds=KINDS[2:5], size_px=72, n_workers=1))
    return folder


@pytest.fixture(scope="session")
def trained(rendered: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """A run on these photos; not to be changed."""
    from pomona.training import TrainOptions, train

    return train(TrainOptions(data=rendered, output=tmp_path_factory.mktemp("trained") / "run", imgsz=64))


@pytest.fixture(scope="session", autouse=True)
def _interruptible() -> None:
    """Let Ctrl-C through, here and in the commands that tests start: a job in the background begins with it ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
