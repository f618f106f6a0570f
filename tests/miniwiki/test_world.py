"""The world: large enough, readable, with namesakes and remakes as hard negatives."""

import re
from collections import Counter

from kr1_utils import miniwiki


def test_other_seeds_make_other_worlds():
    one = miniwiki.make_world(11, families=20)
    other = miniwiki.make_world(12, families=20)
    assert one.passages != other.passages
    assert one.passages == miniwiki.make_world(11, families=20).passages


def test_world_is_large_enough(world):
    assert len(world.passages) >= 1500
    assert len({p["title"] for p in world.passages}) == len(world.passages)
    assert len({p["id"] for p in world.passages}) == len(world.passages)


def test_passages_have_one_to_four_sentences(world):
    for p in world.passages:
        assert 1 <= len(re.findall(r"\.(?: |$)", p["text"])) <= 4, p


def test_there_are_namesakes_as_hard_negatives(world):
    names = Counter(miniwiki.base_name(t) for t in world.of("person"))
    assert sum(n > 1 for n in names.values()) >= 5


def test_there_are_remakes_with_one_title_and_two_years(world):
    films = Counter(
        miniwiki.base_name(t) for t in world.of("film") if t.endswith(" film)")
    )
    remakes = [t for t, n in films.items() if n > 1]
    assert len(remakes) >= 5
    for title in remakes:
        years = [
            world.facts[t]["release_year"]
            for t in world.of("film")
            if miniwiki.base_name(t) == title
        ]
        assert len(set(years)) == len(years)


def test_children_bear_the_surname_of_their_father(world):
    def surname(title):
        return miniwiki.base_name(title).split()[-1]

    children = [t for t, facts in world.facts.items() if "father" in facts]
    assert len(children) > 300
    assert all(surname(t) == surname(world.facts[t]["father"]) for t in children)


def test_people_of_one_name_have_different_occupations(world):
    by_name = {}
    for title in world.of("person"):
        by_name.setdefault(miniwiki.base_name(title), []).append(world.facts[title])
    for namesakes in by_name.values():
        occupations = [facts["occupation"] for facts in namesakes]
        assert len(set(occupations)) == len(occupations)


def test_passages_hold_no_fact_that_is_not_stated(world):
    for passage in world.passages:
        title = passage["title"]
        if title in miniwiki.KNOWN:
            continue
        facts = world.facts[title]
        assert world.stated[title] <= set(facts)
        for relation in world.stated[title]:
            assert facts[relation] in passage["text"]


def test_spouses_are_each_others_and_no_siblings(world):
    married = [t for t in world.of("person") if "spouse" in world.facts[t]]
    assert married
    for title in married:
        spouse = world.facts[title]["spouse"]
        assert world.facts[spouse]["spouse"] == title
        father = world.facts[title].get("father")
        assert father is None or father != world.facts[spouse].get("father")
