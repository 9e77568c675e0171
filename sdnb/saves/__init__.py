"""Saves of a run: written whole or not at all, found again, and taken up exactly."""

from ..system.faces import face

__getattr__, __dir__, __all__ = face(
    __name__,
    was="folders",
    modules="packing samples states",
    folders="DAMAGE Save SaveFailed found latest",
    keeper="Keeper",
    samples="Samples",
    timing="Timing",
)
