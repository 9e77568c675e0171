"""Exercises in which the reader writes code: graders that call it with shapes, dtypes and gradients that the lesson does not show.

A grader is a function of the reader's answer that raises `Fault` for the first property that it lacks. `grade` calls it so that an
answer that raises, never ends or changes the state of torch does no harm. The texts of the faults are in `../texts`, with those of the
exercise. To add an exercise, write a grader in a file of its own and give it a row in `grading.GRADERS`.
"""

from ...system.faces import face

__getattr__, __dir__, __all__ = face(__name__, grading="Fault GRADERS Unwritten grade verdict")
