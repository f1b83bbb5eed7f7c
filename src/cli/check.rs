//! `utterd check`.

use std::path::PathBuf;

use super::{Outcome, faulty, say};
use crate::config::{Config, environment, example_toml};
use crate::server::check_certificates;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Configuration file (TOML).
    #[arg(required_unless_present = "example")]
    file: Option<PathBuf>,
    /// Print a file with every setting and its default instead.
    #[arg(long)]
    example: bool,
}

pub(super) fn run(args: &Args) -> Outcome {
    if args.example {
        say(&example_toml());
        return Ok(());
    }
    let config = Config::load(args.file.as_deref(), environment()).map_err(faulty)?;
    check_certificates(&config).map_err(faulty)?;
    say("the configuration is fine");
    Ok(())
}
