"""How the null patch treats words: `python -m benchmarks.null_patch --data FOLDER --model MODEL`.

For human captions and for the model's own: the null patch's share of the attention of object words and of function
words, and its rank correlation with visual need. A step cannot know which word comes, and so not its need; what it can
know is the share of the next token's distribution that is there without the image, Σ min(p, q), whose correlation with
visual need is about the most that a null patch can reach. Prints Markdown.   W words of a caption · T tokens
"""

import argparse
import sys
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.ranking import area_under_curve, rank_correlation
from captioner import Captioner
from captioner.data.annotations import CaptionedImage
from captioner.data.dataset import read_photo, view_pixels
from captioner.data.formats import load_captions
from captioner.inspection.forced_pass import ForcedPass
from captioner.inspection.maps import force_caption
from captioner.inspection.word_table import are_objects, plain_words
from captioner.model.caption_model import CaptionModel
from captioner.tokenizer import Tokenizer

FUNCTION_WORDS = frozenset(
    (
        *("a", "an", "the", "this", "that", "these", "those", "some", "and", "or", "but", "while", "as", "with", "of"),
        *("without", "in", "on", "at", "by", "to", "from", "for", "near", "over", "under", "into", "onto", "through"),
        *("up", "down", "out", "off", "his", "her", "its", "their", "is", "are", "was", "were", "be", "being", "been"),
        *("has", "have", "there", "which", "who", "it", "he", "she", "they"),
    )
)


class Words(NamedTuple):
    """The words of all captions."""

    words: list[str]
    """In lower case, without punctuation."""
    is_object: NDArray[np.bool_]
    visual_need: NDArray[np.float32]
    null_mass: NDArray[np.float32]
    """The share of each word's attention on null patches, the mean over layers and heads."""
    shares: NDArray[np.float32]
    """The share of the next token's distribution that is there without the image; the mean over the word's tokens."""


def read_words(
    model: CaptionModel, tokenizer: Tokenizer, images: Sequence[CaptionedImage], captions: Sequence[str]
) -> Words:
    """Force a caption on each image."""
    rows = []
    for image, caption in zip(images, captions, strict=True):
        pixels = torch.from_numpy(view_pixels(read_photo(image), model.encoder.config, image))
        forced = force_caption(model, tokenizer, pixels, caption)
        assert forced.visual_need is not None
        is_null = [source == "null" for source in forced.memory.sources]
        null_mass = forced.weights[..., is_null].sum(axis=-1).mean(axis=(1, 2))
        words = plain_words(forced.words)
        rows.append((words, are_objects(forced.words), forced.visual_need, null_mass, shares(model, forced)))
    all_words, *columns = zip(*rows, strict=True)
    return Words([word for words in all_words for word in words], *map(np.concatenate, columns))


@torch.inference_mode()
def shares(model: CaptionModel, forced: ForcedPass) -> NDArray[np.float32]:
    """(W,) Σ min(p, q) of the next token's distributions p with the image and q without, the mean over tokens."""
    tokens = forced.tokens[:, :-1]
    memories = forced.memory, model.blind(forced.memory)
    seen, blind = (model.decoder(tokens, memory).logits[0].softmax(dim=-1) for memory in memories)
    common = torch.minimum(seen, blind).sum(dim=-1).float().cpu().numpy()  # (T,)
    return np.array([common[start:stop].mean() for start, stop in forced.spans], np.float32)


def summarize(found: Words) -> dict[str, float]:
    """The rows of the table; empty where there is no null patch."""
    if not found.null_mass.any():
        return {}
    function = np.array([word in FUNCTION_WORDS for word in found.words], dtype=bool)
    masses = {"objects": found.null_mass[found.is_object], "function words": found.null_mass[function]}
    return {
        "words": len(found.words),
        **{name: float(values.mean()) for name, values in masses.items()},
        "auc function words above objects": area_under_curve(masses["function words"], masses["objects"]),
        "spearman with visual need": rank_correlation(-found.null_mass, found.visual_need),
        "spearman of the share with visual need": rank_correlation(-found.shares, found.visual_need),
        "spearman with the share": rank_correlation(found.null_mass, found.shares),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--data", required=True, help="a data set's folder")
    parser.add_argument("--annotations", help="its annotation file, where there are several")
    parser.add_argument("--split", default="val")
    parser.add_argument("--captions", type=int, default=500, help="default: 500")
    arguments = parser.parse_args(argv)
    captioner = Captioner.from_pretrained(arguments.model)
    images = load_captions(arguments.data, arguments.annotations).split(arguments.split).images[: arguments.captions]
    captions = {
        "human captions": [image.captions[number % len(image.captions)] for number, image in enumerate(images)],
        "its own captions": [caption.text for caption in captioner([image.path for image in images])],
    }
    found = {
        name: summarize(read_words(captioner.model, captioner.tokenizer, images, texts))
        for name, texts in captions.items()
    }
    print(f"| | {' | '.join(found)} |\n|---|{'---|' * len(found)}")
    for name in next(iter(found.values())):
        print(f"| {name} | {' | '.join(f'{each[name]:.4g}' for each in found.values())} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
