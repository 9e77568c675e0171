"""Adafactor: equal to transformers' where it should be, small where that is large, and never poisoned."""

import copy
import gc
import io
import itertools
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.optimization import Adafactor as Theirs

import sdnb
from benchmarks.adafactor import launched, state_bytes
from sdnb.adafactor import FACTORINGS, Adafactor, NonFiniteGradient, layout, matrix_direction, round_stochastically
from sdnb.memory.trace import MemoryTrace
from sdnb.models.skeletons import skeleton_unet

SHAPES = [
    (),
    (1,),
    (7,),
    (5, 6),
    (1, 6),
    (6, 1),
    (3, 4, 5),
    (2, 1, 5),
    (8, 4, 3, 3),
    (8, 4, 1, 1),
    (1, 1, 1, 1),
    (5, 6),
    (8, 4, 3, 3),
    (7,),
]
MANUAL = dict(lr=1e-2, relative_step=False, scale_parameter=False)
STEPS = ({"lr": 1e-2, "relative_step": False}, {"relative_step": True}, {"relative_step": True, "warmup_init": True})


def parameters(shapes=SHAPES, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]


def give_gradients(*lists, seed):
    """The same random gradients, of very different sizes, to every list of parameters."""
    generator = torch.Generator().manual_seed(seed)
    for together in zip(*lists, strict=True):
        size = 10 ** torch.randn((), generator=generator).item()
        gradient = torch.randn(together[0].shape, generator=generator) * size
        for p in together:
            p.grad = gradient.to(p.dtype)


def run(optimizer, trained, steps, start=0):
    for step in range(start, start + steps):
        give_gradients(trained, seed=step)
        optimizer.step()
    return [p.detach().clone() for p in trained]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize(("beta1", "decay", "scale", "clip"), list(itertools.product((None, 0.9), (0.0, 0.1), (False, True), (1.0, 0.5))))
def test_last_two_is_transformers_adafactor(dtype, step, beta1, decay, scale, clip):
    settings = dict(beta1=beta1, weight_decay=decay, scale_parameter=scale, clip_threshold=clip, **step)
    ours, theirs = parameters(dtype=dtype), parameters(dtype=dtype)
    mine, other = Adafactor(ours, **settings, factoring="last-two", stochastic_rounding=False), Theirs(theirs, **settings)
    for number in range(20):
        give_gradients(ours, theirs, seed=number)
        mine.step(), other.step()
    rounding = {torch.float32: 1e-5, torch.float64: 1e-12, torch.float16: 2**-9, torch.bfloat16: 2**-6}[dtype]  # a place or two
    for p, q in zip(ours, theirs, strict=True):
        torch.testing.assert_close(p, q, rtol=rounding, atol=1e-5 if dtype.itemsize < 8 else 1e-12)
        for name in ("exp_avg_sq_row", "exp_avg_sq_col", "exp_avg_sq", "exp_avg"):
            assert (name in mine.state[p]) == (name in other.state[q])
            if name in mine.state[p]:
                torch.testing.assert_close(mine.state[p][name], other.state[q][name], rtol=1e-5, atol=1e-7)
    if step["relative_step"] or scale:  # transformers tells its schedule so
        told = float(other._get_lr(other.param_groups[0], other.state[theirs[0]]))
        assert mine.learning_rates() == pytest.approx([told], rel=1e-2 if dtype.itemsize == 2 else 1e-5)


def test_a_convolution_is_factored_as_the_matrix_it_is():
    """The same numbers in the shape of a convolution and of its matrix are stepped alike."""
    flat = parameters([(8, 36)])
    folded = [torch.nn.Parameter(flat[0].detach().view(8, 4, 3, 3).clone())]
    first, second = Adafactor(flat, **MANUAL), Adafactor(folded, **MANUAL)
    for step in range(5):
        give_gradients(flat, seed=step)
        folded[0].grad = flat[0].grad.view(8, 4, 3, 3)
        first.step(), second.step()
    assert torch.equal(flat[0], folded[0].view(8, 36))
    assert second.state[folded[0]]["exp_avg_sq_row"].shape == (8,)
    assert second.state[folded[0]]["exp_avg_sq_col"].shape == (36,)


def test_the_two_largest_dimensions():
    """As optax chooses them: a 3×3 convolution keeps its two long sides, for each of the nine places."""
    found = layout((8, 4, 3, 3), "two-largest")
    assert (found.shape, found.rows, found.columns) == ((9, 8, 4), (3, 3, 8), (3, 3, 4))
    one = parameters([(8, 4, 3, 3)])
    nine = [torch.nn.Parameter(one[0].detach()[:, :, i, j].clone()) for i in range(3) for j in range(3)]
    whole, apart = Adafactor(one, **MANUAL, factoring="two-largest"), Adafactor(nine, **MANUAL, clip_threshold=1e9)
    one_group = whole.param_groups[0]
    one_group["clip_threshold"] = 1e9
    for step in range(5):
        give_gradients(one, seed=step)
        for number, p in enumerate(nine):
            p.grad = one[0].grad[:, :, number // 3, number % 3].clone()
        whole.step(), apart.step()
    for number, p in enumerate(nine):
        torch.testing.assert_close(one[0][:, :, number // 3, number % 3], p)


@pytest.mark.parametrize("factoring", FACTORINGS)
def test_layouts_give_back_what_they_took(factoring):
    for shape in SHAPES:
        tensor = torch.randn(shape)
        found = layout(shape, factoring)
        assert math.prod(found.shape) == tensor.numel()
        assert torch.equal(found.restore(found.view(tensor).contiguous()[None], shape)[0], tensor)


def test_the_rule_is_the_papers():
    """One matrix, one step after another, written as the paper writes it."""
    torch.manual_seed(0)
    rows, columns = torch.zeros(1, 1, 4), torch.zeros(1, 1, 6)
    V_rows, V_columns = torch.zeros(4), torch.zeros(6)
    for t in range(1, 6):
        G = torch.randn(4, 6)
        beta2 = 1 - t**-0.8
        V_rows = beta2 * V_rows + (1 - beta2) * (G**2 + 1e-30).mean(1)
        V_columns = beta2 * V_columns + (1 - beta2) * (G**2 + 1e-30).mean(0)
        U = G / (V_rows[:, None] * V_columns[None, :] / V_rows.mean()).sqrt()
        U = U / max(1, U.square().mean().sqrt() / 0.8)
        ours = matrix_direction(G.clone()[None, None], rows, columns, 1 - beta2, torch.tensor(1e-30), 0.8)
        torch.testing.assert_close(ours[0, 0], U)


REAL = [
    ("sd15", torch.float32),
    ("sd15", torch.bfloat16),
    pytest.param("sdxl", torch.float32, marks=pytest.mark.long),  # lesson 04 holds the state's size
    pytest.param("sdxl", torch.bfloat16, marks=pytest.mark.long),
]


@pytest.mark.parametrize(("name", "dtype"), REAL)
def test_small_state_few_launches_and_little_room_on_real_models(name, dtype):
    trained = list(skeleton_unet(name, dtype=dtype).parameters())
    counted, sizes = [], []
    for kind in (Adafactor, Theirs):
        optimizer = kind(trained, lr=1e-4, relative_step=False, scale_parameter=False)
        for p in trained:
            p.grad = torch.empty_like(p)
        optimizer.step()
        sizes.append(state_bytes(optimizer))
        counted.append(launched(optimizer.step))
        if kind is Adafactor:
            with MemoryTrace() as trace:
                optimizer.step()
            room = max(moment.bytes["temporaries"] for moment in trace.timeline)
            largest = 4 * max(p.numel() for p in trained)  # in fp32, which the step is computed in
            assert room <= (2.1 if dtype == torch.float32 else 3.7) * largest
    assert counted[0] * 10 <= counted[1]
    assert sizes[1] >= {"sd15": 200, "sdxl": 45}[name] * sizes[0] > 0


def test_no_value_is_looked_at_on_the_host():
    """On the meta device there are no values: a step that asked for one would fail there."""
    for settings in (MANUAL, dict(beta1=0.9, weight_decay=0.1), dict(warmup_init=True)):
        trained = [
            torch.nn.Parameter(torch.empty(shape, device="meta", dtype=dtype))
            for shape in SHAPES
            for dtype in (torch.float32, torch.bfloat16)
        ]
        optimizer = Adafactor(trained, **settings)
        for _ in range(3):
            for p in trained:
                p.grad = torch.empty_like(p)
            optimizer.step()
        assert optimizer.state[trained[0]]["step"] == 3


def test_parameters_without_a_gradient_wait():
    """One that joins later is stepped as in an optimizer of its own."""
    together, alone = parameters([(5, 6), (5, 6), (5, 6)]), parameters([(5, 6), (5, 6), (5, 6)])
    whole, single = Adafactor(together, **MANUAL), [Adafactor([p], **MANUAL) for p in alone]
    for step, present in enumerate([(0, 1, 2), (0, 2), (1,), (0, 1, 2)]):
        give_gradients(together, alone, seed=step)
        for number in {0, 1, 2} - set(present):
            together[number].grad = alone[number].grad = None
        whole.step()
        for optimizer in single:
            optimizer.step()
    for p, q in zip(together, alone, strict=True):
        torch.testing.assert_close(p, q)
    assert [whole.state[p]["step"] for p in together] == [3, 3, 3]


def test_its_state_follows_a_model_that_is_moved(monkeypatch):
    monkeypatch.setattr(torch.__future__, "_swap_module_params_on_conversion", True)  # the same parameter objects, elsewhere
    model = torch.nn.Linear(6, 5)
    optimizer = Adafactor(model.parameters(), **MANUAL)
    run(optimizer, list(model.parameters()), 2)
    optimizer.zero_grad()
    model.to("meta")
    for p in model.parameters():
        p.grad = torch.empty_like(p)
    optimizer.step()
    assert {t.device.type for state in optimizer.state.values() for t in state.values() if isinstance(t, torch.Tensor)} == {"meta"}
    assert optimizer.state[model.weight]["step"] == 3


# bf16


def test_rounding_is_unbiased():
    generator = torch.Generator().manual_seed(0)
    for value in (1.0, 1.0 + 2**-10, -1.0 - 3 * 2**-10, 3.14159, 1e-20, 0.0):
        rounded = round_stochastically(torch.full((200_000,), value), generator)
        assert torch.equal(rounded.bfloat16().float(), rounded)
        below, above = sorted({float(rounded.min()), float(rounded.max())} | {value})[0], float(rounded.max())
        spread = (above - below) / 2 / math.sqrt(200_000)
        assert abs(float(rounded.double().mean()) - torch.tensor(value).item()) <= 5 * spread  # five standard errors
    exact = torch.randn(1000).bfloat16()
    assert torch.equal(round_stochastically(exact.float(), generator).bfloat16(), exact)


def test_rounding_passes_over_infinity_and_nan():
    kept = round_stochastically(torch.tensor([float("inf"), -float("inf")])).bfloat16()
    assert kept.isinf().all()


def test_bf16_learns_where_plain_rounding_stalls():
    """A target a hundredth away, at a learning rate of a tenth of what bf16 resolves around 1."""
    results = {}
    for stochastic in (True, False):
        p = torch.nn.Parameter(torch.ones(64, 64, dtype=torch.bfloat16))
        optimizer = Adafactor([p], lr=4e-4, relative_step=False, scale_parameter=False, stochastic_rounding=stochastic)
        for _ in range(100):
            p.grad = torch.full_like(p, 0.1)
            optimizer.step()
        results[stochastic] = float(p.detach().float().mean())
    assert results[False] == 1.0  # 100 steps of 4e-4 are 4e-2, none of which arrived
    assert results[True] == pytest.approx(0.96, abs=0.002)


def test_random_bits_depend_on_seed_step_and_place():
    def result(seed):
        torch.manual_seed(torch.seed() % 1000)  # the global generator plays no part
        trained = parameters([(16, 16), (16, 16)], torch.bfloat16)
        return run(Adafactor(trained, **MANUAL, seed=seed), trained, 3)

    assert all(map(torch.equal, result(0), result(0)))
    assert not all(map(torch.equal, result(0), result(1)))


# saving and loading


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("settings", [MANUAL, dict(beta1=0.9), dict(factoring="last-two")])
def test_a_resumed_run_is_the_whole_one(dtype, settings):
    whole = parameters(dtype=dtype)
    expected = run(Adafactor(whole, **settings), whole, 6)

    first = parameters(dtype=dtype)
    optimizer = Adafactor(first, **settings)
    run(optimizer, first, 3)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    second = [torch.nn.Parameter(p.detach().clone()) for p in first]
    resumed = Adafactor(second, **settings)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert all(map(torch.equal, run(resumed, second, 3, start=3), expected))


def test_the_state_is_ones_own_and_fits_in_safetensors(tmp_path):
    trained = parameters()
    optimizer = Adafactor(trained, **MANUAL)
    run(optimizer, trained, 2)
    saved = optimizer.state_dict()
    tensors = {f"{key}.{name}": t for key, state in saved["state"].items() for name, t in state.items() if isinstance(t, torch.Tensor)}
    save_file(tensors, tmp_path / "state.safetensors")  # refuses tensors that share memory
    run(optimizer, trained, 2)
    assert all(torch.equal(tensors[name], t) for name, t in load_file(tmp_path / "state.safetensors").items())


def test_copies_and_pickles_go_on_alike():
    trained = parameters()
    optimizer = Adafactor(trained, **MANUAL)
    run(optimizer, trained, 2)
    copied = copy.deepcopy(optimizer)
    theirs = [p for group in copied.param_groups for p in group["params"]]
    assert all(map(torch.equal, run(optimizer, trained, 2), run(copied, theirs, 2)))


def test_a_state_of_transformers_is_taken_over():
    trained, other = parameters(), parameters()
    theirs = Theirs(other, **MANUAL)
    run(theirs, other, 3)
    for p, q in zip(trained, other, strict=True):
        p.data.copy_(q)
    optimizer = Adafactor(trained, **MANUAL, factoring="last-two")
    optimizer.load_state_dict(theirs.state_dict())
    expected = run(theirs, other, 3, start=3)
    for p, q in zip(run(optimizer, trained, 3, start=3), expected, strict=True):
        torch.testing.assert_close(p, q)


def test_a_state_factored_otherwise_is_refused_and_nothing_is_lost():
    trained, other = parameters(), parameters()
    theirs, optimizer = Theirs(other, **MANUAL), Adafactor(trained, **MANUAL)
    run(theirs, other, 1)
    run(optimizer, trained, 1)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=r"factoring='matrix' needs \(3,\).*factoring=\"last-two\""):
        optimizer.load_state_dict(theirs.state_dict())
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    assert all(
        torch.equal(after["state"][key]["exp_avg_sq"], state["exp_avg_sq"])
        for key, state in before["state"].items()
        if "exp_avg_sq" in state
    )


def test_matrices_and_vectors_of_transformers_are_taken_over_by_any_factoring():
    shapes = [(5, 6), (7,)]
    trained, other = parameters(shapes), parameters(shapes)
    theirs = Theirs(other, **MANUAL)
    run(theirs, other, 3)
    for p, q in zip(trained, other, strict=True):
        p.data.copy_(q)
    optimizer = Adafactor(trained, **MANUAL)
    optimizer.load_state_dict(theirs.state_dict())
    for p, q in zip(run(optimizer, trained, 3, start=3), run(theirs, other, 3, start=3), strict=True):
        torch.testing.assert_close(p, q)


# bad input


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("settings", [dict(scale_parameter=True), dict(beta1=0.9, weight_decay=0.1), {}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gradient_that_is_no_number_is_skipped_from_the_first_step_on(bad, settings, dtype):
    trained = parameters(dtype=dtype)
    optimizer = Adafactor(trained, **MANUAL | settings)
    give_gradients(trained, seed=0)
    for p in trained:
        p.grad.view(-1)[-1] = bad
    before = [p.detach().clone() for p in trained]
    optimizer.step()
    assert all(map(torch.equal, trained, before))
    assert optimizer.skipped == len(trained)
    run(optimizer, trained, 3)
    assert all(p.isfinite().all() for p in trained)
    assert not torch.equal(trained[8], before[8])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("settings", [dict(scale_parameter=True), dict(beta1=0.9, weight_decay=0.1), {}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gradient_that_is_no_number_is_skipped_and_counted(bad, settings, dtype):
    trained = parameters(dtype=dtype)
    optimizer = Adafactor(trained, **MANUAL | settings)
    run(optimizer, trained, 2)
    assert optimizer.skipped == 0
    give_gradients(trained, seed=9)
    hurt = (3, 6, 8, 2)
    for index in hurt:
        trained[index].grad.view(-1)[0] = bad
    before = [p.detach().clone() for p in trained]
    moments = [{n: t.clone() for n, t in optimizer.state[p].items() if isinstance(t, torch.Tensor)} for p in trained]
    optimizer.step()
    assert optimizer.skipped == len(hurt)
    for index, p in enumerate(trained):
        assert p.isfinite().all()
        if p.numel() > 20:  # the step of a single number may be rounded away in bf16
            assert torch.equal(p, before[index]) == (index in hurt)
        if index in hurt:
            assert torch.equal(p, before[index])
            assert all(torch.equal(optimizer.state[p][name], kept) for name, kept in moments[index].items())
    give_gradients(trained, seed=10)
    optimizer.step()
    assert not any(torch.equal(p, q) for p, q in zip(trained, before, strict=True) if p.numel() > 20)


def test_it_can_stop_instead():
    trained = parameters()
    optimizer = Adafactor(trained, **MANUAL, non_finite="raise")
    run(optimizer, trained, 2)
    before, state = [p.detach().clone() for p in trained], copy.deepcopy(optimizer.state_dict())
    give_gradients(trained, seed=9)
    trained[8].grad[0, 0, 0, 0] = float("nan")
    with pytest.raises(NonFiniteGradient, match=r"shape \(8, 4, 3, 3\).*no parameter was changed"):
        optimizer.step()
    assert all(map(torch.equal, trained, before))
    after = optimizer.state_dict()
    for key, kept in state["state"].items():
        assert kept["step"] == after["state"][key]["step"] == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(lr=1e-3), "relative_step=False, or leave lr out"),
        (dict(relative_step=False), "give lr"),
        (dict(lr=-1.0, relative_step=False), "lr=-1.0: it must be"),
        (dict(lr=float("nan"), relative_step=False), "lr=nan: it must be"),
        (dict(lr=1e-3, relative_step=False, warmup_init=True), "warmup_init=True belongs to relative_step=True"),
        (dict(eps=1e-8), "two numbers"),
        (dict(clip_threshold=0.0), "above 0"),
        (dict(decay_rate=0.8), "such as -0.8"),
        (dict(beta1=1.0), "below 1"),
        (dict(weight_decay=-0.1), "0 or above"),
        (dict(factoring="rows"), "there are matrix, two-largest, last-two"),
        (dict(non_finite="ignore"), "there are skip, raise"),
    ],
)
def test_arguments_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        Adafactor(parameters(), **settings)


def test_parameters_that_cannot_be_trained():
    p = torch.nn.Parameter(torch.ones(2, 2))
    with pytest.raises(ValueError, match=r"\(2, 2\) is listed twice"):
        Adafactor([p, p])
    with pytest.raises(ValueError, match=r"\(2, 2\) is listed twice"):
        Adafactor([{"params": [p]}, {"params": [p]}])
    with pytest.raises(ValueError, match="view_as_real"):
        Adafactor([torch.nn.Parameter(torch.ones(2, 2, dtype=torch.complex64))])
    with pytest.raises(ValueError, match="empty"):
        Adafactor([])
    embedding = torch.nn.Embedding(4, 2, sparse=True)
    optimizer = Adafactor(embedding.parameters())
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse=False"):
        optimizer.step()


def test_an_empty_parameter_and_a_closure():
    empty, p = torch.nn.Parameter(torch.ones(0, 3)), torch.nn.Parameter(torch.ones(2, 2))
    optimizer = Adafactor([empty, p], **MANUAL)

    def closure():
        optimizer.zero_grad()
        loss = (p**2).sum() + empty.sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 4.0
    assert (p**2).sum().item() < 4.0


def test_groups_have_settings_of_their_own():
    first, second, third = parameters([(5, 6)]), parameters([(5, 6)]), parameters([(5, 6)])
    grouped = Adafactor([{"params": first, "lr": 1e-3}, {"params": second, "factoring": "last-two"}], **MANUAL)
    alone = Adafactor(third, **MANUAL | {"lr": 1e-3})
    for step in range(3):
        give_gradients(first, second, third, seed=step)
        grouped.step(), alone.step()
    torch.testing.assert_close(first[0], third[0])
    assert not torch.allclose(first[0], second[0])


def test_it_learns_tiny_as_well_as_transformers(fresh, ink):
    """The first steps of a fine-tune, seen as matrices and by the last two dimensions: about the same loss."""
    falls = {}
    for factoring in ("matrix", "last-two"):
        sd = copy.deepcopy(fresh)
        recipe = sdnb.Recipe(train_batch_size=4, lr_warmup_steps=2, learning_rate=5e-4, resolution=32)
        recipe = recipe.replace(optimizer_args=(*recipe.optimizer_args, f"factoring='{factoring}'"))
        losses = [step.loss for step in sdnb.train(sd, ink[:4], recipe, steps=30)]
        falls[factoring] = sum(losses[:6]) - sum(losses[-6:])
        del sd
        gc.collect()
    assert falls["matrix"] > 0.9 * falls["last-two"] > 0


@pytest.mark.parametrize("factoring", FACTORINGS)
@pytest.mark.parametrize("shape", [(8, 1, 1, 1), (1, 320, 1, 1), (320, 320, 1, 1), (8, 8, 1, 3), (5, 1), (1, 1)])
def test_on_the_meta_device_its_state_has_the_same_shapes(factoring, shape):
    """torch up to 2.11 keeps a dimension of size 1 there that a norm was told to drop."""
    shapes = []
    for device in ("cpu", "meta"):
        trained = [torch.nn.Parameter(torch.ones(shape, device=device)) for _ in range(2)]
        optimizer = Adafactor(trained, **MANUAL, factoring=factoring)
        for _ in range(2):
            for p in trained:
                p.grad = torch.ones_like(p)
            optimizer.step()
        shapes.append([{name: value.shape for name, value in optimizer.state[p].items() if torch.is_tensor(value)} for p in trained])
    assert shapes[0] == shapes[1]


@pytest.mark.gpu
def test_a_step_does_not_wait_for_the_gpu():
    trained = [torch.nn.Parameter(torch.randn(shape, device="cuda")) for shape in SHAPES]
    optimizer = Adafactor(trained, lr=1e-3, relative_step=False)
    for p in trained:
        p.grad = torch.randn_like(p)
    optimizer.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert optimizer.skipped == 0
