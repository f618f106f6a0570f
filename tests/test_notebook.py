"""What a notebook does first; a bad parameter is refused before anything is made."""

import io
import json
import subprocess
import sys

import pytest

from kr1_utils import corpus, notebook, profiles
from kr1_utils.files import REPO


@pytest.fixture
def parameters(tmp_path):
    """A notebook's parameters; its output goes to a folder that is not there yet."""
    return {
        "PROFILE": "tiny",
        "SEED": 42,
        "OUT": str(tmp_path / "out"),
        "DATA": "",
        "OVERRIDES": {},
    }


# --- setup ---


def test_setup_resolves_the_profile_and_makes_the_output_folder(tmp_path, parameters):
    profile, out = notebook.setup({**parameters, "OVERRIDES": {"max_steps": 2}})
    assert profile.grpo["max_steps"] == 2
    assert out == tmp_path / "out"
    assert [file.name for file in out.iterdir()] == ["figures"]


def test_out_below_an_existing_file_is_refused_in_one_sentence(tmp_path, parameters):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="OUT=") as caught:
        notebook.setup({**parameters, "OUT": str(tmp_path / "file" / "out")})
    assert "\n" not in str(caught.value)


def test_out_that_is_a_file_is_refused_and_stays(tmp_path, parameters):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match="OUT="):
        notebook.setup({**parameters, "OUT": str(tmp_path / "file")})
    assert (tmp_path / "file").read_text() == "mine"


def test_tilde_in_out_and_data_is_the_home_folder(tmp_path, parameters, monkeypatch):
    home = tmp_path / "home"
    (home / "mine").mkdir(parents=True)
    (home / "mine" / "passages.jsonl").touch()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    _, out = notebook.setup({**parameters, "OUT": "~/out", "DATA": "~/mine"})
    assert out == home / "out"
    assert (home / "out" / "figures").is_dir()
    assert not (tmp_path / "~").exists()


@pytest.mark.parametrize("name", ["PROFILE", "OUT", "DATA"])
@pytest.mark.parametrize("value", [5, None, ["tiny"], {}, True])
def test_parameter_that_is_no_text_is_refused_by_its_name(
    tmp_path, parameters, monkeypatch, name, value
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=rf"^{name} must be text, not .+\.$"):
        notebook.setup({**parameters, name: value})
    assert list(tmp_path.iterdir()) == []


def test_unknown_parameter_is_refused_and_the_known_are_named(parameters):
    with pytest.raises(
        ValueError,
        match="Unknown parameter 'STEPS'.*PROFILE, SEED, OUT, DATA, OVERRIDES",
    ):
        notebook.setup({**parameters, "STEPS": 3})


def test_what_papermill_injects_is_checked_too(parameters):
    before = ["import x", 'PROFILE = "tiny"']
    others = {"__name__": "__main__", "anything": 1, "else": 2}
    cells = [*before, "# Parameters\nSEED = 1\nSTEPS = 3\n"]
    with pytest.raises(ValueError, match="Unknown parameter 'STEPS'"):
        notebook.setup({**parameters, **others, "In": cells})
    cells = [*before, "# Parameters\nSEED = 1\n"]
    notebook.setup({**parameters, **others, "In": cells})


def test_globals_of_a_script_may_hold_more_than_parameters(parameters):
    notebook.setup({**parameters, "__name__": "__main__", "anything": 1})


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, "42", True, None])
def test_bad_seed_is_refused(parameters, seed):
    with pytest.raises(ValueError, match="SEED must be a whole number"):
        notebook.setup({**parameters, "SEED": seed})


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"PROFILE": "huge"}, "Unknown profile"),
        ({"OVERRIDES": {"steps": 1}}, "Unknown override"),
        ({"OVERRIDES": {"max_steps": "1"}}, "max_steps='1' must be"),
        ({"DATA": "no/such/folder"}, "DATA=no/such/folder"),
    ],
)
def test_nothing_is_written_when_a_parameter_is_refused(
    tmp_path, parameters, changes, message
):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        notebook.setup({**parameters, **changes})
    assert not (tmp_path / "out").exists()


# --- where a run's files lie ---


def test_two_output_folders_do_not_share_an_index(tmp_path):
    runs = REPO / "data" / "runs"
    assert notebook.index_folder(runs / "tiny") == REPO / "data" / "index" / "tiny"
    one, other = (notebook.index_folder(tmp_path / name) for name in ("a", "b"))
    assert one != other


def test_an_output_folder_has_one_index_however_it_is_written(monkeypatch):
    monkeypatch.chdir(REPO)
    whole = REPO / "data" / "runs" / "a"
    relative = whole.relative_to(REPO)
    assert notebook.index_folder(relative) == notebook.index_folder(whole)


def test_runs_own_file_goes_before_the_shipped_one(tmp_path, capsys):
    own = tmp_path / "train_log.csv"
    reference = REPO / "data" / "reference" / "tiny" / "seed42" / "train_log.csv"
    assert notebook.run_or_shipped(own) == reference
    # The reader learns whose numbers these are.
    assert "data/reference/tiny/seed42/train_log.csv" in capsys.readouterr().out
    own.write_text("")
    assert notebook.run_or_shipped(own) == own
    assert capsys.readouterr().out == ""


def test_file_that_neither_the_run_nor_the_reference_has_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no_such_log.csv"):
        notebook.run_or_shipped(tmp_path / "no_such_log.csv")


# --- progress bars ---


def test_bar_moves_more_rarely_where_what_is_written_stays(monkeypatch):
    seconds = {}
    for is_terminal in (True, False):
        stream = io.StringIO()
        stream.isatty = lambda answer=is_terminal: answer
        monkeypatch.setattr(sys, "stderr", stream)
        with notebook.progress(100, "work", "step") as bar:
            bar.update()
            seconds[is_terminal] = bar.mininterval
        assert "work" in stream.getvalue()
    assert seconds[True] < 1 < seconds[False] <= 5


IMPORTS = """
import json, sys, types, warnings

# What tqdm looks at to learn that it is in a notebook without ipywidgets.
ipython = types.ModuleType("IPython")
ipython.get_ipython = lambda: None
sys.modules.update(
    {"IPython": ipython, "ipykernel.zmqshell": ipython, "ipywidgets": None}
)
filters = list(warnings.filters)
with warnings.catch_warnings(record=True) as said:
    from kr1_utils import notebook
    imported = "tqdm.auto" not in sys.modules and filters == list(warnings.filters)
    if "start" in sys.argv:
        notebook.start()
    import tqdm.auto
print(json.dumps({"harmless": imported, "said": [str(one.message) for one in said]}))
"""


def warnings_of_a_notebook(*arguments):
    """Import what a notebook imports in a new process; return what it says."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS, *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def test_start_silences_the_warning_about_progress_bars_and_importing_does_not():
    started = warnings_of_a_notebook("start")
    assert started == {"harmless": True, "said": []}
    not_started = warnings_of_a_notebook()
    assert not_started["harmless"]
    assert any("IProgress not found" in text for text in not_started["said"])


def test_a_run_without_a_cold_start_keeps_its_model(tmp_path):
    tiny = profiles.resolve("tiny")
    assert notebook.after_cold_start(tiny, tmp_path) is tiny


def test_a_run_with_a_cold_start_goes_on_from_the_model_it_made(tmp_path):
    profile = profiles.resolve("tiny", {"cold_start": True})
    with pytest.raises(FileNotFoundError, match="run A3_cold_start first"):
        notebook.after_cold_start(profile, tmp_path)
    folder = tmp_path / notebook.COLD_START_MODEL
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    assert notebook.after_cold_start(profile, tmp_path).model == str(folder.resolve())
    (folder / "adapter_config.json").write_text("{}")
    after = notebook.after_cold_start(profile, tmp_path)
    assert (after.model, after.adapter) == (profile.model, str(folder.resolve()))


def test_questions_that_the_cold_start_has_left_are_trained_on(tmp_path):
    profile = profiles.resolve("tiny", {"cold_start": True})
    where = corpus.locate_files(profile)
    own = notebook.training_questions(profile, where, tmp_path)
    assert own == corpus.load_split(where, "train")
    left = tmp_path / "cold_start" / "train.jsonl"
    left.parent.mkdir()
    left.write_text(json.dumps(own[0]))
    assert notebook.training_questions(profile, where, tmp_path) == own[:1]


def test_the_folder_of_an_earlier_cold_start_can_be_named(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    profile = profiles.resolve("tiny", {"cold_start": str(tmp_path)})
    model = notebook.after_cold_start(profile, tmp_path / "out").model
    assert model == str(tmp_path.resolve())
    elsewhere = profiles.resolve("tiny", {"cold_start": "not/there"})
    with pytest.raises(FileNotFoundError, match="cold_start=not/there is no folder"):
        notebook.after_cold_start(elsewhere, tmp_path)
