"""Questions and passages are read from every format they come in, or named."""

import gzip
import json
import pickle

import pytest

from kr1_utils import corpus, profiles

PASSAGE = {"id": "p", "title": "T", "text": "t"}
QUESTION = {"id": "q", "question": "Q?", "golden_answers": ["a"]}


def jsonl(*rows):
    """One line per row; a text is a line as it is."""
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    return "".join(line + "\n" for line in lines)


def ids(rows):
    return [row["id"] for row in rows]


# --- rows ---


@pytest.mark.parametrize(
    "bad", ["{", "nothing", '{"id": 1} x', "[1, 2]", '"text"', "7"]
)
def test_line_that_is_no_json_object_is_named_by_its_number(tmp_path, bad):
    file = tmp_path / "c.jsonl"
    file.write_text(jsonl(PASSAGE, "", bad, PASSAGE))
    with pytest.raises(
        corpus.UnreadableRowError, match=r"c\.jsonl, line 3 is not"
    ) as caught:
        corpus.load_passages(file)
    assert (caught.value.file, caught.value.line) == (file, 3)


def test_error_of_a_row_comes_whole_out_of_another_process(tmp_path):
    error = corpus.UnreadableRowError(tmp_path / "c.jsonl", "JSON", "no object", 3)
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error)
    assert (copy.file, copy.line) == (error.file, error.line)


def test_bytes_that_are_not_utf8_are_named_by_their_line(tmp_path):
    file = tmp_path / "c.jsonl"
    file.write_bytes(jsonl(PASSAGE).encode() + '{"id": "ż"}\n'.encode("latin2"))
    with pytest.raises(ValueError, match="line 2 is not JSON"):
        corpus.load_passages(file)


def test_windows_line_ends_and_blank_lines_are_accepted(tmp_path):
    text = "\n" + jsonl(PASSAGE, {**PASSAGE, "text": "Łódź"})
    file = tmp_path / "c.jsonl"
    file.write_bytes(text.replace("\n", "\r\n").encode())
    assert [p["text"] for p in corpus.load_passages(file)] == ["t", "Łódź"]


def test_json_is_a_list_or_an_object_a_line(tmp_path):
    as_list = json.dumps([QUESTION], indent=1)
    file = tmp_path / "q.json"
    for text in (jsonl(QUESTION), f"\n\n{as_list}", f"\ufeff{as_list}"):
        file.write_text(text, encoding="utf-8")
        assert corpus.load_questions(file) == [QUESTION]


def test_a_file_that_is_not_compressed_is_named(tmp_path):
    for name in ("c.jsonl.gz", "c.json.gz", "c.tsv.gz"):
        (tmp_path / name).write_text(jsonl(PASSAGE))
        with pytest.raises(ValueError, match=rf"{name}.*Not a gzipped file"):
            corpus.load_passages(tmp_path / name)


@pytest.mark.parametrize("name", ["own.jsonl.gz", "bare.json.gz", "psgs_w100.tsv.gz"])
def test_a_compressed_file_that_was_cut_off_is_named(tmp_path, name):
    write_corpora(tmp_path)
    file = tmp_path / name
    whole = file.read_bytes()
    broken_inside = whole[:30] + b"xxxxxxxx" + whole[38:]
    for broken in (whole[:-12], broken_inside):
        file.write_bytes(broken)
        with pytest.raises(ValueError, match=name):
            corpus.load_passages(file)


def test_a_byte_order_mark_is_not_part_of_the_first_column(tmp_path):
    file = tmp_path / "c.tsv"
    file.write_text("\ufeffid\ttext\ttitle\np7\tt\tT\n", encoding="utf-8")
    assert ids(corpus.load_passages(file)) == ["p7"]


def test_a_tsv_may_hold_a_longer_passage_than_python_allows_by_itself(tmp_path):
    text = "word " * 100_000
    file = tmp_path / "c.tsv"
    file.write_text(f"id\ttext\ttitle\np\t{text}\tT\n")
    assert corpus.load_passages(file)[0]["text"] == text


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No file .*none\.jsonl"):
        corpus.load_passages(tmp_path / "none.jsonl")


@pytest.mark.parametrize("name", ["nothing", "a/b/c", "folder/questions.jsonl"])
def test_what_is_no_hub_id_is_not_looked_for_there(name):
    with pytest.raises(FileNotFoundError, match=f"No file {name}"):
        corpus.load_questions(name)


def test_a_folder_of_a_data_set_is_read_through_datasets(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    for split in ("train", "test"):
        row = {"problem": split, "golden_answers": ["a"]}
        (folder / f"{split}.jsonl").write_text(jsonl(row))
    assert corpus.load_questions(folder, "test")[0]["question"] == "test"
    assert corpus.load_questions(folder)[0]["question"] == "train"


def test_a_data_set_that_cannot_be_had_is_named(monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="nobody/nothing"):
        corpus.load_questions("nobody/nothing", "test")


# --- passages ---

THREE = [
    {"id": "p1", "title": 'A "B" C', "text": "First text."},
    {"id": "p2", "title": "Łódź", "text": "Second, with\ttab."},
    {"id": "p3", "title": "C", "text": "Third."},
]


def write_corpora(folder):
    """Write the passages of THREE as DPR, FlashRAG and we write them, and with nothing
    but title and text; return the names of the files."""
    tsv = "id\ttext\ttitle\n"
    for passage in THREE:
        title = passage["title"].replace('"', '""')
        tsv += f'{passage["id"]}\t"{passage["text"]}"\t"{title}"\n'
    flashrag = [
        {"id": p["id"], "contents": f'"{p["title"]}"\n{p["text"]}'} for p in THREE
    ]
    bare = [{"title": p["title"], "text": p["text"]} for p in THREE]
    texts = {
        "psgs_w100.tsv": tsv,
        "flash.jsonl": jsonl(*flashrag),
        "own.jsonl": jsonl(*THREE),
        "bare.json": json.dumps(bare),
    }
    for name, text in texts.items():
        content = text.encode()
        (folder / name).write_bytes(content)
        (folder / f"{name}.gz").write_bytes(gzip.compress(content))
    return [*texts, *(f"{name}.gz" for name in texts)]


def test_one_corpus_in_every_format_is_one_corpus(tmp_path):
    for name in write_corpora(tmp_path):
        read = corpus.load_passages(tmp_path / name)
        numbered = [{**p, "id": str(i)} for i, p in enumerate(THREE)]
        assert read == (numbered if "bare" in name else THREE), name


def test_passages_are_streamed_so_that_a_bad_line_far_down_is_met_late(tmp_path):
    file = tmp_path / "c.jsonl"
    file.write_text(jsonl(PASSAGE, {**PASSAGE, "id": "r"}, "{"))
    stream = corpus.read_passages(file)
    assert [next(stream)["id"], next(stream)["id"]] == ["p", "r"]
    with pytest.raises(ValueError, match="line 3 is not JSON"):
        next(stream)


@pytest.mark.parametrize(
    "name, text, words",
    [
        (
            "c.jsonl",
            '{"id": "1", "wiki": "x"}\n',
            "passage 1 has no text under 'title': it has id, wiki",
        ),
        ("c.tsv", "id\ttext\ttitle\n1\tonly\n", "passage 1 has no text under 'title'"),
        ("c.tsv", "id\ttext\n1\ta\tb\tc\n", "passage 1 has no text under 'title'"),
        ("c.json", '[{"title": "a"', "c.json is not JSON"),
        ("c.json", '["a"]', "c.json is not JSON"),
        ("c.json", "[7]", "c.json is not JSON"),
        ("c.json", '[[["id", "1"]]]', "c.json is not JSON"),
        ("c.jsonl", "null\n", "line 1 is not JSON"),
    ],
)
def test_unknown_columns_and_broken_files_are_named(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=words):
        corpus.load_passages(tmp_path / name)


def test_passages_without_an_id_are_numbered(tmp_path):
    contents = '"T"\nt'
    file = tmp_path / "c.jsonl"
    file.write_text(
        jsonl(
            {"id": None, "contents": contents},
            {"id": 7, "contents": contents},
            {"contents": contents},
        )
    )
    assert ids(corpus.load_passages(file)) == ["0", "7", "2"]


@pytest.mark.parametrize("key", ["id", "title", "text"])
@pytest.mark.parametrize("value", [None, 3, ["t"]])
def test_passage_without_text_under_a_key_is_refused(tmp_path, key, value):
    file = tmp_path / "c.jsonl"
    file.write_text(jsonl(PASSAGE, {**PASSAGE, key: value}))
    with pytest.raises(ValueError, match=f"passage 2 has no text under '{key}'"):
        corpus.load_passages(file)


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_empty_corpus_is_refused(tmp_path, text):
    file = tmp_path / "c.jsonl"
    file.write_text(text)
    with pytest.raises(ValueError, match="empty"):
        corpus.load_passages(file)
    with pytest.raises(ValueError, match="no questions"):
        corpus.load_questions(file)


# --- questions ---


def test_questions_of_knowledge_r1(tmp_path):
    file = tmp_path / "q.jsonl"
    rows = [
        {"problem": "Who?", "golden_answers": ["Anna"]},
        {"problem": "When?", "golden_answers": ["1"]},
    ]
    file.write_text(jsonl(*rows))
    assert corpus.load_questions(file) == [
        {**rows[0], "id": "0", "question": "Who?"},
        {**rows[1], "id": "1", "question": "When?"},
    ]


def test_questions_of_2wikimultihopqa_with_their_aliases(tmp_path):
    row = {
        "_id": "x1",
        "type": "comparison",
        "question": "Who?",
        "context": [["A", ["a"]]],
        "answer": "Anna",
        "supporting_facts": [["A", 0], ["B", 1], ["A", 2]],
        "evidences": [],
        "answer_id": "Q1",
    }
    without_aliases = {**row, "_id": "x2", "answer_id": "Q2"}
    (tmp_path / "dev.json").write_text(json.dumps([row, without_aliases]))
    (tmp_path / "id_aliases.json").write_text(
        jsonl(
            {"Q_id": "Q1", "aliases": ["Ann", "A."], "demonyms": ["Annan"]},
            {"Q_id": "Q3", "aliases": None},
        )
    )
    one, two = corpus.load_questions(tmp_path / "dev.json")
    assert one == {
        "id": "x1",
        "question": "Who?",
        "type": "comparison",
        "golden_answers": ["Anna", "Ann", "A.", "Annan"],
        "supporting_titles": ["A", "B"],
    }
    assert two["golden_answers"] == ["Anna"]


@pytest.mark.parametrize("text", ["{", "[1]", '{"Q_id": "Q1"}\n3\n'])
def test_aliases_that_cannot_be_read_are_named(tmp_path, text):
    (tmp_path / "dev.json").write_text(json.dumps([QUESTION]))
    (tmp_path / "id_aliases.json").write_text(text)
    with pytest.raises(ValueError, match="id_aliases.json.* is not JSON"):
        corpus.load_questions(tmp_path / "dev.json")


def test_questions_of_2wikimultihopqa_without_an_answer_are_named(tmp_path):
    (tmp_path / "test.json").write_text(json.dumps([{"_id": "x1", "question": "Who?"}]))
    with pytest.raises(ValueError, match=r"question 1 \(x1\) has no golden answers"):
        corpus.load_questions(tmp_path / "test.json")


def test_questions_of_flashrag(tmp_path):
    file = tmp_path / "q.jsonl"
    file.write_text(jsonl({**QUESTION, "metadata": {"type": "inference", "hops": 2}}))
    assert corpus.load_questions(file)[0]["type"] == "inference"


@pytest.mark.parametrize(
    "given, read", [(None, ""), (2, "2"), ("a", "a"), (["a", "b"], "['a', 'b']")]
)
def test_the_type_of_a_question_is_text(tmp_path, given, read):
    file = tmp_path / "q.jsonl"
    file.write_text(jsonl({**QUESTION, "type": given}))
    assert corpus.load_questions(file)[0]["type"] == read


def test_other_keys_of_a_question_are_kept(tmp_path):
    question = {**QUESTION, "type": "single", "mine": 1}
    file = tmp_path / "q.jsonl"
    file.write_text(jsonl(question))
    assert corpus.load_questions(file) == [question]


@pytest.mark.parametrize("golden", [None, [], "a", [1], [None]])
def test_question_without_golden_answers_is_refused_and_named(tmp_path, golden):
    file = tmp_path / "q.jsonl"
    file.write_text(jsonl(QUESTION, {**QUESTION, "id": "r", "golden_answers": golden}))
    with pytest.raises(ValueError, match=r"question 2 \(r\) has no golden answers"):
        corpus.load_questions(file)


def test_question_without_the_key_golden_answers_is_refused(tmp_path):
    file = tmp_path / "q.jsonl"
    file.write_text(jsonl({"id": "r", "question": "Q?"}))
    with pytest.raises(ValueError, match="no golden answers"):
        corpus.load_questions(file)


def test_id_that_comes_twice_is_refused(tmp_path):
    file = tmp_path / "q.jsonl"
    file.write_text(jsonl(QUESTION, QUESTION))
    with pytest.raises(ValueError, match="question 2 has no id of its own: 'q'"):
        corpus.load_questions(file)


def test_question_without_id_is_refused(tmp_path):
    file = tmp_path / "q.jsonl"
    file.write_text(jsonl({"question": "Q?", "golden_answers": ["a"]}))
    with pytest.raises(ValueError, match="no id of its own"):
        corpus.load_questions(file)


@pytest.mark.parametrize("text", [None, "", "  ", 4])
def test_question_without_text_is_refused(tmp_path, text):
    file = tmp_path / "q.jsonl"
    file.write_text(jsonl({**QUESTION, "question": text}))
    with pytest.raises(ValueError, match="question 1 has no text"):
        corpus.load_questions(file)


# --- the files and splits of a run ---


def test_files_of_a_profile_are_the_shipped_ones():
    where = corpus.locate_files(profiles.resolve("tiny"))
    assert set(where) == {"passages", "train", "test", "test_single"}
    assert all(file.is_file() for file in where.values())
    assert len(corpus.load_split(where, "test", 7)) == 7


def test_a_folder_of_yours_may_hold_files_of_any_kind(tmp_path):
    write_corpora(tmp_path)
    (tmp_path / "psgs_w100.tsv.gz").rename(tmp_path / "passages.tsv.gz")
    (tmp_path / "questions.json").write_text(json.dumps([QUESTION]))
    where = corpus.locate_files(profiles.resolve("tiny"), str(tmp_path))
    assert corpus.load_passages(where["passages"]) == THREE
    assert where["train"] is None
    assert corpus.load_split(where, "test") == [QUESTION]


def test_own_data_needs_only_passages_and_questions(tmp_path):
    (tmp_path / "passages.jsonl").write_text(jsonl(PASSAGE))
    (tmp_path / "questions.jsonl").write_text(jsonl(QUESTION))
    where = corpus.locate_files(profiles.resolve("tiny"), str(tmp_path))
    assert corpus.load_split(where, "test") == [QUESTION]
    assert corpus.load_split(where, "train") == []
    assert corpus.load_split(where, "test_single") == []


def test_own_data_may_be_for_training_only(tmp_path):
    (tmp_path / "passages.jsonl").write_text(jsonl(PASSAGE))
    (tmp_path / "train.jsonl").write_text(jsonl(QUESTION))
    where = corpus.locate_files(profiles.resolve("tiny"), str(tmp_path))
    assert corpus.load_split(where, "train") == [QUESTION]
    with pytest.raises(ValueError, match="nothing to test on"):
        corpus.load_split(where, "test")


def test_one_file_of_questions_is_split_for_a_profile_that_tests_on_a_part(tmp_path):
    rows = [{**QUESTION, "id": str(number)} for number in range(5)]
    (tmp_path / "passages.jsonl").write_text(jsonl(PASSAGE))
    (tmp_path / "questions.jsonl").write_text(jsonl(*rows))
    profile = profiles.resolve("smol", {"eval_questions": 2})
    where = corpus.locate_files(profile, str(tmp_path))
    assert ids(corpus.load_split(where, "test", 2)) == ["0", "1"]
    assert ids(corpus.load_split(where, "train", 2)) == ["2", "3", "4"]

    (tmp_path / "train.jsonl").write_text(jsonl(rows[4]))
    where = corpus.locate_files(profile, str(tmp_path))
    assert ids(corpus.load_split(where, "test", 2)) == ["0", "1"]
    assert ids(corpus.load_split(where, "train", 2)) == ["4"]


@pytest.mark.parametrize("name", ["smol", "1.5b", "7b", "7b-4bit"])
def test_profile_without_a_corpus_asks_for_data(name):
    with pytest.raises(ValueError, match=f"{name} has no corpus of its own"):
        corpus.locate_files(profiles.resolve(name))


def test_own_data_without_passages_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no passages\.jsonl"):
        corpus.locate_files(profiles.resolve("tiny"), str(tmp_path))


def test_training_set_carries_what_the_rewards_need(questions):
    asked = [*questions["train"][:2], {**QUESTION, "id": 7, "question": "\ud800?"}]
    rows = corpus.training_set(asked)
    assert set(rows.column_names) == {"prompt", "golden_answers", "question_id"}
    assert rows[1]["prompt"] == asked[1]["question"]
    assert rows[1]["golden_answers"] == asked[1]["golden_answers"]
    # Half a surrogate pair, which a data set cannot hold.
    assert rows[2] == {"prompt": "??", "golden_answers": ["a"], "question_id": "7"}
