"""A path to polars frames: which format a file really has, and every way in which it is not a table.

CSV, CSV.gz and Parquet; the content decides, not the name. Every cell of a CSV file arrives as text without the blanks
around it, missing cells as null, unless the text is asked for as it stands; what a column means is decided in `schema`,
from all of its rows.
"""

import codecs
import csv
import difflib
import gzip
import hashlib
import re
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import TextIOBase
from pathlib import Path
from typing import cast

import numpy as np
import polars as pl
from numpy.typing import NDArray

from models.words import MISSING
from training.errors import TableError

Words = Mapping[str, Collection[str]]
NO_WORDS: Words = {}
ROW_INDEX = ("", "Unnamed: 0", "__index_level_0__")
"""The names of a row index beside the data: as R and pandas write it, as pandas reads that again, and as it is in Parquet."""

_FOREIGN = {
    b"PK\x03\x04": "a zip archive or an Excel workbook",
    b"\xd0\xcf\x11\xe0": "an old Excel workbook",
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"GIF8": "a GIF picture",
    b"%PDF": "a PDF document",
    b"ARROW1": "an Arrow file",
    b"SQLite format 3": "an SQLite database",
    b"BZh": "a bzip2 file",
    b"\xfd7zXZ": "an xz file",
    b"\x28\xb5\x2f\xfd": "a Zstandard file",
    b"PAR1": "a compressed Parquet file (decompress it first)",
    b"\x1f\x8b": "a file that was compressed twice (decompress it once)",
}
_JSON = re.compile(rb'\s*(\{\s*["}]|\[\s*[\[{"])')
_DELIMITERS = {",": "','", ";": "';'", "\t": "tab", "|": "'|'"}
"""Delimiters as one types them in a shell."""
_EXPECTED = "a table is a CSV, CSV.gz or Parquet file"
csv.field_size_limit(2**31 - 1)  # of a cell; Python's own 131 072 would be told as a misplaced quote
_LINE_SEPARATOR = "\x1f"  # ASCII unit separator: no line of a text file holds it, so a line is one field

_UNREADABLE = (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError)
"""What polars raises; a panic, as at a time zone that it does not know, is no Exception."""
_REASON_CHARACTERS = 200


@dataclass(frozen=True)
class Source:
    """A file that was looked at: it is a table, and these are its columns."""

    path: Path
    parquet: bool
    compressed: bool
    delimiter: str
    names: list[str]


def count_rows(path: Path | str) -> int | None:
    """The number of rows that `read_batches` will yield, for a progress bar; None where only reading would tell."""
    path = Path(path)
    head = _head(path)
    if head.startswith(b"\x1f\x8b"):
        return None
    lazy = pl.scan_parquet(path, glob=False) if head.startswith(b"PAR1") else _scan_csv(path, ",", None)
    try:
        return int(lazy.select(pl.len()).collect(engine="streaming").item())
    except _UNREADABLE:
        return None  # `read_batches` will say what is wrong


def read_batches(
    path: Path | str,
    *,
    columns: Sequence[str] | None = None,
    batch_rows: int = 65536,
    delimiter: str = ",",
    as_it_stands: bool = False,
    words: Words = NO_WORDS,
) -> Iterator[pl.DataFrame]:
    """The table in pieces of `batch_rows` rows, in the file's order, in memory that does not grow with the file.

    Every row of the file is a row here, also one without any value. A CSV column is String, with missing words as null;
    a Parquet column has its own type. `as_it_stands` leaves text with its blanks and missing words, for `cleaned` to take
    out; `words`: by column, those that are values there. The file is checked when this is called, before the first piece.

    Raises TableError where the file is no table or has no such column.
    """
    source = open_table(path, delimiter=delimiter)
    names = list(columns) if columns is not None else source.names
    require_columns(names, source.names, what=f"{source.path.name} has no column")
    lazy = _as_it_stands(source).select(names) if as_it_stands else scan(source, names, words)
    return _batches(lazy, source, batch_rows)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def blank_rows(frame: pl.DataFrame) -> NDArray[np.bool_]:
    """Whether each row is without any value, as a blank line is."""
    return frame.select(pl.all_horizontal(pl.all().is_null())).to_series().to_numpy()


def cleaned(frame: pl.DataFrame, words: Words = NO_WORDS) -> pl.DataFrame:
    """Columns as they stand in a file -> as `scan` gives them: text is stripped, null where missing."""
    return frame.select(_cleaned(name, kind, words) for name, kind in frame.schema.items())


def _batches(lazy: pl.LazyFrame, source: Source, batch_rows: int) -> Iterator[pl.DataFrame]:
    try:
        yield from lazy.collect_batches(chunk_size=batch_rows, maintain_order=True)
    except _UNREADABLE as error:
        raise _unreadable(source, error) from error


def require_columns(names: Sequence[str], known: Sequence[str], *, what: str) -> None:
    """Raise TableError for the first name that is not known: `what` it is, and the names nearest to it."""
    for name in names:
        if name not in known:
            folded = {other.casefold(): other for other in known}
            near = [folded[match] for match in difflib.get_close_matches(name.casefold(), folded, n=3, cutoff=0.6)]
            some = ", ".join(map(repr, near or known[:10])) + (", ..." if not near and len(known) > 10 else "")
            raise TableError(f"{what} {name!r}; {'the nearest are' if near else 'there are'} {some}")


def open_table(path: Path | str, *, delimiter: str = ",") -> Source:
    """Look at a file: its format, its header, and (CSV) whether every line has as many fields as the header.

    Raises TableError with the reason where the file is no table. Reads a CSV file once, without keeping it.
    """
    path = Path(path)
    delimiter = {r"\t": "\t", "tab": "\t"}.get(delimiter, delimiter)
    if len(delimiter) != 1 or not delimiter.isascii() or delimiter in '"\r\n' + _LINE_SEPARATOR:
        raise TableError(f"delimiter {delimiter!r} is not one ASCII character such as ',' ';' '|', or the word tab")
    head = _head(path)
    if head.startswith(b"PAR1"):
        return Source(path, parquet=True, compressed=False, delimiter=delimiter, names=_parquet_names(path))
    compressed = head.startswith(b"\x1f\x8b")
    if compressed:
        with _reporting_damage(path), gzip.open(path) as stream:
            head = stream.read(4096)
    _refuse_foreign(path, head)
    with _reporting_damage(path), _text(path, compressed=compressed) as text:
        records = csv.reader(text, delimiter=delimiter)
        header = next((record for record in records if record), [])
    source = Source(path, parquet=False, compressed=compressed, delimiter=delimiter, names=[n.strip() for n in header])
    _check_header(source)
    _check_lines(source)
    return source


def scan(source: Source, names: Sequence[str], words: Words = NO_WORDS) -> pl.LazyFrame:
    """The named columns, lazily. Text is stripped, null where missing; other types of Parquet are as stored.

    words: by column, those that are values there, though elsewhere they stand for missing ones.
    """
    lazy = _as_it_stands(source)
    types = lazy.collect_schema()
    return lazy.select(_cleaned(name, types[name], words) for name in names)


def _as_it_stands(source: Source) -> pl.LazyFrame:
    """All columns as they stand in the file."""
    if source.parquet:
        return pl.scan_parquet(source.path, glob=False)
    return _scan_csv(source.path, source.delimiter, source.names)


def _cleaned(name: str, kind: pl.DataType, words: Words) -> pl.Expr:
    missing = MISSING.difference(words.get(name, ()))
    if kind == pl.String:
        text = pl.col(name).str.strip_chars()
        return pl.when(~text.is_in(missing)).then(text).alias(name)
    if isinstance(kind, pl.Categorical | pl.Enum):
        return pl.when(~pl.col(name).cast(pl.String).str.strip_chars().is_in(missing)).then(pl.col(name)).alias(name)
    return pl.col(name)


def collect(lazy: pl.LazyFrame, source: Source) -> pl.DataFrame:
    """Run a query over `scan(source, ...)`; what goes wrong there is told as a problem of the file."""
    try:
        return lazy.collect(engine="streaming")
    except _UNREADABLE as error:
        raise _unreadable(source, error) from error


def _scan_csv(path: Path, delimiter: str, names: list[str] | None) -> pl.LazyFrame:
    return pl.scan_csv(path, separator=delimiter, new_columns=names, infer_schema=False, glob=False)


def _head(path: Path) -> bytes:
    if path.is_dir():
        raise TableError(f"{path} is a folder; {_EXPECTED}")
    try:
        with path.open("rb") as stream:
            head = stream.read(4096)
    except FileNotFoundError:
        folder = path.parent
        names = [other.name for other in folder.iterdir()] if folder.is_dir() else []
        near = difflib.get_close_matches(path.name, names, n=3)
        hint = f"; the nearest names are {', '.join(map(repr, near))}" if near else ""
        raise TableError(f"there is no file {str(path)!r}{hint}") from None
    except OSError as error:
        raise TableError(f"{path} cannot be read: {error.strerror}") from error
    if not head:
        raise TableError(f"{path.name} is empty")
    if path.suffix.lower() in (".parquet", ".pq") and not head.startswith(b"PAR1"):
        raise TableError(f"{path.name} is not a Parquet file, whatever its name says: it does not start with PAR1")
    return head


def _parquet_names(path: Path) -> list[str]:
    with path.open("rb") as stream:
        stream.seek(-4, 2)
        tail = stream.read()
    if tail == b"PARE":
        raise TableError(f"{path.name} is an encrypted Parquet file; write it without encryption")
    if tail != b"PAR1" or path.stat().st_size < 12:
        raise TableError(f"{path.name} is a truncated Parquet file: its end is missing; copy or write it again")
    try:
        names = pl.scan_parquet(path, glob=False).collect_schema().names()
    except _UNREADABLE as error:
        raise _bad_parquet(path.name, error) from error
    _refuse_patterns(path.name, names)
    return names


def _refuse_patterns(file: str, names: Sequence[str]) -> None:
    """Names that polars takes for those of several columns."""
    for name in names:
        if name == "*" or (name.startswith("^") and name.endswith("$")):
            raise TableError(f"{file} has a column {name!r}, which stands for several columns in queries; rename it")


def _refuse_foreign(path: Path, head: bytes) -> None:
    text = head.removeprefix(codecs.BOM_UTF8)
    found = next((what for magic, what in _FOREIGN.items() if head.startswith(magic)), None)
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise TableError(f"{path.name} is UTF-16 text; write it as UTF-8 (in Excel: 'CSV UTF-8')")
    if text.lstrip().startswith(b"<"):
        found = "an HTML or XML page"
    elif _JSON.match(text):
        found = "JSON"
    if found is None and b"\x00" in head:
        found = "a binary file"
    if found is not None:
        raise TableError(f"{path.name} is {found}; {_EXPECTED}, so export it as one")
    if not text.strip():
        raise TableError(f"{path.name} is empty: it holds nothing but blanks")
    if b"\r" in text and b"\n" not in text:
        raise TableError(f"{path.name} ends its lines with a bare carriage return; write it with line feeds")


def _check_header(source: Source) -> None:
    name, names = source.path.name, source.names
    if len(names) < 2:
        seen = [delimiter for delimiter in _DELIMITERS if any(delimiter in column for column in names)]
        if seen:
            raise TableError(
                f"{name} has one column with the delimiter {source.delimiter!r}, and its header holds {seen[0]!r}: "
                f"read it with --delimiter {_DELIMITERS[seen[0]]}"
            )
    if "" in names[1:]:
        raise TableError(f"column {names.index('', 1) + 1} of {name} has no name; name it (is the header the first line?)")
    _refuse_patterns(name, names)
    twice = [column for i, column in enumerate(names) if column in names[:i]]
    if twice:
        raise TableError(
            f"{name} has more than one column {twice[0]!r}; rename one of them, or add the header line if that was data"
        )


def _check_lines(source: Source) -> None:
    """Polars fills a short line with nulls, and a long one too where it can: neither may pass for data.

    One vectorised pass counts the delimiters of each line. Where a count is off or a quote may hide a delimiter or a
    line break, the file is read again record by record.
    """
    lines = pl.scan_csv(
        source.path,
        has_header=False,
        separator=_LINE_SEPARATOR,
        quote_char=None,
        new_columns=["line"],
        infer_schema=False,
        glob=False,
    )
    line = pl.col("line")
    fields = line.str.count_matches(source.delimiter, literal=True) + 1
    odd = (line.str.len_bytes() > 0) & ((fields != len(source.names)) | line.str.contains('"', literal=True))
    try:
        suspicious = bool(lines.select(odd.any()).collect(engine="streaming").item())
    except _UNREADABLE:
        suspicious = True
    if suspicious:
        _check_records(source)


def _check_records(source: Source) -> None:
    """Read every record of a CSV file in plain Python and raise TableError for the first that is wrong."""
    name, width = source.path.name, len(source.names)
    with _reporting_damage(source.path), _text(source.path, compressed=source.compressed) as text:
        records = csv.reader(text, delimiter=source.delimiter, strict=True)
        for record in records:
            if record and len(record) != width:
                raise TableError(
                    f"line {records.line_num} of {name} has {len(record)} fields where the header has {width}; "
                    f"quote values that hold {source.delimiter!r}, or complete the line"
                )


def _text(path: Path, *, compressed: bool) -> TextIOBase:
    opener = gzip.open if compressed else open
    return cast("TextIOBase", opener(path, "rt", encoding="utf-8-sig", newline=""))


@contextmanager
def _reporting_damage(path: Path) -> Iterator[None]:
    """Turn what Python's readers raise about a broken text file into the sentence for it."""
    try:
        yield
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise TableError(
            f"{path.name} is not UTF-8 text: it holds the byte 0x{byte:02x}; convert it, for example with "
            "iconv -f latin1 -t utf-8"
        ) from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise TableError(f"{path.name} is a truncated or damaged gzip file; copy or compress it again") from error
    except csv.Error as error:
        raise TableError(f"{path.name} is not good CSV: a quote is misplaced or never closed") from error


def _bad_parquet(file: str, error: BaseException) -> TableError:
    reason = " ".join(str(error).split())[:_REASON_CHARACTERS]
    return TableError(
        f"{file} is a damaged Parquet file, or holds what is not read here ({reason}); copy it again, or write it with plain "
        "types and times in UTC"
    )


def _unreadable(source: Source, error: BaseException) -> TableError:
    """The error for a file that polars could not read, with the reason where there is one that can be found."""
    if source.parquet:
        return _bad_parquet(source.path.name, error)
    try:
        _check_records(source)
    except TableError as error:
        return error
    return TableError(f"{source.path.name} could not be read as CSV; check its quotes and line ends")
