"""Summarisers: systems that read a title and a passage on a CPU, without any download, under one word budget.

Every entry of `SUMMARISERS` is called with the passages it may learn from and gives `summarise(title, text) -> str`
of at most `BUDGET` words. All take whole sentences from the passage, in its order, except `keywords` (a list of
words) and `compress` (sentences with asides cut out).
"""

import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache

import numpy as np
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from poq.workload.corpus import Passage
from poq.workload.text import content_stems, inverse_document_frequency, sentences, tokens, words

Summarise = Callable[[str, str], str]

BUDGET = 50


def take(found: Sequence[str], order: Iterable[int], budget: int = BUDGET) -> str:
    """Sentences of `found` in the given order of preference while they fit into `budget` words, put in text order.

    If not even the preferred sentence fits, its first `budget` words are taken, so that no summary is empty.
    """
    chosen, used = [], 0
    order = [int(index) for index in order]
    for index in order:
        size = len(found[index].split())
        if used + size <= budget:
            chosen.append(index)
            used += size
    if not chosen:
        return " ".join(found[order[0]].split()[:budget])
    return " ".join(found[index] for index in sorted(chosen))


def descending(scores: np.ndarray) -> np.ndarray:
    """Indices from the highest score to the lowest; ties in text order, rounding keeps that so on every machine."""
    return np.argsort(-np.round(scores, 9), kind="stable")


def tfidf(found: Sequence[str]) -> np.ndarray:
    """TF-IDF rows of unit length, (S, V), fitted on these sentences; a sentence of function words only is zero."""
    return TfidfVectorizer(analyzer=content_stems, sublinear_tf=True).fit_transform(found).toarray()


def power_iteration(weights: np.ndarray, *, damping: float = 0.85) -> np.ndarray:
    """Stationary distribution of the damped random walk on a graph of non-negative `weights` (S, S); sums to 1."""
    size = len(weights)
    total = weights.sum(axis=1, keepdims=True)
    step = np.divide(weights, total, out=np.full_like(weights, 1 / size), where=total > 0)
    rank = np.full(size, 1 / size)
    for _ in range(200):
        moved = (1 - damping) / size + damping * rank @ step
        if np.abs(moved - rank).sum() < 1e-12:
            break
        rank = moved
    return rank


def lexrank(found: Sequence[str]) -> np.ndarray:
    """Centrality of each sentence in the graph of TF-IDF cosines, (S,), sums to 1."""
    rows = tfidf(found)
    return power_iteration(rows @ rows.T * (1 - np.eye(len(rows))))


def fit_lead(train: Sequence[Passage]) -> Summarise:
    """The first sentences."""
    return lambda title, text: take(found := sentences(text), range(len(found)))


def fit_last(train: Sequence[Passage]) -> Summarise:
    """The last sentences."""
    return lambda title, text: take(found := sentences(text), range(len(found) - 1, -1, -1))


def fit_headline(train: Sequence[Passage]) -> Summarise:
    """The first sentence alone, whatever room is left."""
    return lambda title, text: take(sentences(text)[:1], [0])


def fit_random(train: Sequence[Passage]) -> Summarise:
    """Random sentences, the same ones whenever the text is the same."""

    def summarise(title: str, text: str) -> str:
        found = sentences(text)
        return take(found, np.random.default_rng(zlib.crc32(text.encode())).permutation(len(found)))

    return summarise


def fit_keywords(train: Sequence[Passage]) -> Summarise:
    """The words with the highest TF-IDF in order of appearance: no sentences at all, and half the budget."""
    idf = inverse_document_frequency(passage.text for passage in train)

    def summarise(title: str, text: str) -> str:
        value, first = {}, {}
        for word in words(text):
            for key in content_stems(word):
                value[key] = value.get(key, 0.0) + idf.get(key, idf[""])
                first.setdefault(key, word)
        top = sorted(value, key=lambda key: -round(value[key], 9))[: BUDGET // 2]
        return ", ".join(first[key] for key in first if key in set(top))

    return summarise


def fit_textrank(train: Sequence[Passage]) -> Summarise:
    """The most central sentences of the graph of TF-IDF cosines (power iteration)."""
    return lambda title, text: take(found := sentences(text), descending(lexrank(found)))


def fit_lsa(train: Sequence[Passage]) -> Summarise:
    """Sentences that are long in the space of the three strongest latent topics (scikit-learn's TruncatedSVD)."""

    def summarise(title: str, text: str) -> str:
        found = sentences(text)
        rows = tfidf(found)
        if min(rows.shape) < 2:
            return take(found, range(len(found)))  # one sentence, or one word: there is nothing to choose
        topics = TruncatedSVD(min(3, min(rows.shape) - 1), algorithm="arpack", random_state=0).fit_transform(rows)
        return take(found, descending(np.sqrt((topics**2).sum(axis=1))))

    return summarise


def fit_mmr(train: Sequence[Passage]) -> Summarise:
    """Maximal marginal relevance: near to the whole passage and its title, far from what is chosen already."""

    def summarise(title: str, text: str) -> str:
        found = sentences(text)
        rows = tfidf([*found, f"{title} {text}"])
        relevance, likeness = rows[:-1] @ rows[-1], rows[:-1] @ rows[:-1].T
        order: list[int] = []
        while len(order) < len(found):
            repeat = likeness[:, order].max(axis=1) if order else np.zeros(len(found))
            gain = np.round(0.7 * relevance - 0.3 * repeat, 9)
            gain[order] = -np.inf
            order.append(int(np.argmax(gain)))
        return take(found, order)

    return summarise


def sentence_features(title: str, found: Sequence[str], idf: Mapping[str, float]) -> np.ndarray:
    """What a summariser can see of each sentence, (S, F): place, length, centrality, title, rarity, names, numbers."""
    count = len(found)
    rows = tfidf([*found, title, " ".join(found)])
    central = lexrank(found) * count
    features = []
    for index, sentence in enumerate(found):
        marks = [token for token, _, _ in tokens(sentence)]
        stems = content_stems(sentence)
        size = len(sentence.split())
        features.append(
            [
                index / max(count - 1, 1),
                index == 0,
                index == 1,
                index == count - 1,
                min(size, 40) / 40,
                size < 8,
                central[index],
                rows[index] @ rows[-1],
                rows[index] @ rows[-2],
                np.mean([idf.get(term, idf[""]) for term in stems]) if stems else 0.0,
                sum(mark[0].isupper() for mark in marks[1:]) / size,
                sum(mark[0].isdigit() for mark in marks) / size,
                bool(re.match(r"['\"]?(But|However|Yet|And|So|This|That|It|He|She|They)\b", sentence)),
                "'" in marks or '"' in marks,
                marks[-1] == "?" or "?" in marks,
                bool({"because", "but", "not", "therefore", "so", "instead"} & {mark.lower() for mark in marks}),
            ]
        )
    return np.array(features, dtype=float)


@lru_cache(maxsize=1)  # three systems learn from the same passages, one after the other
def _learn(train: tuple[Passage, ...]):
    """Ridge regression of a sentence's recall of the reference summary on its features, and the rarity table."""
    idf = inverse_document_frequency(passage.text for passage in train)
    features, target = [], []
    for passage in train:
        found = sentences(passage.text)
        features.append(sentence_features(passage.title, found, idf))
        target.append([_recall(sentence, passage.summary) for sentence in found])
    model = make_pipeline(StandardScaler(), Ridge(alpha=20.0))
    return model.fit(np.concatenate(features), np.concatenate(target)), idf


def _recall(sentence: str, summary: str) -> float:
    wanted = set(content_stems(summary))
    return len(wanted & set(content_stems(sentence))) / len(wanted)


def fit_ranker(train: Sequence[Passage]) -> Summarise:
    """Sentences by the gain that a ridge regression, learned on other passages, expects, less what repeats."""
    model, idf = _learn(tuple(train))

    def summarise(title: str, text: str) -> str:
        found = sentences(text)
        return take(found, _greedy(found, model.predict(sentence_features(title, found, idf))))

    return summarise


def _greedy(found: Sequence[str], gain: np.ndarray, budget: int = BUDGET) -> list[int]:
    """Order of choice: most expected gain per word of budget, with words said already counted at nothing."""
    bags = [set(content_stems(sentence)) for sentence in found]
    order: list[int] = []
    said: set[str] = set()
    used = 0
    while True:
        fits = [i for i in range(len(found)) if i not in order and used + len(found[i].split()) <= budget]
        if not fits:
            break
        value = [gain[i] * len(bags[i] - said) / max(len(bags[i]), 1) for i in fits]
        best = fits[int(np.argmax(np.round(value, 9)))]
        order.append(best)
        said |= bags[best]
        used += len(found[best].split())
    return order or [int(np.argmax(np.round(gain, 9)))]


# A stretch up to the next punctuation mark, and that mark if it is a comma; a point inside a number is no mark.
_STRETCH = r"(?:[^,.;:]|[.,:](?=\d))*(?:,(?!\d)|(?=[.;:](?!\d)))"
_ASIDES = (
    r"\s*\([^)]*\)",
    rf",\s*(?:which|who|where|whose|for example|such as|said|says|he said|she said)\b{_STRETCH}",
    r"\b(?:However|Meanwhile|Moreover|In fact|Of course|Still|Also|Indeed|At first),\s*",
)
# What follows a colon or semicolon; not behind the name of a speaker, so four words must stand before it.
_TAIL = r"^((?:\S+\s+){3,}\S+?)[:;]\s(?:[^.]|\.(?=\d))*(?=\.(?!\d))"


def compress_sentence(sentence: str) -> str:
    """`sentence` without brackets, relative clauses, opening adverbs and what follows a colon or semicolon."""
    if sentence[:1] in "'\"" or "?" in sentence:
        return sentence
    short = sentence
    for pattern in _ASIDES:
        short = re.sub(pattern, "", short)
    short = re.sub(_TAIL, r"\1", short).strip()
    return short[:1].upper() + short[1:] if len(short.split()) >= 5 else sentence


def fit_compress(train: Sequence[Passage]) -> Summarise:
    """As `ranker`, but asides are cut out of the sentences first, so that more of them fit."""
    model, idf = _learn(tuple(train))

    def summarise(title: str, text: str) -> str:
        found = sentences(text)
        gain = model.predict(sentence_features(title, found, idf))
        short = [compress_sentence(sentence) for sentence in found]
        return take(short, _greedy(short, gain))

    return summarise


def fit_search(train: Sequence[Passage]) -> Summarise:
    """Local search over sets of sentences: learned gain, likeness to the passage, little repetition."""
    model, idf = _learn(tuple(train))

    def summarise(title: str, text: str) -> str:
        found = sentences(text)
        gain = model.predict(sentence_features(title, found, idf))
        sizes = [len(sentence.split()) for sentence in found]
        rows = tfidf([*found, f"{title} {text}"])
        likeness = rows[:-1] @ rows[:-1].T

        def value(chosen: list[int]) -> float:
            whole = rows[chosen].sum(axis=0)
            match = whole @ rows[-1] / max(float(np.linalg.norm(whole)), 1e-9)
            repeat = sum(likeness[i, j] for i in chosen for j in chosen if i < j)
            return round(float(sum(gain[i] for i in chosen) + 0.3 * match - 0.2 * repeat), 9)

        best = _greedy(found, gain)
        reached = value(best)
        for _ in range(20):
            near = [
                trial
                for i in [None, *best]
                for j in [None, *(j for j in range(len(found)) if j not in best)]
                if (trial := [k for k in [*best, j] if k is not None and k != i])
                and sum(sizes[k] for k in trial) <= BUDGET
            ]
            if not near:
                break
            values = [value(trial) for trial in near]
            if max(values) <= reached:
                break
            reached = max(values)
            best = near[values.index(reached)]
        return take(found, best)

    return summarise


SUMMARISERS: Mapping[str, Callable[[Sequence[Passage]], Summarise]] = {
    "headline": fit_headline,
    "keywords": fit_keywords,
    "last": fit_last,
    "random": fit_random,
    "lead": fit_lead,
    "textrank": fit_textrank,
    "lsa": fit_lsa,
    "mmr": fit_mmr,
    "ranker": fit_ranker,
    "compress": fit_compress,
    "search": fit_search,
}
