"""Inputs that are nearly right: bytes, JSON, YAML and headers changed at random places.

Every function takes a `random.Random`, so that an input is a function of its seed.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from random import Random
from typing import Any

# JSON that is put in as text: much of it cannot be made with `json.dumps`.
RAW_VALUES = (
    *("null", "true", "false", "0", "-1", "1", "2", "0.5", "-0.0", "1e999", "-1e999"),
    *("NaN", "Infinity", "-Infinity", "1e308", "2e-324", "9007199254740993"),
    *("9223372036854775808", "-9223372036854775809", "1" + "0" * 400, "7" * 5000),
    *('""', '"x"', '"20"', '"\\u0000"', '"\\ud800"', '"../../x"', '"a/b"', '"."', '".."', '"1_0"'),
    *('"' + "n" * 300 + '"', '"\\u001b[31m"', '"[red]x[/red]"', '"=1+1"', '"a|b"', '"é"'),
    *("[]", "{}", "[1]", "[null]", '["a"]', "[[]]", '{"a": 1}', '{"": {}}', '[1, "a", null]'),
    *("[" * 60 + "]" * 60, "[" * 1500 + "]" * 1500, '{"a":' * 200 + "1" + "}" * 200),
)
YAML_PIECES = (
    *("a: &a [1, 1]\n", "b: *a\n", "&a [*a]", "*a", "!!int x", '!!float ""', "!!timestamp x"),
    *("!!bool x", "!!set {a}", "!!omap [a]", "!!pairs [a: 1]", "!!binary x", "!!null x", "!x y"),
    *("!!python/object/apply:os.getcwd []", "? [a]\n: b\n", "{[a]: b}", "<<: *a\n", "<<: {a: 1}\n"),
    *("---\n", "...\n", "%YAML 9.9\n", "\ufeff", "\t", "\x00", "\x85", "\ud7ff", "- - - -\n"),
    *("extends: a\n", "extends: [a]\n", "plugins: [a.py]\n", "plugins: {a: b}\n", "null: 1\n"),
    *("1: 2\n", "1.5: 2\n", "true: 1\n", "2001-01-01: 1\n", "a.b.c: 1\n", "seed: 1e400\n"),
    *("|\n  x\n", ">-\n", "'", '"', "[" * 60, "{a: " * 60, "- " * 60, "#", ": ", "-", "?"),
)


def flipped(data: bytes, random: Random) -> bytes:
    """One bit of the data, turned."""
    if not data:
        return b"\x01"
    changed = bytearray(data)
    changed[random.randrange(len(data))] ^= 1 << random.randrange(8)
    return bytes(changed)


def shaken(data: bytes, random: Random) -> bytes:
    """Bits turned, bytes cut out, doubled or overwritten, the end cut off: a few of these."""
    for _ in range(random.choice((1, 1, 1, 2, 4, 8))):
        size = len(data)
        start = random.randrange(size + 1)
        stop = min(size, start + random.choice((1, 2, 4, 8, 64)))
        what = random.randrange(6)
        if what <= 1:
            data = flipped(data, random)
        elif what == 2:
            data = data[:start] + data[stop:]
        elif what == 3:
            data = data[:stop] + data[start:]
        elif what == 4:
            filler = random.choice((b"\x00", b"\xff", b" ", b"9", random.randbytes(1)))
            data = data[:start] + filler * (stop - start) + data[stop:]
        else:
            data = data[:start]
    return data


def spliced(data: bytes, other: bytes, random: Random) -> bytes:
    """The head of one input and the tail of another."""
    return data[: random.randrange(len(data) + 1)] + other[random.randrange(len(other) + 1) :]


# -- JSON -----------------------------------------------------------------------------------------


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) of a tree of dictionaries and lists."""
    found: list[tuple[Any, Any]] = []
    left = [tree]
    while left:
        node = left.pop()
        keys = node if isinstance(node, dict) else range(len(node))
        found += [(node, key) for key in keys]
        left += [node[key] for key in keys if isinstance(node[key], dict | list)]
    return found


def json_changed(data: bytes, random: Random) -> bytes:
    """A JSON document with a few values of other kinds, keys left out, doubled or renamed.

    Text that is JSON itself, as the metadata of a safetensors header is, is changed inside, too.
    """
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        return shaken(data, random)
    if not isinstance(tree, dict | list):
        return random.choice(RAW_VALUES).encode("utf-8", "surrogatepass")
    raw: dict[str, str] = {}
    for _ in range(random.choice((1, 1, 1, 2, 3))):
        places = _places(tree)
        if not places:
            break
        node, key = random.choice(places)
        what = random.randrange(10)
        if what == 0:
            del node[key]
        elif what == 1 and isinstance(node, dict):
            node[random.choice(("", "x", "a/b", "__metadata__", f"{key}2", "schema"))] = node[key]
        elif what == 2 and isinstance(node, dict):  # the key twice: the mark's text ends up a key
            mark = f"@@{len(raw)}@@"
            raw[mark] = f"{random.choice(RAW_VALUES)}, {json.dumps(str(key))}: null"
            node[key] = mark
        elif what == 3:
            node[key] = [node[key]]
        elif what == 4:
            other, place = random.choice(places)
            node[key] = json.loads(json.dumps(other[place])) if place in other else None
        elif isinstance(node[key], str) and random.random() < 0.7:
            node[key] = _text_changed(node[key], random)
        else:
            mark = f"@@{len(raw)}@@"
            raw[mark] = random.choice(RAW_VALUES)
            node[key] = mark
    text = json.dumps(tree)
    for mark, value in raw.items():
        text = text.replace(f'"{mark}"', value)
    return text.encode("utf-8", "surrogatepass")


def _text_changed(text: str, random: Random) -> str:
    if text[:1] in ('[{"0123456789-tfn') or re.fullmatch(r"-?[0-9.]+", text):
        if random.random() < 0.5:
            return random.choice(RAW_VALUES)
        return json_changed(text.encode("utf-8", "replace"), random).decode("utf-8", "replace")
    return random.choice((text + "x", text[:-1], "", "../" + text, text * 50, "0", text.upper()))


# -- YAML -----------------------------------------------------------------------------------------


def yaml_changed(data: bytes, random: Random) -> bytes:
    """A YAML document with lines left out, doubled, moved in, and pieces that are hard to build."""
    lines = data.decode("utf-8", "replace").splitlines(keepends=True) or [""]
    for _ in range(random.choice((1, 1, 2, 3))):
        index = random.randrange(len(lines))
        line, what = lines[index], random.randrange(7)
        if what == 0:
            lines[index] = ""
        elif what == 1:
            lines.insert(random.randrange(len(lines) + 1), line)
        elif what == 2:
            lines[index] = random.choice(("  ", "\t", " ")) + line
        elif what == 3:
            lines.insert(index, random.choice(YAML_PIECES))
        elif what == 4:
            key, colon, _ = line.partition(":")
            lines[index] = f"{key}{colon} {random.choice(RAW_VALUES)}\n"
        elif what == 5:
            key, colon, _ = line.partition(":")
            lines[index] = f"{key}{colon} {random.choice(YAML_PIECES)}\n"
        else:
            start = random.randrange(len(line) + 1)
            lines[index] = line[:start] + random.choice(YAML_PIECES) + line[start:]
    return "".join(lines).encode("utf-8", "surrogatepass")


# -- Headers --------------------------------------------------------------------------------------


def header_changed(data: bytes, random: Random) -> bytes:
    """A file that begins with the length of a JSON header (safetensors) with another header."""
    end = 8 + int.from_bytes(data[:8], "little")
    header, body = data[8:end], data[end:]
    what = random.randrange(16)
    if what >= 8 and (facts := _facts_changed(header, random)):
        return len(facts).to_bytes(8, "little") + facts + body
    if what == 0:
        length = random.choice((0, 1, end, 2**31, 2**63 - 1, 2**64 - 1, random.getrandbits(64)))
        return length.to_bytes(8, "little") + header + body
    changed = shaken(header, random) if what == 1 else json_changed(header, random)
    body = shaken(body, random) if what == 2 and body else body
    return len(changed).to_bytes(8, "little") + changed + body


def _facts_changed(header: bytes, random: Random) -> bytes | None:
    """A header whose tensors are as they were, with other metadata; all of it is text."""
    try:
        tree = json.loads(header)
        facts = json.loads(json_changed(json.dumps(tree["__metadata__"]).encode(), random))
        pairs = facts.items()
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    said = {key: value if isinstance(value, str) else json.dumps(value) for key, value in pairs}
    text = json.dumps({**tree, "__metadata__": said}).encode()
    return text + b" " * (-len(text) % 8)


def archive_changed(data: bytes, random: Random) -> bytes:
    """A zip archive (npz, pt) with a member that was changed before it was packed."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [(info, archive.read(info)) for info in archive.infolist()]
    except Exception:
        return shaken(data, random)
    chosen = random.randrange(len(members)) if members else 0
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for index, (info, content) in enumerate(members):
            if index == chosen:
                what = random.randrange(6)
                if what == 0:
                    continue
                if what == 1:
                    content = b"\x00" * random.choice((0, 1000, 10_000_000))
                elif what == 2 and content[:6] == b"\x93NUMPY":
                    content = _array_header_changed(content, random)
                elif what == 3 and len(content) > 200:  # the head of pickles and arrays
                    content = shaken(content[:200], random) + content[200:]
                else:
                    content = shaken(content, random)
            archive.writestr(info.filename, content, random.choice((0, info.compress_type)))
    return out.getvalue()


def _array_header_changed(content: bytes, random: Random) -> bytes:
    end = 10 + int.from_bytes(content[8:10], "little")
    header = content[10:end].decode("latin1")
    shapes = ("()", "(0,)", "(-1,)", "(1, 1)", "(999999999999,)", "(2**70,)", "(1180591620717,)")
    kinds = (
        "'|O'",
        "'<i8'",
        "'<U9'",
        "'<c16'",
        "'|V9'",
        "[('a', '|O')]",
        "'<f2'",
        "'|S0'",
        "'<U0'",
    )
    if random.random() < 0.5:
        header = re.sub(r"'shape': \([^)]*\)", f"'shape': {random.choice(shapes)}", header)
    else:
        header = re.sub(r"'descr': '[^']*'", f"'descr': {random.choice(kinds)}", header)
    text = header.encode("latin1")
    return content[:8] + len(text).to_bytes(2, "little") + text + content[end:]


# -- By what the data are -------------------------------------------------------------------------


def changed(data: bytes, others: list[bytes], random: Random) -> bytes:
    """One input made of another: by its form three times of four, else byte by byte."""
    what = random.randrange(8)
    if what == 0:
        return shaken(data, random)
    if what == 1:
        return spliced(data, random.choice(others), random)
    if data[:2] == b"PK":
        return archive_changed(data, random)
    if len(data) > 10 and data[8:9] == b"{" and data[7] == 0:
        return header_changed(data, random)
    if data[:1] in (b"{", b"["):
        return json_changed(data, random)
    return yaml_changed(data, random)
