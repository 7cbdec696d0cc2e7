//! Attention on any GPU: hand-written WGSL kernels through wgpu, each checked against a reference on the host.
//!
//! ```
//! use regard::{Attention, Causal, Device, DeviceOptions, Dtype, Graph, HostTensor, Plan, TensorDesc};
//!
//! # fn main() -> regard::Result<()> {
//! let device = Device::new(&DeviceOptions::default())?; // the best GPU, or the CPU backend
//! let mut graph = Graph::new();
//! let [q, k, v] = ["q", "k", "v"].map(|name| graph.input(name, TensorDesc::new(Dtype::F32, [1, 8, 128, 64])));
//! let causal = Attention { causal: Some(Causal::TopLeft), ..Attention::default() };
//! let y = graph.attention(q?, k?, v?, &causal)?;
//! graph.output("y", y)?;
//! let mut plan = Plan::new(&device, &graph)?;
//! let x = HostTensor::f32(&[1, 8, 128, 64], vec![0.5; 8 * 128 * 64])?;
//! let outputs = plan.run(&[("q", &x), ("k", &x), ("v", &x)])?;
//! assert_eq!(outputs["y"].shape(), [1, 8, 128, 64]);
//! # Ok(())
//! # }
//! ```
//!
//! # Code map, each module knowing only those above it
//!
//! | module | what it holds |
//! |---|---|
//! | [`error`] | the one error type |
//! | [`tensor`] | dtypes, shapes, host tensors |
//! | [`weights`] | tensors from safetensors files |
//! | [`mask`] | causality, windows, and what a masked score becomes |
//! | [`capabilities`] | what a device can do, as data |
//! | [`precision`] | how exactly an op multiplies |
//! | [`shader`] | a kernel file, its library files and the constants that the host sets: the pipeline key |
//! | [`op`] | the trait [`Op`](op::Op) and what a technique is |
//! | [`graph`] | what to compute, and what a plan may compute in its place; knows no concrete op |
//! | [`compare`], [`case`] | comparing with a reference; problems with seeded inputs |
//! | [`ops`] | one file per op: shape rule, reference, cost, techniques, cases, builder; the registry |
//! | [`attention`] | `Graph::attention` and its strategies |
//! | `timing` | durations and what measured them |
//! | `cache`, `tuned` | files between processes; which technique was measured fastest |
//! | [`memory`], `schedule` | slots that tensors share; lowerings, techniques and slots resolved for a graph |
//! | [`gpu`] | the only folder that names wgpu |
//! | [`cpu`] | the native backend; its kernels know nothing above [`mask`] |
//! | [`device`], [`plan`] | either of the two behind one face |
//! | [`mod@reference`], [`verify`] | the oracle; every technique against it |
//! | [`nn`] | layers built on graphs, and files that hold their weights |
//! | [`models`] | whole models from the files that their authors publish |
//! | [`mod@bench`] | suites, measurement, reports |
//! | [`tuning`] | every technique for each node of a graph: checked, timed, the fastest kept |
//!
//! `shaders/<op>_<technique>.wgsl` is one kernel, plain WGSL; `shaders/lib` holds functions that kernels share, where files
//! with the same function names are interchangeable.
//!
//! # Invariants
//!
//! 1. wgpu is named only under `src/gpu`.
//! 2. Every kernel has a reference written as the definition; the two share no helper.
//! 3. Every technique that an op offers is run by the tests, checked and unchecked, with outputs full of NaN and guard bytes.
//! 4. A skip is an outcome with a reason, counted and printed.
//! 5. A plan runs what it says; a fallback shows in its description and in every benchmark line.
//! 6. User input never panics, and the library prints nothing.
//! 7. A benchmark line is printed only after its result was checked against the reference for that very problem.

pub mod attention;
pub mod bench;
mod cache;
pub mod capabilities;
pub mod case;
pub mod compare;
pub mod cpu;
pub mod device;
pub mod error;
pub mod gpu;
pub mod graph;
pub mod mask;
pub mod memory;
pub mod models;
pub mod nn;
mod npy;
pub mod op;
pub mod ops;
pub mod plan;
pub mod precision;
pub mod reference;
mod rewrite;
mod schedule;
pub mod shader;
pub mod tensor;
mod timing;
mod tuned;
pub mod tuning;
pub mod verify;
mod weight_cache;
pub mod weights;

pub use attention::{Attention, Strategy};
pub use device::{Cache, Checks, Device, DeviceOptions, DeviceTensor, Select};
pub use error::{Error, Result};
pub use graph::{Graph, Tensor};
pub use mask::{Causal, Fill, Window};
pub use ops::Layout;
pub use plan::{Plan, PlanOptions, Rewrites, RunOptions};
pub use precision::Precision;
pub use tensor::{Dtype, HostTensor, TensorDesc};
