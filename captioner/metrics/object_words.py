"""The objects that captions name: their precision and recall against references, and CHAIR (Rohrbach et al. 2018).

N-gram metrics hardly notice an object that is not there; precision does. The words are those of `object_words.txt`,
which describes its format.

I images
"""

import functools
import importlib.resources
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Self

import numpy as np

from captioner.errors import ConfigError
from captioner.metrics.metric import Captions, Result
from captioner.metrics.significance import Statistics, ratios

_FOLDER = importlib.resources.files("captioner.metrics")

COCO_CATEGORIES = frozenset((_FOLDER / "coco_categories.txt").read_text(encoding="utf-8").splitlines())
"""The 80 categories of COCO's instances; each is a concept of the list."""

NOTHING = "nothing"
"""The concept of phrases that name no object."""


class Objects(NamedTuple):
    """The objects of captions."""

    named: list[str]
    """The concepts of unambiguous words, one a mention."""
    possible: set[str]
    """Those, and all that ambiguous words may mean."""


class Chair(NamedTuple):
    """CHAIR as fractions: the lower the better."""

    instances: float
    """CHAIR_i: mentions of objects that are not there, among all mentions; NaN where there are none."""
    sentences: float
    """CHAIR_s: captions that mention such an object, among all captions."""
    hallucinated: list[list[str]]
    """(I,) the concepts that each caption names though they are not there, one a mention."""


@dataclass(frozen=True)
class NounList:
    """Words and phrases with the concepts that they stand for."""

    named: Mapping[str, str]
    """Unambiguous word or phrase -> concept."""
    hinted: Mapping[str, frozenset[str]]
    """Word or phrase -> the concepts that it may stand for."""
    longest: Mapping[str, int]
    """First word -> the number of words of the longest phrase that begins with it."""

    @classmethod
    @functools.cache
    def bundled(cls) -> Self:
        """The list that comes with this package."""
        source = _FOLDER / "object_words.txt"
        return cls.parse(source.read_text(encoding="utf-8"), source.name)

    @classmethod
    def parse(cls, text: str, source: str) -> Self:
        """Read the format of `object_words.txt`. Raises ConfigError that names the wrong line."""
        words: list[tuple[str, str, int]] = []
        hinted: dict[str, set[str]] = defaultdict(set)
        concepts: dict[str, int] = {}
        for number, line in enumerate(text.splitlines(), start=1):
            if not line.strip() or line.startswith("#"):
                continue
            concept, colon, rest = (part.strip() for part in line.partition(":"))
            if not (concept and colon):
                raise ConfigError(f"{source}:{number}: {line.strip()}: no concept; write `concept: word, word`")
            concepts.setdefault(concept, number)
            for word in filter(None, map(str.strip, rest.split(","))):
                if word.endswith("?"):
                    hinted[word[:-1]].add(concept)
                else:
                    words.append((word, concept, number))
        named: dict[str, str] = {}
        for word, concept, number in (*words, *((name, name, number) for name, number in concepts.items())):
            if word == concept and (concept == NOTHING or concept in hinted.get(concept, ())):
                continue
            if named.setdefault(word, concept) != concept:
                raise ConfigError(f"{source}:{number}: {word} is a {named[word]} already; add a ? to one of them")
        longest: dict[str, int] = {}
        for phrase in (*named, *hinted):
            first, size = phrase.split(" ", 1)[0], phrase.count(" ") + 1
            longest[first] = max(size, longest.get(first, 0))
        return cls(named, {word: frozenset(concepts) for word, concepts in hinted.items()}, longest)

    def objects(self, captions: Iterable[str]) -> Objects:
        """The objects of tokenized captions; where several phrases fit, of the longest."""
        named: list[str] = []
        possible: set[str] = set()
        for caption in captions:
            for _, _, concept, hints in self.phrases(caption.split()):
                if concept:
                    named.append(concept)
                possible.update(hints)
        return Objects(named, possible.union(named))

    def phrases(self, words: Sequence[str]) -> Iterator[tuple[int, int, str | None, frozenset[str]]]:
        """The list's phrases in tokenized words: first word, one past the last, concept, other possible concepts."""
        place = 0
        while place < len(words):
            size = 1
            for length in range(min(self.longest.get(words[place], 0), len(words) - place), 0, -1):
                phrase = " ".join(words[place : place + length])
                concept, hints = self.named.get(phrase), self.hinted.get(phrase, frozenset())
                if concept or hints:
                    yield place, place + length, None if concept == NOTHING else concept, hints
                    size = length
                    break
            place += size

    def names(self, words: Sequence[str]) -> list[str]:
        """The names of objects in tokenized words, one a mention."""
        return [" ".join(words[start:stop]) for start, stop, concept, _ in self.phrases(words) if concept]

    def are_objects(self, words: Sequence[str]) -> list[bool]:
        """Whether each of a caption's words, in lower case and without punctuation, belongs to an object's name."""
        flags = [False] * len(words)
        for start, stop, concept, _ in self.phrases(words):
            flags[start:stop] = [concept is not None] * (stop - start)
        return flags


def object_words(captions: Captions) -> Result:
    """Precision and recall of the concepts that candidates name, of all images' concepts together.

    A concept counts once a caption. It is supported where a reference names it, or has a word that may mean it. The
    statistics (I, 4) are the candidate's concepts that its references support, all of the candidate's, the references'
    concepts that the candidate has, all of the references'.
    """
    nouns = NounList.bundled()
    rows = []
    for candidate, others in zip(captions.candidates, captions.references, strict=True):
        own, expected = nouns.objects([candidate]), nouns.objects(others)
        mine, theirs = set(own.named), set(expected.named)
        rows.append((len(mine & expected.possible), len(mine), len(theirs & own.possible), len(theirs)))
    statistics = Statistics(np.array(rows, np.float64).reshape(-1, 4), ratios)
    return Result(("object_precision", "object_recall"), statistics, "no caption names an object of the list")


def chair(
    candidates: Sequence[str],
    instances: Sequence[Collection[str]],
    references: Sequence[Sequence[str]] | None = None,
) -> Chair:
    """CHAIR of tokenized candidates (I), given the COCO categories that are in each image.

    With `references`, the objects that they name count as there too, as in the paper. The paper has its own list of
    synonyms, so published values are close but not equal. Raises ConfigError for a name that is no COCO category.
    """
    nouns = NounList.bundled()
    if unknown := sorted(set().union(*instances) - COCO_CATEGORIES):
        raise ConfigError(f"instances: {', '.join(unknown)}: no categories of COCO; give names such as `dining table`")
    mentions = 0
    hallucinated = []
    for candidate, there, others in zip(candidates, instances, references or [()] * len(candidates), strict=True):
        known = set(there) | nouns.objects(others).possible
        named = [concept for concept in nouns.objects([candidate]).named if concept in COCO_CATEGORIES]
        mentions += len(named)
        hallucinated.append([concept for concept in named if concept not in known])
    wrong = sum(map(len, hallucinated))
    return Chair(
        wrong / mentions if mentions else float("nan"),
        sum(map(bool, hallucinated)) / len(hallucinated) if hallucinated else float("nan"),
        hallucinated,
    )


def image_categories(instances: Mapping[str, Any]) -> dict[Any, set[str]]:
    """Image id -> the categories in it, from the JSON of COCO's instances."""
    names = {category["id"]: category["name"] for category in instances["categories"]}
    found: dict[Any, set[str]] = {image["id"]: set() for image in instances["images"]}
    for annotation in instances["annotations"]:
        found[annotation["image_id"]].add(names[annotation["category_id"]])
    return found
