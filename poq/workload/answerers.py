"""Question answerers: extractive systems that read a question and a passage on a CPU, without any download.

Every entry of `ANSWERERS` is called with the passages it may learn from and gives `answer(question, text) -> str`.
Most learn only how rare a word is; `ranker` and `ensemble` learn from questions and answers, so the workload
calls them by cross-fitting: no system answers a passage that it has learned from.
"""

import re
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from poq.workload.corpus import Passage
from poq.workload.text import (
    STOPWORDS,
    content_stems,
    inverse_document_frequency,
    sentences,
    stem,
    tokens,
    word_set,
)
from poq.workload.truth import token_f1

Answer = Callable[[str, str], str]

MAX_SPAN = 10
_NUMBER_WORDS = word_set(
    """one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million half quarter third
    dozen twice once"""
)
_MONTHS = word_set("january february march april may june july august september october november december")
_DAYS = word_set("monday tuesday wednesday thursday friday saturday sunday")
_TIMES = _DAYS | word_set(
    """spring summer autumn winter morning evening noon midnight afternoon night week weeks month months year years
    day days hour hours minute minutes o'clock century decade tomorrow yesterday easter christmas dawn dusk"""
)
_PLACE_WORDS = word_set("in at on from under near behind beside inside into above between along beneath to")
_REASON_WORDS = word_set("because to so since as for by")
_EDGE = word_set(
    """a an the of and or but is was were are be been had has have that which who whose with than as its his her their
    it he she they would will could can may must not at in on for from to by into until if when while because so then
    this these those there such very only also after before about where what how do does did no"""
)
# A span may open with these although they are function words: they belong to the answer.
_OPENERS = word_set(
    """in at on for from to by because under behind between until after before about her his their its no so it they he
    she as"""
)
_TYPES = ("who", "when", "where", "number", "duration", "why", "how", "what")


def question_type(question: str) -> str:
    """Kind of answer that `question` asks for: one of who, when, where, number, duration, why, how, what."""
    text = question.lower()
    if re.search(r"\bhow (long|soon|often)\b|\bfor how (long|many (days|weeks|months|years|hours|minutes))\b", text):
        return "duration"
    if re.search(
        r"\bhow (many|much|old|far|high|tall|deep|wide|big|large|thick|heavy|fast|warm|hot|cold)\b"
        r"|\bwhat (share|number|percentage|temperature|level|price|proportion)\b|\bcost\b.*\?$",
        text,
    ):
        return "number"
    if re.search(r"\bwhen\b|\b(what|which) (year|month|day|date|time|season|week|century)\b", text):
        return "when"
    for kind, pattern in (
        ("who", r"\bwho(m|se)?\b"),
        ("where", r"\bwhere\b|\b(what|which) (place|town|city|country|village|street)\b"),
        ("why", r"\bwhy\b|\bwhat (is|was) the reason\b"),
        ("how", r"\bhow\b"),
    ):
        if re.search(pattern, text):
            return kind
    return "what"


def is_number(token: str) -> bool:
    """Whether `token` is a numeral or a number word."""
    return any(char.isdigit() for char in token) or any(part in _NUMBER_WORDS for part in token.lower().split("-"))


def is_time(token: str) -> bool:
    """Whether `token` names a year, month, weekday, season or unit of time."""
    low = token.lower()
    return bool(re.fullmatch(r"1[0-9]{3}s?|20[0-9]{2}s?", low)) or (is_name(token) and low in _MONTHS) or low in _TIMES


def is_name(token: str) -> bool:
    """Whether `token` starts with a capital (a name, or a sentence's first word)."""
    return token[:1].isupper()


def fits_type(kind: str, answer: str) -> float:
    """How well `answer` looks like the answer to a question of `kind`, in [0, 1]; 0.5 where no pattern is known."""
    found = [token for token, _, _ in tokens(answer) if token[0].isalnum() or token[0] in "£$€"]
    if not found:
        return 0.0
    low = [token.lower() for token in found]
    if kind == "who":
        return float(any(is_name(token) and token.lower() not in _MONTHS | _DAYS for token in found))
    if kind == "when":
        return float(any(is_time(token) or re.search(r"\d", token) for token in found))
    if kind in ("number", "duration"):
        numeric = any(is_number(token) for token in found)
        return float(numeric) if kind == "number" else 0.5 * numeric + 0.5 * any(token in _TIMES for token in low)
    if kind == "where":
        return 0.5 * (low[0] in _PLACE_WORDS) + 0.5 * any(is_name(token) for token in found)
    if kind == "why":
        return 0.5 * (low[0] in _REASON_WORDS) + 0.5 * (len(found) >= 4)
    if kind == "how":
        return 0.5 * (low[0] in ("by", "with", "in", "on", "through")) + 0.5 * (len(found) >= 3)
    return 0.5


# Sentences ------------------------------------------------------------------------------------------------------------


def sentence_scores(question: str, found: Sequence[str], idf: Mapping[str, float]) -> np.ndarray:
    """BM25 of each sentence of `found` for `question`, (S,), >= 0; a third of the neighbours' score is added.

    The neighbours help where the name asked about stands one sentence before the answer.
    """
    bags = [Counter(content_stems(sentence)) for sentence in found]
    lengths = np.array([sum(bag.values()) for bag in bags], dtype=float)
    usual = max(lengths.mean(), 1.0)
    scores = np.zeros(len(found))
    for term in dict.fromkeys(content_stems(question)):
        count = np.array([bag[term] for bag in bags], dtype=float)
        scores += idf.get(term, idf[""]) * count * 2.2 / (count + 1.2 * (0.25 + 0.75 * lengths / usual))
    spread = scores.copy()
    spread[1:] += scores[:-1] / 3
    spread[:-1] += scores[1:] / 3
    return spread


def _best(scores: np.ndarray) -> int:
    """Index of the highest score, the first among ties; rounding keeps the choice equal on every machine."""
    return int(np.argmax(np.round(scores, 9)))


def fit_first_sentence(train: Sequence[Passage]) -> Answer:
    """The first sentence of the passage, whatever the question."""
    return lambda question, text: sentences(text)[0]


def fit_random_sentence(train: Sequence[Passage]) -> Answer:
    """A random sentence, the same one whenever the question and the passage are the same."""

    def answer(question: str, text: str) -> str:
        found = sentences(text)
        return found[np.random.default_rng(zlib.crc32((question + text).encode())).integers(len(found))]

    return answer


def fit_overlap_sentence(train: Sequence[Passage]) -> Answer:
    """The sentence that shares most words with the question, function words included."""

    def answer(question: str, text: str) -> str:
        asked = {token.lower() for token, _, _ in tokens(question)}
        found = sentences(text)
        return found[_best(np.array([len(asked & {t.lower() for t, _, _ in tokens(s)}) for s in found], dtype=float))]

    return answer


def fit_tfidf_sentence(train: Sequence[Passage]) -> Answer:
    """The sentence with the highest TF-IDF cosine to the question (scikit-learn, fitted on the passage itself)."""

    def answer(question: str, text: str) -> str:
        found = sentences(text)
        matrix = TfidfVectorizer(analyzer=content_stems, sublinear_tf=True).fit_transform([question, *found])
        return found[_best((matrix[1:] @ matrix[0].T).toarray().ravel())]

    return answer


# Spans by rule --------------------------------------------------------------------------------------------------------


def fit_word_window(train: Sequence[Passage]) -> Answer:
    """Five words of the best sentence that stand near to the question's words and repeat none of them."""
    idf = inverse_document_frequency(passage.text for passage in train)

    def answer(question: str, text: str) -> str:
        found = sentences(text)
        sentence = found[_best(sentence_scores(question, found, idf))]
        asked = set(content_stems(question))
        marks = tokens(sentence)
        anchors = [i for i, (token, _, _) in enumerate(marks) if stem(token) in asked]
        best, best_value = (0, min(5, len(marks))), -np.inf
        for start in range(max(1, len(marks) - 4)):
            inside = marks[start : start + 5]
            value = sum(0.2 if token.lower() in STOPWORDS else 1.0 for token, _, _ in inside if token[0].isalnum())
            value -= 2 * sum(start <= anchor < start + 5 for anchor in anchors)
            value -= 0.2 * min((abs(anchor - start - 2) for anchor in anchors), default=9)
            if value > best_value + 1e-9:
                best, best_value = (start, start + len(inside)), value
        return sentence[marks[best[0]][1] : marks[best[1] - 1][2]].strip(" ,;:.'\"")

    return answer


def fit_typed_span(train: Sequence[Passage]) -> Answer:
    """The name, date, number or clause of the best sentence that fits the question word, nearest to its words."""
    idf = inverse_document_frequency(passage.text for passage in train)

    def answer(question: str, text: str) -> str:
        found = sentences(text)
        kind, asked = question_type(question), set(content_stems(question))
        order = np.argsort(-np.round(sentence_scores(question, found, idf), 9), kind="stable")
        for index in order[:3]:
            spans = typed_spans(kind, found[index])
            near = [i for i, (token, _, _) in enumerate(tokens(found[index])) if stem(token) in asked]
            spans = [(s, e) for s, e in spans if not any(s <= i < e for i in near) or kind in ("number", "duration")]
            if spans:
                distance = [min((min(abs(i - s), abs(i - e + 1)) for i in near), default=99) for s, e in spans]
                start, end = spans[int(np.argmin(distance))]
                marks = tokens(found[index])
                return found[index][marks[start][1] : marks[end - 1][2]]
        return found[order[0]]

    return answer


def typed_spans(kind: str, sentence: str) -> list[tuple[int, int]]:
    """Token spans (start, end) of `sentence` that look like an answer to a question of `kind`, left to right."""
    found = [token for token, _, _ in tokens(sentence)]
    low = [token.lower() for token in found]
    if kind in ("why", "how"):
        openers = ("because", "so", "since", "as", "to") if kind == "why" else ("by", "with", "through")
        spans = []
        for start, token in enumerate(low):
            if token in openers:
                end = start + 1
                while end < len(low) and low[end] not in (",", ";", ".", ":") and end - start < MAX_SPAN:
                    end += 1
                if end - start >= 3:
                    spans.append((start, end))
        return spans
    if kind == "what":
        member = [token[0].isalnum() and token not in STOPWORDS for token in low]
    elif kind == "who":
        # A capital at the start of a sentence says nothing, unless a second one follows.
        named = [is_name(token) and low[i] not in STOPWORDS for i, token in enumerate(found)]
        member = [inside and (i > 0 or named[1:2] == [True]) for i, inside in enumerate(named)]
    elif kind == "where":
        member = [is_name(token) and i > 0 for i, token in enumerate(found)]
    elif kind == "when":
        member = [is_time(token) or bool(re.search(r"\d", token)) for token in found]
    else:
        member = [is_number(token) for token in found]
    spans, start = [], None
    for i, inside in enumerate([*member, False]):
        if inside and start is None:
            start = i
        elif not inside and start is not None:
            end = i
            # "eleven days", "7 metres": a number takes the word that it counts.
            if (
                kind in ("number", "duration")
                and end < len(low)
                and low[end][0].isalpha()
                and low[end] not in STOPWORDS
            ):
                end += 1
            spans.append((start, end))
            start = None
    return spans


# Spans by learning ----------------------------------------------------------------------------------------------------


def candidate_spans(sentence: str) -> list[tuple[int, int]]:
    """Token spans of `sentence` that could be an answer: up to `MAX_SPAN` words, not across strong punctuation."""
    found = [token.lower() for token, _, _ in tokens(sentence)]
    spans = []
    for start, first in enumerate(found):
        if not (first[0].isalnum() or first[0] in "£$€") or (first in _EDGE and first not in _OPENERS):
            continue
        for end in range(start + 1, min(start + MAX_SPAN, len(found)) + 1):
            last = found[end - 1]
            if not (last[0].isalnum() or last[0] in ",'£$€"):
                break
            if last[0].isalnum() and last not in _EDGE:
                spans.append((start, end))
    return spans


def span_features(question: str, text: str, idf: Mapping[str, float]) -> tuple[list[str], np.ndarray]:
    """Candidate answers of a passage and their features, (C,) texts and (C, F) numbers.

    The features say how well the sentence fits the question, how near the span is to the question's words, what
    the span looks like, what stands beside it, and how that looks agrees with the kind of question.
    """
    found = sentences(text)
    asked, focus = set(content_stems(question)), _focus(question)
    fit = sentence_scores(question, found, idf)
    rank = np.argsort(np.argsort(-np.round(fit, 9), kind="stable"), kind="stable")
    texts, rows = [], []
    for index, sentence in enumerate(found):
        spans = candidate_spans(sentence)
        if not spans:
            continue
        marks = tokens(sentence)
        texts += [sentence[marks[start][1] : marks[end - 1][2]] for start, end in spans]
        place = (fit[index] / max(fit.max(), 1e-9), rank[index] == 0, rank[index] <= 2, index / max(len(found) - 1, 1))
        rows.append(_sentence_features([token for token, _, _ in marks], np.array(spans), asked, focus, idf, place))
    plain = np.concatenate(rows)
    shape = plain[:, -_SHAPES:]
    crossed = np.zeros((len(plain), len(_TYPES), _SHAPES))
    crossed[:, _TYPES.index(question_type(question))] = shape
    return texts, np.hstack([plain, crossed.reshape(len(plain), -1)])


_SHAPES = 14
_STOPS = word_set(", . ; : '")


def _sentence_features(raw, spans, asked, focus, idf, place) -> np.ndarray:
    """Features of the spans (C, 2) of one sentence, (C, 28 + `_SHAPES`); the last ones say what a span looks like."""
    start, end = spans.T
    size = end - start
    low = [token.lower() for token in raw]
    stems = [stem(token) for token in low]
    rarity = np.array([idf.get(term, idf[""]) for term in stems])
    hit = np.array([term in asked and token not in STOPWORDS for term, token in zip(stems, low)])
    wanted = np.array([bool(focus) and term == focus for term in stems])
    where = np.flatnonzero(hit)

    # Distance of each question word of the sentence from each span, (C, P); not positive where it stands inside.
    away = np.where(where < start[:, None], start[:, None] - where, where - end[:, None] + 1)
    outside = away > 0
    near = (np.where(outside, rarity[where] / np.maximum(away, 1), 0.0)).sum(axis=1)
    inside = (~outside).sum(axis=1)
    nearest = np.where(outside, away, 15).min(axis=1, initial=15)

    edged = [".", *low, "."]

    def before(test: Callable[[str], bool]) -> np.ndarray:
        return np.array([test(token) for token in edged])[start]

    def after(test: Callable[[str], bool]) -> np.ndarray:
        return np.array([test(token) for token in edged])[end + 1]

    def first(test: Callable[[str], bool]) -> np.ndarray:
        return np.array([test(token) for token in low])[start]

    def share(values) -> np.ndarray:
        total = np.concatenate([[0.0], np.cumsum(values)])
        return (total[end] - total[start]) / size

    def content(token: str) -> bool:
        return token[0].isalnum() and token not in STOPWORDS

    number = np.array([is_number(token) for token in raw])
    beside = np.concatenate([[False], hit, [False]])
    counted = np.concatenate([wanted, [False]])
    columns = [
        *(np.full(len(spans), value, dtype=float) for value in place),
        near,
        near / max(rarity[where].sum(), 1e-9),
        inside,
        inside / size,
        nearest,
        beside[start],
        beside[end + 1],
        share(wanted) > 0,
        counted[end],
        np.full(len(spans), wanted.any()),
        before(_STOPS.__contains__),
        after(_STOPS.__contains__),
        before(("a", "an", "the").__contains__),
        before(_PLACE_WORDS.__contains__),
        before(("of", "by", "with", "for").__contains__),
        before(("is", "was", "were", "are", "be", "been").__contains__),
        after(("of", "and").__contains__),
        after(_PLACE_WORDS.__contains__),
        after(("is", "was", "were", "had", "has", "are", "will", "would", "could").__contains__),
        after(content),
        before(content),
        share([token == "," for token in low]) > 0,
        start == 0,
        share(rarity),
        # What the span looks like.
        share(number) > 0,
        share([is_time(token) for token in raw]) > 0,
        share([is_name(token) and i > 0 and token.lower() not in STOPWORDS for i, token in enumerate(raw)]),
        share([token in STOPWORDS for token in low]),
        first(_PLACE_WORDS.__contains__),
        first(("because", "so", "since", "as").__contains__),
        first(("to", "by", "for").__contains__),
        size == 1,
        size == 2,
        (size == 3) | (size == 4),
        size >= 6,
        number[start],
        size / MAX_SPAN,
        first(("it", "they", "he", "she", "his", "her", "their").__contains__),
    ]
    return np.column_stack(columns).astype(float)


def _focus(question: str) -> str:
    """Stem of the thing asked for: the noun after "which", "what" or "how many"; empty if there is none."""
    match = re.search(r"\b(?:which|what|how many|how much)\s+([a-z-]+)", question.lower())
    return "" if match is None or match.group(1) in STOPWORDS else stem(match.group(1))


@lru_cache(maxsize=1)  # three systems learn from the same passages, one after the other
def _learn(train: tuple[Passage, ...]):
    """What the learning systems share: rarity table, standardised features' scaler, and the two linear rankers.

    Gives (idf, scaler, pointwise, listwise); the last two are weights (F,) on standardised features.
    """
    idf = inverse_document_frequency(passage.text for passage in train)
    features, right, size = [], [], []
    for passage in train:
        for question in passage.questions:
            texts, rows = span_features(question.question, passage.text, idf)
            features.append(rows)
            right.append(np.array([token_f1(text, question.answers) for text in texts]) > 0.99)
            size.append(len(texts))
    scaler = StandardScaler().fit(np.concatenate(features))
    rows, target = scaler.transform(np.concatenate(features)), np.concatenate(right)
    pointwise = LogisticRegression(C=0.01, solver="newton-cholesky", tol=1e-8).fit(rows, target)
    return idf, scaler, pointwise.coef_[0], fit_listwise(rows, target, np.array(size), penalty=30.0)


def fit_listwise(rows: np.ndarray, right: np.ndarray, size: np.ndarray, *, penalty: float) -> np.ndarray:
    """Weights of a conditional logit: within each question, the chance of a span is softmax(rows @ weights).

    Parameters
    ----------
    rows : (C, F) array
        Standardised features of all spans, question after question.
    right : (C,) bool array
        Whether a span is an acceptable answer; a question without any teaches nothing.
    size : (Q,) int array
        Spans per question.
    penalty : float
        Half of it times the squared weights is added to the negative log-likelihood.

    Returns
    -------
    (F,) array
        Found by Newton's method, with the step halved while it does not help.
    """
    start = np.concatenate([[0], np.cumsum(size)[:-1]])
    owner = np.repeat(np.arange(len(size)), size)
    count = np.add.reduceat(right.astype(float), start)
    target = right / np.maximum(count, 1)[owner]
    taught = (count > 0)[owner]

    def chances(weights):
        value = rows @ weights
        value = np.exp(value - np.maximum.reduceat(value, start)[owner])
        return value / np.add.reduceat(value, start)[owner]

    def loss(weights, chance):
        return -float(target[right] @ np.log(chance[right])) + penalty / 2 * float(weights @ weights)

    weights = np.zeros(rows.shape[1])
    chance = chances(weights)
    for _ in range(50):
        share = chance * taught
        centre = np.add.reduceat(share[:, None] * rows, start)
        slope = rows.T @ (share - target) + penalty * weights
        curve = (rows * share[:, None]).T @ rows - centre.T @ centre + penalty * np.eye(len(weights))
        step = np.linalg.solve(curve, slope)
        before, scale = loss(weights, chance), 1.0
        while loss(weights - scale * step, chances(weights - scale * step)) > before and scale > 1e-6:
            scale /= 2
        weights = weights - scale * step
        chance = chances(weights)
        if np.abs(scale * step).max() < 1e-10:
            break
    return weights


def fit_ranker(train: Sequence[Passage]) -> Answer:
    """The candidate span that a logistic regression, learned on other passages, holds most likely to be the answer."""
    idf, scaler, weights, _ = _learn(tuple(train))

    def answer(question: str, text: str) -> str:
        texts, rows = span_features(question, text, idf)
        return texts[_best(scaler.transform(rows) @ weights)]

    return answer


def fit_ranker_sentence(train: Sequence[Passage]) -> Answer:
    """The whole sentence around the span that `ranker` would give: as right as it, but wordy."""
    span = fit_ranker(train)

    def answer(question: str, text: str) -> str:
        chosen = span(question, text)
        return next(sentence for sentence in sentences(text) if chosen in sentence)

    return answer


def fit_ensemble(train: Sequence[Passage]) -> Answer:
    """`ranker` and a conditional logit vote; the answer is the span with the highest expected token F1."""
    idf, scaler, pointwise, listwise = _learn(tuple(train))

    def answer(question: str, text: str) -> str:
        texts, rows = span_features(question, text, idf)
        rows = scaler.transform(rows)
        score = np.round(_standard(rows @ pointwise) + _standard(rows @ listwise), 9)
        top = np.argsort(-score, kind="stable")[:40]
        belief = np.exp(2 * (score[top] - score[top].max()))
        expected = [sum(b * token_f1(texts[i], [texts[j]]) for b, j in zip(belief, top)) for i in top]
        return texts[top[_best(np.array(expected))]]

    return answer


def _standard(values: np.ndarray) -> np.ndarray:
    return (values - values.mean()) / max(values.std(), 1e-9)


ANSWERERS: Mapping[str, Callable[[Sequence[Passage]], Answer]] = {
    "first_sentence": fit_first_sentence,
    "random_sentence": fit_random_sentence,
    "overlap_sentence": fit_overlap_sentence,
    "tfidf_sentence": fit_tfidf_sentence,
    "word_window": fit_word_window,
    "typed_span": fit_typed_span,
    "ranker": fit_ranker,
    "ranker_sentence": fit_ranker_sentence,
    "ensemble": fit_ensemble,
}
