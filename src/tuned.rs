//! Which technique was measured to be the fastest for a problem, kept in a file from one process to the next.
//!
//! The file is JSON for people to read: a device, and for each problem every technique with its time. An entry counts as long as
//! the device offers the same techniques with the same shader text; [`Device::tune`](crate::Device::tune) makes it.

use std::collections::HashMap;
use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::ErrorKind;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use crate::cache::{Cache, replace};
use crate::error::{Error, Result};
use crate::graph::Lowering;
use crate::op::{Op, Technique};
use crate::tensor::TensorDesc;

/// What the file says that it is.
const SCHEMA: &str = "regard.tuning/1";

/// Sizes up to this one are told apart; larger ones count as the next power of two.
const EXACT: usize = 16;

/// A class of problems that one choice serves: an op with its options, and inputs of about these sizes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Problem {
    /// Name of the op.
    pub op: String,
    /// Its options, and what the graph lets a plan have in its place, such as `unfused`.
    pub options: String,
    /// Dtype and shape of each input; sizes above 16 stand for those down to half of them.
    pub inputs: Vec<String>,
}

impl Problem {
    pub(crate) fn new(op: &dyn Op, inputs: &[TensorDesc], lowerings: &[Arc<dyn Lowering>]) -> Self {
        let class = |desc: &TensorDesc| {
            let sizes = desc.shape.iter().map(|&size| if size <= EXACT { size } else { size.next_power_of_two() });
            TensorDesc::new(desc.dtype, sizes.collect::<Vec<_>>()).to_string()
        };
        let mut options = format!("{op:?}");
        lowerings.iter().for_each(|lowering| options.push_str(&format!(" or {}", lowering.name())));
        Self { op: op.name().into(), options, inputs: inputs.iter().map(class).collect() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.op, self.inputs.join(", "))
    }
}

/// One way to compute a problem, and how long it took.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// A technique, or the name of several nodes in the place of one, such as `split`.
    pub technique: String,
    /// Of the shader's text and constants; empty for what is no single shader.
    pub shader: String,
    /// Median; `None` where it was not timed.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub milliseconds: Option<f64>,
    /// Why it was not timed: its result is not the reference's.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub wrong: Option<String>,
    /// Why it was not timed: the device refuses it, or it takes too long.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub skipped: Option<String>,
}

/// A problem with what was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    /// The class.
    #[serde(flatten)]
    pub problem: Problem,
    /// Every way that the device offers, in the order in which it prefers them untuned.
    pub candidates: Vec<Candidate>,
    /// The one that plans take.
    pub chosen: String,
}

impl Entry {
    /// Whether these were measured, and in this order.
    fn measured(&self, offered: &[(&'static str, String)]) -> bool {
        let pairs = self.candidates.iter().map(|candidate| (candidate.technique.as_str(), candidate.shader.as_str()));
        pairs.eq(offered.iter().map(|(name, shader)| (*name, shader.as_str())))
    }

    fn is_whole(&self) -> bool {
        let timed = |candidate: &Candidate| candidate.milliseconds.is_some_and(|ms| ms.is_finite() && ms >= 0.0);
        self.candidates.iter().any(|candidate| candidate.technique == self.chosen && timed(candidate))
    }
}

/// What techniques a plan has to choose from, with the hash of each one's shader; then the names of whole lowerings.
pub(crate) fn offered(techniques: &[Technique], lowerings: &[Arc<dyn Lowering>]) -> Vec<(&'static str, String)> {
    let shader = |technique: &Technique| match technique {
        Technique::Gpu(launch) => {
            let mut hasher = DefaultHasher::new();
            launch.shader.hash(&mut hasher);
            format!("{:016x}", hasher.finish())
        }
        Technique::Cpu(_) => String::new(),
    };
    let techniques = techniques.iter().map(|technique| (technique.name(), shader(technique)));
    techniques.chain(lowerings.iter().map(|lowering| (lowering.name(), String::new()))).collect()
}

/// Choices by problem.
#[derive(Debug, Clone, Default)]
pub(crate) struct Table(HashMap<Problem, Entry>);

impl Table {
    /// The technique or lowering that was measured fastest, if this very choice was measured.
    pub fn choice(
        &self,
        op: &dyn Op,
        inputs: &[TensorDesc],
        lowerings: &[Arc<dyn Lowering>],
        techniques: impl FnOnce() -> Vec<Technique>,
    ) -> Option<&str> {
        // Most programs are not tuned, and need no names of problems.
        if self.0.is_empty() {
            return None;
        }
        let entry = self.0.get(&Problem::new(op, inputs, lowerings))?;
        entry.measured(&offered(&techniques(), lowerings)).then_some(entry.chosen.as_str())
    }

    pub fn insert(&mut self, entry: Entry) {
        self.0.insert(entry.problem.clone(), entry);
    }
}

/// What became of the file with a device's tuning.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum TuningFile {
    /// The device keeps no files.
    Nowhere,
    /// There is none yet; it would be this one.
    Missing(PathBuf),
    /// It was read, and has so many problems.
    Read(PathBuf, usize),
    /// It was not used, for this reason: it is damaged, or another device's.
    Ignored(PathBuf, String),
}

impl fmt::Display for TuningFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nowhere => write!(f, "no tuning is kept: the device has no folder for caches"),
            Self::Missing(path) => write!(f, "not tuned yet: there is no {}", path.display()),
            Self::Read(path, problems) => write!(f, "{problems} problems tuned in {}", path.display()),
            Self::Ignored(path, why) => write!(f, "{} is ignored: {why}", path.display()),
        }
    }
}

#[derive(Serialize, Deserialize)]
struct File {
    schema: String,
    device: String,
    problems: Vec<Entry>,
}

/// A device's choices, read when the first plan asks for them.
#[derive(Debug)]
pub(crate) struct Tuned {
    device: String,
    path: Option<PathBuf>,
    state: Mutex<Option<(Arc<Table>, TuningFile)>>,
}

impl Tuned {
    /// For the device of this name, which has its driver in it.
    pub fn new(device: String, cache: &Cache) -> Self {
        let mut hasher = DefaultHasher::new();
        device.hash(&mut hasher);
        let path = cache.folder("tuning").map(|folder| folder.join(format!("tuning-{:016x}.json", hasher.finish())));
        Self { device, path, state: Mutex::new(None) }
    }

    pub fn table(&self) -> Arc<Table> {
        self.read().0
    }

    pub fn file(&self) -> TuningFile {
        self.read().1
    }

    fn read(&self) -> (Arc<Table>, TuningFile) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.get_or_insert_with(|| self.load()).clone()
    }

    fn load(&self) -> (Arc<Table>, TuningFile) {
        let Some(path) = self.path.clone() else { return (Arc::default(), TuningFile::Nowhere) };
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return (Arc::default(), TuningFile::Missing(path)),
            Err(error) => return (Arc::default(), TuningFile::Ignored(path, error.to_string())),
        };
        match self.parse(&bytes) {
            Ok(problems) => {
                let read = TuningFile::Read(path, problems.len());
                let entries = problems.into_iter().map(|entry| (entry.problem.clone(), entry));
                (Arc::new(Table(entries.collect())), read)
            }
            Err(why) => (Arc::default(), TuningFile::Ignored(path, why)),
        }
    }

    /// The problems of a file, or why there are none.
    fn parse(&self, bytes: &[u8]) -> std::result::Result<Vec<Entry>, String> {
        let file: File = serde_json::from_slice(bytes).map_err(|error| format!("it is damaged: {error}"))?;
        if file.schema != SCHEMA {
            return Err(format!("its schema is `{}`, `{SCHEMA}` was expected", file.schema));
        }
        if file.device != self.device {
            return Err(format!("it was measured on `{}`, this is `{}`", file.device, self.device));
        }
        match file.problems.iter().find(|entry| !entry.is_whole()) {
            Some(entry) => Err(format!("it is damaged: `{}` was chosen for {} untimed", entry.chosen, entry.problem)),
            None => Ok(file.problems),
        }
    }

    /// Adds what was measured, for plans from here on; with the file where there is one.
    ///
    /// # Errors
    /// A file that cannot be written; the plans of this process are tuned all the same.
    pub fn add(&self, entries: &[Entry]) -> Result<()> {
        let mut table = Table::clone(&self.table());
        entries.iter().for_each(|entry| table.insert(entry.clone()));
        let mut problems: Vec<Entry> = table.0.values().cloned().collect();
        problems.sort_by_key(|entry| (entry.problem.to_string(), entry.problem.options.clone()));
        let count = problems.len();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(path) = self.path.clone() else {
            *state = Some((Arc::new(table), TuningFile::Nowhere));
            return Ok(());
        };
        *state = Some((Arc::new(table), TuningFile::Read(path.clone(), count)));
        let file = File { schema: SCHEMA.into(), device: self.device.clone(), problems };
        let fail = |message: String| Error::File { path: path.display().to_string(), message };
        let text = serde_json::to_string_pretty(&file).map_err(|error| fail(error.to_string()))?;
        replace(&path, text.as_bytes()).map_err(|error| fail(error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capabilities::Capabilities;

    fn entry(chosen: &str) -> Entry {
        let candidate = |technique: &str, milliseconds| Candidate {
            technique: technique.into(),
            shader: String::new(),
            milliseconds,
            wrong: None,
            skipped: None,
        };
        let problem = Problem { op: "softmax".into(), options: "Softmax".into(), inputs: vec!["f32 [2, 64]".into()] };
        Entry { problem, candidates: vec![candidate("a", Some(2.0)), candidate("b", None)], chosen: chosen.into() }
    }

    fn tuned() -> Tuned {
        Tuned::new("this device".into(), &Cache::None)
    }

    #[test]
    fn a_file_is_read_as_it_was_written() {
        let file = |device: &str, schema: &str, chosen: &str| {
            let (schema, device) = (schema.into(), device.into());
            serde_json::to_vec(&File { schema, device, problems: vec![entry(chosen)] }).unwrap()
        };
        assert_eq!(tuned().parse(&file("this device", SCHEMA, "a")).unwrap(), [entry("a")]);
        for (bytes, why) in [
            (file("another", SCHEMA, "a"), "it was measured on `another`, this is `this device`"),
            (file("this device", "regard.tuning/0", "a"), "its schema is `regard.tuning/0`"),
            (file("this device", SCHEMA, "b"), "it is damaged: `b` was chosen"),
            (file("this device", SCHEMA, "c"), "it is damaged: `c` was chosen"),
            (file("this device", SCHEMA, "a")[1..].to_vec(), "it is damaged: "),
            (Vec::new(), "it is damaged: "),
        ] {
            let got = tuned().parse(&bytes).unwrap_err();
            assert!(got.starts_with(why), "{got}");
        }
    }

    #[test]
    fn only_what_is_offered_alike_is_chosen() {
        let offered = |names: &[(&'static str, &str)]| -> Vec<_> {
            names.iter().map(|(name, shader)| (*name, (*shader).to_owned())).collect()
        };
        assert!(entry("a").measured(&offered(&[("a", ""), ("b", "")])));
        for other in [&[("a", "")][..], &[("b", ""), ("a", "")], &[("a", "changed"), ("b", "")]] {
            assert!(!entry("a").measured(&offered(other)), "{other:?}");
        }
    }

    #[test]
    fn a_name_is_one_technique() {
        for entry in crate::ops::REGISTRY {
            for case in (entry.cases)() {
                for capabilities in [Capabilities::baseline_f16(), Capabilities::cpu()] {
                    let techniques = case.op.techniques(&case.descs(), &capabilities);
                    let names: std::collections::HashSet<_> = techniques.iter().map(Technique::name).collect();
                    assert_eq!(names.len(), techniques.len(), "{} {}", entry.name, case.name);
                }
            }
        }
    }

    #[test]
    fn sizes_make_classes() {
        let class = |shape: &[usize]| {
            let op = crate::ops::Softmax { scale: 1.0, has_sinks: false };
            Problem::new(&op, &[TensorDesc::new(crate::tensor::Dtype::F32, shape)], &[])
        };
        assert_eq!(class(&[3, 1000]), class(&[3, 600]));
        assert_eq!(class(&[3, 1000]).inputs, ["f32 [3, 1024]"]);
        assert_ne!(class(&[3, 1000]), class(&[4, 1000]));
        assert_ne!(class(&[3, 1000]), class(&[3, 500]));
    }
}
