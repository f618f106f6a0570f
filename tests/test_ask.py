"""A trained agent is opened with what belongs to it, and what it replies shows
itself."""

import html
import json
import re
import shutil
from pathlib import Path

import pytest
from helpers import ANSWER, FILM_PASSAGES, ROOMY, SEARCH, Shelf
from safetensors.torch import load_file
from servers import served

from kr1_utils import ask, models, runs
from kr1_utils.agent import ScriptedEngine
from kr1_utils.files import REPO, write_jsonl
from kr1_utils.profiles import resolve
from kr1_utils.retriever import Retriever

SYSTEM = "Search, read, answer."
CHECKPOINT = REPO / runs.SHIPPED_RUN / "checkpoint"


@pytest.fixture
def scripted(tokenizer):
    """An agent that searches once, then answers."""
    engine = ScriptedEngine(tokenizer, {"Where?": [SEARCH, ANSWER]})
    return ask.Agent(engine, tokenizer, Shelf(), ROOMY, SYSTEM)


@pytest.fixture
def no_runs(monkeypatch, tmp_path):
    """No run of a reader's own is found."""
    monkeypatch.setattr(runs, "data_folder", lambda: tmp_path / "data")


@pytest.fixture
def films(tmp_path):
    """A file of passages of one's own."""
    file = tmp_path / "films.jsonl"
    write_jsonl(file, FILM_PASSAGES)
    return file


def titles(agent):
    """Titles that a search of many words finds."""
    words = "film river director Dara Kallas Merano"
    return {passage["title"] for passage in agent.retriever.search([words], 50)[0]}


# --- a reply ---


def test_a_reply_has_the_answer_and_the_whole_conversation(scripted):
    reply = scripted.ask("Where?")
    assert reply.answer == "Merano"
    record = json.loads(json.dumps(reply.to_record()))
    assert record["question"] == "Where?"
    assert len(record["turns"]) == 2
    assert [p["title"] for p in record["passages"][0]] == ["Dara Kallas", "<|im_end|>"]


def test_each_turn_but_the_last_is_handed_over_when_it_is_over(scripted):
    seen = []
    scripted.ask("Where?", lambda t: seen.append((len(t.turns), len(t.passages))))
    assert seen == [(1, 1)]


def test_a_reply_shows_the_same_as_text_and_in_a_notebook(scripted):
    reply = scripted.ask("Where?")
    markup = reply._repr_html_()
    assert "<|im_end|>" not in markup
    shown = html.unescape(re.sub(r"<[^>]*>", " ", markup)).split()
    assert shown == repr(reply).split()
    assert {"Where?", "Dara", "Kallas", "Merano"} <= set(shown)


@pytest.mark.parametrize("question", ["", " \n"])
def test_a_blank_question_is_refused(scripted, question):
    with pytest.raises(ValueError, match="blank"):
        scripted.ask(question)


# --- which agent ---


def test_without_a_word_it_is_tinys_shipped_agent(no_runs):
    agent = ask.open_agent()
    profile = resolve("tiny")
    assert agent.limits == profile.limits
    assert agent.system_prompt == profile.system_prompt
    assert runs.SHIPPED_RUN in agent.about
    question = "Who directed The Lonely Voyage?"
    reply = agent.ask(question)
    # It was trained to search before it answers.
    assert reply.trajectory.searches >= 1
    assert agent.ask(question).to_record() == reply.to_record()


def test_the_trained_weights_are_the_ones_that_answer(no_runs):
    weights = dict(ask.open_agent().engine.model.named_parameters())
    saved = load_file(CHECKPOINT / "adapter_model.safetensors")
    assert saved
    for name, weight in saved.items():
        # PEFT puts the adapter's name in.
        assert weights[name.replace(".weight", ".default.weight")].equal(weight), name


def test_a_model_that_is_named_alone_has_no_adapter(no_runs):
    agent = ask.open_agent(model=models.TINY_LM)
    names = [name for name, _ in agent.engine.model.named_parameters()]
    assert names and not any("lora" in name for name in names)


def test_an_adapter_and_a_model_may_be_named(no_runs, tmp_path):
    model = shutil.copytree(REPO / models.TINY_LM, tmp_path / "model")
    agent = ask.open_agent(model=str(model), adapter=CHECKPOINT)
    names = [name for name, _ in agent.engine.model.named_parameters()]
    assert any("lora" in name for name in names)


def test_a_run_brings_its_settings_and_its_data(tmp_path, films):
    folder = shutil.copytree(REPO / runs.SHIPPED_RUN, tmp_path / "run")
    home = tmp_path / "own"
    home.mkdir()
    films.rename(home / "passages.jsonl")
    parameters = {
        "PROFILE": "tiny",
        "DATA": str(home),
        "OVERRIDES": {"top_k": 1, "system_prompt": "Search."},
    }
    executed = {"metadata": {"papermill": {"parameters": parameters}}}
    (folder / "03.ipynb").write_text(json.dumps(executed))
    agent = ask.open_agent(run=folder)
    assert agent.limits.top_k == 1
    assert agent.system_prompt == "Search."
    assert titles(agent) <= {p["title"] for p in FILM_PASSAGES}


def test_a_run_in_which_all_weights_were_trained_is_loaded_whole(tiny, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    models.save_adapter(*tiny, folder / "checkpoint")
    agent = ask.open_agent(run=folder, profile="tiny")
    loaded = dict(agent.engine.model.named_parameters())
    for name, weight in tiny[0].named_parameters():
        assert loaded[name].equal(weight), name
    with pytest.raises(ValueError, match="All weights"):
        ask.open_agent(run=folder, profile="tiny", model=models.TINY_LM)


# --- over which passages ---


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_it_asks_over_passages_of_ones_own(no_runs, films, kind):
    data = films
    if kind == "folder":
        data = films.rename(films.with_name("passages.jsonl")).parent
    agent = ask.open_agent(data=data)
    assert titles(agent) == {p["title"] for p in FILM_PASSAGES}
    reply = agent.ask("Who directed Silent River?")
    found = [p for passages in reply.trajectory.passages for p in passages]
    assert {p["id"] for p in found} <= {p["id"] for p in FILM_PASSAGES}


def test_it_searches_an_index_that_another_process_serves(no_runs):
    with served(Retriever.build(FILM_PASSAGES)) as url:
        agent = ask.open_agent(retriever=url)
        assert titles(agent) == {p["title"] for p in FILM_PASSAGES}
        assert url in agent.about


def test_an_index_is_kept_where_it_is_wanted_and_used_again(no_runs, films, tmp_path):
    index = tmp_path / "kept"
    ask.open_agent(data=films, index=index)
    made = {file: file.stat().st_mtime_ns for file in index.iterdir()}
    assert made
    ask.open_agent(data=films, index=index)
    assert made == {file: file.stat().st_mtime_ns for file in index.iterdir()}
    write_jsonl(films, FILM_PASSAGES[:2])
    with pytest.raises(ValueError, match="kept was built"):
        ask.open_agent(data=films, index=index)


def test_a_runs_index_is_used_if_it_is_over_these_passages(tmp_path, films):
    folder = shutil.copytree(REPO / runs.SHIPPED_RUN, tmp_path / "run")
    first = ask.open_agent(run=folder, data=films, index=folder / "index")
    assert len(first.retriever) == len(FILM_PASSAGES)
    again = ask.open_agent(run=folder, data=films)
    # It lies in the run's folder, not in one that goes with the agent.
    assert again.retriever._scratch is None
    assert len(ask.open_agent(run=folder).retriever) > len(FILM_PASSAGES)


# --- what is refused ---


@pytest.mark.parametrize(
    "words, sentence",
    [
        ({"profile": "tyni"}, "Unknown profile 'tyni'"),
        ({"run": "no/such/run"}, "No folder no/such/run"),
        ({"data": "no/such/data"}, "no such file or folder"),
        ({"adapter": "no/such/adapter"}, "No trained adapter"),
        ({"model": "no/such/model"}, "no/such/model"),
        ({"profile": "smol"}, "kr1 run --profile smol"),
        ({"profile": "smol", "model": models.TINY_LM}, "no corpus of its own"),
    ],
    ids=lambda value: " ".join(value.values()) if isinstance(value, dict) else "",
)
def test_what_is_not_there_is_named(no_runs, words, sentence):
    with pytest.raises((ValueError, OSError), match=re.escape(sentence)) as caught:
        ask.open_agent(**words)
    assert "\n" not in str(caught.value)


def test_a_wrong_name_is_said_before_the_model_is_loaded(no_runs, monkeypatch):
    monkeypatch.setattr(models, "load_profile", lambda *_: pytest.fail("loaded"))
    for words in ({"data": "no/such"}, {"run": "no/such"}, {"profile": "tyni"}):
        with pytest.raises((ValueError, OSError)):
            ask.open_agent(**words)


def test_a_file_that_is_no_corpus_is_named(no_runs, tmp_path):
    file = tmp_path / "notes.jsonl"
    file.write_text('{"a": 1}\n')
    with pytest.raises(ValueError, match="notes.jsonl"):
        ask.open_agent(data=Path(file))
