"""What differs between knees for reasons other than disease: drawn first, applied elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from oaplug_converters.phantom.geometry import FloatArray, Triple

WARP_TERMS = (4, 4, 4)
BIAS_TERMS = (3, 3, 3)
TEXTURE_TERMS = (12, 20, 20)
OSTEOPHYTE_SITES = 10
LESION_SITES = 4
POCKET_SITES = 8


@dataclass(frozen=True, kw_only=True)
class Pose:
    """How the knee lies in the scanner, and a smooth warp of the whole leg (3, 4, 4, 4) in mm."""

    rotation_degrees: Triple
    translation_mm: Triple
    scale: float
    flexion_degrees: float
    warp_mm: FloatArray


@dataclass(frozen=True, kw_only=True)
class Build:
    """Proportions of bones, cartilage and soft tissue of one person."""

    bone_width: float
    condyle_depth: float
    femoral_mm: float
    medial_mm: float
    lateral_mm: float
    fluid_gap_mm: float
    leg_radii_mm: tuple[float, float]
    fat_mm: float
    muscle: float
    effusion_mm: float
    cyst_mm: float
    pockets_mm: FloatArray
    cortex_mm: float
    patella_mm: Triple


@dataclass(frozen=True, kw_only=True)
class Response:
    """How one person's knee expresses disease: relative strengths (one per site) and where the spots lie."""

    loss: float
    osteophytes: FloatArray
    sclerosis: float
    lesions: FloatArray
    lesion_offset_mm: FloatArray


@dataclass(frozen=True, kw_only=True)
class Tissue:
    """Signal of each tissue in water-excited DESS, where typical fluid is 1; film: medial and lateral."""

    fluid: float
    film: tuple[float, float]
    femoral_cartilage: float
    medial_cartilage: float
    lateral_cartilage: float
    muscle: float
    fat: float
    marrow: float
    cortex: float
    meniscus: float
    skin: float


@dataclass(frozen=True, kw_only=True)
class Acquisition:
    """Coil sensitivity (log bias), texture, noise, blur and gain of one scan."""

    log_bias: FloatArray
    texture: FloatArray
    texture_strength: float
    noise_std: float
    contrast_power: float
    gain: float


@dataclass(frozen=True, kw_only=True)
class Nuisance:
    """Everything about one knee that says nothing about its grade."""

    pose: Pose
    build: Build
    response: Response
    tissue: Tissue
    acquisition: Acquisition


def draw_nuisance(rng: np.random.Generator) -> Nuisance:
    """Draw one knee's nuisance; the number of draws never depends on severity."""
    return Nuisance(
        pose=_draw_pose(rng),
        build=_draw_build(rng),
        response=_draw_response(rng),
        tissue=_draw_tissue(rng),
        acquisition=_draw_acquisition(rng),
    )


def _triple(values: np.ndarray) -> Triple:
    return float(values[0]), float(values[1]), float(values[2])


def _coefficients(rng: np.random.Generator, *, terms: tuple[int, ...], decay: float) -> FloatArray:
    """Random cosine coefficients (terms), falling with frequency; the field has mean 0 and std 1."""
    order = np.sqrt(sum(index.astype(float) ** 2 for index in np.indices(terms)))
    strength = np.where(order > 0, 1 / np.maximum(order, 1) ** decay, 0)
    # a cosine has mean square 1/2 along every axis on which it varies
    spread = np.prod(np.where(np.indices(terms) > 0, 0.5, 1.0), axis=0)
    strength /= np.sqrt((strength**2 * spread).sum())
    return (strength * rng.standard_normal(terms)).astype(np.float32)


def _draw_pose(rng: np.random.Generator) -> Pose:
    return Pose(
        rotation_degrees=_triple(rng.normal(0, (5.0, 5.0, 6.0))),
        translation_mm=_triple(rng.uniform(-1, 1, 3) * (8.0, 11.0, 14.0)),
        scale=float(rng.uniform(0.86, 1.1)),
        flexion_degrees=float(rng.uniform(-2, 14)),
        warp_mm=np.stack(
            [_coefficients(rng, terms=WARP_TERMS, decay=1.5) * np.float32(1.5) for _ in range(3)]
        ),
    )


def _draw_build(rng: np.random.Generator) -> Build:
    common = rng.normal(1, 0.05)
    return Build(
        bone_width=float(rng.uniform(0.94, 1.06)),
        condyle_depth=float(rng.uniform(0.94, 1.06)),
        femoral_mm=float(2.6 * common * rng.normal(1, 0.05)),
        medial_mm=float(2.7 * common * rng.normal(1, 0.05)),
        lateral_mm=float(3.1 * common * rng.normal(1, 0.05)),
        fluid_gap_mm=float(rng.uniform(0.2, 0.6)),
        leg_radii_mm=(float(rng.uniform(54, 68)), float(rng.uniform(58, 70))),
        fat_mm=float(rng.uniform(3, 16)),
        muscle=float(rng.uniform(0.7, 1.3)),
        effusion_mm=float(rng.uniform(1, 11)),
        cyst_mm=float(rng.uniform(-6, 11)),
        pockets_mm=np.maximum(rng.uniform(-3, 10, POCKET_SITES), 0).astype(np.float32),
        cortex_mm=float(rng.uniform(0.8, 1.6)),
        patella_mm=_triple((22.0, 11.0, 22.0) * rng.uniform(0.9, 1.1, 3)),
    )


def _draw_response(rng: np.random.Generator) -> Response:
    return Response(
        loss=float(rng.normal(1, 0.04)),
        osteophytes=rng.uniform(0.8, 1.2, OSTEOPHYTE_SITES).astype(np.float32),
        sclerosis=float(rng.uniform(0.7, 1.2)),
        lesions=rng.uniform(0.75, 1.2, LESION_SITES).astype(np.float32),
        lesion_offset_mm=rng.uniform(-8, 8, (LESION_SITES, 2)).astype(np.float32),
    )


def _draw_tissue(rng: np.random.Generator) -> Tissue:
    return Tissue(
        fluid=float(rng.uniform(0.85, 1.15)),
        film=(float(rng.uniform(0.25, 0.95)), float(rng.uniform(0.25, 0.95))),
        femoral_cartilage=float(rng.uniform(0.6, 0.85)),
        medial_cartilage=float(rng.uniform(0.6, 0.85)),
        lateral_cartilage=float(rng.uniform(0.6, 0.85)),
        muscle=float(rng.uniform(0.36, 0.52)),
        fat=float(rng.uniform(0.2, 0.42)),
        marrow=float(rng.uniform(0.18, 0.32)),
        cortex=float(rng.uniform(0.03, 0.08)),
        meniscus=float(rng.uniform(0.08, 0.16)),
        skin=float(rng.uniform(0.4, 0.7)),
    )


def _draw_acquisition(rng: np.random.Generator) -> Acquisition:
    return Acquisition(
        log_bias=_coefficients(rng, terms=BIAS_TERMS, decay=1.0) * np.float32(rng.uniform(0.05, 0.2)),
        texture=_coefficients(rng, terms=TEXTURE_TERMS, decay=1.5),
        texture_strength=float(rng.uniform(0.06, 0.2)),
        noise_std=float(rng.uniform(0.01, 0.03)),
        contrast_power=float(rng.uniform(0.85, 1.2)),
        gain=float(np.exp(rng.normal(np.log(300.0), 0.3))),
    )
