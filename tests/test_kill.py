"""Runs that are killed anywhere end as the undisturbed one, and so does a second run
with the same seed."""

import time

import pytest
from kill_anywhere import PLACES, Killer, differences

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def killer(tmp_path_factory):
    killer = Killer(tmp_path_factory.mktemp("kill") / "runs", seed=1)
    killer.undisturbed()
    return killer


def test_two_runs_with_one_seed_make_the_same(killer):
    killer.restore("01")
    killer.finish()
    assert differences(killer.out, killer.whole) == []


@pytest.mark.parametrize("place", PLACES)
def test_what_was_killed_goes_on_and_ends_as_the_undisturbed_run(killer, place):
    assert killer.torment(place, 4) == {
        "place": place,
        "kills": 4,
        "resumed": 4,
        "equal": 4,
    }


def test_where_the_watching_fails_no_run_is_left_to_write_on(killer, monkeypatch):
    def wait(run, ready, seconds):
        while not killer.fresh(killer.out / "03.failed.ipynb"):
            time.sleep(0.05)
        raise OSError("as if a file had gone")

    monkeypatch.setattr(killer, "wait", wait)
    with pytest.raises(OSError, match="as if"):
        killer.torment("step", 1)
    assert killer.run.poll() is not None
