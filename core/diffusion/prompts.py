"""Tokenization of prompts, the same in training and at run time; a placeholder becomes its learned embedding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt

from flawscope.arrays import Float32Array, check_array
from flawscope.errors import ArgumentError, MissingExtra, RunError


class PromptRules(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Tokenization rules of a text encoder that `tokenizer.json` does not hold.

    Attributes:
        length: Tokens of every prompt.
        pad: Token that pads a short prompt.
        placeholder: Word that stands for a learned embedding.
    """

    length: Annotated[int, msgspec.Meta(ge=3, le=4096)]
    pad: Annotated[int, msgspec.Meta(ge=0)]
    placeholder: str = "*"


@dataclass(frozen=True)
class Tokens:
    """Prompts as inputs of a text encoder.

    Attributes:
        tokens: int64 [N, L].
        vectors: Float32 [N, L, W]: vectors that replace the token embeddings, zero elsewhere.
        placed: Float32 [N, L]: 1 where they do, else 0.
    """

    tokens: npt.NDArray[np.int64]
    vectors: Float32Array
    placed: Float32Array


class Prompts:
    """Tokenizes prompts.

    Args:
        tokenizer: Content of a `tokenizer.json`, as the package `tokenizers` writes it, with the special tokens of
            beginning and end in its post-processor. Its own padding and truncation are not used.
        rules: Length, padding and placeholder.
        what: Name of the tokenizer's file, for errors.

    Raises:
        MissingExtra: If `tokenizers` is not installed.
        RunError: If the file is not a tokenizer.
    """

    def __init__(self, tokenizer: bytes, rules: PromptRules, what: str = "tokenizer.json") -> None:
        try:
            # Here and not at the top: detectors import this module's structs without the extra `synth`.
            from tokenizers import Tokenizer
        except ImportError as err:
            raise MissingExtra("reading texts", "tokenizers", "synth") from err
        try:
            self._tokenizer: Any = Tokenizer.from_buffer(tokenizer)
        except Exception as err:  # the package raises plain exceptions
            raise RunError(f"{what}: expected a tokenizer, got {err}. Export the bundle again.") from err
        # Published files bring their own padding and length; ours come from the rules, in training as at run time.
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
        # Word-level tokenizers map every unknown word to one token, which would pass as a single token.
        unknown = getattr(self._tokenizer.model, "unk_token", None)
        if unknown is not None and word != unknown and self._tokenizer.id_to_token(ids[0]) == unknown:
            raise ArgumentError(f"{word!r}: expected a word that the tokenizer knows. Take another word.")
        return int(ids[0])

    def tokens(self, texts: Sequence[str], width: int, vectors: Sequence[Float32Array | None] = ()) -> Tokens:
        """Return prompts as tokens; in a prompt with a learned embedding every placeholder becomes its vectors.

        A prompt that is too long is cut before its last token, the end-of-text token.

        Args:
            texts: N texts.
            width: W, the width of a token's embedding.
            vectors: Float32 [V, W] or None for each text; empty for none at all. Without vectors the placeholder is an
                ordinary word.

        Raises:
            ArgumentError: If a text has vectors but no placeholder, or the vectors are of another width.
        """
        rules, count = self.rules, len(texts)
        tokens = np.full((count, rules.length), rules.pad, np.int64)
        placed = np.zeros((count, rules.length), np.float32)
        values = np.zeros((count, rules.length, width), np.float32)
        learned: Sequence[Float32Array | None] = vectors or [None] * count
        for row, (text, embedding) in enumerate(zip(texts, learned, strict=True)):
            ids = [int(number) for number in self._tokenizer.encode(text).ids]
            if embedding is None:
                numbered: list[tuple[int, int]] = [(number, -1) for number in ids]
            else:
                check_array(embedding, "vectors", ("V", width), np.float32, finite=True)
                numbered = self._expanded(ids, text, len(embedding))
            if len(numbered) > rules.length:
                # The end-of-text token has to stay: text encoders were trained with it.
                numbered = [*numbered[: rules.length - 1], numbered[-1]]
            for column, (number, index) in enumerate(numbered):
                tokens[row, column] = number
                if embedding is not None and index >= 0:
                    values[row, column], placed[row, column] = embedding[index], 1.0
        return Tokens(tokens, values, placed)

    def _expanded(self, ids: Sequence[int], text: str, count: int) -> list[tuple[int, int]]:
        """Return pairs of a token and the index of the vector that replaces it, or -1."""
        placeholder = self.word(self.rules.placeholder)
        if placeholder not in ids:
            raise ArgumentError(
                f"text: expected the word {self.rules.placeholder!r}, which stands for the defect, got {text!r}. "
                "Write it where the text names the defect, or take the texts of the bundle."
            )
        return [
            pair
            for number in ids
            for pair in ([(number, index) for index in range(count)] if number == placeholder else [(number, -1)])
        ]
