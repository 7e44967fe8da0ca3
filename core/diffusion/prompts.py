"""Tokenization of prompts, the same in training and at run time; a placeholder becomes its learned vectors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from flawscope.arrays import Float32Array, check_array
from flawscope.errors import ArgumentError, MissingExtra, RunError


class PromptRules(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Tokenization rules of a text encoder that `tokenizer.json` does not hold.

    Attributes:
        length: Tokens of every text.
        pad: Token that fills a short text up.
        placeholder: Word that stands for a learned one.
    """

    length: int
    pad: int
    placeholder: str = "*"


@dataclass(frozen=True)
class Tokens:
    """Texts as a text encoder takes them.

    Attributes:
        tokens: int64 [N, L].
        vectors: Float32 [N, L, W]: what is put in place of a token's embedding, zero elsewhere.
        placed: Float32 [N, L]: 1 where it is, else 0.
    """

    tokens: npt.NDArray[np.int64]
    vectors: Float32Array
    placed: Float32Array


class Prompts:
    """Tokenizes texts.

    Args:
        tokenizer: Content of a `tokenizer.json`, as the package `tokenizers` writes it, with the special tokens of
            beginning and end in its post-processor. Its own padding and truncation are not used.
        rules: Length, padding and placeholder.
        what: Where the tokenizer is from, for errors.

    Raises:
        MissingExtra: If `tokenizers` is not installed.
        RunError: If the file is no tokenizer.
    """

    def __init__(self, tokenizer: bytes, rules: PromptRules, what: str = "tokenizer.json") -> None:
        try:
            from tokenizers import Tokenizer
        except ImportError as err:
            raise MissingExtra("reading texts", "tokenizers", "synth") from err
        try:
            self._tokenizer: Any = Tokenizer.from_buffer(tokenizer)
        except Exception as err:  # the package raises plain exceptions
            raise RunError(f"{what}: expected a tokenizer, got {err}. Export the bundle again.") from err
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self.rules = rules

    def word(self, word: str) -> int:
        """Return the token of a single word.

        Raises:
            ArgumentError: If the word is more than one token, none, or one that the tokenizer does not know.
        """
        ids = self._tokenizer.encode(word, add_special_tokens=False).ids
        if len(ids) != 1:
            raise ArgumentError(f"{word!r}: expected a word that is a single token, got {len(ids)}. Take another word.")
        unknown = getattr(self._tokenizer.model, "unk_token", None)
        if unknown is not None and word != unknown and self._tokenizer.id_to_token(ids[0]) == unknown:
            raise ArgumentError(f"{word!r}: expected a word that the tokenizer knows. Take another word.")
        return int(ids[0])

    def tokens(self, texts: Sequence[str], width: int, vectors: Sequence[Float32Array | None] = ()) -> Tokens:
        """Return texts as tokens; where a text has a learned word, every placeholder becomes its vectors.

        A text that is too long loses what comes before its last token, which says where it ends.

        Args:
            texts: N texts.
            width: W, of a token's embedding.
            vectors: For each text float32 [V, W], or None; empty for none at all. Without vectors the placeholder is a
                word as any other.

        Raises:
            ArgumentError: If a text has vectors but no placeholder, or the vectors are of another width.
        """
        rules, count = self.rules, len(texts)
        tokens = np.full((count, rules.length), rules.pad, np.int64)
        placed = np.zeros((count, rules.length), np.float32)
        values = np.zeros((count, rules.length, width), np.float32)
        learned: Sequence[Float32Array | None] = vectors or [None] * count
        for row, (text, own) in enumerate(zip(texts, learned, strict=True)):
            ids = [int(number) for number in self._tokenizer.encode(text).ids]
            if own is None:
                found: list[tuple[int, int]] = [(number, -1) for number in ids]
            else:
                check_array(own, "vectors", ("V", width), np.float32, finite=True)
                found = self._expanded(ids, text, len(own))
            if len(found) > rules.length:
                found = [*found[: rules.length - 1], found[-1]]
            for column, (number, index) in enumerate(found):
                tokens[row, column] = number
                if own is not None and index >= 0:
                    values[row, column], placed[row, column] = own[index], 1.0
        return Tokens(tokens, values, placed)

    def _expanded(self, ids: Sequence[int], text: str, count: int) -> list[tuple[int, int]]:
        """Return tokens with the number of the vector in their place, or -1."""
        placeholder = self.word(self.rules.placeholder)
        if placeholder not in ids:
            raise ArgumentError(
                f"text: expected the word {self.rules.placeholder!r}, which stands for the defect, got {text!r}."
            )
        return [
            pair
            for number in ids
            for pair in ([(number, index) for index in range(count)] if number == placeholder else [(number, -1)])
        ]
