"""Gradient checkpointing: which blocks are recomputed in backward, what each keeps, and the plans worth having."""

from ..system.faces import face

__getattr__, __dir__, __all__ = face(
    __name__,
    was="choices",
    choices="Applied Budget CHEAP Keep RecomputePlan apply blocks encoder_layers frontier price resolve solve",
    recompute="on_meta",
    survey="Point",
)
