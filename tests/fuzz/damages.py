"""Damage of the kinds that reach deep: one value of a whole document for another, a piece left out or there twice, a few wrong bytes."""

import copy
import dataclasses
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
            holder[key] = copy.deepcopy(draw(VALUES))
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


@dataclasses.dataclass(frozen=True)
class Damage:
    """What is done to a file; drawn without its content, which may be long."""

    header: str | None = None
    """Another header of a safetensors file."""
    length: int | None = None
    """What a safetensors file says of the length of its header."""
    edits: tuple[tuple[int, int], ...] = ()
    """Places of bytes, and what they become."""
    end: int | None = None
    tail: bytes = b""

    def of(self, content):
        """The damaged content."""
        if self.header is not None:
            header = self.header.encode("utf-8", "surrogatepass")
            content = len(header).to_bytes(8, "little") + header + header_of(content)[1]
        if self.length is not None:
            content = self.length.to_bytes(8, "little") + content[8:]
        damaged = bytearray(content)
        for place, byte in self.edits:
            damaged[place] = byte
        return bytes(damaged[: self.end]) + self.tail


def wrong_bytes(length, *, most=4):
    """Some bytes of a file of this length changed, cut off or added."""
    edits = st.lists(st.tuples(st.integers(0, length - 1), st.integers(0, 255)), max_size=most).map(tuple)
    return st.builds(Damage, edits=edits, end=st.none() | st.integers(0, length), tail=st.just(b"") | st.binary(max_size=9))


def header_of(content):
    """The header of a safetensors file as a document, and the bytes after it."""
    end = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:end]), content[end:]


def safetensors_files(content, **settings):
    """Damage of a safetensors file: to its header as a document, or to its bytes, most of them the header's."""
    header, data = header_of(content)
    headers = st.builds(Damage, header=texts(header, **settings))
    lengths = st.builds(Damage, length=st.integers(0, 2**64 - 1) | st.sampled_from([0, 1, len(content), 2**31, 2**63]))
    return headers | headers | lengths | wrong_bytes(len(content)) | wrong_bytes(len(content) - len(data))
