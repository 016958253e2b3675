"""A real OpenAI-compatible server, language model, bi-encoder and data files, all on this machine and offline."""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # read when the libraries are imported
REASON = "needs the extra models, some gigabytes: make test-models"
pytest.importorskip("torch", reason=REASON)
pytest.importorskip("transformers", reason=REASON)
pytest.importorskip("sentence_transformers", reason=REASON)
datasets = pytest.importorskip("datasets", reason=REASON)

from poq.scorelog import read_score_log  # noqa: E402
from poq.workload import collect  # noqa: E402

TEMPLATE = (
    "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
ITEMS = [
    {
        "id": f"q{number}",
        "task": "qa",
        "question": question,
        "context": "In the Bay of Fundy in Canada the range can reach 16 metres; elsewhere it is often half a metre.",
        "answers": [answer],
    }
    for number, (question, answer) in enumerate(
        [
            ("Where is the range large?", "Bay of Fundy"),
            ("How large?", "16 metres"),
            ("How small elsewhere?", "half a metre"),
        ]
    )
] + [
    {
        "id": "s0",
        "task": "summarisation",
        "question": "Tides",
        "context": "The Moon pulls on the sea. Two bulges rise. A turning coast passes through both of them each day.",
        "answers": ["The Moon raises two bulges, so there are two tides a day."],
    }
]


def make_model(folder: Path) -> Path:
    """A language model of a few ten thousand random weights that reads and writes bytes; it speaks nonsense, fast."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: place for place, letter in enumerate(["<s>", "</s>", *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    fast.chat_template = TEMPLATE
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    config = LlamaConfig(vocab_size=len(vocabulary), max_position_embeddings=4096, **sizes, **ends)
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def live(tmp_path_factory):
    """(address, model) of `transformers serve` on loopback."""
    folder = make_model(tmp_path_factory.mktemp("model") / "tiny")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        Path(sys.executable).parent / "transformers",
        "serve",
        folder,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    quiet = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder.parent / "hub"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    log = folder.parent / "server.log"
    with log.open("w") as stream:
        server = subprocess.Popen(
            [*command, "--device", "cpu"], stdout=stream, stderr=subprocess.STDOUT, env={**os.environ, **quiet}
        )
    try:
        end = time.monotonic() + 180
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                break
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}/v1", str(folder), server
    finally:
        server.terminate()
        server.wait(30)


def write_study(folder: Path, live, *, items=ITEMS, data='file = "items.jsonl"', more="") -> Path:
    address, model, _ = live
    (folder / "items.jsonl").write_text("".join(f"{json.dumps(item)}\n" for item in items), encoding="utf-8")
    node = f'base_url = "{address}"\nmodel = "{model}"\nmax_tokens = 12\ntimeout = 120\nretries = 1\n'
    text = f"""
[data]
{data}

[[nodes]]
name = "greedy"
{node}
temperature = 0.0

[[nodes]]
name = "warm"
{node}
temperature = 1.0
concurrency = 2

[[evaluators]]
kind = "metric"
names = ["rouge_l", "brevity"]
{more}"""
    path = folder / "study.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_a_real_network_becomes_a_score_log(live, tmp_path, capsys):
    judge = f"""
[[evaluators]]
kind = "model"

[[evaluators]]
kind = "judge"
name = "tiny judge"
base_url = "{live[0]}"
model = "{live[1]}"
max_tokens = 24
timeout = 120
template = "Rate the answer.\\n{{question}}\\n{{answer}}"
range = [0, 10]
"""
    path = write_study(tmp_path, live, more=judge)
    assert collect.main([str(path)]) == 0
    shown = capsys.readouterr().out
    folder = tmp_path / "study_collected"
    log = read_score_log(folder / "score_log.csv.gz")
    n = len(log[["task", "item", "model"]].drop_duplicates())
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    nodes = {entry["name"]: entry for entry in report["nodes"]}
    # Nonsense may be blank now and then; that is counted, and everything adds up.
    assert n == sum(entry["usable"] for entry in nodes.values()) >= 6
    assert all(entry["usable"] + sum(entry["malformed"].values()) == len(ITEMS) for entry in nodes.values())
    assert all(entry["tokens_known"] == len(ITEMS) for entry in nodes.values())
    assert 0 < nodes["greedy"]["completion_tokens"] <= 12 * len(ITEMS)
    assert nodes["greedy"]["prompt_tokens"] > 4 * 50
    assert 0 < nodes["greedy"]["latency_median"] < 60
    assert set(log["evaluator"]) == {"rouge_l", "brevity", "biencoder_ref", "biencoder_source", "tiny judge"}
    semantic = log[log["evaluator"].str.startswith("biencoder")]
    assert semantic["score"].between(-1, 1).all()
    assert semantic["score"].nunique() > 2
    assert set(semantic.loc[semantic["evaluator"] == "biencoder_ref", "reference_based"]) == {"true"}
    # A judge of random weights cannot repeat its code: every score is empty, and every reply is kept.
    [entry] = report["judges"]
    assert log.loc[log["evaluator"] == "tiny judge", "score"].isna().all()
    assert sum(entry["unparsable"].values()) + sum(entry["malformed"].values()) == n
    assert "evaluator tiny judge: 0 scores" in shown

    journal = (folder / "journal.jsonl").read_bytes()
    assert collect.main([str(path)]) == 0
    assert (folder / "journal.jsonl").read_bytes() == journal


def test_known_data_sets_come_through_the_library(live, tmp_path):
    rows = [
        {
            "id": f"{k}",
            "title": "Tides",
            "context": f"Fact {k}.",
            "question": f"What is fact {k}?",
            "answers": {"text": ["it"] * 2},
        }
        for k in range(20)
    ]
    (tmp_path / "squad").mkdir()
    datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "squad" / "validation.parquet"))
    path = write_study(tmp_path, live, data='dataset = "squad"\nsource = "squad"\nlimit = 3\nseed = 5')
    found = collect.read_study(path).items
    assert len(found) == 3
    assert {item.task for item in found} == {"qa"}
    assert found[0].answers == ("it",)
    assert f"fact {found[0].id}?" in found[0].question
    assert collect.main([str(path)]) == 0
    assert set(read_score_log(tmp_path / "study_collected" / "score_log.csv.gz")["item"]) <= {item.id for item in found}

    (tmp_path / "news").mkdir()
    news = [{"id": "n1", "article": "A long article.", "highlights": "Short ."}]
    datasets.Dataset.from_list(news).to_parquet(str(tmp_path / "news" / "test.parquet"))
    path = write_study(tmp_path, live, data='dataset = "cnn_dailymail"\nsource = "news"\nsplit = "test"')
    [item] = collect.read_study(path).items
    assert (item.task, item.context, item.answers) == ("summarisation", "A long article.", ("Short .",))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ('dataset = "cnn_dailymail"\nsource = "squad"', "has not the columns of cnn_dailymail"),
        ('dataset = "squad"\nsource = "squad"\nsplit = "training"', "cannot load"),
    ],
)
def test_a_data_set_of_another_form_is_one_line(data, message, live, tmp_path, capsys):
    (tmp_path / "squad").mkdir()
    rows = [{"id": "1", "context": "C", "question": "Q?", "answers": {"text": ["a"]}}]
    datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "squad" / "validation.parquet"))
    assert collect.main([str(write_study(tmp_path, live, data=data))]) == 1
    shown = capsys.readouterr().err.strip().splitlines()[-1]
    assert shown.startswith(f"poq collect: {tmp_path / 'study.toml'}: data.dataset: ")
    assert message in shown


def test_a_model_that_is_not_there_is_one_line(live, tmp_path, capsys):
    more = f'\n[[evaluators]]\nkind = "model"\nmodel = "{tmp_path}/absent"\n'
    assert collect.main([str(write_study(tmp_path, live, more=more))]) == 1
    assert f"poq collect: bi-encoder: cannot load '{tmp_path}/absent'" in capsys.readouterr().err
    assert not (tmp_path / "study_collected").exists()


def test_a_server_that_stops_is_reported(live, tmp_path, capsys):
    """The last test of this file: it ends the server."""
    assert collect.main([str(write_study(tmp_path, live))]) == 0
    live[2].kill()
    live[2].wait(30)
    # What was answered stays; what is new fails, and is reported.
    assert (
        collect.main([str(write_study(tmp_path, live, items=[*ITEMS, ITEMS[0] | {"id": "new"}]))]) == collect.INCOMPLETE
    )
    shown = capsys.readouterr().out
    assert shown.count("failed: connection (1)") == 2
    assert "new" not in set(read_score_log(tmp_path / "study_collected" / "score_log.csv.gz")["item"])
