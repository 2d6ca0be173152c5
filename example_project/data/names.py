"""Names of countries and languages in English and German, from the Unicode CLDR that babel carries."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from functools import lru_cache

import torch
from babel import Locale
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

PAD, BOS, EOS, UNKNOWN = range(4)
Pair = tuple[str, str]
Batch = tuple[Tensor, Tensor]


def clean(text: str) -> str:
    """One form per character, and none that a wrong decoding leaves behind (lone surrogates, U+FFFD, controls)."""
    composed = unicodedata.normalize("NFC", text)
    return "".join(c for c in composed if unicodedata.category(c) not in ("Cs", "Cc", "Cn") and c != "\ufffd")


class Vocabulary:
    """Characters to ids; what the training text does not hold becomes UNKNOWN."""

    def __init__(self, texts: Iterable[str]) -> None:
        characters = sorted(set().union(*map(set, texts)))
        self._ids = {character: index for index, character in enumerate(characters, start=UNKNOWN + 1)}

    def __len__(self) -> int:
        return UNKNOWN + 1 + len(self._ids)

    def encode(self, text: str) -> Tensor:
        """int64[time]: BOS, the characters of `text`, EOS."""
        return torch.tensor([BOS, *(self._ids.get(c, UNKNOWN) for c in clean(text)), EOS])


@lru_cache
def name_pairs(source: str = "en", target: str = "de") -> tuple[Pair, ...]:
    """(source, target) names of all territories and languages that both locales know, in the order of their codes."""
    first, second = Locale.parse(source), Locale.parse(target)
    pairs = [
        (clean(str(names[code])), clean(str(others[code])))
        for names, others in ((first.territories, second.territories), (first.languages, second.languages))
        for code in sorted(names)
        if code.isalpha() and code in others
    ]
    return tuple(pairs)


def split(pairs: tuple[Pair, ...]) -> tuple[list[Pair], list[Pair]]:
    """Training and held-out pairs: every tenth is held out."""
    train = [pair for index, pair in enumerate(pairs) if index % 10]
    return train, list(pairs[::10])


class NamePairs:
    """Batches (source ids int64[batch, s], target ids int64[batch, t]), padded, of a tenth of all names held out."""

    def __init__(self, batch_size: int = 32) -> None:
        train, held_out = split(name_pairs())
        self.source = Vocabulary(source for source, _ in train)
        self.target = Vocabulary(target for _, target in train)
        self.train = self._batches(train, batch_size)
        self.held_out = self._batches(held_out, batch_size)

    def encode(self, pairs: Iterable[Pair]) -> Batch:
        """One padded batch."""
        encoded = [(self.source.encode(source), self.target.encode(target)) for source, target in pairs]
        sources, targets = zip(*encoded, strict=True)
        return (
            pad_sequence(list(sources), batch_first=True, padding_value=PAD),
            pad_sequence(list(targets), batch_first=True, padding_value=PAD),
        )

    def _batches(self, pairs: list[Pair], size: int) -> list[Batch]:
        return [self.encode(pairs[start : start + size]) for start in range(0, len(pairs), size)]
