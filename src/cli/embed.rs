//! `regard embed --model DIR < lines`: a vector for each line.

use std::io::{self, BufRead, IsTerminal, Write};
use std::path::PathBuf;

use regard::models::{EncoderOptions, SentenceEncoder};
use regard::{Device, DeviceOptions, Dtype, Error, HostTensor, Select};

use super::bench::progress;
use super::{Ending, Result, parse_select};

/// Lines between two looks at the progress bar, and between two writes.
const CHUNK: usize = 256;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Folder with config.json, tokenizer.json and model.safetensors of a BERT-style sentence encoder
    #[arg(long, value_name = "DIR")]
    model: PathBuf,
    /// text: numbers with spaces between them; jsonl: a JSON array per line; npy: one array `[lines, width]`
    #[arg(long, default_value = "text")]
    format: Format,
    /// f32 or f16: what weights and intermediate results are stored as; vectors are f32
    #[arg(long, default_value = "f32", value_parser = parse_dtype)]
    dtype: Dtype,
    /// auto, gpu, cpu, or part of an adapter's name
    #[arg(long, default_value = "auto", value_parser = parse_select)]
    device: Select,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    Text,
    Jsonl,
    Npy,
}

/// Reads lines from standard input, an empty one being an empty sentence.
pub(crate) fn run(args: &Args, out: &mut dyn Write) -> Result {
    if args.format == Format::Npy && io::stdout().is_terminal() {
        return Err(Error::Parse("an .npy array is binary; send it to a file with > vectors.npy".into()).into());
    }
    let device = Device::new(&DeviceOptions { select: args.device.clone(), ..DeviceOptions::default() })?;
    let mut encoder = SentenceEncoder::with_options(&device, &args.model, &EncoderOptions { dtype: args.dtype })?;
    let lines = read_lines(&mut io::stdin().lock())?;
    let sentences: Vec<&str> = lines.iter().map(String::as_str).collect();
    let mut out = io::BufWriter::new(out);
    let bar = progress(sentences.len() as u64);
    let mut all = Vec::new();
    for chunk in sentences.chunks(CHUNK) {
        let vectors = encoder.encode(chunk)?;
        match args.format {
            Format::Npy => all.extend_from_slice(vectors.as_f32().unwrap_or_default()),
            format => write_rows(&mut out, &vectors, format)?,
        }
        bar.inc(chunk.len() as u64);
    }
    bar.finish_and_clear();
    if args.format == Format::Npy {
        HostTensor::f32(&[sentences.len(), encoder.width()], all)?.write_npy_to(&mut out)?;
    }
    out.flush()?;
    Ok(Ending::Good)
}

fn read_lines(input: &mut dyn BufRead) -> regard::Result<Vec<String>> {
    let mut lines = Vec::new();
    for line in input.lines() {
        let number = lines.len() + 1;
        lines.push(line.map_err(|error| Error::Parse(format!("standard input, line {number}: {error}")))?);
    }
    Ok(lines)
}

/// A line for each row, with the shortest digits that give the same f32.
fn write_rows(out: &mut dyn Write, vectors: &HostTensor, format: Format) -> io::Result<()> {
    let (begin, between, end) = if format == Format::Jsonl { ("[", ",", "]") } else { ("", " ", "") };
    let data = vectors.as_f32().unwrap_or_default();
    for row in data.chunks_exact(vectors.desc().row_length().max(1)) {
        let numbers: Vec<String> = row.iter().map(f32::to_string).collect();
        writeln!(out, "{begin}{}{end}", numbers.join(between))?;
    }
    Ok(())
}

fn parse_dtype(text: &str) -> std::result::Result<Dtype, String> {
    match text {
        "f32" => Ok(Dtype::F32),
        "f16" => Ok(Dtype::F16),
        other => Err(format!("`{other}` is not one of f32, f16")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_lines() {
        let vectors = HostTensor::f32(&[2, 2], vec![0.1, -2.0, 1e-7, 0.0]).unwrap();
        let text = |format| {
            let mut out = Vec::new();
            write_rows(&mut out, &vectors, format).unwrap();
            String::from_utf8(out).unwrap()
        };
        assert_eq!(text(Format::Text), "0.1 -2\n0.0000001 0\n");
        assert_eq!(text(Format::Jsonl), "[0.1,-2]\n[0.0000001,0]\n");
    }

    #[test]
    fn lines_are_read_with_their_numbers() {
        assert_eq!(read_lines(&mut &b"a\n\nb"[..]).unwrap(), ["a", "", "b"]);
        let message = read_lines(&mut &b"a\n\xff\n"[..]).unwrap_err().to_string();
        assert!(message.contains("line 2"), "{message}");
    }
}
