"""Quantised weights inside ComfyUI: the same stored numbers and products as the engine's, moved and patched by it.

``host_precision.py`` measures in ComfyUI's interpreter; here is what must come out.
"""

import numpy as np
import pytest
from safetensors.torch import load_file

PROJECTIONS, TEXT_PROJECTIONS = 32, 14  # layers of the tiny networks that are quantised
PER_MODALITY_RUNS = 64  # products of one pass over them, three for each stacked weight
CONVERTED = ("fp8", "int8", "nf4")
MADE = ("fp8", "fp8_rows", "fp8_fast", "int8", "int8_weights", "nf4")
TINY = "happyhorse_tiny_distilled.safetensors"
MODELS = [f"distilled_{name}.safetensors auto" for name in CONVERTED] + [f"{TINY} {name}" for name in MADE]
# What is lost where the host merges a LoRA and stores the sum again, with its stochastic rounding.
FORMAT_ERROR = {"fp8": 0.05, "int8": 0.015, "nf4": 0.12}


@pytest.fixture(scope="module")
def report(host_program, tiny_models):
    return host_program("host_precision.py", lambda work: write_gguf(tiny_models, work / "t5.gguf"))


def write_gguf(models, path):
    """The tiny text encoder with Q8_0 projections and embedding, names as at Hugging Face."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, "t5gemma")
    for file in (models / "text_encoders" / "t5gemma_tiny").glob("*.safetensors"):
        for name, tensor in load_file(file).items():
            if "decoder." in name or tensor.dtype.itemsize == 1:
                continue
            data = tensor.float().numpy()
            if data.ndim == 2 and data.shape[1] % 32 == 0:
                kind = gguf.GGMLQuantizationType.Q8_0
                writer.add_tensor(name, gguf.quants.quantize(data, kind), raw_dtype=kind)
            else:
                writer.add_tensor(name, np.ascontiguousarray(data))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@pytest.mark.parametrize("model", [*MODELS, f"{TINY} bf16", "distilled_fp8.safetensors bf16"])
def test_the_host_multiplies_as_the_engine_does(report, model):
    found = report["models"][model]
    is_plain = model.endswith("bf16")
    assert found["layers"] == PROJECTIONS
    assert found["stored"] == (0 if is_plain else PROJECTIONS)
    assert found["equal"] == PROJECTIONS  # bit-equal results on the same rows
    assert found["values"]
    assert found["float32"]
    assert found["int8"] == (PER_MODALITY_RUNS if "int8" in model and "weights" not in model else 0)
    assert found["fp8"] == (PER_MODALITY_RUNS if model.endswith("fp8_fast") else 0)
    # The host's attention rounds otherwise; where activations are quantised, a step of theirs follows.
    assert found["engine"] <= (0.12 if model.endswith("fp8_fast") else 0.04 if found["int8"] else 0.015)


@pytest.mark.parametrize("precision", MADE)
def test_feed_forward_layers_take_the_kernels_of_the_engine(report, precision):
    """Where activations are 8-bit; bit-equal to the engine's, and not far from product, activation, product."""
    found = report["feed forward"][precision]
    is_fused = precision in ("int8", "fp8_fast")
    assert found["fused"] == (found["layers"] if is_fused else 0)
    assert found["equal"] == found["layers"]
    assert found["close"] <= {"int8": 0.02, "fp8_fast": 0.08}.get(precision, 0)
    assert found["elsewhere"], "a weight that the host has offloaded is not taken"


@pytest.mark.parametrize("case", ["a LoRA at cast", "a hook", "another forward"])
@pytest.mark.parametrize("precision", ["int8", "fp8_fast"])
def test_what_the_host_patches_goes_its_way(report, precision, case):
    """A weight that it patches becomes numbers, whose rows are not quantised."""
    found = report["feed forward"][precision]
    times, apart = found[case]
    assert times == 0
    assert apart <= ({"int8": 0.02, "fp8_fast": 0.08}[precision] if case == "a LoRA at cast" else 0)
    assert found["put back"] == [1, True]


@pytest.mark.parametrize("model", MODELS)
def test_offloaded_layers_give_the_same(report, model):
    assert report["models"][model]["offloaded"]


def test_stored_weights_take_less_memory(report):
    sizes = {name: found["size"] for name, found in report["models"].items()}
    plain = sizes[f"{TINY} bf16"]
    assert sizes[f"{TINY} fp8"] < 0.6 * plain
    assert sizes[f"{TINY} int8"] < 0.6 * plain
    assert sizes[f"{TINY} nf4"] < 0.4 * plain


@pytest.mark.parametrize("model", MODELS)
def test_loras_on_stored_weights(report, model):
    found = report["loras"][model]
    kind = next(name for name in FORMAT_ERROR if name in model)
    assert found["merged"] <= FORMAT_ERROR[kind]
    assert found["still stored"]
    assert found["untouched"]
    assert found["restored"]
    assert found["at cast"] <= 4e-3  # bfloat16's rounding of the sum, and of the product


@pytest.mark.parametrize("kind", ["nvfp4", "mxfp8", "convrot_w4a4", "float8_e5m2", "int8_tensorwise"])
def test_comfyui_own_formats(report, kind):
    found = report["own"][kind]
    assert found["host"] <= 5e-3  # its layouts round to bfloat16, we do not
    assert found["engine"] <= 5e-3
    assert found["forward"] <= 0.03


TEXTS = [
    *(f"t5_{name}.safetensors auto" for name in CONVERTED),
    *(f"t5gemma_tiny {name}" for name in ("bf16", *MADE)),
    "t5.gguf auto",
    "t5.gguf int8",
]


@pytest.mark.parametrize("text", TEXTS)
def test_text_encoders(report, text):
    found = report["text"][text]
    assert found["listed"]
    assert found["apart"] == 0
    assert found["finite"]
    assert found["stored"] == (0 if text.endswith("bf16") else TEXT_PROJECTIONS)
