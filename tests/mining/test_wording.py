"""Wording: every form can be filled, and ends as a question."""

from string import Formatter

from kr1_utils.mining import wording


def fields(form):
    return {field for _, field, _, _ in Formatter().parse(form) if field}


def test_every_form_has_its_places():
    for forms in wording.ASK.values():
        assert len(forms) > 1
        assert all(fields(form) == {"x"} and form.endswith("?") for form in forms)
    for forms in wording.BRIDGES.values():
        assert all(fields(form) == {"x"} for form in forms)
    assert all(fields(form) == {"x", "kin"} for form in wording.ASK_KIN)
    compared = [*wording.COMPARE.values(), *wording.COMPARE_DIRECTORS.values()]
    for forms in compared:
        assert all(fields(form) == {"a", "b"} for form, _ in forms)
    for forms in (
        wording.SAME_OF_PERSONS,
        wording.SAME_OF_FILMS,
        wording.SAME_OF_PLACES,
        wording.SAME_OF_DIRECTORS,
    ):
        assert all(fields(form) == {"a", "b"} for form in forms)


def test_dates_are_asked_for_in_both_directions():
    for compared in (wording.COMPARE, wording.COMPARE_DIRECTORS):
        for relation, forms in compared.items():
            directions = {smaller for _, smaller in forms}
            assert directions == ({False} if relation == "lifespan" else {True, False})


def test_words_of_the_forms_are_known_and_places_are_no_words():
    words = wording.words_of_wording()
    assert {"film", "paternal", "died", "the"} <= words
    assert not {"x", "b", "kin"} & words
