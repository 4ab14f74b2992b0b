"""The contract of a converter."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from oaplug.core.converter import ConversionRecord, RawFolder
from oaplug.core.dataset import read_dataset
from oaplug.core.errors import OaplugError
from oaplug.plug.registry import parse_options
from oaplug.prepare.integrity import verify_dataset
from oaplug.testing.checks import check_import, check_options, one_line, require
from oaplug.testing.surroundings import left_alone, own_folder

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from oaplug.core.dataset import Dataset
    from oaplug.plug.specs import ConverterSpec

NAME = "Dataset999_Contract"


def check_converter(
    spec: ConverterSpec,
    source: Path | Callable[[Path], Path] | None,
    options: Mapping[str, Any] | None = None,
) -> None:
    """Check everything the engine relies on in a converter.

    Args:
        spec: the converter.
        source: a small source that it converts, as its owner would send it; or a function that writes one
            into the folder it is given, and gives its path; None for a converter that reads no source.
        options: its options (default: its own).

    Raises:
        AssertionError: saying what to change.
    """
    check_import(spec)
    check_options(spec, options)
    with TemporaryDirectory(prefix="oaplug-source-") as place:
        folder = Path(place).resolve() / "source"
        folder.mkdir()
        given = source(folder) if callable(source) else source
        require(given is None or given.exists(), spec, f"there is no source {given} to check it with")
        before = _listing(given)
        with own_folder(spec, NAME) as target:
            record = _convert(spec, options, source=given or folder, target=target)
            _check_dataset(record, target, spec)
        require(_listing(given) == before, spec, f"it changed its source {given}; only read there")
        if given is not None:
            _check_refusals(spec, options, place=Path(place).resolve(), is_file=given.is_file())


def _listing(source: Path | None) -> dict[str, tuple[int, int]]:
    """Size and time of change of every file of a source."""
    if source is None:
        return {}
    files = [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in files}


def _convert(
    spec: ConverterSpec, options: Mapping[str, Any] | None, *, source: Path, target: Path
) -> ConversionRecord:
    with left_alone(spec, "convert"):
        record = spec.build(parse_options(spec, options)).convert(source, RawFolder(target))
    require(
        isinstance(record, ConversionRecord),
        spec,
        f"convert gave {type(record).__name__}; give oaplug.core.converter.ConversionRecord",
    )
    return record


def _check_dataset(record: ConversionRecord, folder: Path, spec: ConverterSpec) -> None:
    """What was written is a dataset in which the integrity check finds nothing, and is recorded rightly."""
    require(
        (folder / "dataset.json").is_file(),
        spec,
        "it wrote no dataset.json; call dataset.write_tables(description, cases) at the end",
    )
    dataset = read_dataset(folder)
    _check_problems(dataset, spec)
    require(
        (folder / "cases.csv").is_file() or not dataset.description.targets,
        spec,
        "it wrote no cases.csv; call dataset.write_tables(description, cases) at the end",
    )
    require(
        record.cases == len(dataset.cases),
        spec,
        f"its record counts {record.cases} cases, but it wrote {len(dataset.cases)}; count what was written",
    )
    require(bool(dataset.of_split("train")), spec, "it wrote no training case; give some cases split='train'")
    _check_record(record, spec)


def _check_problems(dataset: Dataset, spec: ConverterSpec) -> None:
    problems = verify_dataset(dataset, processes=1)
    shown = "; ".join(str(problem) for problem in problems[:3])
    require(
        not problems,
        spec,
        f"the integrity check finds {len(problems)} problems in what it wrote: {shown}",
    )


def _check_record(record: ConversionRecord, spec: ConverterSpec) -> None:
    off = [
        entry
        for entry in record.excluded
        if len(entry) != 2 or not all(isinstance(text, str) and text.strip() for text in entry)
    ]
    require(not off, spec, f"its record leaves out {off}; name the case and say why, as (name, reason)")
    texts = all(isinstance(note, str) and note.strip() for note in record.notes)
    require(texts, spec, f"its record has the notes {record.notes}; give sentences")


def _check_refusals(
    spec: ConverterSpec, options: Mapping[str, Any] | None, *, place: Path, is_file: bool
) -> None:
    """A source that is missing or empty is a user's mistake: one clear line that names it."""
    empty = place / "empty_source"
    if is_file:
        empty.touch()
    else:
        empty.mkdir()
    for source, what in ((place / "missing_source", "missing"), (empty, "empty")):
        with own_folder(spec, NAME) as target:
            message = _refusal(spec, options, source=source, target=target, what=what)
        require(
            source.name in message,
            spec,
            f"it refuses a source that is {what} without naming it ({message!r}); put its path into the "
            "message",
        )


def _refusal(
    spec: ConverterSpec, options: Mapping[str, Any] | None, *, source: Path, target: Path, what: str
) -> str:
    """The message with which a source is refused."""
    advice = "raise oaplug.core.errors.DatasetError naming it and what was expected"
    try:
        _convert(spec, options, source=source, target=target)
    except OaplugError as failure:
        return str(failure)
    except AssertionError:
        raise
    except (Exception, SystemExit) as failure:
        raise AssertionError(
            f"converter {spec.name}: a source that is {what} gives {one_line(failure)}; {advice}"
        ) from failure
    raise AssertionError(f"converter {spec.name}: it converts a source that is {what}; {advice}")
