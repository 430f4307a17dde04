"""The local teacher as an unreliable endpoint: each fault, and what clients make of it."""

from __future__ import annotations

import base64
import csv
import hashlib
import json
import time
from concurrent.futures import ThreadPoolExecutor

import httpx2
import openai
import pytest

from vlaa_lib import construct, pocket, prompts
from vlaa_lib.__main__ import main
from vlaa_lib.llm import messages
from vlaa_lib.pocket import faults, microworld
from vlaa_lib.pocket.faults import Faults
from vlaa_lib.pocket.microworld.narrator import Rates

STEPS = ("caption", "distil", "rewrite", "verify")
NEVER_ERRS = Rates(0.0, 0.0, 0.0, 0.0)
THOUGHT = messages.fill(
    prompts.DISTIL_PROMPT,
    caption="There are 2 red cubes. There is 1 blue ball.",
    question="How many objects are there?",
)


def request(n=0, **options):
    """Build the body of a rewriting request; another number, another body."""
    text = messages.fill(prompts.REWRITE_PROMPT, input=f"The caption says {n} things.")
    said = [{"role": "user", "content": text}]
    return {"model": "teacher-rewrite", "messages": said} | options


def one_kind(kind, **options):
    return Faults.spread(1.0, (kind,), drip_s=0.2, **options)


# shared, since a client of its own for each request would spend its time on certificates
HTTP = httpx2.Client(trust_env=False)
OFFICIAL = openai.OpenAI(base_url="http://127.0.0.1:9/v1", api_key="any", http_client=HTTP)


def post(base_url, body):
    return HTTP.post(base_url + "/chat/completions", json=body)


def ask(base_url, body, max_retries=0):
    client = OFFICIAL.with_options(base_url=base_url, max_retries=max_retries)
    return client.chat.completions.create(**body)


# kind, status, what the raw reply or its failure shows
RAW = [
    ("http_429", 429, "too many requests"),
    ("http_429_wait", 429, "rate limit"),
    ("http_500", 500, "internal error"),
    ("http_503", 503, "overloaded"),
    ("disconnect", None, "without sending a response"),
    ("half_reply", None, "without sending complete message body"),
    ("garbage", 200, ""),
    ("html", 200, "<!doctype html>"),
    ("wrong_shape", 200, ""),
    ("drip", 200, "The image shows 0 things."),
    ("empty", 200, '"content": ""'),
    ("truncated", 200, '"content": "The image shows"'),
]


def test_every_kind_is_tested():
    assert [kind for kind, *_ in RAW] == list(faults.KINDS)


@pytest.mark.parametrize(("kind", "status", "shows"), RAW)
def test_a_fault_on_the_wire(kind, status, shows):
    journal, body = [], request()
    with pocket.serve_teacher({}, faults=one_kind(kind), journal=journal) as base_url:
        came, started = time.time(), time.perf_counter()
        if status is None:
            with pytest.raises(httpx2.RemoteProtocolError, match=shows):
                post(base_url, body)
            sent = None
        else:
            reply = post(base_url, body)
            sent = reply.request.content
            assert reply.status_code == status and shows in reply.text
            assert ("retry-after" in reply.headers) == (kind == "http_429_wait")
        took_s = time.perf_counter() - started
    (row,) = journal
    assert (row.model, row.outcome) == ("teacher-rewrite", kind)
    assert sent is None or row.body_sha256 == hashlib.sha256(sent).hexdigest()
    assert abs(row.time - came) < 5
    if kind == "drip":
        assert took_s > 0.18
    elif kind in ("empty", "truncated"):
        choice = reply.json()["choices"][0]
        assert choice["finish_reason"] == ("length" if kind == "truncated" else "stop")
        assert reply.json()["usage"]["completion_tokens"] == (3 if kind == "truncated" else 0)


def test_garbage_is_never_json_and_wrong_shapes_always_are():
    everything = {}
    for kind in ("garbage", "wrong_shape"):
        with pocket.serve_teacher({}, faults=one_kind(kind)) as base_url:
            everything[kind] = {post(base_url, request(n)).content for n in range(60)}
    assert len(everything["garbage"]) == 4 and len(everything["wrong_shape"]) == 10
    for body in everything["garbage"]:
        with pytest.raises(ValueError):
            json.loads(body)
    for body in everything["wrong_shape"]:
        with pytest.raises((TypeError, LookupError, AttributeError)):
            json.loads(body)["choices"][0]["message"]["content"].strip()


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("http_429", openai.RateLimitError),
        ("http_429_wait", openai.RateLimitError),
        ("http_500", openai.InternalServerError),
        ("http_503", openai.InternalServerError),
        ("disconnect", openai.APIConnectionError),
        ("half_reply", openai.APIConnectionError),
        ("garbage", ValueError),
    ],
)
def test_a_fault_the_official_client_raises(kind, error):
    with pocket.serve_teacher({}, faults=one_kind(kind)) as base_url, pytest.raises(error):
        ask(base_url, request())


@pytest.mark.parametrize(
    ("kind", "content", "finish"),
    [
        ("drip", "The image shows 0 things.", "stop"),
        ("empty", "", "stop"),
        ("truncated", "The image shows", "length"),
    ],
)
def test_a_fault_the_official_client_hands_on(kind, content, finish):
    with pocket.serve_teacher({}, faults=one_kind(kind)) as base_url:
        (choice,) = ask(base_url, request()).choices
    assert (choice.message.content, choice.finish_reason) == (content, finish)


@pytest.mark.parametrize("kind", ["html", "wrong_shape"])
def test_a_fault_the_official_client_takes_for_a_completion(kind):
    with pocket.serve_teacher({}, faults=one_kind(kind)) as base_url:
        taken = [ask(base_url, request(n)) for n in range(12)]
    for reply in taken:
        with pytest.raises((TypeError, LookupError, AttributeError)):
            reply.choices[0].message.content.strip()


@pytest.fixture(scope="module")
def body_sha256():
    """The digest of the body that the official client sends for `request()`."""
    journal = []
    with pocket.serve_teacher({}, journal=journal) as base_url:
        ask(base_url, request())
    assert journal[0].outcome == "HTTP 200"
    return journal[0].body_sha256


@pytest.mark.parametrize("kind", faults.RETRIED)
def test_a_retried_request_can_succeed(kind, body_sha256):
    seeded = (Faults.spread(0.5, (kind,), seed=seed) for seed in range(99))
    rates = next(r for r in seeded if r.kind(body_sha256, 1) and not r.kind(body_sha256, 2))
    journal = []
    with pocket.serve_teacher({}, faults=rates, journal=journal) as base_url:
        started = time.perf_counter()
        reply = ask(base_url, request(), max_retries=1)
        took_s = time.perf_counter() - started
    assert reply.choices[0].message.content == "The image shows 0 things."
    assert [row.outcome for row in journal] == [kind, "HTTP 200"]
    assert took_s > 0.95 or kind != "http_429_wait", "the client waits as long as it is told"


def test_three_hundred_requests_at_twenty_percent_are_all_answered():
    journal, rates = [], Faults.spread(0.2, faults.RETRIED)
    with (
        pocket.serve_teacher({}, faults=rates, journal=journal) as base_url,
        ThreadPoolExecutor(24) as pool,
    ):
        replies = list(pool.map(lambda n: ask(base_url, request(n), max_retries=6), range(300)))
    told = [reply.choices[0].message.content for reply in replies]
    assert told == [f"The image shows {n} things." for n in range(300)]
    hit = [row for row in journal if row.outcome != "HTTP 200"]
    assert len(journal) == 300 + len(hit)
    assert 0.14 < len(hit) / len(journal) < 0.26
    assert {row.outcome for row in hit} == set(faults.RETRIED)


def fates(base_url, journal, order):
    """Ask each request twice; return its two outcomes by the digest of its body."""
    with ThreadPoolExecutor(4) as pool:
        for _ in range(2):
            list(pool.map(lambda n: post(base_url, request(n)), order))
    found = {}
    for row in journal:
        found.setdefault(row.body_sha256, []).append(row.outcome)
    return found


def test_the_same_seed_makes_the_same_faults_in_any_order():
    kinds = ("http_500", "http_503", "html", "empty")
    seen = []
    for seed, order in ((1, range(40)), (1, range(39, -1, -1)), (2, range(40))):
        journal, rates = [], Faults.spread(0.5, kinds, seed=seed)
        with pocket.serve_teacher({}, faults=rates, journal=journal) as base_url:
            seen.append(fates(base_url, journal, order))
    assert seen[0] == seen[1] != seen[2]
    assert any(first != second for first, second in seen[0].values()), "a retry can fare better"


def test_rates_are_shares_of_the_attempts():
    rates, bodies = Faults(http_500=0.3, empty=0.1, persistent=0.5), range(4000)
    first = [rates.kind(str(body), 1) for body in bodies]
    assert first.count("http_500") == pytest.approx(1200, rel=0.1)
    assert first.count("empty") == pytest.approx(400, rel=0.2)
    assert first.count("") == pytest.approx(2400, rel=0.1)
    # half the bodies repeat their fate; of the others 0.3² + 0.1² + 0.6² do so by chance
    same = sum(rates.kind(str(body), 2) == first[body] for body in bodies)
    assert same == pytest.approx(4000 * (0.5 + 0.5 * 0.46), rel=0.05)
    always = Faults(http_500=0.3, persistent=1.0)
    assert all(len({always.kind(str(body), n) for n in range(1, 9)}) == 1 for body in range(99))


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ({"html": -0.1}, "html is -0.1"),
        ({"persistent": 1.1}, "persistent is 1.1"),
        ({"html": 0.6, "empty": 0.6}, "all kinds together is 1.2"),
        ({"html": float("nan")}, "html is nan"),
        ({"jitter_s": -1}, "jitter_s is -1"),
    ],
)
def test_rates_that_cannot_be_are_refused(rates, message):
    with pytest.raises(ValueError, match=message):
        Faults(**rates)


def test_latency_comes_with_jitter():
    rates = Faults(latency_s=0.2, jitter_s=0.1)
    delays = [rates.delay_s(str(n), 1) for n in range(200)]
    assert 0.1 <= min(delays) < 0.12 and 0.28 < max(delays) <= 0.3
    assert min(Faults(jitter_s=0.1).delay_s(str(n), 1) for n in range(20)) == 0.0
    with pocket.serve_teacher({}, faults=rates) as base_url, ThreadPoolExecutor(16) as pool:
        started = time.perf_counter()
        replies = list(pool.map(lambda n: post(base_url, request(n)).status_code, range(16)))
        took_s = time.perf_counter() - started
    assert replies == [200] * 16
    assert 0.1 < took_s < 16 * 0.15, "requests wait side by side"


def test_a_client_that_goes_away_troubles_nobody(caplog):
    rates = Faults(latency_s=0.3, drip=1.0, drip_s=0.2)
    with pocket.serve_teacher({}, faults=rates) as base_url:
        url = base_url + "/chat/completions"
        with pytest.raises(httpx2.ReadTimeout):
            HTTP.post(url, json=request(), timeout=0.1)
        with HTTP.stream("POST", url, json=request()) as reply:
            assert len(next(reply.iter_raw())) < 50
        assert post(base_url, request()).status_code == 200
    assert not caplog.records


def stream(base_url, body):
    """Return the joined deltas of a streamed reply, its finish reasons, and its usage."""
    texts, finishes, usage = {}, [], None
    for chunk in ask(base_url, body | {"stream": True}):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            finishes += [choice.finish_reason] if choice.finish_reason else []
            for name, value in choice.delta.model_dump(exclude_none=True).items():
                texts[name] = texts.get(name, "") + value
    return texts, finishes, usage


def test_a_stream_is_the_reply_in_pieces():
    body = {"model": "teacher-distil", "messages": [{"role": "user", "content": THOUGHT}]}
    with_usage = body | {"stream_options": {"include_usage": True}}
    with pocket.serve_teacher({}, NEVER_ERRS) as base_url:
        whole = ask(base_url, body)
        texts, finishes, usage = stream(base_url, with_usage)
        assert stream(base_url, body)[2] is None
        wire = post(base_url, body | {"stream": True})
    assert texts == {"role": "assistant", "content": whole.choices[0].message.content}
    assert (finishes, usage) == (["stop"], whole.usage)
    assert wire.headers["content-type"] == "text/event-stream"
    assert wire.text.count("data: ") > 10 and wire.text.endswith("data: [DONE]\n\n")


def test_a_stream_breaks_and_drips_as_well():
    broken, breaks = one_kind("half_reply"), pytest.raises(httpx2.RemoteProtocolError)
    with pocket.serve_teacher({}, faults=broken) as base_url, breaks:
        post(base_url, request(stream=True))
    with pocket.serve_teacher({}, faults=one_kind("drip")) as base_url:
        texts, finishes, _ = stream(base_url, request())
    assert (texts["content"], finishes) == ("The image shows 0 things.", ["stop"])


def test_thinking_beside_the_text():
    body = {"model": "teacher-distil", "messages": [{"role": "user", "content": THOUGHT}]}
    with pocket.serve_teacher({}, NEVER_ERRS) as base_url:
        whole = ask(base_url, body).choices[0].message.content
    with pocket.serve_teacher({}, NEVER_ERRS, reasoning_field=True) as base_url:
        message = ask(base_url, body).choices[0].message
        texts, _, _ = stream(base_url, body)
        cut = ask(base_url, body | {"max_tokens": 8}).choices[0]
        other = ask(base_url, request()).choices[0].message
    parsed = prompts.split_think_answer(whole)
    assert message.reasoning_content == parsed.think
    assert message.content == f"{prompts.ANSWER_OPEN}3{prompts.ANSWER_CLOSE}"
    assert texts["reasoning_content"] == parsed.think and texts["content"] == message.content
    assert cut.message.content == "" and cut.finish_reason == "length"
    assert parsed.think.startswith(cut.message.reasoning_content.strip())
    assert not hasattr(other, "reasoning_content")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two hundred micro-world records and their image root."""
    path = tmp_path_factory.mktemp("world")
    sources = ["solids", "panel", "plot", "locate", "describe"]
    return microworld.write_split(path, sources, "train", 40, seed=3), path / "images"


def test_every_way_to_send_a_picture(world):
    (record, *_), images = world
    url = "data:image/png;base64," + base64.b64encode((images / record.image).read_bytes()).decode()
    text = {"type": "text", "text": prompts.CAPTION_PROMPT}
    system = [{"role": "system", "content": "You look closely."}]
    earlier = [{"role": "user", "content": "Hello."}, {"role": "assistant", "content": "Hello!"}]
    with pocket.serve_teacher(pocket.scenes_of([record], images)) as base_url:

        def caption(image, before=()):
            said = [*before, {"role": "user", "content": [image, text]}]
            return post(base_url, {"model": "teacher-caption", "messages": said})

        plain = caption({"type": "image_url", "image_url": {"url": url, "detail": "high"}})
        told = plain.json()["choices"][0]["message"]["content"]
        for reply in (
            caption({"type": "image_url", "image_url": url}),
            caption({"type": "image_url", "image_url": {"url": url}}, system),
            caption({"type": "image_url", "image_url": {"url": url}}, system + earlier),
        ):
            assert reply.json()["choices"][0]["message"]["content"] == told
        refused = caption({"type": "image", "url": url})
    assert (plain.status_code, refused.status_code) == (200, 400) and told
    assert "unknown content part 'image'" in refused.json()["error"]["message"]


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_a_token_limit_cuts(name):
    with pocket.serve_teacher({}) as base_url:
        whole = ask(base_url, request(**{name: 5}))
        cut = ask(base_url, request(**{name: 4}))
        both = ask(base_url, request(max_tokens=9, max_completion_tokens=2))
    found = [(r.choices[0].finish_reason, r.usage.completion_tokens) for r in (whole, cut, both)]
    assert found == [("length", 5), ("length", 4), ("length", 2)]
    assert cut.choices[0].message.content == "The image shows 0"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"n": 2}, "knows no 'n'"),
        ({"logprobs": True}, "knows no 'logprobs'"),
        ({"tools": [{"type": "function"}]}, "knows no 'tools'"),
        ({"max_tokens": -1}, "token limit -1"),
        ({"max_tokens": "9"}, "token limit '9'"),
        ({"messages": []}, "no message of role 'user'"),
        ({"messages": [{"role": "system", "content": "x"}]}, "no message of role 'user'"),
        ({"messages": "hello"}, "cannot read 'messages'"),
        ({"messages": {"role": "user"}}, "cannot read 'messages'"),
        ({"messages": [{"role": "user", "content": [{"type": {}}]}]}, "unknown content part"),
        ({"messages": [{"role": "user", "content": None}]}, "cannot read 'messages'"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "only understands"),
    ],
)
def test_a_request_it_cannot_serve_is_refused_with_the_reason(change, says):
    with pocket.serve_teacher({}) as base_url:
        reply = HTTP.post(base_url + "/chat/completions", content=json.dumps(request() | change))
    assert reply.status_code in (400, 422)
    assert says in reply.json()["error"]["message"]


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b"[" * 100_000, b"\xff", b'{"model": 1}'])
def test_a_hostile_body_is_a_bad_request(body, caplog):
    journal = []
    with pocket.serve_teacher({}, journal=journal) as base_url:
        reply = HTTP.post(base_url + "/chat/completions", content=body)
    assert (reply.status_code, journal[0].outcome) == (400, "HTTP 400")
    assert not caplog.records


def test_neutral_options_health_and_models():
    with pocket.serve_teacher({}) as base_url:
        neutral = {"n": 1, "logprobs": False, "temperature": 0.6, "seed": 3, "stream": False}
        assert post(base_url, request(**neutral)).status_code == 200
        surrogate = json.dumps(request()).replace("caption says", "caption says \\ud800")
        assert HTTP.post(base_url + "/chat/completions", content=surrogate).status_code == 200
        assert HTTP.get(base_url.removesuffix("v1") + "health").json() == {"status": "ok"}
        rows = HTTP.get(base_url + "/models").json()["data"]
    assert [row["id"].partition("-")[2] for row in rows] == list(STEPS)


def build(given, base_url, out, **options):
    items, images = given
    limits = construct.Limits(**{"concurrency": 16, "timeout_s": 20.0, "max_retries": 6} | options)
    construct.run(items, images, base_url, out, limits=limits, progress=False)
    files = {name: (out / f"{name}.jsonl").read_text() for name in ("sft", "rl", "drops")}
    rows = {name: [json.loads(line) for line in text.splitlines()] for name, text in files.items()}
    ids = [row["id"] for part in rows.values() for row in part]
    assert sorted(ids) == sorted(record.id for record in items), "each record in one file, once"
    assert all(row["step"] and row["reason"] for row in rows["drops"])
    with (out / "counts.csv").open() as lines:
        counts = list(csv.DictReader(lines))
    assert all(int(row["in"]) == int(row["out"]) + int(row["dropped"]) for row in counts)
    assert sum(int(row["dropped"]) for row in counts) == len(rows["drops"])
    return files, rows


@pytest.fixture(scope="module")
def part(world):
    """Every fifth record, where the arithmetic of a fault does not need all."""
    items, images = world
    return items[::5], images


@pytest.fixture(scope="module")
def quiet(part, tmp_path_factory):
    """What a run without faults writes."""
    with pocket.serve_teacher(pocket.scenes_of(*part)) as base_url:
        files, rows = build(part, base_url, tmp_path_factory.mktemp("quiet"))
    assert all(len(rows[name]) >= 4 for name in rows), "each file has some"
    return files


def test_faults_that_pass_leave_no_trace(part, quiet, tmp_path):
    journal, rates = [], Faults.spread(0.2, faults.RETRIED)
    scenes = pocket.scenes_of(*part)
    with pocket.serve_teacher(scenes, faults=rates, journal=journal) as base_url:
        files, _ = build(part, base_url, tmp_path)
    assert files == quiet
    assert sum(row.outcome in faults.RETRIED for row in journal) > 20


def test_faults_that_stay_are_drops_with_a_reason(part, quiet, tmp_path):
    rates = Faults.spread(0.2, faults.RETRIED, persistent=1.0)
    scenes = pocket.scenes_of(*part)
    with pocket.serve_teacher(scenes, faults=rates) as base_url:
        files, rows = build(part, base_url, tmp_path, max_retries=1)
    hit = [row for row in rows["drops"] if row["reason"].startswith("no reply from the endpoint")]
    assert len(hit) > 10 and {row["step"] for row in hit} == set(STEPS)
    said = " ".join(row["reason"] for row in hit)
    assert all(word in said for word in ("HTTP 429", "HTTP 500", "HTTP 503", "APIConnectionError"))
    with pocket.serve_teacher(scenes) as base_url:
        healed, _ = build(part, base_url, tmp_path)
    assert healed == quiet != files, "the next run asks what had no reply, and only that"


def test_thinking_beside_the_text_makes_the_same_dataset(part, quiet, tmp_path):
    scenes = pocket.scenes_of(*part)
    with pocket.serve_teacher(scenes, reasoning_field=True) as base_url:
        files, _ = build(part, base_url, tmp_path)
    assert files == quiet


def test_faults_of_every_kind_lose_no_record(world, tmp_path):
    journal, rates = [], Faults.spread(0.2, drip_s=0.2)
    scenes = pocket.scenes_of(*world)
    with pocket.serve_teacher(scenes, faults=rates, journal=journal) as base_url:
        _, rows = build(world, base_url, tmp_path)
    assert {row.outcome for row in journal} >= set(faults.KINDS)
    assert len(rows["sft"]) > 25, "most come through"


def test_the_command_refuses_a_rate_over_one(world, capsys):
    _, images = world
    words = ["serve-teacher", "--records", str(images.parent / "records.jsonl"), "--images"]
    assert main([*words, str(images), "--port", "0", "--fault-rate", "1.5"]) == 2
    assert "all kinds together is 1.5" in capsys.readouterr().err
