//! meganeura's attention over the problems of `examples/peer_inputs.rs`.
//!
//!     regard-peer-meganeura --inputs FOLDER [--problem TEXT]… [--seconds S]

use std::error::Error;

use meganeura::{Graph, Session, SessionConfig};
use regard_peer::{Arguments, Attention, Peer, Prepared, Problem, Tensors, VARIANTS};

const LOCK: &str = include_str!("../Cargo.lock");

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::read()?;
    let peer = Peer { name: "meganeura", version: regard_peer::locked(LOCK, "meganeura").to_owned(), device: device() };
    regard_peer::run(&peer, &arguments, prepare)
}

/// The device that sessions of this process run on.
fn device() -> String {
    let mut graph = Graph::new();
    let x = graph.input("x", &[1, 4]);
    let y = graph.relu(x);
    graph.set_outputs(vec![y]);
    let session = meganeura::build(&graph, SessionConfig::inference_from_env()).0;
    let device = session.device_information();
    format!("{} ({} {})", device.device_name, device.driver_name, device.driver_info)
}

/// Its node for the problem's kind of attention. It has tensors of two dimensions, so that each sequence is a node.
#[derive(Debug, Clone, Copy)]
enum Node {
    Causal,
    Full,
    Cross,
    Cached,
}

fn prepare(problem: &Problem, tensors: &Tensors) -> Prepared {
    let causal = problem.square_causal()?;
    if problem.dtype != "f32" {
        return Err(format!("meganeura's attention takes f32 only, not {}", problem.dtype));
    }
    if problem.head_dim != problem.head_dim_v {
        return Err("meganeura has one head_dim for keys and values".into());
    }
    let nodes: &[Node] = match (causal, problem.seq_q, problem.seq_q == problem.seq_kv) {
        (true, _, _) => &[Node::Causal],
        (false, _, true) => &[Node::Full],
        (false, 1, false) => &[Node::Cross, Node::Cached],
        (false, _, false) => &[Node::Cross],
    };
    Ok(nodes.iter().map(|&node| Box::new(Meganeura::new(problem, tensors, node)) as Box<dyn Attention>).collect())
}

struct Meganeura {
    session: Session,
    node: Node,
    problem: Problem,
    /// Of each variant and sequence.
    queries: [Vec<Vec<f32>>; VARIANTS.len()],
}

impl Meganeura {
    fn new(problem: &Problem, tensors: &Tensors, node: Node) -> Self {
        let [heads, kv_heads, width] = [problem.heads, problem.kv_heads, problem.head_dim].map(|size| size as u32);
        let (q_width, kv_width) = (problem.heads * problem.head_dim, problem.kv_heads * problem.head_dim);
        let mut graph = Graph::new();
        let mut outputs = Vec::new();
        for sequence in 0..problem.batch {
            let q = graph.input(&format!("q{sequence}"), &[problem.seq_q, q_width]);
            let k = graph.input(&format!("k{sequence}"), &[problem.seq_kv, kv_width]);
            let v = graph.input(&format!("v{sequence}"), &[problem.seq_kv, kv_width]);
            outputs.push(match node {
                Node::Causal => graph.causal_attention(q, k, v, heads, kv_heads, width),
                Node::Full => graph.full_attention(q, k, v, heads, kv_heads, width),
                Node::Cross => graph.cross_attention(q, k, v, heads, kv_heads, width),
                Node::Cached => {
                    let last = graph.input_u32(&format!("last{sequence}"), &[1]);
                    graph.cached_attention(q, k, v, last, heads, kv_heads, width)
                }
            });
        }
        graph.set_outputs(outputs);
        let mut session = meganeura::build(&graph, SessionConfig::inference_from_env()).0;
        let keys = sequences(&tensors.k, problem.kv_heads, problem.seq_kv, problem.head_dim);
        let values = sequences(&tensors.v, problem.kv_heads, problem.seq_kv, problem.head_dim);
        for (sequence, (key, value)) in keys.iter().zip(&values).enumerate() {
            session.set_input(&format!("k{sequence}"), key);
            session.set_input(&format!("v{sequence}"), value);
            if matches!(node, Node::Cached) {
                session.set_input_u32(&format!("last{sequence}"), &[problem.seq_kv as u32 - 1]);
            }
        }
        let queries = VARIANTS.map(|factor| {
            let scaled: Vec<f32> = tensors.q.iter().map(|x| x * factor).collect();
            sequences(&scaled, problem.heads, problem.seq_q, problem.head_dim)
        });
        Self { session, node, problem: problem.clone(), queries }
    }
}

impl Attention for Meganeura {
    fn path(&self) -> String {
        let node = match self.node {
            Node::Causal => "causal_attention",
            Node::Full => "full_attention",
            Node::Cross => "cross_attention",
            Node::Cached => "cached_attention",
        };
        let shaders: Vec<String> =
            self.session.plan().dispatches.iter().map(|step| format!("{:?}", step.shader)).collect();
        let mut kinds = shaders.clone();
        kinds.dedup();
        format!("{node}: {} × {}", shaders.len(), kinds.join(" + "))
    }

    fn select(&mut self, variant: usize) {
        for (sequence, query) in self.queries[variant].iter().enumerate() {
            self.session.set_input(&format!("q{sequence}"), query);
        }
    }

    fn run(&mut self) {
        self.session.step();
        self.session.wait();
    }

    fn read(&mut self) -> Vec<f32> {
        let Problem { batch, heads, seq_q, head_dim, .. } = self.problem;
        let mut out = Vec::with_capacity(batch * heads * seq_q * head_dim);
        for sequence in 0..batch {
            let mut rows = vec![0.0; seq_q * heads * head_dim];
            self.session.read_output_by_index(sequence, &mut rows);
            for head in 0..heads {
                for row in rows.chunks_exact(heads * head_dim) {
                    out.extend_from_slice(&row[head * head_dim..(head + 1) * head_dim]);
                }
            }
        }
        out
    }
}

/// From `(batch, heads, seq, width)` to one `(seq, heads · width)` a sequence.
fn sequences(values: &[f32], heads: usize, seq: usize, width: usize) -> Vec<Vec<f32>> {
    let regroup = |sequence: &[f32]| {
        let mut rows = Vec::with_capacity(sequence.len());
        for row in 0..seq {
            for head in 0..heads {
                let start = (head * seq + row) * width;
                rows.extend_from_slice(&sequence[start..start + width]);
            }
        }
        rows
    };
    values.chunks_exact(heads * seq * width).map(regroup).collect()
}
