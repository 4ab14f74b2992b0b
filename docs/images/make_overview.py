"""Draw overview.png: phantom knees of grade 0 to 4, and the way from images to a report.

python docs/images/make_overview.py [OUTPUT]
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from oaplug_converters.phantom.anatomy import Knee, make_knee

GRADES = (0, 1, 2, 3, 4)
SHAPE = (112, 160, 160)
SHOWN_MM = 46.0
"""Half of the side of what is shown around the joint."""
SEED = 3
INK, MUTED, BOX, LINE, CARTILAGE = "#1f2933", "#5b6774", "#eef3f7", "#9db2c4", "#ffb000"
STEPS = (
    ("raw dataset", "images, cases.csv", "oaplug_plan_\nand_preprocess"),
    ("plan + volumes", "editable JSON, folds", "oaplug_train"),
    ("model folder", "backbone + head", "oaplug_predict"),
    ("predictions", "probability per grade", "oaplug_analyze"),
    ("report", "metrics, intervals", ""),
)


def main() -> None:
    """Draw and save the picture."""
    output = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).with_name("overview.png")
    figure = Figure(figsize=(11, 3.75))
    rows = figure.add_gridspec(
        2, 1, height_ratios=(2.9, 1), left=0.01, right=0.99, top=0.92, bottom=0.0, hspace=0.05
    )
    knees = rows[0].subgridspec(1, len(GRADES), wspace=0.03)
    for column, grade in enumerate(GRADES):
        draw_knee(figure.add_subplot(knees[column]), grade)
    draw_steps(figure.add_subplot(rows[1]))
    figure.savefig(output, dpi=110, facecolor="white", metadata={"Software": None})


def draw_knee(panel: Axes, grade: int) -> None:
    """A coronal slice through the joint, tibial cartilage outlined; the same person at every grade."""
    knee = make_knee(severity=grade + 0.5, shape=SHAPE, side="R", rng=np.random.default_rng(SEED))
    height, width = middle_of_tibial_cartilage(knee)
    image, labels = knee.image[:, height, :].T, knee.labels[:, height, :].T
    across_mm, up_mm = (knee.spacing_mm[axis] * np.arange(knee.image.shape[axis]) for axis in (0, 2))
    extent = (across_mm[0], across_mm[-1], up_mm[0], up_mm[-1])
    low, high = np.percentile(image, (1, 99.7))
    panel.imshow(
        image, cmap="gray", vmin=low, vmax=high, origin="lower", extent=extent, interpolation="bicubic"
    )
    panel.contour(across_mm, up_mm, labels >= 4, levels=[0.5], colors=CARTILAGE, linewidths=0.9)
    middle_mm = float(across_mm.mean())
    panel.set_xlim(middle_mm - SHOWN_MM, middle_mm + SHOWN_MM)
    panel.set_ylim(up_mm[width] - SHOWN_MM, up_mm[width] + SHOWN_MM)
    panel.set_xticks([])
    panel.set_yticks([])
    panel.set_title(f"grade {grade}", fontsize=11, color=INK)
    for spine in panel.spines.values():
        spine.set_visible(False)


def middle_of_tibial_cartilage(knee: Knee) -> tuple[int, int]:
    """Indices along H and W of the middle of the tibial cartilage."""
    _, height, width = (int(np.median(places)) for places in np.nonzero(knee.labels >= 4))
    return height, width


def draw_steps(panel: Axes) -> None:
    """The strip of files and the commands between them."""
    panel.set_xlim(-0.003, 1.003)
    panel.set_ylim(0, 1)
    panel.axis("off")
    wide, gap = 0.124, 0.095
    for index, (title, below, command) in enumerate(STEPS):
        left = index * (wide + gap)
        panel.add_patch(
            FancyBboxPatch(
                (left, 0.12), wide, 0.7, boxstyle="round,pad=0,rounding_size=0.012", fc=BOX, ec=LINE, lw=1,
                mutation_aspect=4,
            )
        )  # fmt: skip
        panel.text(left + wide / 2, 0.6, title, ha="center", va="center", fontsize=10.5, color=INK)
        panel.text(left + wide / 2, 0.32, below, ha="center", va="center", fontsize=8, color=MUTED)
        if command:
            start = left + wide
            panel.annotate(
                "", (start + gap - 0.004, 0.47), (start + 0.004, 0.47),
                arrowprops={"arrowstyle": "-|>", "color": MUTED, "lw": 1.2},
            )  # fmt: skip
            panel.text(start + gap / 2, 0.53, command, ha="center", va="bottom", fontsize=7.5, color=INK)


if __name__ == "__main__":
    main()
