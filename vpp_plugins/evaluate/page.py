"""The frame of a page that opens from the disk: its style, its heading, and the facts of an evaluation as a table."""

import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vpp_plugins.files import write_whole

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 76rem; padding: 2rem 1.5rem 4rem;
       color: #1d2129; background: #f6f7f9 }
h1, h2 { line-height: 1.2 } h2 { margin: 2.5rem 0 1rem } p, li { max-width: 56rem; color: #4a5160 }
table { border-collapse: collapse; background: #fff } td, th { padding: .35rem 1rem; text-align: right;
       border-bottom: 1px solid #e3e6ea } td:first-child, th:first-child { text-align: left }
th { color: #4a5160; font-weight: 500 } td small { color: #6b7280; margin-left: .4rem }
code { overflow-wrap: anywhere } .facts td { text-align: left } td.meaning { text-align: left; color: #4a5160 }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: 1rem }
figure { margin: 0; padding: .6rem; background: #fff; border: 1px solid #e3e6ea; border-radius: .6rem }
figure img { width: 100%; height: 15rem; object-fit: contain; background: #eceef1 }
figcaption { font-size: .9rem } figcaption code { color: #4a5160; font-size: .8rem; display: block }
svg { background: #fff; border: 1px solid #e3e6ea; border-radius: .6rem; max-width: 100% }
svg text { font: 12px system-ui, sans-serif; fill: #4a5160 }
"""


def write_page(path: str | Path, title: str, body: Sequence[str]) -> Path:
    """Write one page, whole or not at all."""
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escaped(title)}</title><style>{STYLE}</style>'
    target = Path(path)
    write_whole(target, head + "\n".join(body) + "</html>\n")
    return target


def facts_table(settings: Mapping[str, Any], source: str) -> str:
    """Return what an evaluation says of itself as a table; what is empty is left out."""
    facts = {**settings, "rules": source}
    lines = "".join(
        f"<tr><td>{escaped(key.replace('_', ' '))}</td><td><code>{escaped(_said(value))}</code></td></tr>"
        for key, value in facts.items()
        if value not in (None, {})
    )
    return f'<table class="facts">{lines}</table>'


def _said(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {one}" for name, one in value.items())
    return str(value)


def escaped(value: str) -> str:
    """Return what others wrote as it may stand in a page."""
    return html.escape(value)
