"""Syllables of English, French and German words, by their spelling and a table of what spelling does not tell."""

from __future__ import annotations

import re

from .syllable_exceptions import ENGLISH_EXCEPTIONS, FRENCH_EXCEPTIONS, FRENCH_SOUNDED_ENT, GERMAN_EXCEPTIONS

# English: groups of vowels, less the silent e, plus what two vowels side by side split into.
_EN_GLIDE = re.compile(r"^y(?=[aeiou])|(?<=[aeiou])y(?=[aeiou])|(?<=[qg])u(?=[aeiouy])")
_EN_GROUP = re.compile(r"[aeiouy]+")
_EN_SILENT = re.compile(
    r"[^aeiouy](?<![^aeiouy]l)e$"
    r"|[^aeiouysxzcg](?<![^aeiouy]l)(?<![cs]h)es$"
    r"|[^aeiouytd](?<![^aeiouyrl]l)ed$"
    r"|[^aeiouy](?<![^aeiouy]l)e(?:ly|less|ness|ments?|ful|fully)$"
)
_EN_SPLIT = re.compile(
    r"[aeiouy](?=ing)"
    r"|(?<![ctlsgn])i(?=a(?!ge))|[ct]i(?=at)"
    r"|(?<![tscxg])(?<![ln](?=ion))i(?=o)"
    r"|(?<![cgt])i(?=u[ms])"
    r"|(?<![cst])i(?=er(?!s?$)|en[ct])|i(?=et)|(?<=..[bdflnprstvz])i(?=e(?:rs?|st)$)"
    r"|(?<!g)u(?=a|ou|el|et|ity|i[dn]$)"
    r"|(?<!g)e(?=o(?!us)|um)|(?<=th)e(?=at(?:re|er))|[dr]e(?=as?$)|o(?=e[mt])|y(?=one$)"
    r"|r(?=e[aio])(?=e(?:al|act|app|arr|ass|int|in[vs]|o))"
    r"|(?<=^cr)e(?=at(?!ur))|(?<=^co)o(?=[pr])"
    r"|th(?=ms?$)|s(?=ms?$)"
)
_EN_COMPOUND = re.compile(
    r"^(?:some|every|there|where|more|home|house|fire|base|face|life|time|wide|ware|frame|pipe|name|like|else|guide|care"
    r"|safe|white|these|bride|grape|smoke|stage|horse|snake"
    r"|space|pine|note|take|make|wine|live|wave|game|state)"
    r"(?=[^aeioudrs-][a-z]{2})(?!ment|ness|less|ful|ly$)"
)
_EN_ENDING = re.compile(r"(n't|'[a-z]+|')$")

# French. Vowels written with several letters are one; i, ou and u before a vowel glide unless a cluster is before.
_FR_VOWEL = r"eau|oeu|œu|aou|ao[uû]|a[iîuuy]|e[iîuûy]|o[iîuûùy]|œ|[aàâäeéèêëiîïoôöuùûüÿæy]"
_FR_NUCLEUS = re.compile(
    rf"(?<![bcdfgkptv][lr])(?:i(?=[aàâeéèêoôœu])|ou(?=[aeéèêio])|u(?=[aâeéèêioy])|y(?=[aeéèêio]))(?:{_FR_VOWEL})"
    rf"|{_FR_VOWEL}"
)
_FR_SILENT_END = re.compile(r"(?<=.)(?:e|es)$")
_FR_ONE = r"(?:ch|ph|th|gn|[bcdfgjklmnpqrstvxzç])"  # letters of one consonant
# An e between two single consonants goes: sam(e)di, tell(e)ment, franch(e)ment; not re-cevoir's second.
_FR_SILENT_INSIDE = re.compile(
    rf"((?:[aéèêiouyàâîôû]{_FR_ONE}|^[dr]e[vt](?=en)|[eéèaiouyê](?:ss|ll|tt|nn|mm|pp|rr|cc|ff|[nm]{_FR_ONE})))e"
    rf"(?={_FR_ONE}[aeéèêiouyàâîôûœ])|(?<=[aiouy])()e(?=ment|r[aeo])"
)

# German. ie, ei and their like are one; a few prefixes end before a vowel.
_DE_GROUP = re.compile(r"aa|ee|oo|ou|ie|ei|ai|ey|ay|au|eu|äu|oi|oy|[aeiouyäöüéèàáóâêôûí]")
_DE_PREFIX = re.compile(
    r"^(?:(?:un)?(?:be|ge)(?=(?:ein|eil|eid|eif|end|erb|erd|ehr|ob|ur|ir|in[hn]|um|un|auf|aus|acht|ant|arb|ähn|öf|üb)))"
)
_DE_GLIDE = re.compile(r"(?:(?<=[ts])|(?<=ll))i(?=on)|(?<=q)u|(?:^|(?<=[aeiou]))y(?=[aeiou])")
_DE_SPLIT = re.compile(
    r"(?<=[aeiouäöüy][lnrdtgbmp]i)(?=en(?:s|$|isch))"
    r"|(?<=[aeiou][lrn][dtgbmk]i)(?=en(?:s|$|isch))|(?<=e)(?=um$)"
)


def english_syllables(word: str) -> int:
    """Syllables of one English word, with its apostrophes."""
    word = word.lower().replace("’", "'").strip("'")
    found = ENGLISH_EXCEPTIONS.get(word)
    if found is not None:
        return found
    ending = _EN_ENDING.search(word)
    if ending and ending.start():
        stem = word[: ending.start()]
        return english_syllables(stem) + _english_ending(stem, ending.group())
    if len(word) > 4 and word.endswith("s") and not word.endswith("ss"):
        stem = ENGLISH_EXCEPTIONS.get(word[:-1])
        if stem is not None:
            return stem + bool(re.search(r"(?:[sxz]|[cs]h|[cg]e)$", word[:-1]))
    word = _EN_GLIDE.sub("j", word)
    groups = len(_EN_GROUP.findall(word)) - bool(_EN_SILENT.search(word)) - bool(_EN_COMPOUND.match(word))
    groups += len(_EN_SPLIT.findall(word))
    return max(1, groups)


def _english_ending(stem: str, ending: str) -> int:
    if ending == "n't":
        return int(not re.search(r"(?:^(?:do|ca|wo|are|were|sha)|[aeiou]{2}|au)$", stem))
    if ending == "'s":
        return int(bool(re.search(r"(?:[sxz]|[cs]h|[cgs]e)$", stem)))
    if ending in ("'ll", "'d", "'ve"):
        return int(bool(re.search(r"[^aeiouyw]$", stem)) and not (ending == "'ve" and stem == "i"))
    return 0


def french_syllables(word: str) -> int:
    """Syllables of one French word as it is said in Paris: an e that can be silent is."""
    word = word.lower().replace("’", "'")
    found = FRENCH_EXCEPTIONS.get(word)
    if found is not None:
        return found
    head, apostrophe, tail = word.rpartition("'")
    if apostrophe:
        return (french_syllables(head) if len(head) > 3 else 0) + french_syllables(tail)
    if word.endswith("ent") and not _sounded_ent(word):
        word = word[:-3] + "e"
    if word.endswith("aies"):
        word = word[:-2]
    word = re.sub(r"(?<=[qg])u(?=[eéèêiîoa])|(?<=g)e(?=[aâoôu])", "", word)
    word = re.sub(r"(?<=[aeou])y(?=[aeéèêiou])", "ij", word)  # voyage: voi-jage
    word = re.sub(r"(?<![ou])e(?:ill(?=[aeéèêiou])|ils?$)", "éj", word)  # conseiller, soleil
    word = re.sub(r"(?<=[aeou])(?:ill(?=[aeéèêiou])|ils?$)", "j", word)  # travailler, feuille
    word = re.sub(r"qu$|(?<=[aéèiouûîy])es?$", "", word)
    if len(re.findall("[aàâeéèêëiîïoôuùûüyœ]+", word)) > 1:
        word = _FR_SILENT_END.sub("", word)
    word = _FR_SILENT_INSIDE.sub(r"\1\2", word)
    return max(1, len(_FR_NUCLEUS.findall(word)))


def _sounded_ent(word: str) -> bool:
    if word.endswith("ment"):
        return not re.fullmatch(
            r"(?:r?en|ai|dor|for|fer|affir|confir|expri|esti|consu|ani|resu|assu)+ment", word
        )
    return word in FRENCH_SOUNDED_ENT


def german_syllables(word: str) -> int:
    """Syllables of one German word."""
    word = word.lower().replace("’", "'")
    found = GERMAN_EXCEPTIONS.get(word)
    if found is not None:
        return found
    word = _DE_PREFIX.sub(lambda match: match.group() + "-", word)
    word = _DE_SPLIT.sub("-", _DE_GLIDE.sub("j", word))
    groups = _DE_GROUP.findall(word)
    return max(1, len(groups))
