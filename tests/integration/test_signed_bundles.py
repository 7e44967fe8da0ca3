"""Where keys are trusted, no command runs a bundle that none of them signed, and one that was signed does its work."""

from __future__ import annotations

import shutil

import pytest
from tiny_dataset import CATEGORY, normal_images

from flawscope.bundle import open_bundle, sign_bundle, trusted_keys
from flawscope.bundle.ed25519 import read_private_key, write_keys
from flawscope.cli import run
from flawscope.errors import BundleError
from flawscope.runtime import Inspector

VARIABLE = "FLAWSCOPE_TRUSTED_KEYS"

RUNS = {
    "score": ("score", "{bundle}", "{image}"),
    "bench": ("bench", "{bundle}", "--seconds", "0.1"),
    "compare": ("bench", "{bundle}", "--compare", "cpu:graph", "--compare", "cpu:kernel"),
    "doctor": ("doctor", "{bundle}"),
    "engine": ("engine", "build", "{bundle}", "--target", "8.9"),
    "evaluate": ("evaluate", "{bundle}", "--data", "{data}", "--category", CATEGORY),
    "calibrate": ("calibrate", "{bundle}", "--data", "{data}", "--category", CATEGORY),
    "sampling": ("sampling", "{bundle}", "--data", "{data}", "--category", CATEGORY, "--steps", "3"),
    "combine": (
        *("bundle", "combine", "{bundle}", "{bundle}", "--data", "{data}", "--category", CATEGORY),
        *("--out", "{out}/out.flaw"),
    ),
    "export-triton": ("export-triton", "{bundle}", "--out", "{out}/models"),
    "explain": ("explain", "{bundle}"),
}


@pytest.fixture
def key(tmp_path, monkeypatch):
    """A key that is trusted on this machine."""
    monkeypatch.setattr(trusted_keys, "SYSTEM", tmp_path / "etc")
    write_keys(tmp_path / "keys" / "maker")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "keys" / "maker.pub"))
    return read_private_key(tmp_path / "keys" / "maker", lambda: None)


@pytest.fixture
def bundle(tmp_path, patchcore_bundle):
    return shutil.copytree(patchcore_bundle, tmp_path / "part.flaw")


def arguments_of(name, bundle, tiny_root, out):
    places = {"bundle": bundle, "data": tiny_root, "image": normal_images(tiny_root)[0], "out": out}
    return [word.format(**places) for word in RUNS[name]]


@pytest.mark.parametrize("is_signed", [False, True], ids=["unsigned", "foreign"])
@pytest.mark.parametrize("name", RUNS)
def test_an_unsigned_or_foreign_bundle_is_refused(key, bundle, tiny_root, tmp_path, capsys, name, is_signed):
    out = tmp_path / "out"
    out.mkdir()
    if is_signed:
        write_keys(tmp_path / "keys" / "other")
        sign_bundle(bundle, read_private_key(tmp_path / "keys" / "other", lambda: None), overwrite=True)
    assert run(arguments_of(name, bundle, tiny_root, out)) == 2
    printed, errors = capsys.readouterr()
    assert printed == ""
    assert f"expected a bundle signed by a key of {VARIABLE}=" in errors
    assert errors.count("\n") == 1
    assert list(out.iterdir()) == []


def test_a_generator_that_nobody_signed_does_not_draw(key, tmp_path):
    from tiny_synth_bundle import write_tiny_synth

    from flawscope.runtime.synthesis import Synthesizer

    write_tiny_synth(tmp_path / "drawer.flaw")
    with pytest.raises(BundleError, match="got one without signature"):
        Synthesizer.load(tmp_path / "drawer.flaw")
    sign_bundle(tmp_path / "drawer.flaw", key)
    with Synthesizer.load(tmp_path / "drawer.flaw", "cpu"):
        pass


def test_an_option_names_keys_for_one_command(key, bundle, tiny_root, tmp_path, capsys):
    image = str(normal_images(tiny_root)[0])
    write_keys(tmp_path / "keys" / "other")
    sign_bundle(bundle, key)
    assert run(["score", str(bundle), image]) == 0
    assert run(["score", "--trusted-keys", str(tmp_path / "keys" / "other.pub"), str(bundle), image]) == 2
    assert run(["score", "--trusted-keys", str(tmp_path / "nowhere"), str(bundle), image]) == 2
    # Nothing of it stays for the next command of this process.
    assert run(["score", str(bundle), image]) == 0
    with Inspector.load(bundle) as inspector:
        assert inspector(image).decision == "accept"
    with pytest.raises(BundleError, match="none of them"):
        Inspector.load(bundle, trusted_keys=tmp_path / "keys" / "other.pub")


def test_processes_that_a_command_starts_ask_for_the_same_keys(key, bundle, tiny_root, tmp_path, monkeypatch):
    """`bench` measures in new processes: they run the signed bundle, and would refuse another."""
    from flawscope.runtime.bench.cold_start import cold_start

    sign_bundle(bundle, key)
    with Inspector.load(bundle, "cpu") as inspector:
        assert cold_start(inspector, bundle)["processes"] > 0
        (bundle / "signature.json").unlink()
        with pytest.raises(Exception, match="got one without signature"):
            cold_start(inspector, bundle)


@pytest.mark.parametrize("name", ["calibrate", "evaluate"])
def test_writers_run_a_signed_bundle_and_drop_its_signature(key, bundle, tiny_root, tmp_path, capsys, name):
    sign_bundle(bundle, key)
    assert run(arguments_of(name, bundle, tiny_root, tmp_path)) == 0
    assert f"note: {bundle}: the signature of {key.public.id} was dropped" in capsys.readouterr().err
    assert run(["score", str(bundle), str(normal_images(tiny_root)[0])]) == 2
    sign_bundle(bundle, key)
    assert run(["score", str(bundle), str(normal_images(tiny_root)[0])]) in (0, 1)


@pytest.mark.long
def test_a_bundle_is_exported_although_keys_are_trusted(key, patchcore_run, traced_features, tmp_path):
    """It is measured while it is made, when nobody can have signed it; once made, it has to be."""
    from flawscope.export.detectors.detector_export import export_run

    out = tmp_path / "new.flaw"
    export_run(patchcore_run, out, max_batch=4)
    with pytest.raises(BundleError, match="got one without signature"):
        open_bundle(out)


@pytest.mark.long
def test_a_pipeline_measures_what_it_makes_although_keys_are_trusted(key, tiny_root, tmp_path):
    """Export, thresholds and evaluation all open the new bundle, which changes twice on the way."""
    line = ["pipeline", "padim", "--data", str(tiny_root), "--category", CATEGORY, "--backbone", "scattering"]
    settings = ["--set", "resize=64", "--set", "held_out_minimum=5", "--out", str(tmp_path / "out")]
    assert run([*line, *settings]) == 0
    (bundle,) = (tmp_path / "out").glob("*.flaw")
    with pytest.raises(BundleError, match="got one without signature"):
        open_bundle(bundle)
    with open_bundle(bundle, check_signature=False) as opened:
        assert opened.manifest.thresholds is not None
        assert opened.manifest.evidence.accuracy


@pytest.mark.long
def test_all_precisions_of_a_signed_bundle_are_calibrated_in_one_go(key, tmp_path, tiny_root, patchcore_run, capsys):
    """Writing the thresholds of the first drops the signature before the second is scored."""
    import msgspec

    from flawscope.bundle import Precision, rewrite_manifest
    from flawscope.export.detectors.detector_export import export_run

    out = tmp_path / "new.flaw"
    manifest = export_run(patchcore_run, out, max_batch=4)
    # The same graphs under another name: how they differ is not what this is about.
    twin = Precision(manifest.graphs, manifest.golden, "none", 0, 0, ())
    rewrite_manifest(out, msgspec.structs.replace(manifest, precisions={"int8": twin}))
    sign_bundle(out, key)
    assert run(["calibrate", str(out), "--data", str(tiny_root), "--category", CATEGORY]) == 0
    assert capsys.readouterr().err.count("was dropped") == 1
    with open_bundle(out, check_signature=False) as bundle:
        assert bundle.manifest.thresholds is not None
        assert bundle.manifest.precisions["int8"].thresholds is not None
