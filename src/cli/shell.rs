//! `regard completions` and `regard man`: the command line as shells and man know it.

use std::io::{self, Write};

use clap::Command;
use clap_complete::Shell;

use super::{Ending, Result};

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The shell that is to complete
    shell: Shell,
}

/// A script that completes commands, options and their values.
pub(crate) fn completions(args: &Args, command: &mut Command, out: &mut impl Write) -> Result {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, command, "regard", &mut script);
    out.write_all(&script)?;
    Ok(Ending::Good)
}

/// One page: the command, then each subcommand with its options.
pub(crate) fn man(command: &Command, out: &mut impl Write) -> Result {
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone()).render(&mut page)?;
    for subcommand in command.get_subcommands().filter(|subcommand| subcommand.get_name() != "help") {
        render(subcommand, &mut page)?;
    }
    out.write_all(&page)?;
    Ok(Ending::Good)
}

fn render(subcommand: &Command, page: &mut Vec<u8>) -> io::Result<()> {
    let name = subcommand.get_name();
    writeln!(page, ".SH REGARD {}", name.to_uppercase())?;
    let man = clap_mangen::Man::new(subcommand.clone().name(format!("regard {name}")));
    man.render_synopsis_section(page)?;
    man.render_description_section(page)?;
    man.render_options_section(page)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn every_shell_completes_the_options_of_bench() {
        for shell in [Shell::Bash, Shell::Elvish, Shell::Fish, Shell::PowerShell, Shell::Zsh] {
            let mut script = Vec::new();
            completions(&Args { shell }, &mut Cli::command(), &mut script).unwrap();
            let script = String::from_utf8(script).unwrap();
            assert!(script.contains("problem") && script.contains("verify"), "{shell}");
        }
    }

    #[test]
    fn the_page_has_every_command() {
        let mut page = Vec::new();
        man(&Cli::command(), &mut page).unwrap();
        let page = String::from_utf8(page).unwrap();
        for command in Cli::command().get_subcommands().map(clap::Command::get_name) {
            assert!(page.contains(&format!(".SH REGARD {}", command.to_uppercase())), "{command}");
        }
        assert!(page.contains("\\-\\-budget"), "options are there");
    }
}
