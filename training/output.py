"""Where a model file and its report go: looked at before a fit or a calibration, which would be lost."""

import tempfile
from pathlib import Path

from training.errors import OptionError


def check_output(output: Path, table: Path) -> None:
    """Raise OptionError where a model file and its report cannot be written to `output`, or would overwrite `table`."""
    report = output.with_suffix(".html")
    for path in (output, report):
        if path.is_dir():
            raise OptionError(f"--output {output}: {path} is a folder; name a file, such as {path / 'model.onnx'}")
        if path.resolve() == table.resolve():
            raise OptionError(f"--output {output}: would overwrite the table {table}")
    if output.suffix != ".onnx":
        raise OptionError(f"--output {output}: a model's name ends in .onnx; its report has the same name with .html")
    try:  # folders that are not there are made when there is something to write
        with tempfile.TemporaryFile(dir=next(folder for folder in output.resolve().parents if folder.exists())):
            pass
    except OSError as error:
        raise OptionError(f"--output {output}: cannot be written there ({error.strerror})") from error
