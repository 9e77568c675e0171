"""Damage of the kinds that reach deep: one value of a whole document for another, a piece left out or there twice, a few wrong bytes."""

import json
import math

from hypothesis import strategies as st

NUMBERS = [0, -1, 1, 2, 3, 7, 2.5, 1e-30, 1e308, math.nan, math.inf, 2**20, 10**7, 10**9, 10**12, 2**63, 10**400]
OTHERS = [
    None,
    True,
    False,
    "",
    "x",
    "1",
    "../x",
    "\N{SNOWMAN}",
    [],
    {},
    [1, 2],
    [[]],
    [None],
    ["x"],
    {"a": 1},
    {"a": {"b": []}},
    [3] * 2000,
    "x" * 20_000,
]
VALUES = st.sampled_from(NUMBERS + OTHERS) | st.integers() | st.floats() | st.text(max_size=8)
NESTED = st.sampled_from([50, 150, 3000, 100_000]).flatmap(
    lambda depth: st.sampled_from(["[" * depth, "[" * depth + "]" * depth, '{"a":' * depth + "1" + "}" * depth])
)


def places(value, path=()):
    """The paths of all values inside a JSON document."""
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*path, key)
        yield from places(inner, (*path, key))


@st.composite
def documents(draw, document, *, most=3):
    """A JSON document with 1 to `most` of its values changed, left out, moved or wrapped."""
    document = json.loads(json.dumps(document))
    for _ in range(draw(st.integers(1, most))):
        found = list(places(document))
        if not found:
            break
        *path, key = draw(st.sampled_from(found))
        holder = document
        for step in path:
            holder = holder[step]
        action = draw(st.sampled_from(["change", "change", "change", "remove", "wrap", "double", "rename", "scale"]))
        if action == "change":
            holder[key] = draw(VALUES)
        elif action == "remove":
            del holder[key]
        elif action == "wrap":
            holder[key] = draw(st.sampled_from([[holder[key]], {"a": holder[key]}, str(holder[key])]))
        elif action == "double" and isinstance(holder, list):
            holder.append(holder[key])
        elif action == "scale" and isinstance(holder[key], int | float):
            holder[key] = holder[key] * draw(st.sampled_from([-1, 2, 1000, 10**6, 0.5]))
        elif isinstance(holder, dict):
            holder[draw(st.text(max_size=6) | st.sampled_from(["items", "config", "__metadata__", "_class_name"]))] = holder[key]
    return document


def texts(document, **settings):
    """The text of a damaged JSON document; some are nested without end, some have a few wrong letters."""
    return documents(document, **settings).map(json.dumps).flatmap(lambda text: st.just(text) | st.just(text) | _wrong(text)) | NESTED


def _wrong(text):
    pieces = st.tuples(
        st.integers(0, len(text)), st.integers(0, 3), st.sampled_from(['"', "{", "}", "[", ",", "1e999", "NaN", "\\ud800", "\x00", ""])
    )
    return pieces.map(lambda piece: text[: piece[0]] + piece[2] + text[piece[0] + piece[1] :])


def wrong_bytes(content, *, most=4):
    """`content` with some bytes changed, cut off or added."""

    def change(changes):
        edits, end, tail = changes
        damaged = bytearray(content)
        for place, byte in edits:
            damaged[place] = byte
        return bytes(damaged[:end]) + tail

    edits = st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), max_size=most)
    ends = st.just(len(content)) | st.just(len(content)) | st.integers(0, len(content))
    return st.tuples(edits, ends, st.binary(max_size=9) | st.just(b"")).map(change)


def header_of(content):
    """The header of a safetensors file as a document, and the bytes after it."""
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def with_header(text, data):
    """A safetensors file with this header."""
    header = text.encode("utf-8", "surrogatepass")
    return len(header).to_bytes(8, "little") + header + data


def safetensors_files(content, **settings):
    """A safetensors file whose header is damaged as a document, or whose bytes are."""
    header, data = header_of(content)
    lengths = st.integers(0, 2**64 - 1) | st.sampled_from([0, 1, len(content), 2**31, 2**63])
    wrong_length = lengths.map(lambda length: length.to_bytes(8, "little") + content[8:])
    headers = texts(header, **settings).map(lambda text: with_header(text, data))
    return headers | headers | wrong_bytes(content) | wrong_length
