"""Splits weights, gradients and optimiser state over the processes (FSDP), and gathers them."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from defvis.models.model import DefVIS

# Side of the frame on which idle processes compute; large enough for every backbone.
_IDLE_SIDE = 64


def shard(model: DefVIS, mesh: DeviceMesh) -> None:
    """Splits every weight over the processes, on the device of the mesh.

    Backbone and layers of encoder and decoder are gathered only while they compute, all else from
    the forward to the backward pass. Gradients and optimiser state are split like the weights; the
    optimiser must be built afterwards.

    Args:
        model: The same in all processes.
        mesh: All of them.
    """
    # Outputs of the model are views, but they are not modified in place.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")
    for unit in (model.backbone, *model.encoder.layers, *model.decoder.layers):
        fully_shard(unit, mesh=mesh)
    # `predict_masks` comes between forward and backward pass.
    fully_shard(model, mesh=mesh, reshard_after_forward=False)
    register_fsdp_forward_method(model, "classify_frames")


def copy_of(model: DefVIS) -> DefVIS:
    """A copy of a model, split over the processes if `model` is."""
    if not isinstance(model, FSDPModule):
        return copy.deepcopy(model)
    with torch.random.fork_rng(devices=[]):
        other = DefVIS(model.config)
    weights = model.state_dict()
    shard(other, next(w.device_mesh for w in weights.values() if isinstance(w, DTensor)))
    other.load_state_dict(weights)
    return other


def local(tensor: Tensor) -> Tensor:
    """This process's shard of a tensor, in the same memory; the tensor itself if not split."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(state: Any, keep: bool = True) -> Any:
    """Gathers all split tensors of a state dict; all processes must call it.

    Args:
        state: Nested dictionaries.
        keep: False for a process that does not need them: it gets None for each such tensor.

    Returns:
        The same dictionaries, with whole tensors on the CPU for those that were split.
    """
    if isinstance(state, DTensor):
        full = state.full_tensor()
        return full.cpu() if keep else None
    if isinstance(state, Mapping):
        return {name: whole(value, keep) for name, value in state.items()}
    return state


def load_whole(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Loads a state dict of whole tensors; if the module is split, all processes must call it."""
    own = module.state_dict()
    module.load_state_dict({name: _share(tensor, own.get(name)) for name, tensor in state.items()})


def load_whole_optimizer(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """The same for an optimiser."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    shares = {
        number: {
            name: value if name == "step" else _share(value, weights[number])
            for name, value in values.items()
        }
        for number, values in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": shares})


@contextmanager
def in_step(model: DefVIS) -> Iterator[None]:
    """Lets processes run a model without gradients, each any number of times.

    Each forward pass of a split model needs all processes. So those that are done continue with an
    empty frame until all are.
    """
    if not isinstance(model, FSDPModule):
        yield
        return
    device = next(model.parameters()).device

    def anyone(works: bool) -> bool:
        votes = torch.tensor(int(works), device=device)
        distributed.all_reduce(votes)
        return bool(votes)

    def vote(*_: object) -> None:
        anyone(works=True)

    handle = model.register_forward_pre_hook(vote, prepend=True)
    try:
        yield
    finally:
        handle.remove()
    with torch.no_grad():
        while anyone(works=False):
            model(torch.zeros(1, 1, 3, _IDLE_SIDE, _IDLE_SIDE, device=device))
    model.reshard()  # Weights that the last forward pass gathered for `predict_masks`.


def _share(tensor: Tensor, like: Tensor | None) -> Tensor:
    """This process's shard of a whole tensor; the tensor itself unless `like` is split."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)
