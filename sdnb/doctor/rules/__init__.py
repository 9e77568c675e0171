"""The rules of sd-scripts that its users meet: those of the four files beside this one, in the order in which they are shown.

To add a rule, put a `Rule` into the tuple of its topic's file that has its effect.
"""

from . import data, optimizer, precision, schedule
from .rule import Rule

RULES: tuple[Rule, ...] = (
    # a run ends at its first error, so these come in the order of sd-scripts' own checks
    *data.SETTINGS_ERRORS,
    *precision.SWAP_ERRORS,
    *data.DATASET_ERRORS,
    *data.MODEL_ERRORS,
    *precision.MODEL_ERRORS,
    *data.NETWORK_ERRORS,
    *optimizer.FLAG_ERRORS,
    *precision.FUSED_ERRORS,
    *optimizer.ERRORS,
    *data.SAMPLE_ERRORS[1:],
    *data.LOADER_ERRORS[:1],
    *schedule.ERRORS,
    *precision.ERRORS,
    *data.LOADER_ERRORS[1:],
    *schedule.LENGTH_ERRORS,
    data.STEPS_ERROR,
    *data.SAMPLE_ERRORS[:1],
    *data.STEP_ERRORS,
    *optimizer.STEP_ERRORS,
    # it runs, and ruins the model
    *optimizer.RUINS,
    # another value is used silently, or with a log line that says something else
    *optimizer.ADAFACTOR_DIFFERENCES,
    *schedule.DIFFERENCES,
    *optimizer.DIFFERENCES,
    *precision.DIFFERENCES,
    *data.DIFFERENCES,
    # a warning in the log
    *optimizer.WARNINGS,
    *data.WARNINGS,
    *precision.WARNINGS,
    # worth knowing
    *optimizer.NOTES,
    *precision.NOTES,
    *data.NOTES,
)
