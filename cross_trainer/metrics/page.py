"""A page in HTML that shows figures to people: one file, which fetches nothing.

    Path("report.html").write_text(render("MiniLM on quora", data), encoding="utf-8")

Its look and its script are in `page.html`. Texts travel as JSON and become text nodes, so that no text can be read as
HTML; the page's own policy allows the one script, by its hash, and no connection.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
import math
import re
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

_ESCAPED = {ord(letter): f"\\u{ord(letter):04x}" for letter in "<>&\u2028\u2029"}
"""Letters that could end the element that holds the JSON, or a line of a script."""


def render(title: str, data: Mapping[str, Any]) -> str:
    """The page.

        >>> page = render("a < b", {"worst": "</script>", "recall": math.nan})
        >>> "<title>a &lt; b</title>" in page, '"recall":null' in page
        (True, True)

    Args:
        title: What it is about.
        data: What it shows, of what JSON can hold; NaN and infinite numbers become null.
    """
    template = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    script = re.search(r"<script>(.*?)</script>", template, re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    written = json.dumps(_finite(data), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    parts = {"title": html.escape(title), "script": f"sha256-{digest}", "data": written.translate(_ESCAPED)}
    return re.sub(r"\{\{(title|script|data)\}\}", lambda found: parts[found[1]], template)


def _finite(value: Any) -> Any:
    """The same with None for what JSON has no number for."""
    if isinstance(value, Mapping):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
