"""Models: an adapter that is saved, loaded or merged says what it said before."""

import copy
import json
import shutil

import pytest
import torch
import torch.distributed as dist
from helpers import small_model, write_gguf
from peft import AutoPeftModelForCausalLM, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import Trainer, TrainingArguments
from trl.trainer import utils as trl_utils

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


# --- where a model lies ---


def test_tilde_in_the_name_of_a_model_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "lm").mkdir()
    assert models.locate("~/lm") == str(tmp_path / "lm")


@pytest.mark.parametrize("model", [5, None, ["a"]])
def test_name_of_a_model_that_is_no_text_is_refused(model):
    with pytest.raises(ValueError, match="model must be text, not"):
        models.load(model)


def test_tilde_in_the_name_of_an_adapter_is_the_home_folder(tmp_path, monkeypatch):
    shutil.copytree(
        REPO / "data" / "reference" / "tiny" / "seed42" / "checkpoint",
        tmp_path / "adapter",
    )
    monkeypatch.setenv("HOME", str(tmp_path))
    model, _ = models.load("data/tiny-lm", "~/adapter")
    assert model.peft_config


# --- going on with an adapter ---


@pytest.fixture(scope="module")
def folder(adapted, tmp_path_factory):
    """A saved adapter that changes what the tiny model says."""
    folder = tmp_path_factory.mktemp("adapter")
    return models.save_adapter(*adapted, folder / "adapter")


def test_loaded_adapter_is_trained_on_only_if_asked_for(folder):
    fixed, _ = models.load("data/tiny-lm", folder)
    assert not models.trained_weights(fixed)
    model, _ = models.load("data/tiny-lm", folder, trainable=True)
    names = models.trained_weights(model)
    assert names
    assert all("lora_" in name for name in names)
    assert not model.training


def test_adapter_that_is_trained_on_begins_where_it_ended(adapted, folder, ids):
    model, _ = models.load("data/tiny-lm", folder, trainable=True)
    before = logits(model, ids)
    assert torch.equal(before, logits(adapted[0], ids))
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    model(**ids, labels=ids["input_ids"]).loss.backward()
    optimizer.step()
    assert (logits(model, ids) - before).abs().max() > 0.01


def test_folder_of_an_adapter_is_no_model(folder):
    with pytest.raises(ValueError, match="holds an adapter, not a model") as caught:
        models.load(str(folder))
    # The base is named, and there is nothing else to ask.
    assert "data/tiny-lm as model" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_adapter_is_found_wherever_a_path_may_start(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder.parent))
    assert models.locate_adapter("~/adapter") == str(folder)
    monkeypatch.chdir(folder.parent)
    assert models.locate_adapter("adapter") == str(folder)
    monkeypatch.chdir("/")
    monkeypatch.setattr(models, "REPO", folder.parent)
    assert models.locate_adapter("adapter") == str(folder)


def test_adapter_of_another_model_is_refused_in_one_sentence(folder, tmp_path):
    other = tmp_path / "other"
    small_model().save_pretrained(other)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(REPO / "data" / "tiny-lm" / file, other)
    with pytest.raises(ValueError, match="does not fit the model") as caught:
        models.load(str(other), folder)
    assert "\n" not in str(caught.value)


def test_adapter_that_lacks_weights_is_not_loaded_as_one_that_changes_nothing(
    folder, tmp_path
):
    broken = shutil.copytree(folder, tmp_path / "broken")
    file = broken / "adapter_model.safetensors"
    weights = load_file(file)
    kept = {name: w for name, w in weights.items() if "layers.0" not in name}
    save_file(kept, file)
    with pytest.raises(ValueError, match="does not fit the model.*missing adapter"):
        models.load("data/tiny-lm", broken)


def test_model_with_nothing_to_train_is_refused(tiny, folder):
    models.require_trainable(tiny[0])
    frozen = copy.deepcopy(tiny[0]).requires_grad_(False)
    with pytest.raises(ValueError, match="No weight of this model is trained"):
        models.require_trainable(frozen)
    model, _ = models.load("data/tiny-lm", folder)
    with pytest.raises(ValueError, match="load it with trainable=True"):
        models.require_trainable(model)
    # As TRL does where there is a KL penalty; a copy is not what is trained.
    model.add_adapter("ref", model.peft_config["default"])
    for name, weight in model.named_parameters():
        weight.requires_grad_("ref" in name)
    with pytest.raises(ValueError, match="load it with trainable=True"):
        models.require_trainable(model)
    models.require_trainable(models.load("data/tiny-lm", folder, trainable=True)[0])


def test_profile_that_goes_on_with_an_adapter_has_its_shape(folder):
    profile = resolve("tiny", {"adapter": str(folder), "lora_r": 3})
    config = models.lora_config(profile)
    assert config.r == resolve("tiny").lora_r
    assert not config.inference_mode
    model, _ = models.load_profile(profile, trainable=True)
    assert models.trained_weights(model)
    assert models.load_profile(resolve("tiny"), folder)[0].peft_config


def test_all_weights_are_not_trained_under_an_adapter_or_in_four_bits(folder):
    profile = resolve("tiny", {"adapter": str(folder), "use_lora": False})
    with pytest.raises(ValueError, match="export adapter and model as one"):
        models.load_profile(profile, trainable=True)
    packed = resolve("tiny", {"four_bit": True, "use_lora": False})
    with pytest.raises(ValueError, match="packed weights cannot be trained"):
        models.load_profile(packed, trainable=True)


def test_folder_that_lacks_weights_is_refused(tiny, tmp_path):
    folder = models.save_adapter(*tiny, tmp_path / "model")
    file = folder / "model.safetensors"
    weights = load_file(file)
    del weights["model.norm.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(FileNotFoundError, match="lacks 1 weights.*model.norm.weight"):
        models.load(str(folder))


# --- precision ---


def dtypes(weights):
    return {weight.dtype for weight in weights}


def test_weights_are_loaded_as_the_profile_says_with_a_float32_adapter(folder, capsys):
    profile = resolve("tiny", {"dtype": "bfloat16"})
    model, _ = models.load_profile(profile, folder, trainable=True)
    assert model.get_base_model().model.embed_tokens.weight.dtype == torch.bfloat16
    assert dtypes(models.trained_weights(model).values()) == {torch.float32}
    new = get_peft_model(models.load_profile(profile)[0], models.lora_config(profile))
    assert dtypes(models.trained_weights(new).values()) == {torch.float32}
    with pytest.raises(ValueError, match="dtype='float16' must be one of bfloat16"):
        models.load("data/tiny-lm", dtype="float16")


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU multiplies bfloat16")
@pytest.mark.parametrize("able", ["avx512_bf16", "amx_bf16", None])
def test_bfloat16_is_said_to_be_slow_where_the_cpu_cannot_multiply_it(
    able, monkeypatch, capsys
):
    abilities = {"avx2": True, "avx512_bf16": False, "amx_bf16": False}
    if able:
        abilities[able] = True
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: abilities)
    assert models.load("data/tiny-lm", dtype="bfloat16")[0].dtype == torch.bfloat16
    assert ("neither avx512_bf16 nor amx" in capsys.readouterr().out) == (able is None)
    models.load("data/tiny-lm")
    assert "bfloat16" not in capsys.readouterr().out


def test_all_weights_are_float32_where_all_are_trained():
    profile = resolve("tiny", {"dtype": "bfloat16", "use_lora": False})
    model, _ = models.load_profile(profile, trainable=True)
    assert dtypes(model.parameters()) == {torch.float32}


def moved(model, steps=30, learning_rate=1e-5):
    """The share of trained weights that training has moved."""
    torch.manual_seed(0)
    ids = torch.randint(0, 256, (steps, 2, 16))
    before = {n: w.clone() for n, w in models.trained_weights(model).items()}
    trained = [w for w in model.parameters() if w.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=learning_rate, weight_decay=0.0)
    for batch in ids:
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = models.trained_weights(model)
    changed = sum((after[name] != before[name]).sum() for name in before)
    return changed / sum(weight.numel() for weight in before.values())


def test_float32_keeps_the_updates_that_bfloat16_rounds_away():
    rounded = small_model().to(torch.bfloat16)
    exact = small_model().to(torch.bfloat16)
    models.train_in_float32(exact)
    assert moved(rounded) < 0.3
    assert moved(exact) > 0.95


def test_adapter_that_was_rounded_is_made_exact_again(adapted):
    model = copy.deepcopy(adapted[0])
    fixed = [w for w in model.parameters() if not w.requires_grad]
    for weight in fixed:
        weight.data = weight.data.to(torch.bfloat16)
    exact = models.trained_weights(model)
    # As TRL does to the adapter of a model in 4 bits.
    for weight in model.parameters():
        weight.data = weight.data.to(torch.bfloat16)
    models.train_in_float32(model, exact)
    again = models.trained_weights(model)
    assert all(torch.equal(again[name], exact[name]) for name in exact)
    assert dtypes(again.values()) == {torch.float32}
    assert dtypes(fixed) == {torch.bfloat16}


# --- the head ---


def scored(model, labels):
    """(log-probabilities, gradient of the first weights) where the head is fused."""
    model.zero_grad()
    ids = torch.arange(32).reshape(2, 16)
    made = model(input_ids=ids, labels=labels, fused_lm_head=True)
    made.log_probs.sum().backward()
    return made.log_probs.detach(), model.model.embed_tokens.weight.grad.clone()


def positions_of_the_head(model, labels, monkeypatch):
    """How many rows the fused head is given."""
    rows = []
    apply = trl_utils._ChunkedLogProbFunction.apply

    def counted(hidden, *more):
        rows.append(len(hidden))
        return apply(hidden, *more)

    monkeypatch.setattr(trl_utils._ChunkedLogProbFunction, "apply", counted)
    scored(model, labels)
    monkeypatch.undo()
    return rows


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU does so by itself")
def test_head_is_applied_to_completions_alone_and_says_the_same(monkeypatch):
    model = small_model(tied=False)
    trl_utils.add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    labels = torch.arange(32).reshape(2, 16)
    labels[:, :11] = -100
    everywhere = scored(model, labels)
    assert positions_of_the_head(model, labels, monkeypatch) == [2 * 15]
    with models.head_at_labels_only():
        at_labels = scored(model, labels)
        assert positions_of_the_head(model, labels, monkeypatch) == [2 * 5]
    for found, wanted in zip(at_labels, everywhere, strict=True):
        assert torch.allclose(found, wanted, atol=1e-5)
    assert positions_of_the_head(model, labels, monkeypatch) == [2 * 15]


def test_head_without_a_label_gives_a_gradient_of_zero():
    model = small_model(tied=False)
    trl_utils.add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    with models.head_at_labels_only():
        found, gradient = scored(model, torch.full((2, 16), -100))
    assert not found.any()
    assert not gradient.any()


# --- GGUF ---


@pytest.mark.parametrize("tied", [True, False])
def test_gguf_file_is_trained_with_an_adapter_and_exported(tied, tmp_path):
    file = write_gguf(tmp_path / "small.gguf", small_model(tied=tied))
    model, tokenizer = models.load(str(file))
    adapted = get_peft_model(model, models.lora_config(resolve("tiny")))
    before = {n: w.clone() for n, w in models.trained_weights(adapted).items()}
    ids = torch.arange(16)
    settings = TrainingArguments(
        str(tmp_path / "state"),
        max_steps=1,
        learning_rate=1e-2,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    examples = [{"input_ids": ids, "labels": ids}] * 8
    Trainer(adapted, settings, train_dataset=examples).train()
    after = models.trained_weights(adapted)
    assert any(not torch.equal(after[name], before[name]) for name in before)
    check_adapter_and_export(adapted.eval(), tokenizer, file, tmp_path)


def check_adapter_and_export(model, tokenizer, file, folder):
    """What was trained is the same from its adapter, and from its export."""
    with torch.no_grad():
        wanted = model(input_ids=torch.arange(16)[None]).logits
    saved = models.save_adapter(model, tokenizer, folder / "adapter")
    again, tokenizer = models.load(str(file), saved)
    assert isinstance(again, PeftModel)
    exported = models.export_merged(again, tokenizer, folder / "merged")
    assert (exported / "model.safetensors").is_file()
    merged, other = models.load(str(exported))
    with torch.no_grad():
        found = merged(input_ids=torch.arange(16)[None]).logits
    assert torch.allclose(found, wanted, atol=1e-4)
    assert other.chat_template == tokenizer.chat_template


def test_gguf_file_is_not_packed_again_in_four_bits(tmp_path, monkeypatch):
    file = write_gguf(tmp_path / "small.gguf", small_model())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ValueError, match="a GGUF file is unpacked"):
        models.load(str(file), four_bit=True)
