"""Files of a source into a dataset: hard links, copies or members of zips, whole or not at all."""

from __future__ import annotations

import gzip
import os
import shutil
import stat
import time
import zipfile
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from oaplug.core.artifacts import atomic_link, atomic_path, make_folder
from oaplug.core.errors import DatasetError

if TYPE_CHECKING:
    from pathlib import Path

_SECONDS_APART = 2.0
"""Times of change of a file and its copy differ by less: zips and some file systems count in these steps."""
_LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True, kw_only=True)
class SourceFile:
    """A file of a source: `path`, or `member` of the zip at `path`."""

    path: Path
    member: str = ""

    def __str__(self) -> str:
        return f"{self.path}:{self.member}" if self.member else str(self.path)


def place_file(source: SourceFile, target: Path, *, copy: bool) -> None:
    """Bring a file to `target`, unless it is there already; never changes the source.

    Without `copy` it becomes a hard link where the file system has them. Raises DatasetError where a zip is
    damaged.
    """
    make_folder(target.parent)
    if source.member:
        _unzip(source, target)
        return
    found = source.path.stat()
    if _is_like(target, size=found.st_size, changed=found.st_mtime):
        return
    if copy or not atomic_link(source.path, target):
        _copy(source.path, target)


def _is_like(target: Path, *, size: int, changed: float) -> bool:
    """Whether `target` is there with this size and time of change: the same file, or a copy of it."""
    if not target.is_file():
        return False
    found = target.stat()
    return found.st_size == size and abs(found.st_mtime - changed) < _SECONDS_APART


def _copy(source: Path, target: Path) -> None:
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)
        os.utime(temporary, ns=(source.stat().st_atime_ns, source.stat().st_mtime_ns))


def _unzip(source: SourceFile, target: Path) -> None:
    """Write a member of a zip; its checksum is verified before `target` appears."""
    try:
        with zipfile.ZipFile(source.path) as archive:
            member = archive.getinfo(source.member)
            changed = time.mktime((*member.date_time, 0, 0, -1))
            if _is_like(target, size=member.file_size, changed=changed):
                return
            with atomic_path(target) as temporary:
                with archive.open(member) as packed, temporary.open("wb") as file:
                    shutil.copyfileobj(packed, file, 1 << 20)
                os.utime(temporary, (changed, changed))
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        RuntimeError,
        NotImplementedError,
        ValueError,
    ) as failure:
        raise DatasetError(f"{source}: cannot be unpacked ({failure}); download the zip again") from None


def members_of(path: Path) -> list[str]:
    """Names of the files in a zip.

    Raises DatasetError where it is damaged, or a member would be unpacked outside of the folder.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError) as failure:
        raise DatasetError(f"{path}: {why_unreadable(path) or failure}; download it again") from None
    for member in members:
        parts = member.filename.replace("\\", "/").split("/")
        if ".." in parts or not parts[0] or ":" in parts[0]:
            raise DatasetError(
                f"{path}: the member {member.filename!r} lies outside of the folder it is unpacked into; "
                "get the zip from its owner again"
            )
    return [m.filename for m in members if not m.is_dir() and not stat.S_ISLNK(m.external_attr >> 16)]


def why_unreadable(path: Path) -> str:
    """Why a file that was downloaded is none of what it should be; blank where that is not known."""
    with path.open("rb") as file:
        start = file.read(len(_LFS_POINTER))
    if start == _LFS_POINTER:
        return "is a pointer of Git LFS, not the file; run git lfs pull in its folder"
    if not start:
        return "is empty"
    return "is damaged or not whole" if path.suffix == ".zip" else ""


def image_problem(path: Path) -> str:
    """Why a file is no image that can be used, judged by its header; blank where it is one."""
    import SimpleITK as sitk

    sitk.ProcessObject_SetGlobalWarningDisplay(False)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        if _is_second_nifti(path):
            return ""
        return f"{why_unreadable(path) or 'cannot be read as an image'}; get the file again"
    if reader.GetDimension() != 3:
        return f"expected a 3D image, got {reader.GetDimension()}D; save one 3D file per channel"
    return ""


def _is_second_nifti(path: Path) -> bool:
    """Whether a file is NIfTI-2, which oaplug reads and SimpleITK does not."""
    if not path.name.lower().endswith((".nii", ".nii.gz")):
        return False
    try:
        with gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb") as file:
            return file.read(8)[4:] == b"n+2\0"
    except (OSError, EOFError, zlib.error):
        return False


def read_image(path: Path) -> Any:
    """An image of SimpleITK; raises DatasetError where it cannot be read."""
    import SimpleITK as sitk

    try:
        return sitk.ReadImage(str(path))
    except RuntimeError:
        raise DatasetError(f"{path}: cannot be read as an image; get the file again") from None


def write_image(image: Any, path: Path) -> None:
    """Write voxels and grid of an image of SimpleITK, and nothing of what else it says of its origin."""
    import SimpleITK as sitk

    for key in image.GetMetaDataKeys():
        image.EraseMetaData(key)
    sitk.WriteImage(image, str(path), useCompression=True)
