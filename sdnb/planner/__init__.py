"""The memory planner: predicts what a run will need by running its step on the meta device, and finds recipes that need less."""

from ..system.faces import face

__getattr__, __dir__, __all__ = face(
    __name__,
    was="planning",
    modules="advice changes command configurations measurements",
    advice="OutOfMemory card usable_bytes",
    explorer="explore",
    parts="Choice Estimate OPTIONS estimate",
    planning="example_batch least_bytes plan unet_inputs",
    phases="Phase WholeRun",
    report="MemoryPlan",
    search="fastest fit",
    timeline_page="timeline",
    trainers="train_command",
    changes="Change",
    comparison="Comparison",
    smallest="Advice",
)
