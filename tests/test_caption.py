"""Captions of memory: what they may repeat."""

import itertools
from dataclasses import replace

import pytest
import torch

from captioner.caption import caption_memory, object_tokens
from captioner.config import DecoderConfig, TokenizerConfig
from captioner.generation import BeamSearch, Greedy, Sampling
from captioner.metrics.object_words import NounList
from captioner.model.decoder import TextDecoder
from captioner.tokenizer import Tokenizer

WORDS = "a dog and cat on the red stove with"
SEARCHES = (Greedy(min_length=9), BeamSearch(captions=3, min_length=9), Sampling(samples=3, min_length=9))


def repeats(tokenizer, search):
    """Bigrams and names of objects that come again, in captions of several random decoders."""
    bigrams = objects = 0
    for seed in range(5):
        torch.manual_seed(seed)
        config = DecoderConfig(width=16, layers=1, heads=2, max_length=14)
        decoder = TextDecoder(config, vocabulary=len(tokenizer), encoder_width=6).eval()
        with torch.inference_mode():
            memory = decoder.project(torch.randn(2, 4, 6))
        for caption in itertools.chain(*caption_memory(decoder, tokenizer, memory, search)):
            words = caption.text.lower().split()
            pairs, names = list(itertools.pairwise(words)), NounList.bundled().names(words)
            bigrams += len(pairs) - len(set(pairs))
            objects += len(names) - len(set(names))
    return bigrams, objects


@pytest.mark.parametrize("search", SEARCHES, ids=lambda search: type(search).__name__)
def test_words_in_a_row_and_objects_come_once_unless_the_search_says_otherwise(search):
    tokenizer = Tokenizer.train([WORDS], TokenizerConfig(min_count=1))
    assert repeats(tokenizer, search) == (0, 0)
    bigrams, objects = repeats(tokenizer, replace(search, no_repeat_ngram=2))
    assert bigrams == 0
    assert objects > 0
    assert min(repeats(tokenizer, replace(search, no_repeat_ngram=0))) > 0


def test_parts_of_words_may_come_again():
    tokenizer = Tokenizer.train([WORDS] * 9, TokenizerConfig(kind="bpe", vocabulary_size=270))
    search = Greedy(min_length=9)
    assert repeats(tokenizer, search) == repeats(tokenizer, replace(search, no_repeat_ngram=0))


def test_tokens_of_objects():
    tokenizer = Tokenizer.train([WORDS], TokenizerConfig(min_count=1))
    assert {tokenizer.decode([token]) for token in object_tokens(tokenizer)} == {"dog", "cat", "stove"}
