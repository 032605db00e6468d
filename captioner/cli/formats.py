"""The formats of `captioner caption`: each renders a result as text."""

import csv
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

from captioner.cli.finishing import UNCHANGED, Finishing
from captioner.cli.parquet import parquet_document
from captioner.data.tables import import_pyarrow
from captioner.errors import ImageError
from captioner.records import DIGITS, LOW_CONFIDENCE, caption_record
from captioner.text import printable

if TYPE_CHECKING:
    from captioner.caption import Captioned

COLUMNS = ("path", "caption", "log_prob", "confidence", "width", "height", "sha256", "model", "notes", "error")
"""Columns of CSV: a row for each caption, or one with `error` (a stable code) for a failed input."""


FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""Beginnings of cells that spreadsheets evaluate."""


FORMAT_OF_SUFFIX = {".csv": "csv", ".json": "coco", ".jsonl": "jsonl", ".parquet": "parquet"}
"""Suffix of an output -> its format, unless a format is named."""


class Row(NamedTuple):
    """A caption on one line, after the prepended text."""

    caption: str
    log_prob: float
    confidence: float


class Result(NamedTuple):
    """The record of an input, and its captions that reach the minimum confidence."""

    path: str
    record: dict[str, Any]
    rows: tuple[Row, ...] = ()

    @classmethod
    def of(
        cls,
        path: str,
        outcome: "Captioned | ImageError",
        model: str,
        prepend: str = "",
        min_confidence: float = 0.0,
        finishing: Finishing = UNCHANGED,
    ) -> "Result":
        """The result of an input; `caption_record` explains the options."""
        if isinstance(outcome, ImageError):
            return cls(path, caption_record(path, outcome, model=model))
        tags = finishing.tags_of(outcome.caption)
        outcome = replace(outcome, caption=finishing.kept(outcome.caption))
        record = caption_record(path, outcome, model=model, prepend=prepend, min_confidence=min_confidence)
        record["caption"] = prepend + finishing.finished(outcome.caption.text)
        captions = (outcome.caption, *outcome.caption.alternatives)
        texts = [(each, finishing.finished(each.text)) for each in captions]
        if finishing.tags:
            record["tags"] = [{"text": tag.text, "confidence": round(tag.confidence, DIGITS)} for tag in tags]
            texts = [(outcome.caption, finishing.joined(tags))] if tags else []
        rows = (
            # Byte-level models may write line ends, which would make two captions of one.
            Row(" ".join((prepend + text).splitlines()), round(each.log_prob, DIGITS), round(confidence, DIGITS))
            for each, text in texts
            if (confidence := each.confidence) >= min_confidence
        )
        return cls(path, record, tuple(rows))

    @property
    def failed(self) -> bool:
        return "error" in self.record


class Format(NamedTuple):
    """How results become a file: a header, then the text of each result."""

    name: str
    render: Callable[[Result], str]
    header: str = ""
    document: Callable[[Iterable[str]], bytes] | None = None
    """Writes the whole file of such texts at the end of the run."""


def output_format(named: str | None, output: str | None) -> str:
    """The format that was named, else that of the output's suffix, else `text`."""
    suffix = os.path.splitext(output or "")[1].lower()
    return named or FORMAT_OF_SUFFIX.get(suffix, "text")


def format_named(name: str, *, single: bool = False) -> Format:
    """The format; `single` leaves paths out of `text`, as for one input."""
    if name == "jsonl":
        return Format(name, render_jsonl)
    if name == "csv":
        return Format(name, render_csv, header=_csv_row(COLUMNS))
    if name == "coco":
        return Format(name, render_coco, document=lambda texts: encode(coco_document(texts)))
    if name == "parquet":
        import_pyarrow()  # rather now than at the end
        return Format(name, render_jsonl, document=parquet_document)
    return Format(name, render_captions if single or name == "sidecar" else render_text)


def render_jsonl(result: Result) -> str:
    return json.dumps(result.record, ensure_ascii=False) + "\n"


def render_captions(result: Result) -> str:
    return "".join(f"{row.caption}\n" for row in result.rows)


def render_text(result: Result) -> str:
    return "".join(f"{printable(result.path)}\t{row.caption}\n" for row in result.rows)


def render_csv(result: Result) -> str:
    record = result.record
    path = f"./{result.path}" if result.path.startswith(FORMULA) else result.path  # the same file
    if result.failed:
        return _csv_row((path, *[""] * (len(COLUMNS) - 2), record["error"]["code"]))
    notes = " ".join(note for note in record["notes"] if note != LOW_CONFIDENCE)
    about = (record["width"], record["height"], record["sha256"], record["model"], notes, "")
    return "".join(_csv_row((path, *row, *about)) for row in result.rows)


def render_coco(result: Result) -> str:
    """The entry of the best caption, as COCO's evaluation takes one per image, with the path for `coco_document`."""
    if not result.rows or LOW_CONFIDENCE in result.record["notes"]:
        return ""
    entry = {"image_id": coco_id(result.path), "caption": result.rows[0].caption, "input_path": result.path}
    return json.dumps(entry, ensure_ascii=False)


def coco_document(texts: Iterable[str]) -> str:
    """COCO's results file of rendered entries, and of entries of an older file, which have no path.

    Where two rendered entries have the same id, all of them get their paths below the folder that they share instead.
    """
    entries = [json.loads(text) for text in texts if text]
    rendered = [entry for entry in entries if "input_path" in entry]
    ids = relative_paths([entry.pop("input_path") for entry in rendered])
    if len({entry["image_id"] for entry in rendered}) < len(rendered):
        for entry, image_id in zip(rendered, ids, strict=True):
            entry["image_id"] = image_id
    lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries)
    return f"[\n{lines}\n]\n" if lines else "[]\n"


def relative_paths(paths: Sequence[str]) -> list[str]:
    """The paths below the folder that they share, written with `/`; as given if they share none."""
    try:
        shared = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])
        return [os.path.relpath(path, shared).replace(os.sep, "/") for path in paths]
    except ValueError:  # no paths, or several drives of Windows
        return [path.replace(os.sep, "/") for path in paths]


def coco_id(path: str) -> int | str:
    """The id of an image in COCO's results: the number that ends the file's stem, else the stem."""
    stem = os.path.splitext(os.path.basename(path))[0]
    number = re.search(r"[0-9]+$", stem)
    return int(number[0]) if number else stem


def encode(text: str) -> bytes:
    """UTF-8; bytes of a path that are not text are escaped as in JSON."""
    return text.encode("utf-8", "backslashreplace")


def _csv_row(values: Iterable[object]) -> str:
    line = io.StringIO()
    csv.writer(line).writerow(map(_plain_cell, values))  # its default line end makes it quote carriage returns too
    return line.getvalue().removesuffix("\r\n") + "\n"


def _plain_cell(value: object) -> object:
    """A text that spreadsheets do not take for a formula: they do where it begins as one."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value
