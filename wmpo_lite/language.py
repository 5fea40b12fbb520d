"""Instructions as numbers: the words that the small models know."""

import re

from wmpo_lite.common.errors import UserError

# Saved models read instructions by the numbers of the words: new ones go to the end.
WORDS = (
    "put the on in over into onto red green blue yellow white black orange cube plate "
    "square round nut peg block ball bowl box tray left right of and stack push pick "
    "up place open close drawer cup mug lift insert hang ring to a next from move"
).split()


def build_tokenizer(words=WORDS):
    """Word-level tokenizer over a fixed list of words; `word_ids` refuses others."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    numbers = {word: i for i, word in enumerate(("<pad>", "<unk>", *words))}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return tokenizer


def known_words(tokenizer) -> tuple[str, ...]:
    """The words of a tokenizer of `build_tokenizer`, as it was given them."""
    numbers = tokenizer.get_vocab()
    return tuple(sorted(numbers, key=numbers.get))[2:]


def word_ids(tokenizer, sentence: str, longest: int | None = None) -> list[int]:
    """Numbers of the words of `sentence` under a word-level tokenizer; case and punctuation do not
    count.

    UserError for a sentence without words, with words that the tokenizer does not know (they would
    all look the same) or with more than `longest`.
    """
    words = re.findall(r"\w+", sentence.lower())
    ids = [i for word in words for i in tokenizer.encode(word).ids]
    check_words(tokenizer, sentence, words)
    if longest is not None and len(ids) > longest:
        raise UserError(
            f"the instruction '{sentence}' has {len(ids)} words and the model reads {longest}; say"
            " it shorter"
        )
    return ids


def check_words(tokenizer, sentence: str, words: list[str]) -> None:
    """UserError where a sentence has no `words`, or one that the tokenizer does not know."""
    if not words:
        raise UserError("an instruction is empty; say in words what is to be done")
    nameless = getattr(tokenizer.model, "unk_token", None)
    unknown = dict.fromkeys(
        word for word in words if nameless and nameless in tokenizer.encode(word).tokens
    )
    if unknown:
        raise UserError(
            f"the model does not know the word{'s' if len(unknown) > 1 else ''}"
            f" {', '.join(unknown)} of the instruction '{sentence}'; use the words that it was"
            " trained with"
        )


def check_count(pictures, instructions) -> None:
    """UserError unless there is an instruction for each picture (or clip)."""
    if len(pictures) != len(instructions):
        raise UserError(
            f"there are {len(pictures)} pictures and {len(instructions)} instructions; give one"
            " instruction for each"
        )
