"""Captions as vectors: MiniLM, any other encoder, and the cache."""

import numpy as np
import pytest

from diffkit import text

needs_encoder = pytest.mark.skipif(not text.installed(), reason="needs the text extra")


def test_without_the_extra_it_is_named(monkeypatch):
    monkeypatch.setattr(text, "installed", lambda _: False)
    with pytest.raises(ValueError, match=r"diffkit\[text\]"):
        text._encoder.__wrapped__("minilm")


def test_captions_are_embedded_once_for_each_encoder(tmp_path, monkeypatch):
    monkeypatch.setenv("DIFFKIT_CACHE", str(tmp_path))
    asked = []

    def count_letters(captions, encoder):
        asked.append((encoder, *captions))
        return np.array([[len(c), len(encoder)] for c in captions], np.float32)

    monkeypatch.setattr(text, "embed", count_letters)
    for _ in range(2):
        found = text.embedded(["chair", "", "a table", "chair"])
        assert found[[0, 2, 3], 0].tolist() == [5, 7, 5] and np.isnan(found[1]).all()
    assert text.embedded(["chair", "a table"], "some/other")[:, 1].tolist() == [10, 10]
    assert asked == [("minilm", "a table", "chair"), ("some/other", "a table", "chair")]


@needs_encoder
def test_near_captions_are_near():
    chair, stool, apple = text.embed(["a wooden chair", "a wooden stool", "an apple pie with cream"])
    assert np.allclose(np.linalg.norm([chair, stool, apple], axis=1), 1, atol=1e-5)
    assert chair @ stool > 0.5 > chair @ apple


@needs_encoder
def test_a_caption_has_one_vector_whatever_stands_beside_it_and_however_long_it_is():
    long = "a chair " * 2000 + "\U0001f600"
    alone, beside = text.embed(["a chair"])[0], text.embed(["a chair", long])[0]
    assert np.allclose(alone, beside, atol=1e-5)
    assert text.embed([]).shape == (0, text.WIDTH)


@needs_encoder
@pytest.mark.parametrize("kind", ["Bert", "T5"])
def test_another_encoder_by_its_folder(kind, tmp_path):
    """Mean of the last layer over the tokens, made of length 1: a small encoder with random weights."""
    import tokenizers
    import torch
    import transformers

    words = tokenizers.models.WordLevel({"[PAD]": 0, "soft": 1, "flute": 2}, unk_token="[PAD]")
    tokenizer = tokenizers.Tokenizer(words)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]")
    fast.save_pretrained(tmp_path)
    torch.manual_seed(0)
    if kind == "Bert":
        sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
        network = transformers.BertModel(transformers.BertConfig(vocab_size=3, **sizes))
    else:
        sizes = {"d_model": 8, "d_kv": 4, "d_ff": 8, "num_layers": 1, "num_heads": 2}
        network = transformers.T5EncoderModel(transformers.T5Config(vocab_size=3, **sizes))
    network.save_pretrained(tmp_path)
    found = text.embed(["soft flute", "flute"], str(tmp_path))
    ids = torch.tensor([[1, 2]])
    with torch.no_grad():
        expected = torch.nn.functional.normalize(network.eval()(ids).last_hidden_state.mean(1), dim=-1)
    assert found.shape == (2, 8) and np.allclose(found[0], expected[0], atol=1e-5)


@needs_encoder
def test_an_encoder_that_is_none_is_one_line(tmp_path):
    with pytest.raises(ValueError, match=r"got the text encoder '.*none', which cannot be loaded"):
        text.embed(["a chair"], str(tmp_path / "none"))
