"""The demo set's vocabulary: for each language a few words and the vowel of each of their syllables.

The vowels are near what the words sound like to an English ear, no more: they drive a drawn mouth and a humming
voice. Chinese, Japanese and Korean words have a space between their characters, as the prompt format asks.
"""

VOWELS = "aeiou"

WORDS: dict[str, dict[str, str]] = {
    "English": {
        "hello": "eo",
        "moon": "u",
        "go": "o",
        "see": "i",
        "car": "a",
        "yes": "e",
        "mama": "aa",
        "baby": "ei",
        "radio": "eio",
        "yahoo": "au",
    },
    "German": {
        "ja": "a",
        "so": "o",
        "du": "u",
        "nie": "i",
        "weg": "e",
        "hallo": "ao",
        "oma": "oa",
        "kino": "io",
        "leben": "ee",
        "musik": "ui",
    },
    "French": {
        "oui": "ui",
        "la": "a",
        "ici": "ii",
        "beau": "o",
        "vous": "u",
        "mes": "e",
        "merci": "ei",
        "salut": "au",
        "café": "ae",
        "cinéma": "iea",
    },
    "Mandarin": {
        "我": "o",
        "你": "i",
        "大": "a",
        "书": "u",
        "车": "e",
        "妈 妈": "aa",
        "喝 茶": "ea",
        "西 瓜": "ia",
        "火 车": "oe",
        "出 发": "ua",
    },
    "Cantonese": {
        "哥 哥": "oo",
        "佢": "u",
        "嘅": "e",
        "知": "i",
        "爸 爸": "aa",
        "飛 機": "ei",
        "唔 好": "uo",
        "冇": "o",
        "花": "a",
        "士 多": "io",
    },
    "Japanese": {
        "さ く ら": "aua",
        "ね こ": "eo",
        "い ぬ": "iu",
        "は な": "aa",
        "そ ら": "oa",
        "う み": "ui",
        "え き": "ei",
        "ほ し": "oi",
        "め": "e",
        "ひ": "i",
    },
    "Korean": {
        "나 무": "au",
        "노 래": "oe",
        "비": "i",
        "우 유": "uu",
        "네": "e",
        "바 다": "aa",
        "고 기": "oi",
        "기 차": "ia",
        "소": "o",
        "누 나": "ua",
    },
}
LANGUAGES = tuple(WORDS)


def vowels_of(line: str, language: str) -> str:
    """The vowels of a spoken line, syllable by syllable; words that are not in the vocabulary have none.

    Greedy from the left, because a word of several characters has spaces inside it.
    """
    words, parts, vowels = WORDS[language], line.split(), ""
    while parts:
        for count in range(min(3, len(parts)), 0, -1):
            word = " ".join(parts[:count])
            if word in words:
                vowels += words[word]
                break
        else:
            count = 1
        parts = parts[count:]
    return vowels
