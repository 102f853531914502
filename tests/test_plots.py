import numpy as np
import pytest

from lo_components import plots
from lo_components.meta import CoordinateCheck

matplotlib_image = pytest.importorskip("matplotlib.image")


def drawn(path):
    """How much of a picture is not white."""
    return np.mean(matplotlib_image.imread(path)[..., :3].min(axis=-1) < 0.9)


def test_training_curves_show_every_optimizer_and_end_where_losses_are_not_finite(tmp_path):
    losses = np.exp(-np.linspace(0, 5, 50))[None] * np.ones((3, 1))
    broken = losses.copy()
    broken[:, 10:] = np.nan
    for name, curves in (("one", {"Adam": broken}), ("two", {"Adam": broken, "muLO": 2 * losses})):
        plots.training_curves({"width 8": curves}, tmp_path / f"{name}.png", title="title", horizon=20)
    assert 0 < drawn(tmp_path / "one.png") < drawn(tmp_path / "two.png")


def test_long_titles_are_wrapped_and_a_single_seed_has_no_band(tmp_path, monkeypatch):
    axes, titles, bands = pytest.importorskip("matplotlib.axes").Axes, [], []
    monkeypatch.setattr(axes, "set_title", lambda self, title: titles.append(title))
    monkeypatch.setattr(axes, "fill_between", lambda self, *args, **kwargs: bands.append(args))
    panels = {"a transformer of width 32 with one block": 2, "one\ntwo": 1, f"{'long ' * 9}$x y$": 1}
    panels = {title: {"Adam": np.ones((seeds, 3))} for title, seeds in panels.items()}
    plots.training_curves(panels, tmp_path / "figure.svg")
    assert titles == ["a transformer of width 32 with\none block", "one\ntwo", list(panels)[2]]
    assert len(bands) == 1


def test_losses_are_smoothed_over_a_twentieth_of_the_steps():
    for steps, window in ((10, 1), (60, 4), (1000, 20)):
        losses = np.arange(steps, dtype=float)[None]
        assert plots._smoothed(losses)[0, -1] == pytest.approx(losses[0, -window:].mean())


def test_the_axis_of_a_transfer_ends_at_ten_times_the_lowest_median(tmp_path, monkeypatch):
    figure, limits = pytest.importorskip("matplotlib.figure").Figure, []
    monkeypatch.setattr(figure, "savefig", lambda self, *_, **__: limits.extend(x.get_ylim() for x in self.axes))
    panels = {"SP": {8: np.array([[2.0], [1e6]])}, "muP": {8: np.array([[0.5], [np.nan]])}}
    plots.transfer(panels, np.array([0.1, 1.0]), tmp_path / "figure.svg")
    np.testing.assert_allclose(limits, [(0.4, 5.0)] * 2)


def test_more_names_than_colours_are_told_apart_by_dashes(tmp_path, monkeypatch):
    axes, looks = pytest.importorskip("matplotlib.axes").Axes, []
    plot = axes.plot

    def recorded(self, *args, **kwargs):
        looks.append((kwargs["color"], kwargs["linestyle"]))
        return plot(self, *args, **kwargs)

    monkeypatch.setattr(axes, "plot", recorded)
    plots.training_curves({"": {str(i): np.ones((1, 3)) for i in range(20)}}, tmp_path / "many.png")
    assert len(set(looks)) == 20


def test_coordinate_checks_leave_out_changes_of_zero(tmp_path):
    changes = np.ones((3, 2, 2, 2)) * np.array([1.0, 0.0])
    draw = plots.coordinate_checks
    draw({"muP": CoordinateCheck((8, 16, 32), ("a", "b"), changes)}, tmp_path / "one.png")
    draw({"muP": CoordinateCheck((8, 16, 32), ("a", "b"), 1.0 + changes)}, tmp_path / "two.png")
    assert 0 < drawn(tmp_path / "one.png") < drawn(tmp_path / "two.png")


def test_transfer_draws_a_line_for_each_width(tmp_path):
    rates = np.array([1e-3, 1e-2, 1e-1])
    losses = np.array([[1.0, 1.1], [0.5, 0.6], [np.nan, np.inf]])
    for name, panels in (("one", {8: losses}), ("two", {8: losses, 16: 2 * losses})):
        plots.transfer({"muP": panels}, rates, tmp_path / f"{name}.png", title="title")
    assert 0 < drawn(tmp_path / "one.png") < drawn(tmp_path / "two.png")


@pytest.mark.parametrize("style", ["default", "dark_background"])
def test_svg_has_no_background_and_takes_the_color_of_text_from_the_style(style, tmp_path):
    matplotlib_style = pytest.importorskip("matplotlib.style")
    with matplotlib_style.context(style):
        plots.training_curves({"": {str(i): np.ones((1, 5000)) for i in range(8)}}, tmp_path / "figure.svg", horizon=9)
    text = (tmp_path / "figure.svg").read_text()
    assert len(text) < 200_000
    assert ("#ffffff" in text) == (style == "dark_background")
    assert "fill: none" in text.split('id="patch_1"')[1].split("/>")[0]
