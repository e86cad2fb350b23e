"""The page of the API, written from its own description.

In: the OpenAPI document. Out: one page of HTML without a script.
Why: the usual page loads scripts from another host, which a service that may have no way out must not need.
"""

from __future__ import annotations

from html import escape
from typing import Any


def write_docs_page(document: dict[str, Any]) -> str:
    """Every endpoint with what it takes and gives.

    Parameters
    ----------
    document : dict
        As `/openapi.json` has it.

    Examples
    --------
    >>> paths = {"/a": {"get": {"summary": "An a"}}}
    >>> page = write_docs_page({"info": {"title": "Pomona", "version": "1"}, "paths": paths})
    >>> "<code>GET /a</code>" in page and "An a" in page
    True
    """
    info = document["info"]
    sections = [
        _write_operation(method, path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(info['title'])}</title>"
        '<link rel="icon" href="data:,"><link rel="stylesheet" href="/docs.css"></head><body><main>'
        f"<h1>{escape(info['title'])} <small>{escape(info['version'])}</small></h1>"
        f"<p>{escape(info.get('description', ''))}</p>"
        '<p>For programs: <a href="/openapi.json">openapi.json</a>. For people: <a href="/">the page</a>.</p>'
        f"{''.join(sections)}</main></body></html>"
    )


def _write_operation(method: str, path: str, operation: dict[str, Any]) -> str:
    rows = [
        f"<tr><td><code>{escape(one['name'])}</code></td><td>{escape(one.get('in', ''))}</td>"
        f"<td>{escape(one.get('description', ''))}</td></tr>"
        for one in operation.get("parameters", ())
    ]
    kinds = operation.get("requestBody", {}).get("content", {})
    replies = operation.get("responses", {})
    parts = [
        f"<section><h2><code>{escape(method.upper())} {escape(path)}</code></h2>",
        f"<p>{escape(operation.get('summary', ''))}</p>",
        f"<p>{escape(operation.get('description', ''))}</p>" if operation.get("description") else "",
        f"<table>{''.join(rows)}</table>" if rows else "",
        f"<p>Takes {', '.join(f'<code>{escape(kind)}</code>' for kind in kinds)}.</p>" if kinds else "",
        "<ul>",
        *(
            f"<li><b>{escape(code)}</b> {escape(one.get('description', ''))}</li>"
            for code, one in sorted(replies.items())
        ),
        "</ul></section>",
    ]
    return "".join(parts)
