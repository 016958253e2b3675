"""Question answerers: extractive systems that read a question and a passage on a CPU, without any download.

Every entry of `ANSWERERS` is called with the passages it may learn from and gives `answer(question, text) -> str`.
Most learn only how rare a word is; `ranker` and `ensemble` learn from questions and answers, so the workload
calls them by cross-fitting: no system answers a passage that it has learned from.
"""

import re
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from poq.workload.corpus import Passage
from poq.workload.text import (
    STOPWORDS,
    content_stems,
    inverse_document_frequency,
    sentences,
    stem,
    tokens,
)
from poq.workload.truth import token_f1

Answer = Callable[[str, str], str]

MAX_SPAN = 10
_NUMBER_WORDS = frozenset(
    """one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
    eighteen nineteen twenty thirty forty fifty sixty seventy eighty ninety hundred thousand million half quarter third
    dozen twice once""".split()
)
_MONTHS = frozenset("january february march april may june july august september october november december".split())
_DAYS = frozenset("monday tuesday wednesday thursday friday saturday sunday".split())
_TIMES = _DAYS | frozenset(
    """spring summer autumn winter morning evening noon midnight afternoon night week weeks month months year years
    day days hour hours minute minutes o'clock century decade tomorrow yesterday easter christmas dawn dusk""".split()
)
_PLACE_WORDS = frozenset("in at on from under near behind beside inside into above between along beneath to".split())
_REASON_WORDS = frozenset("because to so since as for by".split())
_EDGE = frozenset(
    """a an the of and or but is was were are be been had has have that which who whose with than as its his her their
    it he she they would will could can may must not at in on for from to by into until if when while because so then
    this these those there such very only also after before about where what how do does did no""".split()
)
# A span may open with these although they are function words: they belong to the answer.
_OPENERS = frozenset(
    "in at on for from to by because under behind between until after before about her his their its no so it they he she as".split()
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
    return (
        bool(re.fullmatch(r"1[0-9]{3}s?|20[0-9]{2}s?", low))
        or token.capitalize() == token
        and low in _MONTHS
        or low in _TIMES
    )


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
    """Five words beside the rarest question words: the window of the best sentence with none of the question's words."""
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
    """The name, date, number or clause of the best sentence that fits the question word, nearest to the question's words."""
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
        member = [is_name(token) and low[i] not in STOPWORDS and not (i == 0 and len(found) > 1 and not is_name(found[1]))
                  for i, token in enumerate(found)]  # fmt: skip
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
    kind, asked = question_type(question), set(content_stems(question))
    focus = _focus(question)
    fit = sentence_scores(question, found, idf)
    scale = max(fit.max(), 1e-9)
    rank = np.argsort(np.argsort(-np.round(fit, 9), kind="stable"), kind="stable")
    texts, rows = [], []
    for index, sentence in enumerate(found):
        marks = tokens(sentence)
        raw = [token for token, _, _ in marks]
        low = [token.lower() for token in raw]
        stems = [stem(token) for token in low]
        weight = np.array(
            [idf.get(s, idf[""]) if s in asked and t not in STOPWORDS else 0.0 for s, t in zip(stems, low)]
        )
        places = np.flatnonzero(weight)
        number = [is_number(token) for token in raw]
        time = [is_time(token) for token in raw]
        name = [is_name(token) and i > 0 and token.lower() not in STOPWORDS for i, token in enumerate(raw)]
        plain = [token in STOPWORDS for token in low]
        for start, end in candidate_spans(sentence):
            size = end - start
            away = np.where(places < start, start - places, places - end + 1)
            outside = (places < start) | (places >= end)
            near = float((weight[places] / np.maximum(away, 1))[outside].sum())
            before = low[start - 1] if start else "."
            after = low[end] if end < len(low) else "."
            shape = [
                any(number[start:end]),
                any(time[start:end]),
                sum(name[start:end]) / size,
                sum(plain[start:end]) / size,
                low[start] in _PLACE_WORDS,
                low[start] in ("because", "so", "since", "as"),
                low[start] in ("to", "by", "for"),
                size == 1,
                size == 2,
                size in (3, 4),
                size >= 6,
                number[start],
                size / MAX_SPAN,
                low[start] in ("it", "they", "he", "she", "his", "her", "their"),
            ]
            general = [
                fit[index] / scale,
                rank[index] == 0,
                rank[index] <= 2,
                near,
                near / max(weight.sum(), 1e-9) if len(places) else 0.0,
                float((~outside).sum()),
                float((~outside).sum()) / size,
                float(away[outside].min()) if outside.any() else 15.0,
                bool(weight[start - 1]) if start else False,
                bool(weight[end]) if end < len(low) else False,
                focus in stems[start:end] if focus else False,
                bool(focus) and end < len(low) and stems[end] == focus,
                bool(focus) and focus in stems,
                before in (",", ".", ";", ":", "'"),
                after in (",", ".", ";", ":", "'"),
                before in ("a", "an", "the"),
                before in _PLACE_WORDS,
                before in ("of", "by", "with", "for"),
                before in ("is", "was", "were", "are", "be", "been"),
                after in ("of", "and"),
                after in _PLACE_WORDS,
                after in ("is", "was", "were", "had", "has", "are", "will", "would", "could"),
                after[0].isalnum() and after not in STOPWORDS,
                before[0].isalnum() and before not in STOPWORDS,
                "," in low[start:end],
                start == 0,
                index / max(len(found) - 1, 1),
                np.mean([idf.get(s, idf[""]) for s in stems[start:end]]),
            ]
            texts.append(sentence[marks[start][1] : marks[end - 1][2]])
            crossed = np.zeros((len(_TYPES), len(shape)))
            crossed[_TYPES.index(kind)] = shape
            rows.append(np.concatenate([general, shape, crossed.ravel()]))
    return texts, np.array(rows, dtype=float)


def _focus(question: str) -> str:
    """Stem of the thing asked for: the noun after "which", "what" or "how many"; empty if there is none."""
    match = re.search(r"\b(?:which|what|how many|how much)\s+([a-z-]+)", question.lower())
    return "" if match is None or match.group(1) in STOPWORDS else stem(match.group(1))


def _training_spans(train: Sequence[Passage], idf: Mapping[str, float]) -> tuple[np.ndarray, np.ndarray]:
    """Features and token F1 of all candidate spans of all questions of `train`, (C, F) and (C,)."""
    features, target = [], []
    for passage in train:
        for question in passage.questions:
            texts, rows = span_features(question.question, passage.text, idf)
            features.append(rows)
            target.append([token_f1(text, question.answers) for text in texts])
    return np.concatenate(features), np.concatenate(target)


def _logistic(features: np.ndarray, target: np.ndarray):
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, tol=1e-8, max_iter=2000))
    model.fit(features, target > 0.75)
    return model


def fit_ranker(train: Sequence[Passage]) -> Answer:
    """The candidate span that a logistic regression, learned on other passages, holds most likely to be the answer."""
    idf = inverse_document_frequency(passage.text for passage in train)
    model = _logistic(*_training_spans(train, idf))

    def answer(question: str, text: str) -> str:
        texts, rows = span_features(question, text, idf)
        return texts[_best(model.decision_function(rows))]

    return answer


def fit_ranker_sentence(train: Sequence[Passage]) -> Answer:
    """The whole sentence around the span that `ranker` would give: as right as it, but wordy."""
    span = fit_ranker(train)

    def answer(question: str, text: str) -> str:
        chosen = span(question, text)
        found = sentences(text)
        holding = [sentence for sentence in found if chosen in sentence]
        return holding[0]

    return answer


def fit_ensemble(train: Sequence[Passage]) -> Answer:
    """Logistic regression and gradient boosting vote; the answer is the span with the highest expected token F1."""
    idf = inverse_document_frequency(passage.text for passage in train)
    features, target = _training_spans(train, idf)
    linear = _logistic(features, target)
    trees = HistGradientBoostingRegressor(
        max_iter=150, learning_rate=0.06, max_leaf_nodes=12, min_samples_leaf=40, random_state=0
    )
    trees.fit(features, target)

    def answer(question: str, text: str) -> str:
        texts, rows = span_features(question, text, idf)
        votes = [_standard(linear.decision_function(rows)), _standard(trees.predict(rows))]
        score = np.round(sum(votes), 9)
        top = np.argsort(-score, kind="stable")[:40]
        belief = np.exp(score[top] - score[top].max())
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
