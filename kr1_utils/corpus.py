"""Owns passages and questions: every format they come in, and their splits."""

import ast
import json
import os
from collections.abc import Iterator
from pathlib import Path

from kr1_utils.files import expand_home, in_repository, shipped
from kr1_utils.profiles import Profile
from kr1_utils.rows import SUFFIXES, import_datasets, is_hub_file, read_rows

# --- passages ---


def read_passages(source: str | os.PathLike, split: str = "train") -> Iterator[dict]:
    """Passages `{"id", "title", "text"}`, one at a time, for 21 million do not fit in
    memory.

    Four forms are known: ours; DPR's psgs_w100.tsv (`id, text, title`); FlashRAG's and
    Search-R1's (`id, contents`, with the quoted title on the first line); and
    `{"title", "text"}`, which are numbered.

    Args:
        source: see `read_rows`.

    Raises:
        FileNotFoundError: if there is no such file, folder or data set.
        ValueError: naming the first row that is none of these.
    """
    if source is None:
        raise ValueError(
            "There are no passages in DATA: only notebooks 02 to 05 do without, where"
            " another process serves the index."
        )
    for number, row in enumerate(read_rows(source, split), 1):
        passage = _passage(row, number)
        for key in ("id", "title", "text"):
            if not isinstance(passage.get(key), str):
                raise ValueError(
                    f"{source}, passage {number} has no text under {key!r}: it has"
                    f" {_keys(passage)}."
                )
        yield passage


def load_passages(source: str | os.PathLike, split: str = "train") -> list[dict]:
    """All passages of a source, see `read_passages`; a ValueError if there is none."""
    passages = list(read_passages(source, split))
    if not passages:
        raise ValueError(f"The corpus {source} is empty.")
    return passages


def _passage(row: dict, number: int) -> dict:
    """One passage from the columns it comes in; `number` counts from 1."""
    if isinstance(row.get("contents"), str):
        return _passage_of_flashrag(row, number)
    if "id" not in row:
        return {"id": _own_id(number), **row}
    # Ours, and DPR's.
    return row


def _passage_of_flashrag(row: dict, number: int) -> dict:
    """FlashRAG's and Search-R1's: title and text are both in `contents`."""
    title, text = split_contents(row["contents"])
    given = row.get("id")
    return {
        "id": _own_id(number) if given is None else str(given),
        "title": title,
        "text": text,
    }


def split_contents(contents: str) -> tuple[str, str]:
    """Title and text of FlashRAG's and Search-R1's `contents`: its first line is the
    quoted title."""
    title, _, text = contents.partition("\n")
    return title.strip().removeprefix('"').removesuffix('"'), text.strip()


def _own_id(number: int) -> str:
    """The id of a row that brings none: rows are counted from 0."""
    return str(number - 1)


def _keys(row: dict) -> str:
    return ", ".join(map(str, row))


# --- questions ---


def load_questions(source: str | os.PathLike, split: str = "train") -> list[dict]:
    """All questions of a source: `{"id", "question", "golden_answers"}`, and where
    known `type` and `supporting_titles`.

    These forms are known:

    - ours and FlashRAG's, which keep whatever else a row holds;
    - `hzy/kr1_2wiki`'s: `problem`, numbered;
    - those of 2WikiMultihopQA and HotpotQA, as their authors or the hub publish them
      (`answer`, `supporting_facts`), with the aliases of the answers in
      id_aliases.json beside the file;
    - MuSiQue's: `answer`, `answer_aliases`, `paragraphs`;
    - Search-R1's, and what else is made for verl: `reward_model`.

    A list or an object may also be written as text, as CSV has it.

    Args:
        source: see `read_rows`.

    Raises:
        FileNotFoundError: if there is no such file, folder or data set.
        ValueError: naming the first row that has no question, no id, another's id, no
            golden answer or a blank one, or that is in no known form; or if there is no
            row.
    """
    source = expand_home(source, "The name of a file or data set")
    aliases = _read_aliases(Path(source).parent / "id_aliases.json")
    questions: dict[str | int, dict] = {}
    for number, row in enumerate(read_rows(source, split), 1):
        place = f"{source}, question {number}"
        try:
            question = _question(row, number, aliases)
        except ValueError as error:
            own_id = row.get("_id", row.get("id"))
            raise ValueError(f"{place} ({own_id}): {error}") from None
        question = _told_apart(question, questions)
        _check_question(question, place, questions)
        if "type" in question:
            question = {**question, "type": str(question["type"] or "")}
        questions[question["id"]] = question
    if not questions:
        raise ValueError(f"{source} holds no questions.")
    return list(questions.values())


def _read_aliases(file: Path) -> dict[str, list[str]]:
    """Other names of an answer by the answer's id, as 2WikiMultihopQA lists them."""
    if not file.is_file():
        return {}
    aliases = {}
    for row in read_rows(file):
        try:
            names = _as_list(row, "aliases") + _as_list(row, "demonyms")
        except ValueError as error:
            raise ValueError(f"{file}, {row.get('Q_id')}: {error}") from None
        aliases[row.get("Q_id")] = names
    return aliases


def _question(row: dict, number: int, aliases: dict[str, list[str]]) -> dict:
    """One question from the columns it comes in; `number` counts from 1.

    Raises:
        ValueError: for a column that is not in its form.
    """
    if "problem" in row:
        return _question_of_knowledge_r1(row, number)
    if row.get("reward_model") is not None:
        return _question_of_verl(row)
    # Some rewrite the rows of 2WikiMultihopQA, and put golden answers beside the rest.
    is_ours = row.get("golden_answers") is not None and "_id" not in row
    if not is_ours and ("answer" in row or "_id" in row):
        return _question_with_one_answer(row, aliases)
    return _question_of_ours(row)


def _question_of_knowledge_r1(row: dict, number: int) -> dict:
    """`hzy/kr1_2wiki`, what Knowledge-R1 trained on: no ids."""
    question = {"id": _own_id(number), **row, "question": row["problem"]}
    return _with_lists(question)


def _question_of_ours(row: dict) -> dict:
    """Ours; `RUC-NLPIR/FlashRAG_datasets` too, where the type is in `metadata`."""
    question = _with_lists(row)
    metadata = _decoded(row.get("metadata"))
    if isinstance(metadata, dict) and "type" in metadata:
        question = {"type": metadata["type"], **question}
    return question


def _with_lists(row: dict) -> dict:
    """A row whose lists are lists, also where a CSV has them as text."""
    question = dict(row)
    for key in ("golden_answers", "supporting_titles"):
        if key in row:
            question[key] = _decoded(row[key])
    if isinstance(row.get("answer_in_corpus"), str):
        question["answer_in_corpus"] = row["answer_in_corpus"].lower() == "true"
    return question


def _question_of_verl(row: dict) -> dict:
    """What Search-R1 and others write for verl: the answers are those of the reward.

    The question is not taken out of `prompt`, where it stands among instructions.
    """
    more = _as_dict(row, "extra_info")
    own_id = row.get("id")
    text = row.get("question")
    answers = _decoded(row.get("golden_answers"))
    if answers is None:
        answers = _decoded(_as_dict(row, "reward_model").get("ground_truth"))
        if isinstance(answers, dict):
            answers = answers.get("target")
    question = {
        "id": more.get("index") if own_id is None else own_id,
        "question": more.get("question") if text is None else text,
        "golden_answers": [answers] if isinstance(answers, str) else answers,
    }
    if row.get("data_source") is not None:
        question["data_source"] = row["data_source"]
    return question


def _question_with_one_answer(row: dict, aliases: dict[str, list[str]]) -> dict:
    """2WikiMultihopQA's, HotpotQA's and MuSiQue's: an answer, perhaps its aliases."""
    golden = _decoded(row.get("golden_answers"))
    if golden is None:
        answer = row.get("answer")
        golden = list(answer) if isinstance(answer, list) else [answer]
        golden += _as_list(row, "answer_aliases")
        golden += aliases.get(str(row.get("answer_id")), [])
    return {
        "id": row.get("_id", row.get("id")),
        "question": row.get("question"),
        "type": row.get("type", ""),
        "golden_answers": golden,
        "supporting_titles": _supporting_titles(row),
    }


def _supporting_titles(row: dict) -> list[str]:
    """Titles of the passages that a question needs, each once, in their order.

    Raises:
        ValueError: if they are in no known form.
    """
    titles = _decoded(row.get("supporting_titles"))
    if titles is None:
        of_facts = _titles_of_facts(_decoded(row.get("supporting_facts")))
        of_paragraphs = _titles_of_paragraphs(_decoded(row.get("paragraphs")))
        titles = of_facts + of_paragraphs
    if not _is_list_of_text(titles):
        raise ValueError(f"'supporting_titles' is not a list of texts: {titles!r:.60}.")
    return list(dict.fromkeys(titles))


def _titles_of_facts(facts: object) -> list[str]:
    """Facts are [title, sentence number], or on the hub {"title": [title, …], …}."""
    if not facts:
        return []
    if isinstance(facts, dict):
        titles = facts.get("title")
    elif isinstance(facts, list):
        titles = [_title_of_fact(fact) for fact in facts]
    else:
        titles = None
    if not _is_list_of_text(titles):
        raise ValueError(
            f"'supporting_facts' is neither a list of [title, sentence number] nor"
            f' {{"title": [title, …]}}: {facts!r:.60}.'
        )
    return titles


def _title_of_fact(fact: object) -> object:
    if isinstance(fact, dict):
        return fact.get("title")
    if isinstance(fact, list | tuple) and fact:
        return fact[0]
    return None


def _titles_of_paragraphs(paragraphs: object) -> list[str]:
    """MuSiQue's: those of the paragraphs that are marked `is_supporting`."""
    if not paragraphs:
        return []
    if isinstance(paragraphs, dict):
        # As `datasets` gives a list of objects: an object of lists.
        columns = [paragraphs.get("title") or [], paragraphs.get("is_supporting") or []]
        return [title for title, is_needed in zip(*columns) if is_needed]
    is_list = isinstance(paragraphs, list)
    if not is_list or not all(isinstance(p, dict) for p in paragraphs):
        raise ValueError(
            "'paragraphs' is not a list of objects with 'title' and 'is_supporting':"
            f" {paragraphs!r:.60}."
        )
    return [p.get("title") for p in paragraphs if p.get("is_supporting")]


def _as_list(row: dict, key: str) -> list:
    """A list of a row, [] where there is none.

    Raises:
        ValueError: if it is something else.
    """
    value = _decoded(row.get(key)) or []
    if not isinstance(value, list):
        raise ValueError(f"{key!r} is not a list: {value!r:.60}.")
    return value


def _as_dict(row: dict, key: str) -> dict:
    """An object of a row, {} where it is empty.

    Raises:
        ValueError: if it is something else.
    """
    value = _decoded(row.get(key)) or {}
    if not isinstance(value, dict):
        raise ValueError(f"{key!r} is not an object: {value!r:.60}.")
    return value


def _decoded(value: object) -> object:
    """A list or object that is written as text; anything else as it is.

    The text may be JSON or, as pandas writes lists into a CSV, Python's. Text that is
    blank stands for nothing: None.
    """
    if not isinstance(value, str):
        return value
    text = value.strip()
    if not text or text == "null":
        return None
    if text[0] not in "[{":
        return value
    try:
        return json.loads(text)
    except ValueError:
        pass
    try:
        read = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return value
    # NumPy writes ['a' 'b'], which Python reads as the one text 'ab'.
    return read if repr(read) == text else value


def _told_apart(question: dict, others: dict) -> dict:
    """The question, with its data set in its id if another one has the same id.

    Search-R1's files hold several data sets, and each counts from train_0.
    """
    own_id = question.get("id")
    data_set = question.get("data_source")
    is_taken = isinstance(own_id, str | int) and own_id in others
    if is_taken and data_set and others[own_id].get("data_source") != data_set:
        return {**question, "id": f"{data_set}/{own_id}"}
    return question


def _is_list_of_text(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _check_question(question: dict, place: str, others: dict) -> None:
    """Raise a ValueError that names the question if something is missing.

    Args:
        place: the question's file and number, to name it by.
        others: questions before it, by id.
    """
    text = question.get("question")
    if not isinstance(text, str) or not text.strip():
        raise ValueError(
            f"{place} has no text under 'question': it has {_keys(question)}."
        )
    own_id = question.get("id")
    if not isinstance(own_id, str | int) or own_id in others:
        raise ValueError(f"{place} has no id of its own: {own_id!r}.")
    place = f"{place} ({own_id})"
    _check_golden_answers(question.get("golden_answers"), place)
    titles = question.get("supporting_titles")
    if titles is not None and not _is_list_of_text(titles):
        raise ValueError(
            f"{place}: 'supporting_titles' is not a list of texts: {titles!r:.60}."
        )


def _check_golden_answers(golden: object, place: str) -> None:
    if not golden or not _is_list_of_text(golden):
        raise ValueError(
            f"{place} has no golden answers: 'golden_answers' must be a list of at"
            ' least one text, such as ["Paris"].'
        )
    # A blank gold answer would equal every answer that normalizing makes empty.
    if not all(answer.strip() for answer in golden):
        raise ValueError(f"{place} has a blank golden answer: {golden!r:.60}.")


# --- the files and splits of a run ---

# "test" holds what is tested; the two others, where there are any, questions that need
# one search, and questions that need none beside others that look like them.
TEST_SETS = ("test", "test_single", "test_known")
# More questions to train on, beside those that are mined, lie in "train_extra".
FILES = ("passages", "train", "train_extra", *TEST_SETS)


def locate_files(profile: Profile, data: str = "") -> dict[str, Path | None]:
    """The files of a run, by the names in FILES; None where it has none.

    What a profile names on the hub is fetched, unless it is here. Only where a profile
    names a served index may there be no passages.

    Args:
        data: a folder of yours with `passages.jsonl` and any of `questions.jsonl` (to
            test on), `train.jsonl`, `train_extra.jsonl`, `test.jsonl`,
            `test_single.jsonl`, `test_known.jsonl`, or files of these names that end as
            in SUFFIXES; if empty, the profile's own files. With neither train nor test,
            a profile with `eval_questions` tests on that number of `questions.jsonl`
            and trains on the others. "~" is the home folder.

    Raises:
        FileNotFoundError: if `data` has no passages, or the profile's files belong to a
            repository that is not here.
        OSError: if the hub does not bring a file; the next call goes on from there.
        ValueError: if the profile needs `data` and there is none, or it is not text.
    """
    return {
        name: _fetched(file) if isinstance(file, str) else file
        for name, file in named_files(profile, data).items()
    }


def _fetched(name: str) -> Path:
    """A file of the hub, fetched unless it is here."""
    # It takes its time to import, and most runs fetch nothing.
    from kr1_utils import hub_files

    return hub_files.locate(name)


def named_files(profile: Profile, data: str = "") -> dict[str, Path | str | None]:
    """The files of a run as `locate_files` gives them, but nothing is fetched: those of
    the hub are names, `owner/name:FILE`."""
    if data:
        return _files_of_folder(data, profile)
    if not profile.corpus:
        raise ValueError(
            f"The profile {profile.name} has no corpus of its own: name a folder with "
            "passages.jsonl and questions.jsonl in DATA."
        )
    own = {
        "passages": profile.corpus,
        "train": profile.train_questions,
        "train_extra": "",
        "test": profile.test_questions,
        "test_single": profile.test_single_questions,
        "test_known": profile.test_known_questions,
    }
    return {name: _named_file(file) for name, file in own.items()}


def _named_file(file: str) -> Path | str | None:
    if not file:
        return None
    return file if is_hub_file(file) else shipped(file)


def _files_of_folder(data: str, profile: Profile) -> dict[str, Path | None]:
    data = expand_home(data, "DATA")
    folder = Path(data)
    if not folder.is_dir():
        folder = in_repository(data)
    found = {name: _first_file(folder, name) for name in FILES}
    if not found["passages"] and not profile.retriever:
        raise FileNotFoundError(f"DATA={data}: no passages.jsonl in that folder.")
    if not found["test"]:
        found["test"] = _first_file(folder, "questions")
        if profile.eval_questions and not found["train"]:
            # One file for both, which `load_split` divides.
            found["train"] = found["test"]
    return found


def _first_file(folder: Path, name: str) -> Path | None:
    for suffix in SUFFIXES:
        file = folder / f"{name}{suffix}"
        if file.is_file():
            return file
    return None


def load_split(
    where: dict[str, Path | None], name: str, eval_questions: int = 0
) -> list[dict]:
    """The questions of one split; [] if there is no file, except for "test".

    Args:
        where: the files of a run, from `locate_files`.
        name: "train", "test", "test_single" or "test_known".
        eval_questions: how many of a test set to take, 0 for all. If one file serves
            to train and to test, its other questions are trained on.

    Raises:
        ValueError: if there is nothing to test on.
    """
    file = where[name]
    if not file:
        if name == "test":
            raise ValueError(
                "There is nothing to test on: DATA has neither questions.jsonl nor"
                " test.jsonl."
            )
        return []
    questions = load_questions(file)
    if name == "train":
        is_shared = where["train"] == where["test"]
        return questions[eval_questions:] if is_shared else questions
    return questions[:eval_questions] if eval_questions else questions


def some_of_each_type(questions: list[dict], number: int) -> list[dict]:
    """The first `number` questions of each type, in their order."""
    taken: dict[str, int] = {}
    kept = []
    for question in questions:
        kind = question.get("type", "")
        taken[kind] = taken.get(kind, 0) + 1
        if taken[kind] <= number:
            kept.append(question)
    return kept


def training_set(questions: list[dict]):
    """Questions as a `datasets.Dataset`, which TRL trains on.

    Its columns are `prompt` (the question), `golden_answers` and `supporting_titles`
    (for the rewards), and for the log `question_id` and `type`; what is not known is
    empty.
    """
    rows = [
        {
            "prompt": question["question"],
            "golden_answers": question["golden_answers"],
            "question_id": str(question["id"]),
            "type": question.get("type", ""),
            "supporting_titles": question.get("supporting_titles", []),
        }
        for question in questions
    ]
    # To UTF-8 and back, because Arrow refuses half a surrogate pair.
    clean = json.dumps(rows, ensure_ascii=False).encode("utf-8", "replace")
    return import_datasets().Dataset.from_list(json.loads(clean))
