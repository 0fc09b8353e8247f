"""The plan node inside ComfyUI: words on the node and in its output, before anything is loaded.

``host_plan.py`` measures in ComfyUI's interpreter; here is what must come out.
"""

import pytest


@pytest.fixture(scope="module")
def report(host_program):
    return host_program("host_plan.py")


def test_the_table_is_shown_and_given(report):
    assert report["text"] == report["shown"]
    lines = report["text"].splitlines()
    assert lines[0].startswith("1920x1088 for 5.0 s in fp8 fits (16 GB card")
    assert [line.split("  ")[0] for line in lines[3:8]] == [
        "text",
        "film",
        "super-resolution",
        "sound",
        "decoding",
    ]


def test_a_file_s_header_is_read_and_nothing_is_loaded(report):
    """The tiny transformer is all on the card, where the published one is not."""
    film = next(line for line in report["tiny"].splitlines() if line.startswith("film"))
    assert "all blocks on the card" in film
    assert report["loaded"] == 0


def test_without_a_card_it_says_so(report):
    assert report["no card"] in (None, "There is no CUDA card here; the plan is for a card of 16 GB.")


def test_absurd_settings_are_refused(report):
    assert report["limits"] == {
        "width": [64, 16384],
        "height": [64, 16384],
        "length": [5, 4097],
        "gpu_memory_gb": [0.0, 1024.0],
    }
    assert report["required"] is True
    width, length, memory = report["refused"]
    assert width.startswith("GeometryError: 450x256 is not made of multiples of 32")
    assert length.startswith("GeometryError: 100 frames cannot be made")
    assert memory.startswith("GeometryError: -1 GB")
