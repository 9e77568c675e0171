"""Noise and noise levels as settings ask for them, beside sd-scripts' formulas on the same random numbers."""

import pytest
import torch
import torch.nn.functional as F

import sdnb
from sdnb import Recipe, training
from sdnb.losses import Noises, pyramid

SHAPE = (3, 4, 9, 12)


def seeded():
    return torch.Generator().manual_seed(5)


@pytest.fixture
def noise():
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))


def made(noise, latents=None, **settings):
    drawn, kinds = seeded(), Noises(**settings)
    return kinds.finished(noise, kinds.offsets(SHAPE, drawn), torch.zeros(SHAPE) if latents is None else latents, drawn)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"noise_offset": 0.0, "noise_offset_random_strength": True, "adaptive_noise_scale": 0.1},
        {"noise_offset_random_strength": True},
        {"ip_noise_gamma": 0.0, "ip_noise_gamma_random_strength": True, "multires_noise_iterations": 0},
    ],
    ids=str,
)
def test_without_settings_noise_is_as_it_was(noise, settings):
    """As in sd-scripts, where an offset of 0 is none, and a strength without one is not looked at."""
    found, perturbed = made(noise, **settings)
    assert found is noise
    assert perturbed is None


@pytest.mark.parametrize("random_strength", [False, True])
@pytest.mark.parametrize("adaptive", [None, 0.5, -2.0])
def test_offsets(noise, random_strength, adaptive):
    """apply_noise_offset of sd-scripts' custom_train_functions.py."""
    latents = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    found, _ = made(noise, latents, noise_offset=0.2, noise_offset_random_strength=random_strength, adaptive_noise_scale=adaptive)
    drawn = seeded()
    strength = 0.2 * torch.rand(1, generator=drawn).item() if random_strength else 0.2
    each = torch.randn((3, 4, 1, 1), generator=drawn)
    for picture in range(3):
        for channel in range(4):
            here = strength if adaptive is None else max(0.0, strength + adaptive * abs(latents[picture, channel].mean().item()))
            expected = noise[picture, channel] + here * each[picture, channel].item()
            torch.testing.assert_close(found[picture, channel], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("iterations", "discount"), [(1, 0.3), (6, 0.4), (10, 0.9)])
def test_multires_noise(noise, iterations, discount):
    """pyramid_noise_like of sd-scripts' custom_train_functions.py."""
    found, _ = made(noise, multires_noise_iterations=iterations, multires_noise_discount=discount)
    drawn, expected = seeded(), noise.clone()
    for i in range(iterations):
        r = torch.rand(1, generator=drawn).item() * 2 + 2
        w, h = max(1, int(9 / r**i)), max(1, int(12 / r**i))
        expected += torch.nn.Upsample(size=(9, 12), mode="bilinear")(torch.randn(3, 4, w, h, generator=drawn)) * discount**i
        if w == 1 or h == 1:
            break
    torch.testing.assert_close(found, expected / expected.std())
    assert found.std().item() == pytest.approx(1, rel=1e-5)
    if iterations > 1:  # there is coarse noise, which averaging over neighbours leaves
        assert F.avg_pool2d(found, 3).std() > 1.02 * F.avg_pool2d(noise, 3).std()


@pytest.mark.parametrize("random_strength", [False, True])
def test_input_perturbation(noise, random_strength):
    found, perturbed = made(noise, ip_noise_gamma=0.1, ip_noise_gamma_random_strength=random_strength)
    drawn = seeded()
    strength = 0.1 * torch.rand(1, generator=drawn) if random_strength else 0.1
    assert found is noise
    torch.testing.assert_close(perturbed, noise + strength * torch.randn(SHAPE, generator=drawn))


def test_levels_stay_in_their_range():
    drawn = Noises(min_timestep=200, max_timestep=210).t(2000, seeded())
    assert sorted(set(drawn.tolist())) == list(range(200, 210))
    assert set(Noises(min_timestep=7, max_timestep=7).t(5, seeded()).tolist()) == {7}
    assert torch.equal(Noises().t(50, seeded()), torch.randint(1000, (50,), generator=seeded()))


@pytest.mark.parametrize(
    "wrong",
    [
        {"min_timestep": 800, "max_timestep": 700},
        {"max_timestep": 1001},
        {"min_timestep": -1},
        {"min_timestep": 1000},
        {"adaptive_noise_scale": 0.1},
        {"multires_noise_iterations": -1},
    ],
    ids=str,
)
def test_values_that_mean_nothing_are_refused_before_anything_else(tiny, ink, wrong, monkeypatch):
    monkeypatch.setattr(training, "Cache", lambda *args, **kwargs: pytest.fail("the pictures were encoded first"))
    with pytest.raises(ValueError, match=next(iter(wrong))):
        sdnb.train(tiny, ink, Recipe(others=wrong))


def test_batches_are_made_of_it_and_shares_are_of_one_batch(tiny, ink):
    settings = {"ip_noise_gamma": 0.5, "multires_noise_iterations": 4, "min_timestep": 100, "max_timestep": 120}
    cache = training.Cache(tiny, ink[:4], Recipe(train_batch_size=4, resolution=32, others=settings))
    whole = cache.batch(3)
    assert whole.noise.std().item() == pytest.approx(1, rel=1e-5)
    assert (whole.perturbed - whole.noise).std().item() == pytest.approx(0.5, rel=0.1)
    assert all(100 <= t < 120 for t in whole.t.tolist())
    cache = training.Cache(tiny, ink[:4], cache.recipe.replace(train_batch_size=2))
    shares = [cache.batch(3, process, 2) for process in range(2)]
    for name in ("latents", "noise", "perturbed", "t"):
        assert torch.equal(torch.cat([getattr(share, name) for share in shares]), getattr(whole, name)), name


def test_the_unet_sees_perturbed_latents_and_predicts_the_noise_itself(tiny, ink):
    cache = training.Cache(tiny, ink[:2], Recipe(resolution=32, others={"ip_noise_gamma": 0.5}))
    batch = cache.batch(0)
    alphas = tiny.noise_scheduler.alphas_cumprod
    mixed = alphas[batch.t].sqrt().view(-1, 1, 1, 1) * batch.latents + (1 - alphas[batch.t]).sqrt().view(-1, 1, 1, 1) * batch.perturbed
    with torch.no_grad():
        expected = F.mse_loss(tiny.unet(mixed, batch.t, batch.context).sample, batch.noise)
        assert training.denoising_loss(tiny, batch, Recipe()).item() == pytest.approx(expected.item(), rel=1e-5)


def test_noise_of_one_scale_is_the_noise(noise):
    assert torch.allclose(pyramid(noise, 0, 0.3, seeded()), noise / noise.std())
