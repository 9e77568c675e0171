"""Memory that a step holds: `MemoryTrace` counts it tensor by tensor, `PhasePeaks` asks CUDA's allocator."""

from ..system.faces import face

__getattr__, __dir__, __all__ = face(
    __name__,
    was="trace",
    modules="attention cuda_scratch operators",
    gauges="Gauges NOTHING PhasePeaks Reading room",
    metaops="Remembered run",
    ledger="CATEGORIES Event Ledger Observer PHASES SCRATCH",
    trace="GIB MIB MemoryTrace Moment tensors_in",
)
