"""How long the dialogue's rules take: lint and whole review of 40 lines in each of the seven languages.

    python benchmarks/dialogue.py

The goal is 50 ms for the lint. The lines are those of the tests, every third with a number or a date in it.
"""

import importlib.util
import json
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
NAME = "comfyui_happyhorse"
SENTENCES = ROOT / "tests" / "conditioning" / "dialogue" / "sentences.json"
LINES = 40
ROUNDS = 5
WITH_NUMBERS = {
    "Mandarin": "我们2026年5月3日下午3点半见，一共25.5元。",
    "Cantonese": "我哋5月3號下晝3點半見，一共$25。",
    "English": "Meet me at 3:30 p.m. on May 3, 2026, and bring $25.50.",
    "Japanese": "2026年5月3日の午後3時半に会いましょう。",
    "Korean": "2026년 5월 3일 오후 3시 30분에 만나요.",
    "French": "On se retrouve le 3 mai 2026 à 15 h 30, avec 25,50 €.",
    "German": "Wir treffen uns am 3. Mai 2026 um 15:30 Uhr, mit 25,50 €.",
}


def main() -> None:
    place = importlib.util.spec_from_file_location(NAME, ROOT / "__init__.py")
    sys.modules[NAME] = importlib.util.module_from_spec(place)
    place.loader.exec_module(sys.modules[NAME])
    from comfyui_happyhorse.conditioning.dialogue.document import Line, Scene, Shot, Speaker
    from comfyui_happyhorse.conditioning.dialogue.lint import lint
    from comfyui_happyhorse.conditioning.dialogue.review import review

    sentences = json.loads(SENTENCES.read_text(encoding="utf-8"))
    scenes = []
    for language, special in WITH_NUMBERS.items():
        texts = [text if isinstance(text, str) else text[0] for text in sentences[language]]
        texts = [special if number % 3 == 0 else texts[number % len(texts)] for number in range(LINES)]
        lines = tuple(Line("A", language, text) for text in texts)
        scenes.append(Scene((Speaker("A", "young woman, red coat"),), (Shot(lines),)))
    print(f"{LINES} lines in each of {len(scenes)} languages, {ROUNDS} rounds after one to warm up")
    for name, work in (("lint", lint), ("review", review)):
        times = [_milliseconds(work, scenes) for _ in range(ROUNDS + 1)][1:]
        print(f"{name:8} {statistics.median(times):6.1f} ms (from {min(times):.1f} to {max(times):.1f})")


def _milliseconds(work, scenes) -> float:
    started = time.perf_counter()
    for scene in scenes:
        work(scene)
    return 1000 * (time.perf_counter() - started)


if __name__ == "__main__":
    main()
