"""What the tests of this room share: every form of a transformer, and the tiny one."""

import pytest
from safetensors.torch import load_file
from torch import Tensor


@pytest.fixture
def write_form(tmp_path, form_writer):
    """``write_form(tensors, metadata, form)`` writes below the test's folder and returns the path."""
    return lambda tensors, metadata, form: form_writer.write(tensors, metadata, tmp_path, form)


@pytest.fixture
def state(tiny_models) -> dict[str, Tensor]:
    """The tiny distilled transformer: projections in bf16, the rest in float32."""
    return load_file(tiny_models / "diffusion_models" / "happyhorse_tiny_distilled.safetensors")
