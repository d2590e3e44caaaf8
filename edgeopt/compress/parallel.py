"""How one training is spread over the processes of a group: data, parameters or layers.

ddp              every process has the whole network and computes its part of each batch; gradients are averaged
fsdp             the same, but each process keeps only its part of every parameter, gradient and optimizer state, and
                 gathers a layer's parameters while it computes with them (PyTorch's FSDP2)
tensor_parallel  every process computes its part of each Linear layer on the whole batch

The parts of a batch together are the batch of one process and the loss is weighed by their sizes, so that the result
is that of one process but for the rounding of sums. What differs is dropout, which every process draws for itself.

Source: Li et al.: PyTorch Distributed, 2020, arXiv 2006.15704; Zhao et al.: PyTorch FSDP, 2023, arXiv 2304.11277;
Shoeybi et al.: Megatron-LM, 2019, arXiv 1909.08053, section 3.
"""

from __future__ import annotations

import copy
import itertools
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from lightning_fabric.strategies.ddp import DDPStrategy
from lightning_fabric.strategies.model_parallel import ModelParallelStrategy
from lightning_fabric.strategies.strategy import Strategy
from torch import distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module
from torch.nn.utils import parametrize

from edgeopt.compress.batches import Labelled
from edgeopt.compress.processes import started_by_torchrun
from edgeopt.errors import CompressionError
from edgeopt.native_stderr import held_back_stderr
from edgeopt.training import TrainSettings

# What may stand between two Linear layers of which each process computes a part: it treats every value alone.
_ELEMENTWISE = (nn.ReLU, nn.ReLU6, nn.GELU, nn.SiLU, nn.Sigmoid, nn.Tanh, nn.Hardswish, nn.LeakyReLU, nn.Identity)


class _Joined(LightningEnvironment):
    """Tells Fabric of the group that this process has joined already."""

    @property
    def creates_processes_externally(self) -> bool:
        return True

    def local_rank(self) -> int:
        return distributed.get_rank() % processes_here()


def num_processes() -> int:
    """Return how many processes the group has, 1 outside of one."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def processes_here() -> int:
    """Return how many processes of the group are on this machine; ``torchrun`` says so."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if started_by_torchrun() else num_processes()


def make_fabric(settings: TrainSettings) -> Fabric:
    """Return the Fabric of one process, or of this process in its group, without its remarks about accelerators."""
    precision: Any = "32-true" if settings.precision == "float32" else settings.precision
    world = num_processes()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*available but not used.*")
        if world == 1:
            return Fabric(accelerator="cpu", devices=1, precision=precision)
        fabric = Fabric(
            accelerator="cpu",
            devices=processes_here(),
            num_nodes=world // processes_here(),
            precision=precision,
            strategy=_strategy(settings, world),
            plugins=[_Joined()],
        )
    fabric.launch()
    return fabric


def _strategy(settings: TrainSettings, world: int) -> Strategy:
    match settings.strategy:
        case "ddp":
            # A network with control flow may leave parameters out of a step.
            return DDPStrategy(find_unused_parameters=True)
        case "fsdp":
            return ModelParallelStrategy(_shard_parameters, data_parallel_size=world, tensor_parallel_size=1)
        case "tensor_parallel":
            return ModelParallelStrategy(_split_linear_layers, data_parallel_size=1, tensor_parallel_size=world)


def is_sharded(settings: TrainSettings) -> bool:
    """Return whether no process holds the whole network."""
    return num_processes() > 1 and settings.strategy != "ddp"


def sharded_copy(model: nn.Module, settings: TrainSettings, has_hook: bool) -> nn.Module:
    """Return a copy of a network whose parameters can be spread over the processes.

    Raises:
        CompressionError: something in the step must see a parameter whole.
    """
    constrained = [name for name, module in model.named_modules() if parametrize.is_parametrized(module)]
    if constrained or has_hook:
        what = f"keep the constraint of layer {constrained[0]!r}" if constrained else "zero weights while they train"
        raise CompressionError(
            f'strategy = "{settings.strategy}" cannot {what}', hint='set strategy = "ddp", which can'
        )
    return copy.deepcopy(model)


def _shard_parameters(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Let each process keep its part of every parameter, layer by layer."""
    for layer in model.modules():
        if any(True for _ in layer.parameters(recurse=False)):
            fully_shard(layer, mesh=mesh["data_parallel"])
    fully_shard(model, mesh=mesh["data_parallel"])
    return model


def _split_linear_layers(model: nn.Module, mesh: DeviceMesh) -> nn.Module:
    """Let each process compute its part of every Linear layer."""
    plan = linear_plan(model, num_processes())
    if not plan:
        raise CompressionError(
            'strategy = "tensor_parallel" splits Linear layers, and the network has none', hint='set strategy = "ddp"'
        )
    return parallelize_module(model, mesh["tensor_parallel"], plan)


def linear_plan(model: nn.Module, world: int) -> dict[str, ParallelStyle]:
    """Return how each Linear layer is split, by name.

    Two that follow one another in an ``nn.Sequential`` with only activations between them are split by columns and by
    rows, and need one sum over the processes (Megatron's MLP). Any other is split by columns and its output gathered.
    """
    plan: dict[str, ParallelStyle] = {
        name: ColwiseParallel(output_layouts=Replicate())
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear)
    }
    for path, block in model.named_modules():
        if isinstance(block, nn.Sequential):
            kept = [(name, layer) for name, layer in block.named_children() if not isinstance(layer, _ELEMENTWISE)]
            pairs = list(itertools.pairwise(kept))
            while pairs:
                (first, one), (second, other) = pairs.pop(0)
                if isinstance(one, nn.Linear) and isinstance(other, nn.Linear) and one.out_features % world == 0:
                    prefix = f"{path}." if path else ""
                    plan[prefix + first], plan[prefix + second] = ColwiseParallel(), RowwiseParallel()
                    pairs = pairs[1:]  # the second is no first
    return plan


def part_of(batch: Labelled, settings: TrainSettings) -> tuple[Labelled, float]:
    """Return the samples of a batch that this process computes, and which share of the batch's loss they make.

    The shares of all processes add up to 1. A batch with fewer samples than processes is computed by each.
    """
    world = num_processes()
    if world == 1 or settings.strategy == "tensor_parallel" or len(batch) < world:
        return batch, 1 / world
    index = torch.arange(len(batch)).tensor_split(world)[distributed.get_rank()]
    return batch.take(index), len(index) / len(batch)


@contextmanager
def quiet_about_unused() -> Iterator[None]:
    """Hide PyTorch's advice, once a process, on a network that turns out to use all its parameters."""
    with held_back_stderr() as held:
        yield
    for line in held:
        if b"find_unused_parameters=True" not in line:
            os.write(2, line)


def clip_gradients(model: nn.Module, max_norm: float) -> None:
    """Scale all gradients down so that they have at most this L2 norm together, wherever they are.

    Source: Pascanu, Mikolov, Bengio: On the difficulty of training recurrent neural networks, 2012, arXiv 1211.5063.
    """
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    norms = [gathered(torch.linalg.vector_norm(gradient)) for gradient in gradients]
    factor = max_norm / (float(torch.linalg.vector_norm(torch.stack(norms))) + 1e-6)
    if factor < 1 or math.isnan(factor):
        for gradient in gradients:
            gradient.mul_(factor)


def total_over_processes(value: float) -> float:
    """Return the sum of a value over all processes, the same in each."""
    if num_processes() == 1:
        return value
    total = torch.tensor(value, dtype=torch.float64)
    distributed.all_reduce(total)
    return float(total)


def of_all_processes(tensor: torch.Tensor) -> list[torch.Tensor]:
    """Return the tensors of all processes, by rank."""
    if num_processes() == 1:
        return [tensor]
    found = [torch.empty_like(tensor) for _ in range(num_processes())]
    distributed.all_gather(found, tensor)
    return found


def gathered(state: Any) -> Any:
    """Return a state dict in which parameters that are spread over the processes are whole; all must call it."""
    if isinstance(state, DTensor):
        return state.full_tensor()
    if isinstance(state, dict):
        return {key: gathered(value) for key, value in state.items()}
    return [gathered(value) for value in state] if isinstance(state, list) else state


def spread(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return this process's view of a whole tensor that is spread over the processes as ``like`` is."""
    if isinstance(like, DTensor) and not isinstance(tensor, DTensor) and like.shape == tensor.shape:
        return distribute_tensor(tensor, like.device_mesh, like.placements)
    return tensor
