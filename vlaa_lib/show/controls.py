"""Small controls beside the trace viewer: a model answers the selected question once more."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import ipywidgets as widgets

from vlaa_lib import evaluate, models, prompts, traces
from vlaa_lib.records import Record

from .viewer import TraceViewer

KEPT = 4  # answers on view, as many columns as the viewer shows


class AskAgain(widgets.VBox):
    """Let a model answer the question that a viewer shows, now, at a temperature of your choice.

    The last four answers to a question stand side by side in a viewer of their own, with their
    steps checked and their reward.

    Args:
        viewer: whose selected example is asked.
        records: those that the viewer shows.
        images: their image root.
        policies: checkpoint by name; each is loaded when it is first asked.
        max_new_tokens: of an answer.
    """

    def __init__(
        self,
        viewer: TraceViewer,
        records: Sequence[Record],
        images: str | Path,
        policies: Mapping[str, str | Path],
        max_new_tokens: int = prompts.MAX_NEW_TOKENS,
    ):
        self.viewer, self.images, self.max_new_tokens = viewer, images, max_new_tokens
        self.records = {record.id: record for record in records}
        self.policies = dict(policies)
        self.load = lru_cache(maxsize=2)(models.load_policy)
        self.rows: list[dict[str, Any]] = []  # the answers to the last question asked
        self.model = widgets.Dropdown(options=list(self.policies), description="Model")
        self.temperature = widgets.FloatSlider(
            value=0.8, min=0.0, max=1.2, step=0.1, description="Temperature",
            style={"description_width": "initial"},
        )  # fmt: skip
        self.button = widgets.Button(
            description="Answer again", tooltip="Ask this model the question selected above"
        )
        self.said = widgets.Output()
        self.button.on_click(lambda _button: self.answer())
        super().__init__(
            [widgets.HBox([self.model, self.temperature, self.button]), self.said]
        )

    def __repr__(self) -> str:
        return "Controls: open this notebook in JupyterLab and run it, and a model answers here."

    def answer(self) -> str | None:
        """Ask once, show the answer beside the ones before it, and return it.

        In a kernel what goes wrong is shown below the button as well, and there is no answer.

        Raises:
            ValueError: the selected example is none of `records`.
        """
        asked = self.viewer.selected
        if asked not in self.records:
            raise ValueError(f"{asked!r} is not among the records given; give those of the viewer")
        record, name = self.records[asked], self.model.value
        self.button.disabled = True
        text = None
        try:
            with self.said:  # in a kernel it shows an error and lets none through
                text = evaluate.generate(
                    self.load(self.policies[name]), [record], self.images,
                    max_new_tokens=self.max_new_tokens, temperature=self.temperature.value,
                )[0]  # fmt: skip
                self._show(record, name, text)
        finally:
            self.button.disabled = False
        return text

    def _show(self, record: Record, name: str, text: str) -> None:
        from IPython.display import clear_output, display

        if self.rows and self.rows[0]["record_id"] != record.id:
            self.rows.clear()
        column = f"{len(self.rows) + 1} · {name}, T {self.temperature.value:.1f}"
        self.rows += evaluate.score_rows([record], [text], model=column)
        answers = {row["model"]: [row] for row in self.rows[-KEPT:]}
        clear_output(wait=True)
        display(TraceViewer(traces.examples([record], self.images, answers)))
