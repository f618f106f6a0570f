"""GGUF: what is loaded is what the file holds, and what cannot be read is refused."""

from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quantize
from helpers import GGUF_SPECIAL, gguf_tokens, small_model, write_gguf

from kr1_utils import gguf_file, models, protocol
from kr1_utils.memory.forecast import config_of
from kr1_utils.protocol import ChatFormat

IDS = torch.arange(24).reshape(2, 12)


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("gguf")


@pytest.fixture(scope="module")
def file(folder):
    return str(write_gguf(folder / "small.gguf", small_model(tied=True)))


def as_written(model):
    """The model with its head as 8 bits keep it."""
    if not model.config.tie_word_embeddings:
        packed = GGMLQuantizationType.Q8_0
        head = model.lm_head.weight.detach().numpy()
        kept = dequantize(quantize(head, packed), packed)
        model.lm_head.weight.data = torch.from_numpy(kept)
    return model


@pytest.mark.parametrize("kind", ["llama", "qwen2"])
@pytest.mark.parametrize("tied", [True, False])
def test_model_of_a_gguf_file_says_what_the_model_said_it_was_made_from(
    kind, tied, tmp_path
):
    made_from = small_model(kind, tied)
    model, _ = models.load(str(write_gguf(tmp_path / "a.gguf", made_from)))
    wanted = logits(as_written(made_from))
    assert torch.allclose(logits(model), wanted, atol=1e-4)


@pytest.mark.parametrize("tied", [True, False])
def test_embedding_and_head_are_as_many_tensors_as_in_the_file_when_saved_and_loaded(
    tied, tmp_path
):
    file = write_gguf(tmp_path / "a.gguf", small_model("qwen2", tied))
    model, tokenizer = models.load(str(file))
    folder = models.save_adapter(model, tokenizer, tmp_path / "saved")
    again, _ = models.load(str(folder))
    for loaded in (model, again):
        head, embedding = loaded.lm_head.weight, loaded.model.embed_tokens.weight
        assert (head is embedding) == tied
        assert loaded.config.tie_word_embeddings == tied
    assert torch.equal(logits(again), logits(model))


def test_nothing_of_a_loaded_gguf_file_is_quantized(file):
    model, _ = models.load(file)
    assert not hasattr(model.config, "quantization_config")
    assert not getattr(model, "is_quantized", False)
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}
    assert models.load(file, dtype="bfloat16")[0].dtype == torch.bfloat16


def test_tokenizer_of_a_gguf_file_knows_what_the_file_says(file):
    tokenizer = models.load(file)[1]
    assert len(tokenizer) == len(gguf_tokens())
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")
    for token in (*GGUF_SPECIAL, "<tool_call>"):
        assert protocol.encode(tokenizer, token) == [gguf_tokens().index(token)]
    decoded = tokenizer.added_tokens_decoder.values()
    assert {t.content for t in decoded if t.special} == set(GGUF_SPECIAL)
    chat = ChatFormat.from_tokenizer(tokenizer)
    assert chat.end_of_turn == tokenizer.eos_token_id
    text = " zażółć the Dara's (12)\n"
    assert tokenizer.decode(protocol.encode(tokenizer, text)) == text


def test_tokenizer_of_a_gguf_file_is_the_same_when_saved_and_loaded(file, tmp_path):
    tokenizer = models.load(file)[1]
    tokenizer.save_pretrained(tmp_path)
    again = models.load_tokenizer(str(tmp_path))
    text = "<|im_start|>user\nthe <tool_call> 12<|im_end|>"
    assert protocol.encode(again, text) == protocol.encode(tokenizer, text)
    assert again.chat_template == tokenizer.chat_template
    assert again.eos_token == tokenizer.eos_token


@pytest.mark.parametrize(("pre", "pieces"), [("gpt-2", ["12"]), ("smollm", ["1", "2"])])
def test_words_are_cut_as_the_file_says(pre, pieces, tmp_path, capsys):
    file = write_gguf(tmp_path / "a.gguf", small_model(), pre=pre)
    tokenizer = gguf_file.load_tokenizer(str(file))
    assert tokenizer.tokenize("12") == pieces
    assert capsys.readouterr().out == ""


def test_unknown_way_to_cut_words_is_said(tmp_path, capsys):
    file = write_gguf(tmp_path / "a.gguf", small_model(), pre="tekken")
    gguf_file.load_tokenizer(str(file))
    assert "cuts words as 'tekken' does" in capsys.readouterr().out


def test_gguf_file_without_a_chat_template_is_said_in_one_sentence(tmp_path):
    file = write_gguf(tmp_path / "a.gguf", small_model(), template=None)
    tokenizer = models.load(str(file))[1]
    with pytest.raises(ValueError, match="a.gguf has no chat template") as caught:
        ChatFormat.from_tokenizer(tokenizer)
    assert "\n" not in str(caught.value)


def refused(file, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        models.load(str(file))
    assert file.name in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [0, 3, 20, 300, 4000, -1000])
def test_cut_off_gguf_file_is_refused_in_one_sentence(size, file, tmp_path):
    part = tmp_path / "part.gguf"
    part.write_bytes(Path(file).read_bytes()[:size])
    refused(part, "cannot be read as a GGUF model")


def test_other_file_with_its_suffix_is_refused_in_one_sentence(tmp_path):
    other = tmp_path / "other.gguf"
    other.write_text("<!DOCTYPE html>" * 100)
    refused(other, "cannot be read as a GGUF model")


def test_part_of_a_gguf_model_is_refused(tmp_path):
    part = write_gguf(tmp_path / "a-00001-of-00002.gguf", small_model())
    refused(part, "one of several parts")


def test_weight_that_the_file_lacks_is_not_made_up(tmp_path):
    lacking = ["blk.1.ffn_up.weight"]
    file = write_gguf(tmp_path / "a.gguf", small_model(), without=lacking)
    refused(file, "lacks 1 weights of the model: model.layers.1.mlp.up_proj.weight")


def test_stretched_positions_are_not_lost_without_a_word(tmp_path):
    file = write_gguf(tmp_path / "a.gguf", small_model(), more=["rope_freqs.weight"])
    refused(file, "the stretched positions of Llama 3.1")


def test_biases_are_not_lost_without_a_word(tmp_path):
    # llama.cpp knows a Llama with biases, transformers' reader does not.
    model = small_model(attention_bias=True)
    refused(write_gguf(tmp_path / "a.gguf", model), "transformers reads 20 of them")


def test_architecture_that_transformers_does_not_know_is_refused(tmp_path):
    model = small_model()
    model.config.model_type = "plamo"
    refused(write_gguf(tmp_path / "a.gguf", model), "cannot be read as a GGUF model")


def test_gguf_file_is_found_wherever_a_path_may_start(file, folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder))
    assert models.locate(file) == file
    assert models.locate("~/small.gguf") == file
    monkeypatch.chdir(folder)
    assert models.locate("small.gguf") == file
    monkeypatch.chdir("/")
    monkeypatch.setattr(models, "REPO", folder)
    assert models.locate("small.gguf") == file


def test_gguf_file_of_the_hub_is_named_behind_a_colon(file, monkeypatch):
    asked = []

    def download(repository, name):
        asked.append((repository, name))
        return file

    monkeypatch.setattr(gguf_file, "hf_hub_download", download)
    assert models.locate("somebody/some-GGUF:small-Q8_0.gguf") == file
    assert asked == [("somebody/some-GGUF", "small-Q8_0.gguf")]


def test_gguf_file_keeps_its_name_where_it_is_a_link_as_in_the_hubs_cache(
    file, tmp_path
):
    link = tmp_path / "small.gguf"
    blob = tmp_path / "5f0c"
    blob.write_bytes(Path(file).read_bytes())
    link.symlink_to(blob)
    model, _ = models.load(str(link))
    assert model.name_or_path == str(link)


def test_gguf_file_that_is_nowhere_is_refused_in_one_sentence(monkeypatch):
    with pytest.raises(FileNotFoundError, match="No file nowhere.gguf, neither"):
        models.load("nowhere.gguf")
    # The tests' hub is offline.
    with pytest.raises(FileNotFoundError, match="Could not get 'a/b:c.gguf' from"):
        models.load("a/b:c.gguf")


def test_config_of_a_gguf_file_is_read_without_its_weights(file):
    config = models.read_config(file)
    assert (config.model_type, config.num_hidden_layers) == ("llama", 2)


def test_the_forecast_reads_the_files_config(tmp_path):
    made_from = small_model("qwen2")
    file = str(write_gguf(tmp_path / "a.gguf", made_from))
    config = config_of(file)
    assert config.model_type == "qwen2"
    assert config.num_hidden_layers == made_from.config.num_hidden_layers
