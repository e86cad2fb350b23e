"""One self-contained HTML file that shows several ways to learn from the same photos side by side.

In: rows, the picture of them, what they come to. Out: one HTML file.
Why: accuracy against time is seen in one look; the table below has the numbers. The file asks for nothing from outside.
"""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, NamedTuple

from pomona.errors import MissingPackageError
from pomona.files import write_atomic

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pomona.evaluation import Metric

PAGE_MARK = b'<meta name="generator" content="pomona benchmark">'
"""What an earlier page has among its first bytes; it may be replaced."""


class PageRow(NamedTuple):
    """A way as it is shown; see `pomona.benchmark.BenchmarkRow`."""

    title: str
    accuracy: Metric | None
    seconds: float
    cpu_seconds: float
    memory_mb: float | None
    n_cached: int
    detail: str
    reason: str
    is_lead: bool


def write_benchmark_page(
    path: Path,
    rows: Sequence[PageRow],
    picture: str,
    *,
    title: str,
    verdict: str,
    facts: str,
    notes: Sequence[str],
    is_cached: bool,
) -> None:
    """Write the page.

    Parameters
    ----------
    path : Path
        Where it goes; its folder exists.
    rows : sequence of PageRow
        One a way.
    picture : str
        SVG of them, empty where there is none.
    title : str
        What the data is called.
    verdict, facts : str
        What it comes to, and what it was measured on.
    notes : sequence of str
        What to know before trusting the numbers.
    is_cached : bool
        Whether features were taken from the cache.

    Raises
    ------
    MissingPackageError
        If jinja2 is not installed.
    StorageError
        If the file cannot be written.
    """
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError as error:
        raise MissingPackageError("jinja2", "train", "to write the page of a benchmark") from error
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    template = (resources.files("pomona") / "web" / "benchmark.html.j2").read_text(encoding="utf-8")
    page = environment.from_string(template).render(
        rows=rows,
        picture=picture,
        title=title,
        verdict=verdict,
        facts=facts,
        notes=notes,
        is_cached=is_cached,
        mark=PAGE_MARK.decode(),
    )
    write_atomic(path, page)
