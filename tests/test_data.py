"""Reading questions and passages, and the check of a notebook's parameters."""

import gzip
import json

import pytest

from kr1_utils import corpus, files, notebook, profiles

PASSAGE = {"id": "p", "title": "T", "text": "t"}
QUESTION = {"id": "q", "question": "Q?", "golden_answers": ["a"]}


def lines(*rows):
    return "".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows)


def parameters(tmp_path, **changes):
    out = str(tmp_path / "out")
    return {
        "PROFILE": "tiny",
        "SEED": 42,
        "OUT": out,
        "DATA": "",
        "OVERRIDES": {},
    } | changes


@pytest.mark.parametrize(
    "bad", ["{", "nothing", '{"id": 1} x', "[1, 2]", '"text"', "7"]
)
def test_line_that_is_no_json_object_is_named_by_its_number(tmp_path, bad):
    file = tmp_path / "c.jsonl"
    file.write_text(lines(PASSAGE, "", bad, PASSAGE))
    with pytest.raises(ValueError, match=r"c\.jsonl, line 3 is not"):
        corpus.load_passages(file)


def test_bytes_that_are_not_utf8_are_named_by_their_line(tmp_path):
    file = tmp_path / "c.jsonl"
    file.write_bytes(lines(PASSAGE).encode() + '{"id": "ż"}\n'.encode("latin2"))
    with pytest.raises(ValueError, match="line 2 is not JSON"):
        corpus.load_passages(file)


def test_windows_line_ends_and_blank_lines_are_accepted(tmp_path):
    file = tmp_path / "c.jsonl"
    file.write_bytes(
        ("\r\n" + lines(PASSAGE, {**PASSAGE, "text": "Łódź"}))
        .replace("\n", "\r\n")
        .encode()
    )
    assert [p["text"] for p in corpus.load_passages(file)] == ["t", "Łódź"]


# --- every format that questions and passages come in ---

THREE = [
    ("p1", 'A "B" C', "First text."),
    ("p2", "Łódź", "Second, with\ttab."),
    ("p3", "C", "Third."),
]


def corpus_files(folder):
    """The same three passages as DPR, FlashRAG and we write them, and as nothing but
    title and text."""
    tsv = "id\ttext\ttitle\n" + "".join(
        f'{i}\t"{text}"\t"{title.replace(chr(34), chr(34) * 2)}"\n'
        for i, title, text in THREE
    )
    flash = lines(
        *({"id": i, "contents": f'"{title}"\n{text}'} for i, title, text in THREE)
    )
    own = [dict(zip(("id", "title", "text"), row)) for row in THREE]
    for name, text in (
        ("psgs_w100.tsv", tsv),
        ("flash.jsonl", flash),
        ("own.jsonl", lines(*own)),
        ("bare.json", json.dumps([{k: p[k] for k in ("title", "text")} for p in own])),
    ):
        (folder / name).write_text(text, encoding="utf-8")
        with gzip.open(folder / f"{name}.gz", "wt", encoding="utf-8") as out:
            out.write(text)
        yield from (name, f"{name}.gz")


def test_one_corpus_in_every_format_is_one_corpus(tmp_path):
    for name in corpus_files(tmp_path):
        read = corpus.load_passages(tmp_path / name)
        assert [(p["title"], p["text"]) for p in read] == [row[1:] for row in THREE], (
            name
        )
        assert [p["id"] for p in read] == (
            ["0", "1", "2"] if "bare" in name else ["p1", "p2", "p3"]
        ), name


def test_passages_are_streamed_so_that_a_bad_line_far_down_is_met_late(tmp_path):
    file = tmp_path / "c.jsonl"
    file.write_text(lines(PASSAGE, {**PASSAGE, "id": "r"}, "{"))
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
        ("c.jsonl", "null\n", "line 1 is not JSON"),
    ],
)
def test_unknown_columns_and_broken_files_are_named(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=words):
        corpus.load_passages(tmp_path / name)


def test_a_compressed_file_that_was_cut_off_is_named(tmp_path):
    list(corpus_files(tmp_path))
    whole = (tmp_path / "own.jsonl.gz").read_bytes()
    for broken in (whole[:-12], whole[:30] + b"xxxxxxxx" + whole[38:]):
        (tmp_path / "own.jsonl.gz").write_bytes(broken)
        with pytest.raises((ValueError, OSError)):
            corpus.load_passages(tmp_path / "own.jsonl.gz")


def test_a_byte_order_mark_is_not_part_of_the_first_column(tmp_path):
    (tmp_path / "c.tsv").write_text(
        "\ufeffid\ttext\ttitle\np7\tt\tT\n", encoding="utf-8"
    )
    assert corpus.load_passages(tmp_path / "c.tsv")[0]["id"] == "p7"


def test_questions_of_knowledge_r1(tmp_path):
    file = tmp_path / "q.jsonl"
    file.write_text(
        lines(
            {"problem": "Who?", "golden_answers": ["Anna"]},
            {"problem": "When?", "golden_answers": ["1"]},
        )
    )
    assert [
        (q["id"], q["question"], q["golden_answers"])
        for q in corpus.load_questions(file)
    ] == [("0", "Who?", ["Anna"]), ("1", "When?", ["1"])]


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
    (tmp_path / "dev.json").write_text(
        json.dumps([row, {**row, "_id": "x2", "answer_id": "Q2"}])
    )
    (tmp_path / "id_aliases.json").write_text(
        lines(
            {"Q_id": "Q1", "aliases": ["Ann", "A."], "demonyms": ["Annan"]},
            {"Q_id": "Q3", "aliases": None},
        )
    )
    one, two = corpus.load_questions(tmp_path / "dev.json")
    assert one["golden_answers"] == ["Anna", "Ann", "A.", "Annan"] and two[
        "golden_answers"
    ] == ["Anna"]
    assert (one["id"], one["type"], one["supporting_titles"]) == (
        "x1",
        "comparison",
        ["A", "B"],
    )


@pytest.mark.parametrize("text", ["{", "[1]", '{"Q_id": "Q1"}\n3\n'])
def test_aliases_that_can_not_be_read_are_named(tmp_path, text):
    (tmp_path / "dev.json").write_text(json.dumps([QUESTION]))
    (tmp_path / "id_aliases.json").write_text(text)
    with pytest.raises(ValueError, match="id_aliases.json.* is not JSON"):
        corpus.load_questions(tmp_path / "dev.json")


def test_json_is_a_list_or_an_object_a_line(tmp_path):
    one = json.dumps([QUESTION], indent=1)
    for text in (lines(QUESTION), f"\n\n{one}", f"\ufeff{one}"):
        (tmp_path / "q.json").write_text(text, encoding="utf-8")
        assert corpus.load_questions(tmp_path / "q.json") == [QUESTION]


@pytest.mark.parametrize(
    "given, read", [(None, ""), (2, "2"), ("a", "a"), (["a", "b"], "['a', 'b']")]
)
def test_the_type_of_a_question_is_text(tmp_path, given, read):
    (tmp_path / "q.jsonl").write_text(lines(QUESTION | {"type": given}))
    assert corpus.load_questions(tmp_path / "q.jsonl")[0]["type"] == read


def test_a_file_that_is_not_compressed_is_named(tmp_path):
    for name in ("c.jsonl.gz", "c.json.gz", "c.tsv.gz"):
        (tmp_path / name).write_text(lines(PASSAGE))
        with pytest.raises(ValueError, match=rf"{name}.*Not a gzipped file"):
            corpus.load_passages(tmp_path / name)


def test_passages_without_an_id_are_numbered(tmp_path):
    rows = [
        {"id": None, "contents": '"T"\nt'},
        {"id": 7, "contents": '"T"\nt'},
        {"contents": '"T"\nt'},
    ]
    (tmp_path / "c.jsonl").write_text(lines(*rows))
    assert [p["id"] for p in corpus.load_passages(tmp_path / "c.jsonl")] == [
        "0",
        "7",
        "2",
    ]


def test_questions_of_2wikimultihopqa_without_an_answer_are_named(tmp_path):
    (tmp_path / "test.json").write_text(json.dumps([{"_id": "x1", "question": "Who?"}]))
    with pytest.raises(ValueError, match=r"question 1 \(x1\) has no golden answers"):
        corpus.load_questions(tmp_path / "test.json")


def test_questions_of_flashrag(tmp_path):
    file = tmp_path / "q.jsonl"
    file.write_text(lines({**QUESTION, "metadata": {"type": "inference", "hops": 2}}))
    assert corpus.load_questions(file)[0]["type"] == "inference"


def test_a_folder_of_a_data_set_is_read_through_datasets(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text(
            lines({"problem": split, "golden_answers": ["a"]})
        )
    assert corpus.load_questions(folder, "test")[0]["question"] == "test"
    assert corpus.load_questions(folder)[0]["question"] == "train"


def test_a_data_set_that_can_not_be_had_is_named(monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="nobody/nothing"):
        corpus.load_questions("nobody/nothing", "test")


def test_a_folder_of_yours_may_hold_any_of_these_files(tmp_path):
    list(corpus_files(tmp_path))
    (tmp_path / "psgs_w100.tsv.gz").rename(tmp_path / "passages.tsv.gz")
    (tmp_path / "questions.json").write_text(json.dumps([QUESTION]))
    where = corpus.locate_files(profiles.resolve("tiny"), str(tmp_path))
    assert len(corpus.load_passages(where["passages"])) == 3 and where["train"] is None
    assert corpus.load_split(where, "test")[0]["id"] == "q"


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_empty_corpus_is_refused(tmp_path, text):
    file = tmp_path / "c.jsonl"
    file.write_text(text)
    with pytest.raises(ValueError, match="empty"):
        corpus.load_passages(file)
    with pytest.raises(ValueError, match="no questions"):
        corpus.load_questions(file)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No file .*none\.jsonl"):
        corpus.load_passages(tmp_path / "none.jsonl")


@pytest.mark.parametrize("key", ["id", "title", "text"])
@pytest.mark.parametrize("value", [None, 3, ["t"]])
def test_passage_without_text_under_a_key_is_refused(tmp_path, key, value):
    file = tmp_path / "c.jsonl"
    file.write_text(lines(PASSAGE, {**PASSAGE, key: value}))
    with pytest.raises(ValueError, match=f"passage 2 has no text under '{key}'"):
        corpus.load_passages(file)


@pytest.mark.parametrize("golden", [None, [], "a", [1], [None]])
def test_question_without_golden_answers_is_refused_and_named(tmp_path, golden):
    file = tmp_path / "q.jsonl"
    file.write_text(lines(QUESTION, {**QUESTION, "id": "r", "golden_answers": golden}))
    with pytest.raises(ValueError, match=r"question 2 \(r\) has no golden answers"):
        corpus.load_questions(file)


def test_question_without_the_key_golden_answers_is_refused(tmp_path):
    file = tmp_path / "q.jsonl"
    file.write_text(lines({"id": "r", "question": "Q?"}))
    with pytest.raises(ValueError, match="no golden answers"):
        corpus.load_questions(file)


def test_id_that_comes_twice_is_refused(tmp_path):
    file = tmp_path / "q.jsonl"
    file.write_text(lines(QUESTION, QUESTION))
    with pytest.raises(ValueError, match="question 2 has no id of its own: 'q'"):
        corpus.load_questions(file)


def test_question_without_id_is_refused(tmp_path):
    file = tmp_path / "q.jsonl"
    file.write_text(lines({k: v for k, v in QUESTION.items() if k != "id"}))
    with pytest.raises(ValueError, match="no id of its own"):
        corpus.load_questions(file)


@pytest.mark.parametrize("text", [None, "", "  ", 4])
def test_question_without_text_is_refused(tmp_path, text):
    file = tmp_path / "q.jsonl"
    file.write_text(lines({**QUESTION, "question": text}))
    with pytest.raises(ValueError, match="question 1 has no text"):
        corpus.load_questions(file)


def test_other_keys_of_a_question_are_kept(tmp_path):
    file = tmp_path / "q.jsonl"
    file.write_text(lines({**QUESTION, "type": "single"}))
    assert corpus.load_questions(file) == [{**QUESTION, "type": "single"}]


def test_written_rows_are_read_back_and_no_part_file_stays(tmp_path):
    file = tmp_path / "r.jsonl"
    files.write_jsonl(file, [{"a": "Łódź\n<b>"}, {"b": None}])
    assert list(corpus.read_rows(file)) == [{"a": "Łódź\n<b>"}, {"b": None}]
    assert [f.name for f in tmp_path.iterdir()] == ["r.jsonl"]


def test_failed_write_leaves_the_old_file_whole(tmp_path):
    file = tmp_path / "r.jsonl"
    files.write_jsonl(file, [{"a": 1}])
    with pytest.raises(TypeError):
        files.atomic_write(file, lambda out: (out.write(b"new"), out.write("no bytes")))
    assert list(corpus.read_rows(file)) == [{"a": 1}]


def test_setup_resolves_the_profile_and_makes_the_output_folder(tmp_path):
    profile, out = notebook.setup(parameters(tmp_path, OVERRIDES={"max_steps": 2}))
    assert profile.grpo["max_steps"] == 2 and out == tmp_path / "out"
    assert [f.name for f in out.iterdir()] == ["figures"]


def test_out_below_an_existing_file_is_refused_in_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"OUT=.* can not be written: .*") as caught:
        notebook.setup(parameters(tmp_path, OUT=str(tmp_path / "file" / "out")))
    assert "\n" not in str(caught.value)


def test_out_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match="can not be written"):
        notebook.setup(parameters(tmp_path, OUT=str(tmp_path / "file")))
    assert (tmp_path / "file").read_text() == "mine"


def test_unknown_parameter_is_refused_and_the_known_are_named(tmp_path):
    with pytest.raises(
        ValueError,
        match="Unknown parameter 'STEPS'.*PROFILE, SEED, OUT, DATA, OVERRIDES",
    ):
        notebook.setup(parameters(tmp_path, STEPS=3))


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, "42", True, None])
def test_bad_seed_is_refused(tmp_path, seed):
    with pytest.raises(ValueError, match="SEED must be a whole number"):
        notebook.setup(parameters(tmp_path, SEED=seed))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"PROFILE": "huge"}, "Unknown profile"),
        ({"OVERRIDES": {"steps": 1}}, "Unknown override"),
        ({"OVERRIDES": {"max_steps": "1"}}, "must be a int|must be an int"),
        ({"DATA": "no/such/folder"}, "DATA=no/such/folder"),
    ],
)
def test_nothing_is_written_when_a_parameter_is_refused(tmp_path, changes, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        notebook.setup(parameters(tmp_path, **changes))
    assert not (tmp_path / "out").exists()


def test_sources_of_a_profile_are_the_shipped_files():
    where = corpus.locate_files(profiles.resolve("tiny"))
    assert set(where) == {"passages", "train", "test", "test_single"}
    assert all(file.is_file() for file in where.values())
    assert len(corpus.load_split(where, "test", 7)) == 7


def test_own_data_needs_only_passages_and_questions(tmp_path):
    (tmp_path / "passages.jsonl").write_text(lines(PASSAGE))
    (tmp_path / "questions.jsonl").write_text(lines(QUESTION))
    where = corpus.locate_files(profiles.resolve("tiny"), str(tmp_path))
    assert corpus.load_split(where, "test") == [QUESTION]
    assert (
        corpus.load_split(where, "train") == []
        and corpus.load_split(where, "test_single") == []
    )


def test_own_data_may_be_for_training_only(tmp_path):
    (tmp_path / "passages.jsonl").write_text(lines(PASSAGE))
    (tmp_path / "train.jsonl").write_text(lines(QUESTION))
    where = corpus.locate_files(profiles.resolve("tiny"), str(tmp_path))
    assert corpus.load_split(where, "train") == [QUESTION]
    with pytest.raises(ValueError, match="nothing to test on"):
        corpus.load_split(where, "test")


def test_one_file_of_questions_is_split_for_a_profile_that_tests_on_a_part(tmp_path):
    (tmp_path / "passages.jsonl").write_text(lines(PASSAGE))
    rows = [QUESTION | {"id": str(i)} for i in range(5)]
    (tmp_path / "questions.jsonl").write_text(lines(*rows))
    profile = profiles.resolve("smol", {"eval_questions": 2})
    where = corpus.locate_files(profile, str(tmp_path))
    assert [
        q["id"] for q in corpus.load_split(where, "test", profile.eval_questions)
    ] == ["0", "1"]
    assert [
        q["id"] for q in corpus.load_split(where, "train", profile.eval_questions)
    ] == ["2", "3", "4"]
    (tmp_path / "train.jsonl").write_text(lines(rows[4]))
    where = corpus.locate_files(profile, str(tmp_path))
    assert [
        q["id"] for q in corpus.load_split(where, "train", profile.eval_questions)
    ] == ["4"]


def test_profile_without_a_corpus_asks_for_data():
    with pytest.raises(ValueError, match="smol has no corpus of its own"):
        corpus.locate_files(profiles.resolve("smol"))


def test_own_data_without_passages_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no passages\.jsonl"):
        corpus.locate_files(profiles.resolve("tiny"), str(tmp_path))


def test_two_output_folders_do_not_share_an_index(tmp_path):
    runs = files.REPO / "data" / "runs"
    assert (
        notebook.index_folder(runs / "tiny") == files.REPO / "data" / "index" / "tiny"
    )
    assert notebook.index_folder(tmp_path / "a") != notebook.index_folder(
        tmp_path / "b"
    )


def test_an_output_folder_has_one_index_however_it_is_written(monkeypatch):
    monkeypatch.chdir(files.REPO)
    whole = files.REPO / "data" / "runs" / "a"
    assert notebook.index_folder(
        whole.relative_to(files.REPO)
    ) == notebook.index_folder(whole)


def test_trajectory_that_was_cut_off_within_a_letter_goes(tmp_path):
    file, rows = (
        tmp_path / "trajectories.jsonl",
        [{"step": n, "said": "Kaljulaïd\u2028é"} for n in (1, 2)],
    )
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    file.write_bytes(text[: -3 - len('"')])  # one of the two bytes of é
    files.drop_from_step(file, 2)
    assert [
        json.loads(line) for line in file.read_text("utf-8").split("\n")[:-1]
    ] == rows[:1]


def test_line_of_trajectories_that_the_disk_lost_goes_and_the_others_stay(tmp_path):
    file = tmp_path / "trajectories.jsonl"
    files.append_rows(file, [{"step": 1}, {"step": 2}])
    with file.open("ab") as more:
        more.write(b"\0" * 40 + b"\n{}\n")
    files.drop_from_step(file, 3)
    assert list(corpus.read_rows(file)) == [{"step": 1}, {"step": 2}]


def test_folder_is_not_moved_away_before_the_disk_holds_the_one_in_its_place(
    tmp_path, monkeypatch
):
    folder, part = tmp_path / "folder", tmp_path / "folder.part"
    for where, text in ((folder, "before"), (part, "after")):
        where.mkdir()
        (where / "file").write_text(text)

    def full(*files):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(files, "fsync", full)
        files.replace_folder(folder, part)
    assert (folder / "file").read_text() == "before"
    copy = tmp_path / "folder.old"  # yours, not ours
    copy.mkdir()
    files.replace_folder(folder, part)
    assert (folder / "file").read_text() == "after" and set(tmp_path.iterdir()) == {
        folder,
        copy,
    }


def test_shown_paths_never_start_at_the_root(tmp_path):
    assert files.display_path(files.REPO / "data" / "x.csv") == "data/x.csv"
    assert not files.display_path(tmp_path / "x.csv").startswith("/")


def test_what_papermill_injects_is_checked_too(tmp_path):
    known = parameters(tmp_path)
    cells = ["import x", 'PROFILE = "tiny"', "# Parameters\nSEED = 1\nSTEPS = 3\n"]
    with pytest.raises(ValueError, match="Unknown parameter 'STEPS'"):
        notebook.setup({**known, "In": cells, "anything": 1, "else": 2})
    notebook.setup(
        {**known, "In": cells[:2] + ["# Parameters\nSEED = 1\n"], "anything": 1}
    )


def test_runs_own_file_goes_before_the_shipped_one(tmp_path, capsys):
    own = tmp_path / "train_log.csv"
    assert (
        notebook.run_or_shipped(own)
        == files.REPO / "data" / "reference" / "tiny" / "seed42" / "train_log.csv"
    )
    assert "showing the shipped run's" in capsys.readouterr().out
    own.write_text("")
    assert notebook.run_or_shipped(own) == own and capsys.readouterr().out == ""
