"""PyTorch's attention by each of its backends, over the problems that `examples/peer_inputs.rs` wrote: lines of JSON.

Every backend is asked for by name, and none may be replaced by another. The keys are those of `regard bench --json`.
"""

import argparse
import datetime
import json
import math
import os
import platform
import statistics
import time
import warnings

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch.nn.attention import SDPBackend, sdpa_kernel

BACKENDS = {
    "math": SDPBackend.MATH,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}
OF_DEVICE = {"cpu": ["flash", "math"], "cuda": ["cudnn", "flash", "efficient", "math"]}
# Variants of the query that runs alternate between, so that none repeats the one before it.
VARIANTS = [1.0, 1.25]
WARM_UP, LEAST_RUNS, MOST_RUNS = 0.2, 5, 10_000
# Error of scale from which on a result is another computation, not a coarser one, and is not timed.
WRONG = 1e-2


class Skipped(Exception):
    """A problem that a backend cannot be asked."""


def square_causal(problem):
    """Whether there is a causal mask; one that is not the same under every alignment is refused."""
    causal, rows, keys = problem["causal"], problem["seq_q"], problem["seq_kv"]
    # A single last query sees every key.
    if causal is None or (causal == "bottom-right" and rows == 1):
        return False
    if causal in ("bottom-right", "top-left") and rows == keys:
        return True
    raise Skipped(f"causal={causal} with {rows} queries on {keys} keys is not tried")


def prepare(problem, tensors, device):
    """A closure that runs a variant of the problem once and gives the result."""
    causal = square_causal(problem)
    q, k, v = (tensors[name].to(device) for name in "qkv")
    queries = [q * variant for variant in VARIANTS]
    grouped = problem["heads"] != problem["kv_heads"]
    return lambda variant: F.scaled_dot_product_attention(queries[variant], k, v, is_causal=causal, enable_gqa=grouped)


def deviation(got, expected):
    """Largest error where a row was checked, and the same as a share of the largest magnitude expected."""
    checked = ~expected.isnan()
    got, expected = got.double().cpu()[checked], expected[checked]
    if not got.isfinite().all():
        return math.inf, math.inf
    most = (got - expected).abs().max().item()
    return most, most / expected.abs().max().item()


def time_on_cpu(run, seconds):
    """Seconds of single runs by the host's clock."""
    variant, samples = 0, []
    warm = time.perf_counter() + WARM_UP
    runs = 0
    while time.perf_counter() < warm or runs < 3:
        run(runs % 2)
        runs += 1
    deadline = time.perf_counter() + seconds
    while len(samples) < LEAST_RUNS or (time.perf_counter() < deadline and len(samples) < MOST_RUNS):
        variant = 1 - variant
        start = time.perf_counter()
        run(variant)
        samples.append(time.perf_counter() - start)
    return samples


def time_on_cuda(run, seconds):
    """Seconds of single runs between events of the device."""
    runs = 0
    warm = time.perf_counter() + WARM_UP
    while time.perf_counter() < warm or runs < 3:
        run(runs % 2)
        torch.cuda.synchronize()
        runs += 1
    samples, variant = [], 0
    deadline = time.perf_counter() + seconds
    while len(samples) < LEAST_RUNS or (time.perf_counter() < deadline and len(samples) < MOST_RUNS):
        variant = 1 - variant
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run(variant)
        end.record()
        end.synchronize()
        samples.append(start.elapsed_time(end) / 1e3)
    return samples


def timing(samples, flops, clock):
    """The keys of a measurement."""
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
        "tflops": flops / median / 1e12,
        "cache": "warm",
        "samples_ms": [sample * 1e3 for sample in samples],
    }


def measure(problem, tensors, backend, arguments):
    """The keys that are known of this backend on this problem."""
    cuda = arguments.device.startswith("cuda")
    keys = {"path": f"scaled_dot_product_attention, {backend}", "flops": problem["flops"], "warnings": []}
    try:
        run = prepare(problem, tensors, arguments.device)
        with torch.inference_mode(), sdpa_kernel([BACKENDS[backend]]), warnings.catch_warnings(record=True) as reasons:
            # Why a backend refuses is told by warnings, which otherwise come once only.
            warnings.simplefilter("always")
            try:
                got = run(0)
            except RuntimeError as error:
                told = [str(reason.message).split(" (Triggered")[0] for reason in reasons]
                raise Skipped("; ".join([str(error).split("\n")[0], *told])) from error
            most, of_scale = deviation(got, tensors["expected"])
            keys |= {
                "max_error": most,
                "error_of_scale": of_scale,
                "tolerance_of_scale": problem["tolerance_of_scale"],
                "checked_rows": problem["checked_rows"],
            }
            if not of_scale < WRONG:
                return keys | {"failed": f"its result is off by {of_scale:.3e} of its scale"}
            time_on = time_on_cuda if cuda else time_on_cpu
            samples = time_on(run, arguments.seconds)
            keys |= timing(samples, problem["flops"], "CUDA events" if cuda else "host clock")
        if of_scale > problem["tolerance_of_scale"]:
            keys["warnings"].append("its error is above the tolerance that regard's own kernels are held to")
        return keys
    except Skipped as reason:
        return keys | {"skipped": str(reason)}


def device_name(arguments):
    """What PyTorch runs on."""
    if arguments.device.startswith("cuda"):
        return f"{torch.cuda.get_device_name()} (CUDA {torch.version.cuda})"
    return f"CPU, {arguments.threads} threads ({torch.backends.cpu.get_cpu_capability()}, {platform.machine()})"


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", required=True, help="the folder that examples/peer_inputs.rs wrote")
    parser.add_argument("--problem", action="append", help="one of its manifest; all of them if none is given")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--backend", action="append", choices=BACKENDS, help="all that the device has if none is given")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="on the CPU")
    parser.add_argument("--seconds", type=float, default=1.5)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    # f32 means f32.
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    with open(os.path.join(arguments.inputs, "manifest.json"), encoding="utf-8") as file:
        known = json.load(file)
    unknown = set(arguments.problem or []) - {problem["problem"] for problem in known}
    if unknown:
        raise SystemExit(f"not in the manifest: {', '.join(sorted(unknown))}")
    for problem in known:
        if arguments.problem and problem["problem"] not in arguments.problem:
            continue
        tensors = load_file(os.path.join(arguments.inputs, problem["file"]))
        for backend in arguments.backend or OF_DEVICE[arguments.device.split(":")[0]]:
            line = {
                "schema": "regard.bench/3",
                "peer": f"torch {backend}",
                "version": torch.__version__,
                "date": datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
                "suite": "problem",
                "problem": problem["problem"],
                "device": device_name(arguments),
            }
            print(json.dumps(line | measure(problem, tensors, backend, arguments)), flush=True)


if __name__ == "__main__":
    main()
