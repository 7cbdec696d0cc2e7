//! Where files stay between processes.

use std::path::{Path, PathBuf};
use std::{fs, io};

use directories::ProjectDirs;

/// Where compiled pipelines and the results of tuning stay between processes: files of their own for each adapter and driver,
/// which are replaced as a whole. Pipelines are kept where the driver gives them out (Vulkan). When a file cannot be read or
/// written, or is not what it was, pipelines are compiled anew, and techniques chosen as without tuning.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Cache {
    /// `regard/pipelines` and `regard/tuning` in the user's folder for caches, such as `~/.cache`.
    #[default]
    User,
    /// This folder, which is made if need be.
    Folder(PathBuf),
    /// Nowhere.
    None,
}

impl Cache {
    /// The folder for files of a kind; `None` where they are kept nowhere, or the user has no folder for caches.
    pub(crate) fn folder(&self, kind: &str) -> Option<PathBuf> {
        match self {
            Self::None => None,
            Self::Folder(folder) => Some(folder.clone()),
            Self::User => ProjectDirs::from("", "", "regard").map(|dirs| dirs.cache_dir().join(kind)),
        }
    }
}

/// Writes a file such that others see the old one or the new one.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let ours = path.with_extension(format!("{}.tmp", std::process::id()));
    let written = fs::write(&ours, bytes).and_then(|()| fs::rename(&ours, path));
    if written.is_err() {
        // What is left behind, if anything, is the next writer's to replace; the error is the first one.
        let _ = fs::remove_file(&ours);
    }
    written
}
