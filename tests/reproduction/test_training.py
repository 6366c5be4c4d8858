import os
import signal

import pytest
import torch
from torch import nn

from manifold_lib.core import files
from manifold_lib.data.datasets import load
from manifold_lib.models.vae import VAE, Autoencoder, ConvVAE
from manifold_lib.reproduction import training

SETTINGS = {"epochs": 4, "batch_size": 100, "learning_rate": 1e-2, "seed": 3}


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 2))


def fit(model, **more):
    moons = load("moons")
    return training.fit(model, training.classification_loss, (moons.inputs, moons.labels), **{**SETTINGS, **more})


def same(first, second):
    return all(torch.equal(value, second.state_dict()[name]) for name, value in first.state_dict().items())


def test_training_learns_and_repeats():
    first, second, other = network(), network(), network()
    moons = load("moons", train=False)
    before = training.accuracy(first.eval(), moons.inputs, moons.labels)
    random = torch.get_rng_state()
    seconds = fit(first.train())
    assert seconds > 0
    assert torch.equal(torch.get_rng_state(), random), "the caller's random state is as found"
    torch.rand(5)
    fit(second)
    fit(other, seed=4)
    assert same(first, second) and not same(first, other)
    assert training.accuracy(first.eval(), moons.inputs, moons.labels) > max(0.8, before)


def test_the_mode_is_left_as_found():
    for mode in (True, False):
        model = network().train(mode)
        fit(model, epochs=1)
        assert model.training is mode
    trained, evaluated = network().train(), network().eval()
    fit(trained, epochs=1)
    fit(evaluated, epochs=1)
    assert same(trained, evaluated), "dropout is on in training whatever the mode was"


def train_and_die(checkpoint):
    def die(step, model):
        if step == 25:
            os.kill(os.getpid(), signal.SIGKILL)

    fit(network(), checkpoint=checkpoint, on_step=die)


def test_a_killed_run_resumes_to_the_same_weights(tmp_path, processes):
    """kill -9 in the third epoch, then resume: bit for bit the weights of a run that was not killed."""
    checkpoint = tmp_path / "run.ckpt"
    killed = processes.Process(target=train_and_die, args=(checkpoint,))
    killed.start()
    killed.join(60)
    assert killed.exitcode == -signal.SIGKILL
    assert files.load_checkpoint(checkpoint)["epoch"] == 2
    whole, resumed, steps = network(), network(), []
    fit(whole)
    fit(resumed, checkpoint=checkpoint, on_step=lambda step, model: steps.append(step))
    assert steps == list(range(20, 41)), "only what was missing is trained"
    assert same(whole, resumed)


def test_a_checkpoint_of_other_settings_is_not_used(tmp_path):
    checkpoint = tmp_path / "run.ckpt"
    fit(network(), checkpoint=checkpoint, epochs=2)
    anew, plain = network(), network()
    fit(anew, checkpoint=checkpoint)
    fit(plain)
    assert same(anew, plain)


def test_a_finished_checkpoint_is_only_loaded(tmp_path):
    checkpoint = tmp_path / "run.ckpt"
    first, second = network(), network()
    seconds = fit(first, checkpoint=checkpoint)
    assert fit(second, checkpoint=checkpoint) == seconds
    assert same(first, second)


def test_a_finished_checkpoint_takes_on_step(tmp_path):
    checkpoint, steps = tmp_path / "run.ckpt", []
    fit(network(), checkpoint=checkpoint)
    fit(network(), checkpoint=checkpoint, on_step=lambda step, model: steps.append(step))
    assert steps == [40]


def test_a_corrupt_checkpoint_stops(tmp_path):
    checkpoint = tmp_path / "run.ckpt"
    checkpoint.write_bytes(b"?" * 100)
    with pytest.raises(files.CorruptFile, match=r"run\.ckpt"):
        fit(network(), checkpoint=checkpoint)


def test_data_of_each_epoch_and_steps():
    epochs, steps, moments = [], [], []

    def data(epoch):
        epochs.append(epoch)
        return torch.rand(10, 2), torch.zeros(10, dtype=torch.long)

    def loss(model, batch, moment):
        moments.append(moment)
        return training.classification_loss(model, batch, moment)

    training.fit(
        network(), loss, data, epochs=2, batch_size=4, learning_rate=1e-2, seed=0, on_step=lambda s, m: steps.append(s)
    )
    assert epochs == [0, 1] and steps == [0, 1, 2, 3, 4, 5, 6]
    assert [moment.step for moment in moments] == [0, 1, 2, 3, 4, 5]
    assert moments[0].progress == 0 and moments[-1].progress == 5 / 6


def test_schedule():
    shares = [training._schedule(step / 1000) for step in range(1000)]
    assert 0 < shares[0] < 0.1 and max(shares) == pytest.approx(1, abs=1e-3) and shares[-1] < 1e-3
    peak = shares.index(max(shares))
    assert 20 <= peak <= 40
    assert shares[: peak + 1] == sorted(shares[: peak + 1]) and shares[peak:] == sorted(shares[peak:], reverse=True)


def test_bf16_keeps_float32_weights():
    model = network()
    fit(model, epochs=1, bf16=True)
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in model.parameters())


def test_predict_and_accuracy():
    inputs = torch.randn(10, 2)
    model = network().eval()
    torch.testing.assert_close(training.predict(model, inputs, batch_size=3), model(inputs).detach())
    assert not training.predict(model, inputs).requires_grad
    labels = model(inputs).argmax(1)
    labels[:3] = 1 - labels[:3]
    assert training.accuracy(model, inputs, labels) == pytest.approx(0.7)


@pytest.mark.parametrize("norm_scope", ["sample", "batch"])
def test_adversarial_loss(norm_scope):
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))
    batch = (torch.rand(6, 1, 4, 4), torch.randint(3, (6,)))
    loss = training.adversarial_loss((0.5, 1.0), n_steps=3, norm_scope=norm_scope)

    def value():
        torch.manual_seed(0)
        return loss(model, batch, training.Moment(0.5, 1, torch.Generator().manual_seed(0)))

    first = value()
    assert model.training and first.ndim == 0
    assert torch.equal(first, value())
    first.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_adversarial_loss_is_above_the_clean_one():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    batch = (torch.rand(32, 1, 4, 4), torch.randint(3, (32,)))
    moment = training.Moment(0.5, 1, torch.Generator().manual_seed(0))
    clean = training.classification_loss(model, batch, moment)
    assert training.adversarial_loss((2.0,))(model, batch, moment) > clean


def test_generator_losses_fall():
    digits = load("digits").inputs[:64]
    images = torch.nn.functional.interpolate(digits, size=(32, 32))
    for model, loss in (
        (VAE(latent_dim=4, width=4, hidden=16), training.vae_loss(64)),
        (Autoencoder(1, 8, 4, n_blocks=1), training.reconstruction_loss),
        (ConvVAE(1, (8, 8, 8), 2), training.vae_elbo_loss(0.5)),
    ):
        values = []

        def recorded(model, batch, moment, loss=loss, values=values):
            values.append(loss(model, batch, moment))
            return values[-1]

        training.fit(model, recorded, (images,), epochs=8, batch_size=32, learning_rate=3e-3, seed=0)
        assert values[-1] < values[0]
