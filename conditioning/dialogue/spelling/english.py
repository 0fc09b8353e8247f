"""Numbers in English words, American in dates and money: 1905 is "nineteen oh five" as a year."""
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
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
).split()
TENS = "- - twenty thirty forty fifty sixty seventy eighty ninety".split()
POWERS = ((10**12, "trillion"), (10**9, "billion"), (10**6, "million"), (1000, "thousand"))
IRREGULAR = {
    "one": "first", "two": "second", "three": "third", "five": "fifth", "eight": "eighth", "nine": "ninth",
    "twelve": "twelfth",
}  # fmt: skip
PARTS = {2: ("half", "halves"), 4: ("quarter", "quarters")}
MONTHS = "January February March April May June July August September October November December".split()
SHORT_MONTHS = {month[:3]: month for month in MONTHS if month != "May"} | {"Sept": "September"}
MONTH = rf"(?:{'|'.join(MONTHS)}|(?:{'|'.join(SHORT_MONTHS)})\b\.?)"
KINGS = "Charles Edward Elizabeth Francis Frederick George Henry James John Louis Napoleon Nicholas Paul Philip Pius Richard William Benedict Catherine Mary Ramses".split()
NUMBERED = "Act Appendix Book Chapter Episode Level Part Phase Section Stage Type Volume War Bowl".split()


def cardinal(n: int) -> str:
    """``n`` in words, with "and" before the last two digits and no commas."""
    if n < 0:
        return f"minus {cardinal(-n)}"
    if n < 20:
        return SMALL[n]
    if n < 100:
        return TENS[n // 10] + (f"-{SMALL[n % 10]}" if n % 10 else "")
    if n < 1000:
        return f"{SMALL[n // 100]} hundred" + (f" and {cardinal(n % 100)}" if n % 100 else "")
    power, word = next(row for row in POWERS if n >= row[0])
    rest = n % power
    return f"{cardinal(n // power)} {word}" + (
        f"{' and' if rest < 100 else ''} {cardinal(rest)}" if rest else ""
    )


def ordinal(n: int) -> str:
    """``n`` as an ordinal: "twenty-first"."""
    head, last = re.match(r"(.*?)([a-z]+)$", cardinal(n)).groups()
    if last in IRREGULAR:
        return head + IRREGULAR[last]
    return head + (last[:-1] + "ieth" if last.endswith("y") else last + "th")


def year(n: int) -> str:
    """``n`` as a year."""
    if not 1010 <= n < 2100 or 2000 <= n < 2010:
        return cardinal(n)
    century, rest = divmod(n, 100)
    if not rest:
        return f"{cardinal(century)} hundred"
    return f"{cardinal(century)} {f'oh {SMALL[rest]}' if rest < 10 else cardinal(rest)}"


def digits(text: str) -> str:
    """The digits of ``text`` one by one, a zero as "zero"; other characters part groups with a comma."""
    return ", ".join(" ".join(SMALL[int(digit)] for digit in group) for group in re.findall(r"\d+", text))


def say(number: Number, _: Unit | None = None) -> str:
    """``number`` in words; decimals digit by digit."""
    words = ("minus " if number.negative else "") + cardinal(number.whole)
    return (
        f"{words} point {' '.join(SMALL[int(digit)] for digit in number.fraction)}"
        if number.fraction
        else words
    )


def _is_one(number: Number) -> bool:
    return number.whole == 1 and not number.fraction


def _price(number: Number, money: Money, scale: str) -> str:
    if scale:
        return money.unit.many.format(f"{say(number)} {scale}")
    if len(number.fraction) != 2 or money.cent is None:
        return (money.unit.one if _is_one(number) else money.unit.many).format(say(number))
    cents = int(number.fraction)
    minus = "minus " if number.negative else ""
    parts = []
    if number.whole or not cents:
        parts.append(
            (money.unit.one if number.whole == 1 else money.unit.many).format(cardinal(number.whole))
        )
    if cents:
        parts.append((money.cent.one if cents == 1 else money.cent.many).format(cardinal(cents)))
    return minus + " and ".join(parts)


def _fraction(whole: int, top: int, bottom: int) -> str:
    one, many = PARTS.get(bottom, (ordinal(bottom), f"{ordinal(bottom)}s"))
    article = ("an" if one[0] in "aeiou" else "a") if whole else "one"
    part = f"{article} {one}" if top == 1 else f"{cardinal(top)} {many}"
    return f"{cardinal(whole)} and {part}" if whole else part


def _noun(one: str, many: str = "", after: str = "") -> Unit:
    return Unit(f"{{}} {one}{after}", f"{{}} {many or one + 's'}{after}")


_MONEY = {
    "$": Money(_noun("dollar"), _noun("cent")),
    "US$": Money(_noun("US dollar"), _noun("cent")),
    "HK$": Money(_noun("Hong Kong dollar"), _noun("cent")),
    "€": Money(_noun("euro"), _noun("cent")),
    "£": Money(_noun("pound"), _noun("penny", "pence")),
    "¥": Money(_noun("yen", "yen")),
    "₩": Money(_noun("won", "won")),
    "¢": Money(_noun("cent")),
}
_UNITS = {
    "%": Unit("{} percent", "{} percent"), "‰": Unit("{} per thousand", "{} per thousand"),
    "km": _noun("kilometer"), "m": _noun("meter"), "cm": _noun("centimeter"), "mm": _noun("millimeter"),
    "mi": _noun("mile"), "ft": _noun("foot", "feet"), "kg": _noun("kilogram"), "g": _noun("gram"),
    "mg": _noun("milligram"), "lb": _noun("pound"), "lbs": _noun("pound"), "oz": _noun("ounce"),
    "l": _noun("liter"), "L": _noun("liter"), "ml": _noun("milliliter"), "mL": _noun("milliliter"),
    "km/h": _noun("kilometer", after=" per hour"), "kph": _noun("kilometer", after=" per hour"),
    "mph": _noun("mile", after=" per hour"), "m/s": _noun("meter", after=" per second"),
    "°C": _noun("degree", after=" Celsius"), "℃": _noun("degree", after=" Celsius"),
    "°F": _noun("degree", after=" Fahrenheit"), "℉": _noun("degree", after=" Fahrenheit"), "°": _noun("degree"),
    "m²": _noun("square meter"), "m2": _noun("square meter"), "km²": _noun("square kilometer"),
    "m³": _noun("cubic meter"), "hrs": _noun("hour"), "h": _noun("hour"), "min": _noun("minute"),
    "sec": _noun("second"), "ms": _noun("millisecond"), "MB": _noun("megabyte"), "GB": _noun("gigabyte"),
    "TB": _noun("terabyte"), "Hz": _noun("hertz", "hertz"), "kHz": _noun("kilohertz", "kilohertz"),
    "MHz": _noun("megahertz", "megahertz"), "GHz": _noun("gigahertz", "gigahertz"), "W": _noun("watt"),
    "kW": _noun("kilowatt"), "kWh": _noun("kilowatt hour"), "V": _noun("volt"),
}  # fmt: skip
_SIGNS = {"+": " plus ", "-": " minus ", "×": " times ", "÷": " divided by ", "=": " equals "}

GRAMMAR = Grammar(
    shape=r"[0-9]{1,3}(?:[,\u202f][0-9]{3})+(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?",
    separators=",\u202f",
    point=".",
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
        "thousand": "thousand", "k": "thousand", "K": "thousand", "million": "million", "m": "million",
        "M": "million", "billion": "billion", "bn": "billion", "B": "billion", "trillion": "trillion",
    },
    marks={"№": "number {}", "#": "number {}", "§": "section {}"},
    span="{} to {}",
    ratio="{} to {}",
    ampersand="and",
)  # fmt: skip


def _clock(hour: int, minute: int, half: str | None) -> str | None:
    if hour > (12 if half else 24) or minute > 59 or (half and not hour):
        return None
    if minute:
        words = f"{cardinal(hour)} {f'oh {SMALL[minute]}' if minute < 10 else cardinal(minute)}"
    elif half:
        words = cardinal(hour)
    elif hour in (0, 24):
        words = "midnight"
    else:
        words = f"{cardinal(hour)} hundred" if hour > 12 else f"{cardinal(hour)} o'clock"
    return f"{words} {half.lower()}.m." if half else words


def _time(found: re.Match[str]) -> str | None:
    parts = found.groupdict()
    return _clock(int(parts["hour"]), int(parts.get("minute") or 0), parts.get("half"))


def _times(found: re.Match[str]) -> str | None:
    if not found["half"] and not (found["minute"] and found["minute2"]):
        return None
    last = _clock(int(found["hour2"]), int(found["minute2"] or 0), found["half"])
    first = _clock(int(found["hour"]), int(found["minute"] or 0), found["half1"] or (found["half"] and "x"))
    if first is None or last is None:
        return None
    return f"{first.removesuffix(' x.m.')} to {last}"


def _month(word: str) -> str:
    return SHORT_MONTHS.get(word.rstrip("."), word)


def _ending(year_: str | None) -> str:
    return f", {year(int(year_))}" if year_ else ""


def _month_first(found: re.Match[str]) -> str | None:
    if not 1 <= (day := int(found["day"])) <= 31:
        return None
    return f"{_month(found['month'])} {ordinal(day)}{_ending(found['year'])}"


def _day_first(found: re.Match[str]) -> str | None:
    if not 1 <= (day := int(found["day"])) <= 31:
        return None
    return f"{found['the'] or 'the '}{ordinal(day)} of {_month(found['month'])}{_ending(found['year'])}"


def _figures(found: re.Match[str]) -> str | None:
    parts = found.groupdict()
    if "a" in parts:
        a, b = int(parts["a"]), int(parts["b"])
        if a <= 12 and b <= 12 and a != b:
            return None  # the third of May here, March the fifth there
        month, day = (a, b) if a <= 12 else (b, a)
    else:
        month, day = int(parts["month"]), int(parts["day"])
    if not (1 <= month <= 12 and 1 <= day <= 31):
        return None
    return f"{MONTHS[month - 1]} {ordinal(day)}, {year(int(parts['year']))}"


def _ordinal(found: re.Match[str]) -> str | None:
    n = int(found["n"].replace(",", ""))
    due = "th" if n // 10 % 10 == 1 else {1: "st", 2: "nd", 3: "rd"}.get(n % 10, "th")
    return ordinal(n) if due == found["suffix"].lower() else None


def _decade(found: re.Match[str]) -> str:
    words = year(int(found["n"])) if len(found["n"]) == 4 else TENS[int(found["n"]) // 10]
    return (words[:-1] + "ies") if words.endswith("y") else words + "s"


def _telephone(found: re.Match[str]) -> str:
    return ("plus " if found[0].startswith("+") else "") + digits(found[0])


def _below_one(found: re.Match[str]) -> str:
    return "point " + " ".join(SMALL[int(digit)] for digit in found[0][1:])


@cache
def rules() -> tuple[Rule, ...]:
    """All readings of English, in order."""
    left, right = WESTERN_LEFT, WESTERN_RIGHT
    day, half = r"(?P<day>[0-9]{1,2})(?:st|nd|rd|th)?", r"(?P<half>[AaPp])\.?[Mm](?!\w)\.?"
    month, tail = rf"(?P<month>{MONTH})", rf"(?:,? (?P<year>[12][0-9]{{3}}))?{right}"
    fixed = {
        "24/7": "twenty-four seven",
        "9/11": "nine eleven",
        "50/50": "fifty-fifty",
        "50-50": "fifty-fifty",
    }
    counted = (
        r"(?! (?!(?:is|was|has|us|his|this|its|as|always|sometimes|perhaps|unless)\b)[a-z]+s\b)"
        r"(?! (?:people|men|women|children|feet|more|other|of|percent|million|billion|thousand|hundred)\b)"
    )
    return (
        *compiled(
            [
                (
                    "read as a set phrase",
                    rf"{left}(?:24/7|9/11|50/50|50-50){right}",
                    lambda found: fixed[found[0]],
                ),
                (
                    "read as a fraction",
                    rf"{left}(?:1/2|½)(?= (?:an?|the|of|my|your|our|his|her|their)\b)",
                    lambda found: "half",
                ),
                (
                    "read as a telephone number",
                    rf"(?<![\w+.,-])(?:\+1[ .-]?|1[ .-])?(?:\([2-9][0-9]{{2}}\) ?|[2-9][0-9]{{2}}[ .-])[0-9]{{3}}[ .-][0-9]{{4}}{right}",
                    _telephone,
                ),
                (
                    "read as a telephone number",
                    rf"(?<![\w+])\+(?:[1-9][0-9]{{0,2}}(?:[ .-]\(?[0-9]{{1,5}}\)?){{2,5}}|[0-9]{{7,15}}){right}",
                    _telephone,
                ),
                (
                    "read as a telephone number",
                    rf"{left}[2-9][0-9]{{2}}-[0-9]{{4}}{right}(?! (?!now|today|right|and|or|please|for|to|if|when|is|at)[a-z])",
                    _telephone,
                ),
                (
                    "read as a telephone number",
                    rf"\b(?:[Cc]all|[Dd]ial|[Rr]ing|[Pp]hone|[Cc]alled|[Dd]ialed) (?P<it>911|999|988|112|101|111|411|311){right}",
                    lambda found: digits(found["it"]),
                ),
                (
                    "read as a date",
                    rf"{left}(?P<year>[12][0-9]{{3}})-(?P<month>[0-9]{{2}})-(?P<day>[0-9]{{2}}){right}",
                    _figures,
                ),
                (
                    "read as a date",
                    rf"{left}(?P<a>[0-9]{{1,2}})/(?P<b>[0-9]{{1,2}})/(?P<year>[12][0-9]{{3}}){right}",
                    _figures,
                ),
                ("read as a date", rf"{left}(?P<the>[Tt]he )?{day}(?: of)? {month}(?!\w){tail}", _day_first),
                ("read as a date", rf"(?<!\w){month} {day}{tail}", _month_first),
                (
                    "read as a year",
                    rf"(?<!\w)(?:{'|'.join(MONTHS)}),? (?P<it>[12][0-9]{{3}}){right}",
                    lambda found: year(int(found["it"])),
                ),
                (
                    "read as a time",
                    rf"{left}(?P<hour>[0-9]{{1,2}})(?::(?P<minute>[0-5][0-9]))?(?: ?(?P<half1>[AaPp])\.?[Mm]\.?)? ?[-–] ?"
                    rf"(?P<hour2>[0-9]{{1,2}})(?::(?P<minute2>[0-5][0-9]))?(?: ?{half}|{right})",
                    _times,
                    "-–",
                ),
                (
                    "read as a time",
                    rf"{left}(?P<hour>[0-9]{{1,2}})(?:[:.](?P<minute>[0-5][0-9]))? ?{half}",
                    _time,
                ),
                (
                    "read as a time",
                    rf"{left}(?P<hour>[0-9]{{1,2}}):(?P<minute>[0-5][0-9])(?: o['’]clock)?{right}",
                    _time,
                    ":",
                ),
                (
                    "read as an ordinal number",
                    rf"{left}(?P<n>[0-9]{{1,3}}(?:,[0-9]{{3}}){{0,3}})(?P<suffix>st|nd|rd|th|ST|ND|RD|TH)(?!\w)",
                    _ordinal,
                ),
                ("read as a decade", r"(?<![\w.,'’-])['’]?(?P<n>[2-9]0)['’]?s(?!\w)", _decade),
                ("read as a decade", rf"{left}(?P<n>(?:1[1-9]|20)[0-9]0)['’]?s(?!\w)", _decade),
                (
                    "read as a year",
                    r"\b(?:[Ii]n|[Ss]ince|[Uu]ntil|[Tt]ill|[Bb]efore|[Aa]fter|[Bb]y|[Ff]rom|[Aa]round|[Dd]uring|[Yy]ear|[Ee]arly|[Ll]ate"
                    r"|[Cc]lass of|[Ss]ummer of|[Ww]inter of|[Ss]pring of|[Aa]utumn of|[Ff]all of|[Ee]nd of)"
                    rf" (?P<it>1[1-9][0-9]{{2}}|20[0-9]{{2}}){right}{counted}",
                    lambda found: year(int(found["it"])),
                ),
                (
                    "read as a Roman numeral",
                    rf"\b(?:{'|'.join(KINGS)}) (?P<it>(?!I\b){ROMAN})",
                    lambda found: f"the {ordinal(roman(found['it'])).capitalize()}",
                ),
                (
                    "read as a Roman numeral",
                    rf"\b(?:{'|'.join(NUMBERED)}) (?P<it>{ROMAN})(?<!(?<!War) I(?= ))",
                    lambda found: cardinal(roman(found["it"])),
                ),
            ]
        ),
        *shared(GRAMMAR),
        *compiled([("read as a decimal number", rf"(?<![\w.,:/$€£-])\.[0-9]{{1,9}}{right}", _below_one)]),
        *plain(GRAMMAR),
    )
