"""The page that watches a run shows what the run has written up to now."""

import json
import shutil
import threading
import urllib.error
import urllib.request
import xml.etree.ElementTree as ET

import pytest

from kr1_utils.files import REPO, append_log
from kr1_utils.plots import PANELS
from kr1_utils.watch import WatchServer

SHIPPED = REPO / "data" / "reference" / "tiny" / "seed42"


@pytest.fixture
def watched(tmp_path):
    """A folder in which no step has been trained, and the server that watches it."""
    with WatchServer(tmp_path) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield tmp_path, server
        server.shutdown()
        thread.join()


def get(server, path=""):
    with urllib.request.urlopen(server.address + path, timeout=60) as answer:
        return answer.read().decode()


def state(server):
    return json.loads(get(server, "state.json"))


def test_a_run_can_be_watched_before_its_first_step(watched):
    _, server = watched
    assert state(server)["step"] == 0
    assert 'id="panels"' in get(server)
    for path in ("panels.svg", "browse.html"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            get(server, path)
        assert refused.value.code == 404


def test_state_is_that_of_the_last_step_and_follows_the_run(watched):
    folder, server = watched
    for step in (1, 2):
        row = {"step": step, "reward": step / 4, "loss": float("nan")}
        append_log(folder / "train_log.csv", row)
        seen = state(server)
        assert seen["step"] == step
        assert seen["last"] == {"reward": step / 4}
        assert 0 <= seen["seconds_ago"] < 60


def test_panels_are_a_picture_of_the_log_as_it_is(watched):
    folder, server = watched
    lines = (SHIPPED / "train_log.csv").read_text().splitlines(keepends=True)
    pictures = []
    # One step alone can be drawn, too.
    for count in (1, 20):
        (folder / "train_log.csv").write_text("".join(lines[: 1 + count]))
        pictures.append(get(server, "panels.svg"))
    drawn = [ET.fromstring(picture) for picture in pictures]
    for picture in drawn:
        panels = [e for e in picture.iter() if e.get("id", "").startswith("axes_")]
        assert len(panels) == len(PANELS)
    assert pictures[0] != pictures[1]


def test_trajectories_can_be_browsed_while_it_trains(watched):
    folder, server = watched
    shutil.copy(SHIPPED / "trajectories.jsonl", folder)
    with (folder / "trajectories.jsonl").open(encoding="utf-8") as lines:
        question = json.loads(next(lines))["question"]
    assert question in get(server, "browse.html")


def test_nothing_else_is_served(watched):
    folder, server = watched
    (folder / "secret.txt").write_text("secret")
    for path in ("secret.txt", "../secret.txt", "train_log.csv"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            get(server, path)
        assert refused.value.code == 404


def test_a_folder_that_is_not_there_and_a_port_that_is_taken_are_refused(watched):
    folder, server = watched
    with pytest.raises(FileNotFoundError, match="No folder"):
        WatchServer(folder / "none")
    with pytest.raises(OSError, match=f"Port {server.server_port} cannot be used"):
        WatchServer(folder, server.server_port)
    with pytest.raises(OSError, match="Port 70000 cannot be used"):
        WatchServer(folder, 70000)
