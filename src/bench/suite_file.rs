//! A suite of the user's own: a TOML file.
//!
//! ```toml
//! name = "mine"                            # what lines call it
//! problems = ["b=1,h=8,s=1024,d=64,causal"] # as --problem takes them
//!
//! [[sweep]]                                # each combination of these values
//! b = 4
//! h = 32
//! s = [1024, 2048, 4096]
//! d = [64, 128]
//! causal = [true, false]
//! dtype = "f16"
//! ```

use std::collections::BTreeMap;

use serde::Deserialize;
use toml::Spanned;

use super::problem::Problem;
use super::task::Task;
use crate::attention::Strategy;
use crate::error::{Error, Result};

/// A suite that was read from a file.
#[derive(Debug, Clone, PartialEq)]
pub struct SuiteFile {
    /// What lines call it.
    pub name: String,
    /// In the order of the file, sweeps last; in a sweep the keys that come last in the alphabet change fastest.
    pub problems: Vec<Problem>,
}

/// Most problems of a file; more are a slip.
const MOST_PROBLEMS: usize = 10_000;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    name: Option<String>,
    #[serde(default)]
    problems: Vec<Spanned<String>>,
    #[serde(default)]
    sweep: Vec<Spanned<BTreeMap<String, Values>>>,
}

/// One value of a key, or each of several.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Values {
    One(Value),
    Each(Vec<Value>),
}

#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum Value {
    Number(i64),
    /// Of `causal`: whether.
    Flag(bool),
    Text(String),
}

impl SuiteFile {
    /// From the text of a file. `source` is its name, for errors and for a suite that does not name itself.
    ///
    /// # Errors
    /// What is no TOML, unknown keys, a problem that is none, no problem at all; each with its line.
    pub fn parse(source: &str, text: &str) -> Result<Self> {
        let fail = |message: String| Error::File { path: source.into(), message };
        // Its message has line, column and the line itself.
        let file: File = toml::from_str(text).map_err(|error| fail(error.to_string().trim_end().to_owned()))?;
        let at = |start: usize, message: &str| {
            let line = 1 + text[..start].bytes().filter(|&byte| byte == b'\n').count();
            fail(format!("line {line}: {message}"))
        };
        let parse = |problem: &str, start: usize| problem.parse().map_err(|error: Error| at(start, &error.to_string()));
        let mut problems = Vec::new();
        for problem in &file.problems {
            problems.push(parse(problem.get_ref(), problem.span().start)?);
        }
        for sweep in &file.sweep {
            let start = sweep.span().start;
            let texts = combinations(sweep.get_ref(), MOST_PROBLEMS);
            let texts = texts.ok_or_else(|| at(start, &format!("a sweep has at most {MOST_PROBLEMS} problems")))?;
            for text in texts {
                problems.push(parse(&text, start)?);
            }
        }
        if problems.is_empty() {
            return Err(fail("there is no problem; give `problems = [\"b=1,h=8,s=1024,d=64\"]` or a [[sweep]]".into()));
        }
        Ok(Self { name: file.name.unwrap_or_else(|| source.to_owned()), problems })
    }

    /// A task for each problem. `strategy` overrides that of every problem.
    ///
    /// # Errors
    /// A strategy that some problem does not allow.
    pub fn tasks(&self, strategy: Option<Strategy>) -> Result<Vec<Task>> {
        let with = |problem: &Problem| Problem { strategy: strategy.unwrap_or(problem.strategy), ..*problem };
        self.problems.iter().map(|problem| Task::attention(&self.name, &with(problem))).collect()
    }
}

/// A problem's text for each combination; `None` where they are too many.
fn combinations(keys: &BTreeMap<String, Values>, most: usize) -> Option<Vec<String>> {
    let mut texts = vec![Vec::new()];
    for (key, values) in keys {
        let values = match values {
            Values::One(value) => std::slice::from_ref(value),
            Values::Each(values) => &values[..],
        };
        if texts.len().saturating_mul(values.len()) > most {
            return None;
        }
        let with = |text: &Vec<String>, value: &Value| {
            let mut text = text.clone();
            text.extend(field(key, value));
            text
        };
        texts = texts.iter().flat_map(|text| values.iter().map(move |value| with(text, value))).collect();
    }
    Some(texts.into_iter().map(|fields| fields.join(",")).collect())
}

/// As a problem's text has it; a flag that is off is not there.
fn field(key: &str, value: &Value) -> Option<String> {
    match value {
        Value::Number(number) => Some(format!("{key}={number}")),
        Value::Text(text) => Some(format!("{key}={text}")),
        Value::Flag(true) => Some(key.to_owned()),
        Value::Flag(false) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_combined() {
        let text = "name = \"mine\"\nproblems = [\"b=1,h=8,s=9,d=4\"]\n\
                    [[sweep]]\nb = 2\nh = 4\nd = [8, 16]\ns = [3, 5]\ncausal = [true, false]\ndtype = \"f16\"\n";
        let suite = SuiteFile::parse("suite.toml", text).unwrap();
        let texts: Vec<_> = suite.problems.iter().map(ToString::to_string).collect();
        assert_eq!((suite.name.as_str(), texts.len()), ("mine", 9));
        assert_eq!(texts[0], "b=1,h=8,s=9,d=4");
        assert_eq!(texts[1..3], ["b=2,h=4,s=3,d=8,causal,dtype=f16", "b=2,h=4,s=5,d=8,causal,dtype=f16"]);
        assert_eq!(texts[8], "b=2,h=4,s=5,d=16,dtype=f16");
        let tasks = suite.tasks(Some(Strategy::Unfused)).unwrap();
        assert!(tasks.iter().all(|task| task.suite == "mine" && task.problem.ends_with("strategy=unfused")));
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line() {
        for (text, expected) in [
            ("", "there is no problem"),
            ("problems = []", "there is no problem"),
            ("problem = 3", "unknown field `problem`"),
            ("name = \"x\"\nproblems = [\n\"b=1\",\n]", "line 3: problem: `d=` is missing"),
            ("[[sweep]]\nb = 1\nh = 2\ns = 4\nd = [1, 0]", "line 1: problem: `d=0` is not a whole number"),
            ("\n[[sweep]]\nb = 1\nx = 1", "line 2: problem: unknown key `x`"),
            ("[[sweep]]\nb = 1.5", "data did not match"),
            ("name = \"x\"\nproblems = [", "line 2"),
            ("[[sweep]]\nb = 1\nwindow = \"a\"\nh = 1\nd = 1\ns = 1", "`window=a`"),
        ] {
            let message = SuiteFile::parse("suite.toml", text).unwrap_err().to_string();
            assert!(message.contains(expected) && message.contains("suite.toml"), "{text:?}: {message}");
        }
        let many: Vec<_> = (1..=101).map(|at| at.to_string()).collect();
        let text = format!("[[sweep]]\nb = [{0}]\nh = [{0}]\ns = 1\nd = 1", many.join(", "));
        let message = SuiteFile::parse("suite.toml", &text).unwrap_err().to_string();
        assert!(message.contains("line 1: a sweep has at most 10000 problems"), "{message}");
    }
}
