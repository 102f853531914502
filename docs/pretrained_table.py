"""Write the table of the learners in the package into `pretrained.md`: `python docs/pretrained_table.py`."""

import re
from pathlib import Path

import lo_components as loc

PAGE = Path(__file__).parent / "pretrained.md"
COLUMNS = {
    "name": "`{name}`",
    "what it is": "{summary}",
    "for networks under": "`{parametrization}`, base width: {base_width}, base inputs: {base_in_size}",
    "meta-trained on": "{tasks}; widths: {widths}; {horizon}",
    "meta-steps": "{meta_steps}",
    "meta-parameters": "{meta_parameters}",
}


def with_table(page: str) -> str:
    """The page with the table between its two marks."""
    rows = [list(COLUMNS), ["---"] * len(COLUMNS)]
    for name in loc.pretrained.names():
        rows.append([text.format(**loc.pretrained.card(name).in_words()) for text in COLUMNS.values()])
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return re.sub(r"(?<=<!-- table -->\n).*(?=<!-- end -->)", lambda _: f"\n{table}\n\n", page, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text()))
