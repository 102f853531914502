"""Draws `docs/assets/card.png`, the image that links to the documentation show: `python docs/social_card.py`."""

from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, PathPatch
from matplotlib.path import Path as Curve

INDIGO = "#4051b5"

figure = Figure(figsize=(12, 6.3), facecolor=INDIGO)
axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 1200), ylim=(0, 630))
axes.axis("off")
axes.text(90, 330, "lo_components", color="white", fontsize=54, weight="bold")
axes.text(
    90,
    285,
    "Learned optimizers built from\nsmall typed parts, in JAX and Equinox",
    color="white",
    fontsize=24,
    va="top",
)
# The logo, a curve that descends through three parts.
points = [(870, 470), (870, 295), (945, 307), (1020, 307), (1095, 307), (1170, 320), (1170, 170)]
points = [(x - 70, y) for x, y in points]
axes.add_patch(
    PathPatch(Curve(points, [Curve.MOVETO] + 6 * [Curve.CURVE4]), fill=False, edgecolor="white", linewidth=14)
)
for x, y in (points[0], points[-1]):
    axes.add_patch(FancyBboxPatch((x - 45, y - 45), 90, 90, "round,pad=0,rounding_size=20", color="white"))
axes.add_patch(Circle(points[3], 58, color="white"))
figure.savefig(Path(__file__).parent / "assets" / "card.png", dpi=100)
