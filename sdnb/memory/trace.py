"""`MemoryTrace`: where the bytes of a training step are, operator by operator.

Every tensor's storage is counted once, when the operator that makes it returns, and no longer once the last reference to it is gone.
That needs no memory of its own, so the same trace runs on real tensors and on the meta device, where tensors have shapes and no
contents: a step of SDXL is then counted on a laptop.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from ..system import GIB as GIB
from ..system import MIB
from . import metaops
from .scratch import scratch_bytes

if TYPE_CHECKING:
    from torch.nn import Module

CATEGORIES = ("weights", "optimizer state", "gradients", "activations", "inputs", "temporaries")
"""`activations` are what forward leaves alive for backward, and what backward recomputes; `temporaries` are all the rest."""
PHASES = ("forward", "backward", "optimizer")
_CATEGORY = {name: number for number, name in enumerate(CATEGORIES)}


@dataclass(frozen=True, slots=True)
class Moment:
    """What was alive at one moment of a trace."""

    operator: str
    """The operator that had just run, such as `aten.convolution`; empty before the first."""
    phase: str
    """One of `PHASES`."""
    bytes: dict[str, int]
    """By category, in the order of `CATEGORIES`."""

    @property
    def total(self) -> int:
        """Bytes of all categories together."""
        return sum(self.bytes.values())


class _Block:
    """One storage: its size, where it comes from, and what it turned out to be."""

    __slots__ = ("bytes", "category", "during", "recomputed")

    def __init__(self, size: int, category: int | None, during: int, recomputed: bool) -> None:
        self.bytes, self.category, self.during, self.recomputed = size, category, during, recomputed


class MemoryTrace:
    """Counts live bytes, by category and phase, while it is entered.

        with MemoryTrace(unet) as trace:
            unet(...).sample.square().mean().backward()
            optimizer.step()
        trace.peak_bytes, trace.peak.bytes["activations"]

    `model` (or several) says which storages are weights. `kernels` says whose kernels are counted: on a CPU they allocate
    scratch of their own (`"cpu"`), which is included; on CUDA it is in the allocator's counters. It is the model's device unless
    given; a model on the meta device is counted as on CUDA, without the rounding and the workspaces of its allocator. `attention`
    says which of CUDA's kernels such a model takes: `flash`, `efficient`, `math`, or what torch would (`auto`).

    On CUDA `peak_bytes` and `peaks` are the allocator's own, less what the process held there before and the trace never met; the
    categories are counted as elsewhere. Inside a trace every operator takes longer, by about 20 microseconds on two slow cores.
    Raises `RuntimeError` when it is entered twice.
    """

    def __init__(self, *models: Module, kernels: str | None = None, attention: str = "auto") -> None:
        devices = {tensor.device for model in models for tensor in (*model.parameters(), *model.buffers())}
        self._models = models
        self._device = next((d for d in devices if d.type == "cuda"), next(iter(devices), torch.device("cpu")))
        self.kernels = kernels or ("cpu" if self._device.type == "cpu" else "cuda")
        if self.kernels not in ("cpu", "cuda"):
            raise ValueError(f'kernels={kernels!r}: there are "cpu" and "cuda"')
        self.attention = attention
        self._threads = torch.get_num_threads()
        self._blocks: list[_Block] = []
        self._known: dict[int, tuple[int, weakref.ref]] = {}
        self._events: list[tuple[int, int, int, str]] = []  # block or -1 for scratch, change in bytes, phase, operator
        self._base: list[int] = []
        self._saved: set[int] = set()  # by the last forward
        self._ever_saved: set[int] = set()
        self._optimizing = 0
        self._was_backward = False
        self._hook = None
        self._counters: dict[str, int] = {}
        self._before = 0
        self._phase = 0
        self._stack: ExitStack | None = None
        self._moments: list[Moment] | None = None

    def __enter__(self) -> MemoryTrace:
        if self._stack is not None:
            raise RuntimeError("a MemoryTrace counts one stretch: make a new one for the next")
        self._stack = ExitStack()
        try:
            self._open()
        except BaseException:
            self._stack.close()  # nobody calls __exit__ where __enter__ raised
            raise
        return self

    def _open(self) -> None:
        """Put in everything that watches, each with its way out on the stack."""
        for model in self._models:
            for tensor in (*model.parameters(), *model.buffers()):
                self._add_base(tensor, "weights")
            for parameter in model.parameters():
                if parameter.grad is not None:
                    self._add_base(parameter.grad, "gradients")
                if parameter.requires_grad:
                    handle = parameter.register_post_accumulate_grad_hook(self._gradient_is_there)
                    hooks = parameter._post_accumulate_grad_hooks
                    for other in [key for key in hooks if key != handle.id]:
                        hooks[other] = hooks.pop(other)  # after this one: a fused backward frees the gradient
                    self._stack.callback(handle.remove)
        for handle in (
            register_optimizer_step_pre_hook(lambda *_: self._optimizer(1)),
            register_optimizer_step_post_hook(lambda *_: self._optimizer(-1)),
        ):
            self._stack.callback(handle.remove)
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device)
        self._stack.enter_context(_fused_attention_on_meta(self.kernels, self.attention))
        self._stack.enter_context(_Watch(self))

    def __exit__(self, *error) -> None:
        if self._device.type == "cuda":
            self._read_counter()
        self._stack.close()
        self._known.clear()  # what dies from now on is no longer counted
        self._hook = None
        self._sort_out()

    @property
    def peak(self) -> Moment:
        """The first moment of the highest total."""
        return max(self.timeline, key=lambda moment: moment.total)

    @property
    def peak_bytes(self) -> int:
        """The most that was alive at once, weights included."""
        return max(self.peaks.values(), default=0)

    @property
    def peaks(self) -> dict[str, int]:
        """The most that was alive at once, for each phase there was."""
        if self._counters:
            met = sum(-(-self._blocks[number].bytes // 512) * 512 for number in self._base)  # as the allocator rounds
            return {phase: counted - max(0, self._before - met) for phase, counted in self._counters.items()}
        peaks: dict[str, int] = {}
        for moment in self.timeline:
            peaks[moment.phase] = max(peaks.get(moment.phase, 0), moment.total)
        return {phase: peaks[phase] for phase in PHASES if phase in peaks}

    @property
    def saved_bytes(self) -> int:
        """The activations alive when forward ended: what it saved for backward."""
        return sum(self._blocks[number].bytes for number in self._saved if self._blocks[number].category == _CATEGORY["activations"])

    @property
    def timeline(self) -> list[Moment]:
        """What was alive, each time that changed."""
        if self._moments is None:
            live = dict.fromkeys(CATEGORIES, 0)
            for number in self._base:
                live[CATEGORIES[self._blocks[number].category]] += self._blocks[number].bytes
            moments = [Moment("", PHASES[0], dict(live))]
            for number, change, phase, operator in self._events:
                live[CATEGORIES[self._blocks[number].category] if number >= 0 else "temporaries"] += change
                moments.append(Moment(operator, PHASES[phase], dict(live)))
            self._moments = moments
        return self._moments

    def __str__(self) -> str:
        peak = self.peak
        lines = [f"peak {self.peak_bytes / MIB:,.1f} MiB, in {peak.phase} at {peak.operator or 'the start'}"]
        return "\n".join([*lines, *(f"  {name:16}{size / MIB:10,.1f} MiB" for name, size in peak.bytes.items() if size)])

    def operator(self, func, args: tuple, kwargs: dict, out: object) -> None:
        """Called after every operator; for those who want to count more than bytes."""

    # what happens while it is entered

    def _add_base(self, tensor: Tensor, category: str) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._known:
            self._base.append(self._add(storage, _CATEGORY[category], False))

    def _add(self, storage: torch.UntypedStorage, category: int | None, recomputed: bool) -> int:
        key, number, size = storage._cdata, len(self._blocks), storage.nbytes()
        self._blocks.append(_Block(size, category, self._phase, recomputed))

        def gone(_, key=key, number=number, size=size) -> None:
            del self._known[key]
            self._events.append((number, -size, self._phase, ""))

        self._known[key] = (number, weakref.ref(storage, gone))
        return number

    def _saw(self, func, args: tuple, kwargs: dict, out: object) -> None:
        backward = torch._C._current_graph_task_id() != -1
        if backward and not self._was_backward:
            self._saved = {number for number, _ in self._known.values()}
            self._ever_saved |= self._saved
        self._was_backward = backward
        self._enter_phase(self._phase_now())
        recomputed = backward and torch.is_grad_enabled()
        name = str(func.overloadpacket)
        for tensor in tensors_in(args):  # made before, or where no operator is seen
            self._see(tensor, "", True, False)
        self._see_random_state()
        for tensor in tensors_in(out):
            self._see(tensor, name, False, recomputed)
        if self.kernels == "cpu" and (size := scratch_bytes(func, args, self._threads)):
            self._events.append((-1, size, self._phase, name))
            self._events.append((-1, -size, self._phase, name))
        self.operator(func, args, kwargs, out)

    def _see(self, tensor: Tensor, operator: str, given: bool, recomputed: bool) -> None:
        try:
            storage = tensor.untyped_storage()
        except NotImplementedError:  # sparse, or a wrapper without a storage
            return
        if storage._cdata in self._known:
            return
        if given:
            category = "optimizer state" if self._optimizing else "inputs"
            self._base.append(self._add(storage, _CATEGORY[category], False))
            return
        number = self._add(storage, None, recomputed)
        self._events.append((number, self._blocks[number].bytes, self._phase, operator))

    def _see_random_state(self) -> None:
        """torch's checkpointing keeps the state of the random generator for each region, made where no operator is seen."""
        hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)
        if hooks is None or hooks[0] is self._hook:
            return
        self._hook = hooks[0]
        for tensor in _random_states(hooks[0]):
            self._see(tensor, "", False, False)

    def _gradient_is_there(self, parameter: Tensor) -> None:
        known = self._known.get(parameter.grad.untyped_storage()._cdata)
        if known is not None:
            self._blocks[known[0]].category = _CATEGORY["gradients"]

    def _optimizer(self, change: int) -> None:
        self._optimizing += change

    def _phase_now(self) -> int:
        return 2 if self._optimizing else 1 if torch._C._current_graph_task_id() != -1 else 0

    def _enter_phase(self, phase: int) -> None:
        if self._device.type == "cuda" and phase != self._phase:
            self._read_counter()
            torch.cuda.reset_peak_memory_stats(self._device)
        self._phase = phase

    def _read_counter(self) -> None:
        name = PHASES[self._phase]
        self._counters[name] = max(self._counters.get(name, 0), torch.cuda.max_memory_allocated(self._device))

    def _sort_out(self) -> None:
        """Say of every storage what it was, now that it is known how long it lived."""
        dead = {number for number, change, _, _ in self._events if change < 0 and number >= 0}
        for number, block in enumerate(self._blocks):
            if block.category is not None:
                continue
            if block.during == 2 and number not in dead:
                block.category = _CATEGORY["optimizer state"]
            elif block.recomputed or number in self._ever_saved:
                block.category = _CATEGORY["activations"]
            else:
                block.category = _CATEGORY["temporaries"]


class _Watch(TorchDispatchMode):
    def __init__(self, trace: MemoryTrace) -> None:
        super().__init__()
        self.trace = trace

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self.trace._device.type == "cuda":  # the allocator counts what an operator takes while it runs
            self.trace._enter_phase(self.trace._phase_now())
        out = metaops.run(func, args, kwargs)
        self.trace._saw(func, args, kwargs, out)
        return out


@contextmanager
def _fused_attention_on_meta(kernels: str, path: str):
    """On the meta device torch takes attention apart into matrices of every query with every key, which no real device does."""
    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl("scaled_dot_product_attention", partial(_fused_attention, kernels, path), "AutogradMeta")
        yield


def _fused_attention(kernels, path, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, *, scale=None, enable_gqa=False):
    aten = torch.ops.aten
    if enable_gqa and key.shape[1] != query.shape[1]:
        key, value = (t.repeat_interleave(query.shape[1] // t.shape[1], 1) for t in (key, value))
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(attn_mask.logical_not(), float("-inf"))
    if path == "math" or (kernels == "cpu" and (dropout_p > 0 or (attn_mask is not None and attn_mask.requires_grad))):  # as a CPU does
        return aten._scaled_dot_product_attention_math(query, key, value, attn_mask, dropout_p, is_causal, scale=scale)[0]
    if kernels == "cpu":
        return aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[
            0
        ]
    if attn_mask is None and path != "efficient" and (path == "flash" or query.dtype in (torch.float16, torch.bfloat16)):
        return aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal, False, scale=scale)[0]
    if attn_mask is not None:
        attn_mask = attn_mask.expand(*query.shape[:-1], key.shape[-2])
    return aten._scaled_dot_product_efficient_attention(query, key, value, attn_mask, True, dropout_p, is_causal, scale=scale)[0]


def tensors_in(value: object) -> Iterator[Tensor]:
    """The tensors in a value: a tensor, a sequence, a mapping, or one of diffusers' and transformers' records."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from tensors_in(part)
    elif isinstance(value, dict):
        for part in value.values():
            yield from tensors_in(part)
    elif hasattr(value, "sample"):
        yield value.sample


def _random_states(pack_hook) -> Iterator[Tensor]:
    """The states that a region of `torch.utils.checkpoint` keeps, found through the hook it packs tensors with."""
    if getattr(pack_hook, "__module__", "") != "torch.utils.checkpoint":
        return
    for cell in pack_hook.__closure__ or ():
        recompute = getattr(cell.cell_contents, "recompute_fn", None)
        for inner in getattr(recompute, "__closure__", None) or ():
            try:
                held = inner.cell_contents
            except ValueError:  # not filled on a device without a state
                continue
            if isinstance(held, (Tensor, list)):  # the CPU's state, and those of the devices; what a region is given is met by itself
                yield from tensors_in(held)
