"""A Scene as JSON and back: what a workflow file holds, and what the browser sends.

The text comes from files that people share and edit, so every wrong place is named.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from ...errors import ConditioningError
from .document import Line, Scene, Shot, Speaker

MAX_LINES = 500
VERSION = 1
INNER = {"cast": Speaker, "shots": Shot, "lines": Line}  # fields that hold a list of rows


def to_json(scene: Scene) -> dict[str, Any]:
    """Plain dicts and lists; ``from_json`` gives the same Scene again."""
    return asdict(scene)


def from_json(value: object) -> Scene:
    """The Scene in parsed JSON; fields that are left out have their defaults.

    Raises ConditioningError naming the place, for wrong types, unknown fields and words outside a list.
    """
    scene = _row(Scene, value, "the scene")
    if len(scene.lines) > MAX_LINES:
        raise ConditioningError(
            f"The scene has {len(scene.lines)} lines; at most {MAX_LINES} are taken, and a clip holds two or three. "
            "Make several clips."
        )
    return scene


def from_text(text: str) -> Scene:
    """The Scene in a workflow's text, ``{"version": 1, "scene": {...}}``; an empty text is an empty scene.

    ``frames``, which the editor keeps for pages where its node has no length, says nothing here. Raises
    ConditioningError for a text that is no JSON, of another version, or with a wrong place in it.
    """
    if not text.strip():
        return Scene()
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConditioningError(
            f"scene: the text is not JSON ({error}). Open the workflow again, or empty the field and type anew."
        ) from None
    version = value.get("version") if isinstance(value, dict) else None
    if version != VERSION:
        raise ConditioningError(
            f'scene: the text must be {{"version": {VERSION}, "scene": ...}}, and its version is {version!r}. Open the '
            "workflow again; if a newer pack wrote it, update this one."
        )
    if unknown := sorted(value.keys() - {"version", "scene", "frames"}):
        raise ConditioningError(
            f"scene: beside version, scene and frames there is {', '.join(unknown)}. Put the film's fields inside scene."
        )
    return from_json(value.get("scene", {}))


def _row(kind: type, value: object, where: str) -> Any:
    if not isinstance(value, Mapping):
        raise ConditioningError(f"{where}: expected an object with fields, found {_shown(value)}.")
    known = {field.name: field for field in fields(kind)}
    if unknown := [str(name) for name in value if name not in known]:
        raise ConditioningError(
            f"{where} has fields that this version does not know: {', '.join(sorted(unknown))}. Known are "
            f"{', '.join(known)}. A newer version may have written them: update the pack, or delete them."
        )
    missing = [
        name
        for name, field in known.items()
        if field.default is MISSING and field.default_factory is MISSING and name not in value
    ]
    if missing:
        raise ConditioningError(f"{where} lacks {', '.join(missing)}.")
    types = get_type_hints(kind)
    return kind(**{name: _field(name, types[name], value[name], f"{where}, {name}") for name in value})


def _field(name: str, kind: Any, value: object, where: str) -> Any:
    if name in INNER:
        if not isinstance(value, list | tuple):
            raise ConditioningError(f"{where}: expected a list, found {_shown(value)}.")
        return tuple(_row(INNER[name], row, f"{where} {place}") for place, row in enumerate(value, 1))
    options = get_args(kind) if get_origin(kind) in (UnionType, Literal) else (kind,)
    if get_origin(kind) is Literal:
        if value not in options:
            named = ", ".join(option or '""' for option in options)
            raise ConditioningError(f"{where}: {_shown(value)} is not one of {named}.")
        return value
    if float in options and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, options):
        named = " or ".join("null" if option is type(None) else option.__name__ for option in options)
        raise ConditioningError(f"{where}: expected {named}, found {_shown(value)}.")
    if isinstance(value, float) and not 0 <= value < 10_000:
        raise ConditioningError(f"{where}: {value} is not a time from 0 to 10,000 s.")
    return value


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}… ({len(text)} characters)"
