"""The doctor: it judges what it found, works without PyTorch, and waits for nobody."""

import json
import subprocess
import sys
import threading
from dataclasses import replace

import pandas as pd
import pytest

from kr1_utils import cli, doctor
from kr1_utils.files import REPO
from kr1_utils.profiles import PROFILES, resolve

LAPTOP = doctor.Machine(
    python=(3, 11, 9),
    versions=dict.fromkeys(doctor.PACKAGES, "1.0"),
    cores=4,
    load=0.3,
    memory=16,
    free_memory=12,
    free_disk=100,
    hub=True,
)
SERVER = replace(
    LAPTOP,
    memory=256,
    free_memory=200,
    free_disk=500,
    gpus=[doctor.Gpu("small", 8), doctor.Gpu("large", 79.6)],
)


def fitting(machine):
    return {fit.profile for fit in doctor.fits(machine) if fit.fits}


def advice(machine, name):
    return {f.name: f.advice for f in doctor.findings(machine)}[name]


def test_every_profile_is_judged():
    assert set(doctor.NEEDS) == set(PROFILES)
    assert [fit.profile for fit in doctor.fits(LAPTOP)] == list(PROFILES)


@pytest.mark.parametrize(
    "machine, wanted",
    [
        (LAPTOP, {"tiny", "smol", "half"}),
        (replace(LAPTOP, free_memory=5), {"tiny"}),
        (replace(LAPTOP, free_memory=2), set()),
        (replace(LAPTOP, free_memory=None), {"tiny", "smol", "half"}),
        (replace(LAPTOP, free_disk=1.5), {"tiny"}),
        (SERVER, set(PROFILES)),
        # As a card that is sold as 24 GiB reports it.
        (
            replace(SERVER, gpus=[doctor.Gpu("x", 23.6)]),
            {"tiny", "smol", "half", "1.5b", "3b", "7b-4bit"},
        ),
        (replace(SERVER, gpus=[doctor.Gpu("x", 16)]), {"tiny", "smol", "half"}),
    ],
)
def test_a_profile_fits_where_all_that_it_needs_is_there(machine, wanted):
    assert fitting(machine) == wanted


def test_what_is_missing_is_named():
    said = {fit.profile: fit.advice for fit in doctor.fits(LAPTOP)}
    assert "GPU of 24 GiB" in said["1.5b"]
    full = replace(SERVER, free_disk=50)
    said = {fit.profile: fit.advice for fit in doctor.fits(full)}
    assert "68 GiB of free disk" in said["7b"]
    assert "GPU" not in said["7b"]


def test_what_a_profile_needs_of_the_hub_is_said_where_none_answers():
    alone = replace(SERVER, hub=False)
    for fit, alone_fit in zip(doctor.fits(SERVER), doctor.fits(alone), strict=True):
        model_is_shipped = (REPO / resolve(fit.profile).model).exists()
        assert (fit == alone_fit) == model_is_shipped
        assert fit.fits
        assert alone_fit.fits


def test_without_the_repository_tiny_does_not_fit(tmp_path, monkeypatch):
    monkeypatch.setattr("kr1_utils.files.REPO", tmp_path)
    assert fitting(LAPTOP) == {"smol", "half"}


@pytest.mark.parametrize(
    "machine, name, word",
    [
        (replace(LAPTOP, versions={}), "packages", "[train]"),
        (replace(LAPTOP, versions={"torch": "2"}), "packages", "trl"),
        (
            replace(LAPTOP, versions=LAPTOP.versions | {"jupyterlab": None}),
            "packages",
            "[notebooks]",
        ),
        (
            replace(SERVER, versions=SERVER.versions | {"vllm": None}),
            "packages",
            "requirements-gpu",
        ),
        (
            replace(SERVER, versions=SERVER.versions | {"torch": "2.13.0+cpu"}),
            "GPU",
            "2.13.0+cpu",
        ),
        (replace(LAPTOP, python=(3, 14, 0)), "Python", "3.12"),
        (replace(LAPTOP, load=9.0), "cores", "busy"),
        (replace(LAPTOP, free_memory=1), "memory", "4 GiB"),
        (replace(LAPTOP, memory=None), "memory", "4 GiB"),
        (replace(LAPTOP, free_disk=3), "disk", "Wikipedia"),
        (replace(LAPTOP, hub=False), "hub", "tiny"),
        (replace(LAPTOP, hub=False, offline=True), "hub", "HF_HUB_OFFLINE"),
    ],
)
def test_what_is_wrong_changes_the_advice(machine, name, word):
    assert word in advice(machine, name)
    assert advice(machine, name) != advice(LAPTOP, name)


def test_needs_are_above_what_was_measured_and_simulated():
    logs = [*(REPO / "data/reference/tiny").glob("*/train_log.csv")]
    assert logs
    for file in logs:
        peak = pd.read_csv(file)["peak_memory_gib"].max()
        assert peak <= doctor.NEEDS["tiny"].memory
    smol = pd.read_csv(REPO / "data/reference/smol_2wiki_train_log.csv")
    assert smol["peak_memory_gib"].max() <= doctor.NEEDS["smol"].memory
    forecasts = pd.read_csv(REPO / "data/reference/forecasts.csv")
    for name in ("7b", "7b-4bit"):
        gpu = doctor.NEEDS[name].gpu
        tokens = resolve(name).limits.max_response_tokens
        row = forecasts[
            (forecasts["run"] == name)
            & (forecasts["gpu_gib"] == gpu)
            & (forecasts["response_tokens"] == tokens)
        ]
        assert len(row) == 1
        assert row[["training_gib", "sampling_gib"]].max(axis=None) <= gpu


def test_the_drivers_list_is_read_and_noise_passed_over():
    listed = (
        "NVIDIA H100 80GB HBM3, 81559\nA, B, 1024\nNo devices were found\n\nX, [N/A]"
    )
    assert doctor.read_gpus(listed) == [
        doctor.Gpu("NVIDIA H100 80GB HBM3", 81559 / 1024),
        doctor.Gpu("A, B", 1.0),
    ]


def test_who_does_not_answer_is_not_waited_for():
    answered = threading.Event()
    assert not doctor.within(0.05, answered.wait)
    # It was not waited for: had it been, this would be set.
    assert not answered.is_set()
    answered.set()
    assert doctor.within(60, answered.wait)
    assert not doctor.within(60, lambda: False)


def test_this_machine_is_examined_without_loading_torch():
    code = (
        "import sys\n"
        "from kr1_utils import doctor\n"
        "doctor.report()\n"
        "sys.exit(' '.join({'torch', 'transformers'} & set(sys.modules)) or 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_command_prints_every_finding_or_json(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "look", lambda: SERVER)
    assert cli.main(["doctor", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert cli.main(["doctor"]) == 0
    text = capsys.readouterr().out
    for finding in told["findings"]:
        assert finding["found"] in text
        assert finding["advice"] in text
    for fit in told["profiles"]:
        assert fit["profile"] in text
        assert fit["advice"] in text
