"""Numbers in Korean: native ones before hours and most counters, Chinese ones for minutes, dates and money."""
# ruff: noqa: SIM905 - rows of words are easier to read and to correct than lists of quoted ones

from __future__ import annotations

import re
from collections.abc import Iterable
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

FIGURES = "영일이삼사오육칠팔구"
ONES = " 한 두 세 네 다섯 여섯 일곱 여덟 아홉".split(" ")
TENS = " 열 스물 서른 마흔 쉰 예순 일흔 여든 아흔".split(" ")
MONTHS = {6: "유", 10: "시"}  # 유월, 시월: the consonant is dropped
NATIVE = (
    "개 명 마리 권 잔 병 사람 살 가지 그루 송이 켤레 벌 채 척 달 곳 통 그릇 조각 방울 쌍 봉지 자루 다발 걸음 "
    "숟가락 모금 군데 끼 캔 컵 접시 상자 팀 장 시간 시 배"
).split()  # fmt: skip
# What follows a counter where it only begins another word: 개월, 달러, 부터.
LONGER = {
    "개": "월년국",
    "시": "즌간리",
    "장": "면",
    "배": "송달우",
    "달": "러",
    "채": "널",
    "통": "신화",
    "병": "원동",
    "부": "터",
}
CHINESE = (
    "원 년 분 초 층 도 퍼센트 프로 킬로미터 킬로그램 킬로 미터 센티미터 센티 밀리미터 그램 리터 개월 개년 주일 주 일 "
    "학년 인분 회 위 점 호선 호 달러 유로 엔 파운드 위안 센트 세 박 차 등 교시 동 반 승 패 무 회말 회초 년대 세기 평 쪽 "
    "페이지 편 화 부 단계 볼트 와트 기가 메가 배속"
).split()  # fmt: skip
VEHICLES = "(?:자동차|차|버스|택시|트럭|비행기|오토바이|자전거|컴퓨터|카메라|텔레비전|휴대폰|전화기|피아노|기계)(?:가|를|는)? ?"
GUESTS = "(?:손님|고객님?|선생님|어르신|어른|교수님|일행)(?:이|은)? ?"


def cardinal(n: int) -> str:
    """``n`` in Chinese numbers, a space between powers of ten thousand."""
    if n < 0:
        return f"마이너스 {cardinal(-n)}"
    return by_myriads(n, FIGURES, "십백천", "만억조", " ", "만")


def native(n: int) -> str:
    """``n`` before a native counter: 한, 스무, 스물한; from a hundred on only its last figure is native."""
    if n == 0:
        return "영"
    if n == 20:
        return "스무"
    if n < 100:
        return TENS[n // 10] + ONES[n % 10]
    return cardinal(n) if n % 100 >= 10 or n % 100 == 0 else cardinal(n - n % 100) + ONES[n % 100]


def digits(text: str) -> str:
    """Digits one by one, a zero as 공, in groups with a comma between."""
    return ", ".join(
        "".join("공" if digit == "0" else FIGURES[int(digit)] for digit in group)
        for group in re.findall(r"\d+", text)
    )


def say(number: Number, _: Unit | None = None) -> str:
    """``number`` in Chinese numbers, decimals one by one."""
    words = ("마이너스 " if number.negative else "") + cardinal(number.whole)
    return (
        f"{words}점{''.join(FIGURES[int(digit)] for digit in number.fraction)}" if number.fraction else words
    )


def _attach(template: str, words: str) -> str:
    return template.format(words.replace("마이너스", "영하", 1) if template.endswith("도") else words)


def _price(number: Number, money: Money, scale: str) -> str:
    if money.cent is None or scale or len(number.fraction) != 2:
        words = say(number)
        return money.unit.one.format("만" if scale == "만" and words == "일" else words + scale)
    cents = int(number.fraction)
    parts = (
        [money.unit.one.format(say(Number(number.negative, number.whole, "")))]
        if number.whole or not cents
        else []
    )
    return " ".join(parts + ([money.cent.one.format(cardinal(cents))] if cents else []))


def _fraction(whole: int, top: int, bottom: int) -> str:
    part = f"{cardinal(bottom)}분의 {cardinal(top)}"
    return f"{cardinal(whole)}과 {part}" if whole else part


def _operator(sign: str, words: str) -> str:
    if sign != "=":
        return {"+": " 더하기 ", "-": " 빼기 ", "×": " 곱하기 ", "÷": " 나누기 "}[sign]
    closed = (ord(words[-1]) - 0xAC00) % 28  # a syllable that ends in a consonant takes 은
    return "은 " if closed else "는 "


def _unit(name: str, before: str = "") -> Unit:
    return Unit(f"{before}{{}} {name}", f"{before}{{}} {name}")


_CENT = _unit("센트")
_MONEY = {
    "₩": Money(_unit("원")), "$": Money(_unit("달러"), _CENT), "US$": Money(_unit("미국 달러"), _CENT),
    "€": Money(_unit("유로"), _CENT), "£": Money(_unit("파운드"), _unit("펜스")), "¥": Money(_unit("엔")),
}  # fmt: skip
_UNITS = {
    symbol: _unit(name)
    for symbol, name in {
        "%": "퍼센트", "‰": "퍼밀", "%p": "퍼센트포인트", "km": "킬로미터", "㎞": "킬로미터", "m": "미터", "cm": "센티미터",
        "㎝": "센티미터", "mm": "밀리미터", "㎜": "밀리미터", "kg": "킬로그램", "㎏": "킬로그램", "g": "그램",
        "mg": "밀리그램", "㎎": "밀리그램", "t": "톤", "l": "리터", "L": "리터", "ml": "밀리리터", "mL": "밀리리터",
        "°C": "도", "℃": "도", "°": "도", "m²": "제곱미터", "㎡": "제곱미터", "km²": "제곱킬로미터", "m³": "세제곱미터",
        "min": "분", "s": "초", "MB": "메가바이트", "GB": "기가바이트", "TB": "테라바이트", "Hz": "헤르츠",
        "kHz": "킬로헤르츠", "MHz": "메가헤르츠", "GHz": "기가헤르츠", "W": "와트", "kW": "킬로와트", "V": "볼트",
    }.items()
} | {"°F": _unit("도", "화씨 "), "℉": _unit("도", "화씨 "), "km/h": _unit("킬로미터", "시속 "), "m/s": _unit("미터", "초속 ")}  # fmt: skip

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
    operator=_operator,
    units=_UNITS,
    money=_MONEY,
    scales={scale: scale for scale in ("만", "억", "조", "천", "백만", "천만", "십만")},
    marks={"№": "{} 번", "#": "{} 번"},
    span="{}에서 {}",
    ratio="{} 대 {}",
    attach=_attach,
)


def _hour(hour: int) -> str | None:
    """세 시, but 십오 시 by the clock of 24 hours."""
    if hour > 24:
        return None
    return f"{native(hour) if 1 <= hour <= 12 else cardinal(hour)} 시"


def _clock(hour: str, minute: str) -> str | None:
    words = _hour(int(hour))
    return words and (f"{words} {cardinal(int(minute))} 분" if int(minute) else words)


def _time(found: re.Match[str]) -> str | None:
    return _clock(found["hour"], found["minute"])


def _times(found: re.Match[str]) -> str | None:
    both = _clock(found["hour"], found["minute"]), _clock(found["hour2"], found["minute2"])
    return None if None in both else "에서 ".join(both)


def _month(month: int) -> str:
    return f"{MONTHS.get(month) or cardinal(month)}월"


def _date(found: re.Match[str]) -> str | None:
    month, day = int(found["month"]), int(found["day"])
    if not (1 <= month <= 12 and 1 <= day <= 31):
        return None
    return f"{cardinal(int(found['year']))}년 {_month(month)} {cardinal(day)}일"


def _counted(n: int, counter: str) -> str | None:
    if counter == "시":
        return _hour(n)
    if counter == "시간" and n > 12 and n % 10:
        return f"{cardinal(n)} 시간"  # 이십사 시간
    if counter == "배" and n >= 10:
        return f"{cardinal(n)} 배"
    return f"{native(n)} {counter}" if n < 10_000 else f"{cardinal(n)} {counter}"


def _count(found: re.Match[str]) -> str | None:
    n = GRAMMAR.number(found["n"])
    return n and _counted(n.whole, found["counter"])


def _counts(found: re.Match[str]) -> str | None:
    first, last = int(found["first"]), int(found["last"])
    if first >= last:
        return None
    if found["counter"] in NATIVE:
        both = _counted(first, found["counter"]), _counted(last, found["counter"])
        return None if None in both else "에서 ".join(both)
    return f"{cardinal(first)}에서 {cardinal(last)} {found['counter']}"


def _counters(words: Iterable[str]) -> str:
    """A pattern for any of ``words`` as a counter, the longest first."""
    longest = sorted(words, key=len, reverse=True)
    return f"(?P<counter>{'|'.join(f'{word}(?![{LONGER[word]}])' if word in LONGER else word for word in longest)})"


@cache
def rules() -> tuple[Rule, ...]:
    """All readings of Korean, in order."""
    left, right = EASTERN_LEFT, EASTERN_RIGHT
    whole = r"(?P<n>[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)"
    native_counter, chinese_counter, either = (
        _counters(words) for words in (NATIVE, CHINESE, {*NATIVE, *CHINESE})
    )
    clock = "(?P<hour{0}>[0-9]{{1,2}}):(?P<minute{0}>[0-5][0-9])"
    return (
        *compiled(
            [
                (
                    "read as a telephone number",
                    rf"{left}0[0-9]{{1,2}}-[0-9]{{3,4}}-[0-9]{{4}}{right}",
                    lambda found: digits(found[0]),
                ),
                (
                    "read as a telephone number",
                    rf"{left}1[5-9][0-9]{{2}}-[0-9]{{4}}{right}(?!년)",
                    lambda found: digits(found[0]),
                ),
                (
                    "read as a telephone number",
                    rf"{left}(?P<it>112|114|119|120)(?=에 |로 |번|를 |을 |에[.!?]|$)",
                    lambda found: digits(found["it"]),
                ),
                (
                    "read as a date",
                    rf"{left}(?P<year>[12][0-9]{{3}})(?P<mark>[-/.])(?P<gap> ?)(?P<month>[0-9]{{1,2}})(?P=mark)(?P=gap)(?P<day>[0-9]{{1,2}})(?![0-9-])(?!\w{{1,3}}월)",
                    _date,
                ),
                ("read as a date", rf"{left}[12][0-9]{{3}}(?=년)", lambda found: cardinal(int(found[0]))),
                (
                    "read as a date",
                    rf"{left}(?P<month>1[0-2]|[1-9])월 ?(?P<day>[12][0-9]|3[01]|[1-9])일",
                    lambda found: f"{_month(int(found['month']))} {cardinal(int(found['day']))}일",
                ),
                ("read as a date", rf"{left}(?P<n>6|10)월", lambda found: _month(int(found["n"]))),
                (
                    "read as a time",
                    rf"{left}{clock.format('')} ?[-–~] ?{clock.format('2')}{right}",
                    _times,
                    ":",
                ),
                ("read as a time", rf"{left}{clock.format('')}{right}", _time, ":"),
                (
                    "read as a measure",
                    rf"시속 ?(?P<it>(?P<n>{GRAMMAR.shape}) ?(?:km|㎞)(?:/h)?){EASTERN_AFTER_UNIT}",
                    _speed,
                ),
                (
                    "read as a range",
                    rf"{left}(?P<first>[0-9]{{1,4}}) ?[-–~] ?(?P<last>[0-9]{{1,4}}) ?{either}",
                    _counts,
                ),
                ("read as an ordinal number", rf"{left}1 ?번째", lambda found: "첫 번째"),
                ("read as an ordinal number", rf"{left}(?P<n>[0-9]{{1,2}}) ?(?P<counter>번째)", _native),
                ("read as a number", rf"{VEHICLES}(?P<it>(?P<n>[0-9]{{1,2}}) ?(?P<counter>대))", _native),
                ("read as a number", rf"{GUESTS}(?P<it>(?P<n>[0-9]{{1,2}}) ?(?P<counter>분))", _native),
                ("read as a number", rf"(?<!제)(?<!제 ){left}{whole} ?{native_counter}", _count),
                (
                    "read as a number",
                    rf"{left}(?P<it>(?P<n>[0-9]{{1,4}}) ?번) ?(?=출구|버스|문제|방|타자|선수|마을|국도|채널|트랙)",
                    lambda found: f"{cardinal(int(found['n']))} 번",
                ),
                (
                    "read as a number",
                    rf"{left}(?<!제)(?P<n>{GRAMMAR.shape}) ?{chinese_counter}(?!째)",
                    _chinese,
                ),
                ("read as a number", rf"{left}1(?P<power>[천만])", lambda found: found["power"]),
            ]
        ),
        *shared(GRAMMAR),
        # 3번 is three times or number three, 3대 three machines, the top three or three generations: left.
        *plain(GRAMMAR, but=r"(?![0-9]+ ?번(?!지))(?!(?![1-9]0대)[0-9]+ ?대(?![학로비표중륙통한문전회]))"),
    )


def _native(found: re.Match[str]) -> str:
    return f"{native(int(found['n']))} {found['counter']}"


def _chinese(found: re.Match[str]) -> str | None:
    number = GRAMMAR.number(found["n"])
    return number and f"{say(number)} {found['counter']}"


def _speed(found: re.Match[str]) -> str | None:
    number = GRAMMAR.number(found["n"])
    return number and f"{say(number)} 킬로미터"
