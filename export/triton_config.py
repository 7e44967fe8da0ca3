"""`config.pbtxt` of a model for Triton: `inference.ModelConfig` in the text format of protobuf.

Source: Triton's user guide (model configuration, batchers, warm-up) and `model_config.proto` of
triton-inference-server/common. There an output of one number per image is declared as `dims: [ 1 ]` with an empty
`reshape`, because dims may not be empty.
"""

from __future__ import annotations

import re
from typing import Literal

import msgspec

from flawscope.errors import ArgumentError
from flawscope.runtime.client.served_model import DIGEST, IDENTITY, ServedModel

RECORD = "flawscope.json"
"""Beside `config.pbtxt`: thresholds and preprocessing for clients; also marks the folder as written by flawscope."""

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")

_TF32_OFF = """\
optimization {
  execution_accelerators {
    gpu_execution_accelerator [
      {
        name: "cuda"
        parameters { key: "use_tf32" value: "0" }
      }
    ]
  }
}
"""
"""As in OrtSession: TF32 keeps ten bits of every product's factors, and the scores would no longer be those that the
thresholds were set on."""


class TritonOptions(msgspec.Struct, frozen=True):
    """The choices in `config.pbtxt` that do not follow from the bundle.

    Attributes:
        name: Name of the model in Triton; None takes the bundle's.
        device: Where the instances run. There is no `auto`, because it would fall back to the CPU silently.
        instances: Instances per device; with `gpu`, on every GPU of the server.
        queue_delay_us: Longest time in microseconds that a request waits for others to share its batch. A lone request
            always waits that long, so the default is 0.
        preferred_batches: Batch sizes to aim for. Triton's guide advises to leave them out unless they are known to be
            faster.
        precision: Precision of the graph that is served, with its own thresholds and golden scores.
    """

    name: str | None = None
    device: Literal["cpu", "gpu"] = "cpu"
    instances: int = 1
    queue_delay_us: int = 0
    preferred_batches: tuple[int, ...] = ()
    precision: str = "fp32"


def config_text(model: ServedModel, digest: str, options: TritonOptions) -> str:
    """Return `config.pbtxt`: an `inference.ModelConfig` in the text format of protobuf."""
    height, width = model.size
    batching = _batching_text(model.max_batch, options)
    # No quoting is needed: `checked_name` has refused everything that would end a string of the text format.
    return f"""\
# Written by flawscope; thresholds and preprocessing are in {RECORD}.
name: "{model.name}"
platform: "onnxruntime_onnx"
backend: "onnxruntime"
default_model_filename: "model.onnx"
max_batch_size: {model.max_batch}
input [
  {{
    name: "image"
    data_type: TYPE_UINT8
    dims: [ {height}, {width}, 3 ]
  }}
]
output [
  {{
    name: "anomaly_map"
    data_type: TYPE_FP32
    dims: [ {height}, {width} ]
  }},
  {{
    name: "score"
    data_type: TYPE_FP32
    dims: [ 1 ]
    reshape {{ shape: [ ] }}
    label_filename: "labels.txt"
  }}
]
version_policy {{ specific {{ versions: [ {model.version} ] }} }}
instance_group [
  {{
    kind: KIND_{options.device.upper()}
    count: {options.instances}
  }}
]
{batching}{_TF32_OFF if options.device == "gpu" else ""}{_warmup_text(model)}parameters [
  {{
    key: "{DIGEST}"
    value {{ string_value: "{digest}" }}
  }},
  {{
    key: "{IDENTITY}"
    value {{ string_value: "{model.identity}" }}
  }}
]
"""


def _warmup_text(model: ServedModel) -> str:
    """Return the requests that an instance answers before it is called ready: the first image would wait for them."""
    height, width = model.size
    # The largest batch allocates the most, the smallest is what a line sends.
    samples = ",\n".join(
        f"""\
  {{
    name: "batch of {batch}"
    batch_size: {batch}
    inputs {{
      key: "image"
      value {{
        data_type: TYPE_UINT8
        dims: [ {height}, {width}, 3 ]
        zero_data: true
      }}
    }}
  }}"""
        for batch in sorted({1, model.max_batch})
    )
    return f"model_warmup [\n{samples}\n]\n"


def _batching_text(max_batch: int, options: TritonOptions) -> str:
    """Return the dynamic batcher; empty where no two requests fit into one batch, so that it could only delay."""
    if max_batch == 1:
        return ""
    preferred = ", ".join(map(str, options.preferred_batches))
    return (
        "dynamic_batching {\n"
        + (f"  preferred_batch_size: [ {preferred} ]\n" if preferred else "")
        + f"  max_queue_delay_microseconds: {options.queue_delay_us}\n}}\n"
    )


def checked_name(name: str) -> str:
    """Return a name of a model, or raise ArgumentError if it needs quoting anywhere."""
    # Triton itself refuses `/` and `..`; the rest must need no quoting in URLs, shells, file systems and config.pbtxt.
    if not _NAME.fullmatch(name) or ".." in name:
        raise ArgumentError(
            f"model name: expected letters, digits, '_', '-' and '.', not beginning with '-' or '.', without '..', "
            f"128 at most, got {name!r}. Choose another one with --model-name."
        )
    return name


def check_options(options: TritonOptions, max_batch: int) -> None:
    """Raise ArgumentError unless options are in range, for graphs of a largest batch."""
    if options.device not in ("cpu", "gpu"):
        raise ArgumentError(f"device: expected cpu or gpu, got {options.device!r}.")
    for name, value, least, most in (
        ("instances", options.instances, 1, 1024),
        ("queue delay", options.queue_delay_us, 0, 60_000_000),
        *(("preferred batch", batch, 1, max_batch) for batch in options.preferred_batches),
    ):
        if not least <= value <= most:
            raise ArgumentError(f"{name}: expected {least} to {most}, got {value}.")
