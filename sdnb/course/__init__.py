"""The course: lessons and exercises, their execution, translation, pages for a browser, and publication."""

from ..system.faces import face

__getattr__, __dir__, __all__ = face(
    __name__,
    was="execution",
    modules="capstone command editions lessons",
    execution="executed may_write show store without_solutions",
    exercises="check",
    guesses="guess",
    languages="speak",
    lessons="run_folder",
    publishing="publish",
)
