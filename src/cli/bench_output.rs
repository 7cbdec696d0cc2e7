//! Where lines of `regard bench` go: a table, JSON or CSV on standard output, and files that are whole after each line.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use regard::Error;
use regard::bench::Line;
use serde_json::{Value, json};

use super::bench_table;

/// What standard output gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    Table,
    Json,
    Csv,
}

/// Keys of a line that are one value each, in the order of their columns.
const COLUMNS: [&str; 47] = [
    "date",
    "version",
    "commit",
    "suite",
    "problem",
    "device",
    "driver",
    "cpu",
    "threads",
    "path",
    "fallback",
    "tiles",
    "dispatches",
    "flops",
    "flops_exact",
    "flops_f16",
    "flops_matrices",
    "bytes",
    "peak_bytes",
    "max_error",
    "error_of_scale",
    "tolerance_of_scale",
    "checked_rows",
    "clock",
    "cache",
    "runs",
    "outliers",
    "median_ms",
    "p05_ms",
    "p95_ms",
    "iqr_ms",
    "min_ms",
    "max_ms",
    "tflops",
    "tflops_exact",
    "gbps",
    "bound",
    "bound_arithmetic",
    "bound_share",
    "bound_per_second",
    "peak_f32",
    "peak_f16",
    "peak_matrices",
    "peak_bandwidth",
    "ratio",
    "skipped",
    "failed",
];

/// The column titles as a line of CSV.
pub(super) fn titles() -> io::Result<Vec<u8>> {
    record(COLUMNS.iter().map(|title| (*title).to_owned()))
}

/// One line in the form that was asked for.
pub(super) fn write(out: &mut impl Write, form: Form, line: &Line) -> io::Result<()> {
    match form {
        Form::Table => bench_table::line(out, line)?,
        Form::Json => writeln!(out, "{}", serde_json::to_string(line)?)?,
        Form::Csv => {
            let json = serde_json::to_value(line)?;
            let field = |column: &&str| match &json[*column] {
                Value::Null => String::new(),
                Value::String(text) => text.clone(),
                value => value.to_string(),
            };
            out.write_all(&record(COLUMNS.iter().map(field))?)?;
        }
    }
    out.flush()
}

fn record(fields: impl Iterator<Item = String>) -> io::Result<Vec<u8>> {
    let mut writer = csv::Writer::from_writer(Vec::new());
    writer.write_record(fields.map(String::into_bytes))?;
    writer.into_inner().map_err(|error| io::Error::other(error.to_string()))
}

/// A file that gets lines as they come, and holds those that came when the process is stopped.
#[derive(Debug)]
pub(super) struct Target {
    path: PathBuf,
    file: File,
}

impl Target {
    /// Errs when the file cannot be made.
    pub fn create(path: &Path) -> regard::Result<Self> {
        let fail = |error: io::Error| Error::File { path: path.display().to_string(), message: error.to_string() };
        Ok(Self { path: path.to_owned(), file: File::create(path).map_err(fail)? })
    }

    /// Writes it at once and whole. An error names the file.
    pub fn write(&mut self, text: &str) -> io::Result<()> {
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", self.path.display()));
        self.file.write_all(text.as_bytes()).map_err(named)
    }
}

/// A trace in the array form of Chrome's trace events, which Perfetto reads too, also when its end is missing: a track for each
/// problem, on it the steps of a run one after the other, each as long as its median.
#[derive(Debug)]
pub(super) struct Trace {
    target: Target,
    tracks: u32,
}

impl Trace {
    pub fn create(path: &Path) -> regard::Result<Self> {
        Ok(Self { target: Target::create(path)?, tracks: 0 })
    }

    pub fn line(&mut self, line: &Line) -> io::Result<()> {
        if line.steps.is_empty() {
            return Ok(());
        }
        let mut text = String::new();
        for event in events(line, self.tracks) {
            text += if self.tracks == 0 && text.is_empty() { "[\n" } else { ",\n" };
            text += &event.to_string();
        }
        self.tracks += 1;
        self.target.write(&text)
    }

    pub fn finish(&mut self) -> io::Result<()> {
        self.target.write(if self.tracks == 0 { "[]\n" } else { "\n]\n" })
    }
}

/// The track's name, then its steps, in microseconds from their run's beginning.
fn events(line: &Line, track: u32) -> Vec<Value> {
    let path = line.work.as_ref().map_or("", |work| &work.path);
    let name = format!("{} ({path})", line.problem);
    let mut events = vec![
        json!({ "ph": "M", "name": "process_name", "pid": 0, "args": { "name": line.device } }),
        json!({ "ph": "M", "name": "thread_name", "pid": 0, "tid": track, "args": { "name": name } }),
    ];
    let mut start = 0.0;
    for step in &line.steps {
        let (micros, seconds) = (step.ms * 1e3, step.ms * 1e-3);
        let rate = |count: u64| if seconds > 0.0 { count as f64 / seconds / 1e9 } else { 0.0 };
        events.push(json!({
            "ph": "X", "name": step.step, "cat": "step", "pid": 0, "tid": track, "ts": start, "dur": micros,
            "args": {
                "flops": step.flops, "bytes": step.bytes,
                "gflops": rate(step.flops), "gbps": rate(step.bytes), "problem": line.problem,
            },
        }));
        start += micros;
    }
    events
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use regard::Device;
    use regard::bench::{Bench, Settings, Task};

    use super::*;

    fn line() -> Line {
        let problem = "b=1,h=2,s=9,d=8,strategy=unfused".parse().unwrap();
        let task = Task::attention("a, \"suite\"", &problem).unwrap();
        let settings = Settings { budget: Duration::ZERO, warm_up: Duration::ZERO, ..Settings::default() };
        Bench::new(Device::cpu(), settings).unwrap().run(&task).unwrap()
    }

    #[test]
    fn csv_has_a_value_for_every_title() {
        let line = line();
        let mut text = titles().unwrap();
        write(&mut text, Form::Csv, &line).unwrap();
        let mut reader = csv::Reader::from_reader(&text[..]);
        let record = reader.records().next().unwrap().unwrap();
        let value = |title: &str| record.get(COLUMNS.iter().position(|column| *column == title).unwrap()).unwrap();
        assert_eq!(reader.headers().unwrap().len(), COLUMNS.len());
        assert_eq!((value("suite"), value("problem")), ("a, \"suite\"", line.problem.as_str()));
        assert_eq!(value("median_ms").parse::<f64>().unwrap(), line.timing.unwrap().median_ms);
        assert_eq!((value("skipped"), value("cache")), ("", "cold"));
    }

    #[test]
    fn steps_follow_each_other() {
        let line = line();
        let events = events(&line, 3);
        let steps: Vec<_> = events.iter().filter(|event| event["ph"] == "X").collect();
        assert!(steps.len() > 1 && steps.len() == line.steps.len());
        for pair in steps.windows(2) {
            let end = pair[0]["ts"].as_f64().unwrap() + pair[0]["dur"].as_f64().unwrap();
            assert!((pair[1]["ts"].as_f64().unwrap() - end).abs() < 1e-9);
        }
        assert_eq!(events[1]["args"]["name"], format!("{} ({})", line.problem, line.work.unwrap().path));
    }
}
