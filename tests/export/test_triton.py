"""A model repository for Triton: what is in it, that its graph runs from there, and what is refused.

No test talks to a server. What Triton would do with a request is done by a stand-in on the files that were written: the
configuration decides names, shapes and types, ONNX Runtime computes.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from file_contents import files_of
from odd_files import refuse_listing
from text_format import SCHEMA, TextFormatError, read_model_config
from tiny_bundle import brightness_graph, tiny_thresholds, write_tiny_bundle
from tiny_dataset import anomalous_images
from triton_stand_in import StandIn

from flawscope.bundle import Golden, Graph, ProductThresholds, change_bundle, open_bundle, pack_bundle
from flawscope.bundle.manifest import Gate, Precision
from flawscope.cli import run
from flawscope.errors import ArgumentError, BackendError, BundleError, DataError, GateError, StorageError
from flawscope.export.triton import TritonRecord, graph_place, write_triton
from flawscope.export.triton_config import RECORD, TritonOptions
from flawscope.imaging.images import prepare, read_image
from flawscope.runtime import Inspector

METHODS = ["patchcore", "padim"]


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A calibrated bundle of a few kilobytes."""
    write_tiny_bundle(tmp_path / "tiny.flaw", thresholds=tiny_thresholds())
    return tmp_path / "tiny.flaw"


def write(bundle: Path, repository: Path, *, overwrite: bool = False, **options: Any) -> TritonRecord:
    with open_bundle(bundle) as opened:
        return write_triton(opened, repository, TritonOptions(**options), overwrite=overwrite)


def config_of(folder: Path) -> dict[str, Any]:
    return read_model_config((folder / "config.pbtxt").read_text(encoding="utf-8"))


def record_of(folder: Path) -> TritonRecord:
    return msgspec.json.decode((folder / RECORD).read_bytes(), type=TritonRecord)


@pytest.mark.parametrize("method", METHODS)
def test_a_model_folder_holds_graph_bank_labels_record_and_golden_images(bundles, tmp_path, method):
    record = write(bundles[method], tmp_path / "models")
    files = files_of(tmp_path / "models")
    assert set(files) == {
        f"{method}/{name}"
        for name in (
            "config.pbtxt",
            "labels.txt",
            "flawscope.json",
            f"{record.version}/model.onnx/model.onnx",
            f"{record.version}/model.onnx/bank.safetensors",
            "golden/000.png",
            "golden/001.png",
        )
    }
    assert files[f"{method}/labels.txt"] == b"anomaly_score\n"
    assert {f"{method}/{name}" for name in record.files} == set(files) - {f"{method}/flawscope.json"}
    assert files[f"{method}/{graph_place(record.version)}"] == (bundles[method] / "score.onnx").read_bytes()


@pytest.mark.parametrize("method", METHODS)
def test_the_configuration_says_what_the_bundle_says(bundles, tmp_path, method):
    record = write(bundles[method], tmp_path)
    with open_bundle(bundles[method]) as bundle:
        manifest = bundle.manifest
    height, width = manifest.input.size
    assert config_of(tmp_path / method) == {
        "name": method,
        "platform": "onnxruntime_onnx",
        "backend": "onnxruntime",
        "default_model_filename": "model.onnx",
        "max_batch_size": manifest.max_batch,
        "input": [{"name": "image", "data_type": "TYPE_UINT8", "dims": [height, width, 3]}],
        "output": [
            {"name": "anomaly_map", "data_type": "TYPE_FP32", "dims": [height, width]},
            {
                "name": "score",
                "data_type": "TYPE_FP32",
                "dims": [1],
                "reshape": {"shape": []},
                "label_filename": "labels.txt",
            },
        ],
        "version_policy": {"specific": {"versions": [int(record.version)]}},
        "instance_group": [{"kind": "KIND_CPU", "count": 1}],
        "dynamic_batching": {"max_queue_delay_microseconds": 0},
        "model_warmup": [
            {
                "name": f"batch of {batch}",
                "batch_size": batch,
                "inputs": [
                    {
                        "key": "image",
                        "value": {"data_type": "TYPE_UINT8", "dims": [height, width, 3], "zero_data": True},
                    }
                ],
            }
            for batch in (1, manifest.max_batch)
        ],
        "parameters": [
            {"key": "flawscope_digest", "value": {"string_value": manifest.digest}},
            {"key": "flawscope_graph", "value": {"string_value": record.graph}},
        ],
    }


def test_options_reach_the_configuration(tiny, tmp_path):
    write(
        tiny,
        tmp_path / "models",
        name="line_2",
        device="gpu",
        instances=3,
        queue_delay_us=250,
        preferred_batches=(2, 4),
    )
    config = config_of(tmp_path / "models" / "line_2")
    assert config["name"] == "line_2"
    assert config["instance_group"] == [{"kind": "KIND_GPU", "count": 3}]
    assert config["dynamic_batching"] == {"preferred_batch_size": [2, 4], "max_queue_delay_microseconds": 250}
    assert config["optimization"] == {
        "execution_accelerators": {
            "gpu_execution_accelerator": [{"name": "cuda", "parameters": [{"key": "use_tf32", "value": "0"}]}]
        }
    }
    record = record_of(tmp_path / "models" / "line_2")
    assert (record.name, record.bundle) == ("line_2", "tiny")


def test_a_bundle_for_single_images_is_not_batched(tmp_path):
    write_tiny_bundle(tmp_path / "tiny.flaw", max_batch=1)
    write(tmp_path / "tiny.flaw", tmp_path / "models")
    config = config_of(tmp_path / "models" / "tiny")
    assert config["max_batch_size"] == 1
    assert "dynamic_batching" not in config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"instances": 0}, "instances: expected 1 to 1024, got 0"),
        ({"queue_delay_us": -1}, "queue delay: expected 0 to 60000000, got -1"),
        ({"preferred_batches": (2, 5)}, "preferred batch: expected 1 to 4, got 5"),
        ({"device": "tpu"}, "device: expected cpu or gpu, got 'tpu'"),
    ],
)
def test_options_out_of_range_are_refused(tiny, tmp_path, options, message):
    with pytest.raises(ArgumentError, match=re.escape(message)):
        write(tiny, tmp_path / "models", **options)
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("method", METHODS)
def test_the_schema_of_triton_reads_the_same(bundles, tmp_path, method):
    reason = "needs tritonclient[grpc], which has Triton's schema"
    schema = pytest.importorskip("tritonclient.grpc.model_config_pb2", reason=reason)
    text_format = pytest.importorskip("google.protobuf.text_format", reason=reason)
    write(bundles[method], tmp_path, device="gpu", queue_delay_us=250, preferred_batches=(2,))
    text = (tmp_path / method / "config.pbtxt").read_text(encoding="utf-8")
    parsed = text_format.Parse(text, schema.ModelConfig())
    ours = read_model_config(text)
    assert (parsed.name, parsed.backend, parsed.platform) == (method, "onnxruntime", "onnxruntime_onnx")
    assert parsed.max_batch_size == ours["max_batch_size"] == 4
    assert parsed.WhichOneof("scheduling_choice") == "dynamic_batching"
    assert list(parsed.dynamic_batching.preferred_batch_size) == [2]
    assert parsed.dynamic_batching.max_queue_delay_microseconds == 250
    assert list(parsed.version_policy.specific.versions) == ours["version_policy"]["specific"]["versions"]
    assert [sample.batch_size for sample in parsed.model_warmup] == [1, 4]
    for sample in parsed.model_warmup:
        given = sample.inputs["image"]
        assert (list(given.dims), given.zero_data) == (list(parsed.input[0].dims), True)
        assert schema.DataType.Name(given.data_type) == "TYPE_UINT8"
    assert [(item.name, list(item.dims)) for item in (*parsed.input, *parsed.output)] == [
        (item["name"], item["dims"]) for item in (*ours["input"], *ours["output"])
    ]
    assert [schema.DataType.Name(item.data_type) for item in (*parsed.input, *parsed.output)] == [
        "TYPE_UINT8",
        "TYPE_FP32",
        "TYPE_FP32",
    ]
    score = parsed.output[1]
    assert score.HasField("reshape")
    assert list(score.reshape.shape) == []
    assert score.label_filename == "labels.txt"
    assert parsed.instance_group[0].kind == schema.ModelInstanceGroup.KIND_GPU
    record = record_of(tmp_path / method)
    assert parsed.parameters["flawscope_digest"].string_value == record.digest
    assert parsed.parameters["flawscope_graph"].string_value == record.graph
    accelerator = parsed.optimization.execution_accelerators.gpu_execution_accelerator[0]
    assert (accelerator.name, dict(accelerator.parameters)) == ("cuda", {"use_tf32": "0"})


def test_the_strict_reader_has_the_fields_of_tritons_schema():
    schema = pytest.importorskip(
        "tritonclient.grpc.model_config_pb2", reason="needs tritonclient[grpc], which has Triton's schema"
    )
    fields_of = {}
    messages = [schema.ModelConfig.DESCRIPTOR]
    while messages:
        message = messages.pop()
        name = message.full_name.removeprefix("inference.")
        if name in SCHEMA and name not in fields_of:
            fields_of[name] = {field.name: field for field in message.fields}
            messages += [field.message_type for field in message.fields if field.message_type]
    assert {name: set(fields) for name, fields in fields_of.items()} == {
        name: set(fields) for name, fields in SCHEMA.items()
    }
    for name, fields in fields_of.items():
        for field, real in fields.items():
            kind = SCHEMA[name][field]
            if isinstance(kind, tuple):
                assert kind == tuple(value.name for value in real.enum_type.values), (name, field)
            elif kind.removeprefix("*")[0].isupper():
                assert kind.removeprefix("*") == real.message_type.full_name.removeprefix("inference."), (name, field)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('name: "a" label: "b"', "ModelConfig has no field label"),
        ('name "a"', "name: expected a colon"),
        ('name: "a" name: "b"', "name: given twice"),
        ("max_batch_size: [ 1 ]", "max_batch_size: a list for a single field"),
        ('max_batch_size: "1"', 'expected int, got "1"'),
        ("input [ { dims: [ 1 2 ] } ]", "expected ,, got 2"),
        ("input { data_type: TYPE_FLOAT }", "expected an enumerator, got TYPE_FLOAT"),
        ("output [ { dims: 1 }", "expected ,, got the end"),
        ("dynamic_batching { ", "expected }, got the end"),
        ("version_policy { all { } }", "must not be used"),
        ("instance_group { count: 1 } }", "has no field }"),
        ("name: 'a'", "expected a token, got"),
    ],
)
def test_the_strict_reader_refuses(text, message):
    with pytest.raises(TextFormatError, match=re.escape(message)):
        read_model_config(text)


@pytest.mark.parametrize("method", METHODS)
def test_the_record_has_what_a_client_needs(bundles, tmp_path, method):
    write(bundles[method], tmp_path)
    with open_bundle(bundles[method]) as bundle:
        manifest = bundle.manifest
    record = record_of(tmp_path / method)
    assert record.digest == manifest.digest
    assert record.thresholds == manifest.thresholds
    assert record.thresholds.image.method == "manual"
    assert record.preprocessing == manifest.input
    assert record.golden == manifest.golden
    assert len(record.golden) == 2


@pytest.mark.parametrize("method", METHODS)
def test_the_graph_scores_from_its_place_in_the_repository_as_in_the_bundle(bundles, tiny_root, tmp_path, method):
    write(bundles[method], tmp_path / "models")
    moved = shutil.move(tmp_path / "models" / method, tmp_path / "elsewhere")
    images = anomalous_images(tiny_root)[:3]
    server = StandIn(Path(moved))
    with Inspector.load(bundles[method], "cpu", path="graph") as inspector:
        for part_image in images:
            result = inspector(part_image)
            image = prepare(read_image(part_image), inspector.manifest.input)
            answer = server.infer({"image": image[None]})
            assert answer["score"].shape == (1, 1)
            assert float(answer["score"][0, 0]) == result.score
            np.testing.assert_array_equal(answer["anomaly_map"][0], result.anomaly_map)


def test_thresholds_are_null_where_the_bundle_was_not_calibrated_and_the_command_says_so(
    uncalibrated_bundles, tmp_path, capsys
):
    source = str(uncalibrated_bundles["padim"])
    assert run(["export-triton", source, "--out", str(tmp_path / "models")]) == 0
    assert "not calibrated: no thresholds" in capsys.readouterr().out
    assert record_of(tmp_path / "models" / "padim").thresholds is None


def test_the_command_says_what_a_client_has_to_do(tiny, tmp_path, capsys):
    assert run(["export-triton", str(tiny), "--out", str(tmp_path / "models")]) == 0
    said = capsys.readouterr().out
    assert "Triton applies no threshold and decodes no image" in said
    assert "golden images checked: 1" in said
    assert "not calibrated" not in said
    assert "by product" not in said


def test_thresholds_by_product_are_said_not_to_be_those_of_the_rule(tiny, tmp_path, capsys):
    with open_bundle(tiny) as bundle:
        manifest = bundle.manifest
    alike = manifest.thresholds
    row = ProductThresholds("gear", 30, alike.image, alike.pixel)
    thresholds = msgspec.structs.replace(alike, products=(row,))
    change_bundle(tiny, manifest, lambda now: msgspec.structs.replace(now, thresholds=thresholds))
    assert run(["export-triton", str(tiny), "--out", str(tmp_path / "models")]) == 0
    assert "decides by the common thresholds; those by product (gear)" in capsys.readouterr().out


def test_a_packed_bundle_is_taken_too(tiny, tmp_path):
    with open_bundle(tiny) as bundle:
        pack_bundle(bundle, tmp_path / "packed.flaw")
    write(tiny, tmp_path / "folder")
    write(tmp_path / "packed.flaw", tmp_path / "file")
    assert files_of(tmp_path / "folder") == files_of(tmp_path / "file")


@pytest.mark.usefixtures("traced_features")
def test_a_run_is_exported_to_a_bundle_that_does_not_stay(padim_run, tmp_path, monkeypatch, capsys):
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    out = tmp_path / "models"
    assert run(["export-triton", str(padim_run), "--max-batch", "2", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "parity" in said
    assert "bundle:" not in said  # it is gone by now
    assert config_of(out / "padim")["max_batch_size"] == 2
    assert list((tmp_path / "scratch").iterdir()) == []


def test_a_bundle_needs_neither_torch_nor_onnx_nor_tritonclient(tiny, tmp_path):
    code = (
        "import sys\n"
        "for name in ('torch', 'onnx', 'tritonclient', 'google.protobuf'): sys.modules[name] = None\n"
        "from flawscope.cli import run\n"
        f"sys.exit(run(['export-triton', {str(tiny)!r}, '--out', {str(tmp_path / 'models')!r}]))"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    assert (tmp_path / "models" / "tiny" / "config.pbtxt").is_file()


@pytest.mark.parametrize(
    "name", ["a/b", "..", "a..b", ".hidden", "-option", "", 'quo"te', "white space", "ß", "a" * 129]
)
def test_a_name_that_triton_or_a_shell_would_trip_over_is_refused(tiny, tmp_path, name):
    with pytest.raises(ArgumentError, match="model name: expected letters, digits"):
        write(tiny, tmp_path / "models", name=name)
    assert not (tmp_path / "models").exists()


def test_a_bundle_with_such_a_name_is_exported_under_another(tmp_path, capsys):
    write_tiny_bundle(tmp_path / "tiny.flaw", name="Teil 7")
    arguments = ["export-triton", str(tmp_path / "tiny.flaw"), "--out", str(tmp_path / "models")]
    assert run(arguments) == 2
    assert "got 'Teil 7'. Choose another one with --model-name." in capsys.readouterr().err
    assert run([*arguments, "--model-name", "part-7.b"]) == 0
    assert config_of(tmp_path / "models" / "part-7.b")["name"] == "part-7.b"


def test_a_repository_that_holds_other_things_is_refused(tiny, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    (images / "1.png").write_bytes(b"")
    for place, got in (
        (images, "a folder with 1.png"),
        (images / "1.png", "a file"),
        (tiny, "a folder with bank.safetensors"),
        (tmp_path, "a folder with images"),
    ):
        before = files_of(tmp_path)
        with pytest.raises(ArgumentError, match=re.escape(f"or a Triton model repository, got {got}")):
            write(tiny, place)
        assert files_of(tmp_path) == before


@pytest.mark.parametrize("place", [".", "other", "tiny"])
def test_a_repository_that_cannot_be_listed_is_not_taken_for_an_empty_one(tiny, tmp_path, monkeypatch, place):
    models = tmp_path / "models"
    (models / "other" / "1").mkdir(parents=True)
    (models / "tiny").mkdir()
    before = files_of(tmp_path)
    with monkeypatch.context() as patched:
        refuse_listing(patched, models / place)
        with pytest.raises(DataError, match="expected a folder that can be listed"):
            write(tiny, models)
    assert files_of(tmp_path) == before


def test_other_models_stay_and_the_same_one_is_replaced_if_that_is_asked_for(tiny, tmp_path):
    models = tmp_path / "models"
    (models / "other" / "1").mkdir(parents=True)
    (models / "other" / "1" / "model.plan").write_bytes(b"plan")
    write(tiny, models)
    with pytest.raises(ArgumentError, match=r"expected a new name, got an earlier output with flawscope\.json"):
        write(tiny, models, instances=2)
    write(tiny, models, instances=2, overwrite=True)
    assert config_of(models / "tiny")["instance_group"][0]["count"] == 2
    assert sorted(path.name for path in models.iterdir()) == ["other", "tiny"]
    assert (models / "other" / "1" / "model.plan").read_bytes() == b"plan"


@pytest.mark.parametrize("change", ["edited", "added", "removed", "no record", "broken record"])
def test_a_model_that_was_changed_since_is_not_replaced(tiny, tmp_path, change):
    write(tiny, tmp_path / "models")
    folder = tmp_path / "models" / "tiny"
    if change == "edited":
        with (folder / "config.pbtxt").open("a") as file:
            file.write("# tuned\n")
    elif change == "added":
        (folder / "2").mkdir()
        (folder / "2" / "model.onnx").write_bytes(b"newer")
    elif change == "removed":
        (folder / "labels.txt").unlink()
    elif change == "no record":
        (folder / RECORD).unlink()
    else:
        (folder / RECORD).write_text("{}")
    before = files_of(tmp_path)
    message = "without a valid flawscope.json" if "record" in change else "changed, added or removed since"
    with pytest.raises(ArgumentError, match=message):
        write(tiny, tmp_path / "models")
    assert files_of(tmp_path) == before


def test_a_bundle_of_another_kind_is_refused(tmp_path):
    graphs = {"score": Graph("score.onnx", ("image",), "pixels", 1, 1)}
    write_tiny_bundle(tmp_path / "other.flaw", graphs=graphs)
    with pytest.raises(BundleError, match=r"outputs anomaly_map, score, got one with image"):
        write(tmp_path / "other.flaw", tmp_path / "models")
    write_tiny_bundle(tmp_path / "none.flaw", graphs={})
    with pytest.raises(BundleError, match=r"outputs anomaly_map, score, got none"):
        write(tmp_path / "none.flaw", tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_a_precision_is_served_with_its_own_graph_scores_and_thresholds(tmp_path):
    gate = Gate("cpu", 9, 0.0, 0.0, 1.0, 0.0, 0, 0, None, None, None, None, 1.0, 1.0, 1.0)
    half = Precision(
        graphs={"score": Graph("score.fp16.onnx", ("anomaly_map", "score"), "pixels", 1, 1)},
        golden=(Golden("golden/0.png", score=200.0625, map_max=200.0625),),
        method="none",
        calibration_images=1,
        quantised=1,
        kept=(),
        gate=gate,
        thresholds=tiny_thresholds(151.0),
    )
    sources = {"score.fp16.onnx": brightness_graph()}
    write_tiny_bundle(tmp_path / "tiny.flaw", sources, precisions={"fp16": half}, thresholds=tiny_thresholds(150.0))
    write(tmp_path / "tiny.flaw", tmp_path / "models", precision="fp16")
    record = record_of(tmp_path / "models" / "tiny")
    assert (record.precision, record.golden, record.thresholds) == ("fp16", half.golden, half.thresholds)
    with pytest.raises(ArgumentError, match="precision: expected one the bundle has"):
        write(tmp_path / "tiny.flaw", tmp_path / "models", precision="int8")


def test_what_is_no_bundle_and_no_run_is_one_line(tmp_path, capsys):
    assert run(["export-triton", str(tmp_path / "nothing"), "--out", str(tmp_path / "models")]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path / 'nothing'}: expected a bundle, got no such file")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-batch", "2"], "--max-batch: expected it with a run"),
        (["--max-batch", "8"], "--max-batch: expected it with a run"),
        (["--precision", "int8", "--calibration-data", "x"], "--calibration-data: expected it with a run"),
        (["--int8-rest", "fp32"], "--int8-rest: expected it with a run"),
        (["--min-spearman", "1"], "--min-spearman: expected it with a run"),
        (["--precision", "int8", "--precision", "fp16"], "--precision: expected one that Triton serves, got int8 and"),
    ],
)
def test_options_without_effect_are_refused(tiny, tmp_path, capsys, arguments, message):
    assert run(["export-triton", str(tiny), "--out", str(tmp_path / "models"), *arguments]) == 2
    assert f"error: {message}" in capsys.readouterr().err
    assert not (tmp_path / "models").exists()


def test_a_precision_of_a_run_needs_what_it_is_made_from(padim_run, tmp_path, capsys):
    arguments = ["export-triton", str(padim_run), "--out", str(tmp_path / "models"), "--precision", "int8"]
    assert run(arguments) == 2
    assert "error: --precision int8: expected --calibration-data ROOT" in capsys.readouterr().err
    assert not (tmp_path / "models").exists()


def test_a_graph_that_misses_its_golden_score_leaves_the_earlier_model(tiny, tmp_path):
    write(tiny, tmp_path / "models")
    before = files_of(tmp_path / "models")
    write_tiny_bundle(tmp_path / "wrong.flaw", golden=(Golden("golden/0.png", score=201.0, map_max=200.0),))
    with pytest.raises(GateError, match=r"golden/0\.png: expected score 201 as at export, got 200"):
        write(tmp_path / "wrong.flaw", tmp_path / "models", overwrite=True)
    assert files_of(tmp_path / "models") == before


def test_a_graph_with_other_shapes_than_the_configuration_is_refused(tmp_path):
    import onnx

    model = onnx.load_model_from_string(brightness_graph())
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "H"
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "H"
    write_tiny_bundle(tmp_path / "open.flaw", {"score.onnx": model.SerializeToString()})
    with pytest.raises(GateError, match="with a dynamic batch in the graph"):
        write(tmp_path / "open.flaw", tmp_path / "models")
    model = onnx.load_model_from_string(brightness_graph())
    for tensor in (*model.graph.input, *model.graph.output):
        tensor.type.tensor_type.shape.dim[0].dim_value = 1
    write_tiny_bundle(tmp_path / "one.flaw", {"score.onnx": model.SerializeToString()})
    with pytest.raises(GateError, match=re.escape("in the graph, got {}")):
        write(tmp_path / "one.flaw", tmp_path / "models")


def test_a_graph_that_does_not_load_is_refused(tmp_path):
    # An operator that no ONNX Runtime has: the bytes themselves are a graph.
    broken = brightness_graph().replace(b"ReduceMax", b"ReduceMux")
    write_tiny_bundle(tmp_path / "broken.flaw", {"score.onnx": broken})
    with pytest.raises(BackendError, match=r"ONNX Runtime could not load \d+/model\.onnx/model\.onnx"):
        write(tmp_path / "broken.flaw", tmp_path / "models")
    assert not list((tmp_path / "models").iterdir())


def test_a_full_disk_leaves_nothing(tiny, tmp_path, monkeypatch):
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("flawscope.bundle.Bundle.copy", full)
    with pytest.raises(StorageError, match="the disk is full"):
        write(tiny, tmp_path / "models")
    assert not list((tmp_path / "models").iterdir())
