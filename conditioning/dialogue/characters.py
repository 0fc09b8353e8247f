"""Classes of characters, as the insides of regular expressions' square brackets."""

from __future__ import annotations

HAN = "\u3005-\u3007\u303b\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
KANA = "\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff\uff66-\uff9f\U0001b000-\U0001b16f"
HANGUL = "\u1100-\u11ff\u3131-\u318e\ua960-\ua97c\uac00-\ud7a3\ud7b0-\ud7fb"
CJK = HAN + KANA + HANGUL

LATIN = "A-Za-zªºÀ-ÖØ-öø-\u024f\u1e00-\u1eff"
ACCENTS = "\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f"
VOICING = "\u3099\u309a"  # the two dots and the circle that stand on kana
VARIATION = "\ufe00-\ufe0f\U000e0100-\U000e01ef"  # selects the form of the character before

# Punctuation with its own white space inside the glyph: nothing is put beside it.
FULL_CLOSING = "、。，．！？；：」』》〉】）〕〗〙・"
FULL_OPENING = "「『《〈【（〔〖〘"
FULL = FULL_CLOSING + FULL_OPENING
# Full width among CJK characters, narrow among Latin ones.
EITHER = "“”‘’…⋯—―·～〜"
NARROW_CLOSING = r",.!?;:%)\]~"
NARROW_OPENING = r"(\["
