//! What is known of one problem on one device: a line of JSON.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::statistics::{Interval, Statistics, ratio_interval};
use super::task::Task;
use super::work::Work;
use crate::device::Device;

/// Name and version of the lines' keys.
pub const SCHEMA: &str = "regard.bench/3";

/// One problem on one device. Keys that hold a quantity end in its unit. Exactly one of `timing`'s keys, `skipped` and
/// `failed` is there. Lines before version 3 were measured with warm caches and lack the keys that have a default here.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// [`SCHEMA`].
    pub schema: String,
    /// Version of this crate.
    pub version: String,
    /// When it was measured, RFC 3339 in UTC.
    #[serde(default)]
    pub date: String,
    /// Git commit of the program that measured, where it was built from a repository; `-modified` follows where files differed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// Suite, or `problem` for one of the user's own.
    pub suite: String,
    /// The problem in canonical text.
    pub problem: String,
    /// Adapter, driver and interface, or the CPU backend.
    pub device: String,
    /// Why it was that device.
    #[serde(default)]
    pub device_reason: String,
    /// Name and version of the driver; empty for the CPU backend.
    #[serde(default)]
    pub driver: String,
    /// The host's processor, where the system says so in `/proc`.
    #[serde(default)]
    pub cpu: String,
    /// Threads of the host that compute; 0 on a GPU.
    #[serde(default)]
    pub threads: usize,
    /// Whose code it was, where it was not this crate's (`benches/peers`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer: Option<String>,
    /// What ran; missing where no plan could be made.
    #[serde(flatten)]
    pub work: Option<Work>,
    /// How right it was; missing where it did not run.
    #[serde(flatten)]
    pub check: Option<Check>,
    /// How fast it was; missing where it did not run or was wrong.
    #[serde(flatten)]
    pub timing: Option<Timing>,
    /// What the device does at most, where that was measured.
    #[serde(flatten)]
    pub peaks: Option<Peaks>,
    /// How it compares with another way to compute the same, measured in turns with it.
    #[serde(flatten)]
    pub versus: Option<Versus>,
    /// Each step of a run, in order; empty where it did not run or was wrong.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub steps: Vec<StepTime>,
    /// What to know before believing the numbers.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// Why it did not run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skipped: Option<String>,
    /// The element that was most wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failed: Option<String>,
}

/// How a result compares with its definition.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Check {
    /// Largest |got − wanted|.
    pub max_error: f64,
    /// The same as a share of the largest magnitude that was wanted.
    pub error_of_scale: f64,
    /// What would have been accepted, as such a share.
    pub tolerance_of_scale: f64,
    /// `all` rows of the result, or one in so many.
    pub checked_rows: String,
}

/// How long runs took.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Timing {
    /// What measured it.
    pub clock: String,
    /// `cold`: the caches held none of a run's data when it began; `warm`: what the run before it had left there.
    #[serde(default = "warm")]
    pub cache: String,
    /// Runs that were measured.
    pub runs: usize,
    /// Half of the runs were shorter.
    pub median_ms: f64,
    /// One run in twenty was shorter.
    pub p05_ms: f64,
    /// One run in twenty was longer.
    pub p95_ms: f64,
    /// Third quartile less the first.
    pub iqr_ms: f64,
    /// The shortest run.
    pub min_ms: f64,
    /// The longest run.
    #[serde(default)]
    pub max_ms: f64,
    /// Runs more than 1.5 interquartile ranges outside the quartiles.
    pub outliers: usize,
    /// 10¹² `flops` a second, at the median.
    pub tflops: f64,
    /// 10¹² `flops_exact` a second, at the median.
    #[serde(default)]
    pub tflops_exact: f64,
    /// 10⁹ `bytes` a second, at the median.
    #[serde(default)]
    pub gbps: f64,
    /// Each run, in the order in which they ran.
    #[serde(default)]
    pub samples_ms: Vec<f64>,
    /// What bounds it on this device, where that was measured.
    #[serde(flatten)]
    pub bound: Option<Bound>,
}

/// Which of the device's measured peaks a problem meets first, and how near it comes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Bound {
    /// `arithmetic` or `bandwidth`.
    pub bound: String,
    /// Whose arithmetic: `f32`, `f16`, `matrices`, or several joined by ` + `; missing where bandwidth is the bound.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bound_arithmetic: Option<String>,
    /// `flops_exact` or `bytes` a second at the median, as a share of the peak.
    pub bound_share: f64,
    /// The peak: operations or bytes a second. Of several kinds of arithmetic, what they reach together in the line's proportions.
    pub bound_per_second: f64,
}

/// What a device does at most, as measured on it: operations and bytes a second.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Peaks {
    /// Multiply-adds in f32, two operations each.
    pub peak_f32: f64,
    /// The same in f16, where the device computes in it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_f16: Option<f64>,
    /// Cooperative matrices, where the device has some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peak_matrices: Option<f64>,
    /// Bytes of a copy, read and written, or of reading alone: whichever is more.
    pub peak_bandwidth: f64,
}

/// How long a problem takes beside another way to compute it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Versus {
    /// `path` of the other.
    pub versus: String,
    /// Median over the other's.
    pub ratio: f64,
    /// Lower bound of the ratio at 95 % confidence.
    pub ratio_low: f64,
    /// Upper bound.
    pub ratio_high: f64,
}

/// One step of a run on its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepTime {
    /// Technique, and what it stands for, as in `path`.
    pub step: String,
    /// Median of some runs that time each step, which makes it a little longer.
    pub ms: f64,
    /// Exact operations.
    pub flops: u64,
    /// Bytes that it reads and writes at least.
    pub bytes: u64,
}

/// What lines say that were written before caches were emptied.
fn warm() -> String {
    "warm".into()
}

impl Line {
    pub(super) fn new(device: &Device, task: &Task) -> Self {
        Self {
            schema: SCHEMA.into(),
            version: env!("CARGO_PKG_VERSION").into(),
            date: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            commit: None,
            suite: task.suite.clone(),
            problem: task.problem.clone(),
            device: device.name(),
            device_reason: device.reason().to_owned(),
            driver: String::new(),
            cpu: String::new(),
            threads: 0,
            peer: None,
            work: None,
            check: None,
            timing: None,
            peaks: None,
            versus: None,
            steps: Vec::new(),
            warnings: Vec::new(),
            skipped: None,
            failed: None,
        }
    }

    pub(super) fn skip(self, reason: impl Into<String>) -> Self {
        Self { skipped: Some(reason.into()), ..self }
    }
}

impl Bound {
    /// `bandwidth`, or `arithmetic` with its kind.
    pub fn name(&self) -> String {
        let kind = self.bound_arithmetic.as_ref().map_or_else(String::new, |kind| format!(" in {kind}"));
        format!("{}{kind}", self.bound).replace(" in matrices", " on matrices")
    }
}

impl Versus {
    /// Of two lines that were timed.
    pub(super) fn new(first: &Line, second: &Line) -> Option<Self> {
        let (before, after) = (first.timing.as_ref()?, second.timing.as_ref()?);
        let Interval { ratio, low, high } = ratio_interval(&before.samples_ms, &after.samples_ms);
        let versus = first.work.as_ref()?.path.clone();
        Some(Self { versus, ratio, ratio_low: low, ratio_high: high })
    }
}

impl Timing {
    /// The interquartile range as a share of the median; 0 where runs took no time that the clock could see.
    pub fn spread(&self) -> f64 {
        if self.median_ms > 0.0 { self.iqr_ms / self.median_ms } else { 0.0 }
    }

    /// From durations in seconds, of which there is one at least.
    pub(super) fn new(samples: &[f64], [clock, cache]: [&str; 2], work: &Work) -> Self {
        let seconds = Statistics::new(samples).expect("there was a run");
        let per_second =
            |count: u64, unit: f64| if seconds.median > 0.0 { count as f64 / seconds.median / unit } else { 0.0 };
        Self {
            clock: clock.into(),
            cache: cache.into(),
            runs: seconds.runs,
            median_ms: seconds.median * 1e3,
            p05_ms: seconds.p05 * 1e3,
            p95_ms: seconds.p95 * 1e3,
            iqr_ms: seconds.iqr * 1e3,
            min_ms: seconds.min * 1e3,
            max_ms: seconds.max * 1e3,
            outliers: seconds.outliers,
            tflops: per_second(work.flops, 1e12),
            tflops_exact: per_second(work.flops_exact, 1e12),
            gbps: per_second(work.bytes, 1e9),
            samples_ms: samples.iter().map(|seconds| seconds * 1e3).collect(),
            bound: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_by_hand() {
        let seconds = [0.003, 0.002, 0.001];
        let work = Work {
            path: "attention_fused".into(),
            dispatches: 1,
            flops: 4_000_000_000,
            flops_exact: 2_000_000_000,
            bytes: 6_000_000,
            ..Work::default()
        };
        let timing = Timing::new(&seconds, ["host clock", "cold"], &work);
        assert_eq!((timing.median_ms, timing.tflops, timing.tflops_exact, timing.gbps), (2.0, 2.0, 1.0, 3.0));
        assert_eq!(timing.samples_ms, [3.0, 2.0, 1.0]);
    }

    #[test]
    fn a_line_is_flat_and_leaves_out_what_is_not_known() {
        let task = Task::attention("problem", &"b=1,h=1,s=4,d=4".parse().unwrap()).unwrap();
        let line = Line::new(&Device::cpu(), &task).skip("for a test");
        let json = serde_json::to_value(&line).unwrap();
        assert_eq!(json["schema"], SCHEMA);
        assert_eq!(json["skipped"], "for a test");
        assert!(json.get("median_ms").is_none() && json.get("failed").is_none());
        let work = Work { path: "x".into(), flops: 2, peak_bytes: 4, ..Work::default() };
        let json = serde_json::to_value(Line { work: Some(work), ..line }).unwrap();
        assert_eq!((&json["path"], &json["peak_bytes"]), (&"x".into(), &4.into()));
    }

    #[test]
    fn a_line_is_read_as_it_was_written() {
        let task = Task::attention("problem", &"b=1,h=1,s=4,d=4".parse().unwrap()).unwrap();
        let work = Work { path: "x".into(), flops: 2, peak_bytes: 4, ..Work::default() };
        let bound = Bound {
            bound: "arithmetic".into(),
            bound_arithmetic: Some("f16".into()),
            bound_share: 0.5,
            bound_per_second: 1e10,
        };
        let peaks = Some(Peaks { peak_f32: 1.0, peak_f16: None, peak_matrices: Some(2.0), peak_bandwidth: 3.0 });
        let timing = Some(Timing { bound: Some(bound), ..Timing::new(&[0.1, 0.3], ["host clock", "cold"], &work) });
        let steps = vec![StepTime { step: "x".into(), ms: 0.5, flops: 2, bytes: 3 }];
        let skipped = Line::new(&Device::cpu(), &task).skip("for a test");
        for line in [Line { work: Some(work), timing, steps, peaks, skipped: None, ..skipped.clone() }, skipped] {
            let text = serde_json::to_string(&line).unwrap();
            assert_eq!(serde_json::from_str::<Line>(&text).unwrap(), line);
        }
    }

    #[test]
    fn lines_of_other_versions_and_peers_are_read() {
        let text = r#"{"schema": "regard.bench/1", "version": "1", "suite": "problem", "problem": "b=1,h=1,s=4,d=4",
            "device": "a GPU", "peer": "burn", "path": "attention", "flops": 8, "clock": "host clock", "runs": 1,
            "median_ms": 2.0, "p05_ms": 2.0, "p95_ms": 2.0, "iqr_ms": 0.0, "min_ms": 2.0, "outliers": 0, "tflops": 1.0,
            "later": "a key that nobody knows"}"#;
        let line: Line = serde_json::from_str(text).unwrap();
        let timing = line.timing.unwrap();
        assert_eq!((timing.median_ms, timing.cache.as_str(), timing.bound), (2.0, "warm", None));
        assert_eq!((line.work.unwrap().flops, line.check, line.commit, line.peaks), (8, None, None, None));
    }
}
