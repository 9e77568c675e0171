"""Checkpointing with a choice: the same gradients, less memory, the traps, and a budget that is kept."""

import copy
import dataclasses
from itertools import pairwise

import pytest
import torch
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModelWithProjection, T5Config, T5EncoderModel

from sdnb.checkpointing import choices as checkpointing
from sdnb.checkpointing import recompute, survey
from sdnb.checkpointing.choices import CHEAP, Budget, Keep, apply, blocks, solve
from sdnb.checkpointing.recompute import BlockPlan
from sdnb.inputs import example
from sdnb.memory import operators
from sdnb.memory.trace import MIB, MemoryTrace
from sdnb.models.skeletons import skeleton_unet

from ..conftest import switch_checkpointing
from ..memory.test_trace import filled


def sd3():
    return SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=4, joint_attention_dim=32,
        caption_projection_dim=32, pooled_projection_dim=64, out_channels=4,
    )  # fmt: skip


def flux():
    return FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip


def clip():
    return CLIPTextModelWithProjection(
        CLIPTextConfig(vocab_size=100, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4, projection_dim=32)
    )


def t5():
    return T5EncoderModel(T5Config(vocab_size=100, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4))


def with_dropout():
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(16, 32), layers_per_block=1, cross_attention_dim=16, norm_num_groups=4, dropout=0.3,
        attention_head_dim=4, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip


MODELS = {
    "unet": lambda tiny: tiny.unet,
    "vae": lambda tiny: tiny.vae,
    "text_encoder": lambda tiny: tiny.text_encoder,
    "unet with dropout": lambda tiny: with_dropout(),
    "text encoder with projection": lambda tiny: clip(),
    "t5": lambda tiny: t5(),
    "sd3": lambda tiny: sd3(),
    "flux": lambda tiny: flux(),
}


@pytest.fixture(params=MODELS)
def model(request, tiny):
    torch.manual_seed(0)
    return copy.deepcopy(MODELS[request.param](tiny)).requires_grad_(True).train()


@pytest.fixture
def unet(tiny):
    return copy.deepcopy(tiny.unet).train()


def size_of(model):
    return 8 if type(model).__name__ == "FluxTransformer2DModel" else None


def real(model, batch=2):
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.ones(t.shape, dtype=t.dtype) if t.dtype == torch.long else torch.randn(t.shape, generator=generator).to(t.dtype)
        for name, t in example(model, batch=batch, size=size_of(model)).items()
    }


def gradients(model, inputs):
    torch.manual_seed(1)
    out = next(survey.tensors_in(model(**inputs)))
    out.square().mean().backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def equal(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def choices(model, inputs):
    """One of every form, points of the frontier included."""
    listed = checkpointing.frontier(model, inputs, fused_backward_pass=True, points=4)
    whole = checkpointing.frontier(model, inputs, fused_backward_pass=True, operators=False, points=3)
    names = [block.name for block in blocks(model, inputs)]
    every = ["none", "full", names[:1], set(names[1:]), CHEAP, Keep("attention"), Keep("convolution", "matmul")]
    mixture = {names[0]: CHEAP, names[-1]: "full"} if len(names) > 1 else {names[0]: CHEAP}
    return [*every, mixture, *listed, *whole]


def test_gradients_are_the_same_to_the_bit(model):
    """For every choice, with dropout, for a U-Net, an autoencoder, text encoders and transformers."""
    inputs = real(model)
    expected = gradients(model, inputs)
    assert len(expected) > 15
    before = {name: vars(module).get("forward") for name, module in model.named_modules()}
    for choice in choices(model, inputs):
        with apply(model, choice, inputs=inputs) as applied:
            assert equal(gradients(model, inputs), expected), choice
            assert bool(applied.blocks) == (choice != "none" and getattr(choice, "choice", True) != {})
        assert {name: vars(module).get("forward") for name, module in model.named_modules()} == before


def test_it_is_the_recomputing_of_torch(unet):
    """ "full" on the U-Net: as many bytes and FLOPs as diffusers' own, which calls torch's checkpoint for each block."""
    inputs = filled(unet)
    traces = []
    for ours in (True, False):
        model = copy.deepcopy(unet)
        if ours:
            apply(model, "full")
        else:
            model.enable_gradient_checkpointing()
        with MemoryTrace(model) as trace:
            model(**inputs).sample.square().mean().backward()
        with FlopCounterMode(display=False) as counter:
            model(**inputs).sample.square().mean().backward()
        traces.append((trace.saved_bytes, trace.peak_bytes, counter.get_total_flops()))
    assert traces[0] == traces[1]


def test_text_encoders_recompute_in_eval_mode_too(tiny):
    """transformers looks at the mode, and in eval() silently recomputes nothing."""
    model = copy.deepcopy(tiny.text_encoder).requires_grad_(True).eval()
    inputs = filled(model)

    def saved():
        with MemoryTrace(model) as trace:
            model(**inputs).last_hidden_state.square().mean().backward()
        model.zero_grad(set_to_none=True)
        return trace.saved_bytes

    plain = saved()
    switch_checkpointing(model)
    assert saved() == plain  # the trap
    switch_checkpointing(model, on=False)
    expected = gradients(model, inputs)
    with apply(model, "full"):
        assert saved() < plain / 2
        assert equal(gradients(model, inputs), expected)


def test_a_frozen_base_with_adapters_gets_all_its_gradients(unet):
    class Adapter(torch.nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base = base
            self.down = torch.nn.Linear(base.in_features, 2, bias=False)
            self.up = torch.nn.Linear(2, base.out_features, bias=False)

        def forward(self, x):
            return self.base(x) + self.up(self.down(x))

    unet.requires_grad_(False)
    for module in [module for module in unet.modules() if hasattr(module, "to_q")]:
        module.to_q, module.to_v = Adapter(module.to_q), Adapter(module.to_v)
    inputs = real(unet)
    expected = gradients(unet, inputs)
    assert len(expected) == sum(p.requires_grad for p in unet.parameters()) > 20
    for choice in choices(unet, inputs):
        with apply(unet, choice, inputs=inputs):
            assert equal(gradients(unet, inputs), expected)
    with pytest.raises(ValueError, match=r"only \d+ of \d+ parameters are trained.*such as adapters"):
        apply(unet, "full", use_reentrant=True)


def test_reentrant_is_refused_with_the_reason(unet):
    with pytest.raises(ValueError, match="not offered: it refuses keyword arguments"):
        apply(unet, "full", use_reentrant=True)


def test_blocks_say_what_each_saves_and_costs(unet):
    inputs = example(unet, batch=4)
    listed = blocks(unet, inputs)
    assert [block.name for block in listed][:2] == ["down_blocks.0.resnets.0", "down_blocks.0.attentions.0.transformer_blocks.0"]
    assert {block.kind for block in listed} == {"ResnetBlock2D", "BasicTransformerBlock"}
    plain = survey.verify(unet, inputs, {})
    everything = survey.Survey(unet, inputs).policy(frozenset())
    for block in listed[:3]:
        alone = survey.verify(unet, inputs, {block.name: BlockPlan()})
        assert plain.saved_bytes - alone.saved_bytes == pytest.approx(block.saved_bytes, abs=6000)  # a random state, an index
        again = survey.verify(unet, inputs, {block.name: everything[block.name]})
        assert again.flops - plain.flops == block.recompute_flops <= alone.flops - plain.flops
        assert {operator.kind for operator in block.operators} <= set(operators.KINDS)


def test_what_nothing_needs_is_not_run_again(unet):
    """A residual block ends in a convolution whose result backward does not need; torch runs it again where a shortcut follows."""
    inputs = example(unet)
    name = "up_blocks.0.resnets.0"
    block = next(block for block in blocks(unet, inputs) if block.name == name)
    convolutions = [operator.flops for operator in block.operators if operator.kind == "convolution"]
    full = survey.verify(unet, inputs, {name: BlockPlan()}).flops - survey.verify(unet, inputs, {}).flops
    assert len(convolutions) == 3
    assert full - block.recompute_flops >= convolutions[1]


def test_nothing_happens_without_gradients(unet):
    inputs = filled(unet)
    with torch.no_grad():
        plain = unet(**inputs).sample
        with apply(unet, CHEAP):
            assert torch.equal(unet(**inputs).sample, plain)


def test_it_lasts_until_removed(unet):
    inputs = filled(unet, batch=1)
    applied = apply(unet, "full")
    assert len(applied.blocks) == 17
    assert repr(applied) == "<17 blocks recompute>"
    with MemoryTrace(unet) as trace:
        unet(**inputs).sample.mean().backward()
    applied.remove()
    applied.remove()
    with MemoryTrace(unet) as plain:
        unet(**inputs).sample.mean().backward()
    assert trace.saved_bytes < plain.saved_bytes / 3


def test_a_copy_of_a_model_is_a_model_of_its_own(unet):
    """Of an exponential average, say: it must not compute with the weights of the first."""
    inputs = filled(unet, batch=1)
    with apply(unet, CHEAP):
        twin = copy.deepcopy(unet)
        with torch.no_grad():
            for parameter in unet.parameters():
                parameter.zero_()
        assert twin(**inputs).sample.abs().max() > 0.01
        gradients(twin, inputs)
        assert all(p.grad is None for p in unet.parameters())


def test_backward_a_second_time_gives_the_same(unet):
    inputs = filled(unet, batch=1)
    with apply(unet, CHEAP):
        loss = unet(**inputs).sample.square().mean()
        first = torch.autograd.grad(loss, list(unet.parameters()), retain_graph=True)
        second = torch.autograd.grad(loss, list(unet.parameters()))
    assert all(map(torch.equal, first, second))


class Careless(torch.nn.Module):
    """Changes in place what a matrix product gave: directly, or as T5 did before transformers 5.23, in another shape."""

    def __init__(self, changes):
        super().__init__()
        self.layer, self.last, self.changes = torch.nn.Linear(4, 4, bias=False), torch.nn.Linear(4, 4), changes

    def forward(self, x):
        x = self.layer(x)
        return self.last(x.mul_(2) if self.changes else x).mul_(3 if self.changes else 1)


@pytest.mark.parametrize("shape", [(2, 4), (2, 3, 4), (2, 2, 3, 4)])
def test_a_result_that_the_block_changes_is_made_again(shape):
    torch.manual_seed(0)
    block, x = Careless(changes=True), torch.randn(shape, requires_grad=True)
    expected = torch.autograd.grad(block(x).square().sum(), [x, *block.parameters()])
    block.forward = recompute.RecomputedForward(block, BlockPlan(keep=frozenset({0, 1})))
    found = torch.autograd.grad(block(x).square().sum(), [x, *block.parameters()])
    assert all(map(torch.equal, expected, found))


class Twofold(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 4, bias=False)

    def forward(self, x):
        x = self.layer(x)
        return x, x.square()


@pytest.mark.parametrize("shape", [(2, 4), (2, 3, 4)])
def test_a_kept_result_that_was_changed_outside_is_noticed(shape):
    block = Twofold()
    block.forward = recompute.RecomputedForward(block, BlockPlan(keep=frozenset({0})))
    first, second = block(torch.ones(shape, requires_grad=True))
    first.mul_(2)
    with pytest.raises(RuntimeError, match="changed in place"):
        second.sum().backward()


def test_what_is_skipped_depends_on_what_is_trained():
    """Solved for adapters alone, and then everything is trained, or an input wants a gradient: more is needed, and more is run."""
    model = sd3().requires_grad_(False).train()
    for block in model.transformer_blocks:
        block.attn.to_q.requires_grad_(True)
    shapes, inputs = example(model, batch=2), real(model)
    for choice in (CHEAP, Keep("attention"), checkpointing.frontier(model, shapes, points=None)[-1]):
        pooled = inputs["pooled_projections"].clone().requires_grad_()
        expected = gradients(model, inputs | {"pooled_projections": pooled})
        wanted, pooled.grad = pooled.grad, None
        with apply(model, choice, inputs=shapes):
            assert equal(gradients(model, inputs | {"pooled_projections": pooled}), expected)
            assert torch.equal(pooled.grad, wanted)
            trained = [parameter for parameter in model.parameters() if not parameter.requires_grad]
            model.requires_grad_(True)
            again = gradients(model, inputs)
        assert equal(again, gradients(model, inputs))
        for parameter in trained:
            parameter.requires_grad_(False)


def test_under_autocast_and_over_two_batches(unet):
    inputs = real(unet)
    found = []
    for choice in ("none", "full", CHEAP, checkpointing.frontier(unet, inputs, fused_backward_pass=True)[-1]):
        with apply(unet, choice, inputs=inputs):
            for _ in range(2):
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    loss = unet(**inputs).sample.float().square().mean()
                loss.backward()
        found.append({name: parameter.grad for name, parameter in unet.named_parameters()})
        unet.zero_grad(set_to_none=True)
    assert all(equal(found[0], other) for other in found[1:])


def test_a_wrong_skip_is_noticed_and_never_used():
    """By hand: the first product is skipped, though the activation after it saves what it made."""
    block = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.GELU(), torch.nn.Linear(4, 4))
    x = torch.ones(2, 4, requires_grad=True)
    wrong = BlockPlan(skip=frozenset({0}), kinds=("matmul", "matmul"), requires_grad=recompute.requires_grad(block, (x,), {}))
    expected = gradients_of(block, x)
    for again, noticed in (
        (wrong, True),
        (dataclasses.replace(wrong, kinds=("matmul", "convolution")), False),  # not what was counted: nothing is skipped
        (dataclasses.replace(wrong, requires_grad=()), False),
    ):
        block.forward = recompute.RecomputedForward(block, again)
        if noticed:
            with pytest.raises(RuntimeError, match="needs more of this block than when it was measured"):
                gradients_of(block, x)
        else:
            assert all(map(torch.equal, gradients_of(block, x), expected))
        del block.forward
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None


def gradients_of(block, x):
    return torch.autograd.grad(block(x).sum(), [x, *block.parameters()])


# The frontier


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "batch", "saving", "price"),
    [
        ("sd15", 1, 0.88, 1.08),
        pytest.param("sd15", 4, 0.88, 1.08, marks=pytest.mark.long),
        pytest.param("sdxl", 1, 0.80, 1.12, marks=pytest.mark.long),
        ("sdxl", 4, 0.80, 1.12),
    ],
)
def test_most_of_the_saving_for_little_of_the_price(name, batch, saving, price):
    """In bf16 on the meta device, against recomputing every block as diffusers does; traced, not estimated."""
    unet = skeleton_unet(name, dtype=torch.bfloat16)
    inputs = example(unet, batch=batch)
    off = survey.Survey(unet, inputs, fused_backward_pass=True)
    everything = dict.fromkeys((block.name for block in off.blocks), BlockPlan())
    full = survey.verify(unet, inputs, everything, fused_backward_pass=True)
    chain = off.chain()
    for most, least in ((price, saving), (1.005, 0.4)):
        point = [point for point in chain if point.flops_ratio <= most][-1]
        trace = survey.verify(unet, inputs, point.choice, fused_backward_pass=True)
        assert trace.flops / off.flops == pytest.approx(point.flops_ratio)
        assert trace.peak_bytes == pytest.approx(point.peak_bytes, rel=0.005)
        assert (off.peak_bytes - trace.peak_bytes) / (off.peak_bytes - full.peak_bytes) >= least
        assert (off.saved_bytes - trace.saved_bytes) / (off.saved_bytes - full.saved_bytes) >= least
    assert chain[-1].peak_bytes <= 1.005 * full.peak_bytes
    assert chain[-1].flops_ratio < full.flops / off.flops


@pytest.mark.parametrize(
    ("part", "fused"),
    [("unet", True), ("vae", False), *(pytest.param(*case, marks=pytest.mark.long) for case in (("unet", False), ("vae", True)))],
)
def test_a_budget_is_kept_and_a_smaller_one_never_peaks_higher(tiny, part, fused):
    model = copy.deepcopy(getattr(tiny, part)).requires_grad_(True).train()
    inputs = example(model, batch=4)
    chain = checkpointing.frontier(model, inputs, fused_backward_pass=fused, points=None)
    top, low = chain[0].peak_bytes, chain[-1].peak_bytes
    assert low < top
    peaks, prices = [], []
    for step in range(6):
        budget = Budget(int(top - (top - low) * step / 6), fused_backward_pass=fused)
        point = solve(model, budget, inputs)
        assert point.peak_bytes <= budget.bytes
        peaks.append(point.peak_bytes)
        prices.append(point.flops_ratio)
    assert peaks == sorted(peaks, reverse=True)
    assert prices == sorted(prices)


def test_the_peak_of_a_real_step_keeps_to_the_budget(unet):
    inputs = filled(unet)
    chain = checkpointing.frontier(unet, inputs, points=None)
    budget = (chain[0].peak_bytes + chain[-1].peak_bytes) // 2
    with apply(unet, Budget(budget), inputs=inputs), MemoryTrace(unet) as trace:
        unet(**inputs).sample.square().mean().backward()
    assert trace.peak_bytes <= budget
    with MemoryTrace(unet) as plain:
        unet.zero_grad(set_to_none=True)
        unet(**inputs).sample.square().mean().backward()
    assert plain.peak_bytes > budget


def test_a_budget_below_the_floor_names_the_floor(unet):
    inputs = example(unet, batch=4)
    with pytest.raises(ValueError, match=r"the smallest peak of this UNet2DConditionModel is (\d+) bytes .* fused_backward_pass") as error:
        apply(unet, Budget(1000), inputs=inputs)
    floor = int(str(error.value).split(" is ")[1].split()[0])
    assert solve(unet, Budget(floor), inputs).peak_bytes == floor
    with pytest.raises(ValueError, match="the smallest peak"):
        solve(unet, Budget(floor - 1), inputs)
    assert not any("forward" in vars(module) for module in unet.modules())


def test_a_budget_with_room_recomputes_nothing(unet):
    point = solve(unet, Budget(10**12), example(unet))
    assert point.choice == {}
    assert point.flops_ratio == 1


def test_whole_blocks_cost_more_than_operators(unet):
    inputs = example(unet, batch=4)
    fine = checkpointing.frontier(unet, inputs, fused_backward_pass=True, points=None)
    coarse = checkpointing.frontier(unet, inputs, fused_backward_pass=True, operators=False, points=None)
    assert all(again == BlockPlan() for point in coarse for again in point.choice.values())
    middle = (fine[0].peak_bytes + fine[-1].peak_bytes) // 2
    best = [next(point.flops_ratio for point in chain if point.peak_bytes <= middle) for chain in (fine, coarse)]
    assert best[0] < best[1]


def test_the_frontier_goes_from_nothing_to_the_floor(unet):
    points = checkpointing.frontier(unet, fused_backward_pass=True, points=5)
    assert points[0].choice == {}
    assert 3 <= len(points) <= 5
    assert all(a.peak_bytes > b.peak_bytes and a.flops_ratio <= b.flops_ratio for a, b in pairwise(points))


# What is refused


def test_an_unknown_block_is_answered_with_the_nearest(unet):
    with pytest.raises(ValueError, match=r"no block 'down_blocks\.0\.resnet\.0': the nearest are down_blocks\.0\.resnets\.0,"):
        apply(unet, ["down_blocks.0.resnet.0"])
    with pytest.raises(ValueError, match="lists all 17"):
        apply(unet, {"conv_in": "full"})
    with pytest.raises(ValueError, match="choice='fulll'"):
        apply(unet, "fulll")
    with pytest.raises(ValueError, match="is no choice for one block"):
        apply(unet, {"down_blocks.0.resnets.0": Budget(10)})
    assert not any("forward" in vars(module) for module in unet.modules())


def test_a_model_without_blocks_is_refused(tiny):
    for ask in (blocks, lambda model, inputs: apply(model, "full", inputs=inputs)):
        with pytest.raises(ValueError, match=r"Linear has no block that can be recomputed"):
            ask(torch.nn.Linear(2, 2), {"input": torch.ones(1, 2)})
    with pytest.raises(ValueError, match=r"what a Linear is called with is not known: give inputs="):
        apply(torch.nn.Linear(2, 2), "full")
    with pytest.raises(TypeError, match=r"StableDiffusion is no torch module.*sd\.unet"):
        apply(tiny, "full")


@pytest.mark.parametrize("bytes", [0, -1, float("nan"), float("inf"), True, "8GB"])
def test_a_budget_is_a_positive_number(bytes):
    with pytest.raises(ValueError, match="positive number of bytes"):
        Budget(bytes)


def test_keep_knows_three_kinds():
    with pytest.raises(ValueError, match=r"Keep\('norm'\): there are matmul, convolution, attention"):
        Keep("norm")
    with pytest.raises(ValueError, match='called "full"'):
        Keep()


def test_applying_twice_is_refused_and_changes_nothing(unet):
    with apply(unet, "full"):
        for ask in (lambda: apply(unet, CHEAP), lambda: blocks(unet)):
            with pytest.raises(ValueError, match="recomputes already: leave the context of the first"):
                ask()
        assert sum("forward" in vars(module) for module in unet.modules()) == 17
    apply(unet, "full").remove()


def test_someone_elses_checkpointing_is_noticed(unet, tiny):
    unet.enable_gradient_checkpointing()
    with pytest.raises(ValueError, match=r"switched on by diffusers or transformers.*disable_gradient_checkpointing\(\)"):
        apply(unet, "full")
    unet.disable_gradient_checkpointing()
    unet.enable_gradient_checkpointing(lambda module, *args: checkpoint(module, *args, use_reentrant=True))
    with pytest.raises(ValueError, match="switched on by"):
        apply(unet, CHEAP)
    encoder = copy.deepcopy(tiny.text_encoder)
    switch_checkpointing(encoder)
    with pytest.raises(ValueError, match="switched on by"):
        apply(encoder, "full")


def test_an_exception_inside_puts_the_model_back(unet):
    with pytest.raises(KeyError), apply(unet, CHEAP):
        raise KeyError
    assert not any("forward" in vars(module) for module in unet.modules())


def test_a_frozen_model_has_nothing_to_save(tiny):
    with pytest.raises(ValueError, match=r"nothing in this CLIPTextModel is trained.*requires_grad_\(True\)"):
        blocks(tiny.text_encoder)


def test_a_point_of_another_model_is_refused(unet, tiny):
    point = checkpointing.frontier(unet)[-1]
    with pytest.raises(ValueError, match="belongs to another model"):
        apply(copy.deepcopy(tiny.vae), point)


def test_inputs_of_a_known_model_can_be_made_and_others_are_asked_for(unet):
    shapes = {name: tuple(t.shape) for name, t in example(unet, batch=3, size=8).items()}
    assert shapes == {"sample": (3, 4, 8, 8), "timestep": (3,), "encoder_hidden_states": (3, 77, 128)}
    with pytest.raises(ValueError, match="batch=0"):
        example(unet, batch=0)


@pytest.mark.gpu
def test_on_a_gpu_the_saving_is_the_allocators(unet):
    unet = unet.cuda()
    inputs = {name: value.cuda() for name, value in filled(unet, batch=16).items()}
    peaks = []
    for choice in ("none", CHEAP, "full"):
        with apply(unet, choice):
            for _ in range(2):
                torch.cuda.reset_peak_memory_stats()
                unet(**inputs).sample.square().mean().backward()
                unet.zero_grad(set_to_none=True)
            peaks.append(torch.cuda.max_memory_allocated() / MIB)
    assert peaks == sorted(peaks, reverse=True)
