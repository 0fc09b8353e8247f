"""``bench``: every table is walked at tiny sizes; what it claims is computed from what it measured."""

import ast
import itertools
import json
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from contextlib import contextmanager

import einops
import pytest
import torch

from comfyui_happyhorse.benchmarks.suite import command as command_of_suite
from comfyui_happyhorse.benchmarks.suite import float64, goals, measure, network, report, stand_in
from comfyui_happyhorse.cli import bench as command
from comfyui_happyhorse.cli.main import main
from comfyui_happyhorse.errors import HappyHorseError
from comfyui_happyhorse.model.sequence import SequenceLayout

CPU = torch.device("cpu")
CASES = ["ComfyUI default", "bf16", "8-bit"]
# Refuses what a bare machine lacks, then runs the command; imports are blocked before torch could probe them.
BARE = r"""
import importlib.util, sys
from importlib.abc import MetaPathFinder
class Missing(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("av", "einops", "comfy_kitchen", "safetensors", "PIL", "matplotlib"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Missing())
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "einops" else real(name, package)
spec = importlib.util.spec_from_file_location("comfyui_happyhorse", sys.argv[1] + "/__init__.py")
sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules[spec.name])
from comfyui_happyhorse.cli.main import main
tables = ["kernels", "forward", "decode"]
sys.exit(main(["bench", *tables, "--device", "cpu", "--tiny", "--quick", "--output", sys.argv[2]]))
"""


@pytest.fixture(scope="module")
def walked(tmp_path_factory):
    """(JSON, folder, what was printed) of one run of all tables."""
    folder = tmp_path_factory.mktemp("results")
    out = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda *words, **_: out.append(" ".join(map(str, words))))
        assert main(["bench", "--device", "cpu", "--tiny", "--output", str(folder)]) == 0
    return json.loads((folder / "cpu_tiny.json").read_text()), folder, "\n".join(out)


def test_every_table_is_walked(walked):
    result, _, printed = walked
    tables = result["tables"]
    assert list(tables) == ["kernels", "layer", "forward", "decode", "clip"]
    assert not [row for rows in tables.values() for row in rows if str(row.get("note")).startswith("failed")]
    for name in ("forward", "clip"):
        assert [row["case"] for row in tables[name]] == CASES * 3
        assert all(row["n"] >= 1 and row["p10"] <= row["ms"] <= row["p90"] for row in tables[name])
    refused = {row["case"] for rows in tables.values() for row in rows if row["note"]}
    assert refused == {
        "FP8, fused",
        "INT8 ConvRot, fused",
        "cudnn",
        "frames",
        "triton",
        "bf16, Triton forced",
    }
    assert "clip at 1080p: 8-bit" in printed
    assert printed.splitlines()[-1].startswith("goals_met: false")


def test_the_layers_are_the_formulas(walked):
    """The definition in bfloat16 is off by its roundings; a wrong rotation, gate or window is off by tenths."""
    rows = [row for row in walked[0]["tables"]["layer"] if row["note"] is None]
    assert len(rows) == 2 * 4 * 3
    assert all(row["passes"] and row["error"] > 1e-4 for row in rows)
    assert max(row["error"] for row in rows if row["case"] != "8-bit") < 6e-3
    assert min(row["error"] for row in rows if row["case"] == "8-bit") > 3e-2, "it is not 8-bit"


def test_the_operations_are_the_formulas(walked):
    rows = [row for row in walked[0]["tables"]["kernels"] if row["note"] is None]
    assert all(row["passes"] and row["error"] > 0 for row in rows)
    assert {row["kernel"] for row in rows} >= {"norm_rows", "add_norm", "norm_rope", "gate_rows", "attention"}


def test_meaningless_figures_are_marked(walked):
    result, folder, printed = walked
    assert "its figures mean nothing" in result["machine"]["device"]
    assert result["summary"]["goals_met"] is False
    assert "meaningless" in result["summary"]
    assert "its figures mean nothing" in printed
    assert all("tiny" in file.name for file in folder.iterdir())


def test_a_walk_meets_no_goal(monkeypatch, tmp_path):
    """Whatever its figures say; and a table that breaks leaves what was measured before it."""

    def broken(_):
        yield {"case": "A", "note": None}
        raise ValueError("no card")

    monkeypatch.setattr(command_of_suite, "TABLES", {"decode": broken})
    met = {"goals": [], "goals_met": True, "goals_missed": 0, "goals_open": 0}
    monkeypatch.setattr(command_of_suite, "summary", lambda *_: dict(met))
    settings = command_of_suite.Settings(("decode",), "cpu", True, True, None, 1.0, tmp_path)
    result, _ = command_of_suite.bench(settings, lambda _: None)
    assert result["summary"]["goals_met"] is False
    assert [row["note"] for row in result["tables"]["decode"]] == [None, "failed: ValueError: no card"]


def test_floors_and_shares_are_those_of_the_ceilings(walked):
    """Recomputed from the file alone: operations, work and rates."""
    ceilings, tables = walked[0]["ceilings"], walked[0]["tables"]
    sizes = network.scale(tiny=True)
    for row in tables["forward"]:
        clip = sizes.clips[row["size"]]
        config = network.with_local_layers(sizes.config) if clip.is_local else sizes.config
        products, attention = network.flops(config, clip)
        moved = 106e3 / 5120 * 64 * clip.tokens * 6
        floor = products / ceilings["product"] + attention / ceilings["attention"] + moved / ceilings["copy"]
        assert row["times the floor"] == pytest.approx(row["ms"] / 1e3 / floor)
        share = 100 * (products + attention) / (row["ms"] / 1e3) / ceilings["product"]
        assert row["% of product ceiling"] == pytest.approx(share)


def test_markdown_and_drawings(walked):
    _, folder, _ = walked
    text = (folder / "cpu_tiny.md").read_text()
    for title in report.TITLES.values():
        assert f"## {title}" in text
    for name in report.TITLES:
        drawing = folder / f"cpu_tiny_{name}.svg"
        assert f"({drawing.name})" in text
        assert ElementTree.parse(drawing).getroot().tag.endswith("svg")


def test_a_bare_machine(root, tmp_path):
    """Without av, einops, comfy-kitchen, safetensors, pillow: what needs one is refused by name, the rest runs."""
    made = subprocess.run(
        [sys.executable, "-c", BARE, str(root), str(tmp_path)], capture_output=True, text=True, timeout=200
    )
    assert made.returncode == 0, made.stderr[-2000:]
    tables = json.loads((tmp_path / "cpu_quick_tiny_kernels_forward_decode.json").read_text())["tables"]
    notes = {row["case"]: row["note"] for rows in tables.values() for row in rows if row["note"]}
    for case in ("8-bit", "FP8, then activation", "INT8 ConvRot, then activation"):
        assert "needs the Python package 'comfy-kitchen'" in notes[case]
    assert not [note for note in notes.values() if note.startswith("failed")]
    assert all(row["n"] for row in tables["forward"] if row["case"] != "8-bit")
    assert all(row["n"] for row in tables["decode"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--device", "cpu"], "add --tiny"),
        (["nonsense"], "There is no table 'nonsense'; there are kernels, layer, forward, clip, decode."),
        (["--minutes", "0"], "0 minutes cannot be kept to"),
        (["--minutes", "nan"], "nan minutes cannot be kept to"),
    ],
)
def test_refusals(arguments, words, capsys, tmp_path):
    assert main(["bench", *arguments, "--output", str(tmp_path / "results")]) == 1
    assert words in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a card")
def test_without_a_card(capsys):
    assert main(["bench"]) == 1
    assert "finds none here" in capsys.readouterr().err


def test_an_installation_without_the_folder(monkeypatch):
    def absent(*_):
        name = "comfyui_happyhorse.benchmarks"
        raise ModuleNotFoundError(f"No module named '{name}'", name=name)

    monkeypatch.setattr(command, "import_module", absent)
    with pytest.raises(HappyHorseError, match="from a clone"):
        command.suite()


def test_help_says_the_tables(capsys):
    with pytest.raises(SystemExit):
        main(["bench", "--help"])
    assert "kernels, layer, forward, clip, decode" in " ".join(capsys.readouterr().out.split())


# --- measuring -------------------------------------------------------------------------------------------


def test_cases_are_visited_forth_and_back():
    seen = []
    cases = [measure.Case(name, lambda _, name=name: seen.append(name)) for name in "ABC"]
    found = measure.Clock(CPU, 1).compare(cases, budget=0, least=4)
    assert "".join(seen) == "AABBCC" + "CBA" + "ABC" + "CBA", "cold, warm, then in turns"
    assert [len(timing.seconds) for timing in found.values()] == [4, 4, 4]


def test_a_case_has_its_setting_around_every_call():
    depth = []

    @contextmanager
    def setting():
        depth.append(1)
        yield
        depth.pop()

    case = measure.Case("A", lambda _: depth.count(1), setting)
    assert measure.Clock(CPU, 1).compare([case], budget=0, least=3)["A"].result == 1
    assert not depth


def test_notes():
    def refuse(_):
        raise HappyHorseError("no such card")

    def fail(_):
        raise ValueError("shapes\nand more")

    cases = [
        measure.Case("refused", refuse),
        measure.Case("failed", fail),
        measure.Case("absent", fail, is_optional=True),
        measure.Case("good", lambda _: torch.ones(3)),
    ]
    found = measure.Clock(CPU, 1).compare(cases, budget=0)
    notes = [timing.note for timing in found.values()]
    assert notes == [
        "refused: no such card",
        "failed: ValueError: shapes",
        "refused: ValueError: shapes",
        None,
    ]
    assert found["failed"].median is None and measure.row_of(found["failed"], None)["ms"] is None
    assert len(found["good"].seconds) == 2


def test_a_case_that_fails_later_has_no_figure():
    numbers = itertools.count()

    def sometimes(_):
        if next(numbers) == 3:
            raise ValueError("now")

    timing = measure.Clock(CPU, 1).compare([measure.Case("A", sometimes)], budget=0, least=5)["A"]
    assert timing.note == "failed: ValueError: now"
    assert timing.median is None


def test_what_was_not_written_is_counted():
    out = torch.full((2, 5), float("nan"))
    out[0] = 1
    timing = measure.Clock(CPU, 1).compare([measure.Case("A", lambda _: (out, out[0]))], budget=0)["A"]
    assert timing.lost == 5
    assert measure.count_lost(torch.tensor([1, 0xFF], dtype=torch.uint8).view(torch.float8_e4m3fn)) == 1
    assert measure.error_of(out, torch.ones(2, 5).double()) == float("inf")


def test_memory_is_poisoned_before_every_call():
    """With the sizes of the last result, which is when the allocator gives that memory again."""
    events = []

    class Watched(measure.Clock):
        def _poison(self, like):
            events.append("nothing" if like is None else tuple(like.shape))
            super()._poison(like)

    def run(_):
        events.append("run")
        return torch.ones(2, 3)

    Watched(CPU, 1).compare([measure.Case("A", run)], budget=0, least=3)
    assert events == ["nothing", "run", (2, 3), "run", (2, 3), "run", (2, 3), "run"]


def test_nothing_is_measured_after_the_time():
    clock = measure.Clock(CPU, -1)
    assert clock.compare([measure.Case("A", lambda _: None)], budget=1)["A"].note.endswith(
        "the time was over"
    )


def test_rows_have_medians_and_quantiles():
    timing = measure.Timing(seconds=[5e-3, 1e-3, 2e-3, 4e-3, 3e-3, 6e-3, 7e-3, 8e-3, 9e-3, 10e-3, 11e-3])
    row = measure.row_of(timing, measure.Timing(seconds=[12e-3]), case="A")
    assert (row["ms"], row["p10"], row["p90"], row["n"]) == (6, 2, 10, 11)
    assert row["times faster"] == 2


# --- what it rests on ------------------------------------------------------------------------------------


def test_sizes_and_work():
    """The token counts, parameters and FLOPs of the published network [performance.md, section 1.2]."""
    full = network.scale(tiny=False)
    assert [clip.tokens for clip in full.clips.values()] == [317, 4110, 14862, 65806]
    stored = sum(
        network.parameters(full.config, spec) * (3 if spec.per_modality else 1) for spec in full.config.blocks
    )
    assert stored == pytest.approx(15.2778e9, rel=1e-5)
    wanted = {"256p": (89.7, 13.8), "540p": (324.4, 180.9), "1080p": (1436.5, 2402.0)}
    for name, (products, attention) in wanted.items():
        clip = full.clips[name]
        config = network.with_local_layers(full.config) if clip.is_local else full.config
        found = network.flops(config, clip)
        assert found[0] / 1e12 == pytest.approx(products, rel=1e-3)
        assert found[1] / 1e12 == pytest.approx(attention, rel=5e-3)


def test_pairs_are_those_of_the_ranges():
    sizes = network.scale(tiny=True)
    clip, config = sizes.clips["1080p"], network.with_local_layers(sizes.config)
    layout = SequenceLayout(clip.frames, clip.height // 32, clip.width // 32, clip.audio, clip.text)
    pairs = sum((b - a) * (d - c) for (a, b), (c, d) in layout.local_ranges(config.window))
    per_pair = 4 * config.num_heads * config.head_dim
    wanted = sum(pairs if spec.is_local else clip.tokens**2 for spec in config.blocks) * per_pair
    assert network.flops(config, clip)[1] == wanted


@pytest.mark.parametrize("number", [0, 3, 5])
def test_float64_layer(number):
    """Against the network's own layer with everything in float32, where it is local and where it is not."""
    sizes = network.scale(tiny=True)
    clip = sizes.clips["1080p"]
    config = network.with_local_layers(sizes.config)
    made = network.Networks(sizes, CPU, "fp8_fast").get("bf16", local=True)
    block = made.block.layers[number].float()
    for part in block.modules():
        if getattr(part, "dtype", None) == torch.bfloat16:
            part.dtype = torch.float32
    video, audio, text = network.inputs(clip, config, CPU)
    context = made.context(SequenceLayout.of(video, audio, text), CPU)
    x = torch.randn(clip.tokens, config.hidden_size)
    rows = torch.arange(0, clip.tokens, 3)
    found = float64.layer_rows(
        block, config, config.blocks[number], x, context.rope, context.sizes, context.ranges, rows
    )
    with torch.inference_mode():
        wanted = block(x, context)[rows]
    assert measure.error_of(wanted, found) < 1e-6


def test_the_stand_in_is_einops(root):
    """For every pattern the networks use."""
    torch.manual_seed(0)
    patterns = set()
    for file in (root / "model").glob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "rearrange":
                patterns.add((node.args[1].value, tuple(word.arg for word in node.keywords)))
    assert len(patterns) >= 7
    for pattern, names in patterns:
        sizes = dict(zip(names, (2, 3, 2), strict=False))
        if "(p q c)" in pattern:
            sizes = {"t": 2, "h": 3, "w": 4, "p": 2, "q": 2}
        left = stand_in._groups(pattern.split("->")[0])
        shape = [torch.Size([sizes.get(name, 2) for name in group]).numel() for group in left]
        x = torch.randn(shape)
        assert torch.equal(stand_in.rearrange(x, pattern, **sizes), einops.rearrange(x, pattern, **sizes)), (
            pattern
        )


# --- goals -----------------------------------------------------------------------------------------------


def tables(default, bf16, eight, share=75.0, floor=1.05):
    """A run in which every size has the same figures, in milliseconds."""
    forward = [
        {
            "size": size,
            "case": case,
            "ms": ms,
            "% of product ceiling": share,
            "times the floor": floor,
            "NaN": 0,
        }
        for size in ("256p", "540p", "1080p")
        for case, ms in zip(CASES, (default, bf16, eight), strict=True)
    ]
    decode = [{"size": size, "case": "ours", "times the floor": 1.0} for size in ("256p", "540p", "1080p")]
    clip = [
        {"size": size, "case": case, "ms": 900.0}
        for size in ("256p", "540p", "1080p")
        for case in ("bf16", "8-bit")
    ]
    return {"forward": forward, "decode": decode, "clip": clip, "layer": [{"passes": True}]}


def test_goals_are_computed_from_the_tables():
    good = goals.summary(tables(260.0, 160.0, 100.0), "NVIDIA H200")
    assert good["goals_met"] is True and good["goals_open"] == 0
    reached = {goal["goal"]: goal["reached"] for goal in good["goals"]}
    assert reached["bf16 at 256p, times ComfyUI default"] == 1.625
    assert reached["5 s at 1080p in 8-bit on one H200, seconds"] == 0.9
    slow = goals.summary(tables(260.0, 170.0, 100.0), "NVIDIA H200")
    assert slow["goals_met"] is False and slow["goals_missed"] == 2


@pytest.mark.parametrize(
    ("change", "missed", "still_open"),
    [
        (lambda t: t["layer"].append({"passes": False}), 1, 0),
        (lambda t: t["forward"][0].update(NaN=3), 1, 0),
        (lambda t: t["layer"].append({"note": "failed: RuntimeError: x"}), 1, 0),
        (lambda t: t["decode"][0].update({"times the floor": 1.09}), 1, 0),
        (lambda t: t["forward"].pop(0), 0, 2),
        (lambda t: t.pop("clip"), 0, 6),
    ],
)
def test_what_spoils_them(change, missed, still_open):
    found = tables(260.0, 160.0, 100.0)
    change(found)
    found = goals.summary(found, "NVIDIA H200")
    assert found["goals_met"] is False
    assert (found["goals_missed"], found["goals_open"]) == (missed, still_open)


def test_seconds_count_on_their_card_only():
    assert goals.summary(tables(260.0, 160.0, 100.0), "NVIDIA GeForce RTX 4090")["goals_open"] == 6


def test_names_of_files():
    assert report.file_name("NVIDIA H200", quick=False, tiny=False) == "nvidia_h200"
    assert report.file_name("cpu: a walk", quick=True, tiny=True) == "cpu_quick_tiny"
