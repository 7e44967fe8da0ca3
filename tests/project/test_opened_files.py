"""Files and folders of others are opened by `flawscope.open_files`, which waits for no pipe and passes nothing over."""

from __future__ import annotations

import ast

import pytest
from import_graph import product_modules
from project_paths import ROOT

READS = frozenset(
    {"read_bytes", "read_text", "fromfile", "memmap", "mmap", "imread", "genfromtxt", "loadtxt", "is_zipfile"}
)
LISTS = frozenset({"glob", "rglob", "iterdir", "walk", "scandir", "listdir", "fwalk"})
BY_NAME = frozenset({"safe_open", "load_file", "copyfile", "copy2", "copytree"})
"""What opens files by their names in a library: only after `regular_path` or `regular_folder` has looked at them."""

OWN = {
    ("core/open_files.py", "os.open"): "it is the place itself",
    ("core/open_files.py", "os.scandir"): "it is the place itself",
    ("core/bundle/stored_files.py", "os.open"): "the same looks, and no links besides, which a dataset may have",
    ("core/bundle/opening.py", "os.scandir"): "the first entries alone, of a folder that may hold millions",
    ("core/bundle/stored_files.py", "os.walk"): "raises where a folder cannot be listed",
    ("core/bundle/stored_files.py", "zipfile.ZipFile"): "gets the open file, not its name",
    ("runtime/scale/inputs/tars.py", "tarfile.open"): "gets the open file, not its name",
    ("core/torch_file.py", "zipfile.ZipFile"): "gets the open file, not its name",
    ("runtime/scale/executors/worker_side.py", "decode_work(bytes(order.work)).open"): "opens a work, no file",
    ("runtime/scale/score_work.py", "zipfile.ZipFile"): "gets the open file, not its name; archives of its own",
    ("calibration/evaluation/sharded_measuring.py", "self._path.open"): "writes rows of its own file, made by it",
    ("runtime/scale/generate_shards.py", "zipfile.ZipFile"): "gets the open file, not its name; archives of its own",
    ("core/torch_file.py", "zipfile.is_zipfile"): "gets the open file, not its name",
    ("core/bundle/onnx_model.py", "(path.parent / name).read_bytes"): "a graph that this process has just made",
    ("core/scratch.py", "os.open"): "its own scratch and locks",
    ("core/scratch.py", "os.scandir"): "leftovers; what may not be looked at stays where it is, on purpose",
    ("core/scratch.py", "aside.iterdir"): "its own scratch",
    ("core/scratch.py", "path.parent.glob"): "leftovers; what may not be looked at stays where it is, on purpose",
    ("core/scratch.py", "_BOOT_ID.read_text"): "the system's own table",
    ("core/versions.py", "Path('/proc/cpuinfo').read_text"): "the system's own table",
    ("core/resident_memory.py", "STATUS.read_text"): "the system's own table",
    ("runtime/line/http/routes/page.py", "FOLDER.iterdir"): "the page, which is part of the package",
    ("runtime/line/http/routes/page.py", "path.read_bytes"): "the page, which is part of the package",
    ("runtime/line/journal/heads.py", "os.open"): "appends to its own file of heads",
    ("runtime/line/journal/opening.py", "os.open"): "its own lock",
    ("runtime/bench/machine_state.py", "CPU_FOLDER.glob"): "the system's own tables",
    ("runtime/bench/machine_state.py", "path.read_text"): "the system's own tables",
    ("runtime/doctor/provider_profile.py", "Path(session.end_profiling()).read_text"): "in a private folder",
    ("runtime/engines/cache.py", "os.scandir"): "an open folder, whose owner and rights were judged",
    ("runtime/backends/kept_times.py", "os.scandir"): "an open folder, whose owner and rights were judged",
    ("runtime/line/clock.py", "_BOOT.read_text"): "the system's own table",
    ("runtime/line/sources/child_main.py", "self._grabber.open"): "opens a source, no file",
    ("runtime/line/sources/folder.py", "self._record.open"): "opens a record, no file",
    (
        "runtime/line/sources/folder.py",
        "os.scandir",
    ): "each second, and a folder that cannot be listed is a lost source",
    ("runtime/line/sources/ring.py", "mmap.mmap"): "memory without a file",
    ("runtime/scorers/shared_banks.py", "mmap.mmap"): "an open file that `open_regular` has looked at",
    ("runtime/line/station/open_parts.py", "os.open"): "its own file, made anew",
    ("runtime/line/station/open_parts.py", "path.open"): "its own file, after `open_regular` has looked at it",
    ("runtime/line/station/open_parts.py", "mmap.mmap"): "its own file, after `open_regular` has looked at it",
    ("runtime/line/sinks/jsonl.py", "os.open"): "to append; neither a link is followed nor a pipe waited for",
    ("core/private_files.py", "os.open"): "the same looks, and besides at owner and rights",
    ("training/detectors/patch_selection.py", "np.memmap"): "its own temporary file",
    ("training/settings.py", "folder.iterdir"): "presets, which are part of the package",
    (
        "training/settings.py",
        "(resources.files('flawscope.training') / 'presets' / f'{name}.yml').read_bytes",
    ): "presets, which are part of the package",
    ("export/detectors/head_nodes.py", "path.open"): "a bank in a private folder",
    ("export/detectors/head_nodes.py", "self._path.open"): "a bank in a private folder",
    ("export/detectors/detector_export.py", "scratch.glob"): "graphs in a private folder",
    ("export/synthesis/generator_export.py", "scratch.glob"): "graphs in a private folder",
    ("calibration/quantization/autocast.py", "(scratch / 'answer.json').read_text"): "in a private folder",
    ("calibration/quantization/autocast_worker.py", "Path(sys.argv[1]).read_text"): "in a private folder",
}
"""File and call -> why it may open or list by itself."""

_OPENERS = ("os", "io", "Image", "tarfile", "gzip")


def bare_openings(text: str) -> list[tuple[int, str]]:
    """Return line and text of every call that opens a file to read it, or lists a folder, without a look at it."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call):
            continue
        is_attribute = isinstance(node.func, ast.Attribute)
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        first = node.args[0] if node.args else None
        if (
            (name in READS | LISTS and is_attribute)
            or (name == "ZipFile" and not _writes(node.args[1:2]))
            or (name == "load" and isinstance(node.func, ast.Attribute) and ast.unparse(node.func.value) in _LOADERS)
            or (name in BY_NAME and not (isinstance(first, ast.Call) and ast.unparse(first.func) in _LOOKS))
            or (name == "open" and _opens_to_read(node))
        ):
            found.append((node.lineno, ast.unparse(node.func)))
    return sorted(found)


_LOOKS = ("regular_path", "regular_folder")
_LOADERS = ("np", "numpy", "torch")


def _writes(mode: list[ast.expr]) -> bool:
    return bool(mode) and isinstance(mode[0], ast.Constant) and any(letter in str(mode[0].value) for letter in "wax")


def _opens_to_read(call: ast.Call) -> bool:
    """Return whether this is `open(FILE)`, `os.open(...)` or `PATH.open(...)` to read; `BUNDLE.open(NAME)` is not."""
    if isinstance(call.func, ast.Name):
        return not _writes(call.args[1:2])
    if isinstance(call.func, ast.Attribute) and ast.unparse(call.func.value) in (
        "os",
        "io",
        "Image",
        "tarfile",
        "gzip",
    ):
        return True
    first = call.args[0] if call.args else None
    return (first is None or isinstance(first, ast.Constant)) and not _writes(call.args[:1])


def test_files_of_others_are_opened_in_one_place() -> None:
    found = {
        (path.relative_to(ROOT).as_posix(), text): line
        for path in product_modules(ROOT).values()
        for line, text in bare_openings(path.read_text(encoding="utf-8"))
    }
    foreign = [f"{file}:{line}: {text}" for (file, text), line in found.items() if (file, text) not in OWN]
    assert not foreign, "\n".join(["expected flawscope.open_files (or an entry here with its reason), got:", *foreign])
    assert not OWN.keys() - found.keys(), "entries of calls that are gone"


@pytest.mark.parametrize(
    "text",
    [
        "path.read_bytes()",
        "(folder / 'a').read_text(encoding='utf-8')",
        "path.open()",
        "path.open('rb')",
        "path.open(encoding='utf-8')",
        "open(path)",
        "open(path, 'rb')",
        "os.open(path, os.O_RDONLY)",
        "Image.open(path)",
        "np.load(path)",
        "np.memmap(path)",
        "safe_open(path, framework='numpy')",
        "safetensors.torch.load_file(path)",
        "zipfile.ZipFile(path)",
        "shutil.copyfile(path, target)",
        "shutil.copytree(folder, target, dirs_exist_ok=True)",
        "zipfile.ZipFile(path, 'r')",
        "folder.glob('*')",
        "folder.iterdir()",
        "os.walk(folder)",
    ],
)
def test_a_bare_opening_is_found(text: str) -> None:
    assert bare_openings(text)


@pytest.mark.parametrize(
    "text",
    [
        "path.open('wb')",
        "path.open('a', encoding='utf-8')",
        "open(path, 'w')",
        "bundle.open(name)",
        "archive.open(member, 'w')",
        "zipfile.ZipFile(path, 'w', zipfile.ZIP_STORED)",
        "safetensors.numpy.load_file(regular_path(path))",
        "safetensors.numpy.load(data)",
        "shutil.copytree(regular_folder(folder), target)",
        "read_regular(path, RECORD_BYTES)",
        "open_bundle(path)",
    ],
)
def test_writing_and_looking_first_are_allowed(text: str) -> None:
    assert not bare_openings(text)


def test_no_reader_of_folders_lets_a_library_open_files_it_has_not_looked_at() -> None:
    """`from_pretrained` opens whatever lies in a folder: only below `called`, which looks at every file first."""
    for path in product_modules(ROOT).values():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        looked = {
            id(inner)
            for node in ast.walk(tree)
            if (isinstance(node, ast.Call) and ast.unparse(node.func) in ("called", "loaded"))
            or (isinstance(node, ast.FunctionDef) and node.name == "load")
            for inner in ast.walk(node)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".from_pretrained"):
                assert id(node) in looked, f"{path.relative_to(ROOT)}:{node.lineno}"
