"""Numbers in Japanese, in Chinese figures before their counters: 三時, 二十日, 五パーセント."""

from __future__ import annotations

import re
from functools import cache

from .han import by_myriads
from .rules import (
    EASTERN_AFTER_UNIT,
    EASTERN_LEFT,
    EASTERN_RIGHT,
    Grammar,
    Money,
    Number,
    Rule,
    Unit,
    compiled,
    plain,
    shared,
)

FIGURES = "零一二三四五六七八九"


def cardinal(n: int) -> str:
    """``n`` in words: 千万, not yet 一千万."""
    if n < 0:
        return f"マイナス{cardinal(-n)}"
    return by_myriads(n, FIGURES, "十百千", "万億兆")


def spoken(n: int) -> str:
    """``n`` as it is said: 一千万, and ゼロ by itself."""
    return re.sub(r"(?<![一-九十百])千(?=[万億兆])", "一千", cardinal(n)) if n else "ゼロ"


def digits(text: str) -> str:
    """Digits one by one, の between groups."""
    return "の".join(
        "".join("ゼロ" if digit == "0" else FIGURES[int(digit)] for digit in group)
        for group in re.findall(r"\d+", text)
    )


def say(number: Number, _: Unit | None = None) -> str:
    """``number`` in words, decimals one by one."""
    minus = "マイナス" if number.negative else ""
    if not number.fraction:
        return minus + spoken(number.whole)
    return f"{minus}{cardinal(number.whole)}点{''.join(FIGURES[int(digit)] for digit in number.fraction)}"


def _price(number: Number, money: Money, scale: str) -> str:
    if money.cent is None or scale or len(number.fraction) != 2:
        words = say(number)
        return money.unit.one.format(("一千" if scale and words == "千" else words) + scale)
    cents = int(number.fraction)
    words = (
        money.unit.one.format(say(Number(number.negative, number.whole, "")))
        if number.whole or not cents
        else ""
    )
    return words + (money.cent.one.format(cardinal(cents)) if cents else "")


def _fraction(whole: int, top: int, bottom: int) -> str:
    part = f"{cardinal(bottom)}分の{cardinal(top)}"
    return f"{cardinal(whole)}と{part}" if whole else part


def _unit(name: str, before: str = "") -> Unit:
    return Unit(f"{before}{{}}{name}", f"{before}{{}}{name}")


_CENT = _unit("セント")
_MONEY = {
    "¥": Money(_unit("円")), "$": Money(_unit("ドル"), _CENT), "US$": Money(_unit("米ドル"), _CENT),
    "€": Money(_unit("ユーロ"), _CENT), "£": Money(_unit("ポンド"), _unit("ペンス")), "₩": Money(_unit("ウォン")),
}  # fmt: skip
_UNITS = {
    symbol: _unit(name)
    for symbol, name in {
        "%": "パーセント", "‰": "パーミル", "km": "キロメートル", "㎞": "キロメートル", "m": "メートル",
        "cm": "センチメートル", "㎝": "センチメートル", "mm": "ミリメートル", "㎜": "ミリメートル", "kg": "キログラム",
        "㎏": "キログラム", "g": "グラム", "mg": "ミリグラム", "㎎": "ミリグラム", "t": "トン", "l": "リットル",
        "L": "リットル", "ml": "ミリリットル", "mL": "ミリリットル", "°C": "度", "℃": "度", "°": "度",
        "m²": "平方メートル", "㎡": "平方メートル", "km²": "平方キロメートル", "m³": "立方メートル", "h": "時間",
        "min": "分", "s": "秒", "MB": "メガバイト", "GB": "ギガバイト", "TB": "テラバイト", "Hz": "ヘルツ",
        "kHz": "キロヘルツ", "MHz": "メガヘルツ", "GHz": "ギガヘルツ", "W": "ワット", "kW": "キロワット", "V": "ボルト",
    }.items()
} | {"°F": _unit("度", "華氏"), "℉": _unit("度", "華氏"), "km/h": _unit("キロメートル", "時速"), "m/s": _unit("メートル", "秒速")}  # fmt: skip
_SIGNS = {"+": "足す", "-": "引く", "×": "掛ける", "÷": "割る", "=": "は"}

GRAMMAR = Grammar(
    shape=r"[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?",
    separators=",",
    point=".",
    left=EASTERN_LEFT,
    right=EASTERN_RIGHT,
    after_unit=EASTERN_AFTER_UNIT,
    say=say,
    is_one=lambda number: False,  # no plural
    year=cardinal,
    digits=digits,
    price=_price,
    fraction=_fraction,
    operator=lambda sign, words: _SIGNS[sign],
    units=_UNITS,
    money=_MONEY,
    scales={scale: scale for scale in ("万", "億", "千万", "百万", "十万", "兆")},
    marks={"№": "{}番", "#": "{}番"},
    span="{}から{}",
    ratio="{}対{}",
)


def _clock(hour: str, minute: str) -> str | None:
    if int(hour) > 24:
        return None
    return f"{cardinal(int(hour))}時{cardinal(int(minute)) + '分' if int(minute) else ''}"


def _time(found: re.Match[str]) -> str | None:
    return _clock(found["hour"], found["minute"])


def _times(found: re.Match[str]) -> str | None:
    both = _clock(found["hour"], found["minute"]), _clock(found["hour2"], found["minute2"])
    return None if None in both else "から".join(both)


def _date(found: re.Match[str]) -> str | None:
    month, day = int(found["month"]), int(found["day"])
    if not (1 <= month <= 12 and 1 <= day <= 31):
        return None
    return f"{cardinal(int(found['year']))}年{cardinal(month)}月{cardinal(day)}日"


@cache
def rules() -> tuple[Rule, ...]:
    """All readings of Japanese, in order."""
    left, right = EASTERN_LEFT, EASTERN_RIGHT
    clock = "(?P<hour{0}>[0-9]{{1,2}}):(?P<minute{0}>[0-5][0-9])"
    return (
        *compiled(
            [
                (
                    "read as a telephone number",
                    rf"{left}(?:0[0-9]{{1,4}}-[0-9]{{1,4}}-[0-9]{{3,4}}|0[5-9]0[0-9]{{8}}){right}",
                    lambda found: digits(re.sub(r"^(0[5-9]0)([0-9]{4})([0-9]{4})$", r"\1-\2-\3", found[0])),
                ),
                (
                    "read as a date",
                    rf"{left}(?P<year>[12][0-9]{{3}})(?P<mark>[-/.])(?P<month>[0-9]{{1,2}})(?P=mark)(?P<day>[0-9]{{1,2}}){right}",
                    _date,
                ),
                (
                    "read as a time",
                    rf"{left}{clock.format('')} ?[-–~] ?{clock.format('2')}{right}",
                    _times,
                    ":",
                ),
                ("read as a time", rf"{left}{clock.format('')}{right}", _time, ":"),
                ("read as a time", rf"{left}(?P<it>0)(?=時(?!間))", lambda found: "零"),
                ("read as a number", rf"{left}(?:1000|1,000)(?= ?[万億兆])", lambda found: "一千"),
                (
                    "read as a measure",
                    rf"(?:時速|秒速)(?P<it>(?P<n>{GRAMMAR.shape}) ?(?P<unit>km|㎞|m)(?:/h|/s)?){EASTERN_AFTER_UNIT}",
                    _speed,
                ),
                (
                    "read as a number",
                    rf"(?<![A-Za-z])[Nn][Oo]\. ?(?P<n>[0-9]{{1,6}}){right}",
                    lambda found: f"ナンバー{spoken(int(found['n']))}",
                ),
            ]
        ),
        *shared(GRAMMAR),
        *plain(GRAMMAR),
    )


def _speed(found: re.Match[str]) -> str | None:
    number = GRAMMAR.number(found["n"])
    return number and GRAMMAR.count(number, _UNITS[found["unit"]])
