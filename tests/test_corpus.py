"""Questions and passages are read from every format they come in, or named."""

import gzip
import json

import pandas as pd
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
        ("c.tsv", "id\ttext\n1\tonly\n", "passage 1 has no text under 'title'"),
        ("c.tsv", "id\ttext\ttitle\n1\tonly\n", "line 2 is not TSV: .* has 2"),
        ("c.tsv", "id\ttext\n1\ta\tb\tc\n", "line 2 is not TSV: .* has 4"),
        ("c.csv", "id,text,title\n1,only\n", "line 2 is not CSV: .* has 2"),
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


TWO_WIKI = {
    "_id": "x1",
    "type": "comparison",
    "question": "Who?",
    "answer": "Anna",
    "supporting_facts": [["A", 0], ["B", 1], ["A", 2]],
}
READ = {
    "id": "x1",
    "question": "Who?",
    "type": "comparison",
    "golden_answers": ["Anna"],
    "supporting_titles": ["A", "B"],
}


@pytest.mark.parametrize(
    "facts, titles",
    [
        (TWO_WIKI["supporting_facts"], ["A", "B"]),
        (json.dumps(TWO_WIKI["supporting_facts"]), ["A", "B"]),
        # As pandas writes it into a CSV.
        (str(TWO_WIKI["supporting_facts"]), ["A", "B"]),
        ({"title": ["A", "B", "A"], "sent_id": [0, 1, 2]}, ["A", "B"]),
        (json.dumps({"title": ["A", "B"], "sent_id": [0, 1]}), ["A", "B"]),
        ([{"title": "A", "sent_id": 0}, {"title": "B", "sent_id": 0}], ["A", "B"]),
        (None, []),
        ([], []),
        ("", []),
        ("null", []),
    ],
)
def test_supporting_facts_are_read_in_every_form(tmp_path, facts, titles):
    file = tmp_path / "q.jsonl"
    file.write_text(jsonl({**TWO_WIKI, "supporting_facts": facts}))
    assert corpus.load_questions(file) == [{**READ, "supporting_titles": titles}]


@pytest.mark.parametrize(
    "facts",
    ["A", "[['A' 'B']]", "[[", 3, {"sent_id": [0]}, {"title": "A"}, [0], [[]], [[1]]],
)
def test_supporting_facts_in_no_known_form_are_refused_with_the_question(
    tmp_path, facts
):
    file = tmp_path / "q.jsonl"
    file.write_text(jsonl({**TWO_WIKI, "supporting_facts": facts}))
    with pytest.raises(ValueError, match=r"question 1 \(x1\).*'supporting_facts' is"):
        corpus.load_questions(file)


@pytest.mark.parametrize("answer", [{}, {"answer": "Other"}, {"answer": None}])
def test_golden_answers_beside_the_id_of_2wikimultihopqa_are_read(tmp_path, answer):
    row = {"_id": "x1", "question": "Who?", "golden_answers": ["Anna", "Ann"]}
    file = tmp_path / "q.jsonl"
    file.write_text(jsonl(row | answer))
    assert corpus.load_questions(file)[0]["golden_answers"] == ["Anna", "Ann"]


HOTPOT = {
    "id": "x1",
    "question": "Who?",
    "answer": "Anna",
    "type": "comparison",
    "level": "hard",
    "supporting_facts": {"title": ["A", "B", "A"], "sent_id": [0, 1, 2]},
    "context": {"title": ["A"], "sentences": [["a", "b"]]},
}
MUSIQUE = {
    "id": "2hop__1_2",
    "paragraphs": [
        {"idx": 0, "title": "A", "paragraph_text": "a", "is_supporting": True},
        {"idx": 1, "title": "B", "paragraph_text": "b", "is_supporting": False},
        {"idx": 2, "title": "C", "paragraph_text": "c", "is_supporting": True},
    ],
    "question": "Who?",
    "question_decomposition": [{"id": 1, "question": "x", "answer": "y"}],
    "answer": "Anna",
    "answer_aliases": ["Ann", "A."],
    "answerable": True,
}
SEARCH_R1 = {
    "id": "train_0",
    "question": "who?",
    "golden_answers": ["Anna", "Ann"],
    "data_source": "nq",
    "prompt": [{"role": "user", "content": "Answer the question. Question: who?"}],
    "ability": "fact-reasoning",
    "reward_model": {"style": "rule", "ground_truth": {"target": ["Anna", "Ann"]}},
    "extra_info": {"index": 0, "split": "train"},
}


def write_as(folder, kind, rows):
    """A file of rows; CSV has lists and objects as JSON."""
    file = folder / f"q.{kind}"
    if kind == "parquet":
        pd.DataFrame(rows).to_parquet(file)
    elif kind == "csv":
        cells = [
            {k: v if isinstance(v, str) else json.dumps(v) for k, v in row.items()}
            for row in rows
        ]
        pd.DataFrame(cells).to_csv(file, index=False)
    else:
        file.write_text(json.dumps(rows, indent=1))
    return file


@pytest.mark.parametrize("kind", ["json", "parquet", "csv"])
@pytest.mark.parametrize(
    "row, read",
    [
        (HOTPOT, READ),
        (
            MUSIQUE,
            {
                "id": "2hop__1_2",
                "question": "Who?",
                "type": "",
                "golden_answers": ["Anna", "Ann", "A."],
                "supporting_titles": ["A", "C"],
            },
        ),
        (
            SEARCH_R1,
            {
                "id": "train_0",
                "question": "who?",
                "golden_answers": ["Anna", "Ann"],
                "data_source": "nq",
            },
        ),
    ],
    ids=["HotpotQA", "MuSiQue", "Search-R1"],
)
def test_questions_of_others_are_read_from_every_kind_of_file(
    tmp_path, kind, row, read
):
    assert corpus.load_questions(write_as(tmp_path, kind, [row])) == [read]


@pytest.mark.parametrize("kind", ["json", "parquet", "csv"])
@pytest.mark.parametrize("metadata", [None, {"type": "inference"}])
def test_questions_as_flashrag_publishes_them_are_read_from_every_kind_of_file(
    tmp_path, kind, metadata
):
    row = {**QUESTION, "metadata": metadata}
    read = corpus.load_questions(write_as(tmp_path, kind, [row]))[0]
    assert QUESTION.items() <= read.items()
    assert read.get("type") == (metadata and "inference")


@pytest.mark.parametrize(
    "truth", [{"target": ["Anna"]}, {"target": "Anna"}, ["Anna"], "Anna"]
)
def test_answers_of_a_reward_model_are_golden_answers(tmp_path, truth):
    row = {
        "prompt": SEARCH_R1["prompt"],
        "reward_model": {"ground_truth": truth},
        "extra_info": {"index": 7, "question": "who?"},
    }
    file = tmp_path / "q.jsonl"
    file.write_text(jsonl(row))
    assert corpus.load_questions(file) == [
        {"id": 7, "question": "who?", "golden_answers": ["Anna"]}
    ]


def test_a_question_that_stands_only_in_a_prompt_is_refused(tmp_path):
    row = {key: value for key, value in SEARCH_R1.items() if key != "question"}
    file = tmp_path / "q.jsonl"
    file.write_text(jsonl(row))
    with pytest.raises(ValueError, match="question 1 has no text under 'question'"):
        corpus.load_questions(file)


def test_data_sets_in_one_file_that_count_alike_are_told_apart(tmp_path):
    file = tmp_path / "q.jsonl"
    other = {**SEARCH_R1, "data_source": "hotpotqa"}
    file.write_text(jsonl(SEARCH_R1, other))
    assert ids(corpus.load_questions(file)) == ["train_0", "hotpotqa/train_0"]
    file.write_text(jsonl(SEARCH_R1, other, other))
    with pytest.raises(ValueError, match="question 3 has no id of its own"):
        corpus.load_questions(file)


@pytest.mark.parametrize(
    "change, key",
    [
        ({"answer_aliases": "Ann"}, "answer_aliases"),
        ({"paragraphs": ["A"]}, "paragraphs"),
        ({"paragraphs": 3}, "paragraphs"),
        ({"paragraphs": [{"is_supporting": True}]}, "supporting_titles"),
    ],
)
def test_a_column_in_no_known_form_is_refused_with_the_question(tmp_path, change, key):
    file = tmp_path / "q.jsonl"
    file.write_text(jsonl({**MUSIQUE, **change}))
    with pytest.raises(ValueError, match=rf"question 1 \(2hop__1_2\).*'{key}' is not"):
        corpus.load_questions(file)


def test_paragraphs_of_musique_may_be_an_object_of_lists(tmp_path):
    paragraphs = {"title": ["A", "B"], "is_supporting": [False, True]}
    file = tmp_path / "q.jsonl"
    file.write_text(jsonl({**MUSIQUE, "paragraphs": paragraphs}))
    assert corpus.load_questions(file)[0]["supporting_titles"] == ["B"]


def test_lists_of_a_csv_that_pandas_wrote_are_lists(tmp_path):
    row = {
        **QUESTION,
        "golden_answers": ["O'Neil", 'the "a"'],
        "supporting_titles": ["A"],
        "answer_in_corpus": False,
    }
    file = tmp_path / "q.csv"
    pd.DataFrame([row]).to_csv(file, index=False)
    assert corpus.load_questions(file) == [row]


@pytest.mark.parametrize("golden", ["Anna", "['Anna' 'Ann']", "[Anna]", "[]", ""])
def test_golden_answers_of_a_csv_that_are_no_list_are_refused(tmp_path, golden):
    file = tmp_path / "q.csv"
    pd.DataFrame([{**QUESTION, "golden_answers": golden}]).to_csv(file, index=False)
    with pytest.raises(ValueError, match=r"question 1 \(q\) has no golden answers"):
        corpus.load_questions(file)


@pytest.mark.parametrize("titles", ["Anna", 3, [1], {"title": ["A"]}])
def test_supporting_titles_that_are_no_list_of_texts_are_refused(tmp_path, titles):
    file = tmp_path / "q.jsonl"
    file.write_text(jsonl({**QUESTION, "supporting_titles": titles}))
    with pytest.raises(ValueError, match=r"question 1 \(q\): 'supporting_titles' is"):
        corpus.load_questions(file)


@pytest.mark.parametrize("kind", ["list", "lines"])
def test_aliases_are_read_behind_a_byte_order_mark(tmp_path, kind):
    alias = {"Q_id": "Q1", "aliases": ["Ann"], "demonyms": []}
    text = jsonl(alias) if kind == "lines" else json.dumps([alias])
    (tmp_path / "id_aliases.json").write_text(f"\ufeff{text}", encoding="utf-8")
    (tmp_path / "dev.json").write_text(json.dumps([{**TWO_WIKI, "answer_id": "Q1"}]))
    read = corpus.load_questions(tmp_path / "dev.json")
    assert read[0]["golden_answers"] == ["Anna", "Ann"]


def test_aliases_that_are_no_list_are_refused(tmp_path):
    alias = {"Q_id": "Q1", "aliases": "Ann"}
    (tmp_path / "id_aliases.json").write_text(jsonl(alias))
    (tmp_path / "dev.json").write_text(json.dumps([TWO_WIKI]))
    with pytest.raises(ValueError, match=r"id_aliases.json, Q1: 'aliases' is not"):
        corpus.load_questions(tmp_path / "dev.json")


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


@pytest.mark.parametrize("golden", [[""], ["  "], ["a", ""], ["\t", "a"]])
def test_question_with_a_blank_golden_answer_is_refused_and_named(tmp_path, golden):
    file = tmp_path / "q.jsonl"
    rows = [
        {"id": "r", "question": "Q?", "golden_answers": golden},
        {"_id": "r", "question": "Q?", "answer": "a", "golden_answers": golden},
        {"id": "r", "question": "Q?", "answer": golden[0], "answer_aliases": golden},
        {"id": "r", "question": "Q?", "reward_model": {"ground_truth": golden}},
    ]
    for row in rows:
        file.write_text(jsonl(QUESTION, row))
        with pytest.raises(ValueError, match=r"question 2 \(r\) has a blank golden"):
            corpus.load_questions(file)


@pytest.mark.parametrize("golden", ["The The", "A", "+", "the"])
def test_an_answer_of_articles_or_signs_is_one(tmp_path, golden):
    file = tmp_path / "q.jsonl"
    file.write_text(jsonl({**QUESTION, "golden_answers": [golden]}))
    assert corpus.load_questions(file)[0]["golden_answers"] == [golden]


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
    assert set(where) == set(corpus.FILES)
    assert where.pop("train_extra") is None
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


def test_a_folder_of_yours_may_hold_parquet_and_csv(tmp_path):
    pd.DataFrame(THREE).to_parquet(tmp_path / "passages.parquet")
    write_as(tmp_path, "csv", [HOTPOT]).rename(tmp_path / "questions.csv")
    where = corpus.locate_files(profiles.resolve("tiny"), str(tmp_path))
    assert corpus.load_passages(where["passages"]) == THREE
    assert corpus.load_split(where, "test") == [READ]


def test_a_folder_of_yours_may_lie_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "passages.jsonl").write_text(jsonl(PASSAGE))
    (tmp_path / "mine" / "questions.jsonl").write_text(jsonl(QUESTION))
    where = corpus.locate_files(profiles.resolve("tiny"), "~/mine")
    assert where["passages"] == tmp_path / "mine" / "passages.jsonl"
    assert corpus.load_questions("~/mine/questions.jsonl") == [QUESTION]
    assert corpus.load_passages("~/mine/passages.jsonl") == [PASSAGE]


@pytest.mark.parametrize("data", [5, ["a"], True])
def test_data_that_is_no_text_is_refused(data):
    with pytest.raises(ValueError, match="DATA must be text, not"):
        corpus.locate_files(profiles.resolve("tiny"), data)


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


def test_profile_without_a_corpus_asks_for_data():
    with pytest.raises(ValueError, match="smol has no corpus of its own"):
        corpus.locate_files(profiles.resolve("smol"))


@pytest.mark.parametrize("name", ["1.5b", "3b", "7b", "7b-4bit"])
def test_files_on_the_hub_are_named_before_they_are_fetched(name, tmp_path):
    profile = profiles.resolve(name)
    named = corpus.named_files(profile)
    assert named["passages"] == "PeterJinGo/wiki-18-corpus:wiki-18.jsonl.gz"
    assert named["train"] == "hzy/kr1_2wiki:train"
    assert named["test"] == "hzy/kr1_2wiki:test"
    # Your own folder comes in the place of all of them.
    (tmp_path / "passages.jsonl").write_text(jsonl(PASSAGE))
    own = corpus.named_files(profile, str(tmp_path))
    assert own["passages"] == tmp_path / "passages.jsonl"
    assert own["train"] is None


def test_own_data_without_passages_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no passages\.jsonl"):
        corpus.locate_files(profiles.resolve("tiny"), str(tmp_path))


def test_own_data_without_passages_will_do_where_an_index_is_served(tmp_path):
    (tmp_path / "questions.jsonl").write_text(jsonl(QUESTION))
    profile = profiles.resolve("tiny", {"retriever": "http://127.0.0.1:8000"})
    where = corpus.locate_files(profile, str(tmp_path))
    assert where["passages"] is None
    assert corpus.load_split(where, "test") == [QUESTION]
    with pytest.raises(ValueError, match="no passages in DATA"):
        corpus.load_passages(where["passages"])


def test_training_set_carries_what_the_rewards_need(questions):
    asked = [*questions["train"][:2], {**QUESTION, "id": 7, "question": "\ud800?"}]
    rows = corpus.training_set(asked)
    names = {"prompt": "question", "question_id": "id"}
    assert set(rows.column_names) >= {*names, "golden_answers"}
    for column in rows.column_names:
        assert rows[1][column] == asked[1][names.get(column, column)]
    # Half a surrogate pair, which a data set cannot hold.
    assert rows[2]["prompt"] == "??"
    assert rows[2]["question_id"] == "7"
    # What is not known is empty.
    assert rows[2]["supporting_titles"] == []
