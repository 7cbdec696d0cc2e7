"""all-MiniLM-L6-v2 in PyTorch, in turns with `regard embed` on the same sentences: sentences per second of both."""

import argparse
import datetime
import json
import os
import platform
import random
import statistics
import subprocess
import threading
import time

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer

MAX_TOKENS = 256


def sentences(tokenizer, count, seed=7):
    """Sentences of 5 to 40 words out of the model's own vocabulary."""
    words = sorted(word for word in tokenizer.get_vocab() if word.isascii() and word.isalpha() and len(word) > 2)
    draw = random.Random(seed)
    return [" ".join(draw.choices(words, k=draw.randint(5, 40))) for _ in range(count)]


def open_tokenizer(folder):
    """The packaged one pads and truncates to 128; padding is to the longest of a batch instead."""
    tokenizer = Tokenizer.from_file(os.path.join(folder, "tokenizer.json"))
    tokenizer.enable_truncation(MAX_TOKENS)
    tokenizer.enable_padding()
    return tokenizer


def transformers_model(folder):
    """The model as its authors run it."""
    from transformers import BertModel

    model = BertModel.from_pretrained(folder, add_pooling_layer=False).eval()
    return lambda ids, mask: model(input_ids=ids, attention_mask=mask).last_hidden_state


def plain_model(folder):
    """The same in plain PyTorch, for machines without `transformers`."""
    from safetensors.torch import load_file

    weights = load_file(os.path.join(folder, "model.safetensors"))
    with open(os.path.join(folder, "config.json")) as file:
        config = json.load(file)
    heads, width, epsilon = config["num_attention_heads"], config["hidden_size"], config["layer_norm_eps"]
    linear = lambda x, name: F.linear(x, weights[name + ".weight"], weights[name + ".bias"])
    norm = lambda x, name: F.layer_norm(x, (width,), weights[name + ".weight"], weights[name + ".bias"], epsilon)

    def run(ids, mask):
        batch, seq = ids.shape
        split = lambda x: x.view(batch, seq, heads, width // heads).transpose(1, 2)
        x = weights["embeddings.word_embeddings.weight"][ids]
        x = x + weights["embeddings.position_embeddings.weight"][:seq]
        x = norm(x + weights["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        for layer in range(config["num_hidden_layers"]):
            name = f"encoder.layer.{layer}."
            q, k, v = (split(linear(x, f"{name}attention.self.{part}")) for part in ("query", "key", "value"))
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :].bool())
            y = linear(y.transpose(1, 2).reshape(batch, seq, width), name + "attention.output.dense")
            x = norm(x + y, name + "attention.output.LayerNorm")
            y = linear(F.gelu(linear(x, name + "intermediate.dense")), name + "output.dense")
            x = norm(x + y, name + "output.LayerNorm")
        return x

    return run


def open_model(folder):
    """The model, and what it is run by."""
    try:
        import transformers

        return transformers_model(folder), f"transformers {transformers.__version__}"
    except ImportError:
        return plain_model(folder), "plain torch modules"


def torch_embed(model, tokenizer, lines, batch):
    """Unit vectors in the order of the lines; batches of lines of similar length."""
    order = sorted(range(len(lines)), key=lambda line: len(lines[line]))
    vectors = torch.empty(len(lines), 0)
    with torch.inference_mode():
        for start in range(0, len(order), batch):
            members = order[start : start + batch]
            encodings = tokenizer.encode_batch([lines[line] for line in members])
            ids = torch.tensor([encoding.ids for encoding in encodings])
            mask = torch.tensor([encoding.attention_mask for encoding in encodings])
            states = model(ids, mask)
            weight = mask[..., None].to(states.dtype)
            pooled = F.normalize((states * weight).sum(1) / weight.sum(1))
            if vectors.shape[1] == 0:
                vectors = torch.empty(len(lines), pooled.shape[1])
            vectors[members] = pooled
    return vectors


def high_water(process, peak):
    """Appends the most memory that a process has had so far, again and again; Linux only. What the system reports of children
    that have ended counts the parent's memory before `exec`."""
    while process.poll() is None:
        try:
            with open(f"/proc/{process.pid}/status") as status:
                peak += [int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM")]
        except OSError:
            return
        time.sleep(0.02)


def regard_embed(args, lines):
    """Seconds of the whole process, its vectors, and its peak memory in bytes, or None."""
    command = [args.regard, "embed", "--model", args.model, "--device", args.device, "--dtype", args.dtype]
    environment = dict(os.environ, RAYON_NUM_THREADS=str(args.threads))
    text = "".join(line + "\n" for line in lines)
    peak = []
    start = time.perf_counter()
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process = subprocess.Popen(command, env=environment, **pipes)
    watch = threading.Thread(target=high_water, args=(process, peak))
    watch.start()
    out, err = process.communicate(text)
    seconds = time.perf_counter() - start
    watch.join()
    if process.returncode != 0:
        raise SystemExit(f"regard embed failed: {err.strip()}")
    vectors = torch.tensor([[float(x) for x in row.split()] for row in out.splitlines()])
    return seconds, vectors, max(peak, default=None)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="the folder that scripts/fetch-minilm prints")
    parser.add_argument("--regard", default="target/release/regard")
    parser.add_argument("--device", default="cpu", help="of regard; PyTorch runs on the CPU")
    parser.add_argument("--dtype", default="f32", help="of regard; PyTorch runs in f32")
    parser.add_argument("--sentences", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", help="appends one JSON record to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    # Otherwise the tokenizer takes every core.
    os.environ["RAYON_NUM_THREADS"] = str(args.threads)
    tokenizer = open_tokenizer(args.model)
    model, runner = open_model(args.model)
    lines = sentences(tokenizer, args.sentences)
    wanted = torch_embed(model, tokenizer, lines, args.batch)
    _, got, peak = regard_embed(args, lines)
    cosine = F.cosine_similarity(got, wanted).min().item()
    if not cosine >= 0.9999:
        raise SystemExit(f"the vectors differ: least cosine {cosine}")
    torch_seconds, regard_seconds, load_seconds = [], [], []
    for _ in range(args.rounds):
        start = time.perf_counter()
        torch_embed(model, tokenizer, lines, args.batch)
        torch_seconds.append(time.perf_counter() - start)
        regard_seconds.append(regard_embed(args, lines)[0])
        load_seconds.append(regard_embed(args, [])[0])
    load = statistics.median(load_seconds)
    rate = lambda seconds: round(args.sentences / seconds, 1)
    record = {
        "date": datetime.date.today().isoformat(),
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "runner": runner,
        "threads": args.threads,
        "sentences": args.sentences,
        "batch": args.batch,
        "regard_device": args.device,
        "regard_dtype": args.dtype,
        "torch_per_second": rate(statistics.median(torch_seconds)),
        # PyTorch's model is loaded before its clock starts.
        "regard_per_second": rate(statistics.median(regard_seconds) - load),
        "regard_process_per_second": rate(statistics.median(regard_seconds)),
        "regard_load_seconds": round(load, 3),
        "regard_peak_bytes": peak,
        "least_cosine": cosine,
    }
    record["ratio"] = round(record["regard_per_second"] / record["torch_per_second"], 3)
    for name, value in record.items():
        print(f"{name}: {value}")
    if args.out:
        with open(args.out, "a") as file:
            file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
