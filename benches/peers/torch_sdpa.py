"""PyTorch's attention by each of its backends, over the problems that `examples/peer_inputs.rs` wrote: lines of JSON.

Every backend is asked for by name, and none may be replaced by another. The keys are those of `regard bench --json`.
"""

import platform
import warnings

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch.nn.attention import SDPBackend, sdpa_kernel

from measuring import VARIANTS, Skipped, by_host_clock, checked, parser, print_line, problems, square_causal, timed

BACKENDS = {
    "math": SDPBackend.MATH,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
}
OF_DEVICE = {"cpu": ["flash", "math"], "cuda": ["cudnn", "flash", "efficient", "math"]}


def prepare(problem, tensors, device):
    """A closure that runs a variant of the problem once and gives the result."""
    causal = square_causal(problem)
    q, k, v = (tensors[name].to(device) for name in "qkv")
    queries = [q * variant for variant in VARIANTS]
    grouped = problem["heads"] != problem["kv_heads"]
    return lambda variant: F.scaled_dot_product_attention(queries[variant], k, v, is_causal=causal, enable_gqa=grouped)


def by_events(run):
    """Seconds of a run between events of the device."""

    def seconds(variant):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run(variant)
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    return seconds


def measure(problem, tensors, backend, arguments):
    """The keys that are known of this backend on this problem."""
    cuda = arguments.device.startswith("cuda")
    keys = {"path": f"scaled_dot_product_attention, {backend}"}
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
            keys |= checked(problem, got.double().cpu().numpy(), tensors["expected"].numpy())
            if "failed" not in keys:
                clock = "CUDA events" if cuda else "host clock"
                seconds_of = by_events(run) if cuda else by_host_clock(run)
                keys |= timed(problem, seconds_of, arguments.seconds, clock)
        return keys
    except Skipped as reason:
        return keys | {"skipped": str(reason)}


def device_name(arguments):
    """What PyTorch runs on."""
    if arguments.device.startswith("cuda"):
        return f"{torch.cuda.get_device_name()} (CUDA {torch.version.cuda})"
    return f"CPU, {arguments.threads} threads ({torch.backends.cpu.get_cpu_capability()}, {platform.machine()})"


def main():
    known = parser(__doc__)
    known.add_argument("--device", default="cpu", help="cpu or cuda")
    known.add_argument("--backend", action="append", choices=BACKENDS, help="all that the device has if none is given")
    arguments = known.parse_args()
    torch.set_num_threads(arguments.threads)
    # f32 means f32.
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    for problem, file in problems(arguments):
        tensors = load_file(file)
        for backend in arguments.backend or OF_DEVICE[arguments.device.split(":")[0]]:
            keys = measure(problem, tensors, backend, arguments)
            print_line(problem, f"torch {backend}", torch.__version__, device_name(arguments), keys)


if __name__ == "__main__":
    main()
