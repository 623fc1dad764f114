"""The page of results: a section a part, each with what it was measured on; a part that runs anew replaces its section."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; the first column is text, the others are figures."""
    lines = [header, ["---"] + ["--:"] * (len(header) - 1), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


def tell(file: Path, section: str, text: str, *, order: Sequence[str], title: str) -> None:
    """Print a section, and put it into `file`."""
    print(f"## {section}\n{text}\n", flush=True)
    page = file.read_text(encoding="utf-8") if file.exists() else ""
    file.write_text(merged(page, {section: text}, order=order, title=title), encoding="utf-8")


def merged(page: str, sections: Mapping[str, str], *, order: Sequence[str], title: str) -> str:
    """`page` with `sections` (title -> text) in place of its own of these titles; titles stand as in `order`, under `title`."""
    parts = re.split(r"^## (.+)$", page, flags=re.MULTILINE)[1:]
    kept = {part: text.strip() for part, text in zip(parts[::2], parts[1::2], strict=True)} | dict(sections)
    return "\n\n".join([title, *(f"## {part}\n{kept[part]}" for part in order if part in kept)]) + "\n"
