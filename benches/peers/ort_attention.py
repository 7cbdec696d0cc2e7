"""ONNX Runtime's attention, over the problems that `examples/peer_inputs.rs` wrote: lines of JSON.

Each of its operators is a model of one node, asked for by name, on one execution provider that may not hand nodes to another. The keys
are those of `regard bench --json`.
"""

import math
import platform
from collections import namedtuple

import numpy
import onnxruntime
from onnx import TensorProto, helper
from safetensors.numpy import load_file

from measuring import VARIANTS, Skipped, by_host_clock, checked, parser, print_line, problems, square_causal, timed

PROVIDERS = {"cpu": "CPUExecutionProvider", "webgpu": "WebGpuExecutionProvider", "cuda": "CUDAExecutionProvider"}
TYPES = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "int32": TensorProto.INT32, "int64": TensorProto.INT64}
OPSETS = [helper.make_opsetid("", 23), helper.make_opsetid("com.microsoft", 1)]
# `inputs` are in the layout that the operator wants, `shared` are inputs that are written as outputs.
Model = namedtuple("Model", "path nodes inputs shared heads_last", defaults=[{}, False])


def merged(x):
    """Batch, heads, sequence, width as batch, sequence, heads · width."""
    batch, heads, seq, width = x.shape
    return numpy.ascontiguousarray(x.transpose(0, 2, 1, 3)).reshape(batch, seq, heads * width)


def attention(problem, q, k, v):
    """ONNX's own operator."""
    node = helper.make_node("Attention", ["q", "k", "v"], ["y"], is_causal=int(square_causal(problem)))
    return Model("Attention", [node], {"q": q, "k": k, "v": v})


def multi_head(problem, q, k, v):
    """The operator that ONNX Runtime fuses models to."""
    if problem["heads"] != problem["kv_heads"]:
        raise Skipped("MultiHeadAttention wants a key head for each query head")
    settings = {"num_heads": problem["heads"], "unidirectional": int(square_causal(problem)), "domain": "com.microsoft"}
    node = helper.make_node("MultiHeadAttention", ["q", "k", "v"], ["y"], **settings)
    return Model("MultiHeadAttention", [node], {"q": merged(q), "k": merged(k), "v": merged(v)}, heads_last=True)


def grouped_query(problem, q, k, v):
    """The operator of decoders, which is causal: the last keys arrive with their queries, the others are in a cache."""
    rows, keys = problem["seq_q"], problem["seq_kv"]
    if not (rows == 1 or (rows == keys and square_causal(problem))):
        raise Skipped("GroupQueryAttention sees the keys before each query alone")
    new = keys - rows
    inputs = {
        "q": merged(q),
        "k": merged(k[:, :, new:]),
        "v": merged(v[:, :, new:]),
        "lengths": numpy.full(problem["batch"], keys - 1, "int32"),
        "total": numpy.array([keys], "int32"),
    }
    # Caches have room for the new keys, which each run writes again, so that none is copied.
    caches = {"past_k": k, "past_v": v}
    settings = {"num_heads": problem["heads"], "kv_num_heads": problem["kv_heads"], "domain": "com.microsoft"}
    names = ["q", "k", "v", *caches, "lengths", "total"]
    node = helper.make_node("GroupQueryAttention", names, ["y", "present_k", "present_v"], **settings)
    shared = {"past_k": "present_k", "past_v": "present_v"}
    return Model("GroupQueryAttention", [node], inputs | caches, shared, heads_last=True)


def unfused(problem, q, k, v):
    """Scores in memory, by ONNX's products and softmax."""
    if problem["heads"] != problem["kv_heads"]:
        raise Skipped("products with shared heads are not tried")
    if square_causal(problem):
        raise Skipped("a causal mask on scores is not tried")
    nodes = [
        helper.make_node("Mul", ["q", "scale"], ["scaled"]),
        helper.make_node("MatMul", ["scaled", "k"], ["scores"]),
        helper.make_node("Softmax", ["scores"], ["shares"]),
        helper.make_node("MatMul", ["shares", "v"], ["y"]),
    ]
    scale = numpy.array([1 / math.sqrt(problem["head_dim"])], q.dtype)
    k = numpy.ascontiguousarray(k.transpose(0, 1, 3, 2))
    return Model("Mul + MatMul + Softmax + MatMul", nodes, {"q": q, "k": k, "v": v, "scale": scale})


OPERATORS = {
    "Attention": attention,
    "MultiHeadAttention": multi_head,
    "GroupQueryAttention": grouped_query,
    "unfused": unfused,
}


def session(nodes, inputs, outputs, arguments):
    """A session on one provider; the shapes of outputs are inferred."""
    infos = [helper.make_tensor_value_info(name, TYPES[str(x.dtype)], x.shape) for name, x in inputs.items()]
    outputs = [helper.make_tensor_value_info(name, TYPES[str(dtype)], None) for name, dtype in outputs.items()]
    model = helper.make_model(helper.make_graph(nodes, "g", infos, outputs), opset_imports=OPSETS, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = arguments.threads
    options.log_severity_level = 4
    if arguments.device != "cpu":
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    try:
        return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=[PROVIDERS[arguments.device]])
    except Exception as error:  # Its exceptions have no common class.
        raise Skipped(str(error).strip().split("\n")[0]) from error


class OnDevice:
    """Values in the provider's memory, and what keeps them there: a binding alone does not."""

    def __init__(self, arguments):
        self.arguments, self.kept = arguments, []
        self.is_host = arguments.device == "cpu"
        self.last = None if self.is_host else self.product(numpy.ones(1, "float32"), "cpu")

    def close(self):
        """Lets go of all, the latest first: a value that outlives its session crashes."""
        while self.kept:
            self.kept.pop()
        self.last = None

    def keep(self, *things):
        """The last of them, which are kept in this order."""
        self.kept.extend(things)
        return self.kept[-1]

    def product(self, x, where):
        """A session that multiplies by one, and its inputs and result."""
        one = numpy.ones(1, x.dtype)
        owner = session([helper.make_node("Mul", ["x", "one"], ["y"])], {"x": x, "one": one}, {"y": x.dtype}, self.arguments)
        binding = owner.io_binding()
        binding.bind_cpu_input("x", x)
        binding.bind_cpu_input("one", one)
        binding.bind_output("y", where)
        owner.run_with_iobinding(binding)
        return owner, binding

    def put(self, x):
        """A value with these numbers. Providers other than the CPU's hand out memory for results alone, so one computes it."""
        # Integers are read by the host.
        if self.is_host or x.dtype.kind == "i":
            return self.keep(onnxruntime.OrtValue.ortvalue_from_numpy(x))
        owner, binding = self.product(x, self.arguments.device)
        return self.keep(owner, binding, binding.get_outputs()[0])

    def wait(self):
        """Until the device has done what it was given: no run waits, but a number that the host reads comes after all before it."""
        if self.last:
            owner, binding = self.last
            owner.run_with_iobinding(binding)


class Prepared:
    """A model with its inputs."""

    def __init__(self, problem, model, arguments, memory):
        self.heads = problem["heads"] if model.heads_last else None
        self.memory = memory
        q = model.inputs["q"]
        outputs = {"y": q.dtype} | {name: q.dtype for name in model.shared.values()}
        self.session = memory.keep(session(model.nodes, model.inputs, outputs, arguments))
        values = {name: memory.put(x) for name, x in model.inputs.items() if name != "q"}
        queries = [memory.put((q * variant).astype(q.dtype)) for variant in VARIANTS]
        self.bindings = memory.keep([self.session.io_binding() for _ in VARIANTS])
        for binding, query in zip(self.bindings, queries):
            for name, value in (values | {"q": query}).items():
                binding.bind_ortvalue_input(name, value)
            binding.bind_output("y", arguments.device)
            for past, present in model.shared.items():
                binding.bind_ortvalue_output(present, values[past])

    def run(self, variant):
        """Runs once and waits."""
        self.session.run_with_iobinding(self.bindings[variant])
        self.memory.wait()

    def result(self):
        """What the first variant gave, batch and heads first."""
        y = self.bindings[0].copy_outputs_to_cpu()[0]
        return y.reshape(*y.shape[:2], self.heads, -1).transpose(0, 2, 1, 3) if self.heads else y

    def close(self):
        """Lets go of the results before their session."""
        self.bindings.clear()
        self.session = None


def measure(problem, tensors, operator, arguments):
    """The keys that are known of this operator on this problem."""
    keys, memory, prepared = {"path": operator}, None, None
    try:
        model = OPERATORS[operator](problem, *(tensors[name] for name in "qkv"))
        keys["path"], memory = model.path, OnDevice(arguments)
        prepared = Prepared(problem, model, arguments, memory)
        try:
            prepared.run(0)
        except Exception as error:  # As above.
            raise Skipped(str(error).strip().split("\n")[0]) from error
        keys |= checked(problem, prepared.result(), tensors["expected"])
        if "failed" not in keys:
            keys |= timed(problem, by_host_clock(prepared.run), arguments.seconds, "host clock")
        return keys
    except Skipped as reason:
        return keys | {"skipped": str(reason)}
    finally:
        for held in filter(None, [prepared, memory]):
            held.close()


def main():
    known = parser(__doc__)
    known.add_argument("--device", default="cpu", choices=PROVIDERS)
    known.add_argument("--operator", action="append", choices=OPERATORS, help="all of them if none is given")
    arguments = known.parse_args()
    device = f"CPU, {arguments.threads} threads ({platform.machine()})" if arguments.device == "cpu" else arguments.device
    for problem, file in problems(arguments):
        tensors = load_file(file)
        for operator in arguments.operator or OPERATORS:
            keys = measure(problem, tensors, operator, arguments)
            print_line(problem, f"ort {arguments.device}", onnxruntime.__version__, device, keys)


if __name__ == "__main__":
    main()
