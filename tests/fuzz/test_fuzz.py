"""Mutated files, a few of each kind; `make soak` goes on for as long as it is told.

Files that once were not refused properly are kept in `found/KIND/`, and are read here too.
"""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.mutations import mutants
from tests.fuzz.targets import Target, all_targets, check_bytes

FOUND = Path(__file__).parent / "found"
EXAMPLES = {"images": 150, "configurations": 15, "tokenizers": 15}
"""Mutations of each kind; model folders and checkpoints are slow."""
FEW, MANY = 6, 40


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Target]:
    return all_targets(tmp_path_factory.mktemp("fuzz"))


def names() -> list[str]:
    annotations = [f"annotations captions.{each}" for each in ("json", "csv", "jsonl", "txt")]
    models = [f"model {each}" for each in ("config.json", "tokenizer.json", "model.safetensors")]
    files = ["checkpoints", "checkpoint pickles", "journals", "traces", "trace descriptions", "features"]
    return [
        *("images", *annotations, "annotations dataset.json", "configurations", *models, "tokenizers", *files),
        *("candidates", "references", "shards", "shard indexes"),
    ]


def test_every_target_is_named(targets: dict[str, Target]) -> None:
    assert set(names()) == set(targets)
    assert {each.name for each in FOUND.iterdir()} <= set(targets)


@pytest.mark.parametrize("name", names())
def test_valid_files_pass(targets: dict[str, Target], name: str) -> None:
    for seed in targets[name].seeds:
        targets[name].use(seed)


@pytest.mark.parametrize("name", names())
def test_mutated_files_are_read_or_refused(targets: dict[str, Target], name: str) -> None:
    target = targets[name]
    for found in sorted((FOUND / name).glob("*")):
        check_bytes(target, found.read_bytes())
    count = EXAMPLES.get(name, FEW if name.startswith(("model", "checkpoint")) else MANY)

    @settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def check(data: st.DataObject) -> None:
        check_bytes(target, data.draw(mutants(target.seeds)))

    check()
