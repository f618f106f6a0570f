"""Models: an adapter that is saved, loaded or merged says what it said before."""

import json

import pytest
import torch
from peft import get_peft_model

from kr1_utils import models
from kr1_utils.profiles import REPO, resolve


@pytest.fixture(scope="module")
def adapted():
    """The tiny model with an adapter that changes what it says."""
    model, tokenizer = models.load("data/tiny-lm")
    model = get_peft_model(model, models.lora_config(resolve("tiny"))).eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.05)
    return model, tokenizer


@pytest.fixture(scope="module")
def ids(tokenizer):
    return tokenizer("Who is the father of the director of film Silent River?", return_tensors="pt")


@torch.no_grad()
def logits(model, ids):
    return model(**ids).logits


def test_adapter_changes_what_the_model_says(tiny, adapted, ids):
    assert (logits(adapted[0], ids) - logits(tiny[0], ids)).abs().max() > 0.1


def test_saved_adapter_gives_equal_logits_when_loaded(adapted, ids, tmp_path):
    folder = models.save_adapter(*adapted, tmp_path / "adapter")
    again, tokenizer = models.load("data/tiny-lm", folder)
    assert torch.equal(logits(again, ids), logits(adapted[0], ids))
    assert tokenizer.get_vocab() == adapted[1].get_vocab() and not again.training


def test_saving_again_replaces_the_adapter_and_leaves_nothing_beside_it(adapted, tmp_path):
    models.save_adapter(*adapted, tmp_path / "adapter")
    (tmp_path / "adapter" / "stale").write_text("")
    models.save_adapter(*adapted, tmp_path / "adapter")
    assert [f.name for f in tmp_path.iterdir()] == ["adapter"]
    assert not (tmp_path / "adapter" / "stale").exists()


def test_saved_adapter_holds_the_adapter_alone(adapted, tmp_path):
    folder = models.save_adapter(*adapted, tmp_path / "adapter")
    assert (folder / "adapter_model.safetensors").is_file() and not (folder / "model.safetensors").exists()


def test_merged_export_gives_the_adapters_logits_without_peft(adapted, ids, tmp_path):
    wanted = logits(adapted[0], ids)
    folder = models.save_adapter(*adapted, tmp_path / "adapter")
    merged = models.export_merged(*models.load("data/tiny-lm", folder), tmp_path / "merged")
    assert not (merged / "adapter_config.json").exists()
    again, tokenizer = models.load(str(merged))
    assert type(again).__name__ == json.loads((merged / "config.json").read_text())["architectures"][0]
    assert torch.allclose(logits(again, ids), wanted, atol=1e-4)
    assert tokenizer.chat_template == adapted[1].chat_template


def test_all_weights_can_be_saved_without_an_adapter(tiny, ids, tmp_path):
    again, _ = models.load(str(models.save_adapter(*tiny, tmp_path / "all")))
    assert torch.equal(logits(again, ids), logits(tiny[0], ids))


def test_unknown_model_is_refused_in_one_sentence():
    with pytest.raises(FileNotFoundError, match="Model 'nobody/no-such-model' is neither a folder") as caught:
        models.load("nobody/no-such-model")
    assert "\n" not in str(caught.value)


def test_folder_without_a_model_is_refused_in_one_sentence(tmp_path):
    with pytest.raises(FileNotFoundError, match="is neither a folder with a model") as caught:
        models.load(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_missing_adapter_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="No trained adapter in .*run 03_train_grpo first"):
        models.load("data/tiny-lm", tmp_path / "none")


def test_no_lora_means_no_adapter():
    assert models.lora_config(resolve("tiny", {"use_lora": False})) is None
    assert models.lora_config(resolve("tiny", {"lora_r": 4})).r == 4


def test_shipped_model_is_as_small_as_promised(tiny):
    assert sum(p.numel() for p in tiny[0].parameters()) <= 2_000_000
    assert sum(f.stat().st_size for f in (REPO / "data" / "tiny-lm").rglob("*") if f.is_file()) <= 8_000_000
    assert (REPO / "data" / "tiny-lm" / "model.safetensors").is_file()


def test_shipped_tokenizer_reads_back_any_text(tokenizer):
    for text in ("zażółć 東京\t\n\n x  Dara's (painter).", "<think> a</think><search> b</search>", "\x7f😀"):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_shipped_models_tags_do_not_end_a_sequence(tokenizer):
    tags = [f"<{s}{t}>" for t in ("think", "search", "answer", "context") for s in ("", "/")]
    ids = tokenizer.convert_tokens_to_ids(tags)
    assert None not in ids
    assert not set(ids) & {tokenizer.eos_token_id, tokenizer.pad_token_id}
    assert tokenizer.eos_token_id != tokenizer.pad_token_id
