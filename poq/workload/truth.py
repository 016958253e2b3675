"""The two ground-truth proxies of the shipped log, both on 0 to 10.

`truth` is the papers' proxy, token F1 times 10 (costaware2025). `truth_alt` does not share its formula: it asks
whether an acceptable answer is there, or which share of a checklist of facts is covered, and does not care about
the other words.
"""

from collections import Counter
from collections.abc import Iterable

from poq.workload.corpus import Fact
from poq.workload.text import match_words, normalise_answer

MAX_ANSWER_WORDS = 50


def token_f1(answer: str, references: Iterable[str]) -> float:
    """Token F1 in [0, 1] after SQuAD's normalisation, the best over `references`.

    Two empty texts agree (1); an empty text and one that is not do not (0).
    """
    return max(_f1(normalise_answer(answer), normalise_answer(reference)) for reference in references)


def _f1(answer: list[str], reference: list[str]) -> float:
    if not answer or not reference:
        return float(answer == reference)
    shared = sum((Counter(answer) & Counter(reference)).values())
    return 2 * shared / (len(answer) + len(reference))


def answer_match(answer: str, acceptable: Iterable[str]) -> float:
    """1.0 if an acceptable answer stands in `answer` as whole normalised words, in order; else 0.0.

    A full sentence around the right answer is accepted, as a human reader accepts it. But a text of more than
    `MAX_ANSWER_WORDS` words is a dump of the passage and not an answer, and gets 0.0: without a limit the whole
    passage would answer every question. The longest sentence of the corpus stays below the limit.
    """
    found = match_words(answer)
    if len(answer.split()) > MAX_ANSWER_WORDS:
        return 0.0
    return float(any(_contains(found, match_words(text)) for text in acceptable))


def fact_coverage(summary: str, facts: Iterable[Fact]) -> float:
    """Share of `facts` whose `needs` are all met by whole words of `summary`, in [0, 1]; case does not count."""
    found = match_words(summary)
    met = [
        all(any(_contains(found, match_words(text)) for text in alternatives) for alternatives in fact.needs)
        for fact in facts
    ]
    return sum(met) / len(met)


def _contains(haystack: list[str], needle: list[str]) -> bool:
    span = len(needle)
    return span > 0 and any(haystack[i : i + span] == needle for i in range(len(haystack) - span + 1))
