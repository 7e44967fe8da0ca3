"""Things that take seconds to make, made once per session: a tiny dataset, two runs and their calibrated bundles.

Tests that change a bundle or a run change a copy. Nothing heavy is imported before a fixture needs it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import settings
from tiny_dataset import CATEGORY, normal_images, write_tiny_dataset

# Images of 64 pixels gain nothing from threads, and threads that wait for each other on a busy machine take most
# of the time. It has to be said before NumPy's and torch's libraries are loaded.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# As flawscope says it: helpers import ONNX Runtime first.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"
# Lines of progress would depend on how fast the machine is.
os.environ["FLAWSCOPE_NO_PROGRESS"] = "1"
# What `auto` takes on a CPU must not depend on a measurement of a busy machine, nor every first load wait for one.
os.environ["FLAWSCOPE_AUTO"] = "cuda,cpu"
# The same examples on every run: a property that fails must fail for the one who broke it.
settings.register_profile("repeatable", derandomize=True, deadline=None)
# For tools/test_variants.py, with --hypothesis-seed: a profile with `derandomize` would not look at the seed.
settings.register_profile("other-examples", derandomize=False, deadline=None, database=None)
settings.load_profile("repeatable")

SETTINGS: dict[str, dict[str, Any]] = {
    "patchcore": {"resize": 64, "stages": [1, 2], "coreset": 90, "neighbors": 5, "sigma": 2.0, "held_out_minimum": 5},
    "padim": {"resize": 64, "stages": [1, 2], "channels": 10, "sigma": 2.0, "held_out_minimum": 5},
}
MAX_BATCH = 4


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Give every test the same global random numbers, whatever ran before it in its process.

    How tests are spread over processes must not decide what an unseeded network looks like. Where a seed is claimed to
    be all that counts, the test draws twice by itself.
    """
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.manual_seed(int(os.environ.get("FLAWSCOPE_TEST_SEED", "0")))


@pytest.fixture
def no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the user one of a service: no HOME, no entry in the list of users, no folders named."""
    import pwd

    def missing(*user: object) -> None:
        raise KeyError("uid not found")

    for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "FLAWSCOPE_ENGINES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", missing)


@pytest.fixture(scope="session")
def tiny_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of the tiny dataset; its one category is called steel."""
    return write_tiny_dataset(tmp_path_factory.mktemp("tiny") / "data")


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory, tiny_root: Path) -> dict[str, Path]:
    """Method -> a run on the tiny dataset."""
    from flawscope.config import build_config
    from flawscope.datasets import open_dataset
    from flawscope.training.detectors.detector_training import train_detector

    folder = tmp_path_factory.mktemp("runs")
    dataset = open_dataset(tiny_root, CATEGORY)
    for method, chosen in SETTINGS.items():
        train_detector(build_config(method, chosen)[0], dataset, folder / method)
    return {method: folder / method for method in SETTINGS}


@pytest.fixture(scope="session")
def uncalibrated_bundles(tmp_path_factory: pytest.TempPathFactory, runs: dict[str, Path]) -> dict[str, Path]:
    """Method -> the exported bundle of its run, as export leaves it."""
    from flawscope.export.detectors.detector_export import export_run

    folder = tmp_path_factory.mktemp("exported")
    for method, run in runs.items():
        export_run(run, folder / f"{method}.flaw", max_batch=MAX_BATCH)
    return {method: folder / f"{method}.flaw" for method in runs}


@pytest.fixture(scope="session")
def bundles(
    tmp_path_factory: pytest.TempPathFactory, uncalibrated_bundles: dict[str, Path], tiny_root: Path
) -> dict[str, Path]:
    """Method -> a bundle with thresholds just above the largest score and map value of the normal test images."""
    import shutil

    from flawscope.bundle import Threshold, Thresholds, rewrite_manifest
    from flawscope.runtime import Inspector

    folder = tmp_path_factory.mktemp("bundles")
    found = {}
    for method, source in uncalibrated_bundles.items():
        target = Path(shutil.copytree(source, folder / source.name))
        with Inspector.load(target, "cpu") as inspector:
            results = inspector(normal_images(tiny_root))
        score = max(result.score for result in results if result.score is not None)
        peak = max(float(result.anomaly_map.max()) for result in results if result.anomaly_map is not None)
        limits = Thresholds(Threshold(1.02 * score, "manual"), Threshold(1.02 * peak, "manual"))
        rewrite_manifest(target, msgspec.structs.replace(inspector.manifest, thresholds=limits))
        found[method] = target
    return found


@pytest.fixture
def traced_features(monkeypatch: pytest.MonkeyPatch, uncalibrated_bundles: dict[str, Path]) -> None:
    """Let exports of the two runs reuse the traced backbone: tracing takes seconds and is the same every time."""
    import onnx

    from flawscope.export.detectors import bank_exporter

    def reuse(features: Any, size: tuple[int, int], max_batch: int, outputs: Any = ("patches",)) -> Any:
        method = "patchcore" if features.pool else "padim"
        return onnx.load(uncalibrated_bundles[method] / "features.onnx")

    monkeypatch.setattr(bank_exporter, "export_module", reuse)


@pytest.fixture(scope="session")
def patchcore_run(runs: dict[str, Path]) -> Path:
    """A PatchCore run."""
    return runs["patchcore"]


@pytest.fixture(scope="session")
def padim_run(runs: dict[str, Path]) -> Path:
    """A PaDiM run."""
    return runs["padim"]


@pytest.fixture(scope="session")
def patchcore_bundle(bundles: dict[str, Path]) -> Path:
    """A calibrated PatchCore bundle."""
    return bundles["patchcore"]


@pytest.fixture(scope="session")
def padim_bundle(bundles: dict[str, Path]) -> Path:
    """A calibrated PaDiM bundle."""
    return bundles["padim"]
