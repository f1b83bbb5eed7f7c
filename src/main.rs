//! The `utterd` program: parses the command line, runs one verb, returns its exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    utterd::cli::main()
}
