"""The keeper of weights: start and average put in place and taken away, on disk, and refused where parameters are sharded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from relgrad.core.errors import RelgradError
from relgrad.networks.weights.average import Ema
from relgrad.networks.weights.keeper import Keeper, take_average
from relgrad.networks.weights.reference import FrozenStart


def network(value: float = 1.0) -> torch.nn.Linear:
    """One trainable matrix beside a bias that is not trained."""
    made = torch.nn.Linear(2, 2)
    torch.nn.init.constant_(made.weight, value)
    made.bias.requires_grad_(False)
    return made


def weight(model: torch.nn.Linear) -> float:
    return model.weight[0, 0].item()


def test_only_what_is_trained_is_kept() -> None:
    assert [name for name, _ in Keeper(network()).parameters()] == ["weight"]


def test_the_start_speaks_inside_and_the_weights_come_back() -> None:
    model = network(1.0)
    keeper = Keeper(model)
    with pytest.raises(RelgradError, match="built without a reference"), keeper.reference():
        pass
    keeper.freeze_reference()
    torch.nn.init.constant_(model.weight, 3.0)
    with keeper.reference():
        assert weight(model) == 1.0
    assert weight(model) == 3.0
    with keeper.averaged():
        assert weight(model) == 3.0, "without an average nothing is put in place"


def test_the_average_goes_on_from_disk(tmp_path: Path) -> None:
    model = network(1.0)
    keeper = Keeper(model, ema_decay=0.5)
    torch.nn.init.constant_(model.weight, 3.0)
    keeper.after_update()  # min(.5, 2 / 11) of the old
    expected = 3 - 2 * 2 / 11
    with keeper.averaged():
        assert weight(model) == pytest.approx(expected)
    keeper.save_average(tmp_path)
    again = Keeper(network(9.0), ema_decay=0.5)
    again.load_average(tmp_path)
    with again.averaged():
        assert weight(again.network) == pytest.approx(expected)  # type: ignore[arg-type]
    fresh = network(5.0)
    take_average(fresh, tmp_path)
    assert weight(fresh) == pytest.approx(expected)
    Keeper(network()).load_average(tmp_path)  # keeps none, needs none
    with pytest.raises(RelgradError, match="saved by a policy with ema_decay: 0"):
        again.load_average(tmp_path / "nothing")


@pytest.fixture
def sharded(tmp_path: Path) -> Iterator[torch.nn.Linear]:
    """The same network with its matrix as a DTensor over a mesh of one process, as FSDP2 leaves parameters."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model = network()
        mesh = init_device_mesh("cpu", (1,))
        model.weight = torch.nn.Parameter(distribute_tensor(model.weight.detach(), mesh, [Shard(0)]))
        yield model
    finally:
        torch.distributed.destroy_process_group()


def test_sharded_parameters_are_refused_by_name(sharded: torch.nn.Linear) -> None:
    says = r"parameter 'weight' is sharded over several processes.*{}.*fully_shard"
    with pytest.raises(RelgradError, match=says.format("the frozen start")):
        Keeper(sharded).freeze_reference()
    with pytest.raises(RelgradError, match=says.format("the moving average")):
        Keeper(sharded, ema_decay=0.9)
    whole = network()
    start, average = FrozenStart(), Ema(Keeper(whole).parameters(), 0.9)
    start.take(Keeper(whole).parameters())
    kept: Tensor = sharded.weight
    for place in (start.in_place, average.in_place):
        with pytest.raises(RelgradError, match="is sharded"), place([("weight", kept)]):  # type: ignore[list-item]
            pass
    with pytest.raises(RelgradError, match="is sharded"):
        average.update([("weight", kept)])  # type: ignore[list-item]
