"""Previews where the card has room for everything, and where parts take turns and pictures are decoded in tiles."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from torch import nn

from sdnb.memory import MemoryTrace
from sdnb.models import Drawing, room
from sdnb.saves.previews import previews

CPU, CARD = torch.device("cpu"), torch.device("cuda")
CATS = (Drawing(prompts=("a cat",), steps=2), Drawing(prompts=("a dog",), steps=2, seed=3, negative="a cat"))


class Moved(nn.Module):
    """A part of so many bytes that remembers its moves and stays where it is."""

    def __init__(self, name, size, place, moves):
        super().__init__()
        self.name, self.place, self.moves = name, torch.device(place), moves
        self.weight = nn.Parameter(torch.zeros(size // 4))

    def to(self, device):
        self.place = torch.device(device)
        self.moves.append((self.name, self.place.type))
        return self


@pytest.fixture
def card(monkeypatch):
    """`card(free, unet="cuda", …)`: a model whose parts lie there, beside so many free bytes, and its moves."""

    def made(free, **places):
        moves, sizes = [], {"unet": 800, "vae": 100, "text_encoder": 200}
        parts = {name: Moved(name, size, places[name], moves) for name, size in sizes.items()}
        monkeypatch.setattr(room, "room", lambda device: free)
        monkeypatch.setattr(room, "_device", lambda part: part.place)
        return type("sd", (), {"parts": parts})(), moves

    return made


def test_parts_come_for_a_while_and_nothing_leaves_without_need(card):
    sd, moves = card(1000, unet="cuda", vae="cpu", text_encoder="cpu")
    with room.on_card(sd, ["vae"], CARD, work=lambda: 700):
        assert moves == [("vae", "cuda")]
    assert moves == [("vae", "cuda"), ("vae", "cpu")]


def test_others_leave_the_largest_first_and_come_back(card):
    sd, moves = card(500, unet="cuda", vae="cuda", text_encoder="cuda")
    with pytest.raises(torch.OutOfMemoryError), room.on_card(sd, ["vae"], CARD, work=lambda: 500):
        assert moves == [("unet", "cpu")]
        raise torch.OutOfMemoryError
    assert moves == [("unet", "cpu"), ("unet", "cuda")]
    with room.on_card(sd, ["vae"], CARD, work=lambda: 1300):
        assert moves[2:] == [("unet", "cpu"), ("text_encoder", "cpu")]
    assert all(part.place == CARD for part in sd.parts.values())


def test_where_nothing_counts_the_room_nothing_moves_and_pictures_are_those_of_draw(tiny):
    plain = [tiny.draw("a cat", steps=2), tiny.draw("a dog", steps=2, seed=3, negative="a cat")]
    assert [one.tobytes() for one in previews(tiny, CATS, CPU)] == [one.tobytes() for one in plain]


def test_a_preview_in_tiles_stays_within_the_room(tiny, monkeypatch):
    """Decoding whole needs more than there is; in tiles it needs no more, and draws nearly the same picture."""
    shape = (1, 4, 32, 32)
    whole, half, quarter = (room.decode_bytes(tiny, shape, side) for side in room.tile_sides(tiny, (128, 128)))
    assert quarter < half < whole
    monkeypatch.setattr(room, "room", lambda device: int(half / room.SHARE) + 1)
    monkeypatch.setattr(room, "on_card", lambda *args, **named: nullcontext())
    assert room.tile_for(tiny, shape, CARD) == 64
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(Drawing, "denoise", lambda self, sd, told: latents)
    drawn = previews(tiny, CATS[:1], CARD)
    with pytest.warns(RuntimeWarning, match="no room to decode a whole preview: it is decoded in tiles of 64 pixels"):
        (tiled,) = drawn
    expected = CATS[0].decode(tiny, latents)[0]
    difference = np.abs(np.asarray(tiled, dtype=int) - np.asarray(expected, dtype=int))
    assert 0 < difference.mean() < 20
    with MemoryTrace(tiny.vae, kernels="cuda") as trace, room.tiled(tiny, 64):
        tiny.decode(latents)
    assert trace.peak_bytes - room.weight_bytes(tiny.vae) == pytest.approx(half, rel=0.02)
    assert not tiny.vae.use_tiling
