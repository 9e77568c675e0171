"""Gradient checkpointing: which blocks are recomputed in backward and what each keeps, and the choices worth having."""

from ..system.faces import face

__getattr__, __dir__, __all__ = face(
    __name__,
    was="choices",
    choices="Applied Budget CHEAP Choice Keep apply blocks frontier price resolve solve",
    recompute="on_meta",
    survey="Point",
)
