"""What is told about an input: one record, spelled in each format."""

import csv
import io
import json
import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from captioner.errors import ImageError
from captioner.text import printable

if TYPE_CHECKING:
    from captioner.pipeline import Caption, Captioned

COLUMNS = ("path", "caption", "log_prob", "confidence", "width", "height", "sha256", "model", "notes", "error")
"""Of CSV: a row a caption, or one with `error` (a stable code) for a failed input."""
LOW_CONFIDENCE = "low_confidence"
DIGITS = 4
"""Beyond them log-probabilities differ with the shape of the batch."""


@dataclass(frozen=True, kw_only=True)
class Speller:
    """Spells outcomes in a format; "" is nothing to tell. Each text that is not empty ends with a line's end."""

    format: str
    model: str
    prepend: str = ""
    """Put before captions, but not into the `captions` of JSONL, which are the model's own."""
    min_confidence: float = 0.0
    """A less probable caption is left out; JSONL keeps it with a note."""
    alone: bool = False
    """Whether there is one input only, whose captions `text` prints without the path."""

    def header(self) -> str:
        """What a file begins with."""
        return _csv_row(COLUMNS) if self.format == "csv" else ""

    def spell(self, path: str, outcome: "Captioned | ImageError") -> str:
        """The outcome for one input, ready for UTF-8: bytes of a path that are no text are escaped as in JSON."""
        if self.format == "jsonl":
            text = json.dumps(self.record(path, outcome), ensure_ascii=False) + "\n"
        elif self.format == "csv":
            text = "".join(map(_csv_row, self._rows(path, outcome)))
        elif isinstance(outcome, ImageError):
            text = ""
        elif self.format == "coco":
            # COCO's evaluation takes one caption an image: the best.
            texts = self._texts(outcome)[:1] if self._is_sure(outcome.caption) else []
            text = "".join(f"{json.dumps(coco_entry(path, each), ensure_ascii=False)}\n" for each in texts)
        else:
            label = "" if self.alone or self.format == "sidecar" else f"{printable(path)}\t"
            text = "".join(f"{label}{each}\n" for each in self._texts(outcome))
        return text.encode("utf-8", "backslashreplace").decode()

    def record(self, path: str, outcome: "Captioned | ImageError") -> dict[str, Any]:
        """The record of JSONL."""
        if isinstance(outcome, ImageError):
            return {"path": path, "error": {"code": outcome.code, "message": str(outcome)}}
        caption = outcome.caption
        return {
            "path": path,
            "sha256": outcome.sha256,
            "caption": self.prepend + caption.text,
            "log_prob": round(caption.log_prob, DIGITS),
            "confidence": round(caption.confidence, DIGITS),
            "captions": [_alternative(each) for each in (caption, *caption.alternatives)],
            "width": outcome.width,
            "height": outcome.height,
            "model": self.model,
            "notes": [*outcome.notes, *([] if self._is_sure(caption) else [LOW_CONFIDENCE])],
        }

    def _is_sure(self, caption: "Caption") -> bool:
        return caption.confidence >= self.min_confidence

    def _sure(self, outcome: "Captioned") -> list["Caption"]:
        captions = (outcome.caption, *outcome.caption.alternatives)
        return [caption for caption in captions if self._is_sure(caption)]

    def _texts(self, outcome: "Captioned") -> list[str]:
        # A model that writes bytes may write a line's end, which would be a caption of its own here.
        return [" ".join((self.prepend + caption.text).splitlines()) for caption in self._sure(outcome)]

    def _rows(self, path: str, outcome: "Captioned | ImageError") -> list[tuple[object, ...]]:
        if isinstance(outcome, ImageError):
            return [(path, *[""] * (len(COLUMNS) - 2), outcome.code)]
        about = (outcome.width, outcome.height, outcome.sha256, self.model, " ".join(outcome.notes), "")
        return [
            (path, text, round(caption.log_prob, DIGITS), round(caption.confidence, DIGITS), *about)
            for text, caption in zip(self._texts(outcome), self._sure(outcome), strict=True)
        ]


def coco_id(path: str) -> int | str:
    """The id of an image in COCO's results: the number that ends the file's stem, else the stem."""
    stem = os.path.splitext(os.path.basename(path))[0]
    number = re.search(r"[0-9]+$", stem)
    return int(number[0]) if number else stem


def coco_entry(path: str, caption: str) -> dict[str, int | str]:
    """An entry of COCO's results."""
    return {"image_id": coco_id(path), "caption": caption}


def coco_document(entries: list[dict[str, Any]]) -> str:
    """COCO's results file, an entry a line."""
    lines = ",\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries)
    text = f"[\n{lines}\n]\n" if entries else "[]\n"
    return text.encode("utf-8", "backslashreplace").decode()


def _alternative(caption: "Caption") -> dict[str, Any]:
    words = [{"text": word.text, "log_prob": round(word.log_prob, DIGITS)} for word in caption.words]
    return {"text": caption.text, "log_prob": round(caption.log_prob, DIGITS), "words": words}


def _csv_row(values: tuple[object, ...]) -> str:
    line = io.StringIO()
    csv.writer(line).writerow(values)  # its default line end makes it quote carriage returns too
    return line.getvalue().removesuffix("\r\n") + "\n"
