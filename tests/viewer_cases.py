"""Examples for the tests of the viewer: realistic ones, many, and hostile ones."""

import math
import random
from itertools import islice

from PIL import Image

from vlaa_lib.pocket import microworld
from vlaa_lib.pocket.microworld import narrator
from vlaa_lib.prompts import join_think_answer

MODELS = ("teacher", "sft", "grpo", "sft_grpo")
# each would run, ask the network or open a dialog where text became markup, a style or an address
HOSTILE = (
    "<script>window.hit = 1</script>",
    "<img src=x onerror='window.hit = 1'>",
    "<svg/onload=window.hit=1>",
    '"><iframe srcdoc="<script>parent.hit=1</script>">',
    "</script><script>window.hit=1</script>",
    "</style><style>*{background:url(http://evil.invalid/a)}</style>",
    "<!--<script>",
    "]]><script>window.hit=1</script>",
    "javascript:window.hit=1",
    "data:text/html,<script>parent.hit=1</script>",
    "<a href='javascript:alert(1)' autofocus onfocus=alert(1)>",
    "<link rel=stylesheet href=http://evil.invalid/b><img src=//evil.invalid/c>",
    "<form action=http://evil.invalid/d><button autofocus>go</button></form>",
    "<meta http-equiv=refresh content='0;url=http://evil.invalid/e'>",
    "url(http://evil.invalid/f); --v: url(http://evil.invalid/g)",
    "${window.hit=1} {{constructor.constructor('window.hit=1')()}}",
    "$\\href{javascript:alert(1)}{x}$",
    "__proto__",
    "constructor",
    "\u202edlrow\u202c \u2066x\u2069 \u200e\u200f\u2028\u2029\x00\x1b[31m\ufeff\ud800",
    "<think><answer>never closed <think> wait",
    "</answer></think>&lt;b&gt;&#60;script&#62;",
    "𝒳🧊" * 50,
    "",
)
_RUNS, _EVIL = "window.hit=1", "http://evil.invalid/z"
MORE = (  # with the others 96: elements, attributes, addresses and other languages of markup
    *(f"<{tag} {event}={_RUNS}>" for tag, event in (
        ("img src=x", "onerror"), ("body", "onload"), ("video src=x", "onerror"),
        ("audio src=x", "onerror"), ("details open", "ontoggle"), ("marquee", "onstart"),
        ("input autofocus", "onfocus"), ("select autofocus", "onfocus"), ("svg", "onload"),
        ("textarea autofocus", "onfocus"), ("p style=animation-name:x", "onanimationstart"),
        ("object data=x", "onerror"), ("embed src=x", "onerror"), ("iframe", "onload"))),
    *(f"<{tag}={_EVIL}>" for tag in (
        "img src", "img srcset", "iframe src", "object data", "embed src", "video poster",
        "audio autoplay src", "link rel=stylesheet href", "link rel=prefetch href",
        "script src", "script type=module src", "base href", "body background",
        "table background", "input type=image src", "frame src", "track src",
        "image xlink:href", "svg><image href", "svg><use href", "math href")),
    *(f"<{tag}>" for tag in (
        f"style>@import '{_EVIL}';</style", f"style>body{{background:url({_EVIL})}}</style",
        f"div style=\"background:url({_EVIL})\"", f"meta http-equiv=refresh content='0;{_EVIL}'",
        f"a href={_EVIL} ping={_EVIL} id=hit", f"svg><style>*{{fill:url({_EVIL})}}</style",
        f"svg><script>{_RUNS}</script", f"math><mtext><img src=x onerror={_RUNS}></mtext",
        f"template><img src=x onerror={_RUNS}></template", f"noscript><img src={_EVIL}></noscript",
        f"title></title><script>{_RUNS}</script", f"textarea></textarea><img src={_EVIL}",
        "plaintext", "xmp", f"?php {_RUNS} ?")),
    # what plotly reads: tags of its own, templates, formulas
    f"<a href='{_EVIL}' target=_self>click</a>", f"<a xlink:href='{_EVIL}'>click</a>",
    f"<span style='fill:url({_EVIL})'>x</span>", "<b>b</b><i>i</i><br><sub>s</sub><em>e</em>",
    "%{y} %{customdata[0]} %{fullData.name}", f"$\\href{{{_EVIL}}}{{x}}$",
    "$$\\unicode{x41}$$ \\(x\\)", f"<b style='background:url({_EVIL})'>x</b>",
    # Markdown
    f"![x]({_EVIL})", f"[x](javascript:{_RUNS})", f"[![x]({_EVIL})]({_EVIL})", f"<{_EVIL}>",
    f"[x]: {_EVIL}", f"| a | ![x]({_EVIL}) |", f"`<img src={_EVIL}>`", f"\\![x]({_EVIL})",
    f"\\<img src={_EVIL}>", f"```\n<img src={_EVIL}>\n```",
    # spreadsheets, templates, entities, encodings
    f'=HYPERLINK("{_EVIL}")', f"{{{{ {_RUNS} }}}} {{% {_RUNS} %}}", f"&lt;img src={_EVIL}&gt;",
    f"&#60;script&#62;{_RUNS}&#60;/script&#62;",
)
STRANGE_NUMBERS = (math.nan, math.inf, -math.inf, None, "0.5", "<b>", -3, 1e300)


def said(record, rng, rates) -> str:
    """Return what the text-only teacher says of a record, or that it cannot answer."""
    try:
        caption = narrator.caption(record.meta["scene"], rates, rng)
        return join_think_answer(*narrator.reason(caption, record.question, rates, rng))
    except narrator.CannotAnswer:
        return "Hmm, wait. I cannot tell."


def side(name, text, rng, right: bool) -> dict:
    """Return one trace with everything that a side may carry."""
    group = [
        {"text": f"rollout {n}: {text}", "reward": n % 3 / 2, "advantage": n % 3 - 1.0, "tokens": n}
        for n in range(8)
    ]
    pieces = [text[k : k + 4] for k in range(0, len(text), 4)]
    return {
        "name": name, "text": text, "reward": float(right), "parts": {"digit": float(right)},
        "reasons": {"digit": "digit: 3 is right" if right else "digit: 4 instead of 3"},
        "advantage": rng.uniform(-2, 2), "tokens": len(pieces), "clipped": not right,
        "mean_logp": -0.4, "entropy": 0.7, "group": group, "pieces": pieces,
        "logps": [-rng.expovariate(1) for _ in pieces],
        "entropies": [rng.expovariate(1) for _ in pieces],
    }


def realistic(per_source: int = 1, seed: int = 0) -> list[dict]:
    """Return examples of every micro source, each with a picture and a trace of four models."""
    rates, made = narrator.Rates(), []
    for source in microworld.SOURCES:
        for sample in islice(microworld.stream(source, "dev", seed), per_source):
            record, rng = sample.record, random.Random(sample.record.id)
            made.append({
                "id": record.id, "source": record.source, "image": sample.image,
                "question": record.question, "gold": record.gt, "scene": record.meta["scene"],
                "frame": record.frame or None,
                "sides": [side(name, said(record, rng, rates), rng, rng.random() < 0.5)
                          for name in MODELS],
            })
    return made


def many(count: int = 200, words: int = 300) -> list[dict]:
    """Return examples with four traces of about 2 kB each, without tokens and groups."""
    scene = {"kind": "bars", "bars": [{"color": "red", "value": 3}, {"color": "blue", "value": 5}]}
    told = ("The red bar reaches 3.", "Wait, the blue bar reaches 4.", "Hmm, let me look again.")
    text = join_think_answer(" ".join(told[k % 3] for k in range(words // 5)), "3")
    picture = Image.effect_noise((200, 150), 80)  # as hard to compress as a photograph
    return [
        {"id": f"example-{n}", "source": f"source {n % 9}", "image": picture, "scene": scene,
         "question": "How high is the red bar?", "gold": "3",
         "sides": [{"name": name, "text": f"{n} {text}", "reward": float((n + k) % 2),
                    "reason": "digit: 3 is right", "tokens": 300 + n}
                   for k, name in enumerate(MODELS)]}
        for n in range(count)
    ]


def hostile() -> list[dict]:
    """Return examples with each hostile string in every field that holds text."""
    return [
        {"id": text or "nothing", "source": text, "image": text or None, "question": text,
         "gold": text, "scene": None, "frame": "norm01",
         "sides": [{"name": text or "empty", "text": text, "reason": text, "parts": {text: 0.5},
                    "reasons": {text: text}, "reward": number, "advantage": number,
                    "tokens": number, "mean_logp": number, "pieces": [text], "logps": [number],
                    "group": [{"text": text, "reward": number, "advantage": number}]},
                   {"name": "sft", "text": f"<think>{text}</think><answer>{text}</answer>"}]}
        for place, text in enumerate(HOSTILE)
        for number in [STRANGE_NUMBERS[place % len(STRANGE_NUMBERS)]]
    ]


def spoken(side) -> str:
    """Return the text that the runs of a trace spell, as it is sent to the page."""
    runs = [run for _truth, runs in side["body"] for run in runs]
    return "".join(run if isinstance(run, str) else run[1] for run in runs)
