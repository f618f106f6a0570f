"""Models: an adapter that is saved, loaded or merged says what it said before."""

import copy
import json

import pytest
import torch
import torch.distributed as dist
from peft import AutoPeftModelForCausalLM, get_peft_model
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from kr1_utils import models
from kr1_utils.files import REPO
from kr1_utils.profiles import resolve


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
    return tokenizer(
        "Who is the father of the director of film Silent River?", return_tensors="pt"
    )


def logits(model, ids):
    with torch.no_grad():
        return model(**ids).logits


def test_adapter_changes_what_the_model_says(tiny, adapted, ids):
    assert (logits(adapted[0], ids) - logits(tiny[0], ids)).abs().max() > 0.1


def test_saved_adapter_gives_equal_logits_when_loaded(adapted, ids, tmp_path):
    folder = models.save_adapter(*adapted, tmp_path / "adapter")
    again, tokenizer = models.load("data/tiny-lm", folder)
    assert torch.equal(logits(again, ids), logits(adapted[0], ids))
    assert tokenizer.get_vocab() == adapted[1].get_vocab()
    assert not again.training


def test_saved_adapter_is_loaded_by_peft_alone_from_any_folder(
    adapted, ids, tmp_path, monkeypatch
):
    folder = models.save_adapter(*adapted, tmp_path / "adapter")
    monkeypatch.chdir(tmp_path)
    again = AutoPeftModelForCausalLM.from_pretrained(folder).eval()
    assert torch.equal(logits(again, ids), logits(adapted[0], ids))


def test_shipped_adapter_names_no_folder_of_a_machine_and_is_loaded():
    folder = REPO / "data" / "reference" / "tiny" / "seed42" / "checkpoint"
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "data/tiny-lm"
    model, _ = models.load(config["base_model_name_or_path"], folder)
    assert model.peft_config


def bfloat16_copy(adapted):
    model = copy.deepcopy(adapted[0]).to(torch.bfloat16)
    return model, {n: p.clone() for n, p in model.named_parameters()}


def test_merged_weights_are_those_of_a_merged_model_under_its_names(adapted):
    mine = dict(models.merged_weights(adapted[0]))
    merged = copy.deepcopy(adapted[0]).merge_and_unload()
    theirs = dict(merged.named_parameters())
    assert mine.keys() == theirs.keys()
    assert all(torch.allclose(mine[n], theirs[n], atol=1e-6) for n in mine)


def test_merged_weights_are_whole_where_fsdp_has_spread_them(adapted, tmp_path):
    model = copy.deepcopy(adapted[0])
    whole = {name: weight.clone() for name, weight in models.merged_weights(model)}
    dist.init_process_group(
        "gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1
    )
    try:
        fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
        assert all(isinstance(p, DTensor) for p in model.parameters())
        spread = dict(models.merged_weights(model))
    finally:
        dist.destroy_process_group()
    assert spread.keys() == whole.keys()
    assert not any(isinstance(weight, DTensor) for weight in spread.values())
    assert all(torch.equal(spread[name], weight) for name, weight in whole.items())


def test_merged_weights_leave_bfloat16_weights_alone_where_merging_in_place_does_not(
    adapted,
):
    model, before = bfloat16_copy(adapted)
    for _ in range(20):
        for _ in models.merged_weights(model):
            pass
    assert all(torch.equal(before[n], p) for n, p in model.named_parameters())
    for _ in range(20):
        model.merge_adapter()
        model.unmerge_adapter()
    assert any(not torch.equal(before[n], p) for n, p in model.named_parameters())


def test_saving_again_replaces_the_adapter_and_leaves_nothing_beside_it(
    adapted, tmp_path
):
    models.save_adapter(*adapted, tmp_path / "adapter")
    (tmp_path / "adapter" / "stale").write_text("")
    models.save_adapter(*adapted, tmp_path / "adapter")
    assert [f.name for f in tmp_path.iterdir()] == ["adapter"]
    assert not (tmp_path / "adapter" / "stale").exists()


def test_saved_adapter_holds_the_adapter_alone(adapted, tmp_path):
    folder = models.save_adapter(*adapted, tmp_path / "adapter")
    assert (folder / "adapter_model.safetensors").is_file()
    assert not (folder / "model.safetensors").exists()


def test_merged_export_gives_the_adapters_logits_without_peft(adapted, ids, tmp_path):
    wanted = logits(adapted[0], ids)
    folder = models.save_adapter(*adapted, tmp_path / "adapter")
    merged = models.export_merged(
        *models.load("data/tiny-lm", folder), tmp_path / "merged"
    )
    assert not (merged / "adapter_config.json").exists()
    again, tokenizer = models.load(str(merged))
    config = json.loads((merged / "config.json").read_text())
    assert config["architectures"] == [type(again).__name__]
    assert torch.allclose(logits(again, ids), wanted, atol=1e-4)
    assert tokenizer.chat_template == adapted[1].chat_template


def test_all_weights_can_be_saved_without_an_adapter(tiny, ids, tmp_path):
    again, _ = models.load(str(models.save_adapter(*tiny, tmp_path / "all")))
    assert torch.equal(logits(again, ids), logits(tiny[0], ids))


def test_unknown_model_is_refused_in_one_sentence():
    with pytest.raises(
        FileNotFoundError, match="Model 'nobody/no-such-model' is neither a folder"
    ) as caught:
        models.load("nobody/no-such-model")
    assert "\n" not in str(caught.value)


def test_folder_without_a_model_is_refused_in_one_sentence(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="is neither a folder with a model"
    ) as caught:
        models.load(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_missing_adapter_is_refused(tmp_path):
    with pytest.raises(
        FileNotFoundError, match="No trained adapter in .*run 03_train_grpo first"
    ):
        models.load("data/tiny-lm", tmp_path / "none")


def test_no_lora_means_no_adapter():
    assert models.lora_config(resolve("tiny", {"use_lora": False})) is None
    assert models.lora_config(resolve("tiny", {"lora_r": 4})).r == 4


def test_shipped_model_is_as_small_as_promised(tiny):
    assert sum(p.numel() for p in tiny[0].parameters()) <= 2_000_000
    files = [f for f in (REPO / "data" / "tiny-lm").rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) <= 8_000_000
    assert (REPO / "data" / "tiny-lm" / "model.safetensors").is_file()


def test_shipped_tokenizer_reads_back_any_text(tokenizer):
    for text in (
        "zażółć 東京\t\n\n x  Dara's (painter).",
        "<think> a</think><search> b</search>",
        "\x7f😀",
    ):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text


def test_shipped_models_tags_do_not_end_a_sequence(tokenizer):
    names = ("think", "search", "answer", "context")
    tags = [f"<{name}>" for name in names] + [f"</{name}>" for name in names]
    ids = tokenizer.convert_tokens_to_ids(tags)
    assert None not in ids
    assert not set(ids) & {tokenizer.eos_token_id, tokenizer.pad_token_id}
    assert tokenizer.eos_token_id != tokenizer.pad_token_id


def test_weights_that_are_not_finite_are_not_saved(adapted, tmp_path):
    folder = models.save_adapter(*adapted, tmp_path / "adapter")
    spoiled = copy.deepcopy(adapted[0])
    weights = [p for name, p in spoiled.named_parameters() if "lora_A" in name]
    weights[0].data[0, 0] = float("nan")
    with pytest.raises(ValueError, match="lora_A.* not finite, so nothing is saved"):
        models.save_adapter(spoiled, adapted[1], folder)
    models.load("data/tiny-lm", folder)
    assert list(tmp_path.iterdir()) == [folder]
