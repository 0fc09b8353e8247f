"""Tags: texts that travel in the film's file, and what ComfyUI's page needs to find its workflow in them."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path

from ..errors import MediaError
from .formats import FilmFormat

logger = logging.getLogger(__name__)

PAGE_READS = 2 * 1024 * 1024  # bytes of a WebM that the page looks at
JSON_STRING = re.compile(r'"(?:[^"\\]|\\.)*"')


def check_tags(tags: Mapping[str, str]) -> None:
    """Raise MediaError for what no container keeps."""
    for name, text in tags.items():
        if not isinstance(text, str):
            raise MediaError(
                f"The tag '{name}' must be text, not {type(text).__name__}; write values as JSON."
            )
        # MP4 would end the text at a NUL; a lone surrogate has no UTF-8.
        if any(mark == "\0" or "\ud800" <= mark <= "\udfff" for mark in text):
            raise MediaError(f"The tag '{name}' holds a NUL or half a character pair; remove it.")


def stored(tags: Mapping[str, str], film_format: FilmFormat) -> dict[str, str]:
    """The tags as this container is to hold them; JSON keeps its meaning, other text stays as it is."""
    if film_format.box.page_reader != "ebml":
        return dict(tags)
    tags = {name: without_braces_in_strings(text) for name, text in tags.items()}
    size = sum(len(f"{name}{text}".encode()) for name, text in tags.items())
    if size > PAGE_READS - 4096:  # the streams' headers come before the tags
        logger.warning(
            "The film's tags have %.1f MB. ComfyUI's page reads the first 2 MB of a WebM, so that the film will "
            "not bring the workflow back; MP4 would.",
            size / 2**20,
        )
    return tags


def without_braces_in_strings(text: str) -> str:
    r"""JSON with { and } inside strings as \u007b and \u007d; other text unchanged.

    The page takes a WebM's JSON to end where the braces balance, and counts those in a prompt too.
    """
    try:
        json.loads(text)
    except ValueError:
        return text
    return JSON_STRING.sub(lambda string: string[0].replace("{", r"\u007b").replace("}", r"\u007d"), text)


def write_sidecar(path: Path, tags: Mapping[str, str]) -> None:
    """Write what lies beside a film whose tags the page does not read: a file to be dropped on it instead.

    The page loads a JSON that *is* a workflow, or else a prompt, not one that holds them; so the sidecar is
    the tag itself. Without either it is all tags in one object.
    """
    text = tags.get("workflow") or tags.get("prompt") or json.dumps(dict(tags), ensure_ascii=False, indent=1)
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise MediaError(f"The film's workflow could not be stored ({error.strerror}).") from error
