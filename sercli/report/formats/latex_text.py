"""Text in LaTeX: escaped for pdflatex, and how wide it is set.

Widths are the larger of Computer Modern's and Times' at 8 and 9 points, as pdflatex measured them
once (the width of a box with each sign; TeX Live 2022, OT1), in thousandths of the font's size.
Most of a line is thus somewhat narrower than is said here, and nothing is wider.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from itertools import pairwise

_BOLD = 1.2  # how much wider the widest bold sign is
_RAISED = 1.3  # of the 6 points of superscripts; small sizes are cut wider
_RAISED_SIZE = 6.0
_OTHERS = 1063  # no sign of `_SIGNS` but an ellipsis, which is three full stops, is wider

# From the space to the tilde.
_ASCII = (
    355, 333, 532, 886, 532, 886, 827, 333, 414, 414, 532, 827, 296, 355, 296, 532, 532, 532, 532,
    532, 532, 532, 532, 532, 532, 532, 296, 296, 827, 827, 827, 502, 921, 796, 753, 768, 812, 723,
    694, 834, 796, 383, 546, 826, 664, 973, 796, 827, 723, 827, 782, 591, 768, 796, 796, 1091, 796,
    796, 650, 333, 532, 333, 532, 383, 333, 532, 591, 473, 591, 473, 333, 532, 591, 296, 325, 561,
    296, 886, 591, 532, 591, 561, 415, 420, 414, 591, 561, 768, 561, 561, 473, 532, 296, 532, 532,
)  # fmt: skip

_SIGNS = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_",
    "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
    "|": r"\textbar{}", "`": "{`}", "'": "{'}", '"': "{''}", "<": r"$<$", ">": r"$>$",
    "α": r"$\alpha$", "β": r"$\beta$", "γ": r"$\gamma$", "δ": r"$\delta$", "Δ": r"$\Delta$",
    "ε": r"$\varepsilon$", "η": r"$\eta$", "θ": r"$\theta$", "κ": r"$\kappa$", "λ": r"$\lambda$",
    "μ": r"$\mu$", "π": r"$\pi$", "ρ": r"$\rho$", "σ": r"$\sigma$", "Σ": r"$\Sigma$",
    "τ": r"$\tau$", "φ": r"$\varphi$", "ω": r"$\omega$", "Ω": r"$\Omega$", "×": r"$\times$",
    "±": r"$\pm$", "·": r"$\cdot$", "−": "$-$", "≤": r"$\leq$", "≥": r"$\geq$", "≈": r"$\approx$",
    "∞": r"$\infty$", "∈": r"$\in$", "↑": r"$\uparrow$", "↓": r"$\downarrow$",
    "→": r"$\rightarrow$", "←": r"$\leftarrow$", "°": r"$^\circ$", "²": "$^2$", "³": "$^3$",
    "₁": "$_1$", "₂": "$_2$", "†": r"\textdagger{}", "…": r"\ldots{}", "—": "---", "–": "--",
    "•": r"\textbullet{}", "‘": "{`}", "’": "{'}", "“": "{`}{`}", "”": "{''}", "§": r"\S{}",
    "¶": r"\P{}", "¿": "?`", "¡": "!`", "ß": r"\ss{}", "æ": r"\ae{}", "Æ": r"\AE{}",
    "ø": r"\o{}", "Ø": r"\O{}", "ł": r"\l{}", "Ł": r"\L{}", "œ": r"\oe{}", "Œ": r"\OE{}",
    "\N{NO-BREAK SPACE}": "~",
}  # fmt: skip
_WIDER = {"…": 1417, "°": 542, "ŋ": 600}
# Letters with a mark, by what Unicode says that they are made of.
_ACCENTS = {
    "\N{COMBINING GRAVE ACCENT}": "`", "\N{COMBINING ACUTE ACCENT}": "'",
    "\N{COMBINING CIRCUMFLEX ACCENT}": "^", "\N{COMBINING TILDE}": "~",
    "\N{COMBINING DIAERESIS}": '"', "\N{COMBINING MACRON}": "=", "\N{COMBINING DOT ABOVE}": ".",
    "\N{COMBINING BREVE}": "u", "\N{COMBINING CARON}": "v", "\N{COMBINING CEDILLA}": "c",
    "\N{COMBINING DOUBLE ACUTE ACCENT}": "H", "\N{COMBINING RING ABOVE}": "r",
}  # fmt: skip
_DASHES = {"-": "-{}", "?": "?{}", "!": "!{}", ",": ",{}"}  # with a neighbour these are one sign
_BREAKABLE = 16  # signs of a word without a place to break a line
_BEHIND = "/_-.,:=+;&"


def escaped(text: str) -> str:
    """The text as LaTeX sets it, sign by sign: nothing in it is a command, or joined to another."""
    parts = [_source(sign) for sign in signs_of(text)]
    for place, (one, other) in enumerate(pairwise(parts)):
        if one in _DASHES and other[:1] in "-`,'":
            parts[place] = _DASHES[one]
    joined = "".join(parts)
    # Behind the end of a line or a rule these would be an argument of it.
    return f"{{}}{joined}" if joined.startswith(("[", "*")) else joined


def running(text: str) -> str:
    """`escaped` for paragraphs: lines may also break in words that are longer than any line."""
    return " ".join(
        r"\allowbreak{}".join(map(escaped, _pieces(word))) for word in text.split(" ") if word
    )


def _pieces(word: str) -> Iterator[str]:
    start = 0
    for place, sign in enumerate(word, 1):
        length = place - start
        if length >= _BREAKABLE or (sign in _BEHIND and length > 1 and len(word) > _BREAKABLE):
            yield word[start:place]
            start = place
    if start < len(word):
        yield word[start:]


def signs_of(text: str) -> Iterator[str]:
    """What is set for the text: its signs, and for one that pdflatex has not, its number."""
    for sign in unicodedata.normalize("NFC", text):
        if " " <= sign <= "~" or sign in _SIGNS or _accented(sign):
            yield sign
        elif sign.isspace():
            yield " "
        else:
            yield from f"\\u{ord(sign):04x}"


def _source(sign: str) -> str:
    if sign in _SIGNS:
        return _SIGNS[sign]
    found = _accented(sign)
    return f"\\{found[1]}{{{found[0]}}}" if found else sign


def _accented(sign: str) -> tuple[str, str] | None:
    """(letter, accent) of é and the like."""
    parts = unicodedata.normalize("NFD", sign)
    if len(parts) != 2 or not parts[0].isascii() or not parts[0].isalpha():
        return None
    accent = _ACCENTS.get(parts[1])
    return (parts[0], accent) if accent else None


def width(text: str, size: float, *, bold: bool = False) -> float:
    """Points that the text takes at this size of the font; never less than what it is set in."""
    total = 0
    for sign in signs_of(text):
        base = found[0] if (found := _accented(sign)) else sign
        total += _ASCII[ord(base) - 32] if " " <= base <= "~" else _WIDER.get(base, _OTHERS)
    return total * size / 1000 * (_BOLD if bold else 1.0)


def raised_width(text: str) -> float:
    """Points of a superscript."""
    return width(text, _RAISED_SIZE) * _RAISED


def wrapped(text: str, room: float, size: float, *, indent: float = 0.0) -> list[str]:
    """Lines of at most `room` points; words stay whole where they fit on a line of their own.

    Args:
        indent: Points that all lines but the first have less.
    """
    if width(text, size) <= room:
        return [text]
    lines: list[str] = [""]
    for word in filter(None, text.split(" ")):  # not at spaces that keep words together
        for piece in _fitting(word, room - indent, size):
            joined = f"{lines[-1]} {piece}" if lines[-1] else piece
            limit = room - (indent if len(lines) > 1 else 0)
            if lines[-1] and width(joined, size) > limit:
                lines.append(piece)
            else:
                lines[-1] = joined
    return lines


def _fitting(word: str, room: float, size: float) -> Iterator[str]:
    """A word in parts that fit, broken behind a sign that parts words where there is one."""
    while width(word, size) > room and len(word) > 1:
        most = 1
        while most < len(word) and width(word[: most + 1], size) <= room:
            most += 1
        cuts = [place for place in range(most // 2 + 1, most + 1) if word[place - 1] in _BEHIND]
        cut = cuts[-1] if cuts else most
        yield word[:cut]
        word = word[cut:]
    yield word
