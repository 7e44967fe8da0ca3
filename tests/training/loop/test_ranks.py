"""What the processes of a training tell each other: the same on all of them, in order, and never a wait for the dead.

Two small processes are started once for all that they tell each other; they import torch and little else.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from process_trainings import train_line
from rank_processes import run_processes

from flawscope.errors import ArgumentError, RunError
from flawscope.training.loop import ranks as ranks_module
from flawscope.training.loop.rank_environment import RankEnvironment, read_rank_environment
from flawscope.training.loop.ranks import Ranks

HELPERS = Path(__file__).parents[2] / "helpers"
BODY = """
import json, os, signal, sys
from pathlib import Path
import numpy as np, torch
from torch import nn
from flawscope.training.loop import ranks as module
from flawscope.training.loop.checkpoints import Checkpoint, share_checkpoint
from flawscope.training.loop.gradient_sums import share_state, sum_gradients
from flawscope.training.loop.synced_norm import BatchSharing, synced_batch_norms

module._CHUNK_BYTES = 64  # several chunks
here = module.ranks()
assert (here.world, here.is_writer) == (2, here.rank == 0)

# --- sums, in float64: float32 would lose the small part
assert here.sum([here.rank + 1, 1e-12 * here.rank]).tolist() == [3.0, 1e-12]
assert here.share(5).tolist() == ([0, 2, 4], [1, 3])[here.rank]

# --- what rank 0 decides
assert here.broadcast({"from": [1, "x", None]} if here.is_writer else "other") == {"from": [1, "x", None]}
assert here.broadcast_bytes(bytes(range(200)) if here.is_writer else b"") == bytes(range(200))
assert here.broadcast_bytes(b"") == b""
assert module.on_writer(lambda: here.rank) == 0

# --- rows in the order of their indices, also where one process has none
for kind in (np.float16, np.float64, np.uint8):
    own = here.share(11)
    rows = (own[:, None, None] * 10 + np.arange(6).reshape(2, 3)).astype(kind)
    rows.flags.writeable = False
    gathered = here.gather_rows(rows[::-1], own[::-1])
    assert (gathered is None) == (not here.is_writer)
    if gathered is not None:
        assert gathered.dtype == kind
        assert (gathered == np.arange(11)[:, None, None] * 10 + np.arange(6).reshape(2, 3)).all()
    for empty in (0, 1):
        some = slice(0, 0) if here.rank == empty else slice(None)
        gathered = here.gather_rows(rows[some], own[some])
        if gathered is not None:
            assert gathered[:, 0, 0].tolist() == [10 * n for n in range(1 - empty, 11, 2)], gathered[:, 0, 0]

# --- a batch norm, and the gradients of a whole batch, against those of one process; in float64, so that only a mistake
# is larger than the tolerance. Of one image, rank 1 has none.
def network():
    torch.manual_seed(1)
    second = nn.Conv2d(5, 4, 3, stride=2), nn.BatchNorm2d(4, momentum=None)
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), *second).double()

sharing = BatchSharing(here.rank, here.world, here.sum_tensor)
for count in (6, 5, 1):
    chance = np.random.default_rng(count)
    images, targets = (torch.from_numpy(chance.random((count, *shape))) for shape in ((3, 9, 9), (4, 3, 3)))
    alone, shared = network(), network()
    for _ in range(2):
        for trained in (alone, shared):
            trained.zero_grad()
        loss = (alone(images + 7.0) - targets).square().mean()
        loss.backward()
        sharing.has_images = here.rank < count
        rows = here.share(count) if sharing.has_images else np.zeros(1, int)
        weight = len(rows) / count if sharing.has_images else 0.0
        with synced_batch_norms(shared, sharing):
            part = weight * (shared(images[rows] + 7.0) - targets[rows]).square().mean()
            part.backward()
        sum_gradients(list(shared.parameters()), here)
        np.testing.assert_allclose(here.sum(part.item()), loss.item(), rtol=1e-12)
        for one, other in zip(alone.parameters(), shared.parameters()):
            np.testing.assert_allclose(other.grad, one.grad, rtol=1e-9, atol=1e-12)
    assert "forward" not in vars(shared[1])
    for one, other in zip(alone.state_dict().values(), shared.state_dict().values()):
        np.testing.assert_allclose(other, one, rtol=1e-12)

# --- parameters without a gradient: here, there, on both
loose = [nn.Parameter(torch.ones(2)) for _ in range(3)]
loose[here.rank].grad = torch.ones(2) * (here.rank + 1)
sum_gradients(loose, here)
assert [None if p.grad is None else p.grad.tolist() for p in loose] == [[1, 1], [2, 2], None]

# --- the state of rank 0, and its checkpoint
layer = nn.BatchNorm1d(2)
with torch.no_grad():
    layer.weight.fill_(here.rank + 5.0)
    layer.num_batches_tracked.fill_(here.rank + 7)
share_state(layer, here)
assert layer.weight.tolist() == [5.0, 5.0] and layer.num_batches_tracked == 7
moments = {"exp_avg": torch.arange(4, dtype=torch.bfloat16), "step": torch.tensor(3.0)}
moments["deep"] = {"flags": torch.tensor([True])}
stored = Checkpoint(
    {"network": {"a.b": torch.arange(6.0).reshape(2, 3).T}, "best": {}},
    {"state": {0: {**moments, "lr": 0.5}}, "param_groups": [{"betas": (0.9, 0.99), "params": [0]}]},
    {"epoch": 2, "best_error": float("inf")},
)
told = share_checkpoint(stored if here.is_writer else None, here)
assert told.state["network"]["a.b"].tolist() == [[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]]
assert told.state["best"] == {} and told.numbers == {"epoch": 2, "best_error": float("inf")}
assert told.optimizer["state"][0]["deep"]["flags"].tolist() == [True]
assert told.optimizer["state"][0]["exp_avg"].dtype == torch.bfloat16 and told.optimizer["state"][0]["lr"] == 0.5
assert told.optimizer["state"][0]["step"].shape == ()
assert share_checkpoint(None, here) is None
assert here.facts(8) == {"processes": 2, "effective_batch": 8, "batch_per_process": 4}

# --- a training that is killed and goes on, from the checkpoint of rank 0, which alone has one
sys.path.insert(0, sys.argv[1])
from process_trainings import train_line
folder = Path(sys.argv[2])
from interrupted import Killed
try:
    train_line(folder / str(here.rank), killed_at=8)
    sys.exit("it was not killed")
except Killed:
    pass
trained = train_line(folder / str(here.rank), resume=True)
(folder / f"{here.rank}.json").write_text(json.dumps(trained))

# --- one that dies
print("agreed", flush=True)
try:
    here.barrier()  # which rank 0 may still be in when rank 1 ends
    if here.rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    here.sum(1.0)
except module.PeerLost as err:
    print(err, flush=True)
    os._exit(3)
"""


@pytest.mark.long
@pytest.mark.serial
def test_two_processes_agree_and_train_as_one_until_one_dies(tmp_path: Path) -> None:
    first, second = run_processes(["-c", BODY, str(HELPERS), str(tmp_path)], 2)
    for process in (first, second):
        assert process.stdout.startswith("agreed\n"), process.stderr
    together = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert together[0] == together[1]
    alone = train_line(tmp_path / "alone")
    assert together[0].pop("processes") == {"processes": 2, "effective_batch": 4, "batch_per_process": 2}
    assert alone.pop("processes") == {}
    assert together[0].pop("epoch") == alone.pop("epoch")
    for name, value in _flat(alone).items():
        np.testing.assert_allclose(_flat(together[0])[name], value, rtol=1e-9, err_msg=name)
    # One process wrote, and the other nothing; the training that went on took the steps it would have taken.
    lines = [
        [json.loads(text) for text in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("0", "alone")
    ]
    assert [line["epoch"] for line in lines[0]] == [1, 2, 3, 4]
    np.testing.assert_allclose(*([line["error"] for line in part] for part in lines), rtol=1e-9)
    assert not list((tmp_path / "1").rglob("*.*"))
    assert second.returncode == -9
    assert first.returncode == 3, first.stderr
    assert "got one that has ended" in first.stdout
    assert "--resume latest" in first.stdout


def _flat(result: dict[str, Any]) -> dict[str, Any]:
    named = {f"{group}.{name}": value for group in ("state", "last") for name, value in result[group].items()}
    return {"losses": result["losses"], "error": result["error"], **named}


# --- one process


def test_one_process_needs_no_others() -> None:
    here = Ranks()
    assert here.sum([1, 2]).tolist() == [1.0, 2.0]
    assert here.broadcast((1, 2)) == (1, 2)
    assert here.broadcast_bytes(b"x") == b"x"
    assert here.share(3).tolist() == [0, 1, 2]
    rows = np.arange(6).reshape(3, 2)
    gathered = here.gather_rows(rows, np.array([2, 0, 1]))
    assert gathered is not None
    assert gathered.tolist() == [[2, 3], [4, 5], [0, 1]]
    assert here.facts(8) == {}
    with pytest.raises(ArgumentError, match="expected one for each of 3 rows, got 2"):
        here.gather_rows(rows, np.array([0, 1]))


def test_the_place_is_read_from_what_torchrun_sets() -> None:
    assert read_rank_environment({}) == RankEnvironment()
    assert read_rank_environment({"WORLD_SIZE": "1", "RANK": ""}) == RankEnvironment()
    here = {"MASTER_ADDR": "a", "MASTER_PORT": "1"}
    told = {**here, "WORLD_SIZE": "6", "RANK": "4", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "3"}
    assert read_rank_environment(told) == RankEnvironment(4, 6, 1, 3)
    assert read_rank_environment({**here, "WORLD_SIZE": "2", "RANK": "1"}) == RankEnvironment(1, 2, 1, 2)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"RANK": ""}, "got none of RANK"),
        ({"MASTER_PORT": ""}, "got none of MASTER_PORT"),
        ({"RANK": "2"}, "expected a process of 2"),
        ({"RANK": "-1"}, "expected a process of 2"),
        ({"LOCAL_RANK": "5"}, "here 5"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE: expected a whole number, got 'two'"),
        ({"WORLD_SIZE": "0"}, "got 0 processes"),
    ],
)
def test_a_place_that_is_none_is_refused(changes: dict[str, str], said: str) -> None:
    told = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "a", "MASTER_PORT": "1", **changes}
    with pytest.raises(ArgumentError, match=said):
        read_rank_environment(told)


def test_short_memory_is_not_taken_for_the_end_of_another_process() -> None:
    with pytest.raises(RunError, match="expected memory for what the processes") as caught, ranks_module._peers():
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")
    assert not isinstance(caught.value, ranks_module.PeerLost)
    with pytest.raises(ranks_module.PeerLost), ranks_module._peers():
        raise RuntimeError("Connection closed by peer")
