//! A small image classifier: the CIFAR-10 model of seed document 000, four convolutions and attention over heads.
//!
//!     cargo run --release --example cifar10 -- tests/goldens/seed0_cnn__16x16_f8_16.safetensors
//!     cargo run --release --example cifar10 -- WEIGHTS.safetensors IMAGE.npy
//!
//! The first classifies the images that the file has for a check, with weights that were never trained. `IMAGE.npy` is
//! `[height, width, 3]` or several of them: u8 from 0 to 255, or floats as the model was trained on. Weights are `w.conv1.kernel`,
//! `w.conv1.bias` to `w.conv4.*`, `w.attention.query`, `key` and `value`, `w.dense.kernel` and `w.dense.bias`, shaped as in Keras.

use std::path::Path;
use std::process::ExitCode;

use regard::nn::seeds::{Cifar10Cnn, Convolution, Dense, Edges, HeadAttention};
use regard::weights::WeightFile;
use regard::{Device, DeviceOptions, Dtype, Error, Graph, HostTensor, Plan, Tensor};

const CLASSES: [&str; 10] = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match &arguments[..] {
        [weights] => classify(weights, None),
        [weights, image] => classify(weights, Some(image)),
        _ => Err("usage: cifar10 WEIGHTS.safetensors [IMAGE.npy]".into()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn classify(weights: &str, image: Option<&String>) -> Result<()> {
    let weights = WeightFile::open(Path::new(weights))?;
    let images = match image {
        Some(path) => read_images(path)?,
        None => weights.tensor("in.images")?.cast(Dtype::F32),
    };
    let mut graph = Graph::new();
    let x = graph.input("images", images.desc().clone())?;
    let model = read_model(&mut graph, &weights)?;
    let fit = |error: Error| format!("images {} do not fit the weights in {}: {error}", images.desc(), weights.path());
    let probabilities = model.add(&mut graph, x).map_err(fit)?.output;
    graph.output("probabilities", probabilities)?;

    let device = Device::new(&DeviceOptions::default())?;
    let outputs = Plan::new(&device, &graph)?.run(&[("images", &images)])?;
    for (number, row) in outputs["probabilities"].to_f64().chunks_exact(CLASSES.len()).enumerate() {
        println!("image {number} on {}", device.name());
        let mut classes: Vec<(f64, &str)> = row.iter().copied().zip(CLASSES).collect();
        classes.sort_by(|a, b| b.0.total_cmp(&a.0));
        for (probability, class) in classes {
            println!("{probability:8.4}  {class}");
        }
    }
    Ok(())
}

/// `[batch, height, width, 3]`. Bytes become fractions, as the model was trained.
fn read_images(path: &str) -> Result<HostTensor> {
    let array = HostTensor::read_npy(Path::new(path))?;
    let images = match array.desc().dtype {
        Dtype::U32 => array.to_f64().into_iter().map(|byte| (byte / 255.0) as f32).collect(),
        Dtype::F32 | Dtype::F16 | Dtype::F64 => array.to_f64().into_iter().map(|x| x as f32).collect(),
        other => return Err(format!("{path}: the image is {other}, u8 or floats were expected").into()),
    };
    match array.shape() {
        &[height, width, 3] => Ok(HostTensor::f32(&[1, height, width, 3], images)?),
        shape @ &[_, _, _, 3] => Ok(HostTensor::f32(shape, images)?),
        shape => Err(format!("{path}: the image is {shape:?}, [height, width, 3] was expected").into()),
    }
}

/// The model with its weights; sizes are those of the weights.
fn read_model(graph: &mut Graph, weights: &WeightFile) -> Result<Cifar10Cnn> {
    let mut weight = |name: &str| -> regard::Result<Tensor> {
        let name = format!("w.{name}");
        graph.weight(&name, weights.tensor(&name)?.cast(Dtype::F32))
    };
    let mut convolution = |number: usize, edges: Edges| -> regard::Result<Convolution> {
        let kernel = weight(&format!("conv{number}.kernel"))?;
        Ok(Convolution { kernel, bias: Some(weight(&format!("conv{number}.bias"))?), edges })
    };
    let convolutions = [
        convolution(1, Edges::Same)?,
        convolution(2, Edges::Valid)?,
        convolution(3, Edges::Same)?,
        convolution(4, Edges::Valid)?,
    ];
    let [query, key, value] = [weight("attention.query")?, weight("attention.key")?, weight("attention.value")?];
    let dense = Dense { kernel: weight("dense.kernel")?, bias: Some(weight("dense.bias")?) };
    // A head is as wide as what the last layer takes.
    let (width, shape) = (graph.desc(query)?.row_length(), graph.desc(dense.kernel)?.shape.clone());
    match shape[..] {
        [head_unit, classes] if classes == CLASSES.len() && head_unit > 0 && width % head_unit == 0 => {
            let attention = HeadAttention { heads: width / head_unit, query, key, value };
            Ok(Cifar10Cnn { convolutions, attention, dense })
        }
        _ => {
            let wanted = format!("[a divisor of {width}, {}] was expected", CLASSES.len());
            Err(format!("{}: tensor `w.dense.kernel` is {shape:?}, {wanted}", weights.path()).into())
        }
    }
}
