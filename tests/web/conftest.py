"""What the pack's nodes are called and take, read from their source: the web part's tests need no ComfyUI."""

import ast
from dataclasses import dataclass
from pathlib import Path

import pytest

WIDGETS = {"Int": "INT", "Float": "FLOAT", "String": "STRING", "Combo": "COMBO", "Boolean": "BOOLEAN"}


@dataclass(frozen=True)
class Input:
    """One input of a schema; ``tooltip`` is None where it is not written as plain text."""

    type: str  # as the page names it, such as "INT" or "LATENT"
    is_widget: bool
    has_control: bool  # a "control after generate" follows it
    tooltip: str | None


@dataclass(frozen=True)
class Schema:
    display_name: str
    description: str
    inputs: dict[str, Input]
    outputs: list[str]


@pytest.fixture(scope="session")
def nodes(root) -> dict[str, Schema]:
    """The schema of every node, by its id."""
    found = {}
    for file in sorted((root / "nodes").glob("*.py")):
        found |= read_schemas(ast.parse(file.read_text(encoding="utf-8")), file)
    return found


def read_schemas(tree: ast.Module, file: Path) -> dict[str, Schema]:
    functions = {node.name: node for node in tree.body if isinstance(node, ast.FunctionDef)}
    sockets = read_sockets(tree)
    schemas = {}
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "io.Schema":
            given = {keyword.arg: keyword.value for keyword in call.keywords}
            inputs = [
                each for item in given["inputs"].elts for each in read_inputs(item, functions, file, sockets)
            ]
            schemas[ast.literal_eval(given["node_id"])] = Schema(
                ast.literal_eval(given["display_name"]),
                ast.literal_eval(given["description"]),
                dict(inputs),
                [type_of(output, sockets) for output in given["outputs"].elts],
            )
    return schemas


def read_sockets(tree: ast.Module) -> dict[str, str]:
    """{name in the file: type} of each ``NAME = io.Custom("TYPE")``."""
    return {
        node.targets[0].id: ast.literal_eval(node.value.args[0])
        for node in tree.body
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Call)
        and ast.unparse(node.value.func) == "io.Custom"
    }


def type_of(call: ast.Call, sockets: dict[str, str]) -> str:
    """The type of ``io.Model.Output()`` and its like, or of a socket of ours."""
    first, second, *_ = ast.unparse(call.func).split(".")
    return sockets.get(first) or WIDGETS.get(second, second.upper())


def read_inputs(item: ast.expr, functions: dict[str, ast.FunctionDef], file: Path, sockets: dict[str, str]):
    """(name, Input) of an item of a schema's list: an input, or a call of a function that returns one or several."""
    item = item.value if isinstance(item, ast.Starred) else item
    if isinstance(item, ast.List):
        return [each for element in item.elts for each in read_inputs(element, functions, file, sockets)]
    if isinstance(item, ast.Call) and isinstance(item.func, ast.Name) and item.func.id in functions:
        (returned,) = (n for n in ast.walk(functions[item.func.id]) if isinstance(n, ast.Return))
        return read_inputs(returned.value, functions, file, sockets)
    assert isinstance(item, ast.Call), f"{file.name}:{item.lineno}: cannot read {ast.unparse(item)}"
    assert ast.unparse(item.func).endswith(".Input"), (
        f"{file.name}:{item.lineno}: cannot read {ast.unparse(item)}"
    )
    given = {keyword.arg: keyword.value for keyword in item.keywords}
    kind = ast.unparse(item.func).split(".")[1]
    tooltip = given.get("tooltip")
    value = Input(
        type_of(item, sockets),
        kind in WIDGETS and "force_input" not in given,
        "control_after_generate" in given,
        tooltip.value if isinstance(tooltip, ast.Constant) else None,
    )
    return [(ast.literal_eval(item.args[0] if item.args else given["id"]), value)]
