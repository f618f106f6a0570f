"""The index: the same results however it is asked, and never one that was made
otherwise."""

import gzip
import http.server
import json
import mmap
import os
import shutil
import string
import subprocess
import sys
import tempfile
import textwrap
import threading
from pathlib import Path

import bm25s
import numpy as np
import pytest
import Stemmer
import torch
from hypothesis import given
from hypothesis import strategies as st

from kr1_utils import files, retriever
from kr1_utils.agent import ScriptedEngine, rollout
from kr1_utils.corpus import load_passages, load_questions
from kr1_utils.files import REPO, write_jsonl
from kr1_utils.profiles import Limits
from kr1_utils.retriever import MANIFEST, Retriever, fingerprint

WIKI = (REPO / os.environ.get("KR1_2WIKI", "../shared/data/2wiki")).resolve()

CORPUS = [
    {
        "id": "a",
        "title": "Silent River",
        "text": "Silent River was directed by Dara Kallas.",
    },
    {
        "id": "b",
        "title": "Dara Kallas",
        "text": "Dara Kallas was born in Merano. She was a painter.",
    },
    {
        "id": "c",
        "title": "Dara Kallas (poet)",
        "text": "Dara Kallas was born in Ostby. She wrote poems.",
    },
    {
        "id": "d",
        "title": "Merano",
        "text": "Merano lies in Aldoria. The river Holm flows through Merano.",
    },
]
WORDS = [
    "silent",
    "rivers",
    "Dara",
    "KALLAS",
    "Merano",
    "the",
    "of",
    "zyx",
    "poems",
    "painter",
    ",",
    "ł",
]
queries_of_words = st.lists(
    st.lists(st.sampled_from(WORDS), max_size=6).map(" ".join), max_size=8
)


@pytest.fixture(scope="module")
def small():
    return Retriever.build(CORPUS)


@pytest.fixture
def folder(tmp_path):
    Retriever.build(CORPUS, tmp_path / "index")
    return tmp_path / "index"


def ids(found):
    return [[p["id"] for p in passages] for passages in found]


@given(queries_of_words, st.integers(1, 6))
def test_batch_finds_what_single_searches_find(small, queries, k):
    assert small.search(queries, k) == [small.search([q], k)[0] for q in queries]


@given(
    st.lists(
        st.text(alphabet=string.printable + "łżé東\u200b", max_size=30), max_size=5
    )
)
def test_no_query_crashes_and_each_gets_its_list(small, queries):
    found = small.search(queries, 3)
    assert len(found) == len(queries)
    for passages in found:
        scores = [p["score"] for p in passages]
        assert scores == sorted(scores, reverse=True) and all(s > 0 for s in scores)


def test_batch_of_real_questions_finds_what_single_searches_find(retriever, questions):
    asked = [q["question"] for q in questions["test"][:40]]
    assert retriever.search(asked, 3) == [retriever.search([q], 3)[0] for q in asked]


def test_duplicates_get_equal_results_in_their_places(small):
    found = ids(small.search(["Merano", "silent river", "Merano"], 2))
    assert found[0] == found[2] and found[0][0] == "d" and found[1][0] == "a"


@pytest.mark.parametrize("query", ["", " ", "the of and", "?!", "zyx", "東京"])
def test_query_without_a_known_word_finds_nothing(small, query):
    assert small.search([query, "Merano"], 3)[0] == []
    assert small.search([query], 3) == [[]]


@pytest.mark.parametrize("query", ["", "the of and", "zyx"])
def test_query_without_a_known_word_finds_no_empty_passage(query):
    corpus = [
        *CORPUS,
        {"id": "e", "title": "", "text": ""},
        {"id": "f", "title": "The", "text": "of and"},
    ]
    assert Retriever.build(corpus).search([query], 6) == [[]]


def test_no_queries_give_no_results(small):
    assert small.search([], 3) == []


def test_unknown_words_beside_known_ones_change_nothing(small):
    assert ids(small.search(["zyx Merano qqq"], 3)) == ids(small.search(["Merano"], 3))


@pytest.mark.parametrize("k", [4, 5, 1000])
def test_k_larger_than_the_corpus_gives_all_that_match(small, k):
    assert set(ids(small.search(["Dara Merano"], k))[0]) == {"a", "b", "c", "d"}


def test_passages_that_share_no_word_with_the_query_are_left_out(small):
    assert ids(small.search(["Aldoria", "poems"], 4)) == [["d"], ["c"]]


@pytest.mark.parametrize("k", [1, 2, 3])
def test_never_more_than_k(small, k):
    assert len(small.search(["Dara Kallas Merano river"], k)[0]) == k


def test_corpus_of_one_passage_can_be_searched():
    one = Retriever.build(CORPUS[:1])
    assert ids(one.search(["river", "Merano"], 3)) == [["a"], []]


def test_queries_are_stemmed_like_passages(small):
    assert ids(small.search(["poem"], 1)) == ids(small.search(["poems"], 1)) == [["c"]]


def test_titles_are_searched_too(small):
    assert ids(small.search(["poet"], 1)) == [["c"]]


def test_searching_leaves_the_vocabulary_alone(small):
    before = ids(small.search(["Merano"], 3))
    small.search(["entirely new words nobody indexed"], 3)
    assert ids(small.search(["entirely new words nobody indexed", "Merano"], 3)) == [
        [],
        before[0],
    ]


def plain_scores(passages, asked):
    """(queries, passages) scores of an undivided index of bm25s."""
    stemmer = Stemmer.Stemmer("english")
    texts = [f"{p['title']} {p['text']}" for p in passages]
    plain = bm25s.BM25(k1=0.9, b=0.4)
    plain.index(
        bm25s.tokenize(texts, stopwords="en", stemmer=stemmer, show_progress=False),
        show_progress=False,
    )
    tokens = bm25s.tokenize(
        asked, stopwords="en", stemmer=stemmer, return_ids=False, show_progress=False
    )
    return [plain.get_scores(query) for query in tokens]


def check_against_plain_bm25s(index, passages, asked, k=10):
    """Scores to 1e-5, and the passages themselves wherever scores are not tied."""
    rows = {p["id"]: i for i, p in enumerate(passages)}
    for scores, found in zip(
        plain_scores(passages, asked), index.search(asked, k), strict=True
    ):
        best = np.argsort(-scores, kind="stable")
        assert len(found) == min(k, (scores > 0).sum())
        assert np.allclose(
            [p["score"] for p in found], scores[best[: len(found)]], atol=1e-5, rtol=0
        )
        own = [scores[rows[p["id"]]] for p in found]
        assert np.allclose([p["score"] for p in found], own, atol=1e-5, rtol=0)
        for place, p in enumerate(found):
            if (np.abs(scores - p["score"]) < 1e-4).sum() == 1:
                assert rows[p["id"]] == best[place]


def test_scores_are_those_of_plain_bm25s(world, retriever, questions):
    check_against_plain_bm25s(
        retriever, world.passages, [q["question"] for q in questions["test"][:40]]
    )


@pytest.fixture
def shards_of_300(monkeypatch):
    monkeypatch.setattr(retriever_module, "SHARD", 300)


def test_shards_score_like_one_index(shards_of_300, world, questions, tmp_path):
    index = Retriever.build(world.passages, tmp_path / "index")
    asked = [q["question"] for q in questions["test"][:40]]
    assert len(index._shards) == 6 and len(index) == len(world.passages)
    check_against_plain_bm25s(index, world.passages, asked)
    again = Retriever.open(tmp_path / "index", corpus=fingerprint(world.passages))
    many = [p["title"] for p in world.passages[:200]] + asked
    assert again.search(many, 7) == [
        found for q in many for found in index.search([q], 7)
    ]


@pytest.mark.skipif(not WIKI.is_dir(), reason="KR1_2WIKI names no folder with the pack")
def test_shards_score_like_one_index_on_wikipedia_text(monkeypatch, tmp_path):
    monkeypatch.setattr(retriever_module, "SHARD", 1500)
    passages = load_passages(WIKI / "passages.jsonl")
    asked = [q["question"] for q in load_questions(WIKI / "questions.jsonl")]
    index = Retriever.build(WIKI / "passages.jsonl", tmp_path / "index")
    assert len(index._shards) == 8
    check_against_plain_bm25s(index, passages, asked)


KILLED = """
import sys
from kr1_utils import retriever
from kr1_utils.data import read_passages
retriever.SHARD = 300
def rows():
    for n, row in enumerate(read_passages(sys.argv[1])):
        if n == 1300:
            print("far enough", flush=True)
            sys.stdin.read()
        yield row
retriever.Retriever.build(rows(), sys.argv[2])
"""


def kill_half_way(file, folder):
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(file), str(folder)],
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout.readline() == "far enough\n"
    part = folder.with_name(folder.name + ".part")
    while len(list(part.glob("*.npz"))) < 2:
        assert process.poll() is None
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()
    return {f.name: f.stat().st_mtime_ns for f in part.glob("*.npz")}


def test_killed_build_goes_on_where_it_was(
    shards_of_300, world, questions, tmp_path, monkeypatch
):
    file, folder = tmp_path / "passages.jsonl", tmp_path / "index"
    write_jsonl(file, world.passages)
    done, kept = kill_half_way(file, folder), {}
    with pytest.raises(FileNotFoundError, match="No index"):
        Retriever.open(folder)
    scored = retriever.write_shards

    def look(part, *rest):
        manifest = scored(part, *rest)
        kept["texts"] = {f.name: f.stat().st_mtime_ns for f in part.glob("*.jsonl")}
        return manifest

    monkeypatch.setattr(retriever_module, "_fill", look)
    before = {f.name: f.stat().st_mtime_ns for f in tmp_path.glob("index.part/*.jsonl")}
    index = Retriever.build(file, folder)
    whole = [name.replace(".npz", ".jsonl") for name in done]
    assert len(whole) >= 2 and all(
        kept["texts"][name] == before[name] for name in whole
    )
    check_against_plain_bm25s(
        index, world.passages, [q["question"] for q in questions["test"][:20]]
    )
    assert [f.name for f in tmp_path.iterdir() if f.name != file.name] == ["index"]


def test_build_that_was_killed_before_its_last_renaming_is_taken_over_whole(
    world, tmp_path, monkeypatch
):
    def killed(folder, part):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(retriever_module, "replace", killed)
        Retriever.build(world.passages, tmp_path / "index")
    part = tmp_path / "index.part"
    made = {f.name: f.stat().st_mtime_ns for f in part.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(retriever_module, "_fill", None)  # nothing is made again
        assert len(Retriever.build(world.passages, tmp_path / "index")) == len(
            world.passages
        )
    assert {
        f.name: f.stat().st_mtime_ns for f in (tmp_path / "index").iterdir()
    } == made
    shutil.copytree(tmp_path / "index", part)
    assert (
        len(Retriever.build(world.passages[:50], tmp_path / "index")) == 50
    )  # of others it is not taken


def test_what_a_killed_build_of_other_passages_left_is_not_used(
    shards_of_300, world, questions, tmp_path
):
    file, folder = tmp_path / "passages.jsonl", tmp_path / "index"
    write_jsonl(file, world.passages)
    kill_half_way(file, folder)
    other = [
        {**p, "text": p["text"] + " Indeed."} if n == 400 else p
        for n, p in enumerate(world.passages)
    ]
    index = Retriever.build(other[:1000], folder)
    check_against_plain_bm25s(
        index, other[:1000], [q["question"] for q in questions["test"][:20]]
    )
    assert index.search(["indeed"], 3)[0][0]["id"] == other[400]["id"]


def test_tokens_of_one_corpus_never_stand_beside_the_lines_of_another(
    tmp_path, monkeypatch
):
    def cut(word):
        return retriever._cut(
            tmp_path, 0, [{"id": "0", "title": "T", "text": word}], "english", "en"
        )

    cut("first")
    write = files.atomic_write

    def killed(file, what):
        if file.suffix == ".npz":
            raise KeyboardInterrupt
        write(file, what)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(retriever_module, "write_whole", killed)
        cut("second")
    cut("first")
    assert json.loads((tmp_path / "00000.jsonl").read_text())["text"] == "first"


def test_disk_with_too_little_room_is_refused_before_anything_is_written(
    monkeypatch, tmp_path
):
    monkeypatch.setattr(
        retriever_module.shutil,
        "disk_usage",
        lambda _: shutil._ntuple_diskusage(10, 9, 1),
    )
    with pytest.raises(
        OSError, match="takes up to .* GiB while it is made, .* has 0.0: make room"
    ):
        Retriever.build(CORPUS, tmp_path / "index")
    assert not list(tmp_path.iterdir())


def test_room_asked_for_is_enough(tmp_path, world, monkeypatch):
    held = []
    scored = retriever._score
    monkeypatch.setattr(
        retriever_module,
        "_score",
        lambda part, *rest: (
            scored(part, *rest),
            held.append(sum(f.stat().st_size for f in part.iterdir())),
        )[0],
    )
    Retriever.build(world.passages, tmp_path / "index")
    size = sum(len(retriever._line(p)) for p in world.passages)
    assert 1 < held[0] / size < retriever.DISK


@pytest.mark.parametrize("name", ["passages.jsonl", "passages.jsonl.gz"])
def test_file_is_indexed_like_its_passages(tmp_path, small, name):
    with (gzip.open if name.endswith(".gz") else open)(tmp_path / name, "wb") as file:
        file.write(b"".join(retriever._line(p) for p in CORPUS))
    index = Retriever.build(tmp_path / name, tmp_path / "index")
    assert index.search(["Dara Kallas Merano"], 4) == small.search(
        ["Dara Kallas Merano"], 4
    )
    corpus = fingerprint(tmp_path / name)
    Retriever.open(tmp_path / "index", corpus=corpus)
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes() + b"\n")
    assert fingerprint(tmp_path / name) != corpus


def test_opened_index_is_memory_mapped(folder):
    shard = Retriever.open(folder)._shards[0]
    arrays = [shard.words, shard.offsets, shard.indptr, shard.rows, shard.data]
    for array in arrays:
        assert not array.flags.writeable
        while isinstance(array, np.ndarray):
            array = array.base
        assert isinstance(array, mmap.mmap)


@given(st.lists(st.text(max_size=40), min_size=1, max_size=6))
def test_any_text_is_cut_into_the_tokens_that_bm25s_finds(texts):
    stemmer = Stemmer.Stemmer("english")
    wanted = bm25s.tokenize(
        [f" {t}" for t in texts],
        stopwords="en",
        stemmer=stemmer,
        return_ids=False,
        show_progress=False,
    )
    with tempfile.TemporaryDirectory() as folder:
        rows = [{"id": str(n), "title": "", "text": t} for n, t in enumerate(texts)]
        retriever._cut(Path(folder), 0, rows, "english", "en")
        shard = np.load(Path(folder) / "00000.npz")
        words, at = shard["words"], np.cumsum([0, *shard["lengths"]])
        for n, stems in enumerate(wanted):
            found = words[shard["tokens"][at[n] : at[n + 1]]]
            assert found.tolist() == retriever.word_hashes(stems).tolist()


def test_opened_index_finds_what_the_built_one_finds(
    tmp_path, world, retriever, questions
):
    Retriever.build(world.passages, tmp_path / "index")
    opened = Retriever.open(tmp_path / "index", corpus=fingerprint(world.passages))
    asked = [q["question"] for q in questions["test"][:40]] + ["", "zyx", "the"]
    assert len(opened) == len(world.passages)
    assert opened.search(asked, 3) == retriever.search(asked, 3)


def test_found_passages_are_the_corpus_own(small):
    for passage in small.search(["Dara Kallas Merano"], 4)[0]:
        score = passage.pop("score")
        assert passage in CORPUS and score > 0
    assert all("score" not in p for p in CORPUS)


def test_building_again_replaces_our_own_index(folder):
    Retriever.build(CORPUS[:2], folder)
    assert len(Retriever.open(folder)) == 2


def test_no_part_folder_stays_behind(folder):
    assert [f.name for f in folder.parent.iterdir()] == ["index"]


@pytest.mark.parametrize(
    "passages",
    [
        [],
        [{"id": "a", "title": "", "text": ""}],
        [{"id": "a", "title": "The", "text": "of and"}],
    ],
)
def test_corpus_with_nothing_to_index_is_refused(passages):
    with pytest.raises(ValueError, match="no passage to index|No passage holds a word"):
        Retriever.build(passages)


def test_missing_index_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="No index at .*01_build_index"):
        Retriever.open(tmp_path / "none")


@pytest.mark.parametrize("suffix", [".jsonl", ".npy"])
def test_index_without_one_of_its_files_is_refused(folder, suffix):
    assert len(list(folder.iterdir())) == 3  # these two, and the manifest
    file = next(folder.glob(f"*{suffix}"))
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(ValueError, match=f"incomplete .{file.name}"):
        Retriever.open(folder)
    file.unlink()
    with pytest.raises(ValueError, match=f"incomplete .{file.name}"):
        Retriever.open(folder)


def test_pickled_array_in_an_index_is_not_run(folder, tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    file = next(folder.glob("*.npy"))
    np.save(file, np.array([Trap()], dtype=object), allow_pickle=True)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"][file.name] = file.stat().st_size
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match="[Oo]bject|allow_pickle"):
        Retriever.open(folder)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    "text", [None, "", '{"made_by": "kr1_', "[]", '"kr1_utils"', '{"made_by": "x"}']
)
def test_index_without_a_whole_manifest_is_refused(folder, text):
    (folder / MANIFEST).unlink()
    if text is not None:
        (folder / MANIFEST).write_text(text)
    with pytest.raises(
        ValueError, match="not a complete index|another program's index"
    ):
        Retriever.open(folder)


def test_foreign_folder_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="not a complete index"):
        Retriever.open(tmp_path)


def test_index_of_plain_bm25s_is_refused(tmp_path):
    plain = bm25s.BM25(k1=0.9, b=0.4)
    plain.index(
        bm25s.tokenize(["one text", "two texts"], show_progress=False),
        show_progress=False,
    )
    plain.save(tmp_path / "index")
    with pytest.raises(ValueError, match="not a complete index"):
        Retriever.open(tmp_path / "index")


def test_index_with_another_stemmer_is_refused(tmp_path):
    Retriever.build(CORPUS, tmp_path / "index", stemmer="german")
    with pytest.raises(ValueError, match="built with stemmer 'german', not 'english'"):
        Retriever.open(tmp_path / "index")
    assert len(Retriever.open(tmp_path / "index", stemmer="german")) == len(CORPUS)


def test_index_with_other_stop_words_is_refused(tmp_path):
    Retriever.build(CORPUS, tmp_path / "index", stop_words="de")
    with pytest.raises(ValueError, match="built with stop_words 'de', not 'en'"):
        Retriever.open(tmp_path / "index")


def test_index_with_other_constants_is_refused(folder, monkeypatch):
    monkeypatch.setattr(retriever_module, "BM25", {"k1": 1.5, "b": 0.75})
    with pytest.raises(ValueError, match="built with bm25 .*0.9.*, not .*1.5"):
        Retriever.open(folder)


def test_index_of_an_earlier_format_is_refused_and_replaced(folder):
    manifest = json.loads((folder / MANIFEST).read_text())
    del manifest["format"], manifest["shards"]
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(
        ValueError, match="built with format None, not 2: build it again"
    ):
        Retriever.open(folder)
    assert len(Retriever.build(CORPUS[:3], folder)) == 3


def test_index_over_another_corpus_is_refused(folder):
    assert len(Retriever.open(folder, corpus=fingerprint(CORPUS))) == len(CORPUS)
    with pytest.raises(ValueError, match="built with corpus"):
        Retriever.open(folder, corpus=fingerprint(CORPUS[:3]))


@pytest.mark.parametrize("key", ["id", "title", "text"])
def test_fingerprint_changes_with_every_part_of_a_passage(key):
    changed = [{**CORPUS[0], key: CORPUS[0][key] + "x"}, *CORPUS[1:]]
    assert fingerprint(changed) != fingerprint(CORPUS) != fingerprint(CORPUS[::-1])


@pytest.mark.parametrize("name", ["notes.txt", MANIFEST])
def test_building_does_not_delete_a_foreign_folder(tmp_path, name):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / name).write_text(json.dumps({"made_by": "somebody else"}))
    with pytest.raises(ValueError, match="choose another folder"):
        Retriever.build(CORPUS, tmp_path / "mine")
    assert [f.name for f in (tmp_path / "mine").iterdir()] == [name]


def test_index_can_be_moved(folder, tmp_path):
    shutil.move(folder, tmp_path / "elsewhere")
    assert ids(Retriever.open(tmp_path / "elsewhere").search(["poems"], 1)) == [["c"]]


def test_searching_leaves_the_threads_of_torch_alone(small):
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        small.search(["Merano"], 3)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.skipif(
    not hasattr(os, "sched_setaffinity"), reason="only Linux can pin a process"
)
def test_process_that_may_not_use_all_cpus_can_search():
    program = f"""
import os
os.sched_setaffinity(0, {{min(os.sched_getaffinity(0))}})
from kr1_utils import retriever
print(retriever.Retriever.build({CORPUS!r}).search(["poems"], 1)[0][0]["id"])
"""
    said = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert said.stdout.strip() == "c"


# --- something else in its place ---

SERVED = """
import json
import urllib.request

class Client:
    def __init__(self, url):
        self.url = url

    def search(self, queries, k):
        body = json.dumps({"queries": queries, "k": k}).encode()
        with urllib.request.urlopen(urllib.request.Request(self.url, body)) as answer:
            return json.load(answer)
"""


class Serving(http.server.BaseHTTPRequestHandler):
    """An index behind HTTP, as a cluster would have it."""

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        body = json.dumps(
            self.server.index.search(asked["queries"], asked["k"])
        ).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_served_index_can_take_the_place_of_ours(small, tokenizer):
    readme = (REPO / "README.md").read_text(encoding="utf-8")
    assert (
        textwrap.indent(SERVED.strip(), "  ").strip() in readme
    )  # the example there is the one tested
    space: dict = {}
    exec(SERVED, space)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Serving) as server:
        server.index = small
        threading.Thread(target=server.serve_forever, daemon=True).start()
        client = space["Client"](f"http://127.0.0.1:{server.server_address[1]}")
        scripts = {
            "Who?": [
                "<think> I look.</think><search> poems</search>",
                "<think> So.</think><answer> Dara</answer>",
            ]
        }
        ours, theirs = (
            rollout(
                ScriptedEngine(tokenizer, scripts),
                tokenizer,
                index,
                [{"question": "Who?"}],
                Limits(2, 2, 60, 120, 700),
                "S",
            )[0]
            for index in (small, client)
        )
        server.shutdown()
    assert theirs.passages == ours.passages == [small.search(["poems"], 2)[0]]
    assert theirs.completion_ids == ours.completion_ids and theirs.answer == "Dara"
