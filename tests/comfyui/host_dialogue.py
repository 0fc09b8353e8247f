"""Run by ComfyUI's interpreter, not by pytest: dialogue nodes one behind the other, as a graph would run them.

Prints one JSON object of measurements; ``test_dialogue.py`` holds the expectations.
"""

from host import OURS, ours, report, room, stock_node  # first: it sets ComfyUI up

# isort: split
import json

import torch

route = room("nodes.dialogue_route")
loaders = room("nodes.loaders")


def refusal(node, **inputs):
    try:
        ours(node, **inputs)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def line(speaker, language, text, lines=None, **changed):
    given = {"delivery": "", "pace": "natural", "start": -1.0, "pause": -1.0, "spell_out": True}
    (found,) = ours(
        "HappyHorseDialogueLine",
        speaker=speaker,
        language=language,
        text=text,
        lines=lines,
        **{**given, **changed},
    )
    return found


FIELDS = {
    "appearance": "",
    "setting": "a tea house",
    "framing": "medium close-up",
    "action": "",
    "lighting": "",
    "mood": "calm",
    "sound": "rain",
    "length": 0,
}


def prompt(scene="", **changed):
    return ours("HappyHorsePrompt", scene=scene, **{**FIELDS, **changed})


(lin,) = ours("HappyHorseSpeaker", name="Lin", description="woman, jade earrings", side="left", voice="low")
(karl,) = ours("HappyHorseSpeaker", name="Karl", description="old man, white beard", side="right", voice="")
lines = line(lin, "Mandarin", "我们3点见。")
lines = line(karl, "German", "Um 15:30 Uhr, gut.", lines, start=3.0)
text, negative, length, words, timeline, instruction = prompt(lines=lines)

said = {
    "cast": [
        {"name": "Lin", "description": "woman, jade earrings", "side": "left", "voice": "low"},
        {"name": "Karl", "description": "old man, white beard", "side": "right", "voice": ""},
    ],
    "shots": [
        {
            "lines": [
                {"speaker": "Lin", "language": "Mandarin", "text": "我们3点见。"},
                {"speaker": "Karl", "language": "German", "text": "Um 15:30 Uhr, gut.", "start": 3.0},
            ]
        }
    ],
}
typed = json.dumps({"version": 1, "frames": 0, "scene": said})
scene = {**said, "setting": "a tea house", "mood": "calm", "sound": "rain"}
status, answered = route.answer(json.dumps({"scene": scene, "frames": 0}).encode())

(clip,) = ours(
    "HappyHorseTextEncoderLoader",
    text_encoder_name="t5gemma_tiny",
    precision="float32",
    device="default",
    tokenizer_file="",
    cache="off",
)
counted = OURS["HappyHorsePrompt"].execute(scene="", lines=lines, clip=clip, **FIELDS)
shown = json.loads(counted.ui["review"][0])
conditioning, told = ours("HappyHorseTextEncode", clip=clip, prompt=text)
(stock,) = stock_node("CLIPTextEncode", clip=clip, text=text)
_, told_short = ours("HappyHorseTextEncode", clip=clip, prompt="A man.")
_, told_long = ours("HappyHorseTextEncode", clip=clip, prompt="word " * 700 + "the very end")
_, told_empty = ours("HappyHorseTextEncode", clip=clip, prompt=" ")

voice, spoken = ours("HappyHorseScratchVoice", timeline=timeline)
answer = text.replace("A static", "One static")
enhanced, accepted = ours(
    "HappyHorseEnhancedPrompt", timeline=timeline, answer=answer, when_refused="use the plain prompt"
)
changed = text.replace("gut.", "schlecht.")
fallback, refused = ours(
    "HappyHorseEnhancedPrompt", timeline=timeline, answer=changed, when_refused="use the plain prompt"
)
corrected, diagnosis = ours("HappyHorsePromptDoctor", prompt='Dialogue: <woman, Mandarin>: "我们见"')

report(
    {
        "text": text,
        "negative": negative,
        "length": length,
        "words": words,
        "instruction": instruction,
        "typed": prompt(typed)[:4] == (text, negative, length, words),
        "route": [status, answered["prompt"] == text, answered["frames"], answered["tokens"]["exact"]],
        "exact": [shown["tokens"], len(clip.tokenizer.tokenizer.encode(text))],
        "encoded": float((conditioning[0][0] - stock[0][0]).abs().max()),
        "told": [told, told_short, told_long, told_empty],
        "srt": ours("HappyHorseSubtitles", timeline=timeline, format="srt")[0],
        "vtt": ours("HappyHorseSubtitles", timeline=timeline, format="vtt")[0],
        "voice": [list(voice["waveform"].shape), voice["sample_rate"], float(voice["waveform"].abs().max())],
        "silent before": float(voice["waveform"][..., : int(0.29 * 44100)].abs().max()),
        "spoken": spoken,
        "enhanced": [enhanced != text, "One static" in enhanced, accepted],
        "fallback": [fallback == text, refused],
        "corrected": corrected,
        "diagnosis": diagnosis,
        "measured": ours(
            "HappyHorseReport",
            images=torch.rand(50, 32, 64, 3),
            fps=25.0,
            audio={"waveform": torch.rand(1, 2, 88_200) - 0.5, "sample_rate": 44_100},
        )[0],
        "plot": list(ours("HappyHorseReport", images=torch.rand(50, 32, 64, 3), fps=25.0)[1].shape),
        "refused": {
            "empty name": refusal("HappyHorseSpeaker", name=" ", description="", side="any", voice=""),
            "empty line": refusal("HappyHorsePrompt", scene="", lines=line(lin, "German", " "), **FIELDS),
            "too long": refusal(
                "HappyHorsePrompt",
                scene="",
                lines=line(lin, "German", "Ja, " * 60),
                **{**FIELDS, "length": 25},
            ),
            "no json": refusal("HappyHorsePrompt", scene="{", **FIELDS),
            "other clip": refusal("HappyHorseTextEncode", clip=object(), prompt="x"),
            "no timeline": refusal("HappyHorseSubtitles", timeline="x", format="srt"),
            "stop": refusal(
                "HappyHorseEnhancedPrompt", timeline=timeline, answer=changed, when_refused="stop"
            ),
            "two names": refusal(
                "HappyHorsePrompt",
                scene="",
                lines=lines,
                **{**FIELDS, "length": 26},
            ),
        },
        "lengths": [OURS["HappyHorsePrompt"].validate_inputs(length=n) for n in (0, 97, 98)],
    }
)
