//! Golden files: those in `tests/goldens`, and those in the folder named by `REGARD_GOLDENS`.

use std::path::PathBuf;

use regard::weights::WeightFile;
use serde_json::Value;

/// The kind of files for a whole model, whose weights are elsewhere.
pub const MODEL_KIND: &str = "minilm";

/// A golden file and what its metadata says.
#[derive(Debug, Clone)]
pub struct File {
    /// Where it is.
    pub path: PathBuf,
    /// Its metadata's `case`.
    pub case: Value,
}

impl File {
    /// Its name without the ending.
    pub fn name(&self) -> String {
        self.path.file_stem().expect("a file has a name").to_string_lossy().into_owned()
    }

    /// Whether it is for a whole model.
    pub fn is_model(&self) -> bool {
        self.case["kind"] == MODEL_KIND
    }
}

/// All of them, in order.
pub fn files() -> Vec<File> {
    let own = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/goldens");
    let folders = [Some(own), std::env::var_os("REGARD_GOLDENS").map(PathBuf::from)];
    let mut paths = Vec::new();
    for folder in folders.into_iter().flatten() {
        let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let found = entries.map(|entry| entry.expect("a readable folder").path());
        paths.extend(found.filter(|path| path.extension().is_some_and(|ending| ending == "safetensors")));
    }
    assert!(!paths.is_empty(), "there are no golden files");
    paths.sort();
    paths.into_iter().map(|path| File { case: case(&path), path }).collect()
}

/// Null where there is none, for the library to say so.
fn case(path: &std::path::Path) -> Value {
    let file = WeightFile::open(path).ok();
    let case = file.as_ref().and_then(|file| file.metadata()).and_then(|metadata| metadata.get("case"));
    case.and_then(|case| serde_json::from_str(case).ok()).unwrap_or_default()
}
