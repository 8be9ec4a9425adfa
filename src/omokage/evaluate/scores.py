"""The records of an evaluation's numbers: what each metric is, one measurement, and all of one method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from omokage.metrics.image import PerFrame

Region = Literal["whole", "head", "mouth"]
REGIONS: tuple[Region, ...] = ("whole", "head", "mouth")


@dataclass(frozen=True, slots=True)
class Metric:
    """What a number is. `best` says which value wins: the highest, the lowest or the one nearest to zero."""

    key: str
    title: str
    unit: str
    best: Literal["high", "low", "zero"]
    digits: int
    definition: str

    def badness(self, value: float) -> float:
        """A number that is smaller the better `value` is; infinite for NaN."""
        if np.isnan(value):
            return float("inf")
        return {"high": -value, "low": value, "zero": abs(value)}[self.best]


METRICS: tuple[Metric, ...] = (
    Metric("psnr", "PSNR", "dB", "high", 2, "over RGB, mean of the frames' values; identical frames count 100 dB"),
    Metric("ssim", "SSIM", "", "high", 4, "scikit-image, Gaussian sigma 1.5 px, range 255, mean of three channels; "
           "in a region the mean of the map; 5 border pixels never count"),
    Metric("ms_ssim", "MS-SSIM", "", "high", 4, "Wang 2003 on luma, five scales (fewer below 176 px)"),
    Metric("gmsd", "GMSD", "", "low", 4, "Xue 2014 on luma, OpenCV's map; 0 is equal"),
    Metric("blur_added", "blur added", "", "zero", 3, "Crété 2007 (scikit-image) of the prediction minus of the truth; "
           "above 0: softer than the recording, below 0: harder or noisier"),
    Metric("lpips", "LPIPS", "", "low", 4, "Zhang 2018, AlexNet 0.1, weights given by the user"),
    Metric("landmark_percent", "landmarks", "% eyes", "low", 2,
           "mean distance of the 478 landmarks (mouth: 40 lip points) between true and predicted frame, in per cent of "
           "the distance of the outer eye corners; same detector and size for both"),
    Metric("landmark_px", "landmarks", "px", "low", 2, "the same in pixels at the stated size"),
    Metric("pose_deg", "head pose", "deg", "low", 2, "angle between the head rotations of true and predicted frame"),
    Metric("expression", "expression", "", "low", 4, "AED: mean absolute difference of the 52 blendshape weights"),
    Metric("identity", "identity", "", "high", 3, "CSIM: cosine of embeddings, network given by the user"),
    Metric("jitter_px", "jitter", "px", "low", 2,
           "RMS second difference of the landmarks over time; real movement is part of it: compare with the recording"),
    Metric("flicker", "flicker", "levels", "low", 2,
           "deviation over time of (predicted - true) luma where the true pixel is still (deviates below 3 levels)"),
    Metric("background_variance", "background variance", "levels²", "low", 3,
           "variance over time of predicted luma in still pixels outside every head box"),
    Metric("face_found", "face found", "%", "high", 1, "share of predicted frames in which the detector finds a face"),
)  # fmt: skip
METRIC_BY_KEY: Mapping[str, Metric] = {metric.key: metric for metric in METRICS}


@dataclass(frozen=True, slots=True)
class Measurement:
    """One metric in one region: the `mean`, and float64 (T,) per frame where the metric has one (else None)."""

    metric: str
    region: Region
    mean: float
    per_frame: PerFrame | None = None

    def to_json(self) -> dict[str, Any]:
        mean = float(self.mean) if np.isfinite(self.mean) else None
        values = None if self.per_frame is None else [_json_number(value) for value in self.per_frame]
        return {
            "metric": self.metric,
            "region": self.region,
            "mean": mean,
            "per_frame": values,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        per_frame = values["per_frame"]
        return cls(
            metric=values["metric"],
            region=values["region"],
            mean=_from_json_number(values["mean"]),
            per_frame=None if per_frame is None else np.array([_from_json_number(v) for v in per_frame]),
        )


@dataclass(frozen=True, slots=True)
class MethodScores:
    """All measurements of one method on the test frames."""

    name: str
    measurements: tuple[Measurement, ...]

    def find(self, metric: str, region: Region = "whole") -> Measurement | None:
        """The measurement, or None when it was not made."""
        for measurement in self.measurements:
            if (measurement.metric, measurement.region) == (metric, region):
                return measurement
        return None

    def mean(self, metric: str, region: Region = "whole") -> float:
        """The mean, NaN when it was not measured."""
        measurement = self.find(metric, region)
        return float("nan") if measurement is None else measurement.mean

    def of_rows(self, rows: NDArray[np.bool_]) -> Self:
        """The means over some of the test frames (T,); metrics without a value for every frame are left out."""
        parts = (
            per_frame_measurement(m.metric, m.region, m.per_frame[rows])
            for m in self.measurements
            if m.per_frame is not None
        )
        return replace(self, measurements=tuple(replace(part, per_frame=None) for part in parts))

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "measurements": [measurement.to_json() for measurement in self.measurements],
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        return cls(values["name"], tuple(Measurement.from_json(value) for value in values["measurements"]))


def per_frame_measurement(metric: str, region: Region, per_frame: PerFrame) -> Measurement:
    """A measurement whose mean leaves out the frames that have no value."""
    is_known = np.isfinite(per_frame)
    mean = float(per_frame[is_known].mean()) if is_known.any() else float("nan")
    return Measurement(metric, region, mean, per_frame)


def _json_number(value: float) -> float | None:
    return round(float(value), 5) if np.isfinite(value) else None


def _from_json_number(value: float | None) -> float:
    return float("nan") if value is None else float(value)
