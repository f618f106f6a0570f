"""Owns what may not be asked: titles that other questions name, as a test set's do."""

from collections.abc import Iterable, Iterator

from kr1_utils.mining.names import bare, key
from kr1_utils.mining.wording import words_of_wording

# There are works called "The Place" and "Film"; in a question these words name nothing.
_COMMON = words_of_wording()


class NamedTitles:
    """The titles of a corpus that some questions name.

    A question names a title if its text, its supporting titles or its gold answers hold
    the title as whole words, with or without its bracket.

    Args:
        questions: `{"question", "golden_answers"}`, perhaps with `supporting_titles`.
        titles: of the corpus.
    """

    def __init__(self, questions: Iterable[dict], titles: Iterable[str]):
        titles_by_name: dict[str, set[str]] = {}
        for title in titles:
            for name in {key(title), key(bare(title))}:
                titles_by_name.setdefault(name, set()).add(title)
        self.titles: set[str] = set()
        self._names: set[str] = set()
        for question in questions:
            named = _phrases(_texts(question)) & titles_by_name.keys()
            self._names |= named
            for name in named:
                self.titles |= titles_by_name[name]

    def in_question(self, question: dict) -> bool:
        """Whether a question names one of these titles too.

        Of a mined question all names are known, so a title of one word must be the
        whole of one of them: "Princess" is not named by "Princess Elena of Greece".
        """
        phrases = _phrases(_texts(question))
        if "evidence" in question:
            whole_names = {key(text) for text in _names_told(question)}
            phrases = {p for p in phrases if " " in p or p in whole_names}
        return bool(phrases & self._names)


def _texts(question: dict) -> list[str]:
    return [question["question"], *_names_told(question)]


def _names_told(question: dict) -> list[str]:
    """What a question names apart from its text."""
    names = [*question["golden_answers"], *question.get("supporting_titles", ())]
    for title, _, value in question.get("evidence", ()):
        names += [title, bare(title), value]
    return names


def _phrases(texts: Iterable[str]) -> set[str]:
    """All runs of words in some texts, but those that any question may hold."""
    return {phrase for text in texts for phrase in _runs(key(text).split())}


def _runs(words: list[str]) -> Iterator[str]:
    for first in range(len(words)):
        for end in range(first + 1, len(words) + 1):
            run = words[first:end]
            if not _COMMON.issuperset(run):
                yield " ".join(run)
