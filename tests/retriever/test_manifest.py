"""An index that is not whole, not ours or made otherwise is refused."""

import json
import os

import bm25s
import numpy as np
import pytest
from helpers import FILM_PASSAGES

from kr1_utils.retriever import MANIFEST, Retriever, fingerprint


def read(folder):
    return json.loads((folder / MANIFEST).read_text())


def write(folder, manifest):
    (folder / MANIFEST).write_text(json.dumps(manifest))


# --- not whole ---


@pytest.mark.parametrize("suffix", [".jsonl", ".npy"])
def test_index_without_one_of_its_files_is_refused(folder, suffix):
    # These two, and the manifest.
    assert len(list(folder.iterdir())) == 3
    file = next(folder.glob(f"*{suffix}"))
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=f"incomplete .{file.name}.*01_build_index"):
        Retriever.open(folder)
    file.unlink()
    with pytest.raises(ValueError, match=f"incomplete .{file.name}.*01_build_index"):
        Retriever.open(folder)


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


def test_pickled_array_in_an_index_is_not_run(folder, tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "sprung"),)

    file = next(folder.glob("*.npy"))
    np.save(file, np.array([Trap()], dtype=object), allow_pickle=True)
    manifest = read(folder)
    manifest["files"][file.name] = file.stat().st_size
    write(folder, manifest)
    with pytest.raises(ValueError, match="[Oo]bject|allow_pickle"):
        Retriever.open(folder)
    assert not (tmp_path / "sprung").exists()


# --- not ours ---


def test_foreign_folder_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="not a complete index"):
        Retriever.open(tmp_path)


def test_index_of_plain_bm25s_is_refused(tmp_path):
    plain = bm25s.BM25(k1=0.9, b=0.4)
    words = bm25s.tokenize(["one text", "two texts"], show_progress=False)
    plain.index(words, show_progress=False)
    plain.save(tmp_path / "index")
    with pytest.raises(ValueError, match="not a complete index"):
        Retriever.open(tmp_path / "index")


# --- made otherwise ---


def test_index_with_another_stemmer_is_refused(tmp_path):
    Retriever.build(FILM_PASSAGES, tmp_path / "index", stemmer="german")
    with pytest.raises(ValueError, match="built with stemmer 'german', not 'english'"):
        Retriever.open(tmp_path / "index")
    opened = Retriever.open(tmp_path / "index", stemmer="german")
    assert len(opened) == len(FILM_PASSAGES)


def test_index_with_other_stop_words_is_refused(tmp_path):
    Retriever.build(FILM_PASSAGES, tmp_path / "index", stop_words="de")
    with pytest.raises(ValueError, match="built with stop_words 'de', not 'en'"):
        Retriever.open(tmp_path / "index")


def test_index_with_other_constants_is_refused(folder):
    manifest = read(folder)
    manifest["bm25"] = {"k1": 1.5, "b": 0.75}
    write(folder, manifest)
    with pytest.raises(ValueError, match="built with bm25 .*1.5.*, not .*0.9"):
        Retriever.open(folder)


def test_index_of_an_earlier_format_is_refused_and_replaced(folder):
    manifest = read(folder)
    del manifest["format"]
    del manifest["shards"]
    write(folder, manifest)
    with pytest.raises(
        ValueError, match="built with format None, not 2: build it again"
    ):
        Retriever.open(folder)
    assert len(Retriever.build(FILM_PASSAGES[:3], folder)) == 3


def test_index_over_another_corpus_is_refused(folder):
    opened = Retriever.open(folder, corpus=fingerprint(FILM_PASSAGES))
    assert len(opened) == len(FILM_PASSAGES)
    with pytest.raises(ValueError, match="built with corpus"):
        Retriever.open(folder, corpus=fingerprint(FILM_PASSAGES[:3]))
