"""What the peers in Python share: the problems, the check, the clock, and the keys of `regard bench --json`."""

import argparse
import datetime
import json
import math
import os
import statistics
import time

# Factors of the query between which runs alternate, so that none repeats the one before it.
VARIANTS = [1.0, 1.25]
WARM_UP, LEAST_RUNS, MOST_RUNS = 0.2, 5, 10_000
# Error of scale from which on a result is another computation, not a coarser one, and is not timed.
WRONG = 1e-2


class Skipped(Exception):
    """A problem that a peer cannot be asked."""


def parser(description):
    """The arguments that all have."""
    known = argparse.ArgumentParser(description=description)
    known.add_argument("--inputs", required=True, help="the folder that examples/peer_inputs.rs wrote")
    known.add_argument("--problem", action="append", help="one of its manifest; all of them if none is given")
    known.add_argument("--threads", type=int, default=os.cpu_count(), help="on the CPU")
    known.add_argument("--seconds", type=float, default=1.5, help="of measured runs, for each line")
    return known


def problems(arguments):
    """Those of the manifest that are asked for, with their files of tensors."""
    with open(os.path.join(arguments.inputs, "manifest.json"), encoding="utf-8") as file:
        known = json.load(file)
    unknown = set(arguments.problem or []) - {problem["problem"] for problem in known}
    if unknown:
        raise SystemExit(f"not in the manifest: {', '.join(sorted(unknown))}")
    for problem in known:
        if not arguments.problem or problem["problem"] in arguments.problem:
            yield problem, os.path.join(arguments.inputs, problem["file"])


def square_causal(problem):
    """Whether there is a causal mask; one that is not the same under every alignment is refused."""
    causal, rows, keys = problem["causal"], problem["seq_q"], problem["seq_kv"]
    # A single last query sees every key.
    if causal is None or (causal == "bottom-right" and rows == 1):
        return False
    if causal in ("bottom-right", "top-left") and rows == keys:
        return True
    raise Skipped(f"causal={causal} with {rows} queries on {keys} keys is not tried")


def print_line(problem, peer, version, device, keys):
    """A line of JSON."""
    line = {
        "schema": "regard.bench/3",
        "peer": peer,
        "version": version,
        "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "suite": "problem",
        "problem": problem["problem"],
        "device": device,
        "flops": problem["flops"],
        "warnings": [],
    }
    print(json.dumps(line | keys), flush=True)


def checked(problem, got, expected):
    """The keys of a result's error. `got` and `expected` are NumPy's arrays; a row of NaN is not checked."""
    sampled = expected == expected
    got, expected = got.astype("float64")[sampled], expected[sampled]
    most = abs(got - expected).max().item()
    # No number passes for a finite one.
    most = most if math.isfinite(most) else math.inf
    of_scale = most / abs(expected).max().item()
    keys = {
        "max_error": most,
        "error_of_scale": of_scale,
        "tolerance_of_scale": problem["tolerance_of_scale"],
        "checked_rows": problem["checked_rows"],
    }
    if not of_scale < WRONG:
        return keys | {"failed": f"its result is off by {of_scale:.3e} of its scale"}
    if of_scale > problem["tolerance_of_scale"]:
        keys["warnings"] = ["its error is above the tolerance that regard's own kernels are held to"]
    return keys


def by_host_clock(run):
    """Seconds of a run that has ended when it returns."""

    def seconds(variant):
        start = time.perf_counter()
        run(variant)
        return time.perf_counter() - start

    return seconds


def timed(problem, seconds_of, budget, clock):
    """The keys of a measurement: `seconds_of` runs a variant and tells how long it took."""
    runs, warm = 0, time.perf_counter() + WARM_UP
    while time.perf_counter() < warm or runs < 3:
        seconds_of(runs % 2)
        runs += 1
    samples, deadline = [], time.perf_counter() + budget
    while len(samples) < LEAST_RUNS or (time.perf_counter() < deadline and len(samples) < MOST_RUNS):
        samples.append(seconds_of((runs + len(samples)) % 2))
    ordered = sorted(samples)

    def quantile(share):
        at = share * (len(ordered) - 1)
        below, above = ordered[math.floor(at)], ordered[math.ceil(at)]
        return below + (above - below) * (at - math.floor(at))

    first, third = quantile(0.25), quantile(0.75)
    iqr, median = third - first, statistics.median(ordered)
    outside = [x for x in ordered if x < first - 1.5 * iqr or x > third + 1.5 * iqr]
    return {
        "clock": clock,
        "runs": len(ordered),
        "median_ms": median * 1e3,
        "p05_ms": quantile(0.05) * 1e3,
        "p95_ms": quantile(0.95) * 1e3,
        "iqr_ms": iqr * 1e3,
        "min_ms": ordered[0] * 1e3,
        "max_ms": ordered[-1] * 1e3,
        "outliers": len(outside),
        "tflops": problem["flops"] / median / 1e12,
        "cache": "warm",
        "samples_ms": [sample * 1e3 for sample in samples],
    }
