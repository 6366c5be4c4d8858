"""Pretrained networks with heads of our own, on random weights and on small photographs that the tests make."""

import functools

import pytest
import torch
import torchvision
from files_of_sets import write_pets, write_voc
from helpers import close
from torchvision.models.convnext import CNBlockConfig

import manifold_lib as ml
from manifold_lib.data import photographs
from manifold_lib.reproduction import heads, training


@pytest.fixture
def pets(given_folder):
    write_pets(given_folder)
    return given_folder


@pytest.fixture
def voc(given_folder):
    write_voc(given_folder)
    return given_folder


def test_the_head_of_a_convnext_is_its_last_layer_fitted_to_every_class_by_itself(voc, monkeypatch):
    def network(name, n_classes):
        torch.manual_seed(0)
        blocks = [CNBlockConfig(16, 32, 1), CNBlockConfig(32, None, 1)]
        tiny = torchvision.models.ConvNeXt(blocks, num_classes=5)
        monkeypatch.setattr(torchvision.models, "get_model", lambda name, weights: tiny)
        return build(name, n_classes)

    build, original = heads.photo_network, heads.fit_head

    def quickly(model, part, found, size, **options):
        assert part == "classifier.2" and size == 224
        before = {key: value.clone() for key, value in model.state_dict().items()}
        original(model, part, found, size=32, epochs=300, batch_size=8, **options)
        moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
        assert moved == {"1.classifier.2.weight", "1.classifier.2.bias"}

    monkeypatch.setattr(heads, "photo_network", network)
    monkeypatch.setattr(heads, "fit_head", quickly)
    model = heads.photo_classifier("voc", "convnext_base")
    found = photographs.find_photos("voc", train=True)
    images = photographs.read_photos(found, range(24), size=32)
    with torch.no_grad():
        scores = model(images)
    assert scores.shape == (24, 20) and not model.training
    common = scores.sigmoid()[:, 11][found.labels[:, 11] == 1].mean() - scores.sigmoid()[:, 1].mean()
    assert common > 0.2  # dogs are shown, bicycles are not
    with pytest.warns(RuntimeWarning, match="converged"):
        maps = ml.energy_ig(torch.nn.Sequential(model, torch.nn.Sigmoid()), images[:2], 11, n_steps=4, max_iter=2)
    assert maps.isfinite().all()


def test_an_unknown_network_and_no_classes_are_refused():
    with pytest.raises(ValueError, match="name"):
        heads.photo_network("resnet19", 3)
    with pytest.raises(ValueError, match="n_classes"):
        heads.photo_network("resnet18", 0)


@pytest.mark.parametrize("name", heads.NETWORKS)
def test_the_heads_are_the_released_ones(name):
    if "lite" in name:
        pytest.importorskip("efficientnet_lite_pytorch", reason="needs the extra photographs")
    torch.manual_seed(0)
    model = heads.photo_network(name, 7, pretrained=False)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        scores = model(images)
    assert scores.shape == (2, 7) and not model.training
    kinds = [type(part).__name__ for part in model[1].get_submodule(heads.NETWORKS[name].head).modules()]
    wanted = ["Sequential", "Linear", "BatchNorm1d", "ReLU", "Dropout", "Linear"] if name == "vgg16" else ["Linear"]
    assert kinds == wanted
    maps = ml.integrated_gradients(model, images, 3, n_steps=2)  # its first layer is in place
    assert maps.shape == images.shape


def test_a_head_is_fitted_once_and_then_read(pets, monkeypatch):
    built = functools.partial(heads.photo_network, pretrained=False)

    def network(name, n_classes):
        torch.manual_seed(0)
        return built(name, n_classes)

    monkeypatch.setattr(heads, "photo_network", network)
    original, fitted = heads.fit_head, []

    def quickly(model, part, found, size, **options):
        fitted.append((len(found.files), size))
        original(model, part, found, size=32, epochs=25, **options)

    monkeypatch.setattr(heads, "fit_head", quickly)
    first = heads.photo_classifier("pets", "resnet18")
    again = heads.photo_classifier("pets", "resnet18")
    assert fitted == [(57, 256)]
    found = photographs.find_photos("pets", train=True)
    images = photographs.read_photos(found, range(57), size=32)
    assert training.accuracy(first, images, found.labels) > 0.8
    assert torch.equal(again(images[:4]), first(images[:4]))
    assert not again.training and not any(parameter.requires_grad for parameter in again.parameters())


@pytest.mark.parametrize("name", ["efficientnet_lite0", "resnet18", "googlenet"])
def test_folded_batch_norms_leave_scores_and_gradients(name):
    if name == "efficientnet_lite0":
        pytest.importorskip("efficientnet_lite_pytorch")
    torch.manual_seed(0)
    network = ml.imagenet_network(name, pretrained=False).double()
    for part in network.modules():
        if isinstance(part, torch.nn.BatchNorm2d):  # statistics that matter
            torch.nn.init.uniform_(part.running_mean, -0.1, 0.1)
            torch.nn.init.uniform_(part.running_var, 0.5, 2)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    quick = heads.folded(network)
    assert not any(isinstance(part, torch.nn.BatchNorm2d) for part in quick.modules())
    x = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    close(quick(x), network(x), 1e-9)
    of = [ml.gradient(net, x, torch.tensor([3, 5])) for net in (network, quick)]
    close(of[1], of[0], 1e-7)
    assert all(value.equal(before[name]) for name, value in network.state_dict().items())  # left as found
