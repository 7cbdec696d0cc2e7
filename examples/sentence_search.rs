//! Search by meaning over the lines of a text file.
//!
//!     cargo run --release --example sentence_search -- "$(scripts/fetch-minilm)" README.md "how do I share a wgpu device?"

use std::error::Error;
use std::path::Path;

use regard::models::SentenceEncoder;
use regard::{Device, DeviceOptions};

/// Lines that are printed.
const FOUND: usize = 5;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [model, file, query] = &arguments[..] else {
        return Err("usage: sentence_search MODEL_FOLDER TEXT_FILE QUERY".into());
    };
    let text = std::fs::read_to_string(file).map_err(|error| format!("{file}: {error}"))?;
    let lines: Vec<&str> = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect();

    let device = Device::new(&DeviceOptions::default())?;
    let mut encoder = SentenceEncoder::open(&device, Path::new(model))?;
    let vectors = encoder.encode(&lines)?;
    let query = encoder.encode(&[query])?;

    // Vectors have length 1, so that a product is a cosine.
    let query = query.as_f32().ok_or("vectors are f32")?;
    let rows = vectors.as_f32().ok_or("vectors are f32")?.chunks_exact(encoder.width());
    let mut found: Vec<(f32, &str)> =
        rows.zip(&lines).map(|(row, line)| (row.iter().zip(query).map(|(x, y)| x * y).sum(), *line)).collect();
    found.sort_by(|a, b| b.0.total_cmp(&a.0));
    for (similarity, line) in found.iter().take(FOUND) {
        println!("{similarity:.3}  {line}");
    }
    Ok(())
}
