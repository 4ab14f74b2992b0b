"""Bones and cartilage of a right knee as signed distances and thicknesses on a grid."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from oaplug_converters.phantom.disease import Disease
from oaplug_converters.phantom.geometry import (
    FloatArray,
    Points,
    Triple,
    bend,
    ellipsoid_distance,
    ramp,
    smooth_cut,
    smooth_union,
)
from oaplug_converters.phantom.nuisance import Build, Nuisance

CONDYLE_X_MM = 22.0
HINGE_MM = (-6.0, 24.0)
"""Where the axis of the condyles crosses the sagittal plane (y, z)."""
COMPARTMENTS: dict[str, tuple[float, float]] = {"medial": (-1.0, 21.0), "lateral": (1.0, 18.0)}
"""Sign of x and half depth (mm) of each tibial cartilage."""
FEMORAL_OSTEOPHYTES_MM: tuple[Triple, ...] = (
    (-37, -6, 14),
    (-35, 12, 17),
    (37, -6, 14),
    (35, 12, 17),
    (-22, -35, 30),
)
TIBIAL_OSTEOPHYTES_MM: tuple[Triple, ...] = (
    (-39, -8, -6),
    (-33, 8, -6),
    (39, -8, -6),
    (33, 8, -6),
    (-20, -30, -6),
)


@dataclass(frozen=True)
class Joint:
    """Distances to bone and thickness of cartilage (mm), and positions in each bone, all (D,H,W)."""

    femur_mm: FloatArray
    tibia_mm: FloatArray
    femoral_mm: FloatArray
    medial_mm: FloatArray
    lateral_mm: FloatArray
    femur_points: Points
    tibia_points: Points


def shape_joint(points: Points, *, nuisance: Nuisance, disease: Disease) -> Joint:
    """Shape both bones, with the joint space that the cartilage left over keeps open."""
    build = nuisance.build
    gaps = {
        "medial": (build.femoral_mm + build.medial_mm) * disease.medial_left + build.fluid_gap_mm,
        "lateral": (build.femoral_mm + build.lateral_mm) * disease.lateral_left + build.fluid_gap_mm,
    }
    middle, tilt = sum(gaps.values()) / 2, (gaps["lateral"] - gaps["medial"]) / (2 * CONDYLE_X_MM)
    half_gap = np.float32(0.5) * (np.float32(middle) + np.float32(tilt) * points.x)
    x = points.x / np.float32(build.bone_width)
    femur = bend(
        Points(x, points.y, points.z - half_gap),
        angle_degrees=nuisance.pose.flexion_degrees,
        hinge_mm=HINGE_MM,
    )
    tibia = Points(x, points.y, points.z + half_gap)
    return Joint(
        femur_mm=femur_distance(femur, build=build, disease=disease),
        tibia_mm=tibia_distance(tibia, disease=disease),
        femoral_mm=femoral_thickness(femur, build=build, disease=disease),
        medial_mm=tibial_thickness(tibia, side="medial", thickness_mm=build.medial_mm * disease.medial_left),
        lateral_mm=tibial_thickness(
            tibia, side="lateral", thickness_mm=build.lateral_mm * disease.lateral_left
        ),
        femur_points=femur,
        tibia_points=tibia,
    )


def femur_distance(points: Points, *, build: Build, disease: Disease) -> FloatArray:
    """Signed distance (D,H,W) to the femur: two condyles, trochlea, shaft, osteophytes."""
    depth = 29.0 * build.condyle_depth
    medial = ellipsoid_distance(points, center_mm=(-CONDYLE_X_MM, -7, 24), radii_mm=(16, depth, 24))
    lateral = ellipsoid_distance(points, center_mm=(CONDYLE_X_MM, -6, 24), radii_mm=(16, depth, 24))
    trochlea = ellipsoid_distance(points, center_mm=(0, 5, 28), radii_mm=(28, 19, 17))
    body = smooth_union(np.minimum(medial, lateral), trochlea, blend_mm=5)
    body = smooth_union(body, _femoral_shaft(points), blend_mm=8)
    sizes = disease.osteophytes_mm[: len(FEMORAL_OSTEOPHYTES_MM)]
    return add_bumps(body, points, centers_mm=FEMORAL_OSTEOPHYTES_MM, sizes_mm=sizes)


def _femoral_shaft(points: Points) -> FloatArray:
    share = ramp(points.z, start=22, stop=68)
    radius_x, radius_y = 34 - 18 * share, 21 - 6 * share
    wall = (np.sqrt((points.x / radius_x) ** 2 + ((points.y + 3) / radius_y) ** 2) - 1) * radius_y
    return smooth_cut(wall, 26 - points.z, blend_mm=6)


def tibia_distance(points: Points, *, disease: Disease) -> FloatArray:
    """Signed distance (D,H,W) to the tibia: plateau with eminence, tapering shaft, osteophytes."""
    share = ramp(points.z, start=-4, stop=-50)
    radius_x, radius_y = 39 - 19 * share, 26 - 8 * share
    y = points.y + 6 - 3 * share
    wall = (np.sqrt(np.sqrt((points.x / radius_x) ** 4 + (y / radius_y) ** 4)) - 1) * radius_y
    body = smooth_cut(wall, points.z - plateau_height(points), blend_mm=4)
    sizes = disease.osteophytes_mm[len(FEMORAL_OSTEOPHYTES_MM) :]
    return add_bumps(body, points, centers_mm=TIBIAL_OSTEOPHYTES_MM, sizes_mm=sizes)


def plateau_height(points: Points) -> FloatArray:
    """Height (D,H,W) in mm of the tibial surface: two shallow dishes and the eminence between them."""
    dish = ((np.abs(points.x) - CONDYLE_X_MM) / 15) ** 2 * np.float32(1.2)
    bowl = ((points.y + 7) / 20) ** 2 * np.float32(1.0)
    eminence = 8 * np.exp(-((points.x / 6) ** 2) - ((points.y + 7) / 10) ** 2)
    return np.minimum(dish + bowl, 2.5) + eminence


def add_bumps(
    body_mm: FloatArray, points: Points, *, centers_mm: tuple[Triple, ...], sizes_mm: FloatArray
) -> FloatArray:
    """Grow osteophytes: spheres at the margin, none where the size is zero."""
    for center, size in zip(centers_mm, sizes_mm, strict=True):
        if size > 0:
            offset = [axis - np.float32(value) for axis, value in zip(points, center, strict=True)]
            bump = np.sqrt(offset[0] ** 2 + offset[1] ** 2 + offset[2] ** 2) - size
            body_mm = smooth_union(body_mm, bump, blend_mm=2)
    return body_mm


def femoral_thickness(points: Points, *, build: Build, disease: Disease) -> FloatArray:
    """Thickness (D,H,W) in mm of femoral cartilage: most is lost where the knee bears weight."""
    angle = np.degrees(np.arctan2(points.y - HINGE_MM[0], HINGE_MM[1] - points.z)).astype(np.float32)
    articular = ramp(angle, start=-118, stop=-92) * ramp(angle, start=112, stop=92)
    width = ramp(np.abs(points.x), start=38, stop=33)
    notch = np.maximum(ramp(np.abs(points.x), start=5, stop=10), ramp(angle, start=25, stop=45))
    medial = ramp(points.x, start=6, stop=-6)
    lost = (1 - disease.medial_left) * medial + (1 - disease.lateral_left) * (1 - medial)
    bearing = np.exp(-(((angle - 5) / 55) ** 2))
    left = 1 - lost * (np.float32(0.3) + np.float32(0.7) * bearing)
    return np.float32(build.femoral_mm) * left * articular * width * notch


def tibial_thickness(points: Points, *, side: str, thickness_mm: float) -> FloatArray:
    """Thickness (D,H,W) in mm of one tibial cartilage: a dome over its part of the plateau."""
    radius = compartment_radius(points, side=side)
    upper = ramp(points.z, start=-5, stop=-2)
    return np.float32(thickness_mm) * ramp(radius, start=1.08, stop=0.7) * upper


def compartment_radius(points: Points, *, side: str) -> FloatArray:
    """Distance from the middle of a tibial compartment, 1 at its edge (D,H,W)."""
    sign, depth_mm = COMPARTMENTS[side]
    x, y = (
        (points.x - np.float32(sign * CONDYLE_X_MM)) / np.float32(15),
        (points.y + 7) / np.float32(depth_mm),
    )
    return np.sqrt(x * x + y * y)
