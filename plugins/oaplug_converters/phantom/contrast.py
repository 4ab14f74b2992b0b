"""Paint tissues with partial volume, then what the scanner adds: bias, noise, gain."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from oaplug_converters.phantom.disease import Disease
from oaplug_converters.phantom.geometry import (
    FloatArray,
    Points,
    Triple,
    coverage,
    ellipsoid_distance,
    ramp,
    rod_distance,
)
from oaplug_converters.phantom.nuisance import Acquisition, Build, Nuisance, Tissue
from oaplug_converters.phantom.shapes import (
    CONDYLE_X_MM,
    Joint,
    compartment_radius,
    plateau_height,
)

POCKETS_MM: tuple[tuple[Triple, Triple], ...] = (
    ((-43, 2, 4), (1, 2, 2)),
    ((43, 2, 4), (1, 2, 2)),
    ((-41, -16, 2), (1, 1.6, 1.6)),
    ((41, -16, 2), (1, 1.6, 1.6)),
    ((-20, -36, -2), (1.6, 1, 1.6)),
    ((20, -36, -2), (1.6, 1, 1.6)),
    ((-20, 25, -2), (1.8, 1, 1.4)),
    ((20, 25, -2), (1.8, 1, 1.4)),
)
"""Where fluid gathers around the joint: centre, and how far it reaches along x, y, z relative to its size."""

Painting = tuple[FloatArray, FloatArray | float]
"""A signed distance (D,H,W) in mm, and the signal inside it (D,H,W) or the same everywhere."""


class _Bone(NamedTuple):
    """A bone to paint, all (D,H,W): signed distance and cartilage thickness in mm, signal of the marrow."""

    distance_mm: FloatArray
    cartilage_mm: FloatArray
    marrow: FloatArray


def paint_knee(
    points: Points, joint: Joint, *, nuisance: Nuisance, disease: Disease, width_mm: float
) -> FloatArray:
    """Noise-free signal (D,H,W); later tissues lie over earlier ones, voxels of `width_mm` are shared."""
    build, tissue = nuisance.build, nuisance.tissue
    image = np.zeros_like(points.x)
    for distance, signal in [
        *_leg(points, build=build, tissue=tissue),
        *_soft_tissue(points, build=build, tissue=tissue),
        *_pockets(points, build=build, tissue=tissue),
        *_inside_joint(joint, tissue=tissue),
    ]:
        share = coverage(distance, width_mm=width_mm)
        image += share * (np.float32(signal) - image)
    femur = _Bone(
        joint.femur_mm, joint.femoral_mm, _femoral_marrow(joint, nuisance=nuisance, disease=disease)
    )
    tibial_mm = np.maximum(joint.medial_mm, joint.lateral_mm)
    tibia = _Bone(joint.tibia_mm, tibial_mm, _tibial_marrow(joint, nuisance=nuisance, disease=disease))
    tibial = np.where(
        joint.tibia_points.x < 0, *np.float32((tissue.medial_cartilage, tissue.lateral_cartilage))
    )
    femoral = np.float32(tissue.femoral_cartilage)
    image = _cover(
        image, femur, cartilage=femoral, cortex=tissue.cortex, cortex_mm=build.cortex_mm, width_mm=width_mm
    )
    return _cover(
        image, tibia, cartilage=tibial, cortex=tissue.cortex, cortex_mm=build.cortex_mm, width_mm=width_mm
    )


def _leg(points: Points, *, build: Build, tissue: Tissue) -> list[Painting]:
    """Skin, fat, and the muscles above and below the joint."""
    radius_x, radius_y = build.leg_radii_mm
    reach = np.sqrt((points.x / radius_x) ** 2 + ((points.y + 4) / radius_y) ** 2)
    outline = (reach - 1) * np.float32(min(radius_x, radius_y))
    inside = outline + np.float32(build.fat_mm)
    bellies = [
        ((-18, -42, -38), (20, 18, 48)),
        ((18, -42, -38), (19, 18, 46)),
        ((-30, -36, 56), (20, 20, 52)),
        ((30, -38, 56), (18, 18, 52)),
        ((-38, 8, 62), (20, 30, 40)),
        ((38, 10, 66), (20, 30, 40)),
        ((0, -30, 76), (30, 20, 34)),
        ((0, 30, 92), (36, 18, 28)),
        ((28, 4, -60), (22, 24, 44)),
    ]
    muscles: list[Painting] = []
    for center, radii in bellies:
        x, y, z = (radius * build.muscle for radius in radii)
        belly = ellipsoid_distance(points, center_mm=center, radii_mm=(x, y, z))
        muscles.append((np.maximum(belly, inside), tissue.muscle))
    return [(outline, tissue.skin), (outline + np.float32(1.6), tissue.fat), *muscles]


def _soft_tissue(points: Points, *, build: Build, tissue: Tissue) -> list[Painting]:
    """Vessels, effusion, popliteal cyst, patella with cartilage, tendons, fibula, cruciate ligaments."""
    x, y, z = build.patella_mm
    effusion = ellipsoid_distance(points, center_mm=(0, 27, 56), radii_mm=(24, build.effusion_mm, 20))
    cyst = ellipsoid_distance(points, center_mm=(-20, -42, 4), radii_mm=(max(build.cyst_mm, 0.5),) * 3)
    patella = ellipsoid_distance(points, center_mm=(2, 38, 38), radii_mm=(x, y, z))
    behind = np.maximum(patella - np.float32(2.5), points.y - 38)
    return [
        (rod_distance(points, start_mm=(2, -48, -80), end_mm=(0, -40, 80), radius_mm=4), 0.8 * tissue.fluid),
        (effusion, tissue.fluid),
        (cyst if build.cyst_mm > 0 else np.full_like(cyst, 99), tissue.fluid),
        (behind, tissue.femoral_cartilage),
        (rod_distance(points, start_mm=(2, 44, 30), end_mm=(2, 27, -32), radius_mm=3), tissue.meniscus),
        (rod_distance(points, start_mm=(2, 44, 46), end_mm=(2, 34, 90), radius_mm=3.5), tissue.meniscus),
        (patella, tissue.cortex),
        (patella + np.float32(build.cortex_mm), tissue.marrow),
        (rod_distance(points, start_mm=(36, -24, -20), end_mm=(32, -24, -90), radius_mm=7), tissue.cortex),
        (rod_distance(points, start_mm=(36, -24, -20), end_mm=(32, -24, -90), radius_mm=5.5), tissue.marrow),
        (
            rod_distance(points, start_mm=(6, -22, 22), end_mm=(-2, 4, 4), radius_mm=3.5),
            1.5 * tissue.meniscus,
        ),
        (rod_distance(points, start_mm=(-6, -4, 14), end_mm=(0, -30, -4), radius_mm=4), tissue.meniscus),
    ]


def _pockets(points: Points, *, build: Build, tissue: Tissue) -> list[Painting]:
    """Fluid beside the joint, of sizes that owe nothing to its severity."""
    return [
        (
            ellipsoid_distance(
                points, center_mm=center, radii_mm=(x * float(size), y * float(size), z * float(size))
            ),
            0.85 * tissue.fluid,
        )
        for (center, (x, y, z)), size in zip(POCKETS_MM, build.pockets_mm, strict=True)
        if size > 0
    ]


def _inside_joint(joint: Joint, *, tissue: Tissue) -> list[Painting]:
    """Fluid between the bones and the two menisci, which are wedges open to the middle."""
    film = np.maximum(joint.femur_mm, joint.tibia_mm) - np.float32(6)
    height = joint.tibia_points.z - plateau_height(joint.tibia_points)
    wedges: list[Painting] = []
    for side in ("medial", "lateral"):
        radius = compartment_radius(joint.tibia_points, side=side)
        top = height - 11 * np.maximum(radius - np.float32(0.5), 0)
        body = np.maximum(np.maximum(top, -2 - height), (radius - np.float32(1.12)) * 15)
        wedges.append((body, tissue.meniscus))
    signal = np.where(joint.tibia_points.x < 0, *np.float32(tissue.film))
    return [(film, signal), *wedges]


def _femoral_marrow(joint: Joint, *, nuisance: Nuisance, disease: Disease) -> FloatArray:
    """Signal (D,H,W) of femoral marrow: sclerosis and two lesions above the medial bearing surface."""
    points, depth = joint.femur_points, -joint.femur_mm
    bearing = ramp(points.x, start=-8, stop=-16) * ramp(np.abs(points.y + 4), start=20, stop=10)
    marrow = _harden(
        nuisance.tissue, depth_mm=depth, share=bearing * (points.z < 20), extent_mm=0.7 * disease.sclerosis_mm
    )
    return _add_lesions(marrow, points, sites=(2, 3), height_mm=8.0, nuisance=nuisance, disease=disease)


def _tibial_marrow(joint: Joint, *, nuisance: Nuisance, disease: Disease) -> FloatArray:
    """Signal (D,H,W) of tibial marrow: sclerosis and two lesions under the medial plateau."""
    points, depth = joint.tibia_points, -joint.tibia_mm
    bearing = ramp(points.x, start=-5, stop=-13) * ramp(np.abs(points.y + 6), start=24, stop=14)
    marrow = _harden(
        nuisance.tissue, depth_mm=depth, share=bearing * (points.z > -15), extent_mm=disease.sclerosis_mm
    )
    return _add_lesions(marrow, points, sites=(0, 1), height_mm=-8.0, nuisance=nuisance, disease=disease)


def _harden(tissue: Tissue, *, depth_mm: FloatArray, share: FloatArray, extent_mm: float) -> FloatArray:
    """Darken marrow (D,H,W) down to `extent_mm` below the cortex where `share` is one."""
    band = (
        ramp(depth_mm, start=extent_mm + 3, stop=extent_mm + 1)
        * share
        * np.float32(min(extent_mm / 1.0, 1.0))
    )
    return np.float32(tissue.marrow) + band * np.float32(0.8 * (tissue.cortex - tissue.marrow))


def _add_lesions(
    marrow: FloatArray,
    points: Points,
    *,
    sites: tuple[int, ...],
    height_mm: float,
    nuisance: Nuisance,
    disease: Disease,
) -> FloatArray:
    """Brighten spots of the marrow (D,H,W), `height_mm` from the joint surface."""
    for site in sites:
        size = float(disease.lesions_mm[site])
        if size > 0:
            shift_x, shift_y = nuisance.response.lesion_offset_mm[site]
            center = (-CONDYLE_X_MM + float(shift_x), -6 + float(shift_y), height_mm)
            offset = [axis - np.float32(value) for axis, value in zip(points, center, strict=True)]
            squared = (offset[0] ** 2 + offset[1] ** 2 + offset[2] ** 2) / np.float32(size**2)
            marrow = marrow + np.exp(-squared) * (np.float32(0.8 * nuisance.tissue.fluid) - marrow)
    return marrow


def _cover(
    image: FloatArray,
    bone: _Bone,
    *,
    cartilage: FloatArray | np.float32,
    cortex: float,
    cortex_mm: float,
    width_mm: float,
) -> FloatArray:
    """Lay a bone and its cartilage over the image; shares of a voxel add up, so thin layers stay thin."""
    outer = coverage(bone.distance_mm - bone.cartilage_mm, width_mm=width_mm)
    whole = coverage(bone.distance_mm, width_mm=width_mm)
    inner = coverage(bone.distance_mm + np.float32(cortex_mm), width_mm=width_mm)
    return (
        (1 - outer) * image
        + (outer - whole) * cartilage
        + (whole - inner) * np.float32(cortex)
        + inner * bone.marrow
    )


def acquire(
    signal: FloatArray,
    *,
    log_bias: FloatArray,
    texture: FloatArray,
    acquisition: Acquisition,
    rng: np.random.Generator,
) -> FloatArray:
    """What the scanner makes of the signal (D,H,W): texture, bias, contrast, Rician noise and gain."""
    clean = np.power(np.maximum(signal, 0), np.float32(acquisition.contrast_power))
    clean *= (1 + np.float32(acquisition.texture_strength) * texture) * np.exp(log_bias)
    noise = np.float32(acquisition.noise_std)
    real = clean + noise * rng.standard_normal(clean.shape, dtype=np.float32)
    imaginary = noise * rng.standard_normal(clean.shape, dtype=np.float32)
    return np.float32(acquisition.gain) * np.sqrt(real * real + imaginary * imaginary)
