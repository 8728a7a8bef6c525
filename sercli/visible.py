"""Text from outside, made fit to be seen: names, paths, errors of users, files and the system.

Nothing of it may steer a terminal, end a line of a table, or end a command because a terminal's
encoding lacks a character. What is printed goes through `sercli.screen` or `commands.printing`,
which call this; what is written as a format calls it in that format's own escape.
"""

from __future__ import annotations

import codecs
import json
import re
import sys
import unicodedata
from typing import Any

# Controls (C0, DEL, C1), separators of lines and paragraphs, halves of surrogate pairs, and what is
# not seen but moves what is: marks and overrides of direction, spaces without width, tags.
# Joiners (U+200C, U+200D) stay: names in Persian, Hindi and of emoji need them.
_UNSEEN = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f"
    "\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)
_SHORT = {"\n": r"\n", "\r": r"\r", "\t": r"\t"}
_BYTE = 0xDC00  # Python reads the byte b of a name that is no text as U+DC00 + b


def visible(text: str) -> str:
    r"""A text in one line, with what would not be seen as an escape: ESC as `\x1b`."""
    if text.isascii() and text.isprintable():  # most are
        return text
    return _UNSEEN.sub(lambda found: escape(found.group()), text)


def visible_lines(text: str) -> str:
    """`visible`, but line ends stay: for texts of ours that have several lines."""
    return "\n".join(map(visible, text.split("\n")))


def one_line(message: str) -> str:
    """A message as one visible line; where it had several, a space stands between them."""
    return visible(" ".join(part for line in message.split("\n") if (part := line.strip(" \r"))))


def escape(sign: str) -> str:
    r"""A character as Python would write it: `\n`, `\x1b`, `\u202e`; bytes as `\xff`."""
    number = ord(sign)
    if _BYTE + 0x80 <= number <= _BYTE + 0xFF:
        number -= _BYTE
    if number > 0xFFFF:
        return f"\\U{number:08x}"
    return _SHORT.get(sign, f"\\x{number:02x}" if number <= 0xFF else f"\\u{number:04x}")


def say(*lines: str, err: bool = False) -> None:
    """Print lines as they are; what would not be seen is escaped, line ends within one as well.

    Args:
        lines: Each a line.
        err: On standard error, so that standard output holds only the result.
    """
    print(*map(visible, lines), sep="\n", file=sys.stderr if err else sys.stdout, flush=True)


def counted(number: int, what: str) -> str:
    """How many: "1 image", "1,024 images", "0 classes"."""
    if number == 1:
        return f"1 {what}"
    if what.endswith(("s", "x", "sh", "patch")):
        return f"{number:,} {what}es"
    if what.endswith("y") and what[-2] not in "aeou":
        return f"{number:,} {what[:-1]}ies"
    return f"{number:,} {what}s"


def duration(seconds: float) -> str:
    """A time as people say it: "98 s", "12 min", "3.4 h", "2.1 days"."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if seconds < 99.5 * 60:
        return f"{seconds / 60:.0f} min"
    hours = seconds / 3600
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"


# -- JSON ------------------------------------------------------------------------------------------


def json_text(tree: Any, *, indent: int) -> str:
    r"""JSON for people and machines: letters as they are, what would not be seen as `\u001b`.

    Raises:
        ValueError: A number is not finite.
    """
    text = json.dumps(tree, indent=indent, allow_nan=False, ensure_ascii=False)
    # All that is left outside of strings are line ends of ours.
    return re.sub(rf"(?!\n){_UNSEEN.pattern}", lambda found: json.dumps(found.group())[1:-1], text)


# -- Encodings -------------------------------------------------------------------------------------

READABLE = "sercli-readable"
_IN_ASCII = {
    "×": "x", "·": ".", "±": "+-", "−": "-", "–": "-", "—": "-", "…": "...", "•": "o", "†": "#",
    "↑": "^", "↓": "v", "→": "->", "≥": ">=", "≤": "<=", "≠": "!=", "‘": "'", "’": "'", "“": '"',
    "”": '"', "°": " deg", "λ": "lambda", "τ": "tau", "ρ": "rho", "Σ": "sum", "π": "pi", "│": "|",
    "─": "-", "━": "-", "═": "-", "⁻": "-",
}  # fmt: skip


def _spelling(sign: str) -> str:
    """A character in ASCII that reads alike."""
    if sign in _IN_ASCII:
        return _IN_ASCII[sign]
    if _UNSEEN.match(sign):
        return escape(sign)
    if "\u2500" <= sign <= "\u257f":  # lines and corners of tables
        return "+"
    plain = unicodedata.normalize("NFKD", sign).encode("ascii", "ignore").decode()
    return plain or "?"


def _readable(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(map(_spelling, error.object[error.start : error.end])), error.end


# With this a stream of any encoding takes any text: `n₂ × λ` is `n2 x lambda` in ASCII.
codecs.register_error(READABLE, _readable)


def spelled(text: str, encoding: str | None) -> str:
    """`text` as a stream of that encoding will show it, so that columns are as wide as they look.

    Args:
        text: What is to be printed.
        encoding: Of the stream; None or unknown: nothing is known of it, and nothing is changed.
    """
    try:
        return text.encode(encoding or "utf-8", READABLE).decode(encoding or "utf-8")
    except LookupError:
        return text
