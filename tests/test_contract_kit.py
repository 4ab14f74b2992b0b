"""The contract kit for parts of all kinds: every part that is installed passes it, and one that breaks it is
told how; what plugin authors get from pytest."""

from __future__ import annotations

import importlib
import json
import os
import random
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import converter_sources
import numpy as np
import pytest
import torch
from documents import DOCS, code_blocks
from test_contracts import GoodEncoder, broken_head, encoder_spec

from oaplug.commands.plugin_checks import check_parts
from oaplug.core.converter import ConversionRecord
from oaplug.core.dataset import open_dataset, read_description
from oaplug.core.errors import DatasetError, PluginError
from oaplug.core.findings import Figure, Findings, Table
from oaplug.core.target import MISSING
from oaplug.plug import AnalysisSpec, BackboneSpec, CallbackSpec, ConverterSpec, HeadSpec
from oaplug.plug.registry import Part, registry
from oaplug.plug.specs import NEEDS
from oaplug.testing.analysis import only_with
from oaplug.testing.callback import RUN, toy_records
from oaplug.testing.contract import (
    check_analysis,
    check_backbone,
    check_callback,
    check_converter,
    check_head,
    check_part,
)
from oaplug.testing.part import find_part
from oaplug.testing.toy import BINARY, HIERARCHY, write_toy_dataset
from oaplug.testing.toy_study import TOY_STUDIES, toy_study

pytest_plugins = ["pytester"]

pytestmark = pytest.mark.slow

SOURCES = {
    "phantom": (None, {"cases": 4, "shape": [10, 16, 12]}),
    "oaizib_cm": (converter_sources.write_small_hub, {}),
    "table": (converter_sources.write_images_with_table, converter_sources.TABLE_OPTIONS),
    "dicom": (converter_sources.write_dicom_tree, converter_sources.DICOM_OPTIONS),
}
"""By converter a small source, or a function that writes one into a folder, and options."""
STUDIES = {}
"""By analysis studies that it can be checked with, where toy studies do not meet its needs."""
OPTIONS = {"severity_axis": {"shuffles": 20, "perplexity": 5}, "task_interference": {"batches": 2}}
"""By analysis options that make it quick."""
QUICK = {"with missing truths": lambda: toy_study(targets=BINARY, unknown=lambda name, case: case % 7 == 3)}
"""One study; all toy studies, and figures as they are drawn, are for the second stage of .ci/run."""


def specs(kind):
    return [pytest.param(part.spec, id=part.spec.name) for part in registry().of_kind(kind)]


@pytest.fixture
def figures_are_not_drawn(monkeypatch):
    """Rendering takes most of an analysis' time, and its own tests do it as well."""
    import matplotlib.figure

    def save(self, file, **_options):
        Path(file).write_bytes(PIXEL)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", save)


@pytest.mark.usefixtures("figures_are_not_drawn")
@pytest.mark.parametrize("spec", specs("analysis"))
def test_every_analysis_keeps_its_contract(spec):
    check_analysis(spec, OPTIONS.get(spec.name), studies=STUDIES.get(spec.name, QUICK))


@pytest.mark.slow
@pytest.mark.parametrize("spec", specs("analysis"))
def test_every_analysis_keeps_its_contract_on_all_studies(spec):
    check_analysis(spec, OPTIONS.get(spec.name), studies=STUDIES.get(spec.name))


@pytest.mark.parametrize("spec", specs("converter"))
def test_every_converter_keeps_its_contract(spec):
    source, options = SOURCES[spec.name]  # add a source where this fails
    check_converter(spec, source, options)


@pytest.mark.parametrize("spec", specs("callback"))
def test_every_callback_keeps_its_contract(spec, tmp_path):
    try:
        spec.build(spec.options(), folder=tmp_path)
    except PluginError as failure:
        pytest.skip(str(failure))
    check_callback(spec)


def test_every_kind_of_part_has_a_check():
    assert check_part(encoder_spec(GoodEncoder)) is True
    assert check_part(registry().spec(HeadSpec, "single")) is True
    assert check_part(analysis()) is True
    assert check_part(callback_spec(GoodCallback)) is True
    assert check_part(converter_spec(copy_dataset)) is False, "it takes a source"
    assert check_part(converter_spec(copy_dataset), given=write_toy) is True


def test_a_part_that_needs_another_package_or_a_source_is_not_checked_and_says_so():
    def build(options, *, folder):
        raise PluginError("mine needs another package; pip install it")

    specs = [CallbackSpec(name="mine", summary="", build=build), converter_spec(copy_dataset)]
    found = check_parts(Part(spec=spec, distribution="theirs", version="1") for spec in specs)
    assert [check["status"] for check in found] == ["not checked", "not checked"]
    assert found[0]["message"] == "mine needs another package; pip install it"
    assert "call oaplug.testing.contract.check_converter in a test" in found[1]["message"]


# ---------------------------------------------------------------- backbones and heads, beyond test_contracts


class SeedsItself(GoodEncoder):
    def __init__(self, options, **context):
        torch.manual_seed(42)
        super().__init__(options, **context)


class ChangesDtype(GoodEncoder):
    def __init__(self, options, **context):
        super().__init__(options, **context)
        torch.set_default_dtype(torch.float64)


class ChangesThreads(GoodEncoder):
    def __init__(self, options, **context):
        super().__init__(options, **context)
        torch.set_num_threads(torch.get_num_threads() + 1)


class SeedsNumpy(GoodEncoder):
    def __init__(self, options, **context):
        super().__init__(options, **context)
        np.random.seed(0)


class ChangesVolume(GoodEncoder):
    def forward(self, volume):
        return super().forward(volume.sub_(volume.mean()))


class FirstChannelOnly(GoodEncoder):
    def __init__(self, options, *, in_channels, input_size):
        super().__init__(options, in_channels=1, input_size=input_size)

    def forward(self, volume):
        return super().forward(volume[:, :1])


class MixesTypes(GoodEncoder):
    def forward(self, volume):
        features = super().forward(volume)
        rows = torch.arange(len(features))
        return torch.zeros(features.shape).index_add(0, rows, features)


class OverflowsInHalf(GoodEncoder):
    def forward(self, volume):
        return torch.log((1 + 1e-4 * super().forward(volume).sigmoid()) - 1)


@pytest.mark.parametrize(
    ("broken", "advice"),
    [
        (SeedsItself, "build seeds torch's global generator"),
        (ChangesDtype, "build changed torch's default dtype"),
        (ChangesThreads, "build changed torch's number of threads"),
        (SeedsNumpy, "build changed the state of numpy.random"),
        (ChangesVolume, "forward changed the volume"),
        (FirstChannelOnly, "take all in_channels in"),
        (MixesTypes, "forward failed under bfloat16 autocast"),
        (OverflowsInHalf, "not finite under bfloat16 autocast"),
    ],
)
def test_a_broken_encoder_is_told_what_to_change(broken, advice):
    state = np.random.get_state()[1].tobytes(), torch.get_default_dtype(), torch.get_num_threads()
    with pytest.raises(AssertionError, match=f"backbone mine: .*{advice}"):
        check_backbone(encoder_spec(broken))
    after = np.random.get_state()[1].tobytes(), torch.get_default_dtype(), torch.get_num_threads()
    assert after == state, "what it changed was put back"


@dataclass(frozen=True, kw_only=True)
class Heads:
    heads: int = 0


def build_with_heads(options, **context):
    if options.heads == 0:
        raise ZeroDivisionError("no heads")
    return GoodEncoder(options, **context)


def test_default_options_must_work_where_others_are_checked():
    with pytest.raises(AssertionError, match=r"with its default options it cannot be built .*no heads"):
        check_backbone(encoder_spec(build_with_heads, options=Heads), {"heads": 2})


def each_target_unmasked(kind):
    """Finite where nothing is known, but not where one target alone is unknown."""

    def loss(self, logits, truth):
        known = {name: truth.targets[name] != MISSING for name in logits}
        if not any(bool(where.any()) for where in known.values()):
            return {"total": 0 * sum(value.sum() for value in logits.values())}
        parts = kind.loss(self, logits, truth)
        counts = [where.sum() / where.sum() for where in known.values()]
        return {**parts, "total": parts["total"] * sum(counts) / len(counts)}

    return loss


def ignores_sizes_of_weights(kind):
    def loss(self, logits, truth):
        weights = truth.case_weights
        return kind.loss(
            self, logits, replace(truth, case_weights=None if weights is None else weights.sign())
        )

    return loss


def naive_logarithm(kind):
    def loss(self, logits, truth):
        rows = torch.softmax(logits["kl"], dim=1).gather(1, truth.targets["kl"].clamp(min=0)[:, None])[:, 0]
        weights = (truth.targets["kl"] != MISSING) * (
            torch.ones(len(rows)) if truth.case_weights is None else truth.case_weights
        )
        return {"total": -(rows.log() * weights).sum() / weights.sum().clamp(min=1e-9)}

    return loss


def nothing_for_bfloat16(kind):
    def loss(self, logits, truth):
        if any(value.dtype == torch.bfloat16 for value in logits.values()):
            raise RuntimeError("expected scalar type Float but found BFloat16")
        return kind.loss(self, logits, truth)

    return loss


@pytest.mark.parametrize(
    ("of", "methods", "advice"),
    [
        ("dual", {"loss": each_target_unmasked}, "where no label of 'kl' is known"),
        ("single", {"loss": ignores_sizes_of_weights}, "in proportion to their case_weights"),
        ("single", {"loss": naive_logarithm}, "with large logits the loss is inf"),
        ("single", {"loss": nothing_for_bfloat16}, "the loss failed under bfloat16 autocast"),
    ],
)
def test_a_broken_head_is_told_what_to_change(of, methods, advice):
    with pytest.raises(AssertionError, match=f"head mine: .*({advice})"):
        check_head(broken_head(of=of, **methods), HIERARCHY)


def weighted_by_counts(weights_of):
    spec = registry().spec(HeadSpec, "single")

    def build(options, *, grade_counts, **context):
        head = spec.build(options, grade_counts=grade_counts, **context)
        weights = weights_of(grade_counts)
        loss = type(head).loss
        methods = {"loss": lambda self, *a: {n: v * weights for n, v in loss(self, *a).items()}}
        head.__class__ = type("Weighted", (type(head),), methods)
        return head

    return replace(spec, name="mine", build=build)


@pytest.mark.parametrize(
    ("weights_of", "advice"),
    [
        (lambda counts: 1 / min(counts["kl"]), "a grade that never occurs in training"),
        (lambda counts: 1 / (1 + counts["kl"][0]), "it cannot be built with grade_counts={}"),
        (lambda counts: float(np.divide(1.0, counts["kl"][0] if counts else 1)), "its loss is inf"),
    ],
)
def test_a_head_must_be_built_with_any_grade_counts(weights_of, advice):
    with np.errstate(divide="ignore"), pytest.raises(AssertionError, match=f"head mine: .*{advice}"):
        check_head(weighted_by_counts(weights_of), HIERARCHY)


PLUGIN = """
import {library}
from oaplug.plug import CallbackSpec, hookimpl

def build(options, *, folder):
    raise NotImplementedError

@hookimpl
def oaplug_callbacks():
    return [CallbackSpec(name="mine", summary="", build=build)]
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Writes a plugin whose module imports a library, and gives the spec of its callback."""

    def write(name, library):
        (tmp_path / f"{name}.py").write_text(PLUGIN.format(library=library), encoding="utf-8")
        monkeypatch.syspath_prepend(tmp_path)
        return importlib.import_module(name).oaplug_callbacks()[0]

    return write


def test_a_plugin_whose_module_imports_a_slow_library_is_told(plugin):
    with pytest.raises(AssertionError, match=r"importing slow_plugin imports scipy.*inside build"):
        check_callback(plugin("slow_plugin", "scipy"))
    with pytest.raises(NotImplementedError):
        check_callback(plugin("quick_plugin", "json"))


def test_a_plugin_that_only_imports_after_others_is_told(plugin, monkeypatch):
    monkeypatch.setitem(sys.modules, "only_in_this_process", json)
    with pytest.raises(
        AssertionError, match=r"late_plugin cannot be imported in a new process.*ModuleNotFound"
    ):
        check_callback(plugin("late_plugin", "only_in_this_process"))


# ---------------------------------------------------------------- analyses


def pixel():
    """A PNG of one pixel, as matplotlib writes it."""
    from io import BytesIO

    from matplotlib.figure import Figure as Canvas

    buffer = BytesIO()
    Canvas(figsize=(0.01, 0.01), dpi=100).savefig(buffer, format="png")
    return buffer.getvalue()


PIXEL = pixel()


class GoodAnalysis:
    """Keeps the contract: mean probability of the predicted grade; what the tests below break."""

    caption = "Mean probability of the predicted grade."
    image, data = "sure.png", "sure.csv"

    def __init__(self, options):
        self.options = options

    def run(self, study, folder):
        rows = tuple(
            (model.name, name, self.measure(answers, study))
            for model in study.models
            for name, answers in model.predictions.targets.items()
        )
        self.write(folder, rows)
        return Findings(
            title="Sureness",
            summary=tuple(f"{m} on {t}: {v:.2f}." for m, t, v in rows),
            numbers={f"{model}.{target}": value for model, target, value in rows},
            tables=self.tables(rows),
            figures=(Figure(name="sure", caption=self.caption, image=self.image, data=self.data),),
        )

    def measure(self, answers, study):
        return float(answers.probabilities.max(axis=1).mean())

    def write(self, folder, rows):
        (folder / "sure.png").write_bytes(PIXEL)
        lines = ["model,target,probability", *(",".join(map(str, row)) for row in rows)]
        (folder / "sure.csv").write_text("\n".join(lines), encoding="utf-8")

    def tables(self, rows):
        columns = ("model", "target", "probability")
        return (Table(name="sure", caption=self.caption, columns=columns, rows=rows, data="sure.csv"),)


def analysis(_base=GoodAnalysis, **changed_members):
    """The spec of an analysis with some members of the good one replaced."""
    return AnalysisSpec(name="mine", summary="a toy", build=type("Mine", (_base,), changed_members))


def test_a_good_analysis_passes():
    check_analysis(analysis())
    no_findings = analysis(run=lambda self, study, folder: Findings(title="Nothing to say"))
    check_analysis(no_findings)


def only_known(self, answers, study):
    known = answers.truth != MISSING
    return float(answers.predicted[known].mean())


def raising_without_truths(self, answers, study):
    return sorted(answers.predicted[answers.truth != MISSING].tolist())[0]


def clipped_in_place(self, answers, study):
    answers.probabilities[:] = answers.probabilities.clip(0.2)
    return 1.0


def drawn_anew(self, answers, study):
    return float(np.random.default_rng().random())


def drawn_globally(self, answers, study):
    np.random.seed(0)
    return float(np.random.random())


def written_beside(self, folder, rows):
    GoodAnalysis.write(self, folder, rows)
    (folder.parent / "more.csv").write_text("a", encoding="utf-8")


def written_here(self, folder, rows):
    GoodAnalysis.write(self, folder, rows)
    Path("figure.png").write_bytes(PIXEL)


def left_half_written(self, folder, rows):
    GoodAnalysis.write(self, folder, rows)
    (folder / ".writing-x-sure.csv").touch()


def as_vector_graphics(self, folder, rows):
    GoodAnalysis.write(self, folder, rows)
    (folder / "sure.png").write_text("<svg/>", encoding="utf-8")


def table_of(**changes):
    return lambda self, rows: (replace(GoodAnalysis.tables(self, rows)[0], **changes),)


def twice(self, rows):
    return GoodAnalysis.tables(self, rows) * 2


def stops_at_failures(self, study, folder):
    try:
        return GoodAnalysis.run(self, study, folder)
    except Exception:
        sys.exit(3)


def writes_as_it_fails(self, study, folder):
    try:
        return GoodAnalysis.run(self, study, folder)
    except Exception:
        (folder.parent / "crash.txt").touch()
        raise


def gives_a_dict(self, study, folder):
    return {"title": "Sureness"}


def moves_away(self, study, folder):
    os.chdir(folder)
    return GoodAnalysis.run(self, study, folder)


@pytest.mark.parametrize(
    ("members", "advice"),
    [
        ({"run": gives_a_dict}, "run gave dict; give oaplug.core.findings.Findings"),
        ({"measure": raising_without_truths}, "on a study .* it failed .IndexError.* leave out"),
        ({"measure": lambda self, a, s: a.truth}, "it failed .TypeError"),
        ({"measure": clipped_in_place}, "run changed the study"),
        ({"measure": drawn_anew}, "two runs on the same study gave different findings"),
        ({"measure": drawn_globally}, "run changed the state of numpy.random"),
        ({"write": written_beside}, "it wrote more.csv; write only into the folder"),
        ({"write": written_here}, "it wrote working_directory/figure.png"),
        ({"write": left_half_written}, "it left .writing-x-sure.csv"),
        ({"write": as_vector_graphics}, "'sure.png' of the figure 'sure' is no PNG"),
        (
            {"write": lambda self, folder, rows: None},
            "table 'sure' has its data in 'sure.csv', which is no CSV",
        ),
        ({"image": "/sure.png"}, "give a path relative to its folder"),
        ({"data": "../sure.csv"}, "give a path relative to its folder"),
        ({"data": "sure.json"}, "figure 'sure' has its data in 'sure.json', which is no CSV"),
        ({"caption": " "}, "a caption of the table 'sure' is ' '"),
        ({"tables": table_of(columns=("a", "b"))}, "columns .* and a row"),
        ({"tables": table_of(columns=("a", "a", "b"))}, "each its own name"),
        ({"tables": table_of(rows=((1, 2, [3]),))}, "one str, int, float or None per column"),
        ({"tables": table_of(rows=((1, 2, 3j),))}, "findings cannot be written as JSON"),
        ({"tables": twice}, "two of its tables are called"),
        ({"run": stops_at_failures}, "a failure in it ends the program"),
        ({"run": writes_as_it_fails}, "it wrote crash.txt"),
        ({"run": moves_away}, "run changed the working directory"),
    ],
)
def test_a_broken_analysis_is_told_what_to_change(members, advice):
    here = Path.cwd()
    with pytest.raises(AssertionError, match=f"analysis mine: .*{advice}"):
        check_analysis(analysis(**members))
    assert Path.cwd() == here


@pytest.mark.parametrize(
    ("read", "needs"),
    [
        (lambda study: study.models[0].features(), "features"),
        (lambda study: study.models[0].train_features(), "train_features"),
        (lambda study: study.models[0].open(), "network"),
        (lambda study: list(study.models[0].training_batches("0")), "train_images"),
        (lambda study: study.image(study.case_ids[0]), "images"),
        (lambda study: study.grids.mask(study.cases[study.case_ids[1]]), "masks"),
        (lambda study: study.covariates["age"], "covariates"),
    ],
)
def test_an_analysis_that_reads_what_it_does_not_declare_is_told(read, needs):
    def run(self, study, folder):
        read(study)
        return GoodAnalysis.run(self, study, folder)

    def run_where_it_can(self, study, folder):
        return (run if needs in study.provides else GoodAnalysis.run)(self, study, folder)

    spec = analysis(run=run)
    with pytest.raises(AssertionError, match=r"provides predictions and no more, it fails.*declare in needs"):
        check_analysis(spec)
    check_analysis(replace(spec, needs=frozenset({"predictions", needs})))
    check_analysis(analysis(run=run_where_it_can))


def test_an_analysis_whose_needs_no_toy_study_meets_takes_studies_of_its_author(monkeypatch):
    spec = replace(analysis(), needs=frozenset({"predictions", "masks"}))
    bare = {"of tables": lambda: only_with(toy_study(), {"predictions"})}
    with pytest.raises(AssertionError, match="it needs masks; give studies"):
        check_analysis(spec, studies=bare)
    monkeypatch.setattr("oaplug.testing.analysis.TOY_STUDIES", bare)
    assert check_part(spec) is False
    assert check_part(spec, given={"with masks": toy_study}) is True


@pytest.mark.parametrize("make", TOY_STUDIES.values(), ids=TOY_STUDIES)
def test_toy_studies_hold_together_and_provide_all_that_a_model_can(make):
    study, again = make(), make()
    assert study.provides == NEEDS
    assert len(set(study.subject_ids)) < len(set(study.case_ids))
    for model, other in zip(study.models, again.models, strict=True):
        table = model.predictions
        assert (table.case_ids, table.subject_ids) == (study.case_ids, study.subject_ids)
        for name, answers in table.targets.items():
            assert np.allclose(answers.probabilities.sum(axis=1), 1)
            assert (answers.probabilities == other.predictions.targets[name].probabilities).all()
            assert (answers.predicted == answers.probabilities.argmax(axis=1)).all()
        test, train = model.features(), model.train_features()
        assert set(test.folds) == set(train) == set(table.folds) == set(model.validation())
        assert not {s for f in train.values() for s in f.subject_ids} & set(study.subject_ids)
        network, batch = model.open().networks["0"], next(model.training_batches("0"))
        assert set(network.probabilities(network(batch.volume))) == set(table.targets)
        assert torch.isfinite(network.loss(network(batch.volume), batch.truth)["total"])


def test_toy_features_follow_severity():
    from scipy.stats import spearmanr

    model = toy_study().models[0]
    features, truth = model.features().folds["0"], model.predictions.targets["kl"].truth
    centred = features - features.mean(axis=0)
    first = np.linalg.svd(centred, full_matrices=False)[0][:, 0]
    assert abs(spearmanr(first, truth).statistic) > 0.8


# ---------------------------------------------------------------- converters


def write_toy(folder):
    """A toy dataset as a source: the converter below copies it."""
    return write_toy_dataset(folder / "Dataset001_Theirs", cases=8, shape=(6, 7, 8))


def copy_dataset(source, dataset):
    """Keeps the contract: copies a raw dataset."""
    if not (source / "dataset.json").is_file():
        raise DatasetError(f"{source} holds no dataset.json")
    theirs = open_dataset(source)
    description = read_description(source)
    for case in theirs.cases:
        place = {"split": case.split, "description": description}
        copy(case.images[0], dataset.image_paths(case.case_id, **place)[0])
        copy(case.mask, dataset.mask_path(case.case_id, **place))
    dataset.write_tables(description, theirs.cases)
    return ConversionRecord(cases=len(theirs.cases), notes=("copied",))


def copy(source, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(source.read_bytes())


def converter_spec(convert):
    class Mine:
        def __init__(self, options):
            self.convert = convert

    return ConverterSpec(name="mine", summary="a toy", build=Mine)


def test_a_good_converter_passes_with_a_folder_or_with_what_makes_one(tmp_path):
    check_converter(converter_spec(copy_dataset), write_toy)
    check_converter(converter_spec(copy_dataset), write_toy(tmp_path))


def then(act):
    """A converter that copies a dataset, and then does something to it."""

    def convert(source, dataset):
        record = copy_dataset(source, dataset)
        return act(source, dataset, record) or record

    return convert


def spoil_image(source, dataset, record):
    next((dataset.folder / "imagesTr").iterdir()).write_bytes(b"no image")


def forget_table(source, dataset, record):
    (dataset.folder / "cases.csv").unlink()


def forget_description(source, dataset, record):
    (dataset.folder / "dataset.json").unlink()


def for_testing_only(source, dataset, record):
    path = dataset.folder / "cases.csv"
    path.write_text(path.read_text("utf-8").replace(",train,", ",test,"), encoding="utf-8")
    for kind in ("images", "labels"):
        for file in (dataset.folder / f"{kind}Tr").iterdir():
            file.rename(dataset.folder / f"{kind}Ts" / file.name)


def note_beside(source, dataset, record):
    (dataset.folder.parent / "notes.txt").touch()


def note_in_source(source, dataset, record):
    (source / "done.txt").touch()


def accepts_missing(source, dataset):
    return copy_dataset(source, dataset) if source.exists() else ConversionRecord(cases=0)


def accepts_empty(source, dataset):
    if source.exists() and not any(source.iterdir()):
        return ConversionRecord(cases=0)
    return copy_dataset(source, dataset)


def fails_on_missing(source, dataset):
    next(source.iterdir())
    return copy_dataset(source, dataset)


def refuses_namelessly(source, dataset):
    try:
        return copy_dataset(source, dataset)
    except DatasetError:
        raise DatasetError("nothing to convert") from None


@pytest.mark.parametrize(
    ("convert", "advice"),
    [
        (then(spoil_image), "the integrity check finds 1 problems in what it wrote: case toy_"),
        (then(forget_table), "it wrote no cases.csv"),
        (then(forget_description), "it wrote no dataset.json"),
        (then(for_testing_only), "it wrote no training case"),
        (then(note_beside), "it wrote notes.txt; write only into the folder"),
        (then(note_in_source), "it changed its source"),
        (then(lambda s, d, r: {"cases": r.cases}), "convert gave dict"),
        (then(lambda s, d, r: replace(r, cases=3)), "its record counts 3 cases, but it wrote 8"),
        (then(lambda s, d, r: replace(r, excluded=(("knee_7", ""),))), "name the case and say why"),
        (then(lambda s, d, r: replace(r, notes=("",))), "give sentences"),
        (then(lambda s, d, r: random.seed(1)), "convert changed the state of Python's random"),
        (accepts_missing, "it converts a source that is missing; raise .*DatasetError"),
        (accepts_empty, "it converts a source that is empty; raise .*DatasetError"),
        (fails_on_missing, "a source that is missing gives FileNotFoundError.*; raise .*DatasetError"),
        (refuses_namelessly, "refuses a source that is missing without naming it"),
    ],
)
def test_a_broken_converter_is_told_what_to_change(convert, advice):
    with pytest.raises(AssertionError, match=f"converter mine: .*{advice}"):
        check_converter(converter_spec(convert), write_toy)


def test_a_converter_of_single_files_is_given_an_empty_file(tmp_path):
    seen = []

    def convert(source, dataset):
        seen.append((source.exists(), source.is_file()))
        if not source.is_file() or not source.read_text("utf-8"):
            raise DatasetError(f"{source} is no list of cases")
        return copy_dataset(Path(source.read_text("utf-8")), dataset)

    (tmp_path / "list.txt").write_text(str(write_toy(tmp_path)), encoding="utf-8")
    check_converter(converter_spec(convert), tmp_path / "list.txt")
    assert seen == [(True, True), (False, False), (True, True)]


def test_a_source_that_is_not_there_is_the_callers_mistake(tmp_path):
    with pytest.raises(AssertionError, match=r"there is no source .*nowhere to check it with"):
        check_converter(converter_spec(copy_dataset), tmp_path / "nowhere")


# ---------------------------------------------------------------- callbacks


class GoodCallback:
    """Keeps the contract: a line per epoch; what the tests below break."""

    def __init__(self, options, *, folder):
        self.folder = folder
        self.lines = []

    def on_start(self, run):
        self.name = run["plan"]["dataset_name"]

    def on_epoch(self, record):
        auc = record["val.oa.auc"]
        self.lines.append(f"{record['epoch']} {'-' if auc is None else format(auc, '.2f')}")

    def on_end(self):
        (self.folder / "log.txt").write_text("\n".join(self.lines), encoding="utf-8")

    def state_dict(self):
        return {"lines": self.lines}

    def load_state_dict(self, state):
        self.lines = list(state["lines"])


def callback_spec(build, **members):
    return CallbackSpec(name="mine", summary="a toy", build=type("Mine", (build,), members))


def test_a_good_callback_passes():
    check_callback(callback_spec(GoodCallback))


def formats_metrics(self, record):
    self.lines.append(f"{record['val.oa.auc']:.2f}")


def rounds_in_place(self, record):
    record["seconds"] = round(record["seconds"])


def draws(self, record):
    torch.rand(1)


def stops_gradients(self, run):
    self.name = ""
    torch.set_grad_enabled(mode=False)


def logs_here(self, record):
    Path("mlruns").mkdir(exist_ok=True)


def ends_with_the_last_line(self):
    (self.folder / "last.txt").write_text(self.lines[-1], encoding="utf-8")


@pytest.mark.parametrize(
    ("members", "advice"),
    [
        (
            {"on_epoch": formats_metrics},
            r"on_epoch with metrics that are None \(val.kl.qwk.*failed .TypeError",
        ),
        ({"on_epoch": rounds_in_place}, "on_epoch changed what it was given; copy"),
        ({"on_start": lambda self, run: run.pop("schema")}, "on_start changed what it was given; copy"),
        ({"on_epoch": draws}, "on_epoch changed the state of torch's generator"),
        ({"on_start": stops_gradients}, "on_start changed torch's gradient mode"),
        ({"on_epoch": logs_here}, "it wrote working_directory/mlruns; write only into the folder"),
        ({"on_end": ends_with_the_last_line}, "on_end without an epoch.* failed .IndexError"),
        ({"on_start": lambda self, run: run["run"]["head"]["loss"]}, "on_start failed .KeyError: 'loss'"),
        ({"on_start": lambda self, run: sys.exit(1)}, "on_start failed .SystemExit"),
        ({"state_dict": lambda self: {"lines": tuple(self.lines)}}, "which JSON does not keep"),
        ({"state_dict": lambda self: {"best": float("nan")}}, "which JSON does not keep"),
        ({"state_dict": lambda self: None}, "before training state_dict gave None"),
        ({"load_state_dict": lambda self, state: None}, "take up in load_state_dict"),
        ({"load_state_dict": None}, "it has no load_state_dict"),
    ],
)
def test_a_broken_callback_is_told_what_to_change(members, advice):
    with pytest.raises(AssertionError, match=f"callback mine: .*{advice}"):
        check_callback(callback_spec(GoodCallback, **members))
    assert torch.is_grad_enabled()


def test_callbacks_are_checked_with_records_like_those_of_a_training(trained_project):
    folder = next((trained_project.results / "Dataset901_Toy").iterdir())
    lines = (folder / "fold_0" / "metrics.jsonl").read_text("utf-8").splitlines()
    plans = json.loads((folder / "plans.json").read_text("utf-8"))
    assert all(set(toy_records(1)[0]) <= set(json.loads(line)) for line in lines)
    assert set(RUN) == set(plans)
    assert set(RUN["run"]) <= set(plans["run"])
    assert set(RUN["plan"]) <= set(plans["plan"])
    assert set(RUN["plan"]["training"]) <= set(plans["plan"]["training"])


# ---------------------------------------------------------------- pytest


def test_the_tests_that_the_documentation_shows_pass(pytester, monkeypatch):
    monkeypatch.delenv("OAPLUG_CONFIG")
    shown = [block for block in code_blocks(DOCS / "plugins.md", "python") if "oaplug_check" in block]
    assert shown
    for index, block in enumerate(shown):
        pytester.makepyfile(**{f"test_shown_{index}": block})
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=sum(block.count("def test_") for block in shown))


FIXTURES = """
import json
import pytest

def test_a_part_by_name(oaplug_check):
    oaplug_check("oaplug:single")
    oaplug_check("resnet3d", ((8, 8, 8), (9, 8, 9)), width=4, depth=10)
    with pytest.raises(TypeError, match=r"checked with a source of yours: oaplug_check\\(part, a source\\)"):
        oaplug_check("phantom")

def test_a_broken_part(oaplug_check, toy_targets):
    oaplug_check("single", toy_targets["derived alone"])
    oaplug_check("dual", toy_targets["binary"])

def test_toys(toy_study, toy_dataset, toy_preprocessed):
    assert len(toy_study.models) == 2
    assert len(list((toy_dataset / "imagesTr").iterdir())) == 18
    assert len(json.loads((toy_preprocessed / "splits_final.json").read_text())) == 5
    assert len(list(toy_preprocessed.glob("*/*.b2nd"))) == 24
"""


def test_the_fixtures_give_checks_and_toys(pytester):
    pytester.makepyfile(FIXTURES)
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*AssertionError: head dual: it does not accept*'disease'*"])


def test_without_the_pytest_plugin_other_tests_run(pytester):
    pytester.makepyfile("def test_it():\n    pass\n\ndef test_check(oaplug_check):\n    pass\n")
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-p", "no:oaplug")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(["*fixture 'oaplug_check' not found*"])


COLLECT = """
import sys, pytest
assert pytest.main(["--co", "-q", "-p", "no:cacheprovider"]) == 0
print(*(name for name in sys.modules if name.startswith("oaplug") or name in ("torch", "numpy")))
"""


def test_a_project_that_uses_no_fixture_pays_nothing(tmp_path):
    (tmp_path / "test_theirs.py").write_text("def test_it():\n    pass\n", encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", COLLECT], capture_output=True, text=True, cwd=tmp_path, timeout=120, check=True
    )
    last = done.stdout.splitlines()[-1].split()
    assert {name for name in last if not name.startswith("__editable__")} == {
        *("oaplug", "oaplug.testing", "oaplug.testing.pytest_plugin")
    }


def test_a_name_that_stands_for_no_part_or_for_several_is_refused(monkeypatch):
    assert isinstance(find_part("resnet3d"), BackboneSpec)
    assert isinstance(find_part("oaplug:dual"), HeadSpec)
    with pytest.raises(PluginError, match=r"no part 'resnet99' is installed; known: .*resnet3d"):
        find_part("resnet99")
    part = registry().get("head", "dual")
    twin = replace(part, spec=replace(callback_spec(GoodCallback), name="dual"))
    both = replace(registry(), parts=(part, twin))
    monkeypatch.setattr("oaplug.testing.part.registry", lambda: both)
    with pytest.raises(PluginError, match="'dual' is the name of a callback and of a head; pass the spec"):
        find_part("dual")
