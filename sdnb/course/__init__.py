"""The course: its lessons and exercises, executed, published, translated, and made into pages."""

from ..system.faces import face

__getattr__, __dir__, __all__ = face(
    __name__,
    was="execution",
    modules="command editions lessons",
    execution="executed may_write show store without_solutions",
    exercises="check",
    lessons="explore run_folder",
    publishing="publish",
)
