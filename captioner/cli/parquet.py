"""The records of a run as an Apache Parquet file: a row for each input, as JSONL has it."""

import io
import json
from collections.abc import Iterable
from typing import Any

from captioner.data.tables import import_pyarrow


def parquet_document(records: Iterable[str]) -> bytes:
    """The file of records that are JSON; columns are the same whatever the records lack."""
    pyarrow, parquet = import_pyarrow()
    text, number, integer = pyarrow.string(), pyarrow.float64(), pyarrow.int64()
    word = pyarrow.struct({"text": text, "log_prob": number, "confidence": number})
    caption = pyarrow.struct({"text": text, "log_prob": number, "words": pyarrow.list_(word)})
    columns = {
        **{"path": text, "sha256": text, "caption": text, "log_prob": number, "confidence": number},
        **{"unfamiliarity": number, "captions": pyarrow.list_(caption), "width": integer, "height": integer},
        **{
            "model": text,
            "style": text,
            "notes": pyarrow.list_(text),
            "error": pyarrow.struct({"code": text, "message": text}),
        },
    }
    rows = [_without_surrogates(json.loads(record)) for record in records]
    stream = io.BytesIO()
    parquet.write_table(pyarrow.Table.from_pylist(rows, schema=pyarrow.schema(columns)), stream)
    return stream.getvalue()


def _without_surrogates(record: dict[str, Any]) -> dict[str, Any]:
    """The record with bytes of its path that are not text escaped."""
    return record | {"path": record["path"].encode("utf-8", "backslashreplace").decode()}
