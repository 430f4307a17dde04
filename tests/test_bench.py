"""Benchmarks run, and say what they measured."""

from vlaa_lib import bench


def test_construction_is_measured_beside_a_bare_client_loop():
    row = bench.construct(n=6, concurrency=3, repeats=1, latency_s=0.0)
    assert row["records"] == 6 and row["peer"] == "openai client, bare loop"
    assert row["ratio"] == round(row["seconds"] / row["peer seconds"], 3) or row["seconds"] < 1
    beyond = 1000 * (row["seconds"] - row["peer seconds"]) / 6
    assert abs(row["ms a record beyond the peer"] - beyond) < 1
