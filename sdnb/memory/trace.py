"""`MemoryTrace`: the live bytes of a training step, operator by operator.

A tensor's storage is counted from when the operator that makes it returns until the last reference to it is gone. That needs no look at
its contents, so the same trace runs on real tensors and on the meta device, where tensors have shapes and no contents: a step of SDXL is
then counted on a laptop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from ..system import GIB as GIB
from ..system import MIB
from . import attention as attentions
from . import metaops
from .ledger import CATEGORIES, PHASES, Ledger, Observer
from .modules import Modules
from .scratch import scratch_bytes

if TYPE_CHECKING:
    from torch.nn import Module, Parameter


@dataclass(frozen=True, slots=True)
class Moment:
    """Bytes alive at one moment of a trace."""

    operator: str
    """Operator that has just run, such as `aten.convolution`; empty before the first."""
    phase: str
    """Phase that it ran in, one of `PHASES`."""
    bytes: dict[str, int]
    """Bytes alive by category, in the order of `CATEGORIES`."""

    @property
    def total(self) -> int:
        """Bytes of all categories together."""
        return sum(self.bytes.values())


class MemoryTrace:
    """Counts live bytes, by category and phase, while it is entered.

        with MemoryTrace(unet) as trace:
            unet(...).sample.square().mean().backward()
            optimizer.step()
        trace.peak_bytes, trace.peak.bytes["activations"]

    - `models`: modules whose storages count as weights; their device decides what is counted
    - `kernels`: `"cpu"` adds the scratch memory that CPU kernels allocate, `"cuda"` does not. Default: the models' device, and `"cuda"`
      for the meta device, without the rounding and the workspaces of the CUDA allocator
    - `attention`: kernel to assume on the meta device, one of `attention.KERNELS`; `auto` takes the one that torch would for a card
    - `capability`: compute capability of that card
    - `cpu_tensors`: False leaves out tensors on the CPU, such as an optimizer's step counts

    On CUDA `peak_bytes` and `peaks` are the allocator's own, minus what the process held before and the trace never saw; categories are
    counted as on any device. Inside a trace every operator takes longer, by about 20 microseconds on two slow cores.
    An `Observer` is called for every operator and storage: see `observe`. Raises `ValueError` for other `kernels`, and `RuntimeError` when
    it is entered twice.
    """

    def __init__(
        self, *models: Module, kernels: str | None = None, attention: str = "auto",
        capability: tuple[int, int] = attentions.DEFAULT, cpu_tensors: bool = True,
    ) -> None:  # fmt: skip
        devices = {tensor.device for model in models for tensor in (*model.parameters(), *model.buffers())}
        self._models = models
        self._device = next((d for d in devices if d.type == "cuda"), next(iter(devices), torch.device("cpu")))
        self.kernels = kernels or ("cpu" if self._device.type == "cpu" else "cuda")
        if self.kernels not in ("cpu", "cuda"):
            raise ValueError(f'kernels={kernels!r}: there are "cpu" and "cuda"')
        self._attend = partial(_fused_attention, self.kernels, attention, capability)
        self._threads = torch.get_num_threads()
        self._observers: list[Observer] = []
        self.ledger = Ledger(self._observers, cpu_tensors=cpu_tensors)
        """Storages seen, and events so far."""
        self.modules = Modules(models)
        """Which module is at work."""
        self.saved: set[int] = set()
        """Numbers of the storages that were alive when the last forward ended."""
        self._ever_saved: set[int] = set()
        self._optimizing = 0
        self._was_backward = False
        self._pack_hook = None
        self._counters: dict[str, int] = {}
        self._bytes_before = 0
        self._stack = ExitStack()
        self._was_entered = False
        self._moments: list[Moment] | None = None

    def observe(self, observer: Observer) -> None:
        """Call `observer` for every operator, storage and gradient until the trace ends."""
        self._observers.append(observer)

    def __enter__(self) -> MemoryTrace:
        if self._was_entered:
            raise RuntimeError("a MemoryTrace counts one stretch: make a new one for the next")
        self._was_entered = True
        try:
            self._open()
        except BaseException:
            self._stack.close()  # nobody calls __exit__ where __enter__ raised
            raise
        return self

    def _open(self) -> None:
        """Install the hooks and modes, each with its removal on the stack."""
        for model in self._models:
            for tensor in (*model.parameters(), *model.buffers()):
                self.ledger.module = self.modules.owner(tensor) or ""
                self.ledger.add_existing(tensor, "weights")
            for parameter in model.parameters():
                if parameter.grad is not None:
                    self.ledger.module = self.modules.owner(parameter) or ""
                    self.ledger.add_existing(parameter.grad, "gradients")
                if parameter.requires_grad:
                    handle = parameter.register_post_accumulate_grad_hook(self._gradient_ready)
                    hooks = parameter._post_accumulate_grad_hooks
                    for other in [key for key in hooks if key != handle.id]:
                        hooks[other] = hooks.pop(other)  # after this one: a fused backward frees the gradient
                    self._stack.callback(handle.remove)
        for handle in (
            register_optimizer_step_pre_hook(lambda *_: self._change_optimizing(1)),
            register_optimizer_step_post_hook(lambda *_: self._change_optimizing(-1)),
        ):
            self._stack.callback(handle.remove)
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            self._bytes_before = torch.cuda.memory_allocated(self._device)
        self.ledger.module = ""
        self._stack.enter_context(self.modules.watching())
        self._stack.enter_context(_fused_attention_on_meta(self._attend))
        self._stack.enter_context(_TraceMode(self))

    def __exit__(self, *error) -> None:
        if self._device.type == "cuda":
            self._read_counter()
        self._stack.close()
        self.ledger.close(self._ever_saved)
        self._observers.clear()
        self._pack_hook = None

    @property
    def peak(self) -> Moment:
        """Moment with the highest total; the first of several."""
        return max(self.timeline, key=lambda moment: moment.total)

    @property
    def peak_bytes(self) -> int:
        """Most bytes alive at once, weights included."""
        return max(self.peaks.values(), default=0)

    @property
    def peaks(self) -> dict[str, int]:
        """Most bytes alive at once, by phase; phases that did not occur are left out."""
        if self._counters:
            base_bytes = sum(-(-self.ledger.storages[number].bytes // 512) * 512 for number in self.ledger.base)  # as the allocator rounds
            unseen_bytes = max(0, self._bytes_before - base_bytes)
            return {phase: peak - unseen_bytes for phase, peak in self._counters.items()}
        peaks: dict[str, int] = {}
        for moment in self.timeline:
            peaks[moment.phase] = max(peaks.get(moment.phase, 0), moment.total)
        return {phase: peaks[phase] for phase in PHASES if phase in peaks}

    @property
    def saved_bytes(self) -> int:
        """Bytes of the activations alive when forward ended: what it saved for backward."""
        storages = [self.ledger.storages[number] for number in self.saved]
        return sum(storage.bytes for storage in storages if storage.category == "activations")

    @property
    def timeline(self) -> list[Moment]:
        """Bytes alive after each change, in order."""
        if self._moments is None:
            live: dict[str, int] = dict.fromkeys(CATEGORIES, 0)
            storages = self.ledger.storages
            for number in self.ledger.base:
                live[str(storages[number].category)] += storages[number].bytes
            moments = [Moment("", PHASES[0], dict(live))]
            for event in self.ledger.events:
                live[str(storages[event.storage].category) if event.storage >= 0 else "temporaries"] += event.bytes
                moments.append(Moment(event.operator, event.phase, dict(live)))
            self._moments = moments
        return self._moments

    def __str__(self) -> str:
        peak = self.peak
        lines = [f"peak {self.peak_bytes / MIB:,.1f} MiB, in {peak.phase} at {peak.operator or 'the start'}"]
        return "\n".join([*lines, *(f"  {name:16}{size / MIB:10,.1f} MiB" for name, size in peak.bytes.items() if size)])

    # called while the trace is entered

    def _operator_ran(self, func, args: tuple, kwargs: dict, out: object) -> None:
        backward = torch._C._current_graph_task_id() != -1
        if backward and not self._was_backward:
            self.saved = self.ledger.alive
            self._ever_saved |= self.saved
        self._was_backward = backward
        self._enter_phase("optimizer" if self._optimizing else "backward" if backward else "forward")
        ledger, name = self.ledger, _packet_name(func)
        ledger.module, ledger.recomputing = self.modules.at_work(backward), backward and torch.is_grad_enabled()
        category = "optimizer state" if self._optimizing else "inputs"
        for tensor in tensors_in(args):  # made before, or where no operator is seen
            ledger.add_existing(tensor, category)
        self._add_random_states()
        for tensor in tensors_in(out):
            ledger.add_result(tensor, name)
        if self.kernels == "cpu" and (size := scratch_bytes(func, args, self._threads)):
            ledger.add_scratch(size, name)
        for observer in self._observers:
            observer.operator_ran(func, args, kwargs, out)

    def _add_random_states(self) -> None:
        """Add the random generator's states that torch's checkpointing keeps for each region, made where no operator is seen."""
        hooks = torch._C._autograd._top_saved_tensors_default_hooks(True)  # pyright: ignore[reportAttributeAccessIssue]  # private
        if hooks is None or hooks[0] is self._pack_hook:
            return
        self._pack_hook = hooks[0]
        for tensor in _random_states(hooks[0]):
            self.ledger.add_result(tensor, "")

    def _gradient_ready(self, parameter: Parameter) -> None:
        number = None if parameter.grad is None else self.ledger.number(parameter.grad)
        if number is not None:
            storage = self.ledger.storages[number]
            storage.category, storage.module = "gradients", self.modules.owner(parameter) or storage.module
            for observer in self._observers:
                observer.gradient_ready(number, parameter)

    def _change_optimizing(self, change: int) -> None:
        self._optimizing += change

    def _current_phase(self) -> str:
        return "optimizer" if self._optimizing else "backward" if torch._C._current_graph_task_id() != -1 else "forward"

    def _enter_phase(self, phase: str) -> None:
        if self._device.type == "cuda" and phase != self.ledger.phase:
            self._read_counter()
            torch.cuda.reset_peak_memory_stats(self._device)
        self.ledger.phase = phase

    def _read_counter(self) -> None:
        phase = self.ledger.phase
        self._counters[phase] = max(self._counters.get(phase, 0), torch.cuda.max_memory_allocated(self._device))


@cache
def _packet_name(func) -> str:
    """Name of an operator, such as `aten.convolution`."""
    return str(func.overloadpacket)


class _TraceMode(TorchDispatchMode):
    """Passes every operator to the trace."""

    def __init__(self, trace: MemoryTrace) -> None:
        super().__init__()
        self.trace = trace

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and torch's guard against it would import its compiler and be asked for every operator

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self.trace._device.type == "cuda":  # the allocator counts what an operator takes while it runs
            self.trace._enter_phase(self.trace._current_phase())
        with torch._C.DisableTorchFunction():  # no mode need hear of each tensor's size that is asked for here
            out = metaops.run(func, args, kwargs)
            self.trace._operator_ran(func, args, kwargs, out)
        return out


@contextmanager
def _fused_attention_on_meta(attend: Callable):
    """Make attention on the meta device one fused operator, as on real devices; otherwise torch splits it into matrix products."""
    with torch.library._scoped_library("aten", "IMPL") as library:
        library.impl("scaled_dot_product_attention", attend, "AutogradMeta")
        yield


def _fused_attention(
    kernels, path, capability, query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, *, scale=None, enable_gqa=False
):
    aten = torch.ops.aten
    if enable_gqa and key.shape[1] != query.shape[1]:
        key, value = (t.repeat_interleave(query.shape[1] // t.shape[1], 1) for t in (key, value))
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill_(attn_mask.logical_not(), float("-inf"))
    if path == "auto" and kernels == "cuda":
        learns = torch.is_grad_enabled() and any(t.requires_grad for t in (query, key, value))
        size, masked = query.shape[-1], attn_mask is not None
        path = attentions.kernel(query.dtype, size, capability=capability, masked=masked, learns=learns)
    if path == "math" or (kernels == "cpu" and (dropout_p > 0 or (attn_mask is not None and attn_mask.requires_grad))):  # as a CPU does
        return aten._scaled_dot_product_attention_math(query, key, value, attn_mask, dropout_p, is_causal, scale=scale)[0]
    if kernels == "cpu":
        flash_for_cpu = aten._scaled_dot_product_flash_attention_for_cpu
        return flash_for_cpu(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]
    if path == "flash" and attn_mask is None:
        size = query.shape[-1]
        padded = (torch.nn.functional.pad(t, (0, -size % 8)) if size % 8 else t for t in (query, key, value))
        return aten._scaled_dot_product_flash_attention(*padded, dropout_p, is_causal, False, scale=scale)[0][..., :size]
    if attn_mask is not None:
        attn_mask = attn_mask.expand(*query.shape[:-1], key.shape[-2])
    if path == "cudnn":
        return aten._scaled_dot_product_cudnn_attention(query, key, value, attn_mask, True, dropout_p, is_causal, False, scale=scale)[0]
    return aten._scaled_dot_product_efficient_attention(query, key, value, attn_mask, True, dropout_p, is_causal, scale=scale)[0]


_NO_TENSOR = (int, float, str, type(None), torch.dtype, torch.device)
"""Arguments of operators that need not be searched."""


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors in a value: a tensor, a sequence, a mapping, or an output record of diffusers or transformers."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            if isinstance(part, Tensor):
                yield part
            elif not isinstance(part, _NO_TENSOR):
                yield from tensors_in(part)
    elif isinstance(value, dict):
        for part in value.values():
            yield from tensors_in(part)
    elif hasattr(value, "sample"):
        yield value.sample


def _random_states(pack_hook) -> Iterator[Tensor]:
    """Yield the random generator's states that a region of `torch.utils.checkpoint` keeps, found through its pack hook."""
    if getattr(pack_hook, "__module__", "") != "torch.utils.checkpoint":
        return
    for cell in pack_hook.__closure__ or ():
        recompute = getattr(cell.cell_contents, "recompute_fn", None)
        for inner in getattr(recompute, "__closure__", None) or ():
            try:
                contents = inner.cell_contents
            except ValueError:  # not filled on a device without a state
                continue
            if isinstance(contents, (Tensor, list)):  # states of the CPU and of the devices; a region's own inputs are seen anyway
                yield from tensors_in(contents)
