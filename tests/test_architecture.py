"""The rooms, and who may import whom."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LEAVES = {"errors", "shapes"}
MAY_IMPORT = {
    "errors": set(),
    "shapes": {"errors"},
    "kernels": LEAVES,
    "model": LEAVES | {"kernels"},
    "media": LEAVES,
    "sampling": LEAVES,
    "conditioning": LEAVES | {"model"},
    "model_loading": LEAVES | {"model", "kernels"},
    "pipeline": LEAVES | {"model", "media", "sampling", "conditioning", "model_loading"},
    "training": LEAVES
    | {"pipeline", "kernels", "model", "media", "sampling", "conditioning", "model_loading"},
    "cli": LEAVES | {"pipeline", "conditioning", "model_loading", "media"},
    "nodes": LEAVES | {"pipeline", "kernels", "model", "media", "sampling", "conditioning", "model_loading"},
}
HOST = {
    "comfy",
    "comfy_api",
    "comfy_execution",
    "comfy_extras",
    "folder_paths",
    "node_helpers",
    "nodes",
    "server",
}


def sources(room: str) -> list[Path]:
    return [ROOT / f"{room}.py"] if room in LEAVES else sorted((ROOT / room).rglob("*.py"))


def imports(file: Path):
    """Yield ("room", name) for imports inside the pack and ("top", name) for all others."""
    here = file.relative_to(ROOT).parent.parts
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (("top", alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield "top", node.module.partition(".")[0]
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1]
            if base:
                yield "room", base[0]
            elif node.module:
                yield "room", node.module.partition(".")[0]
            else:
                yield from (("room", alias.name) for alias in node.names)


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_imports_point_down(room):
    for file in sources(room):
        for kind, name in imports(file):
            where = f"{file.relative_to(ROOT)} imports {name}"
            if kind == "room":
                assert name == room or name in MAY_IMPORT[room], where
            else:
                assert room == "nodes" or name not in HOST, where
                assert name != "comfyui_happyhorse", f"{where}: inside the pack every import is relative"


def test_every_room_is_listed_and_packaged():
    on_disk = {path.parent for path in ROOT.glob("*/__init__.py")}
    inner = {path.parent for room in on_disk for path in room.rglob("*/__init__.py")}
    inner.add(
        ROOT / "benchmarks" / "suite"
    )  # for the command "bench"; the scripts beside it are run from a clone
    on_disk.discard(ROOT / "training")  # it makes the demo set; from a clone
    packaged = re.findall(r'"comfyui_happyhorse\.([\w.]+)"', (ROOT / "pyproject.toml").read_text())
    assert {path.name for path in on_disk} <= MAY_IMPORT.keys()
    assert sorted(".".join(path.relative_to(ROOT).parts) for path in on_disk | inner) == sorted(packaged)


def test_triton_is_imported_only_where_a_kernel_runs():
    """A card or a system without it has every room; its kernels wait in their own folder for the first call."""
    for room in MAY_IMPORT:
        for file in sources(room):
            if file.parent != ROOT / "kernels" / "triton":
                tree = ast.parse(file.read_text(encoding="utf-8"))
                at_import = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
                names = [node.module or "" if isinstance(node, ast.ImportFrom) else "" for node in at_import]
                names += [alias.name for node in at_import for alias in node.names]
                assert not [name for name in names if "triton" in name.split(".")], file.relative_to(ROOT)


def test_the_root_imports_nothing():
    """ComfyUI, pytest and tools all import it, with and without the host."""
    tree = ast.parse((ROOT / "__init__.py").read_text())
    assert not [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]


def test_files_begin_with_a_sentence():
    for room in MAY_IMPORT:
        for file in sources(room):
            docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8")))
            assert docstring and not docstring.startswith("This "), file.relative_to(ROOT)
