"""What a run writes while it trains: log file, metrics.jsonl, progress.png."""

from __future__ import annotations

import json
import logging
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from oaplug.core.artifacts import atomic_path, write_text

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    import torch

Record = dict[str, Any]
_SECONDS_BETWEEN_PLOTS = 30.0


class Logbook:
    """Keeps one record per epoch and shows them; a resumed run takes up the records it had."""

    def __init__(self, folder: Path, records: Sequence[Record] = ()) -> None:
        self.records: list[Record] = list(records)
        self._folder = folder
        self._plotted = -_SECONDS_BETWEEN_PLOTS

    def add(self, record: Record) -> None:
        """Add an epoch's record and rewrite the files (the picture at most twice a minute)."""
        self.records.append(record)
        write_text(self._folder / "metrics.jsonl", "".join(json.dumps(r) + "\n" for r in self.records))
        if time.monotonic() - self._plotted > _SECONDS_BETWEEN_PLOTS:
            self.draw()

    def draw(self) -> None:
        """Draw the picture again."""
        self._plotted = time.monotonic()
        draw_progress(self.records, self._folder / "progress.png")


def draw_progress(records: Sequence[Mapping[str, Any]], path: Path) -> None:
    """progress.png: losses, validation metrics, learning rate and epoch time against the epoch."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7), layout="constrained")
    panels = figure.subplots(2, 2)
    metrics = sorted({k for r in records for k in r if k.startswith("val.") and not k.startswith("val.loss")})
    shown = [name for name in metrics if name.rsplit(".", 1)[1] in {"auc", "accuracy", "qwk"}]
    _plot(panels[0, 0], records, ["train.loss.total", "val.loss.total"], title="loss")
    _plot(panels[0, 1], records, shown, title="validation")
    _plot(panels[1, 0], records, ["learning_rate"], title="learning rate")
    _plot(panels[1, 1], records, ["seconds"], title="seconds per epoch")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=110)


def _plot(panel: Any, records: Sequence[Mapping[str, Any]], names: Sequence[str], *, title: str) -> None:
    for name in names:
        points = [(r["epoch"], r[name]) for r in records if r.get(name) is not None]
        if points:
            label = name.removeprefix("val.").removesuffix(".total") if title == "validation" else name
            panel.plot(*zip(*points, strict=True), label=label, marker="." if len(points) < 25 else None)
    panel.set_title(title)
    panel.set_xlabel("epoch")
    panel.grid(alpha=0.3)
    if title == "validation":
        panel.set_ylim(top=1.02)
    if len(names) > 1 and panel.lines:
        panel.legend(fontsize=8)


def describe(record: Mapping[str, Any]) -> str:
    """One line for an epoch: losses, the metrics that count, seconds."""
    parts = [f"epoch {record['epoch']:>3}"]
    if "train.loss.total" in record:  # or every step was skipped
        parts.append(f"train loss {record['train.loss.total']:.4f}")
    if "val.loss.total" in record:
        parts.append(f"val loss {record['val.loss.total']:.4f}")
    for name in [n for n in record if n.startswith("val.") and n.endswith((".qwk", ".auc"))]:
        value = record[name]
        parts.append(f"{name.removeprefix('val.')} {'-' if value is None else format(value, '.3f')}")
    return "  ".join([*parts, f"{record['seconds']:.1f} s"])


def describe_step(epoch: int, losses: Mapping[str, float], *, device: torch.device) -> str:
    """A few words for a progress bar: epoch, loss, memory of a GPU."""
    text = f"epoch {epoch}, loss {losses['total']:.3f}"
    if device.type == "cuda":
        import torch

        text += f", GPU {torch.cuda.max_memory_allocated(device) / 2**30:.1f} GiB"
    return text


@contextmanager
def log_file(folder: Path) -> Iterator[None]:
    """Within, oaplug's log also goes into FOLDER/training_log_DATE.txt."""
    path = folder / time.strftime("training_log_%Y_%m_%d_%H_%M_%S.txt")
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.getLogger("oaplug").addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger("oaplug").removeHandler(handler)
        handler.close()
