"""The text encoder and its post-processing against tensors made with the reference code."""

import pytest
import torch

from comfyui_happyhorse.conditioning.negative import default_negative
from comfyui_happyhorse.conditioning.text import encode_prompt, pad_or_trim
from comfyui_happyhorse.model.text_encoder import T5GemmaConfig, T5GemmaEncoder

VARIANTS = {"sdpa_nosoftcap": ("sdpa", False), "eager_softcap": ("eager", True)}


@pytest.fixture
def encoder_of(golden):
    """``encoder_of(dtype)``: the golden file's encoder, its config read off shapes and settings."""

    def build(dtype):
        state = {name: tensor.to(dtype) for name, tensor in golden.weights().items()}
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        config = T5GemmaConfig.from_shapes(shapes, golden["encoder_config"])
        with torch.device("meta"):
            encoder = T5GemmaEncoder(config, dtype=dtype)
        encoder.load_state_dict(state, assign=True)
        return encoder.requires_grad_(False)

    return build


@pytest.mark.golden("t5gemma_encoder", without=["_full_keys"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_float32_features(golden, encoder_of, close, variant):
    encoder = encoder_of(torch.float32)
    for case in golden["cases"]:
        out = encoder(
            golden.tensors[f"in.{case}.input_ids"],
            golden.tensors[f"in.{case}.attention_mask"],
            soft_capping=VARIANTS[variant][1],
        )
        # A plain float32 encoder reaches 1.1e-6; a norm with eps 1e-5 would be off by 1.4e-5.
        close(out, golden.tensors[f"out.{case}.{variant}.fp32"], 5e-6, f"{case} {variant}")


@pytest.mark.golden("t5gemma_encoder", without=["_full_keys"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_bfloat16_features(golden, encoder_of, within_bf16, variant):
    encoder = encoder_of(torch.bfloat16)
    key, soft_capping = VARIANTS[variant]
    for case in golden["cases"]:
        out = encoder(
            golden.tensors[f"in.{case}.input_ids"],
            golden.tensors[f"in.{case}.attention_mask"],
            soft_capping=soft_capping,
        )
        assert out.dtype == torch.bfloat16
        reference = golden.tensors[f"out.{case}.{variant}.bf16"]
        within_bf16(out, reference, golden["bf16_vs_fp32"][case][key], f"{case} {variant}")


@pytest.mark.golden("t5gemma_encoder", without=["_full_keys"])
def test_context_of_the_reference(golden, encoder_of, within_bf16, device):
    encoder = encoder_of(torch.bfloat16)
    limit = golden["target_length_used"]
    cases = [case for case in golden["cases"] if f"out.{case}.reference_context" in golden.tensors]
    assert cases
    for case in cases:
        ids = golden.tensors[f"in.{case}.input_ids"]
        tokenizer = _FixedTokenizer(ids[0].tolist())
        text = encode_prompt("a prompt", tokenizer, lambda batch: encoder(batch.to(device)), limit=limit)
        context, kept = pad_or_trim(text.rows[None], limit, 1, 0.0)
        reference = golden.tensors[f"out.{case}.reference_context"]
        assert context.dtype == reference.dtype
        assert text.tokens == ids.shape[1]
        assert kept == min(ids.shape[1], limit) == golden["cases"][case]["original_len"]
        within_bf16(context, reference, golden["bf16_vs_fp32"][case]["sdpa"], case)
        assert torch.equal(context[:, kept:], reference[:, kept:])


@pytest.mark.golden("t5gemma_encoder_full_keys")
def test_parameters_of_the_published_encoder(golden):
    shapes = {name: tuple(entry["shape"]) for name, entry in golden["keys"].items()}
    config = T5GemmaConfig.from_shapes(shapes)
    assert config == T5GemmaConfig.from_shapes(shapes, golden["encoder_config"])
    assert config == T5GemmaConfig.from_shapes(shapes, {"encoder": golden["encoder_config"], "decoder": {}})
    with torch.device("meta"):
        state = T5GemmaEncoder(config).state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == shapes
    dtypes = {name: str(tensor.dtype) for name, tensor in state.items()}
    assert dtypes == {name: f"torch.{entry['dtype']}" for name, entry in golden["keys"].items()}
    assert len(state) == golden["n_keys"]
    assert sum(tensor.numel() for tensor in state.values()) == golden["total_parameters"]


@pytest.mark.golden("pad_or_trim")
def test_pad_or_trim(golden):
    for name, case in golden["cases"].items():
        out, kept = pad_or_trim(golden.tensors[f"in.{name}"], case["target"], case["dim"], case["pad_value"])
        assert torch.equal(out, golden.tensors[f"out.{name}"]), name
        assert kept == case["returned_length"], name


@pytest.mark.golden("constants")
def test_default_negative_is_not_the_references(golden):
    theirs = {phrase.strip().lower() for phrase in golden["negative_prompt"].split(",")}
    assert not theirs & set(default_negative().split(", "))


class _FixedTokenizer:
    """Gives the golden file's ids for any text."""

    def __init__(self, ids):
        self.ids, self.vocab_size = ids, max(ids) + 1

    def encode(self, _text):
        return list(self.ids)

    def tail(self, _text, keep):
        return f"tokens from {keep}"
