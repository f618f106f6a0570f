"""Films, songs and places: year, director, country, performer."""

import pytest

from kr1_utils.mining import works
from kr1_utils.mining.lead import lead


def read(text, title="Dust"):
    return lead({"id": "1", "title": title, "text": text})


@pytest.mark.parametrize(
    "text, director",
    [
        ("Dust is a 1935 film directed by Ann Dorn.", "Ann Dorn"),
        ("Dust is a 1935 film written and directed by Ann Dorn, starring X.",)
        + ("Ann Dorn",),
        ("Dust is a 1935 film directed by Canadian filmmaker Ann Dorn.", "Ann Dorn"),
        ("Dust is a 1935 film. It was directed by Ann Dorn and stars Ida.", "Ann Dorn"),
        ("Dust is a 1935 film. Directed by Ann Dorn, it was lost.", "Ann Dorn"),
        ("Dust is a 1935 film. The film is written and directed by Ann Dorn.",)
        + ("Ann Dorn",),
        ("Dust is a 1935 film directed by Ann Dorn and Ida Hale.", None),
        ("Dust is a 1935 film directed by Ann Dorn, Ida Hale and Jo May.", None),
        ("Dust is a 1935 film directed by the Hale brothers.", None),
        ("Dust is a 1935 film, a remake of the film directed by Ann Dorn.", None),
        ("Dust is a 1935 film. It is a remake of one directed by Ann Dorn.", None),
        ("Dust is a 1935 film directed by Ann Dorn's brother.", None),
        ("Dust is a 1935 film, co-directed by Ann Dorn.", None),
        ("Dust is a 1935 film.", None),
    ],
)
def test_a_film_has_a_director_only_where_one_is_told(text, director):
    found = works.film(read(text))
    assert found["release_year"] == "1935"
    assert found.get("director") == director


@pytest.mark.parametrize(
    "words, country",
    [
        ("French silent", "French"),
        ("West German", "West German"),
        ("Italian-Spanish", None),
        ("Indian Telugu-language", "Indian"),
        ("silent", None),
    ],
)
def test_a_film_has_a_country_only_where_one_is_told(words, country):
    found = works.film(read(f"Dust is a 1935 {words} drama film."))
    assert found.get("country") == country


@pytest.mark.parametrize(
    "text",
    [
        "Dust is a 1935 film score by Ann Dorn.",
        "Dust is a 1935 album of the film.",
        "Dust is a 1935 novel that became a film.",
        "Dust is a French film.",
        "Dust (1935) is a town.",
    ],
)
def test_other_things_are_no_films(text):
    assert works.film(read(text)) == {}


@pytest.mark.parametrize(
    "text, performer",
    [
        ("Dust is a song by American singer Ira Tolman, released in 1990.",)
        + ("Ira Tolman",),
        ("Dust is a 1955 song recorded by Ira Tolman.", "Ira Tolman"),
        ("Dust is a song by the Swedish pop band Lanterns.", None),
        ("Dust is a song by Ira Tolman featuring Ned May.", None),
        ("Dust is a song by Ira Tolman and Ned May.", None),
        ("Dust is a song written by Ira Tolman.", None),
    ],
)
def test_a_song_has_a_performer_only_where_one_is_told(text, performer):
    assert works.song(read(text)).get("performer") == performer


def test_a_place_lies_in_one_country():
    river = read("The Dust is a river in the Kivu Valley, northern Poland.")
    assert works.place(river) == {"located_in": "Poland", "kind": "river"}
    assert works.place(read("Dust is a lake of Austria and Hungary.")) == {}
    assert works.place(read("Dust is a dish of Poland.")) == {}
