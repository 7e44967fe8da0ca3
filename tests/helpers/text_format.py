"""A strict reader of protobuf's text format, for Triton's `inference.ModelConfig` alone.

It knows the fields that `model_config.proto` has in the messages below, refuses every other, and refuses what a lenient
reader would let pass: a scalar without a colon, a list for a single field, a field twice, an unknown enumerator.
"""

from __future__ import annotations

import re
from typing import Any

KINDS = ("KIND_AUTO", "KIND_GPU", "KIND_CPU", "KIND_MODEL")
FORMATS = ("FORMAT_NONE", "FORMAT_NHWC", "FORMAT_NCHW")
TYPES = ("TYPE_INVALID", "TYPE_BOOL", "TYPE_UINT8", "TYPE_UINT16", "TYPE_UINT32", "TYPE_UINT64", "TYPE_INT8")
TYPES += ("TYPE_INT16", "TYPE_INT32", "TYPE_INT64", "TYPE_FP16", "TYPE_FP32", "TYPE_FP64", "TYPE_STRING", "TYPE_BF16")

# message -> field -> type; `*` marks a repeated field. A tuple is an enumeration, a capital letter a message below,
# `other` a message that is not described here and must not be used.
SCHEMA: dict[str, dict[str, Any]] = {
    "ModelConfig": {
        "name": "string",
        "platform": "string",
        "backend": "string",
        "runtime": "string",
        "version_policy": "ModelVersionPolicy",
        "max_batch_size": "int",
        "input": "*ModelInput",
        "output": "*ModelOutput",
        "batch_input": "*other",
        "batch_output": "*other",
        "optimization": "ModelOptimizationPolicy",
        "dynamic_batching": "ModelDynamicBatching",
        "sequence_batching": "other",
        "ensemble_scheduling": "other",
        "instance_group": "*ModelInstanceGroup",
        "default_model_filename": "string",
        "cc_model_filenames": "*other",
        "metric_tags": "*other",
        "parameters": "*ModelConfig.ParametersEntry",
        "model_warmup": "*ModelWarmup",
        "model_operations": "other",
        "model_transaction_policy": "other",
        "model_repository_agents": "other",
        "response_cache": "other",
        "model_metrics": "other",
    },
    "ModelVersionPolicy": {"latest": "other", "all": "other", "specific": "ModelVersionPolicy.Specific"},
    "ModelVersionPolicy.Specific": {"versions": "*int"},
    "ModelInput": {
        "name": "string",
        "data_type": TYPES,
        "format": FORMATS,
        "dims": "*int",
        "reshape": "ModelTensorReshape",
        "is_shape_tensor": "bool",
        "allow_ragged_batch": "bool",
        "optional": "bool",
        "is_non_linear_format_io": "bool",
    },
    "ModelOutput": {
        "name": "string",
        "data_type": TYPES,
        "dims": "*int",
        "reshape": "ModelTensorReshape",
        "label_filename": "string",
        "is_shape_tensor": "bool",
        "is_non_linear_format_io": "bool",
    },
    "ModelTensorReshape": {"shape": "*int"},
    "ModelInstanceGroup": {
        "name": "string",
        "kind": KINDS,
        "count": "int",
        "rate_limiter": "other",
        "gpus": "*int",
        "secondary_devices": "*other",
        "profile": "*string",
        "passive": "bool",
        "host_policy": "string",
    },
    "ModelDynamicBatching": {
        "preferred_batch_size": "*int",
        "max_queue_delay_microseconds": "int",
        "preserve_ordering": "bool",
        "priority_levels": "int",
        "default_priority_level": "int",
        "default_queue_policy": "other",
        "priority_queue_policy": "*other",
    },
    "ModelOptimizationPolicy": {
        "graph": "other",
        "priority": ("PRIORITY_DEFAULT", "PRIORITY_MAX", "PRIORITY_MIN"),
        "cuda": "other",
        "execution_accelerators": "ModelOptimizationPolicy.ExecutionAccelerators",
        "input_pinned_memory": "other",
        "output_pinned_memory": "other",
        "gather_kernel_buffer_threshold": "int",
        "eager_batching": "bool",
    },
    "ModelOptimizationPolicy.ExecutionAccelerators": {
        "gpu_execution_accelerator": "*ModelOptimizationPolicy.ExecutionAccelerators.Accelerator",
        "cpu_execution_accelerator": "*other",
    },
    "ModelOptimizationPolicy.ExecutionAccelerators.Accelerator": {
        "name": "string",
        "parameters": "*ModelOptimizationPolicy.ExecutionAccelerators.Accelerator.ParametersEntry",
    },
    "ModelOptimizationPolicy.ExecutionAccelerators.Accelerator.ParametersEntry": {"key": "string", "value": "string"},
    "ModelConfig.ParametersEntry": {"key": "string", "value": "ModelParameter"},
    "ModelParameter": {"string_value": "string"},
    "ModelWarmup": {"name": "string", "batch_size": "int", "inputs": "*ModelWarmup.InputsEntry", "count": "int"},
    "ModelWarmup.InputsEntry": {"key": "string", "value": "ModelWarmup.Input"},
    "ModelWarmup.Input": {
        "data_type": TYPES,
        "dims": "*int",
        "zero_data": "bool",
        "random_data": "bool",
        "input_data_file": "string",
    },
}

_TOKEN = re.compile(r'\s*(?:#[^\n]*\n\s*)*("(?:[^"\\\n]|\\.)*"|-?\d+|[A-Za-z_]\w*|[][{}:,])')


class TextFormatError(ValueError):
    """The text is no ModelConfig in protobuf's text format."""


def read_model_config(text: str) -> dict[str, Any]:
    """Return the fields of a ModelConfig: messages as dictionaries, repeated fields as lists, absent ones absent."""
    tokens = _tokens(text)
    message = _message(tokens, "ModelConfig", None)
    if tokens:
        raise TextFormatError(f"expected the end, got {tokens[0]!r}")
    return message


def _tokens(text: str) -> list[str]:
    found, position = [], 0
    while match := _TOKEN.match(text, position):
        found.append(match[1])
        position = match.end()
    rest = re.sub(r"#[^\n]*", "", text[position:]).strip()
    if rest:
        raise TextFormatError(f"expected a token, got {rest[:20]!r}")
    return found


def _take(tokens: list[str], *expected: str) -> str:
    token = tokens.pop(0) if tokens else "the end"
    if expected and token not in expected:
        raise TextFormatError(f"expected {' or '.join(expected)}, got {token}")
    return token


def _message(tokens: list[str], name: str, end: str | None) -> dict[str, Any]:
    if name not in SCHEMA:
        raise TextFormatError(f"a message that must not be used: {name}")
    fields: dict[str, Any] = {}
    while tokens and tokens[0] != end:
        field = _take(tokens)
        if field not in SCHEMA[name]:
            raise TextFormatError(f"{name} has no field {field}")
        kind = SCHEMA[name][field]
        is_repeated = isinstance(kind, str) and kind.startswith("*")
        kind = kind.removeprefix("*") if isinstance(kind, str) else kind
        is_message = isinstance(kind, str) and (kind[0].isupper() or kind == "other")
        if tokens[:1] == [":"]:
            _take(tokens, ":")
        elif not is_message:
            raise TextFormatError(f"{field}: expected a colon")
        if field in fields and not is_repeated:
            raise TextFormatError(f"{field}: given twice")
        if tokens[:1] == ["["]:
            if not is_repeated:
                raise TextFormatError(f"{field}: a list for a single field")
            fields.setdefault(field, []).extend(_list(tokens, kind))
        elif is_repeated:
            fields.setdefault(field, []).append(_value(tokens, kind))
        else:
            fields[field] = _value(tokens, kind)
    if end is not None:
        _take(tokens, end)
    return fields


def _list(tokens: list[str], kind: Any) -> list[Any]:
    _take(tokens, "[")
    values: list[Any] = []
    while tokens[:1] != ["]"]:
        if values:
            _take(tokens, ",")
        values.append(_value(tokens, kind))
    _take(tokens, "]")
    return values


def _value(tokens: list[str], kind: Any) -> Any:
    if isinstance(kind, str) and (kind[0].isupper() or kind == "other"):
        _take(tokens, "{")
        return _message(tokens, kind, "}")
    token = _take(tokens)
    if isinstance(kind, tuple) and token in kind:
        return token
    if kind == "string" and token.startswith('"'):
        return token[1:-1]
    if kind == "int" and re.fullmatch(r"-?\d+", token):
        return int(token)
    if kind == "bool" and token in ("true", "false"):
        return token == "true"
    raise TextFormatError(f"expected {kind if isinstance(kind, str) else 'an enumerator'}, got {token}")
