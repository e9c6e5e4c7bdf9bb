"""Training stops between two layers, forward and backward, when somebody needs the device."""

import pytest
import torch
from torch import nn

from medsam3_model.training import making_way
from medsam3_model.training.making_way import between_layers


def _step(network: nn.Sequential) -> None:
    network(torch.ones(2, 3)).sum().backward()


def test_it_is_asked_between_layers_of_both_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(making_way, "EVERY_S", 0.0)
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    asked = []
    with between_layers([network[0], network[2]], lambda: asked.append(None)):
        _step(network)
    assert len(asked) == 4
    # And what was learned is what would have been learned.
    gradient = network[0].weight.grad.clone()
    network.zero_grad()
    _step(network)
    assert len(asked) == 4
    torch.testing.assert_close(network[0].weight.grad, gradient)


def test_it_is_not_asked_after_every_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(making_way, "EVERY_S", 3600.0)
    network = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 1))
    asked = []
    with between_layers(network, lambda: asked.append(None)):
        _step(network)
    assert asked == []


def test_what_it_raises_ends_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(making_way, "EVERY_S", 0.0)
    network = nn.Sequential(nn.Linear(3, 1))

    def stop() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError), between_layers(network, stop):
        _step(network)
    _step(network)
