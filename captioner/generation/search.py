"""The loop that all strategies share.   B images · K rows of an image · R = B·K rows · T tokens so far · V vocabulary

A step is one choice for all rows, one check for images that are done, and one pass of the decoder over all rows.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from captioner.consensus import by_consensus, first_word
from captioner.errors import ConfigError
from captioner.generation.strategies import BeamSearch, BeamState, Hypothesis, RowState, Sequences, State, Strategy
from captioner.model.decoder import TextDecoder
from captioner.model.memory import Memory
from captioner.model.static import StaticDecoder, StaticState

COMPACT_SHARE = 0.25
"""Compact the batch once this share of its images has finished."""
CHECK_STEPS = 4
"""On an accelerator, look for finished images once in this many steps: the host waits for the answer."""


class Search:
    """One search, advanced a token at a time: `step` until `done`, or stop earlier; `captions` gives what there is.

    `control` are tokens between the start token and the caption, of which they are no part. `prefix` forces the
    caption's first tokens, `suppressed` are never chosen, those of `once` no second time; `keys` (B) name the
    images to Sampling's noise.
    Memory may hide positions by image, (B, N), not by row. Raises ConfigError where the requested lengths do not fit
    the decoder's positions. The decoder, packed or not, must be in evaluation mode.
    """

    @torch.inference_mode()
    def __init__(
        self,
        decoder: TextDecoder,
        memory: Memory,
        strategy: Strategy,
        *,
        bos: int,
        eos: int,
        pad: int = 0,
        suppressed: Sequence[int] = (),
        once: Sequence[int] = (),
        control: Sequence[int] = (),
        prefix: Sequence[int] = (),
        keys: Sequence[str] | None = None,
    ) -> None:
        lead = [bos, *control]
        limit = decoder.config.max_length - len(lead)
        if strategy.max_length > limit or len(prefix) >= strategy.max_length:
            raise ConfigError(
                f"max_length {strategy.max_length} with a prefix of {len(prefix)} tokens: this model takes captions of "
                f"at most {limit} tokens, and the prefix must be shorter than the caption"
            )
        images, device = memory.images, memory.layers[0].keys.device
        self._decoder, self._memory, self._strategy, self._eos = decoder, memory, strategy, eos
        self._suppressed = torch.tensor(list(suppressed), dtype=torch.long, device=device)
        self._first = first_word({bos, eos, pad, *suppressed})
        self._once = torch.tensor(list(once), dtype=torch.long, device=device)
        self._cache = decoder.new_cache(strategy.max_length + len(control))
        # The forced tokens are the same for every row of an image, so they pass once an image.
        forced = torch.tensor([*lead, *prefix], device=device).expand(images, -1)
        log_probs = self._decode(forced)[:, len(control) :]  # (B, 1 + P, V)
        forced = forced[:, len(lead) :]
        start = forced, log_probs[:, :-1].gather(2, forced[:, :, None]).squeeze(2), eos, pad
        names = keys if keys is not None else [str(number) for number in range(images)]
        self._state: State = (
            BeamState(strategy, *start) if isinstance(strategy, BeamSearch) else RowState(strategy, *start, keys=names)
        )
        self._images = torch.arange(images, device=device)  # those that are not finished
        self._finished: list[tuple[Tensor, Sequences]] = []
        rows = self._images.repeat_interleave(strategy.rows)
        self._static: tuple[StaticDecoder, StaticState] | None = None
        if isinstance(decoder, StaticDecoder):
            self._static = decoder, decoder.begin(memory, self._cache, rows)
        else:
            self._cache.select(rows)
        self._log_probs = log_probs[:, -1].repeat_interleave(strategy.rows, dim=0)  # (R, V)
        self._check_steps = 1 if device.type == "cpu" else CHECK_STEPS
        self.done = False

    def _decode(self, tokens: Tensor) -> Tensor:
        """tokens (R, T) that follow the cached ones -> log-probabilities of what follows each (R, T, V)."""
        return self._decoder(tokens, self._memory, self._cache).logits.float().log_softmax(dim=-1)  # type: ignore[no-any-return]

    @torch.inference_mode()
    def step(self) -> None:
        """Choose one more token for every row; `done` says whether that was the last one."""
        state, strategy = self._state, self._strategy
        choices = mask_choices(
            self._log_probs,
            state.tokens,
            eos=self._eos,
            suppressed=self._suppressed,
            once=self._once,
            no_repeat_ngram=strategy.no_repeat_ngram or 0,
            min_length=strategy.min_length,
        )
        rows = state.step(choices)
        self.done = state.length == strategy.max_length
        if not self.done and state.length % self._check_steps == 0:
            rows = self._check(rows)
        if not self.done:
            self._log_probs = self._next(state.tokens[:, -1:], rows)
        elif self._static is not None:
            decoder, static = self._static
            decoder.release(static)
            self._static = None

    def _next(self, tokens: Tensor, rows: Tensor | None) -> Tensor:
        """tokens (R, 1) that follow these rows (R,), all in order if None -> log-probabilities of the next (R, V)."""
        if self._static is not None:
            decoder, static = self._static
            return decoder.step(static, tokens, rows)[:, -1].float().log_softmax(dim=-1)
        if rows is not None:
            self._cache.select(rows)
        return self._decode(tokens)[:, -1]

    def _check(self, rows: Tensor | None) -> Tensor | None:
        """Set `done` if all images have finished; compact the batch if enough have. Returns the rows that remain."""
        settled = self._state.settled()
        images, count = len(settled), int(settled.sum())  # the only number that a search reads from its device
        self.done = count == images
        if self.done or self._static is not None or count < COMPACT_SHARE * images:
            return rows
        left, finished = settled.int().argsort(stable=True).split([images - count, count])
        self._finished.append(
            (self._images[finished], Sequences(*(each[finished] for each in self._state.sequences())))
        )
        self._state.keep(left)
        self._images, self._memory = self._images[left], self._memory.select(left)
        if rows is None:
            rows = torch.arange(images * self._strategy.rows, device=left.device)
        return rows.view(images, -1)[left].flatten()

    def sequences(self) -> Sequences:
        """The best captions so far as tensors, best first (samples: in order); those unfinished end where they are."""
        images, parts = zip(*self._finished, (self._images, self._state.sequences()), strict=True)
        order = torch.cat(images).argsort()
        tokens, log_probs, counts = (torch.cat(each)[order] for each in zip(*parts, strict=True))
        found = Sequences(tokens[:, :, : self._state.length], log_probs[:, :, : self._state.length], counts)
        return self._select_captions(found, self._strategy) if isinstance(self._strategy, BeamSearch) else found

    def _select_captions(self, found: Sequences, strategy: BeamSearch) -> Sequences:
        """Rank the K captions of each image by consensus, if the strategy asks for it, and keep the first ones."""
        tokens, log_probs, counts = found
        if strategy.consensus and strategy.width > 1 and tokens.shape[2]:
            ends = (tokens == self._eos).int()
            lengths = torch.where(ends.any(dim=2), ends.argmax(dim=2), tokens.shape[2])
            missing = torch.arange(strategy.width, device=tokens.device) >= counts[:, None]
            lengths = lengths.masked_fill(missing, -1)
            ranked = by_consensus(np.array(tokens.tolist()), np.array(lengths.tolist()), self._first)
            rows = torch.from_numpy(ranked).to(tokens.device)[:, :, None].expand_as(tokens)
            tokens, log_probs = tokens.gather(1, rows), log_probs.gather(1, rows)
        most = strategy.captions
        return Sequences(tokens[:, :most], log_probs[:, :most], counts.clamp(max=most))

    def captions(self) -> list[list[Hypothesis]]:
        """The same as lists: of each image its captions, each up to its end token."""

        def hypothesis(tokens: list[int], log_probs: list[float]) -> Hypothesis:
            length = tokens.index(self._eos) + 1 if self._eos in tokens else len(tokens)
            return Hypothesis(tokens[:length], log_probs[:length])

        found = (part.tolist() for part in self.sequences())
        return [
            [hypothesis(*each) for each in zip(tokens[:count], log_probs[:count], strict=True)]
            for tokens, log_probs, count in zip(*found, strict=True)
        ]


def generate(
    decoder: TextDecoder,
    memory: Memory,
    strategy: Strategy,
    *,
    bos: int,
    eos: int,
    pad: int = 0,
    suppressed: Sequence[int] = (),
    once: Sequence[int] = (),
    control: Sequence[int] = (),
    prefix: Sequence[int] = (),
    keys: Sequence[str] | None = None,
    stop: Callable[[], bool] | None = None,
) -> list[list[Hypothesis]]:
    """B lists of captions, best first (samples: in order): a whole `Search`, which says what the options are.

    `stop` is called before each step; once it returns true, the captions end where they are. A decoder in training is
    put in evaluation mode meanwhile.
    """
    was_training = decoder.training
    decoder.eval()
    try:
        search = Search(
            decoder,
            memory,
            strategy,
            bos=bos,
            eos=eos,
            pad=pad,
            suppressed=suppressed,
            once=once,
            control=control,
            prefix=prefix,
            keys=keys,
        )
        while not search.done and not (stop is not None and stop()):
            search.step()
        return search.captions()
    finally:
        decoder.train(was_training)


def mask_choices(
    choices: Tensor,
    tokens: Tensor,
    *,
    eos: int,
    suppressed: Tensor,
    once: Tensor | None = None,
    no_repeat_ngram: int = 0,
    min_length: int = 0,
) -> Tensor:
    """choices (R, V), logits or log-probabilities of what follows tokens (R, T), with -inf for what is not allowed.

    Not allowed are the tokens `suppressed` (any number), those of `once` (any number) that the row has, those that
    would repeat an n-gram, and the end token before `min_length`, except in a row that has no other choice.
    """
    if len(suppressed):
        choices = choices.index_fill(1, suppressed, -math.inf)
    if once is not None and len(once):
        used = torch.zeros_like(choices, dtype=torch.bool).scatter_(1, tokens, True)
        choices = choices.index_copy(1, once, choices[:, once].masked_fill(used[:, once], -math.inf))
    length = tokens.shape[1]
    if 0 < no_repeat_ngram <= length:
        ngrams = tokens.unfold(1, no_repeat_ngram, 1)  # (R, T - n + 1, n)
        repeats = (ngrams[:, :, :-1] == tokens[:, None, length - no_repeat_ngram + 1 :]).all(dim=2)
        counts = torch.zeros_like(choices).scatter_add_(1, ngrams[:, :, -1], repeats.to(choices.dtype))
        choices = choices.masked_fill(counts > 0, -math.inf)
    if length < min_length:
        others = choices.index_fill(1, torch.full((1,), eos, device=choices.device), -math.inf)
        stuck = others.amax(dim=1, keepdim=True).isneginf()
        choices = torch.where(stuck, choices, others)
    return choices
