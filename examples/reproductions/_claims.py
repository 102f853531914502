"""What the papers report, and how results in JSON are compared with it.

Each claim's `measure` maps the `results` of its script to pairs: what was measured, and whether it agrees.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from _optimizers import DECAYED, LABELS
from _results import middle

MULO, LAGG, BEYOND = "muLO (arXiv 2406.00153)", "LAgg-A (arXiv 2312.02204)", "Beyond the papers"
Pairs = Iterable[tuple[str, bool]]


@dataclasses.dataclass(frozen=True)
class Claim:
    """A claim of a paper. It was not attempted if nothing is measured."""

    paper: str
    figure: str
    says: str
    script: str = ""
    measure: Callable[[dict[str, Any]], Pairs] | None = None


def final(of: dict, name: str) -> float:
    """The median final loss; infinite if it is not finite."""
    return middle(of["optimizers"][name]["final"])


def diverged(of: dict, name: str) -> tuple[int, int]:
    """How many seeds diverged, of how many."""
    found = of["optimizers"][name]
    return found["diverged"], len(found["final"])


def unstable(of: dict, name: str) -> int:
    """How many seeds diverged, or ended more than 1.5 times and 0.05 above their lowest loss."""
    found, count = of["optimizers"][name], 0
    for first, last, lowest in zip(found["first"], found["final"], found["lowest"], strict=True):
        bad = last is None or lowest is None or first is None or last > first
        count += bad or (last > 1.5 * lowest and last > lowest + 0.05)
    return count


def each(results: dict, figure: str, names: Iterable[str], panels: str = "") -> Iterator[tuple[str, dict, str]]:
    """Every panel of a figure whose name contains the word `panels`, with each of these optimizers that it has."""
    for panel, of in results.get(figure, {}).items():
        for name in names:
            if panels in panel and name in of["optimizers"]:
                yield panel, of, name


def diverges(figure: str, *names: str, panels: str = "") -> Callable[[dict], Pairs]:
    def measure(results):
        for panel, of, name in each(results, figure, names, panels):
            bad, seeds = diverged(of, name)
            yield f"{LABELS[name]}, {panel}: {bad} of {seeds} diverged, loss {loss(final(of, name))}", bad == seeds

    return measure


def is_stable(figure: str, *names: str, panels: str = "") -> Callable[[dict], Pairs]:
    def measure(results):
        for panel, of, name in each(results, figure, names, panels):
            bad, (_, seeds) = unstable(of, name), diverged(of, name)
            lowest = middle(of["optimizers"][name]["lowest"])
            losses = f"loss {loss(final(of, name))}, lowest {loss(lowest)}"
            yield f"{LABELS[name]}, {panel}: {bad} of {seeds} unstable, {losses}", bad == 0

    return measure


def is_unstable(figure: str, *names: str, panels: str = "") -> Callable[[dict], Pairs]:
    return lambda results: [(text, not good) for text, good in is_stable(figure, *names, panels=panels)(results)]


def beats(figure: str, winner: str, *losers: str, panels: str = "") -> Callable[[dict], Pairs]:
    """Whether the winner has the lower median final loss."""

    def measure(results):
        for panel, of, loser in each(results, figure, losers, panels):
            if winner in of["optimizers"]:
                one, other = final(of, winner), final(of, loser)
                text = f"{panel}: {LABELS[winner]} {loss(one)}, {LABELS[loser]} {loss(other)}"
                yield text, one < other

    return measure


def only_at_first(results: dict) -> Pairs:
    """Whether muLO_S is unstable at the smallest width only."""
    for i, (text, stable) in enumerate(is_stable("figure 2", "mulo_s")(results)):
        yield text, stable == (i > 0)


def joined(*measures: Callable[[dict], Pairs]) -> Callable[[dict], Pairs]:
    return lambda results: [pair for measure in measures for pair in measure(results)]


def reaches_zero(results: dict) -> Pairs:
    for panel, of, name in each(results, "figure 4", ["mulo_m"]):
        yield f"{panel}: {loss(final(of, name))} after {of['steps']} steps", final(of, name) < 0.01


def gains_with_width(figure: str, winner: str, loser: str, panels: str) -> Callable[[dict], Pairs]:
    """Whether the ratio of the winner's loss to the loser's falls from the first to the last panel."""

    def measure(results):
        of = {panel: x for panel, x, _ in each(results, figure, [loser], panels) if winner in x["optimizers"]}
        ratios = [final(x, winner) / final(x, loser) for x in of.values()]
        text = ", ".join(f"{panel}: {ratio:.2f}" for panel, ratio in zip(of, ratios, strict=True))
        if len(ratios) > 1:
            yield f"{LABELS[winner]}'s loss over {LABELS[loser]}'s: {text}", ratios[-1] < ratios[0]

    return measure


def loss(value: float) -> str:
    return f"{value:.3f}" if np.isfinite(value) else "not finite"


def coordinates(results: dict) -> Pairs:
    for name, found in results["figure 1"].items():
        largest = bounded(found["largest"][-1])
        text = f"{name}: largest exponent {largest:.2f} after {len(found['largest'])} steps"
        yield text, largest < 0.1 if name.startswith("muP") else largest > 0.3


def adam_first(results: dict) -> Pairs:
    for name, found in results["figure 1"].items():
        if name.startswith("SP"):
            first, last = bounded(found["largest"][0]), bounded(found["largest"][-1])
            text = f"{name}: {first:.2f} after the first step, {last:.2f} after the last"
            yield text, first > 0.3 if name == "SP, adam" else first < min(0.3, last)


def bounded(exponent: float | None) -> float:
    return np.inf if exponent is None else exponent


def transfers(results: dict) -> Pairs:
    for name, of in results["transfer"].items():
        best = {width: int(np.argmin([bounded(x) for x in losses])) for width, losses in of.items()}
        moved = max(best.values()) - min(best.values())
        text = (
            f"{name}: the best rate moves by {moved} half-decades from width {min(of, key=int)} to {max(of, key=int)}"
        )
        yield text, moved <= 1 if name.startswith("muP") else moved > 1


def rounds(of: dict, target: str, name: str) -> float:
    """Median rounds to the final loss of the target; infinite if it is not reached."""
    return middle(of["rounds_to"][target][name])


def fewer(panels: Iterable[str], names: Iterable[str], targets: Iterable[str], times: float) -> Callable[[dict], Pairs]:
    """Whether an aggregator needs at least `times` fewer rounds than a baseline to the baseline's final loss."""

    def measure(results):
        for panel in panels:
            of = results.get(panel, {"rounds_to": {}})
            for target in (x for x in targets if x in of["rounds_to"]):
                for name in (x for x in names if x in of["rounds_to"][target]):
                    ratio = rounds(of, target, target) / rounds(of, target, name)
                    text = f"{ratio:.1f} times fewer than {target}" if ratio > 0 else f"never the loss of {target}"
                    yield f"{panel}, {name}: {text}", ratio >= times

    return measure


def aggregating_pays(results: dict) -> Pairs:
    found = [(p, final(results[p], "LOpt-A") / final(results[p], "LAgg-A")) for p in LOCAL_STEPS if p in results]
    for (before, lower), (panel, higher) in zip(found, found[1:], strict=False):
        text = f"LOpt-A's final loss over LAgg-A's: {lower:.2f} at {before}, {higher:.2f} at {panel}"
        yield text, higher > max(1.0, lower)


LOCAL_STEPS = ("H = 4", "H = 8", "H = 16")
SMALL_PANELS, LARGE_PANELS = (*LOCAL_STEPS, "K = 4", "K = 16", "CNN"), ("width 128", "CIFAR-10")
WIDTH, TRANSFORMERS = "figures_2_to_4_width.py", "figure_5_transformers.py"
SP_LEARNED, ADAM = ("lo_s", "lo_m"), ("adam_s", "adam_m")
CLAIMS = [
    Claim(
        MULO,
        "1",
        "Under muP, pre-activations are equally stable at all widths with learned optimizers and with Adam; under SP, "
        "those of the larger models blow up.",
        "figure_1_coordinates.py",
        coordinates,
    ),
    Claim(
        MULO,
        "1",
        "Under SP, Adam's pre-activations blow up at once; those of LO_S and LO_M take longer.",
        "figure_1_coordinates.py",
        adam_first,
    ),
    Claim(
        MULO,
        "2",
        "On wider networks (widths 128, 2048 and 8192), LO_S diverges after around 1,000 steps at the smallest width, "
        "and immediately at the others.",
        WIDTH,
        diverges("figure 2", "lo_s"),
    ),
    Claim(
        MULO,
        "2",
        "muLO_M generalizes to all widths without diverging, and LO_M comes nowhere close.",
        WIDTH,
        joined(is_stable("figure 2", "mulo_m"), beats("figure 2", "mulo_m", "lo_m")),
    ),
    Claim(MULO, "2", "muLO_M is better than Adam in all cases.", WIDTH, beats("figure 2", "mulo_m", *ADAM)),
    Claim(
        MULO,
        "2",
        "muLO_S diverges at the smallest width, and generalizes to the larger ones.",
        WIDTH,
        only_at_first,
    ),
    Claim(MULO, "2, 3", "muLO_M is better than VeLO at the largest widths."),
    Claim(
        MULO,
        "3",
        "On larger images (widths 128, 512 and 2048), LO_S diverges at the beginning at each width; LO_M converges "
        "poorly at the smaller widths and diverges at the largest.",
        WIDTH,
        joined(diverges("figure 3", "lo_s"), beats("figure 3", "mulo_m", "lo_m")),
    ),
    Claim(
        MULO,
        "3",
        "muLO_M generalizes to all of them without instabilities, and is the best at the largest width; Adam "
        "generalizes well, but is worse overall.",
        WIDTH,
        joined(is_stable("figure 3", "mulo_m", *ADAM), beats("figure 3", "mulo_m", *ADAM)),
    ),
    Claim(
        MULO,
        "4",
        "On CIFAR-10, LO_S and LO_M diverge or converge slowly, and muLO_M is the best on larger networks.",
        WIDTH,
        beats("figure 4", "mulo_m", "lo_s", "lo_m", "mulo_s", *ADAM),
    ),
    Claim(MULO, "4", "muLO_M reaches a loss of 0 at widths 512, 2048 and 8192.", WIDTH, reaches_zero),
    Claim(MULO, "4", "The curves of AdamS and AdamM are unstable.", WIDTH, is_unstable("figure 4", *ADAM)),
    Claim(
        MULO,
        "5",
        "Language models: muLO_S and muLO_M train smoothly at every width, better than all but VeLO.",
        TRANSFORMERS,
        joined(
            is_stable("figure 5", "mulo_s", "mulo_m", panels="LM"),
            *(beats("figure 5", name, *SP_LEARNED, *ADAM, panels="LM") for name in ("mulo_s", "mulo_m")),
        ),
    ),
    Claim(
        MULO,
        "5",
        "Language models: LO_S and LO_M become unstable, and Adam trains stably.",
        TRANSFORMERS,
        joined(
            is_unstable("figure 5", *SP_LEARNED, panels="LM"),
            is_stable("figure 5", *ADAM, panels="LM"),
        ),
    ),
    Claim(
        MULO,
        "5",
        "Vision transformers: muLO_S and muLO_M are better than LO_S and LO_M at each width.",
        TRANSFORMERS,
        joined(*(beats("figure 5", name, *SP_LEARNED, panels="ViT") for name in ("mulo_s", "mulo_m"))),
    ),
    Claim(
        MULO,
        "5",
        "Vision transformers: muLO_S and muLO_M improve on Adam as the width increases.",
        TRANSFORMERS,
        joined(*(gains_with_width("figure 5", name, adam, "ViT") for name in ("mulo_s", "mulo_m") for adam in ADAM)),
    ),
    Claim(
        MULO,
        "6",
        "In networks 5 times as deep as in meta-training, muLO_M is stable, and better than LO_M at the end on each "
        "task.",
        "figure_6_depth.py",
        joined(is_stable("figure 6", "mulo_m"), beats("figure 6", "mulo_m", "lo_m")),
    ),
    Claim(
        MULO,
        "6",
        "LO_M diverges immediately on the deep MLP.",
        "figure_6_depth.py",
        diverges("figure 6", "lo_m", panels="MLP"),
    ),
    Claim(
        MULO,
        "7",
        "Over 25 times the longest training of meta-training, muLO_M decreases the loss stably on each task.",
        "figure_7_horizon.py",
        is_stable("figure 7", "mulo_m"),
    ),
    Claim(
        MULO,
        "7",
        "LO_M fails to decrease the loss, suffers from instabilities, or diverges.",
        "figure_7_horizon.py",
        is_unstable("figure 7", "lo_m"),
    ),
    Claim(
        MULO,
        "table 2",
        "Under muP, networks of different widths share the best hyperparameters of Adam; under SP they do not (cited "
        "from Yang et al.; AdamS and AdamM are tuned accordingly).",
        "table_2_muadam.py",
        transfers,
    ),
    Claim(
        MULO,
        "abstract",
        "The best muLO was meta-trained in 103 GPU-hours, and matches or exceeds VeLO, which took 4,000 TPU-months.",
    ),
    Claim(
        LAGG,
        "summary",
        "Learned aggregators reach the same loss in 2 to 6 times fewer rounds than tuned baselines.",
        "lagg_rounds.py",
        fewer(["H = 4"], ["LAgg-A", "LOpt-A"], ["local SGD", "SlowMo", "SGD", "Adam"], 2.0),
    ),
    Claim(
        LAGG,
        "H",
        "LAgg-A has a substantial advantage over LOpt-A at higher H.",
        "lagg_rounds.py",
        aggregating_pays,
    ),
    Claim(
        LAGG,
        "K",
        "LOpt-A generalizes to other numbers of workers.",
        "lagg_rounds.py",
        fewer(["K = 4", "K = 16"], ["LOpt-A"], ["local SGD", "SlowMo"], 1.0),
    ),
    Claim(
        LAGG,
        "larger tasks",
        "Meta-trained on one or a few small tasks, they generalize to other data sets, and to other and larger "
        "networks.",
        "lagg_rounds.py",
        fewer(
            ["width 128", "CNN", "CIFAR-10"],
            ["LAgg-A", "LAgg-A, muP", "LOpt-A", "LOpt-A, muP"],
            ["local SGD", "SlowMo"],
            1.0,
        ),
    ),
    Claim(LAGG, "H", "LAgg-A that was meta-trained at H = 16 generalizes to H = 4."),
    Claim(LAGG, "larger tasks", "They train ResNet50, vision transformers and language models on ImageNet and LM1B."),
    *(
        Claim(
            BEYOND,
            figure,
            "muLO_M and LO_M are stable if their updates are scaled by a factor that falls linearly from 1 to 0.",
            script,
            is_stable(f"figure {figure}", *DECAYED),
        )
        for figure, script in (("6", "figure_6_depth.py"), ("7", "figure_7_horizon.py"))
    ),
    Claim(
        BEYOND,
        "rounds",
        "LAgg-A, pooled or not, needs no more rounds than outer Nesterov (DiLoCo).",
        "lagg_rounds.py",
        fewer(
            ["H = 4", "H = 8", "H = 16", "width 128", "CNN", "CIFAR-10"],
            ["LAgg-A", "LAgg-A, muP", "pooled LAgg-A", "pooled LAgg-A, muP"],
            ["outer Nesterov"],
            1.0,
        ),
    ),
    Claim(
        BEYOND,
        "rounds",
        "residual_muon as the outer optimizer, under muP on larger tasks, needs at least 2 times fewer rounds than "
        "SlowMo, and no more than outer Nesterov and an outer Muon of which nothing is learned.",
        "lagg_rounds.py",
        joined(
            *(
                fewer(panels, [f"outer residual_muon{suffix}"], baselines, times)
                for panels, suffix in ((SMALL_PANELS, ""), (LARGE_PANELS, ", muP"))
                for baselines, times in ((["SlowMo"], 2.0), (["outer Nesterov", "outer Muon"], 1.0))
            )
        ),
    ),
]
