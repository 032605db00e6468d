"""Photos in Apache Parquet files, as Hugging Face's datasets and img2dataset store them (extra `parquet`)."""

import importlib
from collections.abc import Iterator
from typing import Any

from captioner.errors import AnnotationError, ResourceError
from captioner.files import Value
from captioner.text import first_line

NAMES = ("image", "img", "photo", "picture", "jpg", "jpeg", "png", "webp", "bytes", "content")
"""Names of columns with photos, the likeliest first; without one of these, the only column of bytes is taken."""
BYTES = "bytes"
"""The field of a struct that holds the file's bytes."""
ROWS, BUFFER = 16, 1 << 20
"""Rows, and bytes of a column, that are read at a time, as a group of rows may be large."""


def import_pyarrow() -> tuple[Any, Any]:
    """pyarrow and pyarrow.parquet. Raises ResourceError where they are not installed."""
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        raise ResourceError('Parquet files need pyarrow; pip install "captioner[parquet]"') from error


def photo_rows(path: str, *, read: bool = True) -> Iterator[Value]:
    """The photo of each row of a Parquet file, named FILE/ROW, from row 0; without `read`, all are empty.

    Raises AnnotationError if the file is not Parquet or no column holds photos, ResourceError without pyarrow.
    """
    pyarrow, parquet = import_pyarrow()
    try:
        with parquet.ParquetFile(path, pre_buffer=False, buffer_size=BUFFER) as file:
            column = _photo_column(pyarrow, file.schema_arrow, path)
            if not read:
                yield from (Value(b"", name=f"{path}/{row}") for row in range(file.metadata.num_rows))
                return
            row = 0
            for batch in file.iter_batches(ROWS, columns=[column]):
                for value in batch.column(0).to_pylist():
                    content = value.get(BYTES) if isinstance(value, dict) else value
                    yield Value(content or b"", name=f"{path}/{row}")
                    row += 1
    except (pyarrow.ArrowException, OSError) as error:
        raise AnnotationError(f"{path}: cannot be read as a Parquet file ({first_line(error)}); replace it") from error


def _photo_column(pyarrow: Any, schema: Any, path: str) -> str:
    """The name of the column with the photos' bytes."""

    def holds_bytes(kind: Any) -> bool:
        if pyarrow.types.is_struct(kind):
            return any(each.name == BYTES and holds_bytes(each.type) for each in kind)
        return bool(pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind))

    found = [field.name for field in schema if holds_bytes(field.type)]
    if named := [name for name in NAMES if name in found]:
        return named[0]
    if len(found) == 1:
        return str(found[0])
    raise AnnotationError(
        f"{path}: {'several columns hold' if found else 'no column holds'} bytes, and none is called "
        f"{', '.join(NAMES[:3])} or {NAMES[4]}; rename the column with the photos"
    )
