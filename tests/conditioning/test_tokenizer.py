"""Both tokeniser libraries give the same bare ids, and a tokeniser is found where it is said to be."""

import json
import logging
import os
import re
import sys
from pathlib import Path

import pytest
import torch

from comfyui_happyhorse.conditioning.negative import default_negative
from comfyui_happyhorse.conditioning.tokenizer import (
    JsonTokenizer,
    SentencePieceTokenizer,
    find_tokenizer,
    load_tokenizer,
)
from comfyui_happyhorse.errors import ConditioningError, HappyHorseError

SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>")
BYTES = [f"<0x{value:02X}>" for value in range(256)]
# Pieces of two and more characters, each reachable from two shorter ones.
JOINED = ["▁▁", "he", "ll", "hell", "hello", "or", "ld", "▁w", "▁wor", "▁world", "on", "▁on", "▁one", "你▁"]
CHARACTERS = [*"▁abcdefghijklmnopqrstuvwxyzABD<>/_:,.!?\"'\n", *"你好"]


def tokenizer_json(extra=()):
    """A small tokenizer.json as a dict: byte fallback, and, as traps, a BOS, padding and truncation."""
    pieces = [*SPECIAL, "<b>", "\n\n", *BYTES, *JOINED, *CHARACTERS, *extra]
    vocab = {piece: index for index, piece in enumerate(pieces)}
    added = [*SPECIAL, "<b>", "\n\n", "▁▁"]
    return {
        "version": "1.0",
        "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        "padding": {
            "strategy": {"Fixed": 6},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "<pad>",
        },
        "added_tokens": [
            {
                "id": vocab[piece],
                "content": piece,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": piece in SPECIAL,
            }
            for piece in added
        ],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "<bos>", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "<eos>", "type_id": 0}},
            ],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {
                name: {"id": name, "ids": [vocab[name]], "tokens": [name]} for name in ("<bos>", "<eos>")
            },
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "unk_token": "<unk>",
            "fuse_unk": True,
            "byte_fallback": True,
            "vocab": vocab,
            "merges": [
                [piece[:cut], piece[cut:]]
                for piece in JOINED
                for cut in range(1, len(piece))
                if piece[:cut] in vocab and piece[cut:] in vocab
            ],
        },
    }


def sentencepiece_model(source, *, turn_markers_are_words=True):
    """The sentencepiece model with the vocabulary of a tokenizer.json, as bytes.

    Gemma's own file has its turn markers as user-defined words; others have them as control pieces.
    """
    pytest.importorskip("google.protobuf", reason="building a sentencepiece model needs protobuf")
    from sentencepiece import sentencepiece_model_pb2 as proto

    kinds = proto.ModelProto.SentencePiece
    added = {entry["content"]: entry["special"] for entry in source["added_tokens"]}
    vocab = source["model"]["vocab"]
    model = proto.ModelProto()
    for piece in sorted(vocab, key=vocab.get):
        # Hugging Face's Gemma writes the tab itself where the original has its byte.
        name = "<0x09>" if piece == "\t" and "<0x09>" not in vocab else piece
        if name == "<unk>":
            kind = kinds.UNKNOWN
        elif re.fullmatch("<0x[0-9A-F]{2}>", name):
            kind = kinds.BYTE
        elif name.endswith("_of_turn>"):
            kind = kinds.USER_DEFINED if turn_markers_are_words else kinds.CONTROL
        elif piece in added:
            kind = kinds.CONTROL if added[piece] else kinds.USER_DEFINED
        else:
            kind = kinds.NORMAL
        model.pieces.add(piece=name, score=-vocab[piece], type=kind)
    trainer, normaliser = model.trainer_spec, model.normalizer_spec
    trainer.model_type = proto.TrainerSpec.BPE
    trainer.byte_fallback = True
    trainer.pad_id, trainer.eos_id, trainer.bos_id, trainer.unk_id = range(4)
    normaliser.name = "identity"
    normaliser.add_dummy_prefix = False
    normaliser.remove_extra_whitespaces = False
    return model.SerializeToString()


@pytest.fixture
def small_json():
    return json.dumps(tokenizer_json()).encode()


@pytest.fixture(params=["json", "sentencepiece"])
def small(request, small_json):
    """The small tokeniser through either library."""
    data = small_json if request.param == "json" else sentencepiece_model(tokenizer_json())
    return load_tokenizer(data)


def ids_of(*pieces):
    vocab = tokenizer_json()["model"]["vocab"]
    return [vocab[piece] for piece in pieces]


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("hello world", ["hello", "▁world"]),  # no <bos>, no <eos>, no padding to 6
        ("hello world one one one", ["hello", "▁world", "▁one", "▁one", "▁one"]),  # no truncation to 4
        ("a  b", ["a", "▁▁", "b"]),
        (" one ", ["▁one", "▁"]),
        ("你 好", ["你▁", "好"]),
        ("é", ["<0xC3>", "<0xA9>"]),
        ("\n\n\n", ["\n\n", "\n"]),
        ("<b>a", ["<b>", "a"]),
        ("<eos>", ["<", "e", "o", "s", ">"]),
        ("a<bos>", ["a", "<", "b", "o", "s", ">"]),
        ("<unk>", ["<", "u", "n", "k", ">"]),
        ("<end_of_turn>", [*"<end_of_turn>"]),
        ("<start_of_turn>hello", [*"<start_of_turn>", "hello"]),
        ("<0xC3>", ["<", "<0x30>", "x", "<0x43>", "<0x33>", ">"]),
    ],
)
def test_ids_are_bare(small, text, pieces):
    assert small.encode(text) == ids_of(*pieces)


def test_vocabulary_size(small):
    assert small.vocab_size == 6 + 2 + 256 + len(JOINED) + len(CHARACTERS)


@pytest.mark.parametrize(
    ("text", "keep", "lost"),
    [
        ("hello world one", 1, " world one"),
        ("hello world one", 2, " one"),
        ("hello world one", 3, ""),
        ("one <eos> two", 7, "> two"),
        ("aé一b", 1, "é一b"),
        ("aé一b", 2, "é一b"),  # half of é is kept, so é is lost
        ("aé一b", 5, "一b"),
        ("aé一b", 6, "b"),
    ],
)
def test_tail_names_what_is_lost(small, text, keep, lost):
    assert small.tail(text, keep) == lost


# Where a tokeniser is found. The three places hold vocabularies of different sizes.


@pytest.fixture
def places(tmp_path):
    """``places(embedded=…, beside=…, named=…)`` writes tokenisers there and gives find_tokenizer's arguments."""

    def write(embedded=None, beside=None, named=None):
        weights = tmp_path / "encoder" / "t5gemma.safetensors"
        weights.parent.mkdir()
        weights.touch()
        for name, data in (beside or {}).items():
            (weights.parent / name).write_bytes(data)
        if named is not None:
            (tmp_path / "mine.bin").write_bytes(named)
        tensors = {
            name: torch.frombuffer(bytearray(data), dtype=torch.uint8)
            for name, data in (embedded or {}).items()
        }
        return weights, tensors, (tmp_path / "mine.bin" if named is not None else None)

    return write


def sized(extra):
    return json.dumps(tokenizer_json(["X", "Y", "Z"][:extra])).encode()


BASE = len(tokenizer_json()["model"]["vocab"])


def test_places_are_searched_in_order(places):
    model = sentencepiece_model(tokenizer_json(["X", "Y", "Z"]))
    weights, tensors, named = places(
        {"tokenizer_json": sized(0), "unrelated": b"x"},
        {"tokenizer.json": sized(1), "tokenizer.model": model},
        sized(2),
    )
    assert find_tokenizer(weights, tensors).vocab_size == BASE
    assert find_tokenizer(weights, {}).vocab_size == BASE + 1
    assert find_tokenizer(weights.parent, {}).vocab_size == BASE + 1
    (weights.parent / "tokenizer.json").unlink()
    found = find_tokenizer(weights, {})
    assert found.vocab_size == BASE + 3
    assert isinstance(found, SentencePieceTokenizer)
    (weights.parent / "tokenizer.model").unlink()
    assert find_tokenizer(weights, {}, named).vocab_size == BASE + 2


def test_sentencepiece_inside_the_weights(places):
    weights, tensors, _ = places({"spiece_model": sentencepiece_model(tokenizer_json(["X"]))})
    found = find_tokenizer(weights, tensors, rows=BASE + 1)
    assert isinstance(found, SentencePieceTokenizer)
    assert found.encode("hello one") == ids_of("hello", "▁one")


def test_content_decides_and_not_the_name(places, small_json):
    weights, _, _ = places(beside={"tokenizer.model": b"\n " + small_json})
    assert isinstance(find_tokenizer(weights, {}), JsonTokenizer)


def test_a_named_file_that_is_passed_over_is_said(places, caplog):
    weights, _, named = places(beside={"tokenizer.json": sized(1)}, named=sized(2))
    with caplog.at_level(logging.WARNING):
        assert find_tokenizer(weights, {}, named).vocab_size == BASE + 1
    assert f"{named} is not used, because {weights.parent / 'tokenizer.json'}" in caplog.text


def test_none_is_an_error_that_names_every_place(places, tmp_path):
    weights, tensors, _ = places()
    absent = tmp_path / "absent.json"
    for named, words in ((None, "none is named"), (absent, f"{absent} is not there")):
        with pytest.raises(ConditioningError) as caught:
            find_tokenizer(weights, tensors, named)
        message = str(caught.value)
        folder = weights.parent
        for place in (
            weights,
            "spiece_model",
            "tokenizer_json",
            folder / "tokenizer.json",
            folder / "tokenizer.model",
        ):
            assert str(place) in message
        assert words in message
        assert f"Put the tokenizer.json that was published with the text encoder into {folder}" in message


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b'{"add_bos_token": false}',
        b"version https://git-lfs.github.com/spec/v1\n",
        b"\x00\xff" * 40,
    ],
)
def test_a_broken_file_is_named(places, data):
    weights, _, _ = places(beside={"tokenizer.json": data}, named=sized(0))
    with pytest.raises(
        ConditioningError, match=rf"tokenizer\.json \({len(data)} bytes\) was read as a .* is broken"
    ):
        find_tokenizer(weights, {}, weights.parent.parent / "mine.bin")


def test_a_broken_tensor_and_a_missing_path_are_named(places, tmp_path):
    weights, tensors, _ = places({"spiece_model": b"\x00\xff" * 40})
    with pytest.raises(
        ConditioningError, match=r"tensor spiece_model in .*t5gemma\.safetensors \(80 bytes\)"
    ):
        find_tokenizer(weights, tensors)
    with pytest.raises(ConditioningError, match=r"gone\.json cannot be read: No such file"):
        load_tokenizer(tmp_path / "gone.json")


def test_vocabulary_must_fit_the_embedding(places, caplog):
    weights, _, _ = places(beside={"tokenizer.json": sized(1)})
    with pytest.raises(ConditioningError, match=f"has {BASE + 1} entries and the text encoder knows {BASE}:"):
        find_tokenizer(weights, {}, rows=BASE)
    with caplog.at_level(logging.WARNING):
        find_tokenizer(weights, {}, rows=BASE + 1)
        assert not caplog.records
        find_tokenizer(weights, {}, rows=BASE + 5)
    assert f"has {BASE + 1} entries and the text encoder knows {BASE + 5}" in caplog.text


@pytest.mark.parametrize("package", ["tokenizers", "sentencepiece"])
def test_a_missing_library_is_named(monkeypatch, small_json, package):
    data = small_json if package == "tokenizers" else b"\n\x0b"
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(HappyHorseError, match=f"needs the Python package '{package}'.*pip install {package}"):
        load_tokenizer(data)


# The real vocabulary, through both libraries.

STRUCTURED = """\
A woman in a grey coat sits by the window of a small kitchen, her shoulders still. She looks up and says, \
"{line}", in a low, even voice, then closes her mouth and waits.

Dialogue:
<Woman in grey coat, {language}>: "{line}"

Background Sound:
<No prominent background sound>"""

LINES = {
    "Mandarin": [
        "今 天 的 雨 下 了 一 整 天 。",
        "你 先 别 急 ， 听 我 说 完 。",
        "他說：「明天再見！」",
        "我们在二十三号出发。",
    ],
    "Cantonese": [
        "你 食 咗 飯 未 呀 ？",
        "我 哋 聽 日 先 至 去 啦 。",
        "佢哋嗰邊好靚㗎嘛",
        "唔 該 畀 杯 凍 檸 茶 我 𡃉 。",
    ],
    "English": [
        "We'll be home before it's dark.",
        "Don't — please — say that again…",
        "Half past 7, O'Neill?",
    ],
    "Japanese": [
        "お は よ う ご ざ い ま す 。",
        "駅 ま で 歩 き ま し ょ う か 。",
        "それは『嘘』でしょう？",
        "ﾊﾝｶｸとｶﾅ",
    ],
    "Korean": ["오 늘 은 비 가 와 요 .", "저 기 요 , 잠 깐 만 요 !", "뭐라고요? 다시 말해 줘요.", "뷁 쀍 뛟"],
    "French": ["Où est passé l'été ?", "« Ça suffit », dit-elle.", "Un cœur naïf, déçu mais têtu."],
    "German": [
        "Größe ist nicht alles, weißt du?",
        "„Übermorgen“, sagte er.",
        "Die Straße führt über den Fluß.",
    ],
}

ODD = [
    "two  spaces,   three,    four",
    "  leading and trailing  ",
    "one\nline\n\nthen\n\n\nthree\n \n end\n",
    "tab\tand\t\ttabs\t\t\t.",
    "carriage\r\nreturn\rs",
    "\n",
    " ",
    "\t",
    "😀 👩‍👩‍👧‍👦 🏳️‍🌈 🇫🇷 👍🏽",
    "𓀀 𝔊𝔬𝔱𝔥𝔦𝔠 ⸘ ꙮ 𪚥 ᚠᛇᚻ",
    "𡃉 嚹 𠻺 𠸏 𠺢 揦",
    "각 한글 é ñ ü",
    "zero\u200bwidth\u200djoin\ufeffer and nb\u00a0space\u3000wide",
    "Ｆｕｌｌ　ｗｉｄｔｈ １２３！",
    "\u201cquotes\u201d \u2018single\u2019 \u00abguillemets\u00bb \u300ccorner\u300d \"plain\" 'plain'",
    # Two and more U+2581 beside a space are the one known difference: tokenizers cuts such runs out before it
    # writes spaces as U+2581, sentencepiece after.
    "▁ a literal ▁ bar▁ a▁▁b",
    "418亿 2030年 3.14 1,000,000 50% $5 €6 #7 @8",
    "ALLCAPS CamelCase snake_case kebab-case e.g. i.e.",
    "\x00\x01\x07\x1f\x7f",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "-" * 70 + "=" * 33 + "\n" * 40 + " " * 37 + "\t" * 35,
    "Привет, мир. שלום עולם. مرحبا. नमस्ते สวัสดี",
    "<b>bold</b> <i>not</i> <h1>head</h1> <table>",
    "<mask> <unused5> [@BOS@] <2mass>",
    "<0x41> <0x0A> <0xFF>",
    "<No prominent background sound>",
]

LOOKALIKES = [
    "<eos>",
    "<bos>Hello<eos>",
    "a <pad> b<pad><pad>",
    "<unk> <unk>",
    "<start_of_turn>user\nHello<end_of_turn>\n",
    "say <end_of_turn> and <start_of_turn>",
    "<<start_of_turn>> <start_of_turn <_of_turn>",
    "<|endoftext|> <s> </s> [INST]",
]

TEXTS = [
    *(line for lines in LINES.values() for line in lines),
    *(STRUCTURED.format(language=language, line=lines[0]) for language, lines in LINES.items()),
    *ODD,
    *LOOKALIKES,
]


@pytest.fixture(scope="session")
def gemma_json():
    """The bytes of Gemma's tokenizer.json."""
    path = os.environ.get("HAPPYHORSE_GEMMA_TOKENIZER")
    if not path:
        pytest.skip(
            "$HAPPYHORSE_GEMMA_TOKENIZER names no tokenizer.json (tests/fetch_gemma_tokenizer.sh gets one)"
        )
    return Path(path).read_bytes()


@pytest.fixture(scope="session")
def gemma(gemma_json):
    return load_tokenizer(gemma_json)


@pytest.fixture(
    scope="session", params=[True, False], ids=["turn markers are words", "turn markers are control"]
)
def gemma_sentencepiece(gemma_json, request):
    return load_tokenizer(sentencepiece_model(json.loads(gemma_json), turn_markers_are_words=request.param))


def test_both_libraries_agree_on_gemma(gemma, gemma_sentencepiece):
    assert len(TEXTS) >= 60
    assert gemma.vocab_size == gemma_sentencepiece.vocab_size == 256_000
    differ = [text for text in TEXTS if gemma.encode(text) != gemma_sentencepiece.encode(text)]
    assert not differ


def test_both_libraries_name_the_same_loss(gemma, gemma_sentencepiece):
    for text in TEXTS:
        for keep in (1, 2, 3, 5, 8):
            lost = gemma.tail(text, keep)
            assert lost == gemma_sentencepiece.tail(text, keep), (text, keep)
            assert text.replace("▁", " ").endswith(lost), (text, keep)


def test_gemma_gets_no_control_tokens(gemma):
    """Ids 0 to 3 and the turn markers 106 and 107 are never made from text."""
    for text in TEXTS:
        assert not {0, 1, 2, 3, 106, 107} & set(gemma.encode(text)), text


def test_known_gemma_ids(gemma):
    assert gemma.encode("Hello world") == [4521, 2134]
    assert gemma.encode("a  b") == [235250, 139, 235268]
    assert gemma.encode("\n\n") == [109]
    assert gemma.encode("𠸏") == [457, 377, 401, 360]  # four bytes


def test_default_negative_fits(gemma):
    assert len(gemma.encode(default_negative())) <= 640
