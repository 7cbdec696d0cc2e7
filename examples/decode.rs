//! A decoding loop: three sequences of different lengths grow by a token at a time in one resident cache. One plan serves every
//! step, and nothing comes back to the host until the end.
//!
//!     cargo run --release --example decode

use std::error::Error;
use std::time::Instant;

use regard::ops::{Angles, AppendOptions, KvCache, Pairs, Positions, RotaryOptions, rotary_caches};
use regard::{Attention, Causal, Device, DeviceOptions, Dtype, Graph, HostTensor, Layout, Plan, TensorDesc};

const BATCH: usize = 3;
const HEADS: usize = 8;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 64;
const CAPACITY: usize = 1024;
const STEPS: usize = 100;

fn main() -> Result<(), Box<dyn Error>> {
    let device = Device::new(&DeviceOptions::default())?;
    let mut plan = Plan::new(&device, &step()?)?;
    println!("{}\n", plan.describe());
    // What the sequences have from their prompts; here the rows themselves are zeros.
    plan.write("keys", &cache())?;
    plan.write("values", &cache())?;
    plan.write("lengths", &HostTensor::u32(&[BATCH], vec![10, 100, 700])?)?;

    let start = Instant::now();
    for token in 0..STEPS {
        // A model would compute these from the token.
        for (name, heads) in [("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)] {
            let numbers =
                (0..BATCH * heads * HEAD_DIM).map(|at| ((at * 7919 + token * 104_729) % 2001) as f32 / 1000.0 - 1.0);
            plan.write(name, &HostTensor::f32(&[BATCH, 1, heads * HEAD_DIM], numbers.collect())?)?;
        }
        plan.submit()?;
    }
    let y = plan.read("y")?;
    println!("{STEPS} steps of {BATCH} sequences in {:.1?} on {}", start.elapsed(), device.name());
    println!("lengths are {:?}", device.download(&plan.tensor("lengths")?)?.as_u32().unwrap_or_default());
    println!("the last output begins with {:.4?}", &y.to_f64()[..4]);
    Ok(())
}

/// Append, then attend: rotary embedding by the positions that the rows get, grouped heads, no copy of any head.
fn step() -> regard::Result<Graph> {
    let mut graph = Graph::new();
    let mut row =
        |name: &str, heads: usize| graph.input(name, TensorDesc::new(Dtype::F32, [BATCH, 1, heads * HEAD_DIM]));
    let [q, k, v] = [row("q", HEADS)?, row("k", KV_HEADS)?, row("v", KV_HEADS)?];
    let keys = graph.input("keys", cache().desc().clone())?;
    let values = graph.input("values", cache().desc().clone())?;
    let lengths = graph.input("lengths", TensorDesc::new(Dtype::U32, [BATCH]))?;
    let [cos, sin] = rotary_caches(10_000.0, HEAD_DIM, CAPACITY)?;
    let angles = Angles { cos: graph.constant(cos)?, sin: graph.constant(sin)?, pairs: Pairs::Halves };

    let (q_layout, layout) = (Layout::Merged { heads: HEADS }, Layout::Merged { heads: KV_HEADS });
    let turn = RotaryOptions { layout: q_layout, angles, positions: Positions::After(lengths), norm: None };
    let q = graph.rotary(q, &turn)?;
    let cache = KvCache { keys, values, lengths, scales: None, block_table: None };
    let options = AppendOptions { layout, rotary: Some(angles), ..AppendOptions::default() };
    let cache = graph.append_kv(&cache, k, v, &options)?;
    let causal = Some(Causal::BottomRight);
    let attention = Attention { causal, kv_lengths: Some(cache.lengths), q_layout, ..Attention::default() };
    let y = graph.attention(q, cache.keys, cache.values, &attention)?;
    graph.output("y", y)?;
    // The next step finds what this one left.
    graph.assign(lengths, cache.lengths)?;
    Ok(graph)
}

fn cache() -> HostTensor {
    HostTensor::zeros(TensorDesc::new(Dtype::F16, [BATCH, KV_HEADS, CAPACITY, HEAD_DIM]))
}
