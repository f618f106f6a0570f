"""Rows are read from every kind of file as they were written, bad ones named."""

import csv
import gzip
import io
import json
import pickle
import sys
import tarfile

import pandas as pd
import pytest

from kr1_utils import corpus
from kr1_utils.rows import UnreadableRowError, read_rows

PASSAGE = {"id": "p", "title": "T", "text": "t"}
QUESTION = {"id": "q", "question": "Q?", "golden_answers": ["a"]}

# The same passage twice, in every kind of file that is text.
TEXTS = {
    "lines.jsonl": json.dumps(PASSAGE) + "\n" + json.dumps(PASSAGE) + "\n",
    "list.json": json.dumps([PASSAGE, PASSAGE]),
    "pretty list.json": json.dumps([PASSAGE, PASSAGE], indent=2),
    "pretty.json": json.dumps(PASSAGE, indent=2) + "\n" + json.dumps(PASSAGE, indent=2),
    "pretty.jsonl": "\n"
    + json.dumps(PASSAGE, indent=2)
    + json.dumps(PASSAGE, indent=2),
    "c.tsv": "id\ttitle\ttext\np\tT\tt\np\tT\tt\n",
    "quoted.tsv": 'id\ttitle\ttext\np\t"T"\t"t"\np\tT\t"t"\n',
    "c.csv": "id,title,text\np,T,t\np,T,t\n",
    "quoted.csv": '"id","title","text"\n"p","T","t"\np,T,"t"\n',
}


def jsonl(*rows):
    """One line per row; a text is a line as it is."""
    lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
    return "".join(line + "\n" for line in lines)


def ids(rows):
    return [row["id"] for row in rows]


# --- every kind of file ---


@pytest.mark.parametrize("name", TEXTS)
def test_a_file_of_every_kind_gives_the_same_rows(tmp_path, name):
    file = tmp_path / name
    file.write_text(TEXTS[name])
    assert list(read_rows(file)) == [PASSAGE, PASSAGE]


def test_one_object_over_many_lines_is_one_row(tmp_path):
    file = tmp_path / "q.json"
    file.write_text(json.dumps(QUESTION, indent=4))
    assert corpus.load_questions(file) == [QUESTION]


def test_a_broken_object_over_many_lines_is_named(tmp_path):
    file = tmp_path / "q.json"
    file.write_text(json.dumps(QUESTION, indent=4)[:-3])
    with pytest.raises(UnreadableRowError, match="q.json is not JSON"):
        list(read_rows(file))


def test_a_parquet_file_gives_plain_lists_and_objects(tmp_path):
    row = {**QUESTION, "metadata": {"type": "a", "facts": [["T", "1"]]}}
    file = tmp_path / "q.parquet"
    pd.DataFrame([row]).to_parquet(file)
    assert list(read_rows(file)) == [row]


def test_a_broken_parquet_file_is_named(tmp_path):
    file = tmp_path / "q.parquet"
    file.write_bytes(b"PAR1 nothing")
    with pytest.raises(UnreadableRowError, match="q.parquet is not parquet"):
        list(read_rows(file))


def test_parquet_without_its_library_names_the_extra(tmp_path, monkeypatch):
    file = tmp_path / "q.parquet"
    pd.DataFrame([QUESTION]).to_parquet(file)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"\[train\]"):
        list(read_rows(file))


def test_a_source_that_is_no_text_is_refused():
    with pytest.raises(ValueError, match="must be text, not 5"):
        list(read_rows(5))


def test_a_file_is_found_in_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "c.jsonl").write_text(jsonl(PASSAGE))
    assert list(read_rows("~/c.jsonl")) == [PASSAGE]
    # With one "/", this would else be the name of a data set.
    with pytest.raises(FileNotFoundError, match="No file"):
        list(read_rows("~/nothing"))


# --- tables ---


def test_quotes_in_a_tsv_are_text_where_they_stand_alone(tmp_path):
    file = tmp_path / "c.tsv"
    file.write_text(
        'id\ttext\ttitle\n1\tone\tA\n2\t"Oh no, he said\tB\n3\tthree\tC\n4\tfour\tD'
    )
    texts = [passage["text"] for passage in corpus.load_passages(file)]
    assert texts == ["one", '"Oh no, he said', "three", "four"]


@pytest.mark.parametrize(
    "written, read",
    [
        ('"a ""b"" c"', 'a "b" c'),
        ('"""a"""', '"a"'),
        ('""', ""),
        ('"', '"'),
        ('"""', '"""'),
        ('"a', '"a'),
        ('a"', 'a"'),
        ('"a" and "b"', '"a" and "b"'),
        ('5" by 7"', '5" by 7"'),
        ('"a""', '"a""'),
    ],
)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_field_of_a_tsv_is_quoted_as_a_whole_or_not_at_all(
    tmp_path, written, read, place
):
    fields = ["x", "y", "z"]
    wanted = list(fields)
    fields[place] = written
    wanted[place] = read
    file = tmp_path / "c.tsv"
    file.write_text("id\ttext\ttitle\n" + "\t".join(fields) + "\r\n1\t2\t3\n")
    assert [list(row.values()) for row in read_rows(file)] == [wanted, ["1", "2", "3"]]


def test_what_dpr_writes_is_read_as_it_was(tmp_path):
    passages = [
        {"id": "1", "text": 'He said "no" and left', "title": '"Oh"'},
        {"id": "2", "text": '"Whole"', "title": "A\tB"},
        {"id": "3", "text": "plain", "title": "C"},
    ]
    file = tmp_path / "psgs_w100.tsv"
    with file.open("w", newline="") as out:
        writer = csv.DictWriter(out, ["id", "text", "title"], delimiter="\t")
        writer.writeheader()
        writer.writerows(passages)
    assert list(read_rows(file)) == passages


@pytest.mark.parametrize(
    "name, text, words",
    [
        ("c.tsv", "id\ttext\n1\ta\n2\ta\tb\n", "line 3 is not TSV: .* has 3"),
        ("c.tsv", "id\ttext\n\n1\n", "line 3 is not TSV: .* has 1"),
        # A line break within quotes.
        ("c.tsv", 'id\ttext\n1\t"a\nb"\n', "line 3 is not TSV.*line break"),
        ("c.tsv", "id\ttext\ttext\n1\ta\tb\n", "line 1 is not TSV.*'text' twice"),
        ("c.csv", "id,text\n1,a\n2,a,b\n", "line 3 is not CSV: .* has 3"),
        ("c.csv", 'id,text\n1,a\n2,"a\n3,b\n', "line 3 is not CSV"),
        ("c.csv", 'id,text\n1,"a" b\n', "line 2 is not CSV"),
        ("c.csv", "id,text,text\n1,a,b\n", "line 1 is not CSV.*'text' twice"),
    ],
)
def test_a_row_that_does_not_fit_its_table_is_named_by_its_line(
    tmp_path, name, text, words
):
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(UnreadableRowError, match=words):
        list(read_rows(file))


def test_a_field_of_a_csv_may_hold_commas_quotes_and_line_breaks(tmp_path):
    row = {"id": "1", "text": 'a, "b"\nc', "title": ""}
    file = tmp_path / "c.csv"
    pd.DataFrame([row, row]).to_csv(file, index=False)
    assert list(read_rows(file)) == [row, row]


# --- what cannot be read ---


@pytest.mark.parametrize(
    "bad", ["{", "nothing", '{"id": 1} x', "[1, 2]", '"text"', "7"]
)
def test_line_that_is_no_json_object_is_named_by_its_number(tmp_path, bad):
    file = tmp_path / "c.jsonl"
    file.write_text(jsonl(PASSAGE, "", bad, PASSAGE))
    with pytest.raises(UnreadableRowError, match=r"c\.jsonl, line 3 is not") as caught:
        corpus.load_passages(file)
    assert (caught.value.file, caught.value.line) == (file, 3)


def test_error_of_a_row_comes_whole_out_of_another_process(tmp_path):
    error = UnreadableRowError(tmp_path / "c.jsonl", "JSON", "no object", 3)
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
    for name in ("c.jsonl.gz", "c.json.gz", "c.tsv.gz", "c.csv.gz"):
        (tmp_path / name).write_text(jsonl(PASSAGE))
        with pytest.raises(ValueError, match=rf"{name}.*Not a gzipped file"):
            corpus.load_passages(tmp_path / name)


@pytest.mark.parametrize("name", TEXTS)
def test_a_compressed_file_that_was_cut_off_is_named(tmp_path, name):
    file = tmp_path / f"{name}.gz"
    whole = gzip.compress(TEXTS[name].encode())
    broken_inside = whole[:30] + b"xxxxxxxx" + whole[38:]
    for broken in (whole[:-12], broken_inside):
        file.write_bytes(broken)
        with pytest.raises(ValueError, match=name):
            corpus.load_passages(file)


def tar_gz(*files):
    """An archive of these (name, content), compressed."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            if name.endswith("/"):
                member.type = tarfile.DIRTYPE
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


@pytest.mark.parametrize("name", ["lines.jsonl", "list.json", "c.tsv"])
def test_an_archive_of_one_file_is_read_as_that_file(tmp_path, name):
    # So wiki-18.jsonl.gz is published: gzip over tar over JSON lines.
    file = tmp_path / f"{name}.gz"
    file.write_bytes(tar_gz(("data/wiki_dump.jsonl", TEXTS[name].encode())))
    assert list(read_rows(file)) == [PASSAGE, PASSAGE]


def test_an_archive_of_none_or_of_two_files_is_refused(tmp_path):
    file = tmp_path / "c.jsonl.gz"
    lines = jsonl(PASSAGE).encode()
    none = [("a/", b"")]
    two = [("a", lines), ("b", lines)]
    for files, reason in [(none, "holds no file"), (two, "holds b too")]:
        file.write_bytes(tar_gz(*files))
        with pytest.raises(UnreadableRowError, match=f"c.jsonl.gz.*{reason}"):
            list(read_rows(file))


def test_an_archive_that_was_cut_off_is_named(tmp_path):
    lines = "".join(jsonl({**PASSAGE, "id": str(n)}) for n in range(20_000))
    whole = tar_gz(("c.jsonl", lines.encode()))
    file = tmp_path / "c.jsonl.gz"
    for length in (len(whole) // 2, len(whole) - 12):
        file.write_bytes(whole[:length])
        with pytest.raises(UnreadableRowError, match="c.jsonl.gz"):
            list(read_rows(file))


def test_a_bad_line_in_an_archive_is_named_by_its_number(tmp_path):
    file = tmp_path / "c.jsonl.gz"
    file.write_bytes(tar_gz(("c.jsonl", (jsonl(PASSAGE) + "{no").encode())))
    with pytest.raises(UnreadableRowError, match="c.jsonl.gz, line 2 is not JSON"):
        list(read_rows(file))


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("compressed", [False, True])
def test_a_byte_order_mark_is_not_part_of_what_is_read(tmp_path, name, compressed):
    content = f"\ufeff{TEXTS[name]}".encode()
    file = tmp_path / name
    if compressed:
        file = tmp_path / f"{name}.gz"
        content = gzip.compress(content)
    file.write_bytes(content)
    assert list(read_rows(file)) == [PASSAGE, PASSAGE]


def test_a_byte_order_mark_where_two_files_were_put_together_is_left_out(tmp_path):
    file = tmp_path / "c.jsonl"
    file.write_text(f"\ufeff{jsonl(PASSAGE)}" * 2, encoding="utf-8")
    assert list(read_rows(file)) == [PASSAGE, PASSAGE]


@pytest.mark.parametrize("name, sign", [("c.tsv", "\t"), ("c.csv", ",")])
def test_a_table_may_hold_a_longer_passage_than_python_allows_by_itself(
    tmp_path, name, sign
):
    text = "word " * 100_000
    file = tmp_path / name
    file.write_text(f"id{sign}text{sign}title\np{sign}{text}{sign}T\n")
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
