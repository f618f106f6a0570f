"""Scores as published scorers count them, bootstrap intervals, and `kr1 score`."""

import json
import math
import re
from random import Random

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kr1_utils import cli, files
from kr1_utils.scoring import (
    SCORE_COLUMNS,
    SCORERS,
    bootstrap,
    exact_match,
    f1_score,
    normalize_answer,
    score_answers,
    score_files,
)


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("The Cat", "cat"),
        ("a an the", ""),
        ("An  apple,\n a pear", "apple pear"),
        ("anthem", "anthem"),
        ("U.S.A.", "usa"),
        ("3 November 1929", "3 november 1929"),
        ("Łódź!", "łódź"),
        ("  ", ""),
        ("theatre of the A-team", "theatre of ateam"),
        ("yes.", "yes"),
        ("“quoted”", "“quoted”"),
    ],
)
def test_normalize_answer(text, wanted):
    assert normalize_answer(text) == wanted


@pytest.mark.parametrize(
    "prediction, golds, wanted",
    [
        ("Merano", ["Merano"], 1.0),
        ("the merano.", ["Merano"], 1.0),
        ("Merano", ["Ostby", "Merano"], 1.0),
        ("Merano city", ["Merano"], 0.0),
        ("", ["Merano"], 0.0),
        (None, ["Merano"], 0.0),
        (None, ["None"], 0.0),
        ("Yes", ["yes"], 1.0),
        ("yes", ["no"], 0.0),
        ("ŁÓDŹ", ["Łódź"], 1.0),
        ("Lodz", ["Łódź"], 0.0),
        ("Merano", [], 0.0),
    ],
)
def test_exact_match(prediction, golds, wanted):
    assert exact_match(prediction, golds) == wanted


@pytest.mark.parametrize(
    "prediction, golds, wanted",
    [
        ("Dara Kallas", ["Dara Kallas"], 1.0),
        ("Dara", ["Dara Kallas"], 2 / 3),  # precision 1, recall 1/2
        ("Dara of Merano", ["Dara Kallas"], 0.4),  # precision 1/3, recall 1/2
        ("Dara Dara", ["Dara Kallas"], 0.5),  # the second Dara finds no partner
        ("Kallas Dara", ["Dara Kallas"], 1.0),
        ("Ostby", ["Dara Kallas"], 0.0),
        ("the Dara", ["Dara"], 1.0),
        ("Dara", ["Ostby", "Dara Kallas", "Dara"], 1.0),
        ("ŁÓDŹ.", ["Łódź"], 1.0),
        ("yes", ["yes"], 1.0),
        ("Yes.", ["yes"], 1.0),
        ("yes", ["no"], 0.0),
        ("yes it is", ["yes"], 0.0),
        ("yes", ["yes it is"], 0.0),
        ("no answer", ["no"], 0.0),
        ("noanswer", ["noanswer today"], 0.0),
        ("yes", ["yes it is", "yes"], 1.0),
        (None, ["Dara"], 0.0),
        ("", ["Dara"], 0.0),
        ("the", ["a"], 0.0),
        ("Dara", [], 0.0),
    ],
)
def test_f1(prediction, golds, wanted):
    assert f1_score(prediction, golds) == pytest.approx(wanted)


# Of none of these does normalizing leave anything.
@pytest.mark.parametrize(
    "prediction, golds, wanted",
    [
        ("The The", ["The The"], 1.0),
        ("the  the ", ["The The"], 1.0),
        ("A", ["a"], 1.0),
        ("+", ["+"], 1.0),
        ("+", ["-", "+"], 1.0),
        ("", ["A"], 0.0),
        ("The", ["A"], 0.0),
        ("+", ["The The"], 0.0),
        ("-", ["+"], 0.0),
        ("A", ["Merano"], 0.0),
        ("Merano", ["A"], 0.0),
        (None, ["A"], 0.0),
    ],
)
def test_answers_of_which_normalizing_leaves_nothing_are_compared_as_written(
    prediction, golds, wanted
):
    for scorer, metric in SCORE_COLUMNS:
        score = SCORERS[scorer][metric](prediction, golds)
        assert score == wanted, (scorer, metric)


@pytest.mark.parametrize(
    "prediction, gold, wanted",
    [
        ("The band is The The", "The The", 1.0),
        ("The band", "The The", 0.0),
        ("Paris", "A", 0.0),
        ("the answer is A", "A", 1.0),
        ("2 + 2", "+", 1.0),
        ("C++", "+", 0.0),
    ],
)
def test_such_an_answer_is_found_within_a_longer_one_as_it_is_written(
    prediction, gold, wanted
):
    assert SCORERS["search_r1"]["sub_em"](prediction, [gold]) == wanted


@given(st.text(max_size=20), st.lists(st.text(max_size=20), min_size=1, max_size=3))
def test_f1_lies_between_0_and_1_and_is_1_for_an_exact_match(prediction, golds):
    f1 = f1_score(prediction, golds)
    assert 0 <= f1 <= 1
    if exact_match(prediction, golds):
        assert f1 == pytest.approx(1)


@given(st.lists(st.integers(0, 1), min_size=1, max_size=200))
def test_bootstrap_interval_covers_the_mean(values):
    mean, low, high = bootstrap(values, samples=300)
    assert mean == pytest.approx(np.mean(values)) and low <= mean <= high
    assert low >= 0 and high <= 1


def test_bootstrap_is_deterministic_and_follows_its_seed():
    values = np.random.default_rng(0).random(50)
    assert bootstrap(values) == bootstrap(values)
    assert bootstrap(values, seed=1) != bootstrap(values, seed=2)


def test_bootstrap_interval_is_as_wide_as_the_normal_one():
    values = [0] * 300 + [1] * 200
    _, low, high = bootstrap(values, samples=4000)
    wanted = 2 * 1.96 * math.sqrt(0.4 * 0.6 / 500)
    assert high - low == pytest.approx(wanted, rel=0.1)


def test_bootstrap_of_equal_scores_has_no_width():
    assert bootstrap([1, 1, 1]) == (1, 1, 1)


def test_bootstrap_of_nothing_is_no_number():
    assert all(map(math.isnan, bootstrap([])))


# --- the published scorers, each written once more from its definition ---


def plain(text, blanks=False):
    """Lower case, no punctuation (or blanks for it), no articles, single blanks."""
    marks = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
    if blanks:
        marks += "‘’´"
    letters = []
    for letter in text.lower():
        if letter not in marks:
            letters.append(letter)
        elif blanks:
            letters.append(" ")
    return " ".join(re.sub(r"\b(?:an|a|the)\b", " ", "".join(letters)).split())


def plain_r1(text):
    """With blanks for punctuation, and yes and no for what Python prints."""
    text = {"True": "yes", "False": "no"}.get(text, text)
    return plain(text, blanks=True)


def official(prediction, golden):
    """(EM, F1) as 2WikiMultihopQA's script gives them, the best over the gold
    answers."""
    if prediction is None:
        return 0.0, 0.0
    best_em = 0.0
    best_f1 = 0.0
    for gold in golden:
        p = plain(prediction)
        g = plain(gold)
        if not p and not g:
            # The script takes any two such answers for equal; here ours differs.
            same = float(prediction.lower().split() == gold.lower().split())
            best_em = max(best_em, same)
            best_f1 = max(best_f1, same)
            continue
        best_em = max(best_em, float(p == g))
        if p != g and ("yes" in (p, g) or "no" in (p, g) or "noanswer" in (p, g)):
            continue
        rest = g.split()
        common = 0
        for word in p.split():
            if word in rest:
                rest.remove(word)
                common += 1
        if common:
            a = common / len(p.split())
            b = common / len(g.split())
            best_f1 = max(best_f1, 2 * a * b / (a + b))
    return best_em, best_f1


PIECES = [
    "the",
    "The",
    "a",
    "an",
    "yes",
    "no",
    "Yes.",
    "No!",
    "noanswer",
    "True",
    "False",
    "Zürich",
    "Ωmega",
    "東京",
    "O'Neil",
    "O’Neil",
    "12",
    "1,234",
    "3.5",
    "12 March 1931",
    "St.",
    "-",
    "—",
    "_",
    "A. B.",
    "",
    " ",
    "\t",
    "and",
    "theatre",
    "Anna",
    "ﬁ",
    "İstanbul",
    "é",
    "e\u0301",
    "...",
    "(band)",
]


def tricky(random):
    """A short text of pieces that scorers treat differently."""
    blank = random.choice(["", " ", "  "])
    return blank.join(random.choices(PIECES, k=random.randint(0, 5)))


def test_the_official_scorer_is_what_its_definition_says_on_10000_tricky_pairs():
    random = Random(1)
    equal = 0
    for _ in range(10_000):
        golden = [tricky(random) for _ in range(random.randint(1, 3))]
        prediction = random.choice(
            [None, random.choice(golden).upper(), tricky(random), tricky(random)]
        )
        em, f1 = official(prediction, golden)
        assert SCORERS["2wiki"]["em"](prediction, golden) == em, (prediction, golden)
        assert SCORERS["2wiki"]["f1"](prediction, golden) == f1, (prediction, golden)
        equal += em
    # There were pairs of both kinds.
    assert 1000 < equal < 9000


def test_the_other_scorers_are_what_their_definitions_say():
    random = Random(2)
    seen = set()
    for _ in range(5_000):
        golden = tricky(random)
        prediction = random.choice([None, tricky(random), tricky(random)])
        there = prediction is not None
        text = prediction or ""
        words = plain_r1(text).split(" ")
        sub = there and plain(golden) in plain(text)
        cover = there and all(w in words for w in plain_r1(golden).split(" "))
        equal = there and plain_r1(text) == plain_r1(golden)
        # Where nothing is left of the gold answer, ours looks at what is written.
        as_written = golden.lower().split()
        if not plain(golden):
            sub = (
                there
                and f" {' '.join(as_written)} " in f" {' '.join(text.lower().split())} "
            )
        if not plain_r1(golden):
            cover = there and set(as_written or [""]) <= set(
                text.lower().split() or [""]
            )
            equal = there and not plain_r1(text) and as_written == text.lower().split()
        wanted = {
            ("search_r1", "sub_em"): sub,
            ("r1_searcher", "cover_em"): cover,
            ("r1_searcher", "em"): equal,
        }
        for (scorer, metric), score in wanted.items():
            found = SCORERS[scorer][metric](prediction, [golden])
            assert found == score, (scorer, metric, prediction, golden)
        seen.add((sub, cover))
    assert len(seen) >= 3


@pytest.mark.parametrize(
    "scorer, metric, prediction, gold, score",
    [
        ("2wiki", "em", "O’Neil", "O Neil", 0),
        ("r1_searcher", "em", "O’Neil", "O Neil", 1),
        ("search_r1", "sub_em", "It was Anna Berin, in 1931.", "Anna Berin", 1),
        ("r1_searcher", "cover_em", "Berin, the painter Anna", "Anna Berin", 1),
        ("search_r1", "sub_em", "Berin, the painter Anna", "Anna Berin", 0),
        ("r1_searcher", "em", "True", "yes", 1),
        ("2wiki", "f1", "yes it is", "yes", 0),
    ],
)
def test_where_the_scorers_part(scorer, metric, prediction, gold, score):
    assert SCORERS[scorer][metric](prediction, [gold]) == score


# --- the command ---


@pytest.fixture
def folder(tmp_path):
    """Four questions; a first and a second file of predictions."""
    golds = [["Anna"], ["1931"], ["yes"], ["Zürich", "Zurich"]]
    files.write_jsonl(
        tmp_path / "q.jsonl",
        [
            {"id": f"q{i}", "question": "?", "golden_answers": g, "type": "ab"[i % 2]}
            for i, g in enumerate(golds)
        ],
    )
    files.write_jsonl(
        tmp_path / "one.jsonl",
        [{"id": "q0", "prediction": "Anna"}, {"id": "q1", "prediction": None}],
    )
    files.write_jsonl(
        tmp_path / "two.jsonl",
        [
            {"id": f"q{i}", "prediction": p, "searches": i // 2}
            for i, p in enumerate(["anna", "in 1931", "yes", "the Zurich"])
        ],
    )
    return tmp_path


def run(folder, capsys, *words):
    """The exit status of `kr1 score` and what it printed."""
    status = cli.main(["score", *words, "--questions", str(folder / "q.jsonl")])
    return status, capsys.readouterr()


def test_predictions_of_others_are_scored_side_by_side(folder, capsys):
    status, out = run(folder, capsys, str(folder / "two.jsonl"), "--json")
    result = json.loads(out.out)
    assert status == 0
    assert result["missing"] == 0
    assert set(result["scorers"]) == {"2wiki", "search_r1", "r1_searcher"}
    assert result["scorers"]["2wiki"]["em"] == 0.75
    assert result["scorers"]["search_r1"]["sub_em"] == 1.0
    low, high = result["scorers"]["2wiki"]["em_interval"]
    assert low < 0.75 <= high
    assert result["by_type"]["a"]["2wiki"]["em"] == 1.0
    assert result["by_type"]["b"]["2wiki"]["em"] == 0.5
    assert result["by_searches"]["1"]["questions"] == 2


def test_some_predictions_may_not_say_how_often_they_searched(folder, capsys):
    rows = [
        {"id": "q0", "prediction": "Anna", "searches": 2},
        {"id": "q1", "prediction": "1931"},
    ]
    files.write_jsonl(folder / "some.jsonl", rows)
    result = json.loads(
        run(folder, capsys, str(folder / "some.jsonl"), "--json")[1].out
    )
    assert {k: v["questions"] for k, v in result["by_searches"].items()} == {"2": 1}


def test_a_missing_prediction_scores_nothing_and_is_counted(folder, capsys):
    result = json.loads(run(folder, capsys, str(folder / "one.jsonl"), "--json")[1].out)
    assert result["missing"] == 3 and result["questions"] == 4
    assert all(result["scorers"][s]["em"] == 0.25 for s in SCORERS)


def test_two_files_are_compared_question_by_question(folder, capsys):
    status, out = run(
        folder, capsys, str(folder / "one.jsonl"), str(folder / "two.jsonl")
    )
    assert status == 0
    assert "second less first" in out.out
    assert "0.500 (" in out.out
    same = str(folder / "two.jsonl")
    result = json.loads(run(folder, capsys, same, same, "--json")[1].out)
    assert result["gain"]["2wiki"] == {
        "em": 0,
        "em_interval": [0, 0],
        "f1": 0,
        "f1_interval": [0, 0],
    }


@pytest.mark.parametrize(
    "line, words",
    [
        ({"id": "q9", "prediction": "x"}, "'q9', which no question has"),
        ({"id": "q0"}, "comes twice"),
        ({"id": ["q1"]}, "no question has"),
        ({"id": "q1", "prediction": 12}, "must be text or null"),
        *(
            ({"id": "q1", "searches": n}, "must be a whole number or null")
            for n in (1.5, "two", ["a", "b"])
        ),
    ],
)
def test_bad_predictions_are_refused_with_a_sentence(folder, capsys, line, words):
    files.write_jsonl(folder / "bad.jsonl", [{"id": "q0", "prediction": "x"}, line])
    status, out = run(folder, capsys, str(folder / "bad.jsonl"))
    assert status == 2
    assert words in out.err
    assert "Prediction 2" in out.err


# --- predictions of others ---

OTHERS = {
    "pred": {"pred": "Anna"},
    "answer": {"answer": "Anna"},
    "output": {"output": "Anna"},
    "output.pred": {"output": {"pred": "Anna", "steps": [1]}, "golden_answers": ["x"]},
    "a.b.c": {"a": {"b": {"c": "Anna"}}},
    "x.y": {"x.y": "Anna"},
}


@pytest.mark.parametrize("key", OTHERS)
def test_predictions_without_the_key_are_refused_with_the_keys_they_have(
    folder, capsys, key
):
    files.write_jsonl(folder / "others.jsonl", [{"id": "q0", **OTHERS[key]}])
    status, out = run(folder, capsys, str(folder / "others.jsonl"))
    assert status == 2
    assert out.out == ""
    assert "'prediction'" in out.err and key in out.err and "--key" in out.err
    assert len(out.err.strip().splitlines()) == 1


@pytest.mark.parametrize("key", OTHERS)
def test_predictions_under_another_key_are_scored(folder, capsys, key):
    files.write_jsonl(folder / "others.jsonl", [{"id": "q0", **OTHERS[key]}])
    words = [str(folder / "others.jsonl"), "--key", key, "--json"]
    status, out = run(folder, capsys, *words)
    assert status == 0
    assert json.loads(out.out)["scorers"]["2wiki"]["em"] == 0.25


def test_the_key_that_is_suggested_is_the_one_that_holds_the_answer(folder, capsys):
    row = {"id": "q0", "metadata": {"type": "a"}, **OTHERS["output.pred"]}
    files.write_jsonl(folder / "others.jsonl", [row])
    _, out = run(folder, capsys, str(folder / "others.jsonl"))
    assert "--key output.pred" in out.err
    assert "metadata.type" in out.err


def test_files_with_different_keys_are_compared(folder, capsys):
    files.write_jsonl(folder / "others.jsonl", [{"id": "q0", **OTHERS["output.pred"]}])
    own = str(folder / "two.jsonl")
    others = str(folder / "others.jsonl")
    keys = ["--key", "prediction", "--key", "output.pred"]
    status, out = run(folder, capsys, own, others, *keys, "--json")
    assert status == 0
    assert json.loads(out.out)["gain"]["2wiki"]["em"] == -0.5
    status, out = run(folder, capsys, own, *keys)
    assert status == 2 and "2 keys for 1 files" in out.err


def test_a_row_without_the_key_that_others_have_is_missing(folder, capsys):
    rows = [{"id": "q0", "pred": "Anna"}, {"id": "q1"}, {"id": "q2", "pred": None}]
    files.write_jsonl(folder / "others.jsonl", rows)
    words = [str(folder / "others.jsonl"), "--key", "pred", "--json"]
    assert json.loads(run(folder, capsys, *words)[1].out)["missing"] == 3


def test_a_key_that_holds_no_text_is_named(folder, capsys):
    files.write_jsonl(folder / "others.jsonl", [{"id": "q0", **OTHERS["output.pred"]}])
    words = [str(folder / "others.jsonl"), "--key", "output"]
    status, out = run(folder, capsys, *words)
    assert status == 2 and "Prediction 1: 'output' must be text" in out.err


@pytest.mark.parametrize("text", ["", "\n", "[]"])
def test_a_file_without_predictions_is_refused(folder, capsys, text):
    (folder / "empty.json").write_text(text)
    status, out = run(folder, capsys, str(folder / "empty.json"))
    assert status == 2 and "holds no predictions" in out.err


def test_predictions_are_read_behind_a_byte_order_mark_and_from_a_csv(folder, capsys):
    text = (folder / "two.jsonl").read_text(encoding="utf-8")
    (folder / "bom.jsonl").write_text(f"\ufeff{text}", encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    pd.DataFrame(rows).to_csv(folder / "two.csv", index=False)
    wanted = run(folder, capsys, str(folder / "two.jsonl"), "--json")[1].out
    for name in ("bom.jsonl", "two.csv"):
        status, out = run(folder, capsys, str(folder / name), "--json")
        assert (status, out.out) == (0, wanted), name


def test_three_files_are_refused_before_any_is_read(folder):
    with pytest.raises(ValueError, match="not 3"):
        score_files(["a", "b", "c"], "no such file")


def test_a_table_of_scores_has_a_row_per_question_and_a_column_per_score():
    questions = [
        {"id": 1, "golden_answers": ["Anna"], "type": "a"},
        {"id": 2, "golden_answers": ["1931"]},
    ]
    table = score_answers([{"id": "2", "prediction": "in 1931"}], questions)
    assert table["type"].tolist() == ["a", "all"]
    assert table["missing"].tolist() == [True, False]
    assert table[("2wiki", "em")].tolist() == [0, 0]
    assert table[("search_r1", "sub_em")].tolist() == [0, 1]
    assert list(table.columns[3:]) == SCORE_COLUMNS
