"""Options of `export` and `export-triton` for reduced precisions: which, from what data, and the limits of the gate."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import click

from flawscope.bundle import PRECISIONS
from flawscope.calibration.quantization.gate_limits import LIMITS, METHODS, Limits, Method
from flawscope.calibration.quantization.modelopt import PYTHON
from flawscope.datasets import open_dataset
from flawscope.errors import ArgumentError
from flawscope.given_options import is_given

if TYPE_CHECKING:
    from flawscope.export.precisions import Wanted

_Result = TypeVar("_Result")

_REDUCED = ("fp16", "bf16", "int8")
_FOR_ALL = ", ".join(_REDUCED)
_GATED = ("cpu", "openvino")
_PRECISIONS_OF = {
    "calibration_data": _REDUCED,
    "labelled_data": _REDUCED,
    "category": _REDUCED,
    "calibration_method": ("int8",),
    "int8_rest": ("int8",),
    "int8_budget": ("int8",),
    "gate_backends": _REDUCED,
    "modelopt_python": ("fp16", "int8"),
    "max_auroc_change": _REDUCED,
    "min_spearman": _REDUCED,
    "max_false_rejects": _REDUCED,
    "max_score_change": _REDUCED,
    "max_map_change": _REDUCED,
    "min_gate_images": _REDUCED,
}
"""Parameter -> the precisions that it is for. Every option of this module but --precision must be here, or it is
accepted where it has no effect."""


@dataclass(frozen=True)
class PrecisionRequest:
    """Values of the options of this module.

    Attributes:
        precisions: `fp16`, `bf16`, `int8` or several, beside FP32, each once and in the order given; often empty.
        calibration: Folder of the dataset for value ranges and the gate, or None.
        labelled: Folder of the dataset whose test images are gated too, or None.
        category: Category below both, or None.
        method: How value ranges for INT8 are chosen.
        limits: Precision -> limits of its gate; `LIMITS` where one is missing.
        int8_rest: Precision of the operators that are not in INT8.
        modelopt_python: Python interpreter with ModelOpt, or None for the usual one.
        backends: Backends of the gate; empty for those that are here.
        int8_minutes: Budget of the search for operators in INT8, or None.
    """

    precisions: tuple[str, ...]
    calibration: Path | None
    labelled: Path | None
    category: str | None
    method: Method = "percentile"
    limits: dict[str, Limits] = field(default_factory=dict)
    int8_rest: Literal["fp32", "fp16"] = "fp32"
    modelopt_python: Path | None = None
    backends: tuple[str, ...] = ()
    int8_minutes: float | None = None

    def check_run(self, is_given: Callable[[str], bool] = is_given) -> None:
        """Refuse options of a precision that is not requested, and a precision without calibration images.

        Args:
            is_given: Tells whether an option was given, by the name of its parameter.

        Raises:
            ArgumentError: If an option would have no effect, or the dataset is missing.
        """
        for parameter, needed in _PRECISIONS_OF.items():
            if is_given(parameter) and not set(needed) & set(self.precisions):
                flags = " or ".join(f"--precision {precision}" for precision in needed)
                raise ArgumentError(f"{_flag(parameter)}: expected it with {flags}, got it without. Leave it out.")
        if self.precisions and self.calibration is None:
            raise ArgumentError(
                f"--precision {self.precisions[0]}: expected --calibration-data ROOT with normal images, got none. "
                "Name the dataset that the detector was trained on."
            )

    def check_bundle(self, bundle: Path) -> None:
        """Refuse options on how to make a precision, because a bundle has its graphs already.

        Raises:
            ArgumentError: If one of them is given.
        """
        for parameter in _PRECISIONS_OF:
            if is_given(parameter):
                raise ArgumentError(
                    f"{_flag(parameter)}: expected it with a run, got it with {bundle}. Its graphs exist already: "
                    "leave it out, or export the run again."
                )

    def open_data(self) -> Wanted | None:
        """Index the datasets and return the request for the export, or None where FP32 is all.

        Raises:
            DataError: If a dataset cannot be read.
        """
        from flawscope.export.precisions import Wanted  # imports onnx, which help pages must not need

        if self.calibration is None or not self.precisions:
            return None
        return Wanted(
            self.precisions,
            open_dataset(self.calibration, self.category),
            None if self.labelled is None else open_dataset(self.labelled, self.category),
            self.method,
            self.limits,
            self.int8_rest,
            self.modelopt_python,
            self.backends,
            self.int8_minutes,
        )


def precision_options(precision_help: str) -> Callable[[Callable[..., _Result]], Callable[..., _Result]]:
    """Give a command the options of this module; it gets them as one `PrecisionRequest`, its first argument.

    Args:
        precision_help: Help text of --precision.
    """

    def decorate(command: Callable[..., _Result]) -> Callable[..., _Result]:
        # wraps: click reads the help from the docstring, and the options below this decorator from __click_params__.
        @functools.wraps(command)
        def with_request(
            *,
            precisions: tuple[str, ...],
            calibration_data: Path | None,
            labelled_data: Path | None,
            category: str | None,
            calibration_method: Method,
            int8_rest: Literal["fp32", "fp16"],
            modelopt_python: Path | None,
            max_auroc_change: float | None,
            min_spearman: float | None,
            max_false_rejects: float | None,
            max_score_change: float | None,
            max_map_change: float | None,
            min_gate_images: int | None,
            gate_backends: tuple[str, ...],
            int8_budget: float | None,
            **other_options: Any,
        ) -> _Result:
            # Without fp32, which every bundle has, and each once: dict keys keep the order.
            reduced = tuple(dict.fromkeys(name for name in precisions if name != "fp32"))
            request = PrecisionRequest(
                precisions=reduced,
                calibration=calibration_data,
                labelled=labelled_data,
                category=category,
                method=calibration_method,
                limits={
                    name: _limits(
                        LIMITS[name],
                        max_auroc_change,
                        min_spearman,
                        max_false_rejects,
                        max_score_change,
                        max_map_change,
                        min_gate_images,
                    )
                    for name in reduced
                },
                int8_rest=int8_rest,
                modelopt_python=modelopt_python,
                backends=tuple(dict.fromkeys(gate_backends)),
                int8_minutes=int8_budget,
            )
            return command(request, **other_options)

        decorated: Callable[..., _Result] = with_request
        # click lists the option that was put on last first.
        for option in reversed(_options(precision_help)):
            decorated = option(decorated)
        return decorated

    return decorate


def _options(precision_help: str) -> tuple[Callable[..., Any], ...]:
    """Return the options in the order of the help page."""
    folder = click.Path(path_type=Path)
    return (
        click.option("--precision", "precisions", type=click.Choice(PRECISIONS), multiple=True, help=precision_help),
        click.option("--calibration-data", type=folder, help=f"{_FOR_ALL}: dataset for value ranges and the gate."),
        click.option("--labelled-data", type=folder, help=f"{_FOR_ALL}: dataset whose test images are gated too."),
        click.option("--category", metavar="NAME", help=f"{_FOR_ALL}: category below the datasets' folders."),
        click.option(
            "--calibration-method",
            type=click.Choice(METHODS),
            default="percentile",
            show_default=True,
            help="int8: how value ranges are chosen.",
        ),
        click.option(
            "--int8-rest",
            type=click.Choice(["fp32", "fp16"]),
            default="fp32",
            show_default=True,
            help="int8: precision of the operators that are not in INT8.",
        ),
        click.option(
            "--int8-budget",
            type=float,
            metavar="MINUTES",
            help="int8: time of the search for operators.  [default: no end]",
        ),
        click.option(
            "--gate-backend",
            "gate_backends",
            type=click.Choice(_GATED),
            multiple=True,
            help=f"{_FOR_ALL}: backends of the gate.  [default: those that are here]",
        ),
        click.option(
            "--modelopt-python",
            type=folder,
            help=f"fp16: Python interpreter with nvidia-modelopt[onnx].  [default: {PYTHON}, or this one]",
        ),
        click.option("--max-auroc-change", type=float, help=_limit_help("image_auroc")),
        click.option("--min-spearman", type=float, help=_limit_help("spearman")),
        click.option("--max-false-rejects", type=float, help=_limit_help("false_rejects")),
        click.option("--max-score-change", type=float, help=_limit_help("score_error")),
        click.option("--max-map-change", type=float, help=_limit_help("map_place")),
        click.option("--min-gate-images", type=int, help=_limit_help("images")),
    )


def _limit_help(name: str) -> str:
    values = ", ".join(f"{getattr(limits, name):g} {precision}" for precision, limits in LIMITS.items())
    return f"{_FOR_ALL}: gate.  [default: {values}]"


def _limits(
    default: Limits,
    auroc: float | None,
    spearman: float | None,
    false_rejects: float | None,
    score: float | None,
    place: float | None,
    images: int | None,
) -> Limits:
    """Return the given limits, and the default where one is None."""
    # One option limits both AUROCs: of the image scores and of the pixels.
    return Limits(
        default.image_auroc if auroc is None else auroc,
        default.pixel_auroc if auroc is None else auroc,
        default.spearman if spearman is None else spearman,
        default.false_rejects if false_rejects is None else false_rejects,
        default.score_error if score is None else score,
        default.map_place if place is None else place,
        default.images if images is None else images,
    )


def _flag(parameter: str) -> str:
    if parameter == "gate_backends":
        return "--gate-backend"
    return f"--{parameter.replace('_', '-')}"
