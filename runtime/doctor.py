"""`flawscope doctor`: what is here, what is not, and the command that installs it."""

from __future__ import annotations

import os
import platform
from importlib.util import find_spec
from typing import Any

import click
import msgspec

import flawscope
from flawscope import cpp_ext
from flawscope.errors import BackendError, FlawscopeError
from flawscope.runtime.backends import BACKENDS, choose_backend
from flawscope.runtime.engines import RUNTIMES, EngineCache, current_target, import_tensorrt
from flawscope.versions import cpu_name, package_versions

_EXTRAS = {
    "cpu": ("onnxruntime",),
    "calibrate": ("sklearn", "scipy", "matplotlib", "jinja2"),
    "train": ("torch", "timm", "huggingface_hub", "yaml"),
    "export": ("onnx", "onnxscript"),
    "tensorrt": ("tensorrt", "pynvml"),
    "tensorrt-rtx": ("tensorrt_rtx", "pynvml"),
}


def diagnose() -> dict[str, Any]:
    """Return everything `doctor` shows, as plain values."""
    backends = {}
    for name in BACKENDS:
        try:
            choice = choose_backend(name)
            backends[name] = {"available": True, "takes": choice.name, "reason": choice.reason}
        except FlawscopeError as err:
            backends[name] = {"available": False, "takes": None, "reason": str(err)}
    extras = {}
    for extra, modules in _EXTRAS.items():
        missing = [module for module in modules if find_spec(module) is None]
        install = f'pip install "flawscope[{extra}]"' if missing else None
        extras[extra] = {"installed": not missing, "missing": missing, "install": install}
    return {
        "flawscope": flawscope.__version__,
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "versions": package_versions(),
        "backends": backends,
        "kernels": _kernels(),
        "engines": _engines(),
        "extras": extras,
    }


def _engines() -> dict[str, Any]:
    """Return which TensorRT builds engines here, for which device, and what the cache holds."""
    found: dict[str, Any] = {}
    for name in RUNTIMES[1:]:
        try:
            found[name] = {"version": import_tensorrt(name).version, "problem": None}
        except BackendError as err:
            found[name] = {"version": None, "problem": str(err)}
    try:
        found["device"] = {"target": str(current_target()), "problem": None}
    except BackendError as err:
        found["device"] = {"target": None, "problem": str(err)}
    cache = EngineCache()
    stored = list(cache.all())
    unusable = sum(engine.problem is not None for engine in stored)
    found["cache"] = {"folder": str(cache.root), "engines": len(stored), "unusable": unusable}
    return found


def _kernels() -> dict[str, Any]:
    try:
        level = cpp_ext.simd_level()
        implementation = cpp_ext.implementation()
    except FlawscopeError as err:  # FLAWSCOPE_SIMD asks for what is not there
        level, implementation = None, str(err)
    if cpp_ext.HAVE_CUDA:
        cuda = "compiled in"
    elif cpp_ext.HAVE_NATIVE:
        cuda = "not in this build. Put nvcc on the PATH and install flawscope again"
    else:
        cuda = "none without native kernels"
    return {
        "have_native": cpp_ext.HAVE_NATIVE,
        "have_cuda": cpp_ext.HAVE_CUDA,
        "simd_level": level,
        "implementations": {
            **dict.fromkeys(("nearest", "mahalanobis", "kcenter_greedy"), implementation),
            "cuda kernels": cuda,
        },
    }


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def doctor(as_json: bool) -> int:
    """Show devices, backends, versions and kernels. Exit status 1 when nothing here can run a bundle."""
    found = diagnose()
    usable = found["backends"]["auto"]["available"]
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found), indent=1).decode())
        return 0 if usable else 1
    click.echo(f"flawscope {found['flawscope']} on {found['system']}, {found['cpu']}, {found['cores']} cores")
    click.echo("versions  " + ", ".join(f"{name} {number}" for name, number in found["versions"].items()))
    for name, backend in found["backends"].items():
        state = f"takes {backend['takes']}" if backend["available"] else "not here"
        click.echo(f"backend   {name:<10} {state}: {backend['reason']}")
    for name, implementation in found["kernels"]["implementations"].items():
        click.echo(f"kernel    {name:<15} {implementation}")
    engines = found["engines"]
    for name in RUNTIMES[1:]:
        click.echo(f"engines   {name:<15} {engines[name]['version'] or engines[name]['problem']}")
    click.echo(f"engines   {'for':<15} {engines['device']['target'] or engines['device']['problem']}")
    cache = engines["cache"]
    click.echo(f"engines   {'kept':<15} {cache['engines']} in {cache['folder']}, {cache['unusable']} of them unusable")
    for name, extra in found["extras"].items():
        missing = f"missing {', '.join(extra['missing'])}: {extra['install']}"
        click.echo(f"extra     {name:<12} {'installed' if extra['installed'] else missing}")
    return 0 if usable else 1
