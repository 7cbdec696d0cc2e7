//! burn's attention over the problems of `examples/peer_inputs.rs`.
//!
//!     regard-peer-burn --inputs FOLDER [--backend wgpu | flex] [--problem TEXT]… [--seconds S]

use std::error::Error;

use burn::backend::flex::FlexTensor;
use burn::backend::flex::ops::attention::{attention_flash, attention_naive};
use burn::backend::ops::FloatTensorOps;
use burn::backend::wgpu::{CubeBackend, CubeTensor};
use burn::backend::{Backend, DispatchDevice, ExecutionError};
use burn::tensor::module::{attention, attention_fallback};
use burn::tensor::ops::AttentionModuleOptions;
use burn::tensor::{Bool, DType, Device, DeviceKind, Tensor, TensorData, read_sync};
use burn_cubecl::kernel::attention::flash_attention;
use cubek::attention::forward::launch::{BlueprintStrategy, Strategy};
use regard_peer::{Arguments, Attention, Peer, Prepared, Problem, Tensors, VARIANTS};

const LOCK: &str = include_str!("../Cargo.lock");

fn main() -> Result<(), Box<dyn Error>> {
    let arguments = Arguments::read()?;
    let (name, device) = match arguments.backend.as_deref() {
        None | Some("wgpu") => ("burn-wgpu", Device::wgpu(DeviceKind::DefaultDevice)),
        Some("flex") => ("burn-flex", Device::flex()),
        Some(other) => return Err(format!("--backend is wgpu or flex, not {other}").into()),
    };
    let known = device.identity().map_or_else(|| "CPU".to_owned(), |identity| identity.name);
    let peer = Peer { name, version: regard_peer::locked(LOCK, name).to_owned(), device: known };
    regard_peer::run(&peer, &arguments, |problem, tensors| prepare(problem, tensors, &device))
}

fn prepare(problem: &Problem, tensors: &Tensors, device: &Device) -> Prepared {
    let options = AttentionModuleOptions { is_causal: problem.square_causal()?, ..Default::default() };
    let dtype = match problem.dtype.as_str() {
        "f32" => DType::F32,
        "f16" => DType::F16,
        other => return Err(format!("{other} is not tried")),
    };
    if !device.supports_dtype(dtype) {
        return Err(format!("burn has no {} on this device", problem.dtype));
    }
    let work = Work { problem, tensors, device, dtype, options };
    Ok(if matches!(device.as_dispatch(), DispatchDevice::Flex(_)) { work.on_flex() } else { work.on_wgpu() })
}

/// A function of `burn::tensor::module`.
type Module = fn(Tensor<4>, Tensor<4>, Tensor<4>, Option<Tensor<4, Bool>>, Option<Tensor<4>>, Options) -> Tensor<4>;
/// A function of burn-flex.
type Flex = fn(FlexTensor, FlexTensor, FlexTensor, Option<FlexTensor>, Option<FlexTensor>, Options) -> FlexTensor;
type Options = AttentionModuleOptions;

/// A problem in burn's terms.
struct Work<'a> {
    problem: &'a Problem,
    tensors: &'a Tensors,
    device: &'a Device,
    dtype: DType,
    options: Options,
}

impl Work<'_> {
    /// What burn does by itself; its attention without a kernel of its own; and the one of its fused kernels that it has in WGSL:
    /// the others multiply in hardware's matrices, which it does not know there.
    fn on_wgpu(&self) -> Vec<Box<dyn Attention>> {
        let heads = self.one_each();
        let mut ways = vec![
            self.module("attention, autotuned", attention, heads),
            self.module("attention_fallback, autotuned and fused", attention_fallback, heads),
            self.unit(heads),
        ];
        if matches!(heads, Heads::Folded) {
            // The plain way, for which keys and values take more memory.
            ways.push(self.module("attention, autotuned", attention, Heads::Repeated));
        }
        ways
    }

    /// What burn does by itself, which is one of the two that follow; and its attention for backends without one of their own.
    fn on_flex(&self) -> Vec<Box<dyn Attention>> {
        vec![
            self.module("attention", attention, Heads::AsTheyAre),
            self.flex("attention_naive", attention_naive),
            self.flex("attention_flash", attention_flash),
            self.module("attention_fallback", attention_fallback, self.one_each()),
        ]
    }

    /// How each query head gets a key head of its own, which all functions ask for except burn-flex's own.
    fn one_each(&self) -> Heads {
        match self.problem.heads == self.problem.kv_heads {
            true => Heads::AsTheyAre,
            false if self.options.is_causal => Heads::Repeated,
            false => Heads::Folded,
        }
    }

    fn module(&self, name: &str, attend: Module, heads: Heads) -> Box<dyn Attention> {
        let (device, options) = (self.device.clone(), self.options);
        Box::new(Way {
            path: self.path(name, heads),
            inputs: self.inputs(heads, |data| Tensor::from_data(data, (self.device, self.dtype))),
            attend: Box::new(move |[q, k, v]| {
                let output = attend(q, k, v, None, None, options);
                device.sync().expect("the device computes");
                output
            }),
            read: Tensor::try_into_data,
            selected: 0,
            output: None,
        })
    }

    fn flex(&self, name: &str, attend: Flex) -> Box<dyn Attention> {
        let options = self.options;
        Box::new(Way {
            path: self.path(name, Heads::AsTheyAre),
            inputs: self.inputs(Heads::AsTheyAre, FlexTensor::from_data),
            attend: Box::new(move |[q, k, v]| attend(q, k, v, None, None, options)),
            read: |output| Ok(output.into_data()),
            selected: 0,
            output: None,
        })
    }

    /// The kernel itself: by its name in burn's list, what it cannot run would fall back to something else.
    fn unit(&self, heads: Heads) -> Box<dyn Attention> {
        let DispatchDevice::Cube(device) = self.device.as_dispatch().clone() else { unreachable!("wgpu is on cubecl") };
        let options = self.options;
        Box::new(Way {
            path: self.path("flash_attention, unit", heads),
            inputs: self.inputs(heads, |data| CubeBackend::float_from_data(data, &device)),
            attend: Box::new(move |[q, k, v]: [CubeTensor; 3]| {
                let strategy = Strategy::Unit(BlueprintStrategy::Inferred(()));
                let output = flash_attention(q, k, v, None, None, options, strategy);
                CubeBackend::sync(&device).expect("the device computes");
                output.unwrap_or_else(|error| panic!("{error}"))
            }),
            read: |output| read_sync(CubeBackend::float_into_data(output)),
            selected: 0,
            output: None,
        })
    }

    fn path(&self, name: &str, heads: Heads) -> String {
        match heads {
            Heads::AsTheyAre => name.to_owned(),
            Heads::Folded => format!("{name}; query heads of one key head folded into rows"),
            Heads::Repeated => format!("{name}; key and value heads repeated beforehand"),
        }
    }

    fn inputs<T>(&self, heads: Heads, upload: impl Fn(TensorData) -> T) -> Inputs<T> {
        let [mut q_shape, mut k_shape, mut v_shape] = self.problem.shapes();
        let (mut k, mut v) = (self.tensors.k.clone(), self.tensors.v.clone());
        let shared = self.problem.heads / self.problem.kv_heads;
        match heads {
            Heads::AsTheyAre => (),
            Heads::Folded => {
                q_shape[1] /= shared;
                q_shape[2] *= shared;
            }
            Heads::Repeated => {
                k = repeat_heads(&k, k_shape[2] * k_shape[3], shared);
                v = repeat_heads(&v, v_shape[2] * v_shape[3], shared);
                k_shape[1] *= shared;
                v_shape[1] *= shared;
            }
        }
        let upload = |values, shape| upload(TensorData::new(values, shape).convert_dtype(self.dtype));
        let query = |factor| upload(self.tensors.q.iter().map(|x| x * factor).collect(), q_shape);
        Inputs { queries: VARIANTS.map(query), key: upload(k, k_shape), value: upload(v, v_shape) }
    }
}

/// What becomes of heads where several query heads share a key head.
#[derive(Debug, Clone, Copy)]
enum Heads {
    AsTheyAre,
    /// Those query heads become more rows of one, which costs nothing, but puts rows where a causal mask does not expect them.
    Folded,
    /// Each query head gets a copy of its key and value head.
    Repeated,
}

fn repeat_heads(values: &[f32], head: usize, times: usize) -> Vec<f32> {
    values.chunks_exact(head).flat_map(|head| std::iter::repeat_n(head, times)).flatten().copied().collect()
}

struct Inputs<T> {
    queries: [T; VARIANTS.len()],
    key: T,
    value: T,
}

/// A function of burn's, on tensors of the kind that it takes.
struct Way<T> {
    path: String,
    inputs: Inputs<T>,
    /// Returns when the result is there.
    attend: Box<dyn Fn([T; 3]) -> T>,
    read: fn(T) -> Result<TensorData, ExecutionError>,
    selected: usize,
    output: Option<T>,
}

impl<T: Clone> Attention for Way<T> {
    fn path(&self) -> String {
        self.path.clone()
    }

    fn select(&mut self, variant: usize) {
        self.selected = variant;
    }

    fn run(&mut self) {
        let Inputs { queries, key, value } = &self.inputs;
        // The last result goes first, so that its memory can be used again.
        self.output = None;
        self.output = Some((self.attend)([queries[self.selected].clone(), key.clone(), value.clone()]));
    }

    fn read(&mut self) -> Vec<f32> {
        let output = self.output.clone().expect("it has run");
        let data = (self.read)(output).unwrap_or_else(|error| panic!("{}", cause(&error)));
        data.convert_dtype(DType::F32).try_into_vec().expect("it is f32")
    }
}

/// The innermost cause; those around it tell of each tensor that could not be computed then.
fn cause(error: &ExecutionError) -> String {
    let text = error.to_string();
    let innermost = text.rsplit("Caused by:").next().expect("there is always a last part").trim();
    innermost.lines().next().unwrap_or_default().to_owned()
}
