"""A comparison in every form it can be read in: text, Markdown, CSV, JSON, and a page of its own."""

from __future__ import annotations

from localgemma.compare.report_html import html
from localgemma.compare.report_json import from_json, to_json
from localgemma.compare.report_text import csv, markdown, table

__all__ = ["csv", "from_json", "html", "markdown", "table", "to_json"]
