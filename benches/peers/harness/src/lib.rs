//! What the peers written in Rust share: the problems that `examples/peer_inputs.rs` wrote, the check against what it expects,
//! the clock, and lines of JSON with the keys of `regard bench --json`.

mod measure;
mod problem;

use std::error::Error;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use measure::{check, time};
pub use problem::{Problem, Tensors};
use serde_json::{Map, Value, json};

/// Variants of the query that runs alternate between, so that none repeats the one before it.
pub const VARIANTS: [f32; 2] = [1.0, 1.25];

/// A problem made ready on a peer's device.
pub trait Attention {
    /// What runs, in the peer's own words.
    fn path(&self) -> String;
    /// Makes the next runs take this variant of the query: it times `VARIANTS[variant]`. Not timed.
    fn select(&mut self, variant: usize);
    /// Runs once, and returns when the result is there.
    fn run(&mut self);
    /// The result of the last run, `(batch, heads, seq_q, head_dim_v)`.
    fn read(&mut self) -> Vec<f32>;
}

/// A problem made ready in every way that the peer has for it, or why it has none.
pub type Prepared = Result<Vec<Box<dyn Attention>>, String>;

/// A library on a device.
#[derive(Debug)]
pub struct Peer {
    /// As it is called in tables.
    pub name: &'static str,
    /// Of the library.
    pub version: String,
    /// What it runs on.
    pub device: String,
}

/// Version of a package in the text of a `Cargo.lock`, or nothing.
pub fn locked<'a>(lock: &'a str, package: &str) -> &'a str {
    let name = format!("name = \"{package}\"\nversion = \"");
    lock.split_once(&name).and_then(|(_, rest)| rest.split_once('"')).map_or("", |(version, _)| version)
}

/// The command line: `--inputs FOLDER [--problem TEXT]… [--seconds S] [--backend NAME]`.
#[derive(Debug)]
pub struct Arguments {
    /// Which of the peer's backends, where it has several.
    pub backend: Option<String>,
    inputs: PathBuf,
    problems: Vec<String>,
    budget: Duration,
}

impl Arguments {
    /// Reads the command line.
    ///
    /// # Errors
    /// An argument that is not known, or lacks its value.
    pub fn read() -> Result<Self, Box<dyn Error>> {
        let (mut inputs, mut problems, mut backend, mut seconds) = (None, Vec::new(), None, 1.5);
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let value = words.next().ok_or_else(|| format!("{word} lacks its value"))?;
            match word.as_str() {
                "--inputs" => inputs = Some(PathBuf::from(value)),
                "--problem" => problems.push(value),
                "--backend" => backend = Some(value),
                "--seconds" => seconds = value.parse()?,
                _ => return Err(format!("{word} is not one of --inputs, --problem, --backend, --seconds").into()),
            }
        }
        let inputs = inputs.ok_or("--inputs FOLDER is needed; examples/peer_inputs.rs writes it")?;
        Ok(Self { backend, inputs, problems, budget: Duration::try_from_secs_f64(seconds)? })
    }
}

/// Runs every problem that was asked for, or all there are, and prints a line for each way of running it.
///
/// # Errors
/// Inputs that cannot be read.
pub fn run(
    peer: &Peer,
    arguments: &Arguments,
    prepare: impl Fn(&Problem, &Tensors) -> Prepared,
) -> Result<(), Box<dyn Error>> {
    let known = Problem::list(&arguments.inputs)?;
    for asked in &arguments.problems {
        if !known.iter().any(|problem| problem.problem == *asked) {
            return Err(format!("{asked} is not in {}", arguments.inputs.join("manifest.json").display()).into());
        }
    }
    let wanted = |problem: &&Problem| arguments.problems.is_empty() || arguments.problems.contains(&problem.problem);
    for problem in known.iter().filter(wanted) {
        let tensors = problem.tensors(&arguments.inputs)?;
        let caught = catch_unwind(AssertUnwindSafe(|| prepare(problem, &tensors)));
        match caught.unwrap_or_else(|panic| Err(format!("it panicked: {}", message(&*panic)))) {
            Err(reason) => println!("{}", line(peer, problem, json!({ "skipped": reason }))),
            Ok(ways) => {
                for mut way in ways {
                    let path = way.path();
                    let found =
                        catch_unwind(AssertUnwindSafe(|| measured(&mut *way, problem, &tensors, arguments.budget)));
                    let found =
                        found.unwrap_or_else(|panic| json!({ "failed": format!("it panicked: {}", message(&*panic)) }));
                    let mut keys = json!({ "path": path, "flops": problem.flops });
                    extend(&mut keys, found);
                    println!("{}", line(peer, problem, keys));
                }
            }
        }
    }
    Ok(())
}

/// Error of scale from which on a result is another computation, not a coarser one, and is not timed.
const WRONG: f64 = 1e-2;

fn measured(way: &mut dyn Attention, problem: &Problem, tensors: &Tensors, budget: Duration) -> Value {
    way.select(0);
    way.run();
    let got = way.read();
    let error = check(&got, &tensors.expected);
    let mut keys = json!({
        "max_error": error.max,
        "error_of_scale": error.of_scale,
        "tolerance_of_scale": problem.tolerance_of_scale,
        "checked_rows": problem.checked_rows,
    });
    if !(error.of_scale < WRONG) {
        extend(&mut keys, json!({ "failed": format!("its result is off by {:.3e} of its scale", error.of_scale) }));
        return keys;
    }
    let statistics = time(way, budget);
    // Once more: what was timed must have gone on computing the same.
    way.select(0);
    way.run();
    let repeated = check(&way.read(), &tensors.expected);
    if !(repeated.of_scale < WRONG) {
        let failed = format!("after it was timed its result is off by {:.3e} of its scale", repeated.of_scale);
        extend(&mut keys, json!({ "failed": failed }));
        return keys;
    }
    extend(&mut keys, statistics.keys(problem.flops));
    if error.of_scale > problem.tolerance_of_scale {
        extend(
            &mut keys,
            json!({ "warnings": ["its error is above the tolerance that regard's own kernels are held to"] }),
        );
    }
    keys
}

fn line(peer: &Peer, problem: &Problem, keys: Value) -> Value {
    let mut line = json!({
        "schema": "regard.bench/3",
        "peer": peer.name,
        "version": peer.version,
        "date": humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        "suite": "problem",
        "problem": problem.problem,
        "device": peer.device,
    });
    extend(&mut line, keys);
    if let Value::Object(line) = &mut line {
        line.entry("warnings").or_insert_with(|| Value::Array(Vec::new()));
    }
    line
}

fn extend(object: &mut Value, keys: Value) {
    let (Value::Object(object), Value::Object(keys)) = (object, keys) else { unreachable!("both are objects") };
    let object: &mut Map<String, Value> = object;
    object.extend(keys);
}

fn message(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    text.unwrap_or("without a message").trim()
}
