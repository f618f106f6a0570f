"""Searches the 2WikiMultihopQA passages of a folder with its questions themselves:
pack_retrieval.jsonl.

`python data/reference/pack_retrieval.py FOLDER`: of each question the ten passages
found, and the rank of the first in which a gold answer stands; `counts` leaves out
yes/no questions and those without an answer there."""

import sys
from pathlib import Path

from kr1_utils.data import load_questions, write_jsonl
from kr1_utils.retriever import Retriever
from kr1_utils.rewards import normalize_answer


def rows(folder: Path) -> list[dict]:
    questions = load_questions(folder / "questions.jsonl")
    found = Retriever.build(folder / "passages.jsonl").search(
        [q["question"] for q in questions], 10
    )
    out = []
    for q, passages in zip(questions, found, strict=True):
        golden = [normalize_answer(g) for g in q["golden_answers"]]
        ranks = [
            n
            for n, p in enumerate(passages, 1)
            if any(g in normalize_answer(f"{p['title']} {p['text']}") for g in golden)
        ]
        out.append(
            {
                "id": q["id"],
                "golden_answers": q["golden_answers"],
                "counts": q["answer_in_corpus"] and not {"yes", "no"} & set(golden),
                "rank": ranks[0] if ranks else None,
                "passage_ids": [p["id"] for p in passages],
            }
        )
    return out


if __name__ == "__main__":
    write_jsonl(Path(__file__).with_suffix(".jsonl"), rows(Path(sys.argv[1])))
