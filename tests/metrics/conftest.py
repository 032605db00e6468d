"""Captions with the official tool's scores: a few in the repository, more in the shared data."""

import gzip
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from captioner.metrics.metric import Captions

GOLDEN = Path(__file__).parent / "golden"


@dataclass(frozen=True)
class Official:
    """A set of captions and what the official tool made of it; images in the candidates' order."""

    candidates: dict[str, str]
    references: dict[str, list[str]]
    tokenized_candidates: list[str]
    tokenized_references: list[list[str]]
    corpus: dict[str, float]
    per_image: dict[str, np.ndarray[Any, Any]]

    @property
    def captions(self) -> Captions:
        return Captions(self.tokenized_candidates, self.tokenized_references)


def read_official(name: str) -> Official:
    data = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    images = list(data["candidates"])
    return Official(
        data["candidates"],
        data["references"],
        [data["tokenized"]["candidates"][image] for image in images],
        [data["tokenized"]["references"][image] for image in images],
        data["corpus"],
        {name: np.array([data["per_image"][image][name] for image in images]) for name in data["corpus"]},
    )


@pytest.fixture(params=sorted(path.stem for path in GOLDEN.glob("*.json")))
def official(request: pytest.FixtureRequest) -> Official:
    return read_official(request.param)


@pytest.fixture(scope="session")
def load_shared(shared: Path) -> Callable[[str], Any]:
    """A JSON file of the shared metric fixtures, which may be packed."""

    def load(name: str) -> Any:
        path = shared / "data" / "metric_fixtures" / name
        packed = path.with_name(f"{path.name}.gz")
        if packed.exists():
            return json.loads(gzip.decompress(packed.read_bytes()))
        return json.loads(path.read_text(encoding="utf-8"))

    return load
