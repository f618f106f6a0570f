"""Run in test_install.py, far from the repository, with the base install alone: what
needs no extra works, every module can be imported, and what needs one says so.

Usage: stranger_base.py PACKAGE-FOLDER. The package must be the one in this folder."""

import importlib
import pkgutil
import sys
from pathlib import Path

# What extras bring. On a machine where they are installed, they are hidden.
EXTRAS = {
    "IPython",
    "accelerate",
    "bitsandbytes",
    "datasets",
    "gguf",
    "httpx",
    "huggingface_hub",
    "matplotlib",
    "nbformat",
    "papermill",
    "peft",
    "psutil",
    "safetensors",
    "tantivy",
    "tokenizers",
    "torch",
    "transformers",
    "trl",
    "vllm",
}
PASSAGES = [
    {"id": "1", "title": "Dara Kallas", "text": "Dara Kallas was born in Merano."},
    {"id": "2", "title": "Merano", "text": "Merano is a town by a river."},
    {"id": "3", "title": "Oslo", "text": "Oslo is a city by the sea."},
]


class Hidden:
    """Refuses to import what extras bring."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in EXTRAS:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def import_every_module() -> None:
    for module in pkgutil.walk_packages(kr1_utils.__path__, "kr1_utils."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    loaded = {name.partition(".")[0] for name in sys.modules}
    assert not loaded & EXTRAS, loaded & EXTRAS


def search_and_score() -> None:
    from kr1_utils import scoring
    from kr1_utils.retriever import Retriever
    from kr1_utils.rewards import accuracy_reward

    retriever = Retriever.build(PASSAGES)
    found = retriever.search(["Where was Dara Kallas born?"], 1)
    assert found[0][0]["title"] == "Dara Kallas"
    assert accuracy_reward(["The Merano."], [["merano"]]) == [1.0]
    table = scoring.score_answers(
        [{"id": "1", "prediction": "Merano"}], [{"id": "1", "golden_answers": ["Oslo"]}]
    )
    assert scoring.report([table])["questions"] == 1


def read_package_data() -> None:
    from kr1_utils import miniwiki, profiles

    assert profiles.resolve("7b").limits.max_turns > 0
    assert len(miniwiki.make_world(miniwiki.SHIPPED_SEED).passages) > 100


def one_sentence(call, *words: str) -> None:
    """`call` fails, and what it says is one line with these words."""
    try:
        call()
    except (ImportError, OSError) as error:
        text = str(error)
        assert "\n" not in text, text
        assert all(word in text for word in words), text
    else:
        raise AssertionError(f"{call} did not fail.")


def say_what_is_missing() -> None:
    from kr1_utils import (
        ask,
        hub_files,
        memory,
        models,
        plots,
        profiles,
        publish,
        reproduce,
    )
    from kr1_utils.reproduce.papermill import run_notebook

    small = profiles.resolve("7b")
    one_sentence(lambda: models.load("somebody/model"), "[train]")
    one_sentence(lambda: memory.forecast(small), "[train]")
    one_sentence(lambda: hub_files.locate("somebody/questions:test"), "[train]")
    one_sentence(plots.use_style, "[notebooks]")
    one_sentence(ask.open_agent, "repository")
    one_sentence(lambda: publish.push(publish.Request("run", "a/b")), "[train]")
    source = Path("source.ipynb")
    one_sentence(lambda: run_notebook(source, {}, source), "[notebooks]")
    one_sentence(lambda: reproduce.reproduce(reproduce.Request()), "repository")


if __name__ == "__main__":
    sys.meta_path.insert(0, Hidden())
    import kr1_utils

    assert Path(kr1_utils.__file__).parent == Path(sys.argv[1]), kr1_utils.__file__
    import_every_module()
    search_and_score()
    read_package_data()
    say_what_is_missing()
