"""The names that other code may rely on. A change here is a change for users: it belongs in the change log."""

from __future__ import annotations

import ast
import importlib
import inspect

import pytest
from project_paths import ROOT

HOMES = {"flawscope.scale": "flawscope.runtime.scale"}
"""Public module -> the room that its names are from, where that is another one."""

PUBLIC = {
    "flawscope": [
        "Box",
        "Bundle",
        "Calibration",
        "Figures",
        "FlawscopeError",
        "Frame",
        "Inspector",
        "Manifest",
        "Result",
        "Router",
        "Run",
        "Threshold",
        "Thresholds",
        "__version__",
        "fit",
    ],
    "flawscope.scale": ["ShardedReport", "score"],
    "flawscope.errors": [
        "ArgumentError",
        "BackendError",
        "BundleError",
        "DataError",
        "DeviceError",
        "DeviceLost",
        "FlawscopeError",
        "GateError",
        "ImageError",
        "LoadTimeout",
        "MissingExtra",
        "QueueFull",
        "RunError",
        "StorageError",
    ],
    "flawscope.bundle": [
        "Accuracy",
        "AddedRows",
        "Additions",
        "BankChange",
        "BankHead",
        "Bundle",
        "COMPUTED",
        "DdadHead",
        "DestsegHead",
        "DraemHead",
        "DsadHead",
        "EnsembleHead",
        "EnsembleMember",
        "Evidence",
        "FileEntry",
        "Gate",
        "Golden",
        "Graph",
        "Guarantee",
        "Head",
        "IMAGE_HASHES",
        "ImageHashes",
        "ImageParity",
        "InForce",
        "KeptNode",
        "LafiteHead",
        "Limits",
        "MANIFEST",
        "Manifest",
        "OnnxModel",
        "PRECISIONS",
        "PadimHead",
        "Parity",
        "PartFollower",
        "PartShift",
        "PatchcoreHead",
        "Precision",
        "ProductThresholds",
        "Provenance",
        "ReconstructionHead",
        "RecordedDrift",
        "Region",
        "SCHEMA",
        "SamplingChange",
        "SegmenterHead",
        "StfpmHead",
        "SynthDefect",
        "SynthHead",
        "SynthSupport",
        "Threshold",
        "ThresholdChange",
        "ThresholdLimits",
        "Thresholds",
        "TrustedKeys",
        "ZoneThresholds",
        "Zones",
        "Upkeep",
        "change_bundle",
        "check_changeable",
        "decode_additions",
        "decode_manifest",
        "edge_left",
        "external_data",
        "find_trusted_keys",
        "head_tag",
        "load_tensors",
        "make_region",
        "make_zones",
        "making",
        "mask_on_map",
        "model_identity",
        "move_mask",
        "open_bundle",
        "pack_bundle",
        "read_image_hashes",
        "region_mask",
        "rewrite_manifest",
        "sign_bundle",
        "thresholds_in_force",
        "thresholds_of_product",
        "trusted_bundle",
        "with_room",
        "write_bundle",
        "zone_numbers",
        "zones_on_map",
    ],
    "flawscope.runtime": ["Box", "Frame", "Inspector", "Result", "Router", "SessionUse"],
    "flawscope.datasets.defects": [
        "SUPPORT_RECORD",
        "NearDuplicate",
        "BoxLine",
        "BoxRange",
        "BoxRecord",
        "BoxSettings",
        "Captions",
        "CategoryRanges",
        "AnomalousSample",
        "Description",
        "DescriptionRecord",
        "DrawnImage",
        "MaskRecord",
        "MaskSettings",
        "Sides",
        "SupportImage",
        "SupportRecord",
        "exclude_support",
        "find_box_lines",
        "find_foreground",
        "find_support",
        "list_anomalous",
        "read_box_lines",
        "read_descriptions",
        "read_drawn",
        "read_frames",
        "read_learned",
        "read_phrases",
        "read_ranges",
        "read_support",
        "support_record",
        "write_boxes",
        "write_descriptions",
        "write_masks",
        "write_support",
    ],
    "flawscope.datasets.drawing": [
        "Cutout",
        "PasteOptions",
        "PerlinOptions",
        "augment_texture",
        "cut_defects",
        "make_texture",
        "paste_defect",
        "perlin_anomaly",
        "shuffle_texture",
    ],
    "flawscope.runtime.synthesis": [
        "DrawOptions",
        "DrawOrder",
        "Drawn",
        "GenerateRecord",
        "GenerateSettings",
        "GeneratedImage",
        "MaskOptions",
        "MaskedLpips",
        "PreciseMask",
        "ProvenanceLine",
        "QualityLimits",
        "RejectSummary",
        "Site",
        "SupportPatch",
        "SynthDatasetRecord",
        "Synthesizer",
        "Verdict",
        "feather_mask",
        "generate_images",
        "judge_image",
        "paste_drawn",
        "precise_mask",
        "read_generated",
        "read_sites",
        "redraw",
        "summarise",
        "texture_contrast",
        "write_synth_dataset",
    ],
    "flawscope.cpp_ext": [
        "HAVE_CUDA",
        "HAVE_NATIVE",
        "Bank",
        "Gaussians",
        "WindowBank",
        "implementation",
        "kcenter_greedy",
        "mahalanobis",
        "nearest",
        "neighbour_table",
        "separable_maps",
        "simd_level",
    ],
    "flawscope.datasets": [
        "GOOD",
        "Dataset",
        "ImageCount",
        "Inspection",
        "Layout",
        "Problem",
        "Sample",
        "SizeSummary",
        "Split",
        "as_recorded",
        "image_hash",
        "content_hash",
        "fingerprint",
        "hash_contents",
        "inspect_dataset",
        "list_categories",
        "open_categories",
        "open_dataset",
        "pixels_of_recorded",
        "split_folds",
        "split_held_out",
    ],
    "flawscope.datasets.parts": [
        "DEFECTS",
        "GENERATOR_VERSION",
        "KINDS",
        "Pair",
        "PartsRecord",
        "render",
        "render_pair",
        "write_dataset",
    ],
    "flawscope.calibration": [
        "aupro",
        "auroc",
        "average_precision",
        "calibrate_bundle",
        "clopper_pearson",
        "evaluate_bundle",
        "f1_max",
        "f1_threshold",
        "image_intervals",
        "images_needed",
        "order_statistic_threshold",
        "pixel_auroc",
        "pixel_average_precision",
        "pixel_intervals",
        "rank_pixels",
        "rate",
        "record_accuracy",
        "set_thresholds",
        "upper_bound",
        "write_report",
    ],
}


@pytest.mark.parametrize("package", list(PUBLIC))
def test_the_public_names_of_a_package_are_the_pinned_ones(package):
    names = importlib.import_module(package).__all__
    assert len(set(names)) == len(names)
    assert sorted(names) == sorted(PUBLIC[package])


@pytest.mark.parametrize(("package", "name"), [(package, name) for package, names in PUBLIC.items() for name in names])
def test_a_public_name_exists_and_is_documented_where_it_can_be(package, name):
    value = getattr(importlib.import_module(package), name)
    if inspect.isclass(value) or inspect.isfunction(value):
        assert value.__doc__
        assert f"{value.__module__}.".startswith(f"{HOMES.get(package, package)}.")


@pytest.mark.parametrize("package", list(PUBLIC))
def test_a_name_that_is_not_there_is_an_attribute_error(package):
    module = importlib.import_module(package)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = module.no_such_name


def test_type_checkers_are_told_what_is_imported_when_a_name_is_used():
    import flawscope

    stub = ast.parse((ROOT / "core" / "__init__.pyi").read_text(encoding="utf-8"))
    places = {alias.name: node.module for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    (listed,) = (ast.literal_eval(node.value) for node in stub.body if isinstance(node, ast.Assign))
    assert sorted(listed) == sorted(flawscope.__all__) == sorted([*places, "__version__"])
    for name, module in places.items():
        assert getattr(flawscope, name) is getattr(importlib.import_module(module), name)
    assert set(listed) <= set(dir(flawscope))


def test_star_brings_the_public_names_alone():
    names: dict[str, object] = {}
    exec("from flawscope import *", names)
    assert sorted(set(names) - {"__builtins__"}) == sorted(PUBLIC["flawscope"])


def test_every_exception_is_public():
    from flawscope import errors

    kinds = {
        name for name, value in vars(errors).items() if isinstance(value, type) and value.__module__ == errors.__name__
    }
    assert kinds == set(errors.__all__)
    assert all(issubclass(getattr(errors, name), errors.FlawscopeError) for name in kinds)


def test_the_reference_of_the_site_has_every_public_package():
    from site_pages import api

    assert set(PUBLIC) <= set(api.MODULES)
