"""The step and the loop: equal to a loop written by hand, repeatable, and safe when numbers go wrong."""

import copy
import dataclasses
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from transformers.optimization import Adafactor, get_constant_schedule_with_warmup

import sdnb
from sdnb import Recipe, prepare, training
from sdnb.checkpointing import choices
from sdnb.checkpointing.choices import CHEAP, Budget
from sdnb.inputs import example
from sdnb.memory.trace import MemoryTrace

from .conftest import ROOT

LAUNCHER = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
QUICK = Recipe(train_batch_size=2, lr_warmup_steps=2, learning_rate=1e-3)


def losses(sd, pictures, recipe, steps):
    return [step.loss for step in sdnb.train(sd, pictures, recipe, steps=steps)]


def weights(sd):
    return {name: p.detach().clone() for name, p in sd.unet.named_parameters()}


def equal(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def test_training_is_the_loop_written_by_hand(fresh, ink):
    """Adafactor, warmup and the ε target with torch, transformers and diffusers alone, from the same batches."""
    by_hand = copy.deepcopy(fresh.unet).train()
    optimizer = Adafactor(by_hand.parameters(), lr=1e-3, relative_step=False, scale_parameter=False, warmup_init=False)
    schedule = get_constant_schedule_with_warmup(optimizer, 2)
    cache = training.Cache(fresh, ink[:6], QUICK)
    expected, rates = [], []
    for number in range(5):
        batch = cache.batch(number)
        x_t = fresh.noise_scheduler.add_noise(batch.latents, batch.noise, batch.t)
        loss = F.mse_loss(by_hand(x_t, batch.t, encoder_hidden_states=batch.context).sample, batch.noise)
        loss.backward()
        optimizer.step()
        rates.append(schedule.get_last_lr()[0])
        schedule.step()
        optimizer.zero_grad()
        expected.append(loss.item())

    as_transformers = QUICK.replace(optimizer_args=(*QUICK.optimizer_args, "factoring='last-two'"))
    steps = list(sdnb.train(fresh, ink[:6], as_transformers, steps=5))
    assert [step.loss for step in steps] == pytest.approx(expected, rel=1e-5)
    assert [step.learning_rate for step in steps] == rates == [0, 5e-4, 1e-3, 1e-3, 1e-3]
    assert [step.index for step in steps] == [0, 1, 2, 3, 4]
    for mine, theirs in zip(by_hand.parameters(), fresh.unet.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_it_learns_what_it_sees(fresh, ink):
    """The loss on the same batches falls."""
    recipe = QUICK.replace(train_batch_size=4)
    cache = training.Cache(fresh, ink[:4], recipe)

    def held(sd):
        with torch.no_grad():
            return sum(training.denoising_loss(sd, cache.batch(1000 + i), recipe).item() for i in range(8))

    before = held(fresh)
    losses(fresh, ink[:4], recipe, steps=25)
    assert held(fresh) < 0.8 * before


def test_a_seed_repeats_a_run(tiny, ink):
    runs = []
    for seed in (1, 1, 2, None, None):
        sd = dataclasses.replace(tiny, unet=copy.deepcopy(tiny.unet))
        runs.append(losses(sd, ink[:8], QUICK.replace(seed=seed), steps=3))
    assert runs[0] == runs[1]
    assert len({tuple(run) for run in runs[1:]}) == 4  # None draws another each time


def test_every_epoch_shows_every_picture_once(tiny, ink):
    cache = training.Cache(tiny, ink[:5], QUICK)
    shown = [cache.epochs().shares(number)[0] for number in range(9)]
    epochs = [[i for some in shown[start : start + 3] for i in some] for start in (0, 3, 6)]
    assert [sorted(epoch) for epoch in epochs] == [[0, 1, 2, 3, 4]] * 3
    assert epochs[0] != epochs[1]
    assert sorted(map(len, shown)) == [1] * 3 + [2] * 6


def test_processes_share_one_global_batch(tiny, ink):
    whole = training.Cache(tiny, ink[:8], QUICK.replace(train_batch_size=4)).batch(3)
    cache = training.Cache(tiny, ink[:8], QUICK.replace(train_batch_size=2))
    shares = [cache.batch(3, process, 2) for process in range(2)]
    for name in ("latents", "context", "noise", "t"):
        assert torch.equal(torch.cat([getattr(share, name) for share in shares]), getattr(whole, name))


@pytest.mark.parametrize(
    ("more", "launcher"),
    [
        pytest.param({}, LAUNCHER, marks=pytest.mark.long),
        pytest.param(
            {"network_dim": 2, "clip_skip": 2}, (), marks=pytest.mark.skipif(not hasattr(os, "fork"), reason="forks instead of launching")
        ),
    ],
    ids=["U-Net", "LoRA with the text encoder"],
)
def test_two_processes_train_as_one(tmp_path, fresh, ink, more, launcher):
    """Without a launcher the first process forks the second, and what torchrun says in the environment is said by hand."""
    script = tmp_path / "run.py"
    script.write_text(
        "import os, socket, accelerate, peft, sdnb, torch\n"
        "torch.set_num_threads(1)\n"
        "sd, pictures = sdnb.load('tiny'), sdnb.pictures('emoji-ink')[:6]\n"
        "if 'RANK' not in os.environ:\n"
        "    with socket.socket() as free:\n"
        "        free.bind(('127.0.0.1', 0))\n"
        "        port = str(free.getsockname()[1])\n"
        "    os.environ |= dict(WORLD_SIZE='2', MASTER_ADDR='127.0.0.1', MASTER_PORT=port)\n"
        "    rank = str(int(os.fork() == 0))\n"
        "    os.environ |= dict(RANK=rank, LOCAL_RANK=rank)\n"
        f"recipe = sdnb.Recipe(train_batch_size=1, lr_warmup_steps=2, learning_rate=1e-3, others={more})\n"
        "steps = list(sdnb.train(sd, pictures, recipe, steps=3))\n"
        "from accelerate import PartialState\n"
        "if PartialState().is_main_process:\n"
        "    print('losses', *(step.loss for step in steps))\n"
        "    print('rates', *(step.learning_rate for step in steps))\n"
        "PartialState().destroy_process_group()\n",  # gloo's threads, left running, may abort the interpreter as it ends
        encoding="utf-8",
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run([sys.executable, *launcher, str(script)], env=environment, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    printed = dict(line.split(" ", 1) for line in result.stdout.splitlines() if line.startswith(("losses", "rates")))
    expected = list(sdnb.train(fresh, ink[:6], QUICK.replace(others=more), steps=3))
    assert [float(value) for value in printed["losses"].split()] == pytest.approx([step.loss for step in expected], rel=1e-4)
    assert [float(value) for value in printed["rates"].split()] == [step.learning_rate for step in expected]


def test_accumulation_is_one_larger_batch(fresh, ink):
    """Two batches accumulated give the gradient of their mean, one update and one step of the schedule."""
    recipe = QUICK.replace(gradient_accumulation_steps=2, lr_warmup_steps=0)
    cache = training.Cache(fresh, ink[:6], recipe)
    both = [cache.batch(0), cache.batch(1)]
    by_hand = dataclasses.replace(fresh, unet=copy.deepcopy(fresh.unet))
    latents, context, noise, t = (torch.cat([getattr(b, name) for b in both]) for name in ("latents", "context", "noise", "t"))
    joined = training.Batch(latents, {"context": context}, noise, t)
    with pytest.warns(FutureWarning, match="is Batch\\(condition="):
        older = training.Batch(latents=latents, context=context, noise=noise, t=t)  # as lessons that were copied earlier have it
    assert older.context is context
    optimizer = sdnb.optim.optimizer(recipe, by_hand.unet.parameters())
    expected = sdnb.training_step(by_hand, joined, recipe, optimizer)

    steps = list(sdnb.train(fresh, ink[:6], recipe, steps=1))
    assert steps[0].loss == pytest.approx(expected.item(), rel=1e-5)
    for mine, theirs in zip(by_hand.unet.parameters(), fresh.unet.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


def test_clipping_happens_only_when_asked_for(tiny, ink, monkeypatch):
    norms = []
    clip = torch.nn.utils.clip_grad_norm_
    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", lambda *args, **kwargs: norms.append(args[1]) or clip(*args, **kwargs))
    for norm in (0.0, 0.5):
        losses(dataclasses.replace(tiny, unet=copy.deepcopy(tiny.unet)), ink[:2], QUICK.replace(max_grad_norm=norm), steps=2)
    assert norms == [0.5, 0.5]


def test_checkpointing_changes_nothing_but_memory(tiny, ink):
    runs = []
    for on in (False, True):
        sd = dataclasses.replace(tiny, unet=copy.deepcopy(tiny.unet))
        runs.append(losses(sd, ink[:2], QUICK.replace(gradient_checkpointing=on), steps=3))
    assert runs[0] == runs[1]


def fresh_unet(tiny):
    return copy.deepcopy(tiny.unet).requires_grad_(True)


def test_any_choice_of_what_to_recompute_can_be_trained_with(tiny, ink):
    runs, peaks = [], []
    chain = choices.frontier(fresh_unet(tiny), example(tiny.unet, batch=2), points=None)
    budget = Budget((chain[0].peak_bytes + chain[-1].peak_bytes) // 2)
    for choice in ("none", "full", CHEAP, budget):
        sd = dataclasses.replace(tiny, unet=copy.deepcopy(tiny.unet))
        run = sdnb.train(sd, ink[:2], QUICK, steps=2, checkpointing=choice)
        first = next(run)
        with MemoryTrace(sd.unet) as trace:  # the second step
            runs.append((first.loss, next(run).loss))
        run.close()
        assert not any("forward" in vars(module) for module in sd.unet.modules())
        moments = [moment for moment in trace.timeline if moment.phase != "optimizer"]
        # the optimizer's state is no part of a budget; the inputs here hold every picture's latents
        peaks.append(max(m.total - m.bytes["optimizer state"] - m.bytes["inputs"] for m in moments))
    assert len(set(runs)) == 1
    assert peaks[3] <= budget.bytes < peaks[0]


def test_a_choice_is_checked_before_anything_slow(fresh, ink, monkeypatch):
    monkeypatch.setattr(training, "Cache", lambda *args: pytest.fail("the pictures were encoded first"))
    with pytest.raises(ValueError, match="the smallest peak"):
        sdnb.train(fresh, ink, QUICK, checkpointing=Budget(1))
    with pytest.raises(ValueError, match="no block 'conv'"):
        sdnb.train(fresh, ink, QUICK, checkpointing=["conv"])
    with pytest.raises(ValueError, match="computes in another"):
        sdnb.train(fresh, ink, QUICK.replace(mixed_precision="bf16"), checkpointing=Budget(10**10))


@pytest.mark.parametrize(
    "change",
    [{"min_snr_gamma": 5.0}, {"noise_offset": 0.5}, {"caption_dropout_rate": 1.0}, {"mixed_precision": "bf16"}, {"resolution": 32}],
)
def test_each_setting_acts(tiny, ink, change):
    runs = []
    for recipe in (QUICK, QUICK.replace(**change)):
        sd = dataclasses.replace(tiny, unet=copy.deepcopy(tiny.unet))
        runs.append(losses(sd, ink[:2], recipe, steps=1)[0])
        assert sd.dtype == torch.float32
    assert runs[0] != runs[1]


def test_closing_the_generator_puts_the_model_back(fresh, ink):
    before = fresh.unet.forward
    run = sdnb.train(fresh, ink[:2], QUICK.replace(gradient_checkpointing=True, mixed_precision="bf16"), steps=5)
    next(run)
    assert fresh.unet.training
    run.close()
    assert not fresh.unet.training
    assert not any("forward" in vars(module) for module in fresh.unet.modules())
    assert fresh.unet.forward == before
    assert "forward" not in vars(fresh.unet)
    assert all(p.grad is None for p in fresh.unet.parameters())


def test_drawing_in_between_changes_nothing(tiny, ink):
    runs = []
    for draw in (False, True):
        sd = dataclasses.replace(tiny, unet=copy.deepcopy(tiny.unet))
        run = []
        for step in sdnb.train(sd, ink[:4], QUICK, steps=3):
            run.append(step.loss)
            if draw:
                sd.draw("a cat", steps=1)
        runs.append(run)
    assert runs[0] == runs[1]


def test_a_loss_that_becomes_nan_stops_the_run(fresh, ink, monkeypatch):
    calls, true_loss = [], training.denoising_loss

    def poisoned(*args):
        calls.append(1)
        return true_loss(*args) * (float("nan") if len(calls) == 4 else 1)

    monkeypatch.setattr(training, "denoising_loss", poisoned)
    done, last = [], None
    with pytest.raises(sdnb.Diverged, match=r"step 3: the loss is not a finite number.*learning rate, 0\.001"):
        for step in sdnb.train(fresh, ink[:4], QUICK, steps=9):
            done.append(step.index)
            last = weights(fresh)
    assert done == [0, 1, 2]
    assert equal(weights(fresh), last)


def test_a_loss_that_is_no_number_though_its_gradients_are_stops_the_run(fresh, ink, monkeypatch):
    true_loss = training.denoising_loss
    monkeypatch.setattr(training, "denoising_loss", lambda *args: true_loss(*args) + float("nan"))
    before = weights(fresh)
    with pytest.raises(sdnb.Diverged, match="step 0: the loss is not a finite number"):
        losses(fresh, ink[:2], QUICK, steps=1)
    assert equal(weights(fresh), before)


@pytest.mark.parametrize("norm", [0.0, 1.0])
@pytest.mark.parametrize("kind", ["Adafactor", "AdamW"])
def test_a_gradient_that_becomes_infinite_stops_the_run(fresh, ink, kind, norm):
    recipe = (QUICK if kind == "Adafactor" else QUICK.replace(optimizer_type=kind, optimizer_args=())).replace(max_grad_norm=norm)
    backwards = []

    def poison(gradient):
        backwards.append(1)
        return gradient * (float("inf") if len(backwards) == 3 else 1)

    fresh.unet.conv_in.weight.register_hook(poison)
    last = None
    with pytest.raises(sdnb.Diverged, match="step 2: a gradient is not a finite number"):
        for _ in sdnb.train(fresh, ink[:4], recipe, steps=9):
            last = weights(fresh)
    assert equal(weights(fresh), last)


def test_an_adafactor_of_ones_own_is_left_as_it_was(fresh, ink):
    """A step refuses what is no number, its moments too; used without it, the optimizer skips such parameters as before."""
    optimizer = sdnb.Adafactor(fresh.unet.parameters(), lr=1e-3, relative_step=False, scale_parameter=False)
    batch = training.Cache(fresh, ink[:2], QUICK).batch(0)
    sdnb.training_step(fresh, batch, QUICK, optimizer)
    before = {name: value.clone() for name, value in flat(optimizer)}
    hook = fresh.unet.conv_in.weight.register_hook(lambda gradient: gradient * float("nan"))
    with pytest.raises(sdnb.Diverged):
        sdnb.training_step(fresh, batch, QUICK, optimizer)
    assert all(torch.equal(value, before[name]) for name, value in flat(optimizer))
    training.denoising_loss(fresh, batch, QUICK).backward()
    optimizer.step()
    assert optimizer.skipped == 1
    hook.remove()


def flat(optimizer):
    for number, state in optimizer.state_dict()["state"].items():
        yield from ((f"{number}.{name}", torch.as_tensor(value)) for name, value in state.items())


@pytest.mark.parametrize("copied", [False, True])
def test_a_second_run_computes_in_the_precision_of_its_recipe(fresh, ink, copied):
    """accelerate marks a model that it has prepared, and leaves it alone from then on."""
    seen = []
    sd = fresh
    for precision in ("no", "bf16", "bf16", "no"):
        hook = sd.unet.conv_in.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
        losses(sd, ink[:2], QUICK.replace(mixed_precision=precision, resolution=32), steps=1)
        hook.remove()
        sd = dataclasses.replace(sd, unet=copy.deepcopy(sd.unet)) if copied else sd
    assert seen == [torch.float32, torch.bfloat16, torch.bfloat16, torch.float32]


def test_the_schedule_waits_where_the_scaler_left_a_step_out(fresh, ink):
    optimizer = sdnb.optim.optimizer(QUICK, fresh.unet.parameters())
    schedule = sdnb.optim.schedule(QUICK, optimizer, steps=5)
    batch = training.Cache(fresh, ink[:2], QUICK).batch(0)
    for skipped, moves in ((True, 0), (False, 1)):
        optimizer.step_was_skipped = skipped
        sdnb.training_step(fresh, batch, QUICK, optimizer, schedule)
        assert schedule.last_epoch == moves


def test_a_text_encoder_in_16_bits_learns_from_the_layer_before_its_last(fresh, ink):
    """Under autocast, which accelerate ends at the encoder's own output, in fp32."""
    fresh.text_encoder.bfloat16()
    recipe = QUICK.replace(mixed_precision="bf16", others={"network_dim": 2, "clip_skip": 2})
    assert all(loss < 2 for loss in losses(fresh, ink[:2], recipe, steps=2))


def test_adapters_take_no_chance_from_a_gpu(fresh, ink, monkeypatch):
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("all GPUs were seeded"))
    before = torch.get_rng_state()
    prepare.make_trainable(fresh, QUICK.replace(seed=3, others={"network_dim": 2}))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_run_leaves_nothing_behind_for_a_gpu_that_is_not_there(fresh, ink):
    """torch.manual_seed queues a call, with where it came from, for the day that CUDA is used."""
    queue = torch.cuda._queued_calls
    before = len(queue)
    losses(fresh, ink[:2], QUICK.replace(resolution=32), steps=4)
    assert len(queue) == before


def test_broken_weights_are_named_at_the_first_step(fresh, ink):
    with torch.no_grad():
        fresh.unet.conv_in.weight[0] = float("nan")
    with pytest.raises(sdnb.Diverged, match=r"step 0: .*not finite to begin with"):
        losses(fresh, ink[:2], QUICK, steps=1)


def test_it_refuses_before_anything_slow_happens(fresh, ink, monkeypatch):
    monkeypatch.setattr(training, "Cache", lambda *args: pytest.fail("the pictures were encoded first"))
    with pytest.raises(ValueError, match="steps=0"):
        sdnb.train(fresh, ink, QUICK, steps=0)
    with pytest.raises(ValueError, match="no pictures"):
        sdnb.train(fresh, ink[:0], QUICK)
    with pytest.raises(ValueError, match="multiples of 16"):
        sdnb.train(fresh, ink, QUICK.replace(resolution=72))
    with pytest.raises(ValueError, match="did you mean 'AdamW'"):
        sdnb.train(fresh, ink, QUICK.replace(optimizer_type="AdamWW"))
    with pytest.raises(ValueError, match="set gradient_accumulation_steps=1"):
        sdnb.train(fresh, ink, QUICK.replace(fused_backward_pass=True, gradient_accumulation_steps=2))
    fresh.unet.bfloat16()
    with pytest.raises(ValueError, match=r"dtype=torch\.float32, or let Adafactor"):
        sdnb.train(fresh, ink, QUICK.replace(optimizer_type="AdamW", optimizer_args=()))
    with pytest.raises(ValueError, match=r"dtype=torch\.float32, or let Adafactor"):
        sdnb.train(fresh, ink, QUICK.replace(optimizer_args=(*QUICK.optimizer_args, "stochastic_rounding=False")))


def test_fp16_is_computed_in_fp32_on_a_cpu(fresh, ink):
    other = dataclasses.replace(fresh, unet=copy.deepcopy(fresh.unet))
    assert losses(fresh, ink[:4], QUICK.replace(mixed_precision="fp16"), 3) == losses(other, ink[:4], QUICK, 3)
    assert equal(weights(fresh), weights(other))


def test_bf16_weights_learn_with_stochastic_rounding(fresh, ink, monkeypatch):
    """A full fine-tune in bf16, at a learning rate whose steps are below what bf16 resolves: the weights go as far as in fp32."""
    monkeypatch.setattr(prepare, "check_precision", lambda *args, **named: None)  # which would refuse the last
    recipe = QUICK.replace(resolution=32, learning_rate=2e-5)
    nearest = recipe.replace(optimizer_args=(*recipe.optimizer_args, "stochastic_rounding=False"))

    def moved(recipe, dtype):
        sd = dataclasses.replace(fresh, unet=copy.deepcopy(fresh.unet).to(dtype))
        before = [p.detach().clone() for p in sd.unet.parameters()]
        losses(sd, ink[:4], recipe, 8)
        return torch.cat([(p.detach().float() - b.float()).flatten() for p, b in zip(sd.unet.parameters(), before, strict=True)])

    full = moved(recipe, torch.float32)
    along = {name: float(moved(one, torch.bfloat16) @ full / full.square().sum()) for name, one in (("random", recipe), ("near", nearest))}
    assert along["random"] == pytest.approx(1, abs=0.03)
    assert along["near"] < 0.5  # of these steps most are lost


def test_full_bf16_trains_with_any_optimizer_and_says_what_is_lost(fresh, ink):
    recipe = QUICK.replace(optimizer_type="AdamW", optimizer_args=(), resolution=32, learning_rate=1e-3, others={"full_bf16": True})
    before = [p.detach().bfloat16() for p in fresh.unet.parameters()]
    with pytest.warns(UserWarning, match="full_bf16 with AdamW rounds each update"):
        assert all(0 < loss < 10 for loss in losses(fresh, ink[:4], recipe, 3))
    assert all(p.dtype == torch.bfloat16 for p in fresh.unet.parameters())
    assert not all(map(torch.equal, fresh.unet.parameters(), before))


@pytest.mark.parametrize("name", ["fp8_base", "fp8_base_unet"])
def test_frozen_weights_are_rounded_to_8_bits_beside_adapters(fresh, ink, name):
    """By the same cast as sd-scripts' `unet.to(torch.float8_e4m3fn)`; the adapters are left as they are."""
    before = {f"{part}.{n}": p.detach().clone() for part in ("unet", "text_encoder") for n, p in getattr(fresh, part).named_parameters()}
    fresh.text_encoder = copy.deepcopy(fresh.text_encoder)
    recipe = QUICK.replace(resolution=32, mixed_precision="bf16", others={"network_dim": 2, name: True})
    losses(fresh, ink[:4], recipe, 2)
    for part in ("unet", "text_encoder"):
        rounded = part == "unet" or name == "fp8_base"
        for n, p in getattr(fresh, part).named_parameters():
            if ".lora_" not in n:
                plain = before[f"{part}.{n.replace('.base_layer', '')}"]
                assert torch.equal(p, plain.to(torch.float8_e4m3fn).to(plain.dtype) if rounded else plain), n


def test_full_fp16_trains_in_fp32(fresh, ink):
    other = dataclasses.replace(fresh, unet=copy.deepcopy(fresh.unet))
    full = QUICK.replace(mixed_precision="fp16", others={"full_fp16": True})
    assert losses(fresh, ink[:4], full, 2) == losses(other, ink[:4], QUICK.replace(mixed_precision="fp16"), 2)


@pytest.mark.parametrize("kind", ["Adafactor", "AdamW", "SGDNesterov"])
def test_fused_backward_trains_as_the_plain_step(fresh, ink, kind):
    recipe = QUICK if kind == "Adafactor" else QUICK.replace(optimizer_type=kind, optimizer_args=())
    other = dataclasses.replace(fresh, unet=copy.deepcopy(fresh.unet))
    plain = losses(fresh, ink[:4], recipe, 4)
    fused = losses(other, ink[:4], recipe.replace(fused_backward_pass=True), 4)
    assert fused == pytest.approx(plain, rel=1e-5)
    for mine, theirs in zip(other.unet.parameters(), fresh.unet.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["Adafactor", "AdamW"])
def test_fused_backward_stops_at_a_gradient_that_is_no_number(fresh, ink, kind):
    recipe = (QUICK if kind == "Adafactor" else QUICK.replace(optimizer_type=kind, optimizer_args=())).replace(fused_backward_pass=True)
    backwards = []

    def poison(gradient):
        backwards.append(1)
        return gradient * (float("nan") if len(backwards) == 3 else 1)

    fresh.unet.conv_in.weight.register_hook(poison)
    with pytest.raises(sdnb.Diverged, match="step 2: "):
        for _ in sdnb.train(fresh, ink[:4], recipe, steps=9):
            kept = fresh.unet.conv_in.weight.detach().clone()
    assert torch.equal(fresh.unet.conv_in.weight, kept)
    assert all(p.isfinite().all() for p in fresh.unet.parameters())


def test_a_schedule_free_run_yields_the_average(fresh, ink):
    """What a reader draws with between steps is the optimizer's result, not the point it takes gradients at."""
    recipe = QUICK.replace(optimizer_type="AdamWScheduleFree", optimizer_args=(), lr_scheduler="constant", lr_warmup_steps=0)
    seen = None
    for _ in sdnb.train(fresh, ink[:4], recipe, steps=4):
        seen = weights(fresh)
    assert equal(weights(fresh), seen)
    assert not equal(weights(fresh), weights(sdnb.load("tiny", device="cpu")))


def test_an_automatic_learning_rate_is_shown_as_it_was(fresh, ink):
    recipe = QUICK.replace(optimizer_args=("scale_parameter=False",), lr_scheduler="adafactor", lr_warmup_steps=0)
    rates = [step.learning_rate for step in sdnb.train(fresh, ink[:4], recipe, steps=3)]
    assert rates == [1e-2, 1e-2, 1e-2]


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["no", "fp16", "bf16"])
def test_on_a_gpu(ink, precision):
    if precision == "bf16" and torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this GPU has no bf16")
    sd = sdnb.load("tiny", device="cuda")
    steps = list(sdnb.train(sd, ink, QUICK.replace(mixed_precision=precision), steps=20))
    assert steps[-1].peak_bytes > 0
    assert all(step.loss < 2 for step in steps)
