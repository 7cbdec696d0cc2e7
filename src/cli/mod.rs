//! The command line: parse, call the library, print.

mod bench;
mod bench_output;
mod bench_table;
mod bench_tasks;
mod compare;
mod compare_latency;
mod embed;
mod info;
mod latency;
mod report;
mod run;
mod shell;
mod text;
mod tune;
mod verify;
mod verify_table;

use std::io::{self, ErrorKind, Write};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use regard::{Error, Select};

/// Attention on any GPU: measure it, verify it, run it.
///
/// Exit codes: 0 all is well, 1 a check failed or nothing could be checked, 2 bad use.
#[derive(Debug, Parser)]
#[command(name = "regard", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Lists devices, what they can do, and which kernels each op would use there
    Info(info::Args),
    /// Checks every technique of every op against its reference in double precision
    Verify(verify::Args),
    /// Checks problems, then times them
    Bench(bench::Args),
    /// Times every technique for each node of problems, and has plans take the fastest from then on
    Tune(tune::Args),
    /// Compares two files of `regard bench --out`, problem by problem
    Compare(compare::Args),
    /// Writes an HTML page on files of `regard bench --out`: tables, plots, devices side by side
    Report(report::Args),
    /// Runs the layer in a safetensors file with its own weights and inputs
    Run(run::Args),
    /// Turns each line of standard input into a vector with a sentence-embedding model
    Embed(embed::Args),
    /// Prints a script that completes this command line in a shell
    Completions(shell::Args),
    /// Prints a man page
    Man,
    /// What the processes of `bench --suite latency` do
    #[command(hide = true)]
    FirstResult(latency::ChildArgs),
}

/// How a command ended, when it ended in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Exit code 0.
    Good,
    /// Exit code 1.
    CheckFailed,
}

/// Why a command did not end in order.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The library refused.
    Library(Error),
    /// Output could not be written.
    Output(io::Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Library(error)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

pub(crate) type Result = std::result::Result<Ending, Failure>;

/// Runs the command that the arguments name.
pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    // Colours go to terminals only, and nowhere with NO_COLOR.
    let mut out = anstream::stdout();
    let result = match &cli.command {
        Command::Info(args) => info::run(args, &mut out),
        Command::Verify(args) => verify::run(args, &mut out),
        Command::Bench(args) => bench::run(args, &mut out),
        Command::Tune(args) => tune::run(args, &mut out),
        Command::FirstResult(args) => latency::child(args, &mut out),
        Command::Compare(args) => compare::run(args, &mut out),
        Command::Report(args) => report::run(args, &mut out),
        Command::Run(args) => run::run(args, &mut out),
        Command::Embed(args) => embed::run(args, &mut out),
        Command::Completions(args) => shell::completions(args, &mut Cli::command(), &mut out),
        Command::Man => shell::man(&Cli::command(), &mut out),
    };
    let result = result.and_then(|ending| Ok(out.flush().map(|()| ending)?));
    ExitCode::from(exit_code(&result))
}

fn exit_code(result: &Result) -> u8 {
    match result {
        Ok(Ending::Good) => 0,
        Ok(Ending::CheckFailed) => 1,
        // The reader had enough, as in `regard info | head`.
        Err(Failure::Output(error)) if error.kind() == ErrorKind::BrokenPipe => 0,
        Err(Failure::Output(error)) => {
            complain(&error.to_string());
            1
        }
        Err(Failure::Library(error)) => {
            complain(&error.to_string());
            match error {
                Error::Device(_) | Error::DeviceLost(_) | Error::Shader { .. } => 1,
                _ => 2,
            }
        }
    }
}

/// A message on stderr, which may be closed too.
pub(crate) fn complain(message: &str) {
    let _ = writeln!(io::stderr(), "error: {message}");
}

/// A device as users write it. Never fails: a name that fits nothing is found out when the device is opened.
pub(crate) fn parse_select(text: &str) -> std::result::Result<Select, std::convert::Infallible> {
    text.parse()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn exit_codes() {
        let pipe = Failure::Output(ErrorKind::BrokenPipe.into());
        for (result, code) in [
            (Ok(Ending::Good), 0),
            (Ok(Ending::CheckFailed), 1),
            (Err(pipe), 0),
            (Err(Error::Parse("x".into()).into()), 2),
            (Err(Error::NoAdapter("x".into()).into()), 2),
            (Err(Error::DeviceLost("x".into()).into()), 1),
        ] {
            assert_eq!(exit_code(&result), code, "{result:?}");
        }
    }
}
