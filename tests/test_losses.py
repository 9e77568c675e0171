"""The formulas, against diffusers' own."""

import math

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.training_utils import compute_snr

from sdnb import Recipe, losses, sections

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


SETTINGS = [
    {},
    {"loss_type": "l1"},
    *({"loss_type": kind, "huber_schedule": how} for kind in ("huber", "smooth_l1") for how in sections.HUBER_SCHEDULES),
    {"loss_type": "huber", "huber_schedule": "exponential", "huber_c": 0.3, "huber_scale": 2.0},
    {"loss_type": "smooth_l1", "huber_schedule": "snr", "huber_c": 0.02, "huber_scale": 2.0},  # which knows no scale
    {"debiased_estimation_loss": True},
    {"loss_type": "huber", "huber_schedule": "snr", "huber_c": 0.0},
    {"min_snr_gamma": 0.0, "huber_c": 0.0, "v_pred_like_loss": 0.0},  # of which sd-scripts takes none for set
    {"loss_type": "huber", "min_snr_gamma": 5.0, "debiased_estimation_loss": True},
]


def sd_scripts(prediction, target, t, settings, v, weights):
    """One picture after the other in double precision, as get_huber_threshold_if_needed, conditional_loss, process_batch and
    post_process_loss of its train_util.py and train_network.py have it.
    """
    found = []
    for one in range(len(t)):
        a, step = ALPHAS[t[one]].item(), t[one].item()
        c, scale = settings.get("huber_c", 0.1), settings.get("huber_scale", 1.0)
        width = {
            "constant": c * scale,
            "exponential": math.exp(-step * -math.log(c or 1) / 1000) * scale,
            "snr": (1 - c) / (1 + math.sqrt((1 - a) / a)) ** 2 + c,
        }[settings.get("huber_schedule", "snr")]
        d = (prediction[one].double() - target[one].double()).flatten()
        kind = settings.get("loss_type", "l2")
        root = torch.sqrt(d * d + width * width) - width
        errors = {"l2": d * d, "l1": d.abs(), "huber": 2 * width * root, "smooth_l1": 2 * root}[kind]
        loss, snr = errors.mean().item() * weights[one].item(), a / (1 - a)
        if gamma := settings.get("min_snr_gamma"):
            loss *= min(snr, gamma) / (snr + 1 if v else snr)
        share = min(snr, 1000) / (min(snr, 1000) + 1)
        if settings.get("scale_v_pred_loss_like_noise_pred"):
            loss *= share
        loss += loss / share * settings.get("v_pred_like_loss", 0)
        if settings.get("debiased_estimation_loss"):
            loss *= 1 / (min(snr, 1000) + 1) if v else 1 / math.sqrt(min(snr, 1000))
        found.append(loss)
    return sum(found) / len(found)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("settings", [*SETTINGS, {"v_pred_like_loss": 0.3}, {"scale_v_pred_loss_like_noise_pred": True}], ids=str)
def test_losses_are_those_of_sd_scripts(tensors, settings, kind):
    if settings.get({"epsilon": "scale_v_pred_loss_like_noise_pred", "v_prediction": "v_pred_like_loss"}[kind]):
        with pytest.raises(ValueError, match="is for models that predict"):
            losses.Loss.of(Recipe(others=settings), kind)
        return
    others = {name: value for name, value in settings.items() if name != "min_snr_gamma"}
    loss = losses.Loss.of(Recipe(min_snr_gamma=settings.get("min_snr_gamma"), others=others), kind)
    for weights in (None, torch.tensor([1.0, 0.3, 1.0, 0.0])):
        expected = sd_scripts(*tensors, T, settings, kind == "v_prediction", torch.ones(4) if weights is None else weights)
        assert loss(*tensors, T, losses.DDPM(ALPHAS, kind), weights).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    "wrong", [{"huber_c": -0.1}, {"huber_scale": -1.0}, {"loss_type": "l3"}, {"huber_schedule": "cosine"}, {"min_snr_gamma": -1.0}], ids=str
)
def test_losses_that_mean_nothing_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        losses.Loss(**wrong)
