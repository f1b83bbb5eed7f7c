//! `utterd man` and `utterd completions`: what shells and `man` want to know of the command line,
//! made of its own definitions.

use std::path::PathBuf;

use anyhow::Context as _;
use clap::CommandFactory as _;
use clap_complete::Shell;

use super::{Cli, Failure, Outcome, code, say};

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  utterd man | man -l -
  utterd man serve | man -l -
  utterd man --dir /usr/local/share/man/man1")]
pub(super) struct ManArgs {
    /// The page of this verb; without one, of the whole program.
    #[arg(conflicts_with = "dir")]
    verb: Option<String>,
    /// Write all pages into this directory instead of printing one.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  utterd completions bash > /etc/bash_completion.d/utterd
  utterd completions zsh > \"${fpath[1]}/_utterd\"
  utterd completions fish > ~/.config/fish/completions/utterd.fish")]
pub(super) struct CompletionsArgs {
    /// Whose words.
    #[arg(value_enum)]
    shell: Shell,
}

pub(super) fn man(args: &ManArgs) -> Outcome {
    let mut whole = Cli::command();
    if let Some(dir) = &args.dir {
        clap_mangen::generate_to(whole, dir)
            .with_context(|| format!("the pages cannot be written to {}", dir.display()))?;
        return Ok(());
    }
    whole.build();
    let command = match &args.verb {
        None => &whole,
        Some(verb) => whole.find_subcommand(verb).ok_or_else(|| {
            Failure::new(code::USAGE, anyhow::anyhow!("there is no verb `{verb}`"))
        })?,
    };
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone()).render(&mut page)?;
    say(String::from_utf8(page)?.trim_end());
    Ok(())
}

pub(super) fn completions(args: &CompletionsArgs) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "utterd", &mut script);
    say(String::from_utf8(script)?.trim_end());
    Ok(())
}
