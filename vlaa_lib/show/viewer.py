"""The trace viewer in a notebook: a script draws what `prepare` worked out, Python reads back.

The same script draws the page of `html.to_html`. Where no widget runs (GitHub, nbconvert, an
untrusted notebook) the first examples stand there as an escaped table.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import anywidget
import ipywidgets as widgets
import traitlets

from vlaa_lib import traces
from vlaa_lib.prompts import MAX_NEW_TOKENS
from vlaa_lib.records import Record
from vlaa_lib.tables import number

from . import html
from .prepare import prepare
from .style import picture

PICTURE_PX = 640  # longest side of the selected example's picture: twice its place, for the zoom
FALLBACK = 5  # examples in the table for pages without widgets
COLUMNS = 4  # models on view at first, and answers of `AskAgain`


class TraceViewer(anywidget.AnyWidget):
    """Show traces of several models beside the picture and question they answer.

    Args:
        examples: as for `prepare.prepare`; about 200 at a time.

    Traits, to be read and set:
        selected: id of the example on view.
        shown: ids that pass the filters, in order; set it to choose examples in Python.
        columns: names of the models on view.
        filters: what the controls say, such as `{"wrong": "sft", "right": "grpo"}`; further
            keys: source, of, steps (of `STEPS`), low, high, shortest, longest, search.

    Raises:
        ValueError: as for `prepare.prepare`.
        traitlets.TraitError: an id, model or filter that is not there, or no model.
    """

    _esm = html.SCRIPT
    _css = html.STYLE

    examples = traitlets.List(read_only=True).tag(sync=True)
    names = traitlets.List(read_only=True).tag(sync=True)
    unit = traitlets.Unicode(read_only=True).tag(sync=True)
    pictures = traitlets.Dict().tag(sync=True)  # of the selected example only: {id: data URL}
    selected = traitlets.Unicode().tag(sync=True)
    shown = traitlets.List(traitlets.Unicode()).tag(sync=True)
    columns = traitlets.List(traitlets.Unicode()).tag(sync=True)
    filters = traitlets.Dict().tag(sync=True)

    STEPS = ("false", "true", "lucky", "unchecked")  # what a trace's steps may be asked to be
    FILTERS = ("source", "of", "wrong", "right", "steps", "low", "high", "shortest", "longest",
               "search")

    def __init__(self, examples: Sequence[dict[str, Any]], **traits: Any):
        state = prepare(examples)
        self._given = {made["id"]: given
                       for made, given in zip(state["examples"], examples, strict=True)}
        self._columns = [entry["name"] for entry in state["names"]]
        self._choices = dict.fromkeys(("of", "wrong", "right"), self._columns)
        self._choices["source"] = list({made["source"]: None for made in state["examples"]})
        self._choices["steps"] = self.STEPS
        for key, value in state.items():
            self.set_trait(key, value)
        ids = list(self._given)
        chosen = {"selected": ids[0] if ids else "", "shown": ids}
        super().__init__(**chosen | {"columns": self._columns[:COLUMNS]} | traits)
        self._draw_picture()

    @property
    def example(self) -> dict[str, Any] | None:
        """Return the selected example as it was given."""
        return self._given.get(self.selected)

    @traitlets.observe("selected")
    def _draw_picture(self, _change: Any = None) -> None:
        # the selected example's alone: all of them would be megabytes
        if self.selected in self._given:
            self.pictures = {self.selected: picture(self._given[self.selected], PICTURE_PX)}

    @traitlets.validate("selected", "shown", "columns")
    def _known(self, proposal: dict[str, Any]) -> Any:
        # a typing error would show an empty viewer
        name, value = proposal["trait"].name, proposal["value"]
        known = self._columns if name == "columns" else self._given
        if name == "columns" and known and not value:
            raise traitlets.TraitError("columns: no model would be on view; name at least one")
        for key in [value] if isinstance(value, str) else value:
            if key or name != "selected":
                _one_of(name, key, known)
        return value

    @traitlets.validate("filters")
    def _fits(self, proposal: dict[str, Any]) -> Any:
        for key, value in proposal["value"].items():
            _one_of("filters", key, self.FILTERS)
            if key in self._choices:
                _one_of(f"filters[{key!r}]", value, self._choices[key])
            elif (str(value) if key == "search" else number(value)) != value:
                kind = "text" if key == "search" else "a finite number"
                raise traitlets.TraitError(f"filters[{key!r}]: {value!r} is not {kind}")
        return proposal["value"]

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        bundle = super()._repr_mimebundle_(**kwargs)
        given = list(self._given.values())  # an escaped table, for pages where no widget runs
        left = len(given) - FALLBACK
        note = f"<p>{left} more in the notebook's viewer.</p>" if left > 0 else ""
        bundle[0]["text/html"] = html.render(given[:FALLBACK]) + note
        return bundle


def _one_of(where: str, key: Any, known: Collection[str]) -> None:
    if key not in known:
        some = ", ".join(list(known)[:8])
        raise traitlets.TraitError(f"{where}: {key!r} is not there; there are {some}")


class AskAgain(widgets.VBox):
    """Let a model answer the question that a viewer shows, now, at a temperature of your choice.

    The last four answers to a question stand side by side in a viewer of their own, with their
    steps checked and their reward.

    Args:
        viewer: whose selected example is asked, with the `records` it shows and their image root.
        policies: checkpoint by name; each is loaded when it is first asked.
    """

    def __init__(
        self, viewer: TraceViewer, records: Sequence[Record], images: str | Path,
        policies: Mapping[str, str | Path], max_new_tokens: int = MAX_NEW_TOKENS,
    ):
        from vlaa_lib import models

        self.viewer, self.images, self.max_new_tokens = viewer, images, max_new_tokens
        self.records = {record.id: record for record in records}
        self.load = lru_cache(2)(lambda name: models.load_policy(policies[name]))
        self.rows: list[dict[str, Any]] = []  # the answers to the last question asked
        self.model = widgets.Dropdown(options=list(policies), description="Model")
        self.temperature = widgets.FloatSlider(0.8, min=0.0, max=1.2, description="Temperature",
                                               style={"description_width": "initial"})
        self.button = widgets.Button(description="Answer again",
                                     tooltip="Ask this model the question selected above")
        self.said = widgets.Output()
        self.button.on_click(lambda _button: self.answer())
        super().__init__([widgets.HBox([self.model, self.temperature, self.button]), self.said])

    def __repr__(self) -> str:
        return "Controls: open this notebook in JupyterLab and run it, and a model answers here."

    def answer(self) -> str | None:
        """Ask once, show the answer beside the ones before it, and return it (None: it failed)."""
        from IPython.display import clear_output, display

        from vlaa_lib import evaluate

        if (asked := self.viewer.selected) not in self.records:
            raise ValueError(f"{asked!r} is not among the records given; give those of the viewer")
        record, name, heat = self.records[asked], self.model.value, self.temperature.value
        self.button.disabled = True
        text = None
        try:
            with self.said:  # in a kernel it shows an error and lets none through
                text = evaluate.generate(self.load(name), [record], self.images,
                                         max_new_tokens=self.max_new_tokens, temperature=heat)[0]
                if self.rows and self.rows[0]["record_id"] != record.id:
                    self.rows.clear()
                column = f"{len(self.rows) + 1} · {name}, T {heat:.1f}"
                self.rows += evaluate.score_rows([record], [text], model=column)
                answers = {row["model"]: [row] for row in self.rows[-COLUMNS:]}
                clear_output(wait=True)
                display(TraceViewer(traces.examples([record], self.images, answers)))
        finally:
            self.button.disabled = False
        return text
