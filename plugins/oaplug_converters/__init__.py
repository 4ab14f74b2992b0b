"""Converters that turn sources of knees into raw datasets of oaplug."""

from __future__ import annotations

from typing import TYPE_CHECKING

from oaplug.plug import ConverterSpec, hookimpl
from oaplug_converters.options import DicomOptions, OaizibOptions, PhantomOptions, TableOptions

if TYPE_CHECKING:
    from oaplug.plug.protocols import Converter


def _build_phantom(options: PhantomOptions) -> Converter:
    from oaplug_converters.phantom.converter import PhantomConverter

    return PhantomConverter(options)


def _build_oaizib_cm(options: OaizibOptions) -> Converter:
    from oaplug_converters.oaizib_cm import OaizibConverter

    return OaizibConverter(options)


def _build_table(options: TableOptions) -> Converter:
    from oaplug_converters.table import TableConverter

    return TableConverter(options)


def _build_dicom(options: DicomOptions) -> Converter:
    from oaplug_converters.dicom import DicomConverter

    return DicomConverter(options)


@hookimpl
def oaplug_converters() -> list[ConverterSpec]:
    """The converters of this package."""
    return [
        ConverterSpec(
            name="phantom",
            summary="parametric knees with a known severity (also oaplug_make_phantom); reads no source",
            build=_build_phantom,
            options=PhantomOptions,
        ),
        ConverterSpec(
            name="oaizib_cm",
            summary="OAIZIB-CM as its hub ships it: zips or unpacked folders, XLSX or CSV tables",
            build=_build_oaizib_cm,
            options=OaizibOptions,
            reference="Yao et al., CartiMorph; masks after Ambellan et al., Med Image Anal 52 (2019)",
        ),
        ConverterSpec(
            name="table",
            summary="a folder of images and a CSV or XLSX table, with a mapping of its columns",
            build=_build_table,
            options=TableOptions,
        ),
        ConverterSpec(
            name="dicom",
            summary="a folder tree of DICOM series and a CSV or XLSX table",
            build=_build_dicom,
            options=DicomOptions,
        ),
    ]
