"""Models whose weights are pickles, taken over as safetensors: the same numbers, and nothing executed."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import pytest
import safetensors
import safetensors.torch
import torch
from tiny_stable_diffusion import write_stable_diffusion, write_text_to_image

from flawscope import cli
from flawscope.errors import ArgumentError, DataError
from flawscope.files import sha256_file
from flawscope.runtime.synthesis.base_import import import_base
from flawscope.training.diffusion.diffusers_folder import FolderParts, read_base_folder


def as_pickles(folder: Path, variant: str = "", *, old_form: bool = False) -> None:
    """Replace the weights of a folder by what torch.save writes of them."""
    for path in sorted(folder.glob("*/*.safetensors")):
        tensors = safetensors.torch.load_file(path)
        if variant:
            tensors = {name: tensor.half() for name, tensor in tensors.items()}
        name = "pytorch_model" if path.stem == "model" else path.stem
        torch.save(tensors, path.with_name(f"{name}{variant}.bin"), _use_new_zipfile_serialization=not old_form)
        path.unlink()


def same(first: FolderParts, second: FolderParts, *, tolerance: float = 0.0) -> None:
    for name in ("unet", "autoencoder", "text"):
        expected, actual = (getattr(parts, name).state_dict() for parts in (first, second))
        assert expected.keys() == actual.keys()
        for key, tensor in expected.items():
            assert torch.allclose(tensor, actual[key], rtol=tolerance, atol=tolerance), key
    assert (first.tokenizer, first.pad, first.length, first.licence) == (
        second.tokenizer,
        second.pad,
        second.length,
        second.licence,
    )


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stable Diffusion as safetensors."""
    folder = write_stable_diffusion(tmp_path_factory.mktemp("import") / "model", inpainting=True)
    (folder / "README.md").write_text("---\nlicense: openrail\n---\n")
    return folder


@pytest.fixture
def pickled(stored: Path, tmp_path: Path) -> Path:
    """The same with pickles."""
    folder = Path(shutil.copytree(stored, tmp_path / "model"))
    as_pickles(folder)
    return folder


def test_a_model_of_pickles_becomes_one_that_trainings_take(
    stored: Path, pickled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out" / "base"
    assert cli.run(["synth", "import", str(pickled), "--out", str(out)]) == 0
    same(read_base_folder(stored), read_base_folder(out))
    written = sorted(path.relative_to(out).as_posix() for path in out.rglob("*.safetensors"))
    assert written == [
        "text_encoder/model.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    assert all(str(out / name) in capsys.readouterr().out for name in written[:1])
    assert not list(out.rglob("*.bin"))
    with safetensors.safe_open(out / written[1], "pt") as file:  # type: ignore[no-untyped-call]
        source = pickled / "unet" / "diffusion_pytorch_model.bin"
        assert file.metadata()["source_sha256"] == sha256_file(source)


def test_the_older_form_and_the_bert_of_latent_diffusion_are_read(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    folder = write_text_to_image(tmp_path / "model")
    (folder / "LICENSE").write_text("Apache License\n")
    expected = read_base_folder(folder)
    as_pickles(folder, old_form=True)
    import_base(folder, tmp_path / "out")
    same(expected, read_base_folder(tmp_path / "out"))


def test_half_precision_is_taken_where_there_is_nothing_else(stored: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(stored, tmp_path / "half"))
    as_pickles(folder, ".fp16")
    # What is left of weights in several files would send the libraries looking for those.
    (folder / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text('{"weight_map": {}}')
    import_base(folder, tmp_path / "out")
    same(read_base_folder(stored), read_base_folder(tmp_path / "out"), tolerance=1e-3)


def test_safetensors_are_copied_and_the_pickle_beside_is_not_looked_at(stored: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(stored, tmp_path / "model"))
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"nonsense")
    import_base(folder, tmp_path / "out")
    name = "unet/diffusion_pytorch_model.safetensors"
    assert (tmp_path / "out" / name).read_bytes() == (stored / name).read_bytes()


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("was_executed"),)  # type: ignore[return-value]


@pytest.mark.parametrize("content", ["evil", "nested", "list", "broken", "empty"])
def test_anything_but_tensors_is_refused_and_nothing_is_left(
    pickled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = pickled / "vae" / "diffusion_pytorch_model.bin"
    if content == "evil":
        torch.save({"weight": Evil()}, path, pickle_module=pickle)
    elif content == "nested":
        torch.save({"state": {"weight": torch.zeros(1)}}, path)
    elif content == "list":
        torch.save([torch.zeros(1)], path)
    else:
        path.write_bytes(b"" if content == "empty" else path.read_bytes()[:-100])
    with pytest.raises(DataError, match=str(path)) as raised:
        import_base(pickled, tmp_path / "out")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "was_executed").exists()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["model"]


def test_wrong_folders_are_one_line(pickled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DataError, match="with a folder unet, got none"):
        import_base(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(ArgumentError, match=str(pickled)):
        import_base(pickled, pickled)
    (pickled / "vae" / "diffusion_pytorch_model.bin").unlink()
    with pytest.raises(DataError, match="expected weights called"):
        import_base(pickled, tmp_path / "out")
    assert cli.run(["synth", "import", str(pickled), "--out", str(tmp_path / "out"), "--defect", "crack"]) == 2
    assert "--defect, --category and --overwrite are for a learned word" in capsys.readouterr().err
