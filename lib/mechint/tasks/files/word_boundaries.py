"""Finds word boundaries in real text: whole words, and the space between a prompt and its answer."""

from __future__ import annotations

import unicodedata

WITHOUT_SPACES = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x0F00, 0x0FFF),  # Tibetan
    (0x1000, 0x109F),  # Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x2E80, 0x312F),  # Chinese radicals, punctuation, kana
    (0x31A0, 0xA4CF),  # kana, Chinese characters, Yi
    (0xF900, 0xFAFF),  # Chinese characters
    (0xFE30, 0xFE4F),
    (0xFF00, 0xFFEF),  # full-width forms
    (0x20000, 0x3FFFF),  # Chinese characters
)
"""Code points, first and last, of scripts that put no space between words."""
QUOTES = "\"'`"
"""Marks that open and close alike."""
FOLLOWING = ".,;:!?)]}%\u2019\u201d\u00bb\u2026"
"""Marks that follow the word before them without a space."""


def without_spaces(character: str) -> bool:
    """True if a character is of a script that puts no space between words."""
    return any(first <= ord(character) <= last for first, last in WITHOUT_SPACES)


def in_word(character: str) -> bool:
    """True if a character is part of a word: a letter, a mark on one, a digit or an underscore."""
    return character == "_" or unicodedata.category(character)[0] in "LMN"


def joined(left: str, right: str) -> bool:
    """True if two neighbouring characters are inside one word; never so in scripts without spaces."""
    return in_word(left) and in_word(right) and not without_spaces(left) and not without_spaces(right)


def places(word: str, text: str) -> tuple[list[int], int]:
    """Finds a whole word or phrase in a text, and counts its occurrences inside other words."""
    found, inside, start = [], 0, text.find(word)
    while start >= 0:
        end = start + len(word)
        if (start and joined(text[start - 1], word[0])) or (end < len(text) and joined(word[-1], text[end])):
            inside += 1
        else:
            found.append(start)
        start = text.find(word, start + 1)
    return found, inside


def opens(text: str) -> bool:
    """True if the last character of a text opens a bracket, a quotation or an amount of money."""
    last, before = text[-1], text[-2:-1]
    fresh = not before or before.isspace() or unicodedata.category(before) in ("Ps", "Pi")
    kind = unicodedata.category(last)
    if kind in ("Ps", "Pi"):
        return True
    if last in QUOTES:
        return fresh
    if kind == "Sc":
        return not text[:-1].rstrip(" \u00a0")[-1:].isdigit()  # 5 $ is an amount that has ended
    if last in "#@/\\_":
        return True
    return (kind[0] == "S" or kind == "Pd" or last in "&*") and not fresh  # as in x=1, and in x = 1


def space_between(prompt: str, answer: str) -> str:
    """The space that is written between a prompt and its answer, or nothing where the two join without one."""
    if not prompt or not answer or prompt[-1].isspace() or answer[0].isspace():
        return ""
    if without_spaces(prompt[-1]) or opens(prompt) or answer[0] in FOLLOWING:
        return ""
    return " "
