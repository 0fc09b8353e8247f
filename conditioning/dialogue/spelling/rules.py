"""The parts that readings of numbers are made of, in any language: a rule, a number, a grammar's tables.

A language's rules are tried in their order and the first that reads a stretch of text keeps it. A rule that is
not certain returns None: that text stays as it is. Patterns see the text with full-width signs made ordinary
(``plain_widths``), character for character, and repeat nothing without bound that could start at every place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import gcd

LARGEST = 10**15  # numbers from here on are left: nobody says them
SPACE = "[ \u202f]?"
_SIGNS = "@#^_\\\\*|<>=+$€£¥₩№§%°¢½-¾⅐-⅞"  # beside these a number is part of something else
_BEGINS = "(?=[-+0-9½-¾⅐-⅞$€£¥₩¢HUTt(])"  # first, for speed: US$, "the 3rd of May"
_AFTER = (
    rf"(?!{SPACE}[%‰°℃℉$€£¥₩¢㎞㎏㎝㎜㎡㎎])(?![.,:'’]{SPACE}?[0-9$€£¥₩½-¾⅐-⅞])(?![-–~][-0-9.,$€£¥₩½-¾⅐-⅞])"
)
_BEFORE = r"(?<!(?<!\.)\.)(?<![\W\d_]-)(?<!\A-)(?<![%°℃℉€$£¥₩][–~:'’,])"
WESTERN_LEFT = rf"{_BEGINS}(?<![\w{_SIGNS}])(?<![0-9][.,:/'’–~-])(?<![^\W\d_][./]){_BEFORE}"
WESTERN_RIGHT = rf"(?![\w{_SIGNS}/²³]){_AFTER}"
WESTERN_AFTER_UNIT = rf"(?![\w{_SIGNS}/²³'’])"
# Han, kana and Hangul are word characters too, and stand beside numbers without a space.
EASTERN_LEFT = rf"{_BEGINS}(?<![A-Za-z0-9{_SIGNS}])(?<![0-9A-Za-z][.,:/'’–~-]){_BEFORE}(?<! -)"
EASTERN_RIGHT = rf"(?![A-Za-z0-9{_SIGNS}/²³]){_AFTER}"
EASTERN_AFTER_UNIT = rf"(?![A-Za-z0-9{_SIGNS}/²³'’])"

NUMERAL = r"(?=[IVX])X{0,3}(?:IX|IV|V?I{0,3})"  # Roman, to XXXIX
ROMAN = rf"{NUMERAL}(?!\w)"

VULGAR = {
    "½": (1, 2), "⅓": (1, 3), "⅔": (2, 3), "¼": (1, 4), "¾": (3, 4), "⅕": (1, 5), "⅖": (2, 5), "⅗": (3, 5),
    "⅘": (4, 5), "⅙": (1, 6), "⅚": (5, 6), "⅛": (1, 8), "⅜": (3, 8), "⅝": (5, 8), "⅞": (7, 8),
}  # fmt: skip

_WIDTHS = str.maketrans(
    "０１２３４５６７８９％＋－−．／：～〜∼￥￦￡＄＃＆＝\u00a0\u2009\u2007",
    "0123456789%+--./:~~~¥₩£$#&=\u202f\u202f\u202f",
)


def plain_widths(text: str) -> str:
    """``text`` with full-width digits and signs made ordinary and fixed spaces made one kind; as long as it was."""
    return text.translate(_WIDTHS)


@dataclass(frozen=True, slots=True)
class Rule:
    """What is found, what it is called, and how it is said; ``read`` returns None where that is not certain.

    Where the pattern has a group ``it``, only that is replaced and the rest is what must stand around it.
    """

    reason: str
    pattern: re.Pattern[str]
    read: Callable[[re.Match[str]], str | None]
    needs: frozenset[str] = frozenset()  # a text without any of these cannot match


@dataclass(frozen=True, slots=True)
class Number:
    """A number as written: ``-1,234.50`` in English is (True, 1234, "50")."""

    negative: bool
    whole: int
    fraction: str

    @property
    def value(self) -> float:
        size = float(f"{self.whole}.{self.fraction or 0}")
        return -size if self.negative else size


@dataclass(frozen=True, slots=True)
class Unit:
    """What is counted: templates with ``{}`` for the number, and whether the noun is feminine."""

    one: str
    many: str
    feminine: bool = False


@dataclass(frozen=True, slots=True)
class Money:
    """A currency and its hundredth part; ``cent`` is None where there is none."""

    unit: Unit
    cent: Unit | None = None


@dataclass(frozen=True, slots=True)
class Grammar:
    """What the readings that all languages share need to know of one."""

    shape: str  # pattern of an unsigned number
    separators: str  # characters between its groups of digits
    point: str  # before its decimals
    left: str  # what may not stand before a number, and after
    right: str
    after_unit: str
    say: Callable[[Number, Unit | None], str]  # in words, agreeing with the unit
    is_one: Callable[[Number], bool]
    year: Callable[[int], str]
    digits: Callable[[str], str]  # one by one
    price: Callable[[Number, Money, str], str | None]  # the last is a scale such as "million"
    fraction: Callable[[int, int, int], str]  # whole, numerator, denominator
    operator: Callable[[str, str], str]  # the sign, and the words before it
    units: Mapping[str, Unit]
    money: Mapping[str, Money]
    scales: Mapping[str, str]
    marks: Mapping[str, str]  # "№": "number {}"
    span: str  # "{} to {}"
    ratio: str
    ampersand: str = ""
    attach: Callable[[str, str], str] = lambda template, words: template.format(words)

    def number(self, token: str) -> Number | None:
        """``token`` as a number; None with a zero in front, or from LARGEST on."""
        bare = token.lstrip("-").translate({ord(mark): None for mark in self.separators})
        whole, _, fraction = bare.partition(self.point)
        if (
            not whole
            or len(whole) >= len(str(LARGEST))
            or len(fraction) > 12
            or (len(whole) > 1 and whole[0] == "0")
        ):
            return None
        return Number(token.startswith("-"), int(whole), fraction)

    def count(self, number: Number, unit: Unit) -> str:
        """``number`` with its unit, in words."""
        return self.attach(unit.one if self.is_one(number) else unit.many, self.say(number, unit))


def any_of(words: Iterable[str]) -> str:
    """A pattern for any of ``words``, the longest first."""
    return "(?:" + "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True)) + ")"


def roman(numeral: str) -> int:
    """The value of a numeral of ROMAN's form."""
    values = [{"I": 1, "V": 5, "X": 10}[letter] for letter in numeral]
    return sum(-v if v < after else v for v, after in zip(values, [*values[1:], 0], strict=True))


def is_year(token: str) -> bool:
    """Whether ``token`` has the form of a year from 1100 to 2099."""
    return len(token) == 4 and token.isdecimal() and 1100 <= int(token) < 2100


def compiled(readings: Iterable[tuple]) -> tuple[Rule, ...]:
    """Rules from (reason, pattern, reading) or (reason, pattern, reading, characters of which one is needed)."""
    return tuple(
        Rule(reason, re.compile(pattern), read, frozenset("".join(needs)))
        for reason, pattern, read, *needs in readings
    )


def shared(g: Grammar) -> tuple[Rule, ...]:
    """Sums, fractions, ranges, money, measures, marked numbers and ratios."""
    plain, signed = f"(?:{g.shape})", f"-?(?:{g.shape})"
    money, scale = any_of(g.money), any_of(g.scales)
    token = re.compile(rf"[-+×÷=]|{plain}")

    def total(found: re.Match[str]) -> str | None:
        parts = token.findall(found[0])
        if "-" in parts and "=" not in parts:
            return None  # a range, or a dash
        words = ""
        for part in parts:
            if part in "-+×÷=":
                words += g.operator(part, words)
            elif (number := g.number(part)) is None:
                return None
            else:
                words += g.say(number, None)
        return words

    def vulgar(found: re.Match[str]) -> str:
        return g.fraction(int(found["whole"] or 0), *VULGAR[found["part"]])

    def slashed(found: re.Match[str]) -> str | None:
        top, bottom = int(found["top"]), int(found["bottom"])
        if not 0 < top < bottom or gcd(top, bottom) > 1:
            return None  # a date, a score
        return g.fraction(int(found["whole"] or 0), top, bottom)

    def spanning(found: re.Match[str]) -> str | None:
        first, last = g.number(found["first"]), g.number(found["last"])
        sign, unit = found["sign"] or found["sign2"] or found["coin"], found["unit"]
        if (
            first is None
            or last is None
            or first.value >= last.value
            or (found["first_unit"] or unit) != unit
        ):
            return None
        if found["sign2"] and not found["sign"]:
            return None
        if sign and (first.fraction or last.fraction):
            both = g.price(first, g.money[sign], ""), g.price(last, g.money[sign], "")
            return None if None in both else g.span.format(*both)
        if sign or unit:
            counted = g.money[sign].unit if sign else g.units[unit]
            return g.attach(counted.many, g.span.format(g.say(first, counted), g.say(last, counted)))
        if is_year(found["first"]) and is_year(found["last"]):
            return g.span.format(g.year(first.whole), g.year(last.whole))
        return g.span.format(g.say(first, None), g.say(last, None))

    def priced(found: re.Match[str]) -> str | None:
        number = g.number((found.groupdict().get("minus") or "") + found["n"])
        return number and g.price(number, g.money[found["sign"]], g.scales.get(found["scale"] or "", ""))

    def measured(found: re.Match[str]) -> str | None:
        number = g.number(found["n"])
        return number and g.count(number, g.units[found["unit"]])

    def marked(found: re.Match[str]) -> str | None:
        number = g.number(found["n"])
        return number and g.marks[found["mark"]].format(g.say(number, None))

    def proportion(found: re.Match[str]) -> str | None:
        first, last = g.number(found["first"]), g.number(found["last"])
        return (
            None if first is None or last is None else g.ratio.format(g.say(first, None), g.say(last, None))
        )

    coins = "".join(sign[-1] for sign in g.money)
    unit = rf"(?P<unit>{any_of(g.units)})"
    end = rf"(?:{SPACE}(?:{unit}|(?P<coin>{money})){g.after_unit}|{g.right})"
    readings = [
        ("read as a sum", rf"{g.left}{plain}(?:{SPACE}[-+×÷]{SPACE}{plain}){{1,4}}(?:{SPACE}={SPACE}{plain})?{g.right}", total, "+×÷="),
        ("read as a fraction", rf"{g.left}(?:(?P<whole>[1-9][0-9]{{0,3}}) ?)?(?P<part>[{''.join(VULGAR)}]){g.right}", vulgar, "".join(VULGAR)),
        ("read as a fraction", rf"{g.left}(?:(?P<whole>[1-9][0-9]{{0,2}}) )?(?P<top>[0-9])/(?P<bottom>[2-9]){g.right}", slashed, "/"),
        (
            "read as a range",
            rf"{g.left}(?P<sign>{money})?(?P<first>{plain})(?:{SPACE}(?P<first_unit>[%°]))?{SPACE}[-–~]{SPACE}"
            rf"(?P<sign2>{money})?(?P<last>{plain}){end}",
            spanning,
            "-–~",
        ),
        (
            "read as money",
            rf"{g.left}(?P<minus>-?)(?P<sign>{money}){SPACE}(?P<n>{plain})(?:{SPACE}(?P<scale>{scale}))?{g.right}",
            priced,
            coins,
        ),
        (
            "read as money",
            rf"{g.left}(?P<n>{signed})(?:{SPACE}(?P<scale>{scale}))?{SPACE}(?P<sign>{money}){g.after_unit}",
            priced,
            coins,
        ),
        ("read as a percentage", rf"{g.left}(?P<n>{signed}){SPACE}(?P<unit>[%‰]){g.after_unit}", measured, "%‰"),
        ("read as a measure", rf"{g.left}(?P<n>{signed}){SPACE}{unit}{g.after_unit}", measured),
        ("read as a number", rf"(?<![\w#]){any_of(g.marks).replace('(?:', '(?P<mark>', 1)}{SPACE}(?P<n>[0-9]+){g.right}", marked, "".join(g.marks)),
        ("read as a ratio", rf"{g.left}(?P<first>[0-9]{{1,3}}):(?P<last>[0-9]{{1,3}}){g.right}", proportion, ":"),
    ]  # fmt: skip
    return compiled(readings)


def plain(g: Grammar, but: str = "") -> tuple[Rule, ...]:
    """What is left when nothing says more about a number: digits after a zero, decimals, whole numbers, ``&``.

    ``but`` is a lookahead against whole numbers that stay as they are.
    """

    def spelled(found: re.Match[str]) -> str:
        return g.digits(found[0])

    def said(found: re.Match[str]) -> str | None:
        number = g.number(found[0])
        return number and g.say(number, None)

    whole = rf"{g.left}{but}-?(?:{g.shape}){g.right}"
    return compiled(
        [
            ("read digit by digit", rf"{g.left}0[0-9]{{1,14}}{g.right}", spelled),
            (
                "read as a decimal number",
                rf"{g.left}-?[0-9]{{1,15}}{re.escape(g.point)}[0-9]{{1,12}}{g.right}",
                said,
            ),
            ("read as a number", whole, said),
            *([("read as a word", r"(?<=[\s])&(?=[\s])", lambda found: g.ampersand)] if g.ampersand else []),
        ]
    )
