"""Advice about a data set: captions and pictures that teach little or mislead, though training can use them."""

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from reprlib import repr as shortened

from captioner.data.annotations import Listing, Problem, image_name
from captioner.data.duplicates import Fingerprint, across, fingerprint, look_alike
from captioner.images import OpenedImage

MIN_SIDE = 32
"""Shortest side, in pixels, of a picture that shows enough."""
REPEATED_IMAGES, REPEATED_SHARE = 10, 0.05
"""A caption is reported as repeated if it belongs to at least so many images, and to this share of them."""
OTHER_SCRIPT_SHARE = 0.1
"""Captions in another script are reported up to this share of them; beyond it, the mixture is meant."""
COMMON_SHARE = 0.01
"""A word is common if it occurs once in a hundred captions or more often."""
MAX_COMMON_SHARE, MIN_WORDS = 0.1, 5
"""Largest share of common words, and fewest words, of a caption in another language. Of 69,000 English captions of
Flickr8k and COCO, 3 have so few."""
MIN_CAPTIONS = 200
"""With fewer captions, common words say little about the language."""
SCRIPTS = {"HIRAGANA": "CJK", "KATAKANA": "CJK", "HANGUL": "CJK"}
"""Scripts that are written together -> their common name."""
UNSPACED = ("CJK", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")
"""Scripts that put no spaces between words."""


@dataclass(frozen=True)
class Look:
    """The size and the fingerprint of a picture."""

    size: tuple[int, int]
    fingerprint: Fingerprint | None

    @classmethod
    def at(cls, opened: OpenedImage) -> "Look":
        return cls(opened.size, fingerprint(opened.image))


def review(listing: Listing, looks: Mapping[str, Look], found: Iterable[Problem] = ()) -> list[Problem]:
    """Warnings about pictures and captions; `looks` are those of the pictures that open, by name.

    Copies of a picture among the problems `found` are not reported again.
    """
    copies = [set(problem.pictures) for problem in found]
    return [*_pictures(listing, looks, copies), *_captions(listing)]


def _pictures(listing: Listing, looks: Mapping[str, Look], copies: list[set[str]]) -> Iterator[Problem]:
    for name, look in looks.items():
        if min(look.size) < MIN_SIDE:
            width, height = look.size
            yield _advice("tiny", name, f"{width} x {height} pixels show little; the shorter side should be {MIN_SIDE}")
    splits = {image_name(image): image.split for image in listing.images if image.split is not None}
    prints = {name: look.fingerprint for name, look in looks.items() if look.fingerprint is not None}
    for names in across(look_alike(prints), splits):
        if any(copies_of_one.issuperset(names) for copies_of_one in copies):
            continue
        first, *others = names
        named = ", ".join(f"{name} ({splits[name]})" for name in others)
        message = f"({splits[first]}) looks like {named}; `captioner data split` keeps such pictures together"
        yield _advice("similar_picture", first, message, *names)


def _captions(listing: Listing) -> Iterator[Problem]:
    """Doubtful captions, in the order of the listing; then captions of many images."""
    texts = [
        (image_name(image), caption.where, caption.text, re.findall(r"\w+", caption.text.casefold()))
        for image in listing.images
        for caption in image.captions
        if isinstance(caption.text, str)
    ]
    scripts = [script(text) for _, _, text, _ in texts]
    counts = Counter(filter(None, scripts)).most_common()
    main = counts[0][0] if counts else None
    mixed = sum(count for _, count in counts[1:]) > OTHER_SCRIPT_SHARE * len(texts)
    occurrences = Counter(word for *_, words in texts for word in words)
    common = {word for word, count in occurrences.items() if count >= COMMON_SHARE * len(texts)}
    seen: dict[tuple[str, tuple[str, ...]], str] = {}
    images: defaultdict[tuple[str, ...], dict[str, str]] = defaultdict(dict)
    for (name, where, text, words), own in zip(texts, scripts, strict=True):
        if not words:
            continue
        shown = shortened(text)
        if own not in (main, None) and not mixed:
            yield _advice("other_script", where, f"{shown}: most captions are in another script ({main})")
        elif len(words) == 1 and own not in UNSPACED:
            yield _advice("one_word", where, f"{shown} is one word; write a sentence")
        elif (
            len(texts) >= MIN_CAPTIONS
            and len(words) >= MIN_WORDS
            and sum(word in common for word in words) <= MAX_COMMON_SHARE * len(words)
        ):
            yield _advice("other_language", where, f"{shown} has hardly a common word; is it in another language?")
        if (key := (name, tuple(words))) in seen:
            yield _advice("same_caption", where, f"{shown} repeats {seen[key]}, apart from case and punctuation")
        seen.setdefault(key, where)
        images[tuple(words)].setdefault(name, where)
    for caption, places in images.items():
        if len(places) >= max(REPEATED_IMAGES, REPEATED_SHARE * len(listing.images)):
            where, text = next(iter(places.values())), shortened(" ".join(caption))
            yield _advice("repeated_caption", where, f"{text} is a caption of {len(places)} images", *places)


def script(text: str) -> str | None:
    """The script of most letters, by its name in Unicode; None without letters."""
    names = (unicodedata.name(letter, "").partition(" ")[0] for letter in text if letter.isalpha())
    counts = Counter(SCRIPTS.get(name, name) for name in names)
    return counts.most_common(1)[0][0] if counts else None


def _advice(code: str, where: str, message: str, *pictures: str) -> Problem:
    return Problem(code, where, message, harmless=True, pictures=pictures)
