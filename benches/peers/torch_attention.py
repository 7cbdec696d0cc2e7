"""PyTorch's attention and the seed-2 layer, in turns with `regard bench` on the same problems.

Beside the ratio stands what share each reaches of a ceiling that is measured in the same turns: plain products of 1024 x 1024 in
PyTorch, and for decoding, which is bound by memory, the sum of a tensor that no cache holds."""

import argparse
import datetime
import json
import math
import os
import platform
import statistics
import subprocess
import time

import torch
import torch.nn.functional as F

PROBLEMS = [
    "b=1,h=8,s=1024,d=64",
    "b=1,h=8,s=1024,d=64,causal=top-left",
    "b=1,h=4,s=2048,d=128",
    "b=8,h=12,s=128,d=64",
    "b=8,h=32,kvh=8,sq=1,skv=4096,d=128",
]
LAYER = "layer"


def parse(problem):
    """Sizes of a problem in the notation of `regard bench --problem`."""
    sizes = dict(part.split("=", 1) if "=" in part else (part, True) for part in problem.split(","))
    number = lambda key, default=None: int(sizes.get(key, default if default is not None else sizes.get("s")))
    heads = number("h")
    return {
        "batch": number("b"),
        "heads": heads,
        "kv_heads": number("kvh", heads),
        "seq_q": number("sq", sizes.get("s")),
        "seq_kv": number("skv", sizes.get("s")),
        "head_dim": number("d"),
        "causal": "causal" in sizes,
    }


def attention(problem, device):
    """A closure that runs the problem once, and its flops by FlashAttention's formula."""
    p = parse(problem)
    shape = lambda heads, seq: (p["batch"], heads, seq, p["head_dim"])
    q = torch.randn(shape(p["heads"], p["seq_q"]), device=device)
    k, v = (torch.randn(shape(p["kv_heads"], p["seq_kv"]), device=device) for _ in range(2))
    grouped = p["kv_heads"] != p["heads"]
    run = lambda: F.scaled_dot_product_attention(q, k, v, is_causal=p["causal"], enable_gqa=grouped)
    seen = (max(0, p["seq_kv"] - p["seq_q"]) + p["seq_kv"]) / 2 if p["causal"] else p["seq_kv"]
    return run, 4 * p["batch"] * p["heads"] * p["seq_q"] * seen * p["head_dim"]


def layer(device, batch=128, seq=32, width=200, heads=5):
    """The layer of seed document 002 at its printed size, as it is written there, in eval mode."""
    src = torch.rand(batch, seq, width, device=device)
    lin_q, lin_k, lin_v, lin_o = (torch.nn.Linear(width, width, device=device) for _ in range(4))
    split = lambda x: x.view(batch, -1, heads, width // heads).permute(0, 2, 1, 3)

    def run():
        q, k, v = split(lin_q(src)), split(lin_k(src)), split(lin_v(src))
        scores = torch.matmul(q, k.permute(0, 1, 3, 2)) / math.sqrt(width)
        x = torch.matmul(torch.softmax(scores, dim=-1), v)
        return lin_o(x.permute(0, 2, 1, 3).contiguous().view(batch, -1, width))

    return run, 8 * batch * seq * width * width + 4 * batch * seq * seq * width


def product(device, size=1024):
    """A plain product, and its flops."""
    a, b = (torch.randn(size, size, device=device) for _ in range(2))
    out = torch.empty(size, size, device=device)
    return lambda: torch.mm(a, b, out=out), 2 * size**3


def reading(device, elements=1 << 27):
    """A sum of 512 MiB, and its bytes."""
    x = torch.ones(elements, device=device)
    return lambda: torch.sum(x), 4 * elements


def bound(problem, device, flops):
    """What bounds a problem: a closure and its work, and the problem's own work of that kind."""
    p = None if problem == LAYER else parse(problem)
    if p and p["seq_q"] == 1:
        return *reading(device), 8 * p["batch"] * p["kv_heads"] * p["seq_kv"] * p["head_dim"]
    return *product(device), flops


def time_torch(run, device, seconds):
    """Milliseconds of single runs, for about this long after a warm-up."""
    synchronize = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    samples = []
    deadline = time.perf_counter() + 0.3
    while time.perf_counter() < deadline:
        run()
    synchronize()
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline or len(samples) < 5:
        start = time.perf_counter()
        run()
        synchronize()
        samples.append((time.perf_counter() - start) * 1e3)
    return samples


def time_regard(command, problem, device):
    """The JSON line that `regard bench` prints for this problem."""
    what = ["--suite", LAYER] if problem == LAYER else ["--problem", problem]
    result = subprocess.run([command, "bench", "--warm", "--json", "--device", device, *what], capture_output=True, text=True)
    lines = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    lines = [line for line in lines if line.get("median_ms") is not None]
    if not lines:
        raise SystemExit(f"regard bench gave no result for {problem}:\n{result.stdout}{result.stderr}")
    return lines[0]


def commit():
    """The commit of the tree that this script lies in, marked if it was changed since."""
    folder = os.path.dirname(os.path.abspath(__file__))
    result = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=folder, capture_output=True, text=True)
    return result.stdout.strip() or None


def cpu():
    """Model name and number of processors, as Linux tells them."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    except OSError:
        return platform.processor()
    return f"{names[0]}, {len(names)} processors" if names else platform.processor()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--regard", default="target/release/regard")
    parser.add_argument("--device", default="cpu", help="of regard")
    parser.add_argument("--torch-device", default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=1.5, help="of PyTorch for each problem and round")
    parser.add_argument("--problem", action="append", help=f"`{LAYER}` or as in `regard bench --problem`")
    parser.add_argument("--out", help="file to append JSON lines to")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    os.environ["RAYON_NUM_THREADS"] = str(arguments.threads)
    print(f"PyTorch {torch.__version__} on {arguments.torch_device}, {arguments.threads} threads, {arguments.rounds} rounds")
    print(f"{'problem':44} {'torch ms':>9} {'regard ms':>9} {'torch GF/s':>10} {'regard GF/s':>11} {'regard/torch':>12} {'ceiling':>13} {'torch':>6} {'regard':>6}")
    for problem in arguments.problem or [*PROBLEMS, LAYER]:
        with torch.inference_mode():
            run, flops = layer(arguments.torch_device) if problem == LAYER else attention(problem, arguments.torch_device)
            plain, plain_work, work = bound(problem, arguments.torch_device, flops)
            theirs, ours, plains = [], [], []
            for _ in range(arguments.rounds):
                plains.append(statistics.median(time_torch(plain, arguments.torch_device, arguments.seconds / 3)))
                theirs.append(statistics.median(time_torch(run, arguments.torch_device, arguments.seconds)))
                line = time_regard(arguments.regard, problem, arguments.device)
                ours.append(line["median_ms"])
        torch_ms, regard_ms = statistics.median(theirs), statistics.median(ours)
        rate = lambda ms: flops / ms / 1e6
        ceiling = plain_work / statistics.median(plains) / 1e6
        share = lambda ms: work / ms / 1e6 / ceiling
        unit = "GFLOP/s" if work == flops else "GB/s"
        print(
            f"{problem:44} {torch_ms:9.3f} {regard_ms:9.3f} {rate(torch_ms):10.1f} {rate(regard_ms):11.1f}"
            f" {torch_ms / regard_ms:11.2f}x {ceiling:5.0f} {unit:7} {share(torch_ms):6.0%} {share(regard_ms):6.0%}",
            flush=True,
        )
        if arguments.out:
            record = {
                "schema": "regard.peer/1",
                "date": datetime.date.today().isoformat(),
                "commit": commit(),
                "cpu": cpu(),
                "problem": problem,
                "peer": f"PyTorch {torch.__version__}",
                "threads": arguments.threads,
                "flops": int(flops),
                "peer_round_medians_ms": theirs,
                "regard_round_medians_ms": ours,
                "peer_median_ms": torch_ms,
                "regard_median_ms": regard_ms,
                "regard_speedup": torch_ms / regard_ms,
                "ceiling": ceiling,
                "ceiling_unit": unit,
                "peer_share": share(torch_ms),
                "regard_share": share(regard_ms),
                "regard": line,
            }
            with open(arguments.out, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
