"""One self-contained HTML file: text, tables, images and widgets, without any request.

A page forbids itself to fetch anything, and to run any script but those of its own widgets.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from pri3d.files.atomic import write_atomic
from pri3d.runs import leaves

_CSS = """
:root{color-scheme:light dark;--paper:#fff;--ink:#1d2330;--muted:#5f6675;--line:#dfe3ea;--soft:#f4f6f9;--mark:#0072b2;
--warn:#8a5a00;--warnsoft:#fff6e0}
@media(prefers-color-scheme:dark){:root{--paper:#14171d;--ink:#e4e7ee;--muted:#9aa2b1;--line:#2e3440;--soft:#1d212a;
--mark:#56b4e9;--warn:#f0c060;--warnsoft:#2b2414}}
*{box-sizing:border-box}
body{margin:0;background:var(--paper);color:var(--ink);line-height:1.55;
font-family:system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;font-size:16px}
main{max-width:62rem;margin:0 auto;padding:2.5rem 1.25rem 4rem}
h1{font-size:1.9rem;line-height:1.2;margin:0 0 .3rem}
h2{font-size:1.3rem;margin:3rem 0 .6rem;padding-top:.8rem;border-top:1px solid var(--line)}
h3{font-size:1.05rem;margin:1.8rem 0 .4rem}
p{margin:.6rem 0;max-width:46rem}
.lead{color:var(--muted);font-size:1.05rem;margin-bottom:1.5rem}
.tiles{display:flex;flex-wrap:wrap;gap:.8rem;margin:1.4rem 0;padding:0}
.tile{flex:1 1 9rem;background:var(--soft);border:1px solid var(--line);border-radius:10px;padding:.8rem 1rem}
.tile b{display:block;font-size:1.6rem;line-height:1.25;font-variant-numeric:tabular-nums}
.tile span{color:var(--muted);font-size:.88rem}
figure{margin:1.4rem 0}
figure img{display:block;width:100%;height:auto;background:#fff;padding:12px;border:1px solid var(--line);
border-radius:10px}
figcaption{color:var(--muted);font-size:.92rem;margin:.5rem 0 0;max-width:50rem}
.wide{overflow-x:auto}
table{border-collapse:collapse;margin:1rem 0;font-size:.95rem}
caption{caption-side:bottom;text-align:left;color:var(--muted);font-size:.92rem;padding-top:.5rem}
th,td{padding:.35rem .9rem .35rem 0;border-bottom:1px solid var(--line);text-align:left;vertical-align:top}
thead th{border-bottom:2px solid var(--line);font-weight:600}
tbody th{font-weight:500}
.n{text-align:right;font-variant-numeric:tabular-nums;padding-left:.9rem}
.note{background:var(--warnsoft);border-left:4px solid var(--warn);padding:.6rem .9rem;border-radius:0 8px 8px 0}
nav{margin:1rem 0 0;display:flex;flex-wrap:wrap;gap:.2rem 1.1rem;font-size:.95rem}
a{color:var(--mark)}
.facts th{color:var(--muted);font-weight:400;white-space:nowrap}
.facts td{font-family:ui-monospace,"DejaVu Sans Mono",monospace;font-size:.86rem;overflow-wrap:anywhere}
summary{cursor:pointer;color:var(--mark);margin:.6rem 0}
@media(prefers-color-scheme:dark){figure img{filter:brightness(.92)}}
@media print{nav{display:none}}
@media print{figure,table,.tile{break-inside:avoid}}
"""


class Page:
    """Collects parts in order; every text is escaped."""

    def __init__(self, title: str, lead: str = "") -> None:
        self.title, self.lead = title, lead
        self.parts: list[str] = []
        self._sections: list[str] = []
        self._scripts: dict[str, None] = {}

    def heading(self, text: str, level: int = 2) -> None:
        """Add a heading of level 2, which the page's list of sections names, or 3."""
        number = ""
        if level == 2:
            self._sections.append(text)
            number = f' id="s{len(self._sections)}"'
        self.parts.append(f"<h{level}{number}>{escape(text)}</h{level}>")

    def paragraph(self, text: str) -> None:
        """Add a paragraph."""
        self.parts.append(f"<p>{escape(text)}</p>")

    def note(self, text: str) -> None:
        """Add a paragraph set apart: what is missing, what to mind."""
        self.parts.append(f'<p class="note">{escape(text)}</p>')

    def tiles(self, values: Mapping[str, str]) -> None:
        """Add a row of large values, each with its meaning (the key) below."""
        cells = (
            f'<div class="tile"><b>{escape(value)}</b><span>{escape(name)}</span></div>'
            for name, value in values.items()
        )
        self.parts.append(f'<div class="tiles">{"".join(cells)}</div>')

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str | int | float]], caption: str = "") -> None:
        """Add a table whose first column names the row; a column of numbers only is set flush right.

        Text that reads as a number (``+1.2``, ``31 %``, a dash for none) counts as one.
        """
        right = [k > 0 and all(_is_number(row[k]) for row in rows) for k in range(len(header))]
        head = "".join(_cell("th", name, flush, "col") for name, flush in zip(header, right, strict=True))
        body = "".join(
            "<tr>"
            + _cell("th", row[0], False, "row")
            + "".join(_cell("td", value, flush) for value, flush in zip(row[1:], right[1:], strict=True))
            + "</tr>"
            for row in rows
        )
        below = f"<caption>{escape(caption)}</caption>" if caption else ""
        self.parts.append(
            f'<div class="wide"><table>{below}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
        )

    def figure(self, picture: bytes, caption: str, alt: str) -> None:
        """Add a PNG or JPEG with a caption; ``alt`` says what it shows to who cannot see it."""
        self.parts.append(
            f'<figure><img alt="{escape(alt)}" src="{picture_address(picture)}">'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
        )

    def widget(self, html: str) -> None:
        """Add a piece of HTML of this package that brings its own style and script; the page allows these scripts.

        It is taken as it is: whoever makes it escapes its texts.
        """
        for script in re.findall(r"<script>(.*?)</script>", html, re.DOTALL):
            digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
            self._scripts[f"'sha256-{digest}'"] = None
        self.parts.append(html)

    def facts(self, title: str, values: Mapping[str, Any]) -> None:
        """Add a block of key and value that unfolds; nested mappings become dotted keys."""
        rows = "".join(
            f'<tr><th scope="row">{escape(".".join(way))}</th><td>{escape(str(value))}</td></tr>'
            for way, value in leaves(values)
        )
        self.parts.append(
            f"<details><summary>{escape(title)}</summary>"
            f'<div class="wide"><table class="facts"><tbody>{rows}</tbody></table></div></details>'
        )

    def render(self) -> str:
        """Return the whole page."""
        scripts = " ".join(self._scripts) or "'none'"
        policy = (
            f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src {scripts}; base-uri 'none'; "
            "form-action 'none'"
        )
        links = "".join(f'<a href="#s{k}">{escape(text)}</a>' for k, text in enumerate(self._sections, 1))
        top = f"<h1>{escape(self.title)}</h1>\n" + (f'<p class="lead">{escape(self.lead)}</p>\n' if self.lead else "")
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
            '<meta name="viewport" content="width=device-width,initial-scale=1">'
            '<link rel="icon" href="data:,">'  # or the browser asks for one where the page is served
            f"<title>{escape(self.title)}</title><style>{_CSS}</style></head>\n<body><main>\n{top}"
            + (f"<nav>{links}</nav>\n" if len(self._sections) > 1 else "")
            + "\n".join(self.parts)
            + "\n</main></body></html>\n"
        )

    def write(self, path: Path) -> Path:
        """Write the page under a temporary name, rename it, and return ``path``."""
        return write_atomic(path, self.render().encode(errors="backslashreplace"))


def picture_address(picture: bytes) -> str:
    """Address of a PNG or JPEG that holds the picture itself."""
    kind = "png" if picture.startswith(b"\x89PNG") else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode('ascii')}"


def _cell(tag: str, value: str | int | float, flush: bool, scope: str = "") -> str:
    attributes = (f' scope="{scope}"' if scope else "") + (' class="n"' if flush else "")
    return f"<{tag}{attributes}>{escape(str(value))}</{tag}>"


def _is_number(value: str | int | float) -> bool:
    if not isinstance(value, str):
        return True
    text = value.strip().rstrip("%").replace(",", "").replace("−", "-").strip()
    if text in {"", "–"}:
        return True
    try:
        float(text)
    except ValueError:
        return False
    return True
