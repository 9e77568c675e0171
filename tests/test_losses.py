"""The formulas, against diffusers' own."""

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from sdnb import losses

SCHEDULER = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
ALPHAS = SCHEDULER.alphas_cumprod
T = torch.tensor([0, 10, 500, 999])


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(4, 4, 8, 8, generator=generator), torch.randn(4, 4, 8, 8, generator=generator)


def test_noising_is_diffusers(tensors):
    x_0, noise = tensors
    torch.testing.assert_close(losses.add_noise(x_0, noise, T, ALPHAS), SCHEDULER.add_noise(x_0, noise, T))


def test_targets_are_diffusers(tensors):
    x_0, noise = tensors
    assert losses.target(x_0, noise, T, ALPHAS) is noise
    assert losses.target(x_0, noise, T, ALPHAS, "sample") is x_0
    torch.testing.assert_close(losses.target(x_0, noise, T, ALPHAS, "v_prediction"), SCHEDULER.get_velocity(x_0, noise, T))


def test_an_unknown_target_is_refused(tensors):
    with pytest.raises(ValueError, match="epsilon, v_prediction, sample"):
        losses.target(*tensors, T, ALPHAS, "flow")


def test_snr_is_diffusers():
    torch.testing.assert_close(losses.snr(T, ALPHAS), compute_snr(SCHEDULER, T))


@pytest.mark.parametrize("gamma", [1.0, 5.0])
def test_min_snr_weights_make_the_three_losses_one(gamma, tensors):
    """A wrong x_0 costs min(SNR, gamma) times its square, whichever of the three the model predicts."""
    x_0, noise = tensors
    wrong = x_0 + 0.1 * noise.flip(0)
    x_t = losses.add_noise(x_0, noise, T, ALPHAS)
    alpha_t, sigma_t = losses.alpha_sigma(ALPHAS, T, x_0)
    implied = (x_t - alpha_t * wrong) / sigma_t
    costs = []
    for prediction in losses.PREDICTIONS:
        claimed = losses.target(wrong, implied, T, ALPHAS, prediction)
        error = (claimed - losses.target(x_0, noise, T, ALPHAS, prediction)).double().square().mean((1, 2, 3))
        costs.append(error * losses.min_snr_weights(T, ALPHAS, gamma, prediction))
    torch.testing.assert_close(costs[0], costs[2], rtol=1e-3, atol=0)
    torch.testing.assert_close(costs[1], costs[2], rtol=1e-3, atol=0)
    assert (losses.min_snr_weights(T, ALPHAS, gamma) <= 1).all()


def test_half_precision_stays_half(tensors):
    x_0, noise = (tensor.bfloat16() for tensor in tensors)
    assert losses.add_noise(x_0, noise, T, ALPHAS).dtype == torch.bfloat16
