"""Tokenizer of the small base model: known words are single tokens, everything else falls back to bytes."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from flawscope.errors import MissingExtra

LENGTH = 77
"""Tokens of every text, as of CLIP."""

START, END = "<|startoftext|>", "<|endoftext|>"
"""Tokens of beginning and end; the latter also fills a text up."""

_UNKNOWN = "<|unknown|>"
_INSIDE = "##"
_LONGEST_WORD = 10_000  # bytes; a longer one is one unknown token

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
"""Words of texts about parts and their defects."""


def write_tokenizer(names: Sequence[str]) -> bytes:
    """Return a tokenizer as the content of a `tokenizer.json`; the same for the same names.

    Texts are put in lower case and cut at spaces and around every sign. What is left is cut, from its beginning, into
    the longest tokens there are: all words in the list of this module and in `names`, every ASCII sign, and all 256
    bytes. Nothing is unknown, whatever the language. Every text gets a token of beginning and one of end.

    Training one on a corpus would give nothing: words that no image of the base was shown with have embeddings at
    random in any case, and a word that shall stand for a defect has to be a single token.

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
    own = {word for name in names for word in re.findall(r"[a-z]+", name.lower())}
    words = sorted({*_WORDS.split(), *own} - set(letters))
    tokens = [START, END, _UNKNOWN, *letters, *(f"{_INSIDE}{letter}" for letter in letters), *words]
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
    # Through a value and back, so that the keys have an order.
    return msgspec.json.encode(msgspec.json.decode(tokenizer.to_str()), order="deterministic")
