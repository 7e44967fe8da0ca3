"""`flawscope doctor`: installed and missing parts, how to install them, and the provider of each node of a bundle."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import click
import msgspec

import flawscope
from flawscope import cpp_ext, methods
from flawscope.bundle import PRECISIONS, Bundle, trusted_bundle
from flawscope.bundle.trusted_keys_option import trusted_keys_option
from flawscope.errors import ArgumentError, BackendError, FlawscopeError
from flawscope.imaging.images import decode_image, prepare
from flawscope.runtime.backends import BACKENDS, choose_backend
from flawscope.runtime.backends.choice import allowed_backends, choose_for_bundle, offered_by_auto
from flawscope.runtime.backends.openvino_devices import listed_devices
from flawscope.runtime.backends.table import ROWS, backend_row
from flawscope.runtime.doctor.driver import match_driver
from flawscope.runtime.doctor.provider_profile import elsewhere
from flawscope.runtime.engines import RUNTIMES, EngineCache, current_target, import_tensorrt
from flawscope.runtime.faster_backend import forget_times
from flawscope.runtime.inspector import Inspector
from flawscope.terminal import echo, echo_json
from flawscope.versions import cpu_name, package_versions

# Modules by which an extra is recognized: found, never imported, so that `doctor` works where one of them is broken.
_EXTRAS = {
    "cpu": ("onnxruntime",),
    "openvino": ("openvino",),
    "calibrate": ("sklearn", "scipy", "matplotlib", "jinja2"),
    "train": ("torch", "timm", "huggingface_hub", "yaml"),
    "export": ("onnx", "onnxscript"),
    "tensorrt": ("tensorrt", "cuda.bindings"),
    "tensorrt-rtx": ("tensorrt_rtx", "cuda.bindings"),
    "pycuda": ("pycuda", "cuda.bindings"),
}

_TO_LEARN = ("calibrate", "train", "export")
"""Extras, each called after the verb that it is for."""
_OF_THE_CPU = frozenset({"cpu", "openvino", "openvino:cpu"})

_NODES_SHOWN = 5


def diagnose() -> dict[str, Any]:
    """Return everything `doctor` shows, as plain values."""
    backends = {}
    for name in ("auto", *ROWS):  # without other names of the same
        try:
            choice = offered_by_auto() if name == "auto" else choose_backend(name)
            backends[name] = {"available": True, "takes": choice.name, "reason": choice.reason}
        except FlawscopeError as err:
            backends[name] = {"available": False, "takes": None, "reason": str(err)}
    extras = {}
    for extra, modules in _EXTRAS.items():
        missing = [module for module in modules if not _is_installed(module)]
        install = f'pip install "flawscope[{extra}]"' if missing else None
        extras[extra] = {"installed": not missing, "missing": missing, "install": install}
    driver = msgspec.to_builtins(match_driver())
    return {
        "verdict": verdict(backends["auto"], driver["problems"], extras),
        "flawscope": flawscope.__version__,
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "versions": package_versions(),
        "backends": backends,
        "kernels": _kernels(),
        "openvino": _openvino(),
        "engines": _engines(),
        "driver": driver,
        "extras": extras,
    }


def verdict(auto: Mapping[str, Any], driver_problems: Sequence[str], extras: Mapping[str, Any]) -> str:
    """Return in one sentence or two what this installation is good for, and what to do where it is not.

    Args:
        auto: What backend `auto` takes: `available`, `takes`, `reason`.
        driver_problems: What the GPU's driver is too old for.
        extras: Name of an extra -> `installed`, `install`.
    """
    if not auto["available"]:
        return f"Nothing here can score: {auto['reason']}"
    where = "this CPU" if auto["takes"] in _OF_THE_CPU else f"this machine with backend {auto['takes']}"
    ready = f"Everything needed to score on {where} is here."
    if driver_problems:
        ready = f"Scoring works on {where}, but the GPU's driver is too old for what is installed (see driver below)."
    elif not cpp_ext.HAVE_NATIVE:
        ready = f"Scoring works on {where}, slowly: the compiled kernels are missing. Install flawscope again."
    missing = [name for name in _TO_LEARN if not extras[name]["installed"]]
    if not missing:
        return f"{ready} So is what calibrating, training and exporting need."
    verbs = " and ".join(", ".join(missing).rsplit(", ", 1))
    return f'{ready} To {verbs}: pip install "flawscope[{",".join(missing)}]"'


def _is_installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # of the package around it
        return False


def _engines() -> dict[str, Any]:
    """Return which TensorRT can build engines here, for which device, and the contents of the cache."""
    engines: dict[str, Any] = {}
    for name in RUNTIMES[1:]:  # without `auto`
        try:
            engines[name] = {"version": import_tensorrt(name).version, "problem": None}
        except BackendError as err:
            engines[name] = {"version": None, "problem": str(err)}
    try:
        engines["device"] = {"target": str(current_target()), "problem": None}
    except BackendError as err:
        engines["device"] = {"target": None, "problem": str(err)}
    folder: str | None = None
    try:
        cache = EngineCache()
        folder = str(cache.root)
        stored = list(cache.all())
    # A service without a home folder, or a cache that others may write to; engines are optional.
    except (ArgumentError, BackendError) as err:
        engines["cache"] = {"folder": folder, "engines": 0, "unusable": 0, "problem": str(err)}
        return engines
    unusable = sum(engine.problem is not None for engine in stored)
    engines["cache"] = {"folder": folder, "engines": len(stored), "unusable": unusable, "problem": None}
    return engines


def _openvino() -> dict[str, Any]:
    """Return the devices that OpenVINO lists here, each with the precisions that it computes in."""
    try:
        return {"devices": listed_devices(), "problem": None}
    except FlawscopeError as err:
        return {"devices": {}, "problem": str(err)}


def _kernels() -> dict[str, Any]:
    """Return which implementation of the kernels is in use, and whether there are CUDA kernels."""
    try:
        level = cpp_ext.simd_level()
        implementation = cpp_ext.implementation()
    except FlawscopeError as err:  # FLAWSCOPE_SIMD names a level that this processor or build does not have
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


def examine(bundle: Path, backend: str, precision: str, *, measure: bool = False) -> dict[str, Any]:
    """Load a bundle, run it, and return what computes each of its nodes, as plain values.

    Args:
        bundle: The bundle.
        backend: Name of a backend, `auto` included.
        precision: Precision of the graphs.
        measure: Whether `auto` measures again, whatever was kept.

    Raises:
        ArgumentError: If it shall measure, and there is nothing to choose from.
        BundleError: If the bundle is broken or does not reproduce its golden scores.
        BackendError: If the backend is not available or cannot run the graph.
    """
    opened = trusted_bundle(bundle)
    if measure:
        _forget(opened, precision)
    with Inspector.load(opened, backend, precision=precision) as inspector:
        # The one image that comes with every bundle.
        golden = inspector.manifest.golden_of(precision)[0]
        image = prepare(decode_image(inspector.bundle.read(golden.file), golden.file), inspector.manifest.input)
        parts = inspector.scorer.parts(image[None])
        place = methods.load(backend_row(inspector.backend).place)
        nodes = [node for part in parts for node in place(part.session, part.model, part.inputs)]
        total = sum(node.milliseconds for node in nodes) or 1.0  # layers of engines have no times
        providers: dict[str, dict[str, float]] = {}
        for node in nodes:
            share = providers.setdefault(node.provider, {"nodes": 0, "milliseconds": 0.0})
            share["nodes"] += 1
            share["milliseconds"] += node.milliseconds
        computed_in: dict[str, int] = {}
        for node in nodes:
            if node.precision:
                computed_in[node.precision] = computed_in.get(node.precision, 0) + 1
        return {
            "bundle": inspector.manifest.name,
            "backend": inspector.backend,
            "reason": inspector.backend_reason,
            "auto": msgspec.to_builtins(allowed_backends(inspector.manifest, precision)),
            "precision": precision,
            "path": inspector.path,
            "graph": ", ".join(part.model.file for part in parts),
            "head": inspector.scorer.describe(),
            "milliseconds": total,
            "providers": providers,
            "computed_in": computed_in,
            "elsewhere": [vars(node) for node in elsewhere(nodes, inspector.backend)],
            "nodes": [vars(node) for node in nodes],
        }


def _forget(bundle: Bundle, precision: str) -> None:
    """Forget what `auto` has measured of a bundle; close it where there is nothing to measure."""
    try:
        choice = choose_for_bundle("auto", bundle.manifest, precision)
        if not choice.rivals:
            raise ArgumentError(
                f"--measure: expected several backends that auto may take, got {choice.name} alone: "
                f"{choice.reason.removeprefix('auto: ').rstrip('.')}. Leave it out."
            )
        forget_times(bundle, precision, choice.rivals)
    except BaseException:
        bundle.close()
        raise


def _show_bundle(report: dict[str, Any]) -> None:
    echo(
        f"path      {report['bundle']} in {report['precision']}: backend {report['backend']} ({report['reason']}), "
        f"{report['graph']}, head: {report['head']}"
    )
    names = report["auto"]["names"]
    echo(f"auto      may take {'any backend' if names is None else ' or '.join(names)}: {report['auto']['why']}")
    for provider, share in report["providers"].items():
        fraction = share["milliseconds"] / report["milliseconds"]
        time = f"{share['milliseconds']:.2f} ms" if fraction else "times not known"
        if all(other["milliseconds"] for other in report["providers"].values()):
            time += f", {fraction:.0%} of the time"
        echo(f"nodes     {provider}: {share['nodes']} of {len(report['nodes'])}, {time}")
    if report["computed_in"]:
        counts = ", ".join(f"{count} nodes in {name}" for name, count in report["computed_in"].items())
        echo(f"computed  {counts}")
    strays = report["elsewhere"]
    for node in strays[:_NODES_SHOWN]:
        echo(f"elsewhere {node['operator']:<12} {node['milliseconds']:.3f} ms on {node['provider']}: {node['name']}")
    if len(strays) > _NODES_SHOWN:
        echo(f"elsewhere and {len(strays) - _NODES_SHOWN} faster ones; all of them with --json")
    timed = [node for node in report["nodes"] if node["milliseconds"] > 0]
    for node in sorted(timed, key=lambda node: -node["milliseconds"])[:_NODES_SHOWN]:
        echo(f"slowest   {node['operator']:<12} {node['milliseconds']:.3f} ms on {node['provider']}: {node['name']}")


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path), required=False)
@click.option("--backend", type=click.Choice(BACKENDS), default="auto", show_default=True, help="BUNDLE: runs there.")
@click.option("--precision", type=click.Choice(PRECISIONS), default="fp32", show_default=True, help="BUNDLE: graphs.")
@click.option("--measure", is_flag=True, help="BUNDLE: --backend auto measures again which backend is faster.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@trusted_keys_option
def doctor(bundle: Path | None, backend: str, precision: str, measure: bool, as_json: bool) -> int:
    """Show devices, backends, versions and kernels; with BUNDLE also the provider of each of its nodes.

    Exit status 1 when nothing here can run a bundle, or the driver is too old for the installed libraries.
    """
    if measure and backend != "auto":
        raise click.UsageError("--measure is for --backend auto. Leave one out.")
    report = diagnose()
    if bundle is not None:
        report["bundle"] = examine(bundle, backend, precision, measure=measure)
        report["verdict"] += f" {bundle} runs, on backend {report['bundle']['backend']}."
    elif backend != "auto" or precision != "fp32" or measure:
        raise click.UsageError("--backend, --precision and --measure are for a BUNDLE. Name one, or leave them out.")
    # `auto` and not `cuda`: a machine without a GPU is healthy as long as the CPU can run bundles.
    status = 0 if report["backends"]["auto"]["available"] and not report["driver"]["problems"] else 1
    if as_json:
        echo_json(report, indent=1)
    else:
        _show(report)
    return status


def _show(report: dict[str, Any]) -> None:
    echo(report["verdict"])
    echo(f"flawscope {report['flawscope']} on {report['system']}, {report['cpu']}, {report['cores']} cores")
    echo("versions  " + ", ".join(f"{name} {number}" for name, number in report["versions"].items()))
    for name, backend in report["backends"].items():
        echo(f"backend   {name:<12} {_backend_state(name, backend)}")
    for name, implementation in report["kernels"]["implementations"].items():
        echo(f"kernel    {name:<15} {implementation}")
    for name, device in report["openvino"]["devices"].items():
        echo(f"openvino  {name:<15} {device['what']}, computes in {', '.join(device['precisions'])}")
    if report["openvino"]["problem"]:
        echo(f"openvino  {report['openvino']['problem']}")
    engines = report["engines"]
    for name in RUNTIMES[1:]:
        echo(f"engines   {name:<15} {engines[name]['version'] or engines[name]['problem']}")
    echo(f"engines   {'device':<15} {engines['device']['target'] or engines['device']['problem']}")
    cache = engines["cache"]
    cached = f"{cache['engines']} in {cache['folder']}, {cache['unusable']} of them unusable"
    echo(f"engines   {'cached':<15} {cache['problem'] or cached}")
    echo(f"driver    {_driver_line(report['driver'])}")
    for problem in report["driver"]["problems"]:
        echo(f"driver    {problem}")
    for name, extra in report["extras"].items():
        missing = f"missing {', '.join(extra['missing'])}: {extra['install']}"
        echo(f"extra     {name:<12} {'installed' if extra['installed'] else missing}")
    if "bundle" in report:
        _show_bundle(report["bundle"])


def _backend_state(name: str, backend: dict[str, Any]) -> str:
    """Return whether a backend is there, and why; of an error only what does not repeat the name before it."""
    if not backend["available"]:
        problem = backend["reason"].removeprefix(f"backend {name}: is not there: ")
        return f"not here: {problem.removesuffix(' There is no fall-back; use --backend cpu or auto.')}"
    if backend["takes"] == name:
        return "here"
    return f"takes {backend['takes']}: {backend['reason'].removeprefix('auto: ')}"


def _driver_line(driver: dict[str, Any]) -> str:
    needs = ", ".join(f"{name} needs CUDA {version}" for name, version in driver["wanted"].items())
    if driver["driver"] is None:
        return f"no NVIDIA driver answers{'; ' + needs if needs else ''}"
    return f"{driver['driver']}, CUDA up to {driver['cuda']}; {needs or 'nothing installed needs CUDA'}"
