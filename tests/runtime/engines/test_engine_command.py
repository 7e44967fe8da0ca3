"""`flawscope engine`: what a person sees, and the exit status."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from flawscope import cli
from flawscope.runtime.engines import target as devices
from flawscope.runtime.engines.cache import PLAN

pytest.importorskip("tensorrt_rtx", reason='TensorRT-RTX is not installed: pip install "flawscope[tensorrt-rtx]"')


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    status = cli.run(["engine", *map(str, arguments)])
    printed = capsys.readouterr()
    return status, " ".join(printed.out.split()), " ".join(printed.err.split())


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FLAWSCOPE_ENGINES", str(tmp_path / "engines"))
    return tmp_path / "engines"


def test_build_list_and_clear(cache: Path, padim_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build = ("build", padim_bundle, "--target", "8.9", "--opt-batch", "2")
    assert run(capsys, "list") == (0, f"no engines in {cache}", "")
    status, out, err = run(capsys, *build, "--no-build")
    assert (status, out) == (2, "")
    assert err.startswith("error: engine: no engine of padim, graph features, was built yet. Building was not allowed")
    status, out, _ = run(capsys, *build)
    assert status == 0
    assert out.startswith("built because no engine of padim, graph features, was built yet engine: ")
    assert "graph features, fp32, batch 1 to 4, tensorrt-rtx" in out
    assert "any GPU of compute capability 8.9" in out
    assert "no report of its layers: the inspector needs the GPU" in out
    assert run(capsys, *build, "--no-build")[:2] == run(capsys, *build)[:2]
    assert run(capsys, *build)[1].startswith("engine fits: ")
    status, out, _ = run(capsys, "list", "--json")
    (row,) = json.loads(out)
    assert status == 0
    assert row["problem"] is None
    assert row["entry"]["key"]["options"] == {
        "min_batch": 1,
        "opt_batch": 2,
        "max_batch": 4,
        "workspace_mib": None,
        "tf32": False,
    }
    assert run(capsys, "clear", "--broken")[1] == f"removed 0 engines, 0.0 MiB, from {cache}"
    assert run(capsys, "clear", "--bundle", "another")[1].startswith("removed 0 engines")
    assert run(capsys, "clear", "--bundle", "padim")[1].startswith("removed 1 engines")
    assert run(capsys, "list")[1] == f"no engines in {cache}"


def test_a_truncated_engine_is_listed_as_one_that_must_not_be_used(
    cache: Path, padim_bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, "build", padim_bundle, "--target", "8.9")[0] == 0
    (plan,) = cache.glob(f"*/{PLAN}")
    os.truncate(plan, 100)
    status, out, _ = run(capsys, "list")
    assert status == 1
    assert "must not be used: its file has 100 bytes, expected" in out
    assert run(capsys, "clear", "--broken")[1].startswith("removed 1 engines")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--target", "9.0"), "error: target: expected a compute capability the builder knows (7.5,"),
        (("--target", "8.9", "--max-batch", "5"), "error: max-batch: expected 1 to 4, which the bundle takes, got 5."),
        (("--target", "8.9", "--opt-batch", "9"), "error: batches: expected 1 ≤ smallest ≤ usual ≤ largest ≤ 256"),
        (("--target", "8.9", "--workspace", "0"), "error: workspace: expected at least 1 MiB, got 0."),
        (("--runtime", "tensorrt", "--target", "8.9"), "error: tensorrt: is not installed"),
        (("--force", "--no-build"), "error: --no-build and --force exclude each other."),
    ],
)
def test_a_wrong_request_is_one_line(
    cache: Path,
    padim_bundle: Path,
    capsys: pytest.CaptureFixture[str],
    options: tuple[str, ...],
    message: str,
) -> None:
    status, out, err = run(capsys, "build", padim_bundle, *options)
    assert (status, out) == (2, "")
    assert err.startswith(message)
    assert not cache.exists()


def test_without_a_gpu_the_targets_are_named(
    cache: Path, padim_bundle: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> devices.Target:
        raise devices.BackendError("device: no NVIDIA driver answers. Is there a GPU, and its driver?")

    monkeypatch.setattr("flawscope.runtime.engines.engine_command.current_target", none)
    status, _, err = run(capsys, "build", padim_bundle)
    assert status == 2
    assert "no NVIDIA driver answers" in err
    assert "name it with --target: 7.5, 8.0, 8.6, 8.9" in err


def test_a_path_that_is_no_bundle_is_refused(cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = run(capsys, "build", tmp_path / "none.flaw", "--target", "8.9")
    assert status == 2
    assert "expected a bundle, got no such file or folder" in err
