"""scripts/bench compression: what a chain gains arrives in the file that ships, and a drop is judged in pairs."""

import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_project import ROOT

from edgeopt.bundle.coding import coded_size
from edgeopt.recipe import load_recipe

SCRIPTS = ROOT / "scripts"
if not (SCRIPTS / "bench_seeds.py").is_file():
    pytest.skip("scripts/ is not part of an installed edgeopt", allow_module_level=True)
sys.path.insert(0, str(SCRIPTS))

from bench_compression import compression_figures, compression_networks, float_weights_bytes  # noqa: E402
from bench_network import Network, NotMeasured  # noqa: E402
from bench_seeds import Pair, drop_figure, trained_pairs  # noqa: E402

TRAININGS = ("train", "compress.sparsify.finetune", "compress.share.finetune")


def test_lenet_ships_its_zeros_and_its_codebooks_when_it_was_pruned_and_shared(tmp_path: Path) -> None:
    recipe = str(SCRIPTS / "bench_recipes/lenet_300_100.toml")
    network = Network(recipe, tmp_path)
    network.loaded = load_recipe(recipe, {f"{training}.epochs": 1 for training in TRAININGS})

    (pair,) = trained_pairs(network, seeds=(5,))
    coded = coded_size(pair.student)
    found = {tensor.num_items: tensor for tensor in coded.tensors if tensor.form != "rest"}
    for num_weights, sparsity in ((784 * 300, 0.94), (300 * 100, 0.9), (100 * 10, 0.7)):
        assert found[num_weights].zeros >= sparsity * num_weights
        assert found[num_weights].num_values <= 17
    assert float_weights_bytes(pair.teacher) == 4 * 266_610
    assert 4 * 266_610 / coded.size_bytes > 40
    assert pair.teacher_right.shape == pair.student_right.shape == (1000,)
    assert pair.student_right.mean() > 0.5  # one epoch each, and it has learned


def test_drop_figure_pairs_the_answers_of_each_seed_when_there_are_several() -> None:
    def pair(teacher: list[float], student: list[float]) -> Pair:
        return Pair(Path(), Path(), np.array(teacher), np.array(student))

    figure = drop_figure("compression", "net", [pair([1, 1, 0, 1], [1, 0, 0, 1]), pair([1, 0, 0, 1], [1, 1, 1, 1])])

    assert figure.value == pytest.approx(100 * (0.25 - 0.5) / 2)
    assert figure.remark.startswith("top-1 75.0 -> 50.0, 50.0 -> 100.0 %; within ")
    assert figure.remark.endswith("not to be told from none")


def test_compression_is_not_measured_when_a_network_has_no_measure(tmp_path: Path) -> None:
    with pytest.raises(NotMeasured, match="lenet_300_100, lenet_5, mnist5k"):
        compression_figures(Network("mobilenet_v2", tmp_path))


def test_compression_networks_are_recipes_that_load() -> None:
    assert all(load_recipe(reference).recipe.compress for reference in compression_networks())
