"""Metrics of a run: metrics.csv with one row a step, and curves.png.

A resumed run replaces the rows of the steps that it repeats.
"""

import csv
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from PIL import Image, ImageDraw, ImageFont
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from captioner.files import write_whole
from captioner.training.durability import stepped

TABLE, PICTURE = "metrics.csv", "curves.png"
STEP = "step"
LINE_END = "\r\n"
PER_HEAD = "heads/"
"""Prefix of the columns of single heads, which are not drawn."""
COLUMNS, PANEL, MARGIN = 2, (420, 180), 64
COLORS = {"train": (140, 150, 165), "val": (190, 60, 90)}
INK, FRAME, PAPER = (27, 31, 36), (205, 210, 216), (255, 255, 255)

Row = dict[str, float]


class History(Callback):
    """Writes a row every `log_every_n_steps` steps of the trainer, and one after each validation."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: dict[int, Row] = {}

    def on_train_start(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        table = self.folder / TABLE
        if trainer.global_step and table.is_file():
            self.rows = {step: row for step, row in read_table(table).items() if step <= trainer.global_step}
        self._write(trainer)

    def on_train_batch_end(
        self, trainer: pl.Trainer, task: pl.LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        every = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and trainer.global_step % every == 0 and stepped(trainer, index):
            rate: float = trainer.optimizers[0].param_groups[0]["lr"]
            found = {name: float(value) for name, value in outputs.items() if name.startswith("train_")}
            self._add(trainer, {"epoch": trainer.current_epoch, "learning_rate": rate} | found)

    def on_validation_end(self, trainer: pl.Trainer, task: pl.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        found = {
            name: float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith(("val_", PER_HEAD)) and isinstance(value, Tensor)
        }
        self._add(trainer, {"epoch": trainer.current_epoch} | found)
        if trainer.is_global_zero:
            draw_curves(self.rows, self.folder / PICTURE)

    def _add(self, trainer: pl.Trainer, found: Row) -> None:
        step, columns = trainer.global_step, self._columns()
        known = step in self.rows
        self.rows.setdefault(step, {}).update(found)
        if known or columns != self._columns():
            self._write(trainer)
        elif trainer.is_global_zero:
            with suppress(PermissionError), (self.folder / TABLE).open("ab") as file:
                file.write(self._line(step, columns))

    def _columns(self) -> list[str]:
        return list(dict.fromkeys(name for row in self.rows.values() for name in row))

    def _line(self, step: int, columns: Sequence[str]) -> bytes:
        row = self.rows[step]
        values = ("" if name not in row else f"{row[name]:.7g}" for name in columns)
        return (",".join((str(step), *values)) + LINE_END).encode()

    def _write(self, trainer: pl.Trainer) -> None:
        """Write the whole table. If a spreadsheet holds it on Windows, the next write has all rows."""
        columns = self._columns()
        lines = [(",".join((STEP, *columns)) + LINE_END).encode(), *(self._line(step, columns) for step in self.rows)]
        if trainer.is_global_zero:
            with suppress(PermissionError):
                write_whole(self.folder / TABLE, b"".join(lines))


def read_table(path: Path) -> dict[int, Row]:
    """The rows of a metrics.csv by step; damaged lines are skipped."""
    rows = {}
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        for row in reader:
            with suppress(ValueError, TypeError):
                step = int(row.pop(STEP))
                rows[step] = {name: float(value) for name, value in row.items() if value}
    return rows


def draw_curves(rows: Mapping[int, Row], path: Path) -> None:
    """Draw one panel a metric over the steps: training in gray, validation in red."""
    curves: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for step, row in rows.items():
        for name, value in row.items():
            if name != "epoch" and not name.startswith(PER_HEAD) and math.isfinite(value):
                kind, _, quantity = name.partition("_") if name.startswith(("train_", "val_")) else ("train", "", name)
                curves.setdefault(quantity, {}).setdefault(kind, []).append((step, value))
    width, height = PANEL
    lines = max(1, -(-len(curves) // COLUMNS))
    sheet = Image.new("RGB", (COLUMNS * (width + MARGIN) + MARGIN, lines * (height + MARGIN) + MARGIN), PAPER)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    last = max(rows, default=1)
    for place, (quantity, kinds) in enumerate(curves.items()):
        left = MARGIN + place % COLUMNS * (width + MARGIN)
        top = MARGIN + place // COLUMNS * (height + MARGIN)
        values = [value for points in kinds.values() for _, value in points]
        low, high = min(values), max(values)
        room = (high - low) or 1.0
        draw.rectangle((left, top, left + width, top + height), outline=FRAME)
        which = " (gray: training, red: validation)" if len(kinds) > 1 else ""
        draw.text((left, top - 16), quantity.replace("_", " ") + which, INK, font)
        for value, y in ((high, top), (low, top + height - 14)):
            draw.text((left - 4, y), f"{value:.3g}", INK, font, anchor="ra")
        draw.text((left + width, top + height + 2), f"step {last}", INK, font, anchor="ra")
        for kind, points in kinds.items():
            line = [(left + width * step / last, top + height * (high - value) / room) for step, value in points]
            if len(line) > 1:
                draw.line(line, COLORS[kind], 2)
            else:
                draw.circle(line[0], 3, COLORS[kind])
    sheet.save(path)
