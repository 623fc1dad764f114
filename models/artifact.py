"""The single-file model: write, read, verify. Knows the ONNX container, not the operators; needs neither torch nor onnx.

A model file is an ONNX `ModelProto` whose `metadata_props` hold the manifest (`errorbar.manifest`) and the SHA-256 of the
whole file (`errorbar.sha256`), taken with the 64 characters of the digest itself read as zeros.
"""

import hashlib
import json
import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from pydantic import ValidationError

from models.manifest import SCHEMA_VERSION, Golden, Manifest

OUTPUTS = ("mean", "std", "epistemic_std", "aleatoric_std", "location", "scale", "lower", "upper")
"""What every model answers. `location` and `scale` are mean and std of the *transformed* target: an interval is the
inverse transform of `location + factor * scale`; where the transform is the identity they equal `mean` and `std`."""

MOST_BYTES = 2**31 - 1
"""The limit of a protobuf message."""
RUN_ROWS = 1024
"""Rows of one run, so few that the layers' values stay in the CPU's cache. 221 000 rows through the default network on two
cores took 9.1 s and 3 890 MiB by 65 536 rows, 2.7 s and 654 MiB by 8192, 2.3 s and 255 MiB by 1024."""
MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
"""Must match a model's whole name: safe as a folder's name, in a URL, and as the label of a metric."""
MODEL_VERSION = re.compile(r"[1-9][0-9]{0,17}")
"""Must match the whole name of a version's folder."""
MODEL_FILE = "model.onnx"
"""In a version's folder."""
LABELS_FILE = "labels.json"
"""Beside a model's versions."""

Arrays = dict[str, NDArray[Any]]
Run = Callable[[NDArray[np.float64], NDArray[np.float64]], Arrays]
"""`run(x, coverage)` -> output name -> array."""

_GOLDEN_TOLERANCE = 1e-3
"""Float32 networks differ between machines and devices by about 1e-6 of the std of a row; a wrong weight or column moves an
answer by far more than this."""
_MANIFEST = b"errorbar.manifest"
_SHA256 = b"errorbar.sha256"
_BLANK_DIGEST = b"0" * 64
_GRAPH_FIELD, _METADATA_FIELD = 7, 14
_WIRE_VARINT, _WIRE_FIXED64, _WIRE_BYTES, _WIRE_FIXED32 = 0, 1, 2, 5


class ArtifactError(ValueError):
    """A model file that cannot be used, with the reason in one sentence."""


def write_model(graph: bytes, manifest: Manifest, path: Path) -> str:
    """Write the ONNX model `graph` with its manifest to `path`, whole or not at all; returns the file's SHA-256 digest.

    Metadata that `graph` already holds under errorbar's keys is replaced, all else is kept. The digest is that of
    `errorbar.sha256`: of the file with the digest itself read as zeros.
    """
    kept = b"".join(
        graph[start:end]
        for field, start, value, end in _fields(graph, where=str(path))
        if field != _METADATA_FIELD or _metadata_entry(graph[value:end])[0] not in (_MANIFEST, _SHA256)
    )
    body = kept + _encoded_entry(_MANIFEST, manifest.model_dump_json().encode())
    digest = hashlib.sha256(body + _encoded_entry(_SHA256, _BLANK_DIGEST)).hexdigest()
    write_atomically(body + _encoded_entry(_SHA256, digest.encode()), path)
    return digest


def read_manifest(path: Path | str) -> Manifest:
    """The manifest of a model file. Raises ArtifactError as `read_model` does."""
    return read_model(path)[1]


def read_model(path: Path | str) -> tuple[bytes, Manifest]:
    """The bytes of a model file (an ONNX model that any runtime takes) and its manifest.

    Raises ArtifactError for a file that is missing, truncated, changed since it was written, not written by errorbar, or
    written by a newer errorbar.
    """
    path = Path(path)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) and not path.is_dir():
            raise ArtifactError(f"{path}: is no regular file")
        if status.st_size > MOST_BYTES:
            raise ArtifactError(f"{path}: is larger than {MOST_BYTES} bytes, the most that an ONNX file can have")
        data = path.read_bytes()
    except OSError as error:
        raise ArtifactError(f"{path}: cannot be read ({error.strerror})") from error
    entries: dict[bytes, tuple[int, int]] = {}  # key -> where its value lies in the file
    for field, _, value, end in _fields(data, where=str(path)):
        if field == _METADATA_FIELD:
            key, text = _metadata_entry(data[value:end])
            entries[key] = (end - len(text), end)
    if _MANIFEST not in entries:
        raise ArtifactError(f"{path}: is an ONNX file that errorbar did not write (its metadata has no {_MANIFEST.decode()})")
    start, end = entries.get(_SHA256, (0, 0))
    written = data[start:end]
    actual = hashlib.sha256(data[:start] + _BLANK_DIGEST + data[end:]).hexdigest()
    if actual != written.decode("ascii", "replace"):
        raise ArtifactError(f"{path}: was changed after it was written (its SHA-256 does not match); publish it again")
    return data, _parse_manifest(data[slice(*entries[_MANIFEST])], where=str(path))


def digest_of(data: bytes) -> str:
    """The SHA-256 digest that stands in the bytes of a model file which `read_model` has accepted."""
    return data[-64:].decode("ascii")


def cpu_session(graph: bytes, *, threads: int = 0) -> onnxruntime.InferenceSession:
    """An ONNX Runtime session on the CPU; `threads` 0 lets ONNX Runtime choose."""
    return onnxruntime.InferenceSession(graph, session_options(threads=threads), providers=["CPUExecutionProvider"])


def session_options(*, threads: int) -> onnxruntime.SessionOptions:
    """How every session runs, whatever its device."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # spinning starves the neighbours
    # A model file has no data outside of it, which its digest would not cover: such data is looked for where nothing can be
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", "/dev/null/none")
    return options


def open_model(path: Path | str, *, threads: int = 0) -> tuple[Run, Manifest]:
    """A verified model on the CPU: a function from (x, coverage) to all outputs, and the manifest.

    Raises ArtifactError where the file cannot be read or does not repeat its golden rows.
    """
    data, manifest = read_model(path)
    try:
        session = cpu_session(data, threads=threads)
    except Exception as error:  # ONNX Runtime's exceptions have no public base class
        raise ArtifactError(f"{path}: ONNX Runtime cannot load it ({error})") from error
    run = session_run(session)
    check_golden(manifest, run, where=str(path))
    return run, manifest


def session_run(session: onnxruntime.InferenceSession) -> Run:
    """`session` as a function from (x, coverage) to all outputs by name; it takes RUN_ROWS rows of x at a time."""
    names = [output.name for output in session.get_outputs()]

    def run(x: NDArray[np.float64], coverage: NDArray[np.float64]) -> Arrays:
        firsts = range(0, max(len(x), 1), RUN_ROWS)
        parts = [session.run(names, {"x": x[first : first + RUN_ROWS], "coverage": coverage}) for first in firsts]
        return {name: np.concatenate(arrays) for name, *arrays in zip(names, *parts, strict=True)}

    return run


def write_atomically(data: bytes, path: Path) -> None:
    """Write a file, whole or not at all: beside its place, flushed to disk, then renamed over it, whose permissions it gets."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o644
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(mode)  # mkstemp makes it private; a service under another user must read it
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """Write a folder's entries to disk: what was renamed in it survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def golden_rows(run: Run, x: NDArray[np.float64], coverage: list[float]) -> Golden:
    """The answers of `run` on a few rows, to stand in the manifest.

    x: [n, features]. coverage: values that every calibration group supports.
    Raises ArtifactError where an answer is not finite.
    """
    answers = run(x, np.array(coverage, dtype=np.float64))
    endless = [name for name in OUTPUTS if not np.isfinite(answers[name]).all()]
    if endless:  # JSON would turn it into null, and no reader would accept the file
        at = ", ".join(map(str, coverage))
        raise ArtifactError(
            f"{', '.join(endless)} of typical rows is not finite at coverage {at}: the model's numbers run out of range; "
            "a log-transformed target may need more rows or another transform"
        )
    return Golden(
        x=[[None if np.isnan(value) else float(value) for value in row] for row in x],
        coverage=coverage,
        outputs={name: answers[name].tolist() for name in OUTPUTS},
        tolerance=_GOLDEN_TOLERANCE,
    )


def check_golden(manifest: Manifest, run: Run, *, where: str) -> None:
    """Raise ArtifactError unless `run` repeats the golden rows of the manifest within their tolerance."""
    golden = manifest.golden
    try:
        x = np.array(golden.x, dtype=np.float64).reshape(-1, len(manifest.columns))  # None becomes NaN
        answers = run(x, np.array(golden.coverage, dtype=np.float64))
    except Exception as error:
        raise ArtifactError(f"{where}: cannot answer its own golden rows ({error})") from error
    missing = [name for name in OUTPUTS if name not in answers or name not in golden.outputs]
    if missing:
        raise ArtifactError(f"{where}: has no output {', '.join(missing)}")
    std = np.array(golden.outputs["std"], dtype=np.float64)
    for name in OUTPUTS:
        expected, actual = np.array(golden.outputs[name], dtype=np.float64), answers[name].astype(np.float64)
        if expected.shape != actual.shape:
            raise ArtifactError(f"{where}: output {name} of the golden rows has shape {actual.shape}, not {expected.shape}")
        unit = np.array(golden.outputs["scale"], dtype=np.float64) if name in ("location", "scale") else std
        unit = unit.reshape(unit.shape + (1,) * (expected.ndim - unit.ndim))
        difference = np.abs(actual - expected) / unit
        if not np.all(difference <= golden.tolerance):
            raise ArtifactError(
                f"{where}: output {name} of the golden rows is off by {np.max(difference):.3g} of its std "
                f"(at most {golden.tolerance:g} is allowed): this machine does not compute what was trained"
            )


def _parse_manifest(text: bytes, *, where: str) -> Manifest:
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        version = _schema_version(text)
        if isinstance(version, int) and version > SCHEMA_VERSION:
            raise ArtifactError(
                f"{where}: has manifest schema {version}; this errorbar reads up to {SCHEMA_VERSION}: install a newer errorbar"
            ) from error
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "manifest"
        if first["type"] == "extra_forbidden":
            raise ArtifactError(
                f"{where}: its manifest holds {place}, which this errorbar does not know: a newer one wrote it; install that"
            ) from error
        raise ArtifactError(f"{where}: has an invalid manifest ({place}: {first['msg']})") from error


def _schema_version(text: bytes) -> object:
    try:
        return json.loads(text).get("schema_version")
    except (ValueError, AttributeError):
        return None


def _fields(data: bytes, *, where: str) -> Iterator[tuple[int, int, int, int]]:
    """The top-level protobuf fields: (number, start of the field, start of its value, end)."""
    position, seen_graph = 0, False
    while position < len(data):
        start = position
        try:
            key, position = _varint(data, position)
            wire, number = key & 7, key >> 3
            if number == 0:  # protobuf has no such field; without this, zeros would be read byte by byte to their end
                raise ArtifactError(f"{where}: is not an ONNX file")
            if wire == _WIRE_BYTES:
                length, value = _varint(data, position)
                position = value + length
            elif wire in (_WIRE_FIXED64, _WIRE_FIXED32):
                value, position = position, position + (8 if wire == _WIRE_FIXED64 else 4)
            elif wire == _WIRE_VARINT:
                value = position
                position = _varint(data, position)[1]
            else:
                raise ArtifactError(f"{where}: is not an ONNX file")
        except IndexError:
            position = len(data) + 1
            number = 0
        seen_graph = seen_graph or number == _GRAPH_FIELD
        if position > len(data):
            if seen_graph:
                raise ArtifactError(f"{where}: is truncated (it ends after {len(data)} bytes, inside the model); copy it again")
            raise ArtifactError(f"{where}: is not an ONNX file")
        yield number, start, value, position
    if not seen_graph:
        raise ArtifactError(f"{where}: is not an ONNX file" if data else f"{where}: is empty")


def _varint(data: bytes, position: int) -> tuple[int, int]:
    result = shift = 0
    while True:
        byte = data[position]
        result |= (byte & 0x7F) << shift
        position += 1
        if byte < 0x80:
            return result, position
        shift += 7
        if shift > 63:
            raise IndexError


def _metadata_entry(entry: bytes) -> tuple[bytes, bytes]:
    """Key and value of one StringStringEntryProto."""
    parts = {number: entry[value:end] for number, value, end in _entry_fields(entry)}
    return parts.get(1, b""), parts.get(2, b"")


def _entry_fields(entry: bytes) -> Iterator[tuple[int, int, int]]:
    position = 0
    try:
        while position < len(entry):
            key, position = _varint(entry, position)
            length, position = _varint(entry, position)
            yield key >> 3, position, position + length
            position += length
    except IndexError:
        return


def _encoded_entry(key: bytes, value: bytes) -> bytes:
    entry = b"\x0a" + _encoded_varint(len(key)) + key + b"\x12" + _encoded_varint(len(value)) + value
    return _encoded_varint(_METADATA_FIELD << 3 | _WIRE_BYTES) + _encoded_varint(len(entry)) + entry


def _encoded_varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
