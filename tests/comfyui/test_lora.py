"""A LoRA applied by our node inside ComfyUI against its merge in float64, and beside the stock loader's.

``host_lora.py`` measures in ComfyUI's interpreter; here is what must come out.
"""

import pytest

ROUNDED = 0.51  # of a last place of bfloat16: the host computes in float32 and rounds once, to the nearest
EXACT = 3e-6  # of the largest entry, in float32


@pytest.fixture(scope="module")
def report(host_program):
    return host_program("host_lora.py")


KINDS = ["plain", "alpha", "mid", "DoRA of rows", "DoRA of columns", "PEFT's DoRA", "diff", "set"]


@pytest.mark.parametrize("kind", KINDS)
def test_patched_weights_are_the_merged_ones(report, kind):
    """Fused, split, stacked and per-modality layers, at loading and where the host patches while it casts."""
    found = report["kinds"][kind]
    assert found["changed"] > 0.5
    assert found["patches"] == 15
    assert found["bf16, ulps"] <= ROUNDED
    assert found["float32"] <= EXACT
    assert found["at cast"] <= EXACT


def test_what_is_said(report):
    assert (
        report["kinds"]["alpha"]["said"]
        == "alpha.safetensors: 15 patches of rank 3 on 11 weights, strength 0.8."
    )
    assert report["kinds"]["diff"]["said"] == "diff.safetensors: 15 patches on 11 weights, strength 0.8."
    first, second = report["others"]["said"].split("\n")
    assert first == "vectors.safetensors: 2 patches on 2 weights, strength 0.8."
    names = ", ".join(f"lora_te_text_model_{index}.lora_up.weight" for index in range(5))
    assert second == f"7 keys belong to nothing in this model: {names}, …"


def test_unloading_restores_the_weights(report):
    assert report["kinds"]["restored"] == 0


@pytest.mark.parametrize("prefix", ["diffusion_model.", "lora_unet_"])
@pytest.mark.parametrize("kind", ["plain", "alpha", "diff", "set", "DoRA of columns", "DoRA of rows"])
def test_the_stock_loader_does_the_same(report, kind, prefix):
    found = report["stock"][f"{kind}, {prefix}"]
    assert found["bf16, ulps"] <= ROUNDED
    assert found["float32"] <= EXACT
    if kind != "DoRA of rows":  # for which the host takes the norms before the change, not after it
        assert found["apart"] == 0


@pytest.mark.parametrize("family", ["LoHa", "LoKr", "GLoRA", "OFT", "BOFT", "LoHa with DoRA"])
def test_other_families_on_rows_of_a_tensor(report, family):
    assert report["families"][family] <= EXACT


def test_norms_biases_and_chains(report):
    for what in ("vectors", "chained"):
        assert report["others"][what]["bf16, ulps"] <= ROUNDED
        assert report["others"][what]["float32"] <= EXACT


def test_strength_0_is_the_model_itself(report):
    assert report["others"]["strength 0 is the model itself"] is True
    assert report["others"]["said at strength 0"] == "alpha.safetensors: strength 0, nothing is patched."


def test_the_host_logs_no_failed_patch(report):
    assert report["logged"] == []


@pytest.mark.parametrize(
    ("case", "kind", "words"),
    [
        (
            "another model's LoRA",
            "CheckpointError",
            ["none of its 2 keys", "single_blocks.0", "another model"],
        ),
        ("another size's LoRA", "CheckpointError", ["down_proj.lora_A.weight [4, 999]", "[64, 168]"]),
        ("a pickle with code", "CheckpointError", ["harmful code", "not opened"]),
        ("a file cut short", "CheckpointError", ["not a whole safetensors file"]),
        ("another MODEL", "ConditioningError", ["model: a Linear came", "HappyHorse Model Loader"]),
    ],
)
def test_what_does_not_fit_is_refused(report, case, kind, words):
    answer = report["refusals"][case]
    assert answer.startswith(f"{kind}: ") and all(word in answer for word in words), answer
