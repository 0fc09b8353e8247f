"""Numbers in Mandarin and Cantonese: years and telephones figure by figure, 两 (兩) before what is counted."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

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
# One character each, in both scripts; 年 月 日 号 楼 路 name rather than count and take 二, as 2月 does.
# 年 counts unless it is a school year; 月 日 号 楼 路 层 name rather than count and take 二, as 2月 does.
COUNTERS = (
    "个個位只隻条條张張本件杯瓶次天份部台臺双雙对對套场場首句段篇封口头頭匹朵根支枚粒颗顆棵片顿頓遍趟回块塊"
    "元岁歲周週家座辆輛把架间間种種倍名人斤米升克秒点點门門排碗盒袋包箱串束滴艘扇幅盏盞声聲步餐蚊万萬亿億千"
)
COUNTED = rf"(?:[{COUNTERS}]|小[时時]|分[钟鐘]|公[里斤尺]|厘米|毫米|年(?![级級代])|星期|[礼禮]拜|月份|美[元金]|[欧歐][元羅]|英[镑鎊]|港[币幣元])"


Say = Callable[[Number, Unit | None], str]
Price = Callable[[Say, Number, Money, str], str | None]


@dataclass(frozen=True, slots=True)
class Writing:
    """What differs between the two languages, or between their scripts."""

    two: str
    ten_thousand: str
    hundred_million: str
    minus: str
    point: str  # of decimals; an hour has the same word
    one_by_one: str  # the figures of a telephone number
    operators: str  # plus, minus, times, divided by, equals; a space between
    number: str  # after a number, as in 五号


SIMPLIFIED = Writing("两", "万", "亿", "负", "点", "零幺二三四五六七八九", "加 减 乘以 除以 等于", "号")
TRADITIONAL = Writing("兩", "萬", "億", "負", "點", FIGURES, "加 減 乘 除 等於", "號")


def cardinal(n: int, writing: Writing = SIMPLIFIED) -> str:
    """``n`` in words as it is written: 二千, not yet 两千."""
    if n < 0:
        return writing.minus + cardinal(-n, writing)
    words = _words(n, writing)
    return words[1:] if words.startswith("一十") else words


def _words(n: int, writing: Writing) -> str:
    if n < 10:
        return FIGURES[n]
    power, name = next(
        row
        for row in (
            (10**8, writing.hundred_million),
            (10**4, writing.ten_thousand),
            (1000, "千"),
            (100, "百"),
            (10, "十"),
        )
        if n >= row[0]
    )
    count, rest = divmod(n, power)
    # A zero is said for the places left out: 一千零一, 一万零一百.
    return (
        _words(count, writing)
        + name
        + (("零" if rest < power // 10 else "") + _words(rest, writing) if rest else "")
    )


def spoken(n: int, writing: Writing = SIMPLIFIED) -> str:
    """``n`` as it is said: 两千, 两万, 两亿."""
    large = writing.ten_thousand + writing.hundred_million
    words = cardinal(n, writing).replace("二千", f"{writing.two}千")
    return re.sub(rf"(?<![十百千])二(?=[{large}])", writing.two, words)


def _figures(text: str, names: str = FIGURES) -> str:
    return "，".join("".join(names[int(digit)] for digit in group) for group in re.findall(r"[0-9]+", text))


def _unit(name: str, before: str = "") -> Unit:
    return Unit(f"{before}{{}}{name}", f"{before}{{}}{name}")


_MEASURES = {
    "km": "公里", "㎞": "公里", "m": "米", "cm": "厘米", "㎝": "厘米", "mm": "毫米", "㎜": "毫米", "kg": "公斤",
    "㎏": "公斤", "g": "克", "mg": "毫克", "㎎": "毫克", "L": "升", "l": "升", "ml": "毫升", "mL": "毫升",
    "m/s": "米每秒", "°": "度", "m²": "平方米", "㎡": "平方米", "km²": "平方公里", "m³": "立方米", "Hz": "赫兹",
    "kHz": "千赫", "MHz": "兆赫", "W": "瓦", "kW": "千瓦", "kWh": "千瓦时", "V": "伏", "h": "小时", "min": "分钟",
    "s": "秒",
}  # fmt: skip
_HARDER = str.maketrans("赫兹时钟", "赫茲時鐘")


def _units(traditional: bool) -> dict[str, Unit]:
    """Units by symbol; Cantonese puts 攝氏 before a temperature."""
    units = {
        symbol: _unit(name.translate(_HARDER) if traditional else name) for symbol, name in _MEASURES.items()
    }
    celsius = _unit("度", "攝氏") if traditional else _unit("摄氏度")
    fahrenheit = _unit("度", "華氏") if traditional else _unit("华氏度")
    speed = _unit("公里", "每小時" if traditional else "每小时")
    return units | {
        "%": _unit("", "百分之"), "‰": _unit("", "千分之"), "°C": celsius, "℃": celsius, "°F": fahrenheit,
        "℉": fahrenheit, "km/h": speed,
    }  # fmt: skip


_MANDARIN_MONEY = {
    "¥": "元", "$": "美元", "US$": "美元", "HK$": "港元", "€": "欧元", "£": "英镑", "₩": "韩元",
}  # fmt: skip
_CANTONESE_MONEY = {
    "$": Money(_unit("蚊")), "HK$": Money(_unit("蚊", "港幣")), "US$": Money(_unit("美金")),
    "¥": Money(_unit("蚊", "人民幣")), "€": Money(_unit("歐羅")), "£": Money(_unit("英鎊")), "₩": Money(_unit("韓圜")),
}  # fmt: skip


def _grammar(writing: Writing, units: dict[str, Unit], money: dict[str, Money], price: Price) -> Grammar:
    signs = dict(zip("+-×÷=", writing.operators.split(), strict=True))

    def say(number: Number, unit: Unit | None = None) -> str:
        minus = writing.minus if number.negative else ""
        if number.fraction:
            return f"{minus}{spoken(number.whole, writing)}{writing.point}{_figures(number.fraction)}"
        counts = number.whole == 2 and unit is not None and not unit.one.endswith("{}")
        return minus + (writing.two if counts else spoken(number.whole, writing))

    def attach(template: str, words: str) -> str:
        if not words.startswith(writing.minus):
            return template.format(words)
        if template.endswith("度"):
            return template.format("零下" + words[1:])
        return writing.minus + template.format(words[1:])  # 负百分之三

    def fraction(whole: int, top: int, bottom: int) -> str:
        part = f"{cardinal(bottom, writing)}分之{cardinal(top, writing)}"
        return f"{cardinal(whole, writing)}又{part}" if whole else part

    return Grammar(
        shape=r"[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?|[0-9]+(?:\.[0-9]+)?",
        separators=",",
        point=".",
        left=EASTERN_LEFT,
        right=EASTERN_RIGHT,
        after_unit=EASTERN_AFTER_UNIT,
        say=say,
        is_one=lambda number: False,  # no plural
        year=lambda n: _figures(str(n)),
        digits=lambda text: _figures(text, writing.one_by_one),
        price=lambda number, coin, scale: price(say, number, coin, scale),
        fraction=fraction,
        operator=lambda sign, words: signs[sign],
        units=units,
        money=money,
        scales={scale: scale for scale in ("万", "亿", "千万", "百万", "十万", "千亿", "萬", "億", "千萬", "百萬", "十萬", "千億")},
        marks=dict.fromkeys("№#", f"{{}}{writing.number}"),
        span="{}到{}",
        ratio="{}比{}",
        attach=attach,
    )  # fmt: skip


def _yuan(say: Say, number: Number, coin: Money, scale: str) -> str | None:
    """三元五角, 五点五美元, 两亿元."""
    if scale:
        return coin.unit.one.format(
            say(number, None if number.whole == 2 and scale[0] in "十百" else coin.unit) + scale
        )
    if coin.cent is None or not number.fraction:
        return coin.unit.one.format(say(number, coin.unit))
    if len(number.fraction) > 2:
        return None
    tenths, hundredths = (int(figure) for figure in number.fraction.ljust(2, "0"))
    words = (
        coin.unit.one.format(say(Number(number.negative, number.whole, ""), coin.unit))
        if number.whole
        else ""
    )
    if tenths:
        words += f"{FIGURES[tenths]}角"
    elif hundredths and words:
        words += "零"
    return words + (f"{FIGURES[hundredths]}分" if hundredths else "") or None


def _man(say: Say, number: Number, coin: Money, scale: str) -> str:
    """十二蚊, 十二個半, 五毫, 兩億蚊."""
    tenths = number.fraction.rstrip("0")
    if coin.unit.one == "{}蚊" and not scale and not number.whole and len(tenths) == 1:
        return f"{say(Number(number.negative, int(tenths), ''), coin.unit)}毫"
    if scale or coin.unit.one != "{}蚊" or len(tenths) > 1 or (tenths and not number.whole):
        number = Number(number.negative, number.whole, tenths)
        return coin.unit.one.format(say(number, coin.unit) + scale)
    whole = say(Number(number.negative, number.whole, ""), coin.unit)
    if not tenths:
        return f"{whole}蚊"
    return f"{whole}個{'半' if tenths == '5' else FIGURES[int(tenths)]}"


def _rules(writing: Writing, g: Grammar, telephones: list[str]) -> tuple[Rule, ...]:
    left, right, dash = g.left, g.right, r" ?[-–~] ?"

    def said_year(found: re.Match[str]) -> str | None:
        n = int(found["it"])
        if not 1000 <= n < 2200 or (n % 100 == 0 and found["long"]):
            return None  # 五千年, 两千年前
        return _figures(found["it"])

    def date(found: re.Match[str]) -> str | None:
        month, day = int(found["month"]), int(found["day"])
        if not (1 <= month <= 12 and 1 <= day <= 31):
            return None
        return f"{_figures(found['year'])}年{cardinal(month, writing)}月{cardinal(day, writing)}日"

    def clock(found: re.Match[str], minute: str = "minute", hour: str = "hour") -> str | None:
        if int(found[hour]) > 24:
            return None
        words = (
            writing.two if int(found[hour]) == 2 else cardinal(int(found[hour]), writing)
        ) + writing.point
        minutes = int(found[minute])
        if minutes == 30 and writing is TRADITIONAL:
            return f"{words}半"
        return f"{words}{'零' if minutes < 10 else ''}{cardinal(minutes, writing)}分" if minutes else words

    def clocks(found: re.Match[str]) -> str | None:
        both = clock(found), clock(found, "minute2", "hour2")
        return None if None in both else "到".join(both)

    def from_to(found: re.Match[str]) -> str | None:
        first, last = int(found["first"]), int(found["last"])
        words = [writing.two if n == 2 else spoken(n, writing) for n in (first, last)]
        return "到".join(words) if first < last else None

    def telephone(found: re.Match[str]) -> str:
        number = found["it"]
        mobile = re.fullmatch(r"(1[0-9]{2})([0-9]{4})([0-9]{4})|([2-9][0-9]{3})([0-9]{4})", number)
        parts = "-".join(part for part in mobile.groups() if part) if mobile else number
        return (writing.operators[0] if number[0] == "+" else "") + g.digits(parts)

    def figures(found: re.Match[str]) -> str:
        return _figures(found["it"])

    four = r"[0-9]{4}"
    return (
        *compiled(
            [
                *(("read as a telephone number", pattern, telephone) for pattern in telephones),
                (
                    "read digit by digit",
                    rf"{left}(?P<it>[0-9]{{3,4}})(?=室|房|[号號]房)",
                    lambda found: g.digits(found["it"]),
                ),
                (
                    "read as a date",
                    rf"{left}(?P<year>[12][0-9]{{3}})(?P<mark>[-/.])(?P<month>[0-9]{{1,2}})(?P=mark)(?P<day>[0-9]{{1,2}}){right}",
                    date,
                ),
                (
                    "read as a range",
                    rf"{left}(?P<first>{four})年?{dash}(?P<last>{four})(?=年)",
                    lambda found: (
                        f"{_figures(found['first'])}到{_figures(found['last'])}"
                        if found["first"] < found["last"]
                        else None
                    ),
                ),
                (
                    "read as a year",
                    rf"{left}(?P<it>{four})(?= ?年(?P<long>的?[历歷]史|[前后後来來]|以[前来來上]|之)?)",
                    said_year,
                ),
                ("read as a year", rf"{left}(?P<it>0[0-9]|[6-9][1-9])(?=年[0-9出春夏秋冬])", figures),
                ("read as a year", rf"{left}(?P<it>0[0-9])(?=年)", figures),
                (
                    "read as a year",
                    rf"{left}(?P<it>[0-9]0)(?=[后後](?:[，。！？、\s]|$|的|[们們]|[年青]))",
                    figures,
                ),
                (
                    "read as a year",
                    rf"{left}(?P<it>(?:19|20)[0-9]{{2}})(?=春晚|[奥奧][运運]|世界杯|[亚亞][运運]|新年)",
                    figures,
                ),
                (
                    "read as a time",
                    rf"{left}(?P<hour>[0-9]{{1,2}}):(?P<minute>[0-5][0-9]){dash}(?P<hour2>[0-9]{{1,2}}):(?P<minute2>[0-5][0-9]){right}",
                    clocks,
                    ":",
                ),
                (
                    "read as a time",
                    rf"{left}(?P<hour>[0-9]{{1,2}}):(?P<minute>[0-5][0-9]){right}",
                    clock,
                    ":",
                ),
                (
                    "read as a measure",
                    rf"[时時]速(?P<it>(?P<n>{g.shape}) ?km/h)(?![A-Za-z])",
                    lambda found: (n := g.number(found["n"])) and f"{g.say(n, None)}公里",
                ),
                (
                    "read as a range",
                    rf"{left}(?P<first>[0-9]{{1,4}}){dash}(?P<last>[0-9]{{1,4}})(?= ?{COUNTED})",
                    from_to,
                ),
            ]
        ),
        *shared(g),
        *compiled(
            [
                (
                    "read as a number",
                    rf"{left}(?<!第)(?<!第 )(?P<it>2)(?= ?{COUNTED})",
                    lambda found: writing.two,
                )
            ]
        ),
        *plain(g),
    )


@cache
def mandarin() -> tuple[Rule, ...]:
    """All readings of Mandarin, in order."""
    money = {
        sign: Money(_unit(name), _unit("分") if name == "元" else None)
        for sign, name in _MANDARIN_MONEY.items()
    }
    return _rules(
        SIMPLIFIED,
        _grammar(SIMPLIFIED, _units(False), money, _yuan),
        [
            rf"{EASTERN_LEFT}(?P<it>(?:\+86[ -]?)?1[3-9][0-9][ -]?[0-9]{{4}}[ -]?[0-9]{{4}}){EASTERN_RIGHT}",
            rf"{EASTERN_LEFT}(?P<it>0[0-9]{{2,3}}[ -][0-9]{{7,8}}){EASTERN_RIGHT}",
            rf"{EASTERN_LEFT}(?P<it>[48]00-[0-9]{{3,4}}-[0-9]{{3,4}}){EASTERN_RIGHT}",
            rf"(?:打|拨|撥|[报報]警)(?P<it>110|112|114|119|120|122|999|10086|12306|12345){EASTERN_RIGHT}",
        ],
    )


@cache
def cantonese() -> tuple[Rule, ...]:
    """All readings of Cantonese, in order."""
    return _rules(
        TRADITIONAL,
        _grammar(TRADITIONAL, _units(True), _CANTONESE_MONEY, _man),
        [
            rf"{EASTERN_LEFT}(?P<it>[2-9][0-9]{{3}}[ -][0-9]{{4}}){EASTERN_RIGHT}(?!年)",
            rf"(?:電話|號碼|致電|打去|打|搵我)(?:係|是)?[:：]? ?(?P<it>[2-9][0-9]{{7}}){EASTERN_RIGHT}",
            rf"{EASTERN_LEFT}(?P<it>1[3-9][0-9][ -]?[0-9]{{4}}[ -]?[0-9]{{4}}){EASTERN_RIGHT}",
            rf"(?:打|撥|報警|call) ?(?P<it>999|112|110|18222|1823){EASTERN_RIGHT}",
        ],
    )
