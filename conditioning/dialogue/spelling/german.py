"""Numbers in German words: ones before tens, written together, with ein, eine and the endings that a date takes."""
# ruff: noqa: SIM905 - rows of words are easier to read and to correct than lists of quoted ones

from __future__ import annotations

import re
from functools import cache

from .rules import (
    ROMAN,
    WESTERN_AFTER_UNIT,
    WESTERN_LEFT,
    WESTERN_RIGHT,
    Grammar,
    Money,
    Number,
    Rule,
    Unit,
    compiled,
    plain,
    roman,
    shared,
)

SMALL = (
    "null eins zwei drei vier fünf sechs sieben acht neun zehn elf zwölf dreizehn vierzehn fünfzehn sechzehn "
    "siebzehn achtzehn neunzehn"
).split()
TENS = "- - zwanzig dreißig vierzig fünfzig sechzig siebzig achtzig neunzig".split()
POWERS = (
    (10**12, "Billion", "Billionen"),
    (10**9, "Milliarde", "Milliarden"),
    (10**6, "Million", "Millionen"),
)
IRREGULAR = {1: "erst", 3: "dritt", 7: "siebt", 8: "acht"}
MONTHS = "Januar Februar März April Mai Juni Juli August September Oktober November Dezember".split()
MONTH = rf"(?P<month>{'|'.join(MONTHS)}|Jänner)"
NUMBERED = "Kapitel Teil Band Akt Klasse Phase Stufe Typ".split()
KINGS = "Ludwig Heinrich Friedrich Wilhelm Karl Otto Leopold Franz Johannes Paul Pius Benedikt Georg Richard Philipp Napoleon Ramses".split()
QUEENS = "Elisabeth Elizabeth Katharina Margarethe".split()
# What is often counted by "1" in dialogue; before other nouns nobody can be sure of ein, eine or einen.
FEMININE = (
    "Minute Sekunde Stunde Woche Million Milliarde Billion Tonne Person Frau Nacht Seite Flasche Tasse Frage Meile "
    "Rose Chance Stimme Sache Idee Zeile Etage Runde Stufe Portion Kugel Karte Katze Uhrzeit"
).split()
OTHER = (
    "Uhr Prozent Promille Euro Cent Dollar Pfund Yen Won Meter Kilometer Zentimeter Millimeter Kilo Kilogramm "
    "Gramm Liter Milliliter Grad Jahr Kind Bier Mal Watt Volt Hertz Gigabyte Megabyte Quadratmeter"
).split()
# Nouns that a bare ordinal stands before: "1. Platz" is "erster Platz".
RANKED = {
    "Platz": "er", "Stock": "er", "Teil": "er", "Advent": "er", "Geburtstag": "er", "Weltkrieg": "er", "Tag": "er",
    "Akt": "er", "FC": "er", "Weihnachtstag": "er", "Klasse": "e", "Etage": "e", "Runde": "e", "Liga": "e",
    "Woche": "e", "Stunde": "e", "Chance": "e", "Mal": "es", "Kapitel": "es", "Jahrhundert": "es", "Jahr": "es",
    "Semester": "es",
}  # fmt: skip
# The article's or the preposition's word decides the ending: "der dritte Mai", "am dritten Mai".
WEAK_E = "der die das".split()
WEAK_EN = "am im vom zum zur beim dem den des dieser diesem diesen jedem jeden ab seit".split()
INTO_DATIVE = (
    "an auf aus bei hinter in mit nach neben seit unter von vor zu zwischen während wegen trotz".split()
)


def cardinal(n: int, one: str = "eins") -> str:
    """``n`` in words, written together below a million; ``one`` is how a 1 that stands alone is said."""
    if n < 0:
        return f"minus {cardinal(-n, one)}"
    if n < 10**6:
        return one if n == 1 else _together(n)
    power, single, many = next(row for row in POWERS if n >= row[0])
    count, rest = divmod(n, power)
    head = f"eine {single}" if count == 1 else f"{_together(count)} {many}"
    return f"{head} {cardinal(rest)}" if rest else head


def _together(n: int, last: bool = True) -> str:
    if n < 20:
        return "ein" if n == 1 and not last else SMALL[n]
    if n < 100:
        tens, ones = divmod(n, 10)
        return (f"{_together(ones, False)}und" if ones else "") + TENS[tens]
    hundreds = n < 1000
    count, rest = divmod(n, 100 if hundreds else 1000)
    return f"{_together(count, False)}{'hundert' if hundreds else 'tausend'}{_together(rest, last) if rest else ''}"


def ordinal(n: int, ending: str = "e") -> str:
    """``n`` as an ordinal with its ending: "dritte", "dritten"."""
    tail = n % 100
    if tail in IRREGULAR:
        head = _together(n - tail) if n > tail else ""
        return head + IRREGULAR[tail] + ending
    return f"{_together(n)}{'t' if 0 < tail < 20 else 'st'}{ending}"


def year(n: int) -> str:
    """``n`` as a year: by hundreds from 1100 to 1999."""
    if 1100 <= n < 2000:
        return f"{SMALL[n // 100]}hundert{_together(n % 100) if n % 100 else ''}"
    return cardinal(n)


def digits(text: str) -> str:
    """Digits one by one, in groups with a comma between."""
    return ", ".join(" ".join(SMALL[int(digit)] for digit in group) for group in re.findall(r"\d+", text))


def say(number: Number, unit: Unit | None = None) -> str:
    """``number`` in words, ein or eine before its unit; decimals one by one."""
    minus = "minus " if number.negative else ""
    if number.fraction:
        return f"{minus}{cardinal(number.whole)} Komma {' '.join(SMALL[int(digit)] for digit in number.fraction)}"
    one = "eins" if unit is None else "eine" if unit.feminine else "ein"
    return minus + cardinal(number.whole, one)


def _is_one(number: Number) -> bool:
    return number.whole == 1 and not number.fraction


def _price(number: Number, money: Money, scale: str) -> str:
    if scale:
        single = number.whole == 1 and not number.fraction
        one, many = scale.split("/")
        return money.unit.many.format(f"eine {one}" if single else f"{say(number)} {many}")
    if len(number.fraction) != 2 or money.cent is None:
        return GRAMMAR.count(number, money.unit)
    cents = int(number.fraction)
    if not number.whole and cents:
        return ("minus " if number.negative else "") + money.cent.many.format(cardinal(cents, "ein"))
    whole = GRAMMAR.count(Number(number.negative, number.whole, ""), money.unit)
    return f"{whole} {cardinal(cents)}" if cents else whole


def _fraction(whole: int, top: int, bottom: int) -> str:
    if bottom == 2:
        return f"{cardinal(whole, 'ein')}einhalb" if whole else "ein halb"
    name = "Drittel" if bottom == 3 else f"{ordinal(bottom, 'el')}".capitalize()
    part = f"{cardinal(top, 'ein')} {name}"
    return f"{cardinal(whole)} {part}" if whole else part


def _noun(one: str, many: str = "", feminine: bool = False) -> Unit:
    return Unit(f"{{}} {one}", f"{{}} {many or one}", feminine)


_CENT = _noun("Cent")
_MONEY = {
    "€": Money(_noun("Euro"), _CENT),
    "$": Money(_noun("Dollar"), _CENT),
    "US$": Money(_noun("US-Dollar"), _CENT),
    "£": Money(_noun("Pfund"), _noun("Penny", "Pence")),
    "¥": Money(_noun("Yen")),
    "₩": Money(_noun("Won")),
}
_UNITS = {
    "%": _noun("Prozent"), "‰": _noun("Promille"), "km": _noun("Kilometer"), "m": _noun("Meter"),
    "cm": _noun("Zentimeter"), "mm": _noun("Millimeter"), "kg": _noun("Kilogramm"), "g": _noun("Gramm"),
    "mg": _noun("Milligramm"), "t": _noun("Tonne", "Tonnen", True), "l": _noun("Liter"), "L": _noun("Liter"),
    "ml": _noun("Milliliter"), "km/h": _noun("Kilometer pro Stunde"), "m/s": _noun("Meter pro Sekunde"),
    "°C": _noun("Grad Celsius"), "℃": _noun("Grad Celsius"), "°F": _noun("Grad Fahrenheit"), "°": _noun("Grad"),
    "m²": _noun("Quadratmeter"), "qm": _noun("Quadratmeter"), "km²": _noun("Quadratkilometer"),
    "m³": _noun("Kubikmeter"), "h": _noun("Stunde", "Stunden", True), "Std.": _noun("Stunde", "Stunden", True),
    "min": _noun("Minute", "Minuten", True), "Min.": _noun("Minute", "Minuten", True),
    "s": _noun("Sekunde", "Sekunden", True), "Sek.": _noun("Sekunde", "Sekunden", True),
    "Mio.": _noun("Million", "Millionen", True), "Mrd.": _noun("Milliarde", "Milliarden", True),
    "MB": _noun("Megabyte"), "GB": _noun("Gigabyte"), "TB": _noun("Terabyte"), "Hz": _noun("Hertz"),
    "kHz": _noun("Kilohertz"), "MHz": _noun("Megahertz"), "GHz": _noun("Gigahertz"), "W": _noun("Watt"),
    "kW": _noun("Kilowatt"), "kWh": _noun("Kilowattstunde", "Kilowattstunden", True), "V": _noun("Volt"),
    "PS": _noun("PS"),
}  # fmt: skip
_SIGNS = {"+": " plus ", "-": " minus ", "×": " mal ", "÷": " geteilt durch ", "=": " gleich "}

GRAMMAR = Grammar(
    shape=r"[0-9]{1,3}(?:[.\u202f][0-9]{3})+(?:,[0-9]+)?|[0-9]+(?:,[0-9]+)?",
    separators=".\u202f",
    point=",",
    left=WESTERN_LEFT,
    right=WESTERN_RIGHT,
    after_unit=WESTERN_AFTER_UNIT,
    say=say,
    is_one=_is_one,
    year=year,
    digits=digits,
    price=_price,
    fraction=_fraction,
    operator=lambda sign, words: _SIGNS[sign],
    units=_UNITS,
    money=_MONEY,
    scales={
        "Million": "Million/Millionen", "Millionen": "Million/Millionen", "Mio.": "Million/Millionen",
        "Milliarde": "Milliarde/Milliarden", "Milliarden": "Milliarde/Milliarden", "Mrd.": "Milliarde/Milliarden",
    },
    marks={"№": "Nummer {}", "Nr.": "Nummer {}", "#": "Nummer {}", "§": "Paragraf {}"},
    span="{} bis {}",
    ratio="{} zu {}",
    ampersand="und",
)  # fmt: skip


def _clock(hour: str, minute: str | None) -> str | None:
    if int(hour) > 24 or int(minute or 0) > 59:
        return None
    words = f"{cardinal(int(hour), 'ein')} Uhr"
    return f"{words} {cardinal(int(minute))}" if int(minute or 0) else words


def _time(found: re.Match[str]) -> str | None:
    return _clock(found["hour"], found["minute"])


def _ending(article: str | None, before: str | None = None) -> str:
    """Of an adjective after ``article``, which follows the word ``before``; ``er`` without one, for a date."""
    if not article:
        return "er"
    if article.lower() in WEAK_EN:
        return "en"
    if article.lower() == "der" and before and (before.lower() in INTO_DATIVE or before[0].isupper()):
        return "en"  # "in der dritten Klasse", "Ende der dritten Woche"
    return "e"


def _date(found: re.Match[str]) -> str | None:
    parts = found.groupdict()
    day, month = int(parts["day"]), parts["month"]
    if not 1 <= day <= 31 or (month.isdecimal() and not 1 <= int(month) <= 12):
        return None
    words = f"{ordinal(day, _ending(parts.get('article')))} {MONTHS[int(month) - 1] if month.isdecimal() else month}"
    return f"{words} {year(int(parts['year']))}" if parts.get("year") else words


def _ordinal(found: re.Match[str]) -> str:
    return ordinal(int(found["n"]), _ending(found["article"], found["before"]))


def _ranked(found: re.Match[str]) -> str:
    return ordinal(int(found["n"]), RANKED[found["noun"]])


def _king(found: re.Match[str]) -> str:
    before, number = (found["before"] or "").lower(), roman(found["n"])
    if before in INTO_DATIVE:
        article, ending = ("der" if found["name"] in QUEENS else "dem"), "en"
    elif before in ("für", "gegen", "durch", "ohne", "um"):
        article, ending = ("die", "e") if found["name"] in QUEENS else ("den", "en")
    else:
        article, ending = ("die" if found["name"] in QUEENS else "der"), "e"
    return f"{article} {ordinal(number, ending).capitalize()}"


def _one(found: re.Match[str]) -> str | None:
    if found["noun"] is None:
        return "eins"
    return "eine" if found["noun"] in FEMININE else "ein" if found["noun"] in OTHER else None


@cache
def rules() -> tuple[Rule, ...]:
    """All readings of German, in order."""
    left, right = WESTERN_LEFT, WESTERN_RIGHT
    article = rf"(?P<article>(?i:{'|'.join(WEAK_E + WEAK_EN)}))"
    year_after = rf"(?: (?P<year>[12][0-9]{{3}}))?{right}"
    word = r"[A-Za-zÄÖÜäöüß]"
    return (
        *compiled(
            [
                ("read as a set phrase", rf"{left}24/7{right}", lambda found: "vierundzwanzig sieben"),
                (
                    "read as a telephone number",
                    rf"{left}(?:\(0[0-9]{{2,4}}\)|0[0-9]{{2,4}})[ /-][0-9]{{2,8}}(?:[ -][0-9]{{1,6}}){{0,3}}{right}",
                    lambda found: digits(found[0]),
                ),
                (
                    "read as a telephone number",
                    rf"(?<![\w+])\+[1-9][0-9]{{0,2}}(?:[ /-]\(?[0-9]{{1,8}}\)?){{1,5}}{right}",
                    lambda found: f"plus {digits(found[0])}",
                ),
                (
                    "read as a date",
                    rf"{left}(?P<year>[12][0-9]{{3}})-(?P<month>[0-9]{{2}})-(?P<day>[0-9]{{2}}){right}",
                    _date,
                ),
                (
                    "read as a date",
                    rf"\b{article} (?P<it>(?P<day>[0-9]{{1,2}})\. ?{MONTH}(?!\w){year_after})",
                    _date,
                ),
                ("read as a date", rf"{left}(?P<day>[0-9]{{1,2}})\. ?{MONTH}(?!\w){year_after}", _date),
                (
                    "read as a date",
                    rf"\b{article} (?P<it>(?P<day>[0-9]{{1,2}})\. ?(?P<month>[0-9]{{1,2}})(?:\. ?(?P<year>[12][0-9]{{3}})(?!\w)(?!\.[0-9])|(?=\.(?:\Z| [A-ZÄÖÜ]))|\.(?! ?[0-9])))",
                    _date,
                ),
                (
                    "read as a date",
                    rf"{left}(?P<day>[0-9]{{1,2}})\.(?P<month>[0-9]{{1,2}})\.(?P<year>[12][0-9]{{3}}){right}",
                    _date,
                ),
                (
                    "read as a year",
                    rf"\b(?:{'|'.join(MONTHS)}|[Jj]ahre?s?|[Ss]eit|[Bb]is|[Uu]m|[Aa]b|[Aa]nfang|[Ee]nde|[Mm]itte|[Ss]ommer|[Ww]inter|[Hh]erbst|[Ff]rühling"
                    rf"|[Ii]n|[Vv]on) (?P<it>1[1-9][0-9]{{2}}){right}(?! [A-ZÄÖÜ])",
                    lambda found: year(int(found["it"])),
                ),
                (
                    "read as a time",
                    rf"{left}(?P<hour>[0-9]{{1,2}})[:.](?P<minute>[0-5][0-9]) Uhr(?!\w)",
                    _time,
                ),
                (
                    "read as a time",
                    rf"{left}(?P<hour>[0-9]{{1,2}}) Uhr(?: (?P<minute>[0-5]?[0-9])(?! [A-ZÄÖÜ]){right})?(?!\w)",
                    _time,
                ),
                (
                    "read as a time",
                    rf"{left}(?P<hour>[0-9]{{1,2}}):(?P<minute>[0-5][0-9]){right}",
                    _time,
                    ":",
                ),
                (
                    "read as an ordinal number",
                    rf"(?:(?<!\w)(?P<before>{word}{{1,30}}) )?(?<!\w){article} (?P<it>(?P<n>[1-9][0-9]{{0,2}})\.)(?= {word})",
                    _ordinal,
                ),
                (
                    "read as an ordinal number",
                    rf"{left}(?P<it>(?P<n>[1-9][0-9]?)\.) (?P<noun>{'|'.join(RANKED)})(?!\w)",
                    _ranked,
                ),
                (
                    "read as a Roman numeral",
                    rf"(?:(?<!\w)(?P<before>{word}{{1,30}}) )?(?<!\w)(?P<name>{'|'.join(KINGS + QUEENS)}) (?P<it>(?P<n>{ROMAN})(?:\.(?= ))?)",
                    _king,
                ),
                (
                    "read as a Roman numeral",
                    rf"\b(?:{'|'.join(NUMBERED)}) (?P<it>{ROMAN})",
                    lambda found: cardinal(roman(found["it"])),
                ),
                (
                    "read as a decade",
                    rf"{left}(?P<n>(?:1[1-9]|20)?[0-9]0)er(?!\w)",
                    lambda found: None if found["n"] == "00" else f"{year(int(found['n']))}er",
                ),
                (
                    "read as a number",
                    rf"{left}(?P<n>[1-9][0-9]{{0,2}})(?:-|(?=fach|x))(?P<tail>mal|fach|x|jährig{word}{{0,2}}|stündig{word}{{0,2}}|minütig{word}{{0,2}}|tägig{word}{{0,2}})(?!\w)",
                    lambda found: (
                        cardinal(int(found["n"]), "ein") + ("mal" if found["tail"] == "x" else found["tail"])
                    ),
                ),
            ]
        ),
        *shared(GRAMMAR),
        *compiled(
            [
                (
                    "read as a number",
                    rf"{left}(?P<it>1)(?:{right}(?!\. ?[a-zäöü])(?! [A-ZÄÖÜ])| (?P<noun>[A-ZÄÖÜ]{word}{{0,30}}))(?!\w)",
                    _one,
                ),
                (
                    "read as a decimal number",
                    rf"{left}-?[0-9]{{1,9}}\.[0-9]{{1,2}}{right}",
                    lambda found: (
                        say(GRAMMAR.number(found[0].replace(".", ","))).replace("Komma", "Punkt")
                        if GRAMMAR.number(found[0].replace(".", ","))
                        else None
                    ),
                ),
            ]
        ),
        # A bare 1 that the rule above left is ein, eine or einen: the noun would have to be known.
        *plain(GRAMMAR, but=r"(?!1(?![0-9.,]))"),
    )
