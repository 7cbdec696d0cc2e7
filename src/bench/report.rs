//! What is known of one problem on one device: a line of JSON.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::statistics::Statistics;
use super::task::Task;
use crate::device::Device;
use crate::op::Cost;
use crate::plan::{Clock, PlanDescription, StepDescription};

/// Name and version of the lines' keys.
pub const SCHEMA: &str = "regard.bench/2";

/// One problem on one device. Keys that hold a quantity end in its unit. Exactly one of `timing`'s keys, `skipped` and
/// `failed` is there. Lines of version 1 have neither `date` nor `samples_ms`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// [`SCHEMA`].
    pub schema: String,
    /// Version of this crate.
    pub version: String,
    /// When it was measured, RFC 3339 in UTC.
    #[serde(default)]
    pub date: String,
    /// Suite, or `problem` for one of the user's own.
    pub suite: String,
    /// The problem in canonical text.
    pub problem: String,
    /// Adapter, driver and interface, or the CPU backend.
    pub device: String,
    /// Why it was that device.
    #[serde(default)]
    pub device_reason: String,
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

/// What a plan does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Work {
    /// Techniques of the plan's steps in order, joined by ` + `.
    pub path: String,
    /// Steps.
    pub dispatches: usize,
    /// Operations by FlashAttention's formula for attention, else the exact count.
    pub flops: u64,
    /// Operations of the plan's steps; scores that are skipped count nothing.
    pub flops_exact: u64,
    /// Bytes that the plan's steps read and write at least.
    pub bytes: u64,
    /// Bytes that are allocated while the plan lives.
    pub peak_bytes: u64,
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
    /// Runs more than 1.5 interquartile ranges outside the quartiles.
    pub outliers: usize,
    /// 10¹² `flops` a second, at the median.
    pub tflops: f64,
    /// 10¹² `flops_exact` a second, at the median.
    pub tflops_exact: f64,
    /// 10⁹ `bytes` a second, at the median.
    pub gbps: f64,
    /// Each run, in the order in which they ran.
    #[serde(default)]
    pub samples_ms: Vec<f64>,
}

impl Line {
    pub(super) fn new(device: &Device, task: &Task) -> Self {
        Self {
            schema: SCHEMA.into(),
            version: env!("CARGO_PKG_VERSION").into(),
            date: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            suite: task.suite.into(),
            problem: task.problem.clone(),
            device: device.name(),
            device_reason: device.reason().to_owned(),
            peer: None,
            work: None,
            check: None,
            timing: None,
            warnings: Vec::new(),
            skipped: None,
            failed: None,
        }
    }

    pub(super) fn skip(self, reason: impl Into<String>) -> Self {
        Self { skipped: Some(reason.into()), ..self }
    }
}

impl Work {
    pub(super) fn new(plan: &PlanDescription, task: &Task) -> Self {
        let techniques: Vec<_> = plan.steps.iter().map(StepDescription::technique_and_reason).collect();
        let cost: Cost = plan.cost();
        Self {
            path: techniques.join(" + "),
            dispatches: plan.steps.len(),
            flops: task.flops.unwrap_or(cost.flops),
            flops_exact: cost.flops,
            bytes: cost.bytes(),
            peak_bytes: plan.peak_bytes(),
        }
    }
}

impl Timing {
    /// From durations in seconds, of which there is one at least.
    pub(super) fn new(samples: &[f64], clock: Clock, work: &Work) -> Self {
        let seconds = Statistics::new(samples).expect("there was a run");
        let per_second =
            |count: u64, unit: f64| if seconds.median > 0.0 { count as f64 / seconds.median / unit } else { 0.0 };
        Self {
            clock: clock.describe().into(),
            runs: seconds.runs,
            median_ms: seconds.median * 1e3,
            p05_ms: seconds.p05 * 1e3,
            p95_ms: seconds.p95 * 1e3,
            iqr_ms: seconds.iqr * 1e3,
            min_ms: seconds.min * 1e3,
            outliers: seconds.outliers,
            tflops: per_second(work.flops, 1e12),
            tflops_exact: per_second(work.flops_exact, 1e12),
            gbps: per_second(work.bytes, 1e9),
            samples_ms: samples.iter().map(|seconds| seconds * 1e3).collect(),
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
            peak_bytes: 0,
        };
        let timing = Timing::new(&seconds, Clock::Host, &work);
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
        let work = Work { path: "x".into(), dispatches: 1, flops: 2, flops_exact: 2, bytes: 3, peak_bytes: 4 };
        let json = serde_json::to_value(Line { work: Some(work), ..line }).unwrap();
        assert_eq!((&json["path"], &json["peak_bytes"]), (&"x".into(), &4.into()));
    }

    #[test]
    fn a_line_is_read_as_it_was_written() {
        let task = Task::attention("problem", &"b=1,h=1,s=4,d=4".parse().unwrap()).unwrap();
        let work = Work { path: "x".into(), dispatches: 1, flops: 2, flops_exact: 2, bytes: 3, peak_bytes: 4 };
        let timing = Some(Timing::new(&[0.1, 0.3], Clock::Host, &work));
        let skipped = Line::new(&Device::cpu(), &task).skip("for a test");
        for line in [Line { work: Some(work), timing, skipped: None, ..skipped.clone() }, skipped] {
            let text = serde_json::to_string(&line).unwrap();
            assert_eq!(serde_json::from_str::<Line>(&text).unwrap(), line);
        }
    }
}
