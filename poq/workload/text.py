"""Words, sentences and stems: the little language knowledge that the text systems and evaluators share.

Everything works on plain English text and needs no download.
"""

import math
import re
import string
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache

_WORD = re.compile(r"[A-Za-z0-9]+(?:[-'.,:][A-Za-z0-9]+)*")
_TOKEN = re.compile(r"[£$€]?[A-Za-z0-9]+(?:[-'.,:][A-Za-z0-9]+)*%?|[^\sA-Za-z0-9]")
_SENTENCE_END = re.compile(r"[.!?]['\")]*\s+(?=['\"(]?[A-Z0-9])")
_ABBREVIATION = re.compile(r"(?:\b(?:Mr|Mrs|Ms|Dr|St|Prof|No|Mt|vs|approx)|\b[A-Z])\.['\")]*\s+$")


def word_set(text: str) -> frozenset[str]:
    """The words of a word list."""
    return frozenset(text.split())


STOPWORDS = word_set(
    """a about above after again against all also an and any are as at be because been before being below between both
    but by can cannot could did do does doing down during each even every few for from further had has have having he
    her here hers herself him himself his how i if in into is it its itself just may me might more most much must my
    no nor not now of off on once only or other our out over own same shall she should so some such than that the
    their them then there these they this those through to too under until up upon us very was we were what when where
    which while who whom whose why will with would you your"""
)


def words(text: str) -> list[str]:
    """Lower-cased words of `text`, in order; hyphens, apostrophes, and points inside a word stay."""
    return [word.lower() for word in _WORD.findall(text)]


def tokens(text: str) -> list[tuple[str, int, int]]:
    """Words and single punctuation marks with their character offsets: (token, start, end)."""
    return [(match.group(), match.start(), match.end()) for match in _TOKEN.finditer(text)]


def sentences(text: str) -> list[str]:
    """Sentences of `text`, in order, white space trimmed; a blank line always ends a sentence."""
    found = []
    for paragraph in re.split(r"\n\s*\n", text):
        flat = " ".join(paragraph.split())
        start = 0
        for match in _SENTENCE_END.finditer(flat):
            if _ABBREVIATION.search(flat[start : match.end()]):
                continue
            found.append(flat[start : match.end()].strip())
            start = match.end()
        if flat[start:].strip():
            found.append(flat[start:].strip())
    return found


@lru_cache(maxsize=65536)
def stem(word: str) -> str:
    """`word` without its commonest English endings, so that "boats" meets "boat" and "closed" meets "closing"."""
    word = word.lower().removesuffix("'s")
    for ending, put in (("ies", "y"), ("sses", "ss"), ("ied", "y"), ("ing", ""), ("ed", ""), ("ly", ""), ("es", "")):
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            word = word[: -len(ending)] + put
            break
    else:
        if word.endswith("s") and not word.endswith("ss") and len(word) > 3:
            word = word[:-1]
    if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "aeiouls":
        word = word[:-1]
    return word.removesuffix("e") if len(word) > 3 else word


def content_stems(text: str) -> list[str]:
    """Stems of the words of `text` that are not function words, in order."""
    return [stem(word) for word in words(text) if word not in STOPWORDS]


def normalise_answer(text: str) -> list[str]:
    """SQuAD's normalisation: lower case, punctuation deleted, articles dropped; the words that are left."""
    bare = "".join(char for char in text.lower() if char not in string.punctuation)
    return [word for word in bare.split() if word not in ("a", "an", "the")]


def match_words(text: str) -> list[str]:
    """Words for whole-word matching: as `words`, but hyphens part words and articles are dropped."""
    return [word for word in words(text.replace("-", " ")) if word not in ("a", "an", "the")]


def inverse_document_frequency(texts: Iterable[str]) -> dict[str, float]:
    """Smoothed inverse document frequency per stem, ln((1 + N) / (1 + n)) + 1, over `texts`.

    The key ``""`` holds the value of a stem that no text contains.
    """
    texts = list(texts)
    counts = Counter(found for text in texts for found in set(content_stems(text)))
    table = {found: math.log((1 + len(texts)) / (1 + count)) + 1 for found, count in sorted(counts.items())}
    table[""] = math.log(1 + len(texts)) + 1
    return table
