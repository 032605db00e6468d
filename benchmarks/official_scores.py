"""Caption a split and score it with the official tool: `python -m benchmarks.official_scores --data FOLDER`.

Needs Java and the extra `meteor`. Prints BLEU, ROUGE-L, METEOR and CIDEr-D as fractions, and the number of distinct
captions.
"""

import argparse
import contextlib
import json
import sys

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from captioner import BeamSearch, Captioner
from captioner.data.formats import load_captions


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--data", required=True, help="folder of the data set")
    parser.add_argument("--annotations", help="its annotation file, if there are several")
    parser.add_argument("--split", default="val")
    parser.add_argument("--beam", type=int, default=5)
    parser.add_argument("--length-penalty", type=float, default=1.0)
    arguments = parser.parse_args(argv)

    captioner = Captioner.from_pretrained(arguments.model)
    images = load_captions(arguments.data, arguments.annotations).split(arguments.split).images
    search = BeamSearch(width=arguments.beam, length_penalty=arguments.length_penalty)
    captions = captioner([image.path for image in images], search=search)
    texts = [caption.text for caption in captions]
    references = {image.image_id: [{"caption": text} for text in image.captions] for image in images}
    candidates = {image.image_id: [{"caption": text}] for image, text in zip(images, texts, strict=True)}
    scores: dict[str, float] = {}
    with contextlib.redirect_stdout(sys.stderr):  # the official tool prints
        tokenizer = PTBTokenizer()
        references, candidates = tokenizer.tokenize(references), tokenizer.tokenize(candidates)
        bleu, _ = Bleu(4).compute_score(references, candidates)
        scores |= {f"bleu_{order}": score for order, score in enumerate(bleu, start=1)}
        for name, scorer in (("rouge_l", Rouge()), ("meteor", Meteor()), ("cider_d", Cider())):
            scores[name] = float(scorer.compute_score(references, candidates)[0])
    print(json.dumps({"metrics": scores, "images": len(images), "distinct_captions": len(set(texts))}, indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
