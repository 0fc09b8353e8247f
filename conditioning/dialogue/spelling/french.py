"""Numbers in French words: soixante-dix, "et un", quatre-vingts and deux cents with an s only at the end."""
# ruff: noqa: SIM905 - rows of words are easier to read and to correct than lists of quoted ones

from __future__ import annotations

import re
from functools import cache

from .rules import (
    NUMERAL,
    ROMAN,
    WESTERN_AFTER_UNIT,
    WESTERN_LEFT,
    WESTERN_RIGHT,
    Grammar,
    Money,
    Number,
    Rule,
    Unit,
    any_of,
    compiled,
    plain,
    roman,
    shared,
)

SMALL = (
    "zéro un deux trois quatre cinq six sept huit neuf dix onze douze treize quatorze quinze seize dix-sept "
    "dix-huit dix-neuf"
).split()
TENS = "- - vingt trente quarante cinquante soixante soixante quatre-vingt quatre-vingt".split()
POWERS = ((10**12, "billion"), (10**9, "milliard"), (10**6, "million"))
MONTHS = "janvier février mars avril mai juin juillet août septembre octobre novembre décembre".split()
MONTH = rf"(?P<month>{'|'.join(MONTHS)})"
DEGREES = "Chapitre Partie Acte Tome Volume Livre Section Guerre".split()
KINGS = (
    "Louis Charles Henri François Napoléon Philippe Jean Paul Pie Benoît Édouard Élisabeth Elizabeth Georges "
    "Guillaume Jacques Frédéric Catherine Nicolas Ramsès Richard Léopold Albert"
).split()
# Counted often enough in dialogue to be known: "une" before these.
FEMININE = (
    "heure minute seconde fois personne femme fille année semaine journée nuit soirée matinée voiture maison page "
    "tonne balle chose place étoile pomme bière tasse bouteille question photo chance porte table ville école "
    "chambre lettre carte histoire idée raison pièce part partie erreur minute nouvelle victoire défaite main "
    "clé fleur robe vie mère sœur amie orange bougie marche salle rue"
).split()  # fmt: skip


def cardinal(n: int, feminine: bool = False) -> str:
    """``n`` in words; ``une`` at its end where it counts a feminine noun."""
    if n < 0:
        return f"moins {cardinal(-n, feminine)}"
    words = _words(n)
    return f"{words}e" if feminine and re.search(r"(?:^|[ -])un$", words) else words


def _words(n: int, last: bool = True) -> str:
    # ``last``: nothing follows, or a noun (million is one, mille is not), so vingts and cents keep their s.
    if n < 20:
        return SMALL[n]
    if n < 100:
        tens, rest = divmod(n, 10)
        if tens in (7, 9):
            rest += 10
        if not rest:
            return "quatre-vingts" if tens == 8 and last else TENS[tens]
        return f"{TENS[tens]}{' et ' if rest in (1, 11) and tens < 8 else '-'}{SMALL[rest]}"
    if n < 1000:
        hundreds, rest = divmod(n, 100)
        head = f"{SMALL[hundreds]} cent" if hundreds > 1 else "cent"
        return f"{head} {_words(rest, last)}" if rest else head + ("s" if hundreds > 1 and last else "")
    if n < 10**6:
        thousands, rest = divmod(n, 1000)
        head = f"{_words(thousands, False)} mille" if thousands > 1 else "mille"
        return f"{head} {_words(rest, last)}" if rest else head
    power, noun = next(row for row in POWERS if n >= row[0])
    count, rest = divmod(n, power)
    head = f"{_words(count)} {noun}{'s' if count > 1 else ''}"
    return f"{head} {_words(rest, last)}" if rest else head


def ordinal(n: int, feminine: bool = False) -> str:
    """``n`` as an ordinal: "premier", "vingt et unième"."""
    if n == 1:
        return "première" if feminine else "premier"
    words = _words(n, last=False)
    if words.endswith("neuf"):
        words = f"{words[:-1]}v"
    elif words.endswith("cinq"):
        words += "u"
    elif re.search(r"(?:million|milliard|billion)s$", words):
        words = words[:-1]
    return f"{words.removesuffix('e')}ième"


def digits(text: str) -> str:
    """Digits one by one, in groups with a comma between."""
    return ", ".join(" ".join(SMALL[int(digit)] for digit in group) for group in re.findall(r"\d+", text))


def say(number: Number, unit: Unit | None = None) -> str:
    """``number`` in words; up to three decimals as a number after their zeros, more one by one."""
    minus = "moins " if number.negative else ""
    if not number.fraction:
        return minus + cardinal(number.whole, bool(unit and unit.feminine))
    rest = number.fraction.lstrip("0")
    zeros = ["zéro"] * (len(number.fraction) - len(rest))
    tail = [cardinal(int(rest))] if 0 < len(rest) <= 3 else [SMALL[int(digit)] for digit in rest]
    return f"{minus}{cardinal(number.whole)} virgule {' '.join(zeros + tail)}"


def _is_one(number: Number) -> bool:
    return number.whole < 2  # 1,5 kilomètre


def _attach(template: str, words: str) -> str:
    """Un million de kilomètres, deux millions d'euros."""
    if re.search(r"(?:million|milliard|billion)s?$", words):
        template = template.replace("{} ", "{} d'" if template[3:4] in "aeiouyéh" else "{} de ", 1)
    return template.format(words)


def _price(number: Number, money: Money, scale: str) -> str:
    minus = "moins " if number.negative else ""
    if scale:
        noun = scale + ("s" if number.whole > 1 else "")
        return _attach(money.unit.many, f"{say(number)} {noun}")
    if len(number.fraction) != 2 or money.cent is None:
        return GRAMMAR.count(number, money.unit)
    cents = int(number.fraction)
    if not number.whole and cents:
        return minus + (money.cent.one if cents == 1 else money.cent.many).format(cardinal(cents))
    whole = GRAMMAR.count(Number(number.negative, number.whole, ""), money.unit)
    return f"{whole} {cardinal(cents)}" if cents else whole


def _fraction(whole: int, top: int, bottom: int) -> str:
    name = {2: "demi", 3: "tiers", 4: "quart"}.get(bottom, ordinal(bottom))
    if whole and bottom == 2:
        return f"{cardinal(whole)} et demi"
    part = f"{cardinal(top)} {name}{'s' if top > 1 and bottom != 3 else ''}"
    return f"{cardinal(whole)} et {part}" if whole else part


def _noun(one: str, many: str = "", feminine: bool = False, after: str = "") -> Unit:
    return Unit(f"{{}} {one}{after}", f"{{}} {many or one + 's'}{after}", feminine)


_CENTIME = _noun("centime")
_MONEY = {
    "€": Money(_noun("euro"), _CENTIME),
    "$": Money(_noun("dollar"), _noun("cent")),
    "US$": Money(_noun("dollar", "dollars", after=" américain"), _noun("cent")),
    "£": Money(_noun("livre", feminine=True), _noun("penny", "pence")),
    "¥": Money(_noun("yen")),
    "₩": Money(_noun("won")),
}
_UNITS = {
    "%": Unit("{} pour cent", "{} pour cent"), "‰": Unit("{} pour mille", "{} pour mille"),
    "km": _noun("kilomètre"), "m": _noun("mètre"), "cm": _noun("centimètre"), "mm": _noun("millimètre"),
    "kg": _noun("kilogramme"), "g": _noun("gramme"), "mg": _noun("milligramme"), "t": _noun("tonne", feminine=True),
    "l": _noun("litre"), "L": _noun("litre"), "cl": _noun("centilitre"), "ml": _noun("millilitre"), "mL": _noun("millilitre"),
    "km/h": _noun("kilomètre", after=" à l'heure"), "m/s": _noun("mètre", after=" par seconde"),
    "°C": _noun("degré", after=" Celsius"), "℃": _noun("degré", after=" Celsius"),
    "°F": _noun("degré", after=" Fahrenheit"), "°": _noun("degré"),
    "m²": _noun("mètre carré", "mètres carrés"), "km²": _noun("kilomètre carré", "kilomètres carrés"),
    "m³": _noun("mètre cube", "mètres cubes"), "min": _noun("minute", feminine=True),
    "s": _noun("seconde", feminine=True), "ms": _noun("milliseconde", feminine=True), "Mo": _noun("mégaoctet"),
    "Go": _noun("gigaoctet"), "To": _noun("téraoctet"), "Hz": _noun("hertz", "hertz"),
    "kHz": _noun("kilohertz", "kilohertz"), "MHz": _noun("mégahertz", "mégahertz"),
    "GHz": _noun("gigahertz", "gigahertz"), "W": _noun("watt"), "kW": _noun("kilowatt"), "V": _noun("volt"),
}  # fmt: skip
_SIGNS = {"+": " plus ", "-": " moins ", "×": " fois ", "÷": " divisé par ", "=": " égale "}

GRAMMAR = Grammar(
    shape=r"[0-9]{1,3}(?:[ \u202f][0-9]{3})+(?:,[0-9]+)?|[0-9]+(?:,[0-9]+)?",
    separators=" \u202f",
    point=",",
    left=WESTERN_LEFT + r"(?<![0-9][ \u202f])",
    right=WESTERN_RIGHT + r"(?![ \u202f][0-9])",
    after_unit=WESTERN_AFTER_UNIT,
    say=say,
    is_one=_is_one,
    year=cardinal,
    digits=digits,
    price=_price,
    fraction=_fraction,
    operator=lambda sign, words: _SIGNS[sign],
    units=_UNITS,
    money=_MONEY,
    scales={"million": "million", "millions": "million", "milliard": "milliard", "milliards": "milliard"},
    marks={"№": "numéro {}", "n°": "numéro {}", "N°": "numéro {}", "nº": "numéro {}", "#": "numéro {}", "§": "paragraphe {}"},
    span="{} à {}",
    ratio="{} à {}",
    ampersand="et",
    attach=_attach,
)  # fmt: skip


def _time(found: re.Match[str]) -> str | None:
    hour, minute = int(found["hour"]), int(found["minute"] or 0)
    if hour > 24 or minute > 59:
        return None
    words = f"{cardinal(hour, True)} heure{'s' if hour > 1 else ''}"
    return f"{words} {cardinal(minute, True)}" if minute else words


def _day(day: int) -> str:
    return "premier" if day == 1 else cardinal(day)


def _date(found: re.Match[str]) -> str | None:
    parts = found.groupdict()
    day, year_ = int(parts["day"]), parts["year"]
    month = parts["month"] if parts["month"] in MONTHS else int(parts["month"])
    if not 1 <= day <= 31 or (isinstance(month, int) and not 1 <= month <= 12):
        return None
    words = f"{_day(day)} {month if isinstance(month, str) else MONTHS[month - 1]}"
    return f"{words} {cardinal(int(year_))}" if year_ else words


def _ordinal(found: re.Match[str]) -> str | None:
    n, suffix = int(found["n"]), found["suffix"]
    feminine, plural = suffix.rstrip("s").endswith(("re", "nde")), "s" if suffix.endswith("s") else ""
    if suffix.startswith(("er", "r", "ère", "ere")) != (n == 1):
        return None
    if suffix.startswith("n"):
        return f"second{'e' if feminine else ''}{plural}" if n == 2 else None
    return ordinal(n, feminine) + plural


def _telephone(found: re.Match[str]) -> str:
    groups = re.findall(r"[0-9]+", found[0])
    # A pair is said as a number, with its zero: "zéro six, douze".
    said = [
        f"zéro {SMALL[int(group)]}" if len(group) == 2 and group[0] == "0" else cardinal(int(group))
        for group in groups
    ]
    return ("plus " if found[0].startswith("+") else "") + ", ".join(said)


def _king(found: re.Match[str]) -> str:
    return (
        "premier"
        if found["it"].startswith("I") and roman(found["it"].rstrip("er")) == 1
        else cardinal(roman(found["it"]))
    )


@cache
def rules() -> tuple[Rule, ...]:
    """All readings of French, in order."""
    left, right = GRAMMAR.left, GRAMMAR.right
    feminine = any_of(word + end for word in FEMININE for end in ("", "s"))
    number = rf"(?:{GRAMMAR.shape})"
    year = rf"(?: (?P<year>[12][0-9]{{3}}))?{right}"
    return (
        *compiled(
            [
                (
                    "read as a set phrase",
                    rf"{left}24/7{right}",
                    lambda found: "vingt-quatre heures sur vingt-quatre",
                ),
                (
                    "read as a telephone number",
                    rf"{left}0[1-9](?:[ .\u202f-][0-9]{{2}}){{4}}(?![ .\u202f-]?[0-9])(?!\w)",
                    _telephone,
                ),
                (
                    "read as a telephone number",
                    r"(?<![\w+])\+33[ \u202f][1-9](?:[ .\u202f-][0-9]{2}){4}(?![ .-]?[0-9])(?!\w)",
                    _telephone,
                ),
                (
                    "read as a date",
                    rf"{left}(?P<year>[12][0-9]{{3}})-(?P<month>[0-9]{{2}})-(?P<day>[0-9]{{2}}){right}",
                    _date,
                ),
                (
                    "read as a date",
                    rf"{left}(?P<day>[0-9]{{1,2}})[/.](?P<month>[0-9]{{1,2}})[/.](?P<year>[12][0-9]{{3}}){right}",
                    _date,
                ),
                ("read as a date", rf"{left}(?P<day>[0-9]{{1,2}})(?:er|ᵉʳ)? {MONTH}(?!\w){year}", _date),
                (
                    "read as a date",
                    rf"\b[Ll]e (?P<it>(?P<day>[0-9]{{2}})/(?P<month>0[1-9]|1[0-2])(?P<year>)){right}",
                    _date,
                ),
                (
                    "read as a time",
                    rf"{left}(?P<hour>[0-9]{{1,2}}) ?[hH] ?(?P<minute>[0-5][0-9])(?!\w)(?![.,:]?[0-9])",
                    _time,
                ),
                ("read as a time", rf"{left}(?P<hour>[0-9]{{1,2}}) ?[hH](?P<minute>)(?![\w'’/])", _time),
                (
                    "read as a time",
                    rf"{left}(?P<hour>[0-9]{{1,2}}):(?P<minute>[0-5][0-9]){right}",
                    _time,
                    ":",
                ),
                (
                    "read as an ordinal number",
                    rf"{left}(?P<n>[0-9]{{1,4}})(?P<suffix>ère|ere|er|re|ᵉʳ|ème|eme|ième|e|ᵉ|nde|nd)(?!\w)",
                    _ordinal,
                ),
                (
                    "read as an ordinal number",
                    rf"(?<!\w)(?P<it>{NUMERAL}(?:e|ème|ᵉ)) (?:siècle|arrondissement|République)",
                    lambda found: ordinal(roman(re.match("[IVX]+", found["it"])[0])),
                ),
                (
                    "read as a Roman numeral",
                    rf"\b(?:{'|'.join(KINGS)}) (?P<it>Ier|(?!I\b){ROMAN})(?!\w)",
                    _king,
                ),
                (
                    "read as a Roman numeral",
                    rf"\b(?:{'|'.join(DEGREES)}) (?P<it>{ROMAN})",
                    lambda found: cardinal(roman(found["it"])),
                ),
                # A number that names one thing has no plural: "les années quatre-vingt", "page deux cent".
                (
                    "read as a number",
                    rf"\b(?:années|page|numéro|chapitre|ligne|chambre|salle) (?P<it>[1-9][0-9]{{0,3}}){right}",
                    lambda found: _words(int(found["it"]), last=False),
                ),
                (
                    "read as a number",
                    rf"{left}(?P<it>{number})[ \u202f]{feminine}(?!\w)",
                    lambda found: (
                        (value := GRAMMAR.number(found["it"])) and say(value, _noun("", feminine=True))
                    ),
                ),
            ]
        ),
        *shared(GRAMMAR),
        *compiled(
            [
                (
                    "read as a decimal number",
                    rf"{left}-?[0-9]{{1,9}}\.[0-9]{{1,2}}{right}",
                    lambda found: (
                        (value := GRAMMAR.number(found[0].replace(".", ",")))
                        and say(value).replace("virgule", "point")
                    ),
                )
            ]
        ),
        *plain(GRAMMAR),
    )
