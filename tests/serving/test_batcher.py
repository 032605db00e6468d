"""Batches: who is captioned together, and what ends a search."""

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from captioner.errors import ConfigError, ResourceError
from captioner.photo import Photo
from captioner.pipeline import Captioner
from captioner.serving.batcher import Batcher
from captioner.serving.options import CaptionQuery
from tests.serving.conftest import SLOW, photo

BEAM, GREEDY, SLOWLY = CaptionQuery(), CaptionQuery(search="greedy"), CaptionQuery(**SLOW)


class Scene:
    """A batcher whose batches are noted."""

    def __init__(self, captioner: Captioner, batch_size: int | None = None) -> None:
        self.batches: list[int] = []
        self.batcher = Batcher(captioner, batch_size, self.batches.append)

    async def gather(self, photos: list[Photo], queries: list[CaptionQuery]) -> list[Any]:
        pairs = zip(photos, queries, strict=True)
        return await asyncio.gather(*(self.batcher.caption(*pair) for pair in pairs), return_exceptions=True)


@pytest.fixture(scope="module")
def photos(captioner: Captioner) -> list[Photo]:
    return [captioner.prepare(photo(number)) for number in range(6)]


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 60))


def test_photos_of_equal_queries_are_captioned_together(captioner: Captioner, photos: list[Photo]) -> None:
    async def work() -> None:
        scene = Scene(captioner)
        queries = [BEAM, GREEDY, BEAM, GREEDY, BEAM, CaptionQuery(search="greedy")]
        found = await scene.gather(photos, queries)
        await scene.batcher.close()
        assert scene.batches == [3, 3]
        for query in (BEAM, GREEDY):
            chosen = [place for place, each in enumerate(queries) if each == query]
            search = query.search_options().strategy()
            assert [found[place] for place in chosen] == captioner.caption_photos(
                [photos[place] for place in chosen], search=search
            )

    run(work())


def test_a_batch_has_a_largest_size(captioner: Captioner, photos: list[Photo]) -> None:
    async def work() -> None:
        scene = Scene(captioner, 4)
        found = await scene.gather(photos, [BEAM] * 6)
        await scene.batcher.close()
        assert scene.batches == [4, 2]
        assert [each.text for each in found] == [each.text for each in captioner.caption_photos(photos)]

    run(work())


def test_those_who_left_are_not_captioned(captioner: Captioner, photos: list[Photo]) -> None:
    async def work() -> None:
        scene = Scene(captioner)
        tasks = [asyncio.create_task(scene.batcher.caption(each, BEAM)) for each in photos]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        found = [await task for task in tasks[1::2]]
        await scene.batcher.close()
        assert scene.batches == [3]
        assert found == captioner.caption_photos(photos[1::2])

    run(work())


def test_a_search_goes_on_while_one_of_its_batch_waits_and_stops_afterwards(
    captioner: Captioner, photos: list[Photo]
) -> None:
    async def seconds(work: Coroutine[Any, Any, Any]) -> float:
        start = asyncio.get_running_loop().time()
        await work
        return asyncio.get_running_loop().time() - start

    async def work() -> None:
        scene = Scene(captioner)
        tasks = [asyncio.create_task(scene.batcher.caption(each, SLOWLY)) for each in photos[:2]]
        while not scene.batches:
            await asyncio.sleep(0.001)
        tasks[0].cancel()
        whole = await seconds(tasks[1])
        [alone] = captioner.caption_photos(photos[1:2], search=SLOWLY.search_options().strategy())
        assert tasks[1].result().text == alone.text
        task = asyncio.create_task(scene.batcher.caption(photos[0], SLOWLY))
        while len(scene.batches) < 2:
            await asyncio.sleep(0.001)
        task.cancel()
        assert await seconds(scene.batcher.run(lambda: None)) < whole / 3
        await scene.batcher.close()

    run(work())


def test_options_that_do_not_fit_the_model_end_their_requests_alone(captioner: Captioner, photos: list[Photo]) -> None:
    async def work() -> None:
        scene = Scene(captioner)
        wrong = CaptionQuery(prefix="unheardof")
        found = await scene.gather(photos, [BEAM, wrong] * 3)
        await scene.batcher.close()
        assert all(isinstance(each, ConfigError) for each in found[1::2])
        assert found[::2] == captioner.caption_photos(photos[::2])

    run(work())


class Cramped(Captioner):
    """Memory for two photos, or for none of those that are to be described greedily."""

    def caption_photos(self, photos: Any, **options: Any) -> Any:
        if len(photos) > 2 or type(options["search"]).__name__ == "Greedy":
            raise MemoryError
        return super().caption_photos(photos, **options)


def test_a_batch_that_runs_out_of_memory_is_repeated_in_halves(captioner: Captioner, photos: list[Photo]) -> None:
    async def work() -> None:
        scene = Scene(Cramped(captioner.model, captioner.tokenizer, name="tiny"))
        found = await scene.gather(photos, [BEAM] * 6)
        [failed] = await scene.gather(photos[:1], [GREEDY])
        await scene.batcher.close()
        assert scene.batches == [6, 3, 1, 1, 1, 1, 1, 1, 1]
        assert [each.text for each in found] == [each.text for each in captioner.caption_photos(photos)]
        assert isinstance(failed, ResourceError)

    run(work())
