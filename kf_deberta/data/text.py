"""Hangul as it is meant: syllables, not the conjoining jamo that macOS makes of them (NFD)."""

import re
import unicodedata
from collections.abc import Iterable

from kf_deberta.cli import say

# a syllable or a leading consonant, and the vowel or final consonant that belongs to it
_DECOMPOSED = re.compile("[\u1100-\u1112\uac00-\ud7a3][\u1161-\u1175\u11a8-\u11c2]+")


def compose_hangul(text: str) -> str:
    """Compose decomposed syllables, which a tokenizer does not know, and change nothing else."""
    return _DECOMPOSED.sub(lambda match: unicodedata.normalize("NFC", match[0]), text)


def compose_texts(texts: Iterable[str], source: object) -> list[str]:
    """Compose every text, and say how many of `source` that changed."""
    texts = list(texts)
    composed = [compose_hangul(text) for text in texts]
    say_composed(sum(old != new for old, new in zip(texts, composed, strict=True)), source)
    return composed


def say_composed(number: int, source: object) -> None:
    """Say that `number` texts of `source` were composed, unless none was."""
    if number:
        say(f"{source}: {number:,} texts held decomposed Hangul (NFD) and were composed")
