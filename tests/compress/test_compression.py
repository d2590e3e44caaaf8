from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_nets import noisy_patterns, small_net

import edgeopt
from edgeopt.errors import UsageError
from edgeopt.steps import FinetuneSettings, PruneSettings, SparsifySettings

IMAGE = (torch.zeros(1, 1, 8, 8),)


def test_compress_network_does_the_steps_on_a_copy_when_given_samples(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = small_net()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    train, held_out = noisy_patterns()
    training = FinetuneSettings(epochs=6, batch_size=32, learning_rate=1e-2, threads=1)
    steps = [PruneSettings(pruning_ratio=0.5), SparsifySettings(sparsity=0.5), training]
    done = edgeopt.compress_network(network, steps, IMAGE, tmp_path, train=train, held_out=held_out)

    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert list(done.reports) == ["1-prune", "2-sparsify", "3-finetune"]
    assert done.network[0].weight.shape == (4, 1, 3, 3)
    assert float((done.network[4].weight == 0).float().mean()) == pytest.approx(0.5, abs=0.01)  # training kept them
    assert done.reports["3-finetune"]["held_out_score"] > 0.5
    assert not done.network.training


def test_compress_network_says_what_is_missing_when_a_step_asks_for_samples(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\[1-finetune\] a step asks for held_out samples"):
        edgeopt.compress_network(small_net(), [FinetuneSettings(epochs=1, threads=1)], IMAGE, tmp_path)
