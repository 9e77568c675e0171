"""Watching a run: the live plot, what it draws, the picture that stays, and recordings played again."""

from ..system.faces import face

__getattr__, __dir__, __all__ = face(
    __name__,
    frontends="Notebook find",
    history="History",
    recordings="replay",
    watching="Live live",
)
