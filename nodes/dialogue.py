"""Nodes that turn who says what into a prompt, a length, a report and a timeline.

HAPPYHORSE_SPEAKER is a Speaker, HAPPYHORSE_LINES a Scene with a cast and lines and nothing else, and
HAPPYHORSE_TIMELINE a Review: the scene with everything that is known of it.
"""

from __future__ import annotations

import json
import logging

from comfy_api.latest import io, ui

from ..conditioning.dialogue.compose import compose
from ..conditioning.dialogue.doctor import Diagnosis, doctor
from ..conditioning.dialogue.document import FRAMINGS, PACES, SIDES, Line, Scene, Shot, Speaker
from ..conditioning.dialogue.enhancer import check_enhanced, instruction
from ..conditioning.dialogue.languages import LANGUAGES
from ..conditioning.dialogue.review import Review, described, join_lines, review, said
from ..conditioning.dialogue.scene_json import from_text
from ..conditioning.dialogue.subtitles import srt, vtt
from ..errors import ConditioningError
from ..pipeline.scratch_voice import scratch_voice
from ..shapes import FPS, MAX_TEXT_TOKENS, OUTPUT_SAMPLE_RATE, TIME_STRIDE
from .text_encoder import HostTokenizer

logger = logging.getLogger(__name__)
CATEGORY = "HappyHorse/dialogue"
AUTOMATIC = -1.0  # seconds that stand for "as usual", because a widget has no empty number
MAX_FRAMES = 4_097
MAX_SECONDS = 600.0

SpeakerSocket = io.Custom("HAPPYHORSE_SPEAKER")
LinesSocket = io.Custom("HAPPYHORSE_LINES")
TimelineSocket = io.Custom("HAPPYHORSE_TIMELINE")


class HappyHorseSpeaker(io.ComfyNode):
    """One member of the cast."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="HappyHorseSpeaker",
            display_name="HappyHorse Speaker",
            category=CATEGORY,
            description="Somebody who speaks. Give two speakers clearly different descriptions and sides.",
            search_aliases=["character", "cast", "voice"],
            inputs=[
                io.String.Input(
                    "name", default="Anna", tooltip="What you call the speaker; not in the prompt."
                ),
                io.String.Input(
                    "description",
                    default="young woman, red coat",
                    tooltip="About 5 words on looks, or a well-known name. The model finds the speaker by them.",
                ),
                io.Combo.Input(
                    "side",
                    options=[side or "any" for side in SIDES],
                    default="any",
                    tooltip="Where in the picture the speaker is; needed when there are two.",
                ),
                io.String.Input("voice", default="", tooltip="How the voice sounds: low and warm."),
            ],
            outputs=[SpeakerSocket.Output(display_name="speaker")],
        )

    @classmethod
    def execute(cls, name, description, side, voice) -> io.NodeOutput:
        if not name.strip():
            raise ConditioningError("name: it is empty; lines find their speaker by name. Write one.")
        return io.NodeOutput(Speaker(name.strip(), description, "" if side == "any" else side, voice))


class HappyHorseDialogueLine(io.ComfyNode):
    """One line, behind the lines before it."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="HappyHorseDialogueLine",
            display_name="HappyHorse Dialogue Line",
            category=CATEGORY,
            description="Something that is said. Chain several; HappyHorse Prompt takes the last one's lines.",
            search_aliases=["speech", "say", "lip-sync", "lipsync"],
            inputs=[
                SpeakerSocket.Input("speaker", tooltip="From HappyHorse Speaker."),
                io.Combo.Input(
                    "language", options=list(LANGUAGES), default="English", tooltip="What the line is in."
                ),
                io.String.Input(
                    "text", multiline=True, default="", tooltip="The words, without quotation marks."
                ),
                io.String.Input("delivery", default="", tooltip="How it is said: whispers, close to tears."),
                io.Combo.Input(
                    "pace", options=list(PACES), default="natural", tooltip="How fast it is said."
                ),
                io.Float.Input(
                    "start",
                    default=AUTOMATIC,
                    min=AUTOMATIC,
                    max=MAX_SECONDS,
                    step=0.05,
                    tooltip="Seconds into the film; -1 follows the line before.",
                ),
                io.Float.Input(
                    "pause",
                    default=AUTOMATIC,
                    min=AUTOMATIC,
                    max=MAX_SECONDS,
                    step=0.05,
                    tooltip="Seconds of silence after the line; -1 is as usual between two lines.",
                ),
                io.Boolean.Input(
                    "spell_out",
                    default=True,
                    tooltip="Put numbers, dates and signs into words. Off sends them as they are.",
                ),
                LinesSocket.Input("lines", optional=True, tooltip="The lines before this one."),
            ],
            outputs=[LinesSocket.Output(display_name="lines")],
        )

    @classmethod
    def execute(
        cls, speaker, language, text, delivery, pace, start, pause, spell_out, lines=None
    ) -> io.NodeOutput:
        line = Line(
            speaker.name,
            language,
            text,
            delivery,
            pace,
            None if start < 0 else start,
            None if pause < 0 else pause,
            spell_out,
        )
        return io.NodeOutput(join_lines(lines or Scene(), Scene((speaker,), (Shot((line,)),))))


class HappyHorsePrompt(io.ComfyNode):
    """A scene, written as the model reads it."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="HappyHorsePrompt",
            display_name="HappyHorse Prompt",
            category=CATEGORY,
            description="Writes the model's prompt from lines and a scene, and says how long the film must be. "
            "The lines are typed in the node itself, or come from HappyHorse Dialogue Line nodes.",
            search_aliases=["dialogue", "storyboard", "lip-sync", "lipsync", "speech"],
            inputs=[
                io.String.Input(
                    "scene",
                    default="",
                    multiline=True,
                    dynamic_prompts=False,
                    socketless=True,
                    tooltip="Cast and lines as JSON; the editor in the node writes it.",
                ),
                io.String.Input("appearance", default="", tooltip="Looks and clothes of who is seen."),
                io.String.Input("setting", default="", tooltip="Where it is: a small kitchen at night."),
                io.Combo.Input(
                    "framing",
                    options=list(FRAMINGS),
                    default="medium close-up",
                    tooltip="How near the camera is. Lips are best from near.",
                ),
                io.String.Input(
                    "action", default="", tooltip="What happens besides speaking; small movements."
                ),
                io.String.Input("lighting", default="", tooltip="Soft window light from the left."),
                io.String.Input("mood", default="", tooltip="Tense, tender, cheerful."),
                io.String.Input(
                    "sound", default="", tooltip="The 1 most prominent background sound; none is a choice."
                ),
                io.Int.Input(
                    "length",
                    default=0,
                    min=0,
                    max=MAX_FRAMES,
                    step=1,
                    tooltip=f"Frames, 4k+1, at {FPS} a second; 0 is as long as the lines need.",
                ),
                LinesSocket.Input(
                    "lines", optional=True, tooltip="Lines from nodes, in place of the editor's."
                ),
                io.Clip.Input(
                    "clip", optional=True, tooltip="Counts tokens exactly, with the encoder's own tokeniser."
                ),
            ],
            outputs=[
                io.String.Output(display_name="prompt"),
                io.String.Output(display_name="negative"),
                io.Int.Output(display_name="length"),
                io.String.Output(display_name="report"),
                TimelineSocket.Output(display_name="timeline"),
                io.String.Output(display_name="instruction"),
            ],
        )

    @classmethod
    def validate_inputs(cls, length) -> bool | str:
        if length and length % TIME_STRIDE != 1:
            below = max(length - (length - 1) % TIME_STRIDE, TIME_STRIDE + 1)
            return f"length: {length} frames are not 4k+1; {below} and {below + TIME_STRIDE} are."
        return True

    @classmethod
    def execute(
        cls, scene, appearance, setting, framing, action, lighting, mood, sound, length, lines=None, clip=None
    ) -> io.NodeOutput:
        spoken = from_text(scene) if lines is None else lines
        whole = described(
            spoken,
            appearance=appearance,
            setting=setting,
            framing=framing,
            action=action,
            lighting=lighting,
            mood=mood,
            sound=sound,
        )
        found = review(whole, frames=length, count_tokens=None if clip is None else token_counter(clip))
        if found.errors:
            raise ConditioningError(
                "The scene cannot be filmed as it is:\n"
                + "\n".join(f"- {error.message}" for error in found.errors)
            )
        return io.NodeOutput(
            found.prompt,
            found.negative.text,
            found.timeline.frames,
            found.report(),
            found,
            instruction(whole),
            ui={"review": [json.dumps(found.as_json())]},
        )


class HappyHorseEnhancedPrompt(io.ComfyNode):
    """A text model's version of the prompt, if it kept to the rules."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="HappyHorseEnhancedPrompt",
            display_name="HappyHorse Enhanced Prompt",
            category=CATEGORY,
            description="Checks what a text generation node made of HappyHorse Prompt's instruction: every line "
            "word for word, nothing invented, the right length.",
            search_aliases=["llm", "prompt enhancer", "rewrite"],
            inputs=[
                TimelineSocket.Input(
                    "timeline", tooltip="From HappyHorse Prompt, whose instruction was answered."
                ),
                io.String.Input("answer", force_input=True, tooltip="What the text generation node wrote."),
                io.Combo.Input(
                    "when_refused",
                    options=["use the plain prompt", "stop"],
                    default="use the plain prompt",
                    tooltip="What happens where the answer broke a rule; the report says which.",
                ),
            ],
            outputs=[io.String.Output(display_name="prompt"), io.String.Output(display_name="report")],
        )

    @classmethod
    def execute(cls, timeline, answer, when_refused) -> io.NodeOutput:
        timeline = check_timeline(timeline)
        scene, findings = check_enhanced(timeline.scene, answer)
        words = "\n".join(said(finding) for finding in findings)
        if scene is None:
            if when_refused == "stop":
                raise ConditioningError(f"answer: the text model broke the rules.\n{words}")
            logger.warning("HappyHorse Enhanced Prompt uses the plain prompt: %s", words)
            return io.NodeOutput(timeline.prompt, f"The plain prompt is used.\n{words}")
        return io.NodeOutput(compose(scene), words or "The answer keeps to the rules.")


class HappyHorsePromptDoctor(io.ComfyNode):
    """What is wrong with a prompt, and the prompt put right."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="HappyHorsePromptDoctor",
            display_name="HappyHorse Prompt Doctor",
            category=CATEGORY,
            description="Reads any pasted prompt, lists what would hurt the film and corrects what has one right "
            "correction. Every change is in the report.",
            search_aliases=["lint", "fix prompt", "check prompt"],
            inputs=[
                io.String.Input(
                    "prompt",
                    multiline=True,
                    default="",
                    dynamic_prompts=False,
                    tooltip="A prompt from anywhere, with its Dialogue and Background Sound parts if it has them.",
                ),
            ],
            outputs=[io.String.Output(display_name="corrected"), io.String.Output(display_name="report")],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, prompt) -> io.NodeOutput:
        diagnosis = doctor(prompt)
        report = diagnosed(diagnosis)
        return io.NodeOutput(diagnosis.corrected, report, ui=ui.PreviewText(report))


class HappyHorseTextEncode(io.ComfyNode):
    """A prompt as conditioning, with its tokens counted."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="HappyHorseTextEncode",
            display_name="HappyHorse Text Encode",
            category=CATEGORY,
            description="Encodes a prompt exactly as the reference does and says what would be cut off. "
            "CLIP Text Encode gives the same numbers without the report.",
            search_aliases=["clip text encode", "prompt"],
            inputs=[
                io.Clip.Input("clip", tooltip="From HappyHorse Text Encoder Loader."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    default="",
                    dynamic_prompts=False,
                    tooltip="What the film shows and what is said. An empty one is the default negative prompt.",
                ),
            ],
            outputs=[io.Conditioning.Output(), io.String.Output(display_name="report")],
        )

    @classmethod
    def execute(cls, clip, prompt) -> io.NodeOutput:
        report = token_report(tokenizer_of(clip), prompt)
        return io.NodeOutput(clip.encode_from_tokens_scheduled(clip.tokenize(prompt)), report)


class HappyHorseSubtitles(io.ComfyNode):
    """The lines with their times, as a subtitle file's text."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="HappyHorseSubtitles",
            display_name="HappyHorse Subtitles",
            category=CATEGORY,
            description="The planned times of the lines as subtitles, in the words that were typed.",
            search_aliases=["srt", "vtt", "captions"],
            inputs=[
                TimelineSocket.Input("timeline", tooltip="From HappyHorse Prompt."),
                io.Combo.Input("format", options=["srt", "vtt"], default="srt", tooltip="SubRip or WebVTT."),
            ],
            outputs=[io.String.Output(display_name="subtitles")],
        )

    @classmethod
    def execute(cls, timeline, format) -> io.NodeOutput:
        timeline = check_timeline(timeline)
        write = {"srt": srt, "vtt": vtt}[format]
        return io.NodeOutput(write(timeline.timeline, [line.prepared.cleaned for line in timeline.lines]))


class HappyHorseScratchVoice(io.ComfyNode):
    """A robot's reading of the lines, at their times."""

    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="HappyHorseScratchVoice",
            display_name="HappyHorse Scratch Voice",
            category=CATEGORY,
            description="Speaks the lines at their planned times with espeak-ng, to time a scene or to drive the "
            "lips. As driving voice it stays in the film: use a recording for the final one.",
            search_aliases=["tts", "text to speech", "espeak"],
            inputs=[TimelineSocket.Input("timeline", tooltip="From HappyHorse Prompt.")],
            outputs=[
                io.Audio.Output(),
                io.String.Output(display_name="report"),
            ],
        )

    @classmethod
    def execute(cls, timeline) -> io.NodeOutput:
        waveform, report = scratch_voice(check_timeline(timeline))
        return io.NodeOutput({"waveform": waveform, "sample_rate": OUTPUT_SAMPLE_RATE}, report)


def check_timeline(value: object) -> Review:
    """The Review on the wire, or ConditioningError saying what came instead."""
    if not isinstance(value, Review):
        raise ConditioningError(
            f"timeline: a {type(value).__name__} came; connect HappyHorse Prompt's timeline."
        )
    return value


def tokenizer_of(clip):
    """The tokeniser of our text encoder, or ConditioningError for another CLIP."""
    tokenizer = getattr(clip, "tokenizer", None)
    if not isinstance(tokenizer, HostTokenizer):
        raise ConditioningError(
            f"clip: a CLIP with a {type(tokenizer).__name__} came; the model reads T5Gemma's features. Connect "
            "HappyHorse Text Encoder Loader."
        )
    return tokenizer.tokenizer


def token_counter(clip):
    """How many tokens a text has."""
    tokenizer = tokenizer_of(clip)
    return lambda text: len(tokenizer.encode(text))


def token_report(tokenizer, prompt: str) -> str:
    """How many tokens a prompt has, and the words that will not be read."""
    count = len(tokenizer.encode(prompt))
    if not prompt.strip():
        return "Empty: the default negative prompt stands in."
    if count <= MAX_TEXT_TOKENS:
        return f"{count} of {MAX_TEXT_TOKENS} tokens; all are read."
    lost = tokenizer.tail(prompt, MAX_TEXT_TOKENS).strip()
    return f"{count} tokens, and {MAX_TEXT_TOKENS} are read. Cut off at the end: {lost}"


def diagnosed(diagnosis: Diagnosis) -> str:
    """A diagnosis for a person to read: what was wrong, what was changed, what is left to decide."""
    parts = [
        ("Found", [said(finding) for finding in diagnosis.findings]),
        ("Changed", [f"“{each.before}” to “{each.after}”: {each.reason}" for each in diagnosis.changes]),
        ("Left to you", [said(finding) for finding in diagnosis.remaining]),
    ]
    shown = [f"{title}:\n" + "\n".join(f"- {row}" for row in rows) for title, rows in parts if rows]
    return "\n\n".join(shown) or "Nothing is wrong with it."


NODES = [
    HappyHorseSpeaker,
    HappyHorseDialogueLine,
    HappyHorsePrompt,
    HappyHorseEnhancedPrompt,
    HappyHorsePromptDoctor,
    HappyHorseTextEncode,
    HappyHorseSubtitles,
    HappyHorseScratchVoice,
]
