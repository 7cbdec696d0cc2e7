//! Suites, measurement and reports.
//!
//! A [`Task`] is a problem made ready: what runs, its inputs, and what the result must be. [`Bench`] checks it against the
//! f64 definition and then times it; what it found is a [`Line`].
//!
//! Runs are timed one by one, after a warm-up that ends when they are steady, each with caches that were overwritten before it
//! ([`CacheState`]), by timestamps of the GPU where there are some. [`Roofline`] holds the peaks of a device, measured on it, which
//! lines are compared with.

mod cold;
mod comparison;
mod host;
mod html;
mod kernels;
pub mod latency;
mod latency_comparison;
mod measure;
pub mod numbers;
mod pace;
mod peaks;
mod problem;
mod report;
mod roofline;
mod run;
mod side;
mod statistics;
mod stopwatch;
mod suite;
mod suite_file;
mod suites;
mod task;
mod warnings;
mod work;

pub use cold::CacheState;
pub use comparison::{Comparison, Devices, Entry, Verdict, compare};
pub use html::html;
pub use latency_comparison::{LatencyEntry, compare_latencies};
pub use measure::{Bench, Settings};
pub use problem::Problem;
pub use report::{Bound, Check, Line, Peaks, SCHEMA, StepTime, Timing, Versus};
pub use roofline::Roofline;
pub use run::Run;
pub use side::{Basis, Ratio, Side, Spread};
pub use statistics::{Interval, Statistics, ratio_interval};
pub use suite::Suite;
pub use suite_file::SuiteFile;
pub use task::{Definition, Refusal, Task};
pub use work::Work;

/// Relative rounding of f32, for tolerances.
const EPSILON_F32: f64 = 1.0 / (1 << 24) as f64;
/// Relative rounding of f16.
const EPSILON_F16: f64 = 1.0 / (1 << 11) as f64;
