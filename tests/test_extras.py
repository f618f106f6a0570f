"""A library that is not installed is missed when it is used, and not before."""

import pytest

from kr1_utils.extras import missing

torch = missing("train")


def test_missing_library_can_be_named_and_subclassed_without_an_error():
    class Engine(torch.nn.Module):
        def call(self, ids: torch.Tensor | None) -> list[torch.Tensor]:
            return [ids]

    assert issubclass(Engine, torch)
    assert not isinstance(3, torch.Tensor)


@pytest.mark.parametrize(
    "use",
    [
        lambda: torch(),
        lambda: torch.tensor([1]),
        lambda: torch.nn.functional.softmax(None, dim=-1),
        lambda: type("Engine", (torch.nn.Module,), {})(),
    ],
    ids=["call", "attribute", "deep attribute", "subclass"],
)
def test_using_a_missing_library_names_the_extra_that_brings_it(use):
    with pytest.raises(ImportError, match=r"pip install 'kr1-utils\[train\]'"):
        use()


def test_what_python_asks_of_every_object_is_not_taken_for_the_library():
    assert not hasattr(torch, "__version__")
    assert not hasattr(torch, "__path__")
