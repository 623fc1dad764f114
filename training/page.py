"""An HTML page that stands alone: its frame and style, its elements, and numbers as a reader wants them. Escapes all text."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

import numpy as np

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>
:root {{ --ink: #24292f; --soft: #57606a; --line: #d8dee4; --paper: #fff; --card: #f6f8fa; --warn: #9a3b00; --warned: #fff1e5 }}
@media (prefers-color-scheme: dark) {{
:root {{ --ink: #d0d7de; --soft: #9aa4af; --line: #3a424c; --paper: #12161b; --card: #1b2128;
--warn: #ffb27a; --warned: #33241a }} }}
body {{ margin: 0 auto; padding: 1rem; max-width: 62rem; color: var(--ink); background: var(--paper);
font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere }}
h1 {{ line-height: 1.2 }} h2 {{ margin-top: 2.5rem; border-bottom: 1px solid var(--line) }}
.scroll {{ overflow-x: auto }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; overflow-wrap: normal }}
th, td {{ padding: .25rem .9rem .25rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line) }}
.lead {{ font-size: 1.15rem }} .soft, figcaption {{ color: var(--soft); font-size: .9rem }}
.warning {{ padding: .6rem .9rem; border-left: 4px solid var(--warn); background: var(--warned); color: var(--warn) }}
.figures {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem }}
figure {{ margin: 0; padding: .8rem; background: var(--card); border-radius: .5rem }} img {{ width: 100%; height: auto }}
</style>
</head>
<body>
{body}
</body>
</html>
"""


class Html(str):
    """Text that is HTML already; all other text is escaped on its way into the page."""

    __slots__ = ()


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An SVG as a data URI, what it shows to those who cannot see it, and how to read it. The texts are not escaped."""

    source: str
    alt: str
    caption: str


def figures(pictures: Iterable[Picture]) -> Html:
    """Pictures beside each other where there is room."""
    parts = (
        f'<figure><img src="{escape(one.source)}" alt="{escape(one.alt)}">{tag("figcaption", one.caption)}</figure>'
        for one in pictures
    )
    return Html(f'<div class="figures">{"".join(parts)}</div>')


def table(header: Sequence[str] | None, rows: Iterable[Sequence[str]]) -> Html:
    """A table whose rows start with their heading; it scrolls by itself where the screen is narrower."""
    head = f"<tr>{join(*(tag('th', cell) for cell in header))}</tr>" if header else ""
    body = (f"<tr>{tag('th', row[0])}{join(*(tag('td', cell) for cell in row[1:]))}</tr>" for row in rows)
    return Html(f'<div class="scroll"><table>{head}{"".join(body)}</table></div>')


def details(summary: str, content: Html) -> Html:
    """What only some readers want, folded away."""
    return Html(f"<details>{tag('summary', summary)}{content}</details>")


def tag(name: str, content: str, *, css: str | None = None) -> Html:
    """One element around `content`, which is escaped unless it is Html; css: its class."""
    inner = content if isinstance(content, Html) else escape(content)
    return Html(f"<{name}{f' class={css!r}' if css else ''}>{inner}</{name}>")


def join(*parts: Html) -> Html:
    """The elements, one after the other."""
    return Html("\n".join(parts))


def listed(words: Sequence[str]) -> str:
    """a, b and c."""
    return f"{', '.join(words[:-1])} and {words[-1]}" if len(words) > 1 else "".join(words)


def count(things: int, noun: str) -> str:
    """1 row, 2 rows."""
    return f"{things:,} {noun}{'' if things == 1 else 's'}"


def quantity(name: str, unit: str | None) -> str:
    """A name with the unit of what it names, where that is known."""
    return f"{name} ({unit})" if unit else name


def measured(value: float, unit: str | None) -> str:
    """A number with its unit, where that is known."""
    return f"{number(value)} {unit}" if unit else number(value)


def number(value: float | None) -> str:
    """Four significant digits, or all of the whole part; a dash for a score that does not exist."""
    if value is None:
        return "-"
    if value != 0 and not 1e-4 <= abs(value) < 1e9:
        return f"{value:.3e}"
    digits = 3 - int(np.floor(np.log10(abs(value)))) if value else 0
    text = f"{value:,.{max(digits, 0)}f}"
    return text.rstrip("0").rstrip(".") if value == int(value) and "." in text else text


def percent(share: float) -> str:
    """0.9 as 90 %."""
    return f"{100 * share:.4g} %"


def duration(seconds: float) -> str:
    """12.3 s, 3 min 20 s."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes:,} min {rest} s" if minutes else f"{seconds:.1f} s"


def page(*, title: str, body: Iterable[Html]) -> bytes:
    """A whole page, UTF-8."""
    return _PAGE.format(title=escape(title), body="\n".join(body)).encode("utf-8", errors="replace")
