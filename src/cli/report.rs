//! `regard report`.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use regard::Error;
use regard::bench::{Run, html};

use super::text::wrap;
use super::{Ending, Result};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// JSON lines of `regard bench --out FILE` or scripts/peers; several files stand side by side
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The HTML file
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
}

pub(crate) fn run(args: &Args, out: &mut impl Write) -> Result {
    let runs = args.files.iter().map(|file| Run::read(file)).collect::<regard::Result<Vec<_>>>()?;
    write(&args.out, &runs)?;
    writeln!(out, "{}", wrap(&format!("{}: {} lines", args.out.display(), lines(&runs)), 0))?;
    Ok(Ending::Good)
}

fn lines(runs: &[Run]) -> usize {
    runs.iter().map(|run| run.lines.len() + run.latencies.len()).sum()
}

/// Writes the report on these runs.
fn write(path: &Path, runs: &[Run]) -> regard::Result<()> {
    let fail = |error: io::Error| Error::File { path: path.display().to_string(), message: error.to_string() };
    std::fs::write(path, html(runs)).map_err(fail)
}
