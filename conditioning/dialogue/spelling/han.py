"""Numbers by myriads, as Japanese and Korean take them from Chinese: no "one" before ten, hundred and thousand."""

from __future__ import annotations


def by_myriads(n: int, figures: str, small: str, large: str, gap: str = "", bare: str = "") -> str:
    """``n`` >= 0 in words.

    ``figures`` are zero to nine, ``small`` ten, hundred and thousand, ``large`` the powers of ten thousand, with
    ``gap`` between their groups; those in ``bare`` take no "one" either.
    """
    if n == 0:
        return figures[0]
    groups: list[str] = []
    for power in ("", *large):
        n, group = divmod(n, 10_000)
        words = ""
        for place, name in enumerate(("", *small)):
            digit = group // 10**place % 10
            if digit:
                words = ("" if digit == 1 and name else figures[digit]) + name + words
        if group:
            groups.append(("" if group == 1 and power and power in bare else words) + power)
    return gap.join(reversed(groups))
