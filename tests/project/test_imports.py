"""What the lean rooms import, tried in fresh processes where the training libraries cannot be imported."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest
from tiny_bundle import tiny_thresholds, write_tiny_bundle

LEAN_ROOMS = ("flawscope", "flawscope.cpp_ext", "flawscope.runtime", "flawscope.calibration")
TRAINING_LIBRARIES = ("torch", "torchvision", "timm", "diffusers", "transformers", "peft", "accelerate")

FORBID = """
import importlib, importlib.abc, pkgutil, sys

class Forbidden(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"{{name}} is forbidden here", name=name)

sys.meta_path.insert(0, Forbidden())
"""


def python(code, *arguments, forbidden=TRAINING_LIBRARIES):
    """Run code in a fresh process in which some libraries cannot be imported; return its output."""
    code = FORBID.format(names=tuple(forbidden)) + textwrap.dedent(code)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, *arguments], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.mark.parametrize("library", TRAINING_LIBRARIES)
def test_the_library_cannot_be_imported_in_these_tests(library):
    code = f"""
        try:
            import {library}
        except ModuleNotFoundError as err:
            print(err)
    """
    assert python(code) == f"{library} is forbidden here\n"


@pytest.mark.parametrize("room", LEAN_ROOMS)
def test_every_module_of_a_lean_room_imports_without_training_libraries(room):
    code = """
        room = importlib.import_module(sys.argv[1])
        names = [room.__name__]
        for module in pkgutil.walk_packages(room.__path__, room.__name__ + "."):
            # A package of another room may lie below `flawscope`; a `__main__` runs when it is imported.
            if module.name.rpartition(".")[2] != "__main__" and not module.name.startswith(tuple(sys.argv[2:])):
                importlib.import_module(module.name)
                names.append(module.name)
        print(*names, sep="\\n")
    """
    heavy = ("flawscope.training", "flawscope.export", "flawscope.workflows")
    imported = python(code, room, *heavy).splitlines()
    assert len(imported) > 1
    assert (
        set(imported)
        >= {
            "flawscope": {
                "flawscope.cli",
                "flawscope.bundle.opening",
                "flawscope.bundle.bundle_command",
                "flawscope.datasets.data_command",
                "flawscope.datasets.defects.set_commands",
            },
            "flawscope.cpp_ext": {"flawscope.cpp_ext.reference"},
            "flawscope.runtime": {
                "flawscope.runtime.inspector",
                "flawscope.runtime.score_command",
                "flawscope.runtime.doctor.doctor_command",
            },
            "flawscope.calibration": {
                "flawscope.calibration.thresholds.calibrate",
                "flawscope.calibration.evaluation.evaluate_command",
            },
        }[room]
    )


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("flawscope", ("numpy", "click", "msgspec", "cv2")),
        ("flawscope.cli", ("numpy", "cv2", "onnxruntime", "rich")),
        ("flawscope.bundle", ("onnxruntime", "onnx", "rich", "matplotlib", "scipy", "sklearn")),
        ("flawscope.runtime", ("matplotlib", "scipy", "sklearn", "onnx", "jinja2", "yaml", *TRAINING_LIBRARIES)),
        ("flawscope.runtime.score_command", ("matplotlib", "scipy", "sklearn", "onnx", *TRAINING_LIBRARIES)),
        ("flawscope.calibration", ("matplotlib", "scipy", "sklearn", "onnx", *TRAINING_LIBRARIES)),
    ],
)
def test_importing_a_package_loads_only_what_it_needs(module, unwanted):
    code = """
        importlib.import_module(sys.argv[1])
        print(*sorted(name for name in sys.argv[2:] if name in sys.modules))
    """
    assert python(code, module, *unwanted, forbidden=()).split() == []


@pytest.mark.parametrize("name", ["", "Inspector", "Result", "FlawscopeError", "Bundle", "fit"])
def test_a_public_name_brings_neither_torch_nor_more_than_its_own_room(name):
    code = """
        import flawscope
        if sys.argv[1]:
            getattr(flawscope, sys.argv[1])
        print(*sorted(found for found in sys.argv[2:] if found in sys.modules))
    """
    above = ("flawscope.workflows", "flawscope.export", "flawscope.calibration", "onnxruntime", "scipy", "matplotlib")
    unwanted = ("numpy", *above) if name in ("", "FlawscopeError") else above
    found = python(code, name, *unwanted, *TRAINING_LIBRARIES, forbidden=()).split()
    assert found == (["flawscope.workflows"] if name in ("Bundle", "fit") else [])


def test_the_python_api_works_without_training_libraries_and_says_what_training_needs(tmp_path):
    write_tiny_bundle(tmp_path / "tiny.flaw", thresholds=tiny_thresholds())
    code = """
        import flawscope
        bundle = flawscope.Bundle.load(sys.argv[1])
        with bundle.inspector("cpu") as inspector:
            print(inspector(sys.argv[1] + "/golden/0.png").decision)
        try:
            flawscope.fit("parts")
        except flawscope.FlawscopeError as err:
            print(err)
    """
    assert python(code, str(tmp_path / "tiny.flaw")).splitlines() == [
        "reject",
        'training needs the package torch, which is not installed. Install it with: pip install "flawscope[train]"',
    ]


MOST_MODULES = 115
"""Modules of flawscope on the way to a decision: 101 with PatchCore on the kernels when this was written."""

NEEDLESS = (
    "click", "rich", "onnx", "openvino", "nncf", "tensorrt", "pycuda", "matplotlib", "scipy", "sklearn", "pandas",
    "PIL", "jinja2", "yaml", "cryptography", "tokenizers", "ssl", "http", "asyncio", "multiprocessing", "unittest",
    "sqlite3", "flawscope.calibration", "flawscope.datasets", "flawscope.config", "flawscope.runtime.bench",
    "flawscope.runtime.doctor", "flawscope.runtime.engines", "flawscope.runtime.synthesis", "flawscope.runtime.upkeep",
    *TRAINING_LIBRARIES,
)  # fmt: skip


@pytest.mark.parametrize("until", ["import", "decision"])
def test_the_way_to_the_first_decision_imports_nothing_needless(tmp_path, until):
    """The cold start is mostly imports; a count of modules holds on any machine, a time does not."""
    write_tiny_bundle(tmp_path / "tiny.flaw", thresholds=tiny_thresholds())
    code = """
        from flawscope.runtime import Inspector
        if sys.argv[1] == "decision":
            with Inspector.load(sys.argv[2], "cpu", "graph") as inspector:
                assert inspector(sys.argv[2] + "/golden/0.png").decision == "reject"
        print(*sorted(name for name in sys.argv[3:] if name in sys.modules))
        print(sum(name.startswith("flawscope") for name in sys.modules))
    """
    needless, count = python(code, until, str(tmp_path / "tiny.flaw"), *NEEDLESS, forbidden=()).split("\n")[:2]
    assert needless.split() == []
    assert 20 < int(count) <= MOST_MODULES


def test_importing_every_command_loads_no_training_library_even_where_it_is_installed():
    code = """
        from flawscope.verbs import VERBS, Group, Verb

        def places(rows):
            for row in rows.values():
                if isinstance(row, Group):
                    yield from places(row.rows)
                elif isinstance(row, Verb):
                    yield row.place

        for place in places(VERBS):
            importlib.import_module(place.partition(":")[0])
        print(*sorted(name for name in sys.argv[1:] if name in sys.modules))
    """
    assert python(code, *TRAINING_LIBRARIES, forbidden=()).split() == []


def test_every_verb_and_every_command_below_it_shows_its_help_without_training_libraries():
    code = """
        import contextlib, io
        import click
        from flawscope.cli import root, run

        def paths(command, path):
            yield path
            if isinstance(command, click.Group):
                context = click.Context(command)
                for name in command.list_commands(context):
                    below = command.get_command(context, name)
                    assert below is not None, (path, name)
                    yield from paths(below, (*path, name))

        for path in paths(root, ()):
            out, err = io.StringIO(), io.StringIO()
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                status = run([*path, "--help"])
            shown = out.getvalue()
            assert status == 0, (path, status, err.getvalue())
            assert err.getvalue() == "", (path, err.getvalue())
            assert shown.startswith(" ".join(["Usage: flawscope", *path])), (path, shown)
            assert len([line for line in shown.splitlines() if line.strip()]) >= 4, (path, shown)
            print(*path)
    """
    shown = python(code).splitlines()
    assert {"", "score", "train", "export", "calibrate", "evaluate", "bench", "doctor"} <= set(shown)
    assert {"bundle info", "bundle verify", "bundle pack", "bundle combine", "data inspect", "synth judge"} <= set(
        shown
    )


@pytest.mark.parametrize(
    ("arguments", "feature", "extra"),
    [
        (["train", "padim", "--data", "DATA", "--out", "OUT"], "training", "train"),
        (["export", "RUN", "--out", "OUT"], "exporting", "export"),
        (["explain", "RUN"], "explaining differences", "export"),
    ],
)
def test_a_verb_that_needs_training_libraries_says_how_to_install_them(tmp_path, arguments, feature, extra):
    import cv2
    import numpy as np

    good = tmp_path / "data" / "train" / "good"
    good.mkdir(parents=True)
    for index in range(3):
        cv2.imwrite(str(good / f"{index}.png"), np.full((32, 32, 3), 40 * index, np.uint8))
    places = {"DATA": str(tmp_path / "data"), "OUT": str(tmp_path / "out"), "RUN": str(tmp_path / "run")}
    code = """
        import contextlib
        from flawscope.cli import run
        with contextlib.redirect_stderr(sys.stdout):
            print(run(sys.argv[1:]))
    """
    *lines, status = python(code, *(places.get(argument, argument) for argument in arguments)).splitlines()
    assert status == "2"
    assert len(lines) == 1
    assert lines[0].startswith(f"error: {feature} needs the package torch, which is not installed.")
    assert lines[0].endswith(f'Install it with: pip install "flawscope[{extra}]"')
    assert not (tmp_path / "out").exists()


def test_formats_of_defect_sets_are_read_without_onnx_runtime_and_without_the_command_line():
    code = """
        importlib.import_module("flawscope.datasets.defects")
        print(sorted(name for name in sys.modules if name.startswith(("flawscope.runtime", "flawscope.bundle"))))
    """
    heavy = ("onnxruntime", "onnx", "scipy", "sklearn", "tokenizers", "click", "rich", "matplotlib")
    assert python(code, forbidden=(*TRAINING_LIBRARIES, *heavy)) == "[]\n"
