"""The names that other code may rely on. A change here is a change for users: it belongs in the change log."""

from __future__ import annotations

import importlib
import inspect

import pytest

PUBLIC = {
    "flawscope.bundle": [
        "IMAGE_HASHES",
        "MANIFEST",
        "OnnxModel",
        "PRECISIONS",
        "SCHEMA",
        "Accuracy",
        "BankHead",
        "Bundle",
        "DdadHead",
        "DsadHead",
        "EnsembleHead",
        "EnsembleMember",
        "Evidence",
        "FileEntry",
        "Gate",
        "Golden",
        "Graph",
        "Head",
        "ImageHashes",
        "KeptNode",
        "Manifest",
        "PadimHead",
        "Parity",
        "PatchcoreHead",
        "ImageParity",
        "Precision",
        "Provenance",
        "ReconstructionHead",
        "SamplingChange",
        "StfpmHead",
        "SynthDefect",
        "SynthHead",
        "SynthSupport",
        "Threshold",
        "ThresholdChange",
        "Thresholds",
        "external_data",
        "head_tag",
        "open_bundle",
        "pack_bundle",
        "read_image_hashes",
        "rewrite_manifest",
        "write_bundle",
    ],
    "flawscope.runtime": ["Box", "Inspector", "Result"],
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
        "read_frames",
        "read_phrases",
        "read_ranges",
        "read_support",
        "write_boxes",
        "write_descriptions",
        "write_masks",
        "write_support",
    ],
    "flawscope.runtime.synthesis": [
        "DrawOptions",
        "DrawOrder",
        "Drawn",
        "GenerateRecord",
        "GenerateSettings",
        "GeneratedImage",
        "MaskOptions",
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
        "implementation",
        "kcenter_greedy",
        "mahalanobis",
        "nearest",
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
        "content_hash",
        "fingerprint",
        "hash_contents",
        "inspect_dataset",
        "list_categories",
        "open_dataset",
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
        assert value.__module__.startswith(f"{package}.")


@pytest.mark.parametrize("package", list(PUBLIC))
def test_a_name_that_is_not_there_is_an_attribute_error(package):
    module = importlib.import_module(package)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = module.no_such_name
