"""The same frame wherever the work is done, and nothing lost when it is interrupted."""

import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
import types
import warnings
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pytest
from numba import njit, vectorize

from poq import jobs, parts, simulate
from poq.aggregators import AGGREGATORS, mean
from poq.synthetic import synthetic_log

N_JOBS = 12


def make_log(seed=0):
    """Two tasks whose answers come from different numbers of models, so that some columns stay empty."""
    rng = np.random.default_rng(seed)
    sizes = {"qa": 4, "summary": 2}
    logs = [synthetic_log(rng, n_items=12, n_models=n, evaluators=6, task=task) for task, n in sizes.items()]
    return pd.concat(logs, ignore_index=True)


LOG = make_log()


def make_sweep(**fields):
    """Scenarios in which every kind of column occurs: whole numbers with gaps, truth values, texts, NaN."""
    lists = {"task": ["qa", "summary"], "n_nodes": [None, 9], "attack": ["none", "noise"], "malicious_share": [0, 0.3]}
    return simulate.grid(**{**lists, "rule": ["mean", "median", "paper"], "committee": 3, "n_rounds": 200, **fields})


def make_many_jobs(rule="mean", n_jobs=N_JOBS):
    """Scenarios that share nothing, and so make one job each."""
    return simulate.grid(task="qa", rule=rule, committee=3, n_rounds=100, burn_in=list(range(n_jobs)))


def run(scenarios, **options):
    return simulate.run(LOG, scenarios, **{"trials": 3, "seed": 7, "progress": False, **options})


def assert_same(one, other):
    pd.testing.assert_frame_equal(one, other, check_exact=True, check_flags=True)


@pytest.fixture(scope="module")
def serial_frame():
    return run(make_sweep())


@pytest.fixture
def small_jobs(monkeypatch):
    """One trial, or a few cases of one, per job."""
    monkeypatch.setattr(jobs, "JOB_SECONDS", (1e-3, 1e-3))


@pytest.fixture
def own_pool(monkeypatch):
    """Every sweep is worth a pool."""
    monkeypatch.setattr(jobs, "SERIAL_SECONDS", 0.0)
    monkeypatch.setattr(jobs, "n_cores", lambda: 2)


@pytest.fixture(scope="module")
def dask_client():
    """A real scheduler and two worker processes on the loopback interface."""
    distributed = pytest.importorskip("distributed")
    quiet = {"silence_logs": "CRITICAL", "dashboard_address": "127.0.0.1:0", "scheduler_kwargs": {"dashboard": False}}
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, host="127.0.0.1", **quiet) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def processes():
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as made:
        yield made


@pytest.fixture(params=["threads", "processes", "dask"])
def executor(request):
    if request.param == "threads":
        with ThreadPoolExecutor(2) as made:
            yield made
    elif request.param == "processes":
        yield request.getfixturevalue("processes")
    else:
        yield request.getfixturevalue("dask_client").get_executor()


def count_calls(monkeypatch):
    """The jobs that are done in this process from here on."""
    calls, real = [], jobs.play_group

    def counted(*work):
        calls.append(work)
        return real(*work)

    monkeypatch.setattr(jobs, "play_group", counted)
    return calls


# ------------------------------------------------------------------------------------------------- the same frame


def test_executors_give_the_serial_frame(serial_frame, small_jobs, executor):
    assert_same(run(make_sweep(), executor=executor), serial_frame)


def test_own_pool_gives_the_serial_frame(serial_frame, small_jobs, own_pool, monkeypatch):
    here = count_calls(monkeypatch)
    assert_same(run(make_sweep()), serial_frame)
    assert len(here) < len(jobs.split(plan_of(make_sweep()), 3))  # others did jobs too


def plan_of(scenarios, trials=3):
    fields = [simulate._text_fields(scenario) for scenario in scenarios]
    return simulate._plan(LOG, scenarios, fields, trials=trials, seed=7)[0]


@pytest.mark.parametrize("aim", [1e-4, 1e-3, 0.1, 100.0])
def test_split_covers_every_row_once(aim, monkeypatch):
    monkeypatch.setattr(jobs, "JOB_SECONDS", (aim, aim))
    scenarios = make_sweep()
    made = jobs.split(plan_of(scenarios, 5), 5)
    rows = [(n, trial) for job in made for n in job.group.numbers for trial in range(job.first, job.stop)]
    assert sorted(rows) == [(n, trial) for n in range(len(scenarios)) for trial in range(5)]
    assert all(len(job.group.numbers) == len(job.group.cases) for job in made)


def test_a_long_trial_is_cut_into_pieces(serial_frame, monkeypatch):
    monkeypatch.setattr(jobs, "JOB_SECONDS", (1e-5, 1e-5))
    assert len(jobs.split(plan_of(make_sweep()), 3)) == 3 * len(make_sweep())
    assert_same(run(make_sweep()), serial_frame)


def test_estimate_grows_with_the_work():
    def seconds(**fields):
        [group] = plan_of(simulate.grid(task="qa", **fields), 1)
        return jobs.estimate_seconds(group)

    base = seconds(n_rounds=10**6)
    assert 9 * base < seconds(n_rounds=10**7) < 11 * base
    assert seconds(n_rounds=10**6, rule=["mean", "median"]) > 1.5 * base
    assert seconds(n_rounds=10**6, committee=6) > base
    assert seconds(n_rounds=10**6, pay_reference="leave_one_out") > base


def test_inside_a_worker_no_pool_is_started(dask_client):
    scenarios = make_many_jobs(n_jobs=2)

    def on_the_worker(log):
        jobs.SERIAL_SECONDS = 0.0
        return simulate.run(log, scenarios, trials=1, seed=0, progress=False)

    expected = run(scenarios, trials=1, seed=0)
    assert_same(dask_client.submit(on_the_worker, LOG, pure=False).result(timeout=60), expected)


MAIN_SCRIPT = """
    import sys

    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    import numpy as np
    import pandas as pd

    from poq import jobs, simulate
    from poq.aggregators import AGGREGATORS
    from poq.attacks import ATTACKS
    from poq.synthetic import synthetic_log

    SHARE = 0.25


    def midrange(scores, *, shrink=0.0):
        return (1 - shrink) * ((1 - SHARE) * scores.mean(axis=-1) + SHARE * scores.max(axis=-1))


    def flip(scores, malicious, rng):
        return np.where(malicious, 10.0 - scores, scores)


    AGGREGATORS["midrange"] = midrange
    ATTACKS["flip"] = flip

    if __name__ == "__main__":
        log = synthetic_log(np.random.default_rng(0), n_items=9, n_models=2, evaluators=6)
        fields = {"attack": "flip", "malicious_share": 0.3, "rule_options": {"shrink": 0.1}, "n_rounds": 100}
        scenarios = simulate.grid(task="synthetic", rule="midrange", burn_in=list(range(6)), **fields)

        def run(**options):
            return simulate.run(log, scenarios, trials=2, seed=0, progress=False, **options)

        serial = run()
        jobs.n_cores = lambda: 2
        jobs.SERIAL_SECONDS = 0
        pd.testing.assert_frame_equal(run(), serial, check_exact=True)
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
            pd.testing.assert_frame_equal(run(executor=executor), serial, check_exact=True)
        from distributed import Client

        with Client(sys.argv[1]) as client:
            pd.testing.assert_frame_equal(run(executor=client.get_executor()), serial, check_exact=True)
        print("same", len(serial))
"""


def test_rules_and_attacks_of_the_main_module_travel(dask_client, tmp_path):
    script = tmp_path / "study.py"
    script.write_text(textwrap.dedent(MAIN_SCRIPT), encoding="utf-8")
    command = [sys.executable, str(script), dask_client.scheduler.address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "same 12\n"


# --------------------------------------------------------------------------------------------------- what goes wrong


def make_fatal_once(flag: Path):
    """A rule that kills the first process other than this one that plays it."""
    here = os.getpid()

    def fatal_once(scores):
        if os.getpid() != here and not flag.exists():
            flag.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(0.003)  # so that this process does not do all the work before its worker has started
        return scores.mean(axis=-1)

    return fatal_once


@pytest.mark.parametrize("where", ["own pool", "processes", "dask"])
def test_a_killed_worker_costs_only_time(where, own_pool, small_jobs, monkeypatch, tmp_path, request):
    flag = tmp_path / "killed"
    monkeypatch.setitem(AGGREGATORS, "probe", make_fatal_once(flag))
    scenarios = make_many_jobs("probe", 60)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if where == "own pool":
            frame = run(scenarios)
        elif where == "processes":
            monkeypatch.setattr(jobs, "SERIAL_SECONDS", np.inf)  # what is left is done here
            with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as executor:
                frame = run(scenarios, executor=executor)
        else:
            frame = run(scenarios, executor=request.getfixturevalue("dask_client").get_executor())
    assert flag.exists()
    monkeypatch.setitem(AGGREGATORS, "probe", mean)
    monkeypatch.setattr(jobs, "SERIAL_SECONDS", np.inf)
    assert_same(frame, run(scenarios))
    ours = [w for w in caught if "unfinished job(s)" in str(w.message)]
    assert len(ours) == (0 if where == "dask" else 1)  # Dask mends itself
    assert all(Path(w.filename).name == "test_jobs.py" for w in ours)


class Picky(Exception):
    """An exception that cannot be pickled back from a worker."""

    def __init__(self, one, two):
        super().__init__(f"{one} and {two}")


def make_failing():
    """A rule that passes the try of the Scenario's constructor and fails on a block of rounds."""

    def failing(scores):
        if len(scores) > 20:
            raise Picky("salt", "pepper")
        return scores.mean(axis=-1)

    return failing


@pytest.mark.parametrize("where", ["here", "own pool", "processes", "dask"])
def test_a_failing_scenario_is_named_and_ends_the_run(where, small_jobs, monkeypatch, tmp_path, request):
    monkeypatch.setitem(AGGREGATORS, "probe", make_failing())
    if where == "own pool":
        request.getfixturevalue("own_pool")
    scenarios = [*make_many_jobs(n_jobs=4), *make_many_jobs("probe", 2), *make_many_jobs("median", 40)]
    match = (
        r"scenarios\[[45]\] \(task 'qa', rule 'probe', attack 'none', .*committee 3\), trial [012] failed: Picky: salt"
    )
    options = {"out": tmp_path / "out"}
    if where == "processes":
        options["executor"] = request.getfixturevalue("processes")
    elif where == "dask":
        options["executor"] = request.getfixturevalue("dask_client").get_executor()
    with pytest.raises(RuntimeError, match=match) as caught:
        run(scenarios, **options)
    assert "in failing" in "".join(caught.value.__notes__)  # the rule's own line is in the trace
    assert not list((tmp_path / "out").glob("*.tmp"))


class Recorder(Executor):
    """An executor that does the first job and lets the others wait."""

    def __init__(self):
        self.futures = []

    def submit(self, function, *arguments):
        future = Future()
        self.futures.append(future)
        if len(self.futures) == 1:
            future.set_running_or_notify_cancel()
            future.set_result(function(*arguments))
        return future


def test_a_failure_cancels_the_rest(monkeypatch):
    monkeypatch.setitem(AGGREGATORS, "probe", make_failing())
    executor = Recorder()
    with pytest.raises(RuntimeError, match="Picky"):
        run(make_many_jobs("probe"), executor=executor)
    assert len(executor.futures) == N_JOBS
    assert all(future.cancelled() for future in executor.futures[1:])


def test_an_executor_that_is_shut_down_is_refused(monkeypatch):
    executor = ThreadPoolExecutor(1)
    executor.shutdown()
    here = count_calls(monkeypatch)
    with pytest.raises(ValueError, match="executor: ThreadPoolExecutor takes no work"):
        run(make_many_jobs(), executor=executor)
    assert not here


def test_what_is_no_executor_is_refused(dask_client):
    with pytest.raises(ValueError, match=r"client\.get_executor\(\)\), not Client"):
        run(make_many_jobs(), executor=dask_client)


# ------------------------------------------------------------------------------------------------------- parts on disk


def test_parts_keep_the_frame_exactly(serial_frame, small_jobs, tmp_path, monkeypatch):
    out = tmp_path / "new" / "out"
    assert_same(run(make_sweep(), out=out), serial_frame)
    kinds = {str(kind) for kind in serial_frame.dtypes}
    assert {"int64", "Int64", "float64", "bool", "str"} <= kinds
    assert serial_frame.isna().any().any()
    here = count_calls(monkeypatch)
    assert_same(run(make_sweep(), out=out), serial_frame)
    assert not here
    names = {path.name for path in out.iterdir()}
    assert names == {"manifest.json", *(f"part-{n:05d}.parquet" for n in range(len(names) - 1))}


def test_every_kind_of_value_survives_a_part(tmp_path):
    values = [1, 2**53 + 1, -0.0, 0.1 + 0.2, np.nan, np.inf, np.float64(5e-324), np.int64(-3), np.bool_(True), False]
    for number, value in enumerate(values):
        texts = np.array(["é[0]\n", "é[1]\n"], dtype=object)
        columns = {"n": np.array([0, 1]), "value": np.array([value, value]), "text": texts}
        kept = parts.Parts(tmp_path / "out", {"seed": 0})
        kept.write(number, columns)
        back = kept.read(number)
        assert list(back) == list(columns)
        assert back["text"].tolist() == columns.pop("text").tolist()
        for name, column in columns.items():
            assert (back[name].dtype, back[name].tobytes()) == (column.dtype, column.tobytes())


def test_tasks_with_different_numbers_of_items_join():
    log = synthetic_log(np.random.default_rng(0), n_items=9, n_models=2, evaluators=4, task="qa")
    other = synthetic_log(np.random.default_rng(1), n_items=7, n_models=2, evaluators=4, task="other")
    scenarios = simulate.grid(task=["qa", "other"], rule=["mean", "median"], committee=3, n_rounds=50)
    options = {"trials": 2, "seed": 0, "progress": False, "item_sums": True}
    whole = simulate.run(pd.concat([log, other], ignore_index=True), scenarios, **options)
    assert [len(sums) for sums in whole["item_sums"]] == [6 * n for n in (9, 7) for _ in range(4)]
    for task, its_log in (("qa", log), ("other", other)):
        alone = simulate.run(its_log, [s for s in scenarios if s.task == task], **options)
        for one, two in zip(whole[whole["task"] == task]["item_sums"], alone["item_sums"]):
            np.testing.assert_array_equal(one, two)


def test_jobs_with_different_metrics_join():
    """One task has a model that the other lacks."""
    one = {"scenario_number": np.array([0, 2]), "trial": np.array([0, 0]), "a": np.array([0.5, 0.25])}
    two = {"scenario_number": np.array([1, 0]), "trial": np.array([0, 1]), "b": np.array([1.5, 2.5])}
    expected = {
        "scenario_number": [0, 0, 1, 2],
        "trial": [0, 1, 0, 0],
        "a": [0.5, np.nan, np.nan, 0.25],
        "b": [np.nan, 2.5, 1.5, np.nan],
    }
    pd.testing.assert_frame_equal(jobs._join([one, two]), pd.DataFrame(expected))


@pytest.fixture
def finished(tmp_path, small_jobs):
    """A finished sweep on disk: its folder, its scenarios, its frame."""
    scenarios = make_many_jobs()
    return tmp_path / "out", scenarios, run(scenarios, out=tmp_path / "out")


def damage_truncate(path, folder):
    path.write_bytes(path.read_bytes()[:-20])


def damage_empty(path, folder):
    path.write_bytes(b"")


def damage_flip(path, folder):
    content = bytearray(path.read_bytes())
    content[content.index(b"PAR1") + 40] ^= 4
    path.write_bytes(content)


def damage_foreign_table(path, folder):
    pd.DataFrame({"mine": [1, 2, 3]}).to_parquet(path)


def damage_text(path, folder):
    path.write_text("my notes", encoding="utf-8")


def damage_other_job(path, folder):
    path.write_bytes((folder / "part-00001.parquet").read_bytes())


def damage_other_call(path, folder):
    run(make_many_jobs(), seed=8, out=folder.parent / "other")
    path.write_bytes((folder.parent / "other" / path.name).read_bytes())


def damage_folder(path, folder):
    path.unlink()
    path.mkdir()
    (path / "precious.txt").write_text("keep me", encoding="utf-8")


@pytest.mark.parametrize(
    "damage",
    [
        damage_truncate,
        damage_empty,
        damage_flip,
        damage_foreign_table,
        damage_text,
        damage_other_job,
        damage_other_call,
        damage_folder,
    ],
    ids=lambda damage: damage.__name__.removeprefix("damage_"),
)
def test_an_unusable_part_is_named_and_computed_again(damage, finished, monkeypatch):
    out, scenarios, frame = finished
    path = out / "part-00003.parquet"
    damage(path, out)
    content = None if path.is_dir() else path.read_bytes()
    here = count_calls(monkeypatch)
    with pytest.warns(UserWarning, match=r"part-00003\.parquet is unusable \(.+\); kept as part-00003") as caught:
        again = run(scenarios, out=out)
    assert [Path(w.filename).name for w in caught] == ["test_jobs.py"]
    assert_same(again, frame)
    assert len(here) == 1
    aside = out / "part-00003.parquet.unusable"
    if content is None:
        assert (aside / "precious.txt").read_text(encoding="utf-8") == "keep me"
    else:
        assert aside.read_bytes() == content
    # Once more: the first one that was set aside stays.
    path.write_bytes(b"second")
    with pytest.warns(UserWarning, match="unusable-2"):
        assert_same(run(scenarios, out=out), frame)
    assert aside.exists()
    assert (out / "part-00003.parquet.unusable-2").read_bytes() == b"second"


def test_no_flipped_bit_passes_as_another_number(finished):
    out, _, _ = finished
    path = out / "part-00000.parquet"
    good = path.read_bytes()
    kept = parts.Parts.__new__(parts.Parts)  # the folder as it stands
    kept.folder = out
    kept.fingerprint = pa.parquet.read_schema(path).metadata[b"poq"].decode().split(":")[0]
    expected = {name: column.tobytes() for name, column in kept.read(0).items()}
    noticed = 0
    for bit in np.random.default_rng(0).integers(8 * len(good), size=300):
        content = bytearray(good)
        content[bit // 8] ^= 1 << (bit % 8)
        path.write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            columns = kept.read(0)
        noticed += columns is None
        assert columns is None or {name: column.tobytes() for name, column in columns.items()} == expected
    assert noticed > 100


CHANGES = {
    "seed": {"seed": 8},
    "trials": {"trials": 4},
    "log": {"log": make_log(1)},
    "scenarios": {"scenarios": make_many_jobs()[1:]},
}


@pytest.mark.parametrize("changed", CHANGES)
def test_a_changed_call_is_refused(changed, finished, monkeypatch):
    out, scenarios, frame = finished
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    here = count_calls(monkeypatch)
    call = {"log": LOG, "scenarios": scenarios, "trials": 3, "seed": 7, "out": out, "progress": False}
    with pytest.raises(
        ValueError, match=f"belongs to a call with different {changed}; choose another folder"
    ) as caught:
        simulate.run(**{**call, **CHANGES[changed]})
    assert "\n" not in str(caught.value)
    assert not here
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert_same(simulate.run(**call), frame)


def make_rule(*, share=0.5, default=1.0, twice=False):
    """Rules that bear one name and differ in one place each."""
    helper = (lambda x: x / 2) if twice else (lambda x: x / 3)

    def probe(scores, *, scale=default):
        return share * helper(scores.mean(axis=-1)) * scale

    return probe


def test_a_rewritten_rule_does_not_pick_up_old_results(monkeypatch, tmp_path):
    monkeypatch.setitem(AGGREGATORS, "probe", make_rule())
    run(make_many_jobs("probe"), out=tmp_path)
    run(make_many_jobs("probe"), out=tmp_path)
    for change in ({"share": 0.4}, {"default": 0.9}, {"twice": True}):
        monkeypatch.setitem(AGGREGATORS, "probe", make_rule(**change))
        with pytest.raises(ValueError, match="different code"):
            run(make_many_jobs("probe"), out=tmp_path)
    monkeypatch.setitem(AGGREGATORS, "probe", make_rule())
    run(make_many_jobs("probe"), out=tmp_path)


SHARE = types.SimpleNamespace(of=0.5)
STRENGTHS = pd.Series([0.5])


class Scaled:
    """A rule that is an object."""

    def __init__(self, share):
        self.share = share

    def __call__(self, scores):
        return self.share * scores.mean(axis=-1)

    def consensus(self, scores):
        return self(scores)


class Halved(Scaled):
    def __call__(self, scores):
        return scores.mean(axis=-1) / 2


class Inheriting(Scaled):
    pass


class Slotted:
    __slots__ = ("share",)

    def __init__(self, share):
        self.share = share

    def __call__(self, scores):
        return self.share * scores.mean(axis=-1)


class Shared:
    share = 0.5

    @staticmethod
    def scale(scores):
        return scores / 2

    def __call__(self, scores):
        return self.share * self.scale(scores).mean(axis=-1)


def namespaced(scores):
    return SHARE.of * scores.mean(axis=-1)


def nested(scores):
    return sum(share * scores.mean(axis=-1) for share in STRENGTHS.to_list())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Scaled(0.5), Scaled(0.9)),
        (Scaled(0.5).consensus, Scaled(0.9).consensus),
        (Scaled(0.5), Halved(0.5)),
        (Slotted(0.5), Slotted(0.9)),
    ],
    ids=["object", "method", "class", "slots"],
)
def test_rules_that_are_objects_are_told_apart(one, other):
    assert parts.hash_code([one]) == parts.hash_code([pickle.loads(pickle.dumps(one))])
    assert parts.hash_code([one]) != parts.hash_code([other])


@pytest.mark.parametrize(
    ("owner", "name", "value"),
    [
        (Shared, "share", 0.9),
        (Shared, "scale", staticmethod(lambda scores: scores / 3)),
        (Scaled, "__call__", lambda self, scores: scores.max(axis=-1)),
    ],
    ids=["attribute", "static method", "inherited method"],
)
def test_what_a_rule_has_from_its_class_is_part_of_it(monkeypatch, owner, name, value):
    rules = [Shared(), Inheriting(0.5)]
    before = parts.hash_code(rules)
    assert before == parts.hash_code(rules)
    monkeypatch.setattr(owner, name, value)
    assert before != parts.hash_code(rules)


def test_a_rule_without_a_module_can_be_kept(tmp_path, monkeypatch):
    made = {}
    exec("def rule(scores): return scores.mean(-1)", made)
    monkeypatch.setitem(AGGREGATORS, "mine", made["rule"])
    for _ in range(2):
        frame = run([simulate.Scenario("qa", "mine", committee=3, n_rounds=50)], out=tmp_path / "out")
    assert len(frame)


@pytest.mark.parametrize("rule", [namespaced, nested, njit(namespaced), vectorize(lambda score: SHARE.of * score)])
def test_globals_of_a_rule_are_part_of_it(monkeypatch, rule):
    before = parts.hash_code([rule])
    assert before == parts.hash_code([rule])
    monkeypatch.setattr(SHARE, "of", 0.9)
    STRENGTHS.iloc[0] = 0.9
    after = parts.hash_code([rule])
    STRENGTHS.iloc[0] = 0.5
    assert before != after


def test_the_code_that_plays_a_trial_is_hashed_and_no_more():
    sources = set(parts._sources(*parts.DECIDING))
    for name in (
        *("scorelog", "matrix", "engine", "fused", "rounds", "attacks", "aggregators", "trust", "calibrated"),
        *("rewards", "metrics", "streams"),
    ):
        assert (parts.PACKAGE / f"{name}.py").read_bytes() in sources
    for name in ("plotting", "cli", "jobs", "group"):
        assert (parts.PACKAGE / f"{name}.py").read_bytes() not in sources


def test_a_worker_loads_nothing_that_reads_tables():
    """It would be ready a fifth of a second later."""
    script = "import sys, poq.group; print(*{'pandas', 'pyarrow', 'matplotlib', 'tqdm'} & set(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert loaded.stdout.split() == []


STARTED_WORKER = """
    import sys
    import numpy as np
    from numba import njit
    from poq.engine import _survey
    from poq.group import load_blas

    load_blas()
    _survey(np.zeros((2, 3)), np.zeros((2, 3)), np.zeros((2, 3), dtype=bool))
    print("scipy.linalg" in sys.modules)
    half = np.full(3, 0.5)
    print(njit(lambda a, b: np.dot(a, b))(half, half), njit(lambda a: np.linalg.inv(a))(np.diag(half))[0, 0])
    import scipy.linalg, scipy.stats
    from scipy.linalg import cython_blas
    print(scipy.linalg.det(np.diag(half)), scipy.stats.spearmanr([1, 2, 3], [1, 2, 3])[0])
"""


def test_a_worker_starts_without_the_rest_of_scipy_and_can_use_it_all():
    """Rules of one's own may need BLAS and LAPACK, compiled or not."""
    command = [sys.executable, "-c", textwrap.dedent(STARTED_WORKER)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert said.splitlines() == ["False", "0.75 2.0", "0.125 1.0"]


def test_workers_of_any_pool_start_that_way(small_jobs):
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        run(make_sweep()[:2], executor=executor)
        loaded = executor.submit(eval, "sorted(name for name in __import__('sys').modules if 'scipy.linalg' in name)")
        assert loaded.result() == ["scipy.linalg.cython_blas"]


def test_folders_that_are_not_ours_are_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("chapter one", encoding="utf-8")
    with pytest.raises(ValueError, match="holds other files and no manifest"):
        run(make_many_jobs(), out=tmp_path)
    with pytest.raises(ValueError, match="is a file, not a folder"):
        run(make_many_jobs(), out=tmp_path / "thesis.tex")
    for content, complaint in {"{": "cannot be read", "[1]": "no manifest", '{"name": "app"}': "no manifest"}.items():
        (tmp_path / "manifest.json").write_text(content, encoding="utf-8")
        with pytest.raises(ValueError, match=complaint):
            run(make_many_jobs(), out=tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["manifest.json", "thesis.tex"]


def test_leftovers_of_a_killed_writer_are_swept_and_nothing_else(finished):
    out, scenarios, frame = finished
    old, young, own = out / "part-00002.parquet.123.tmp", out / "part-00002.parquet.124.tmp", out / "mine.tmp"
    for path in (old, young, own):
        path.write_text("half", encoding="utf-8")
    for path in (old, own):
        os.utime(path, (0, 0))
    assert_same(run(scenarios, out=out), frame)
    assert [path.exists() for path in (old, young, own)] == [False, True, True]


# ---------------------------------------------------------------------------------------------- kill -9 and Ctrl-C

SWEEP_SCRIPT = """
    import sys
    import time

    import numpy as np

    from poq import jobs, simulate
    from poq.aggregators import AGGREGATORS
    from poq.synthetic import synthetic_log


    def sleepy(scores):
        time.sleep(float(sys.argv[3]) if len(sys.argv) > 3 else 0.0)
        return scores.mean(axis=-1)


    AGGREGATORS["sleepy"] = sleepy
    out, serial = sys.argv[1], sys.argv[2] == "serial"
    jobs.n_cores = lambda: 2
    jobs.SERIAL_SECONDS = 1e9 if serial else 0.0
    calls, real = [], jobs.play_group


    def counted(*work):
        calls.append(work)
        return real(*work)


    if serial:
        jobs.play_group = counted
    log = synthetic_log(np.random.default_rng(0), n_items=9, n_models=2, evaluators=6)
    scenarios = simulate.grid(task="synthetic", rule="sleepy", committee=3, n_rounds=100, burn_in=list(range(40)))
    frame = simulate.run(log, scenarios, trials=2, seed=0, out=out or None, progress=False)
    frame.to_pickle(sys.argv[4])
    print(len(calls))
"""


def start_sweep(folder: Path, out, mode: str, seconds: float = 0.0) -> subprocess.Popen:
    """Start the sweep of forty jobs as a program of its own process group; its frame goes to folder/frame.pkl."""
    script = folder / "sweep.py"
    script.write_text(textwrap.dedent(SWEEP_SCRIPT), encoding="utf-8")
    command = [sys.executable, str(script), str(out), mode, str(seconds), str(folder / "frame.pkl")]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True)


@pytest.fixture(scope="module")
def whole_sweep(tmp_path_factory):
    """The frame of the same sweep, never interrupted and without parts."""
    folder = tmp_path_factory.mktemp("whole")
    assert finish(start_sweep(folder, "", "serial")) == 40
    return pd.read_pickle(folder / "frame.pkl")


@pytest.fixture
def sweep(tmp_path):
    started = []

    def start(out, mode, seconds=0.0):
        started.append(start_sweep(tmp_path, out, mode, seconds))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def wait_for(condition, seconds=60.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.02)


def members(group: int) -> list[psutil.Process]:
    """Living processes of a process group."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (ProcessLookupError, psutil.NoSuchProcess):
            pass
    return found


def finish(process) -> int:
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return int(output)


def stamps(out: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in out.glob("part-*.parquet")}


@pytest.mark.parametrize("ending", [signal.SIGKILL, signal.SIGINT], ids=["kill", "interrupt"])
def test_an_ended_sweep_completes_what_is_missing(ending, sweep, whole_sweep, tmp_path):
    out = tmp_path / "out"
    process = sweep(out, "pool", 0.01)
    wait_for(lambda: len(stamps(out)) >= 4 and len(members(process.pid)) > 1)
    os.killpg(process.pid, ending)
    _, errors = process.communicate(timeout=30)
    if ending == signal.SIGINT:
        assert process.returncode == -signal.SIGINT
        assert "\nKeyboardInterrupt\n" in errors  # what the workers leave behind may be named after it
    wait_for(lambda: not members(process.pid), 10)  # no orphans
    before = stamps(out)
    assert 4 <= len(before) < 40
    assert not (tmp_path / "frame.pkl").exists()

    assert finish(sweep(out, "serial")) == 40 - len(before)
    after = stamps(out)
    assert len(after) == 40
    assert before.items() <= after.items()  # what was there was not written again
    assert_same(pd.read_pickle(tmp_path / "frame.pkl"), whole_sweep)


# ------------------------------------------------------------------------------------------------------- progress


@pytest.mark.parametrize("progress", [True, False])
def test_progress_is_shown_on_stderr_only(progress, monkeypatch, capfd):
    def slow(scores):
        time.sleep(0.02)
        return scores.mean(axis=-1)

    monkeypatch.setitem(AGGREGATORS, "probe", slow)
    run(make_many_jobs("probe", 15), trials=2, progress=progress)
    shown = capfd.readouterr()
    assert shown.out == ""
    assert ("15/15" in shown.err) == progress
    assert bool(shown.err) == progress
