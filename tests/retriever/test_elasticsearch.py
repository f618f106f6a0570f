"""The retriever for a cluster's search engine that kr1_utils/README.md shows."""

import json
import re

import pytest
from helpers import FILM_PASSAGES, Shelf

from kr1_utils.agent import ScriptedEngine, rollout
from kr1_utils.files import REPO
from kr1_utils.profiles import Limits


@pytest.fixture(scope="module")
def elastic_retriever():
    """The class that the README shows."""
    text = (REPO / "kr1_utils" / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.+?)^```$", text, re.MULTILINE | re.DOTALL)
    (block,) = [block for block in blocks if "class ElasticRetriever" in block]
    names: dict = {}
    exec(block, names)
    return names["ElasticRetriever"]


def elasticsearch(index):
    """Answers `_msearch` as Elasticsearch 8 and OpenSearch 2 do.

    Args:
        index: what searches for them.
    """

    def answer(body):
        # Each line is JSON and ends with a line break, or they refuse it.
        assert body.endswith(b"\n")
        lines = [json.loads(line) for line in body.splitlines()]
        heads, searches = lines[::2], lines[1::2]
        assert len(heads) == len(searches) and all(head == {} for head in heads)
        return 200, {"took": 3, "responses": [respond(search) for search in searches]}

    def respond(search):
        match = search["query"]["multi_match"]
        assert set(match["fields"]) == {"title", "text"}
        if match["query"] == "too long":
            error = {"type": "search_phase_execution_exception", "reason": "clauses"}
            return {"error": error, "status": 400}
        (found,) = index.search([match["query"]], search["size"])
        hits = [
            {
                "_index": "wiki",
                "_id": passage["id"],
                "_score": passage["score"],
                "_source": {"title": passage["title"], "text": passage["text"]},
            }
            for passage in found
        ]
        total = {"value": len(hits), "relation": "eq"}
        return {"took": 1, "hits": {"total": total, "hits": hits}, "status": 200}

    return answer


def ask_who(index, tokenizer):
    """The trajectory of one question that searches for poems."""
    turns = [
        "<think> I look.</think><search> poems</search>",
        "<think> So.</think><answer> Dara</answer>",
    ]
    engine = ScriptedEngine(tokenizer, {"Who?": turns})
    limits = Limits(
        max_turns=2,
        top_k=2,
        max_turn_tokens=60,
        max_observation_tokens=120,
        max_response_tokens=700,
    )
    return rollout(engine, tokenizer, index, [{"question": "Who?"}], limits, "S")[0]


def test_it_finds_what_the_cluster_finds(elastic_retriever, stand_in, small):
    stand_in.answers = [elasticsearch(small)]
    cluster = elastic_retriever(f"{stand_in.url}/wiki")
    queries = ["poems", "nothing that stands here", 'Merano "river"\n東京']
    assert cluster.search(queries, 2) == small.search(queries, 2)
    assert stand_in.paths == ["/wiki/_msearch"]
    assert cluster.search([], 2) == []
    assert len(stand_in.asked) == 1


def test_it_takes_the_place_of_ours_in_the_loop(
    elastic_retriever, stand_in, small, tokenizer
):
    stand_in.answers = [elasticsearch(small)]
    theirs = ask_who(elastic_retriever(f"{stand_in.url}/wiki"), tokenizer)
    ours = ask_who(small, tokenizer)
    assert theirs.passages == ours.passages == [small.search(["poems"], 2)[0]]
    assert theirs.completion_ids == ours.completion_ids


def test_an_error_of_one_query_is_no_passage(elastic_retriever, stand_in):
    stand_in.answers = [elasticsearch(Shelf(FILM_PASSAGES))]
    with pytest.raises(RuntimeError, match="search_phase_execution_exception"):
        elastic_retriever(f"{stand_in.url}/wiki").search(["too long"], 2)
