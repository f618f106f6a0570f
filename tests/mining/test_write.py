"""`kr1 mine`: what is written, what is left out, and what is refused."""

import csv
import json
import os

import pytest
from helpers import kr1

from kr1_utils import corpus, expert, protocol
from kr1_utils.agent import ScriptedEngine, rollout
from kr1_utils.files import REPO, write_jsonl
from kr1_utils.mining import mine, mine_questions
from kr1_utils.mining.names import key
from kr1_utils.profiles import Limits
from kr1_utils.retriever import Retriever

PACK = (REPO / os.environ.get("KR1_2WIKI", "../shared/data/2wiki")).resolve()
needs_pack = pytest.mark.skipif(
    not (PACK / "passages.jsonl").is_file(),
    reason="the 2WikiMultihopQA pack is not here: name its folder in KR1_2WIKI",
)

OUTPUTS = {"train.jsonl", "dev.jsonl", "statistics.csv", "statistics.json"}
OUTPUTS |= {"LICENCE.md"}


@pytest.fixture
def source(tmp_path, cinema):
    file = tmp_path / "passages.jsonl"
    write_jsonl(file, cinema)
    return file


@pytest.fixture(scope="module")
def mined(cinema):
    return mine_questions(cinema)


def test_the_command_writes_questions_that_our_own_reader_takes(source, tmp_path):
    done = kr1("mine", "--corpus", source, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    assert {file.name for file in out.iterdir()} == OUTPUTS
    train = corpus.load_questions(out / "train.jsonl")
    totals = json.loads((out / "statistics.json").read_text("utf-8"))
    assert len(train) == totals["train"] > 100
    assert str(totals["train"]) in done.stdout
    with (out / "statistics.csv").open(encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    for column in ("before", "after", "found", "train", "dev"):
        assert sum(int(row[column]) for row in rows) == totals[column]
    licence = (out / "LICENCE.md").read_text("utf-8")
    assert "CC BY-SA" in licence and source.name in licence


def test_the_same_seed_writes_the_same_bytes(source, tmp_path):
    for name in ("a", "b"):
        mine(source, tmp_path / name, seed=3)
    for name in OUTPUTS:
        first = (tmp_path / "a" / name).read_bytes()
        assert first == (tmp_path / "b" / name).read_bytes(), name


def test_no_title_is_asked_about_in_both_splits(mined):
    titles = [
        {title for q in split for title in q["supporting_titles"]}
        for split in (mined.train, mined.dev)
    ]
    assert mined.dev
    assert not titles[0] & titles[1]
    assert len(titles[1]) < len(titles[0]) / 3


def test_whatever_the_other_questions_name_is_left_out(cinema, mined):
    film, director = cinema[4]["title"], cinema[5]["title"]
    other = {"question": f"Who directed {film}?", "golden_answers": ["Jo Moss"]}
    left = mine_questions(cinema, [other])
    for q in left.train + left.dev:
        words = json.dumps([q["question"], q["golden_answers"], q["evidence"]])
        assert key(film) not in key(words), q
    answers = {"question": "Who is it?", "golden_answers": [director]}
    left = mine_questions(cinema, [answers])
    for q in left.train + left.dev:
        assert director not in json.dumps(q), q
    assert left.totals["before"] == mined.totals["before"]


def test_questions_whose_evidence_a_search_does_not_find_are_dropped(cinema, mined):
    assert mined.totals["found"] == mined.totals["after"]
    # Where many passages speak of the director, his own is found no more.
    name = cinema[1]["title"]
    noise = [
        {"id": f"n{i}", "title": f"{name} {name}", "text": f"{name} {name}."}
        for i in range(3)
    ]
    noisy = mine_questions(cinema + noise)
    assert noisy.totals["found"] < noisy.totals["after"]
    for q in noisy.train + noisy.dev:
        assert name not in q["queries"]


def test_the_experts_conversations_bring_the_evidence(cinema, mined, tokenizer):
    asked = mined.train[:30]
    scripts = {
        q["question"]: [protocol.render_turn(*t) for t in expert.demonstration(q)]
        for q in asked
    }
    limits = Limits(
        max_turns=5,
        top_k=2,
        max_turn_tokens=400,
        max_observation_tokens=800,
        max_response_tokens=9000,
    )
    talked = rollout(
        ScriptedEngine(tokenizer, scripts),
        tokenizer,
        Retriever.build(cinema),
        asked,
        limits,
    )
    for q, trajectory in zip(asked, talked, strict=True):
        assert trajectory.stop == "answer"
        assert trajectory.searches == len(q["evidence"])
        for found, stating in zip(trajectory.passages, q["passage_ids"], strict=True):
            assert {p["id"] for p in found} & set(stating)


@pytest.mark.parametrize("name", ["poem", "empty"])
def test_a_corpus_of_another_kind_is_refused_in_one_sentence(tmp_path, name):
    texts = {"poem": "Upon a hill there stood a tree.", "empty": "."}
    file = tmp_path / "passages.jsonl"
    write_jsonl(file, [{"id": "1", "title": "A Tree", "text": texts[name]}])
    done = kr1("mine", "--corpus", file, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "0 questions in 1 passages" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_corpus_with_little_says_so(tmp_path, passages):
    file = tmp_path / "passages.jsonl"
    write_jsonl(file, passages)
    said = mine(file, tmp_path / "out")
    assert f"in {len(passages)} passages" in said.splitlines()[-1]


def test_a_folder_with_something_else_is_left_alone(source, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(ValueError, match="thesis.txt"):
        mine(source, out)
    assert [file.name for file in out.iterdir()] == ["thesis.txt"]


def test_an_earlier_output_is_replaced_whole(source, tmp_path):
    mine(source, tmp_path / "out", seed=1)
    before = (tmp_path / "out" / "train.jsonl").read_bytes()
    mine(source, tmp_path / "out", seed=2)
    assert (tmp_path / "out" / "train.jsonl").read_bytes() != before
    left = [file.name for file in tmp_path.iterdir()]
    assert sorted(left) == ["out", "passages.jsonl"]


@needs_pack
@pytest.mark.slow
def test_the_pack_gives_the_numbers_that_are_shipped():
    passages = corpus.load_passages(PACK / "passages.jsonl")
    others = corpus.load_questions(PACK / "questions.jsonl")
    mined = mine_questions(passages, others)
    assert mined.totals["before"] >= 3000
    with (REPO / "data/reference/mining_counts.csv").open(encoding="utf-8") as lines:
        shipped = list(csv.DictReader(lines))
    told = [{k: str(v) for k, v in row.items()} for row in mined.statistics]
    assert shipped == told
