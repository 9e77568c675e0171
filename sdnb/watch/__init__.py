"""Live plots: a run drawn while it trains, its panels, its final picture, and recorded runs that play again."""

from ..system.faces import face

__getattr__, __dir__, __all__ = face(
    __name__,
    modules="trackers",
    frontends="Notebook find",
    history="History",
    recordings="replay",
    watching="Live live",
)
