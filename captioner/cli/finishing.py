"""The text of captions as data sets want it: sentences, trigger words, replaced words, tags.

The model's own captions stay as they are in JSONL, under `captions`.
"""

import argparse
import math
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from captioner.caption import Caption
    from captioner.generation import Strategy

SAMPLED_CAPTIONS = 5
"""Captions from which tags are taken in sampling; beam search offers one a beam."""
SENTENCE_ENDS = (".", "!", "?", "…", "。")


class Tag(NamedTuple):
    """A word or phrase that names an object."""

    text: str
    confidence: float
    """That of its least certain word, in the best caption that has it."""


@dataclass(frozen=True, kw_only=True)
class Finishing:
    """Changes of a caption's text, in this order."""

    replacements: tuple[tuple[str, str], ...] = ()
    """Words or phrases, whatever their case, and the text in their place; an empty one removes them."""
    sentence: bool = False
    """Begin with a capital and end with a period."""
    trigger: str = ""
    """A word to put before the caption, with a comma."""
    tags: int = 0
    """Write up to this many tags in place of the caption; 0 writes the caption."""
    captions: int = 1
    """Captions of an image that are kept, of those that tags are taken from."""

    @classmethod
    def of(cls, arguments: argparse.Namespace) -> "Finishing":
        """The changes that the flags of `add_text_flags` name."""
        return cls(
            replacements=(*arguments.replace, *((word, "") for word in arguments.blacklist)),
            sentence=arguments.sentence,
            trigger=arguments.trigger,
            tags=arguments.tags,
            captions=arguments.num_captions,
        )

    def finished(self, text: str) -> str:
        """A caption's text with all changes."""
        text = self._replaced(text)
        if self.sentence and text:
            text = text[0].upper() + text[1:] + ("" if text.endswith(SENTENCE_ENDS) else ".")
        return self._after_trigger(text)

    def tags_of(self, caption: "Caption") -> list[Tag]:
        """The most certain object words of a caption and its alternatives, each object once."""
        from captioner.inspection.word_table import plain_words
        from captioner.metrics.object_words import NOTHING, NounList

        found: dict[str, Tag] = {}
        for each in (caption, *caption.alternatives) if self.tags else ():
            words = plain_words([word.text for word in each.words])
            chances = [math.exp(word.log_prob) if word.confidence is None else word.confidence for word in each.words]
            for start, stop, concept, _ in NounList.bundled().phrases(words):
                text = self._replaced(" ".join(words[start:stop]))
                if concept not in (None, NOTHING) and text:
                    found.setdefault(str(concept), Tag(text, min(chances[start:stop])))
        return sorted(found.values(), key=lambda tag: -tag.confidence)[: self.tags]

    def joined(self, tags: list[Tag]) -> str:
        """Tags as one text."""
        return self._after_trigger(", ".join(tag.text for tag in tags))

    def kept(self, caption: "Caption") -> "Caption":
        """The caption without alternatives that were found for tags only."""
        return replace(caption, alternatives=caption.alternatives[: self.captions - 1]) if self.tags else caption

    def search(self, search: "Strategy") -> "Strategy":
        """The search, with more captions if tags are taken from them; its best caption stays the same."""
        from captioner.generation import BeamSearch, Sampling, with_captions

        if self.tags and isinstance(search, BeamSearch):
            return with_captions(search, search.width)
        if self.tags and isinstance(search, Sampling):
            return with_captions(search, max(search.samples, SAMPLED_CAPTIONS))
        return search

    def _replaced(self, text: str) -> str:
        for old, new in self.replacements:
            pattern = re.compile(rf"(?<!\w){re.escape(old)}(?!\w)", re.IGNORECASE)
            if pattern.search(text):
                text = " ".join(pattern.sub(new.replace("\\", r"\\"), text).split())
                text = re.sub(r" ([,.;:!?])", r"\1", text)
        return text

    def _after_trigger(self, text: str) -> str:
        return ", ".join(filter(None, (self.trigger, text)))


UNCHANGED = Finishing()
"""Leaves captions as they are."""
