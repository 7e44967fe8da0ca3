"""Tokenizer of the small base model: listed words are single tokens, everything else falls back to bytes."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from flawscope.errors import MissingExtra
from flawscope.text import encode_json

LENGTH = 77
"""Tokens of every text, as in CLIP."""

START, END = "<|startoftext|>", "<|endoftext|>"
"""Start token and end token; the end token is also the padding."""

_UNKNOWN = "<|unknown|>"
_INSIDE = "##"
_LONGEST_WORD = 10_000  # bytes; a longer word is a single unknown token

_WORDS = """
a an and are at be by can close common dark different empty for from good has image in is it its large light look
looks no normal not of on one or other part parts perfect photo picture product sample seen shows side small some
surface that the there this to type view visible weird with without
defect defective defects damage damaged fault faulty flaw broken bent blister blowhole break bump burr chip chipped
contamination corrosion crack cracked crease cut dent deposit dirt discoloration dust edge exposed fiber fold foreign
fray frayed fray gap glue gouge hair hole imprint inclusion indentation ink knot leak line liquid loose mark metal
misaligned missing mold notch oil open paint patch patches peeling pinhole pit pitted pitting poke pore print rough
rust scale scratch scratched scratches short smear smudge solder spot spots squeeze stain stained streak stroke tape
tear thread tilt torn twisted uneven void warp water weld wear white wire worn wrinkle
black blue bright brown color colored colour gray green grey orange pale pink purple red silver yellow
bottom center centre corner left lower middle right top upper inside outside inspection found carries lies location
board bottle cable capsule carpet chip cloth fabric gear glass grid hazelnut housing label leather magnetic nut pill
pin plastic plate ring screw seal steel texture tile toothbrush transistor wood zipper
"""
"""Words of prompts about parts and their defects. Token numbers follow from their sorted order: a changed list changes
the tokenizer, and so every base model that is trained afterwards."""


def write_tokenizer(names: Sequence[str]) -> bytes:
    """Return a tokenizer as the content of a `tokenizer.json`; the same for the same names.

    Texts are lowercased and split at spaces and around punctuation. Each piece is split greedily into the longest
    tokens: the words in the list of this module and in `names`, every ASCII character, and all 256 bytes. So there are
    no unknown characters in any language. Every text gets a start and an end token.

    Training a tokenizer on a corpus would gain nothing: words that never occur with a training image keep random
    embeddings in any case, and a word that shall stand for a defect must be a single token.

    Args:
        names: Names of categories.

    Raises:
        MissingExtra: If `tokenizers` is not installed.
    """
    try:
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    except ImportError as err:
        raise MissingExtra("texts", "tokenizers", "train") from err
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    name_words = {word for name in names for word in re.findall(r"[a-z]+", name.lower())}
    vocabulary_words = sorted({*_WORDS.split(), *name_words} - set(letters))
    # Every byte also as a continuation: WordPiece makes a whole word unknown if any of its pieces has no token.
    tokens = [START, END, _UNKNOWN, *letters, *(f"{_INSIDE}{letter}" for letter in letters), *vocabulary_words]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(
        models.WordPiece(
            vocabulary,
            unk_token=_UNKNOWN,
            continuing_subword_prefix=_INSIDE,
            max_input_chars_per_word=_LONGEST_WORD,
        )
    )
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Punctuation("isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, vocabulary[START]), (END, vocabulary[END])]
    )
    # Decoded and encoded again for a fixed order of keys: these bytes are hashed into the identity of the base.
    return encode_json(msgspec.json.decode(tokenizer.to_str()), order="deterministic")
