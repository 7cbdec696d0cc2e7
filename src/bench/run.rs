//! Files of lines, as `regard bench --out` and `scripts/peers` write them.

use std::path::Path;

use serde_json::Value;

use super::latency::{LATENCY_SCHEMA, Latency};
use super::report::{Line, SCHEMA};
use crate::error::{Error, Result};

/// What a line is about.
enum Parsed {
    Line(Box<Line>),
    Latency(Latency),
}

/// Versions of the lines that can be read.
const SCHEMAS: [&str; 3] = ["regard.bench/1", "regard.bench/2", SCHEMA];

/// What one file says.
#[derive(Debug, Clone, PartialEq)]
pub struct Run {
    /// The file as it was named, or another name for people.
    pub name: String,
    /// Its lines about problems.
    pub lines: Vec<Line>,
    /// Its lines about first results. When a file was read, there is one line at least of either kind.
    pub latencies: Vec<Latency>,
}

impl Run {
    /// Reads a file of JSON lines.
    ///
    /// # Errors
    /// [`Error::File`]: it cannot be read, or is not what [`parse`](Self::parse) expects.
    pub fn read(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|error| format!("{error}; it is to hold what `regard bench --out FILE` wrote"))
            .map_err(|message| Error::File { path: name.clone(), message })?;
        Self::parse(&name, &text)
    }

    /// Lines from text, named `name`.
    ///
    /// # Errors
    /// [`Error::File`] with the number of the line: text that is no JSON, another schema, a key that is missing, a line without a
    /// result; text without lines.
    pub fn parse(name: &str, text: &str) -> Result<Self> {
        let file = |message: String| Error::File { path: name.to_owned(), message };
        let (mut lines, mut latencies) = (Vec::new(), Vec::new());
        for (text, number) in text.lines().zip(1..).filter(|(text, _)| !text.trim().is_empty()) {
            match line(text).map_err(|message| file(format!("line {number} {message}")))? {
                Parsed::Line(line) => lines.push(*line),
                Parsed::Latency(latency) => latencies.push(latency),
            }
        }
        if lines.is_empty() && latencies.is_empty() {
            return Err(file("the file has no lines; `regard bench --out FILE` writes some".into()));
        }
        Ok(Self { name: name.to_owned(), lines, latencies })
    }

    /// Names of the devices of lines about problems, in the order in which they come.
    pub fn devices(&self) -> Vec<&str> {
        let mut devices: Vec<&str> = Vec::new();
        for line in &self.lines {
            if !devices.contains(&line.device.as_str()) {
                devices.push(&line.device);
            }
        }
        devices
    }
}

fn line(text: &str) -> std::result::Result<Parsed, String> {
    let value: Value = serde_json::from_str(text).map_err(|error| format!("is no JSON: {error}"))?;
    let known = format!("{} and {LATENCY_SCHEMA}", SCHEMAS.join(", "));
    let keys = value.as_object().ok_or_else(|| format!("is no JSON object; lines of {known} are read"))?;
    match keys.get("schema").map(|schema| schema.as_str().unwrap_or_default()) {
        Some(schema) if SCHEMAS.contains(&schema) => {}
        Some(LATENCY_SCHEMA) => {
            let latency = serde_json::from_value(value).map_err(|error| format!("is incomplete: {error}"))?;
            return Ok(Parsed::Latency(latency));
        }
        Some(schema) => return Err(format!("has schema `{schema}`; {known} are read")),
        None => return Err(format!("has no key `schema`; {known} are read")),
    }
    let timed = keys.contains_key("median_ms");
    let mut line: Line = serde_json::from_value(value).map_err(|error| format!("is incomplete: {error}"))?;
    // `scripts/peers` names this crate like any other.
    line.peer = line.peer.filter(|peer| peer != "regard");
    if timed && line.timing.is_none() {
        return Err("has a median_ms, and keys of a timing that are missing or no numbers".into());
    }
    if line.timing.is_none() && line.skipped.is_none() && line.failed.is_none() {
        return Err("has none of median_ms, skipped and failed".into());
    }
    Ok(Parsed::Line(Box::new(line)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"{"schema": "regard.bench/1", "version": "0.1.0", "suite": "quick", "problem": "p", "device": "d",
        "skipped": "for a test"}"#;

    fn refused(text: &str) -> String {
        Run::parse("some.json", text).unwrap_err().to_string()
    }

    #[test]
    fn what_is_no_file_of_lines_is_refused_with_both_sides() {
        let good = GOOD.replace('\n', "");
        for (text, wanted) in [
            ("", "some.json: the file has no lines"),
            ("\n \n", "some.json: the file has no lines"),
            (&format!("{good}\n\nmedian"), "some.json: line 3 is no JSON: "),
            ("[1]", "line 1 is no JSON object"),
            (
                "{}",
                "line 1 has no key `schema`; regard.bench/1, regard.bench/2, regard.bench/3 and regard.latency/1 are read",
            ),
            (&good.replace("bench/1", "bench/9"), "line 1 has schema `regard.bench/9`; regard.bench/1, "),
            (&good.replace("\"problem\"", "\"question\""), "line 1 is incomplete: missing field `problem`"),
            (&good.replace("skipped", "passed"), "line 1 has none of median_ms, skipped and failed"),
            (&good.replace("\"for a test\"", "null, \"median_ms\": \"fast\""), "line 1 has a median_ms, and keys"),
        ] {
            let message = refused(text);
            assert!(message.contains(wanted), "{message}");
        }
    }

    #[test]
    fn lines_about_first_results_stand_beside_the_others() {
        let latency = r#"{"schema": "regard.latency/1", "problem": "p", "device": "d", "cold": [], "cached": []}"#;
        let run = Run::parse("some.json", &format!("{latency}\n{}", GOOD.replace('\n', ""))).unwrap();
        assert_eq!((run.lines.len(), run.latencies.len(), run.devices()), (1, 1, vec!["d"]));
        assert_eq!(Run::parse("some.json", latency).unwrap().lines, []);
        let message = refused(&latency.replace("cached", "warm"));
        assert!(message.contains("line 1 is incomplete: missing field `cached`"), "{message}");
    }

    #[test]
    fn the_results_of_this_repository_are_read() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/results");
        let run = Run::read(&folder.join("2026-11-21-peers-burn.jsonl")).unwrap();
        assert_eq!((run.lines.len(), run.devices().len()), (68, 3));
        assert_eq!(run.lines.iter().filter(|line| line.timing.is_some()).count(), 60);
        assert!(run.lines.iter().all(|line| line.peer.as_deref() != Some("regard")));
        let message = Run::read(&folder.join("2026-11-21-cpu-2-threads-pytorch.jsonl")).unwrap_err().to_string();
        assert!(message.contains("line 1 has schema `regard.peer/1`"), "{message}");
    }
}
