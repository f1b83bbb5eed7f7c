//! `utterd serve`.

use super::{ConfigArgs, Failure, Outcome, asked_to_stop, code, runtime, say};
use crate::server::{Server, StartError};
use crate::telemetry;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    config: ConfigArgs,
}

pub(super) fn run(args: Args) -> Outcome {
    let config = args.config.load()?;
    let _log = telemetry::log::init(&config.log)?;
    runtime()?.block_on(async {
        let server = Server::start(config).await.map_err(|error| {
            let code = match &error {
                StartError::Listen { .. } => code::LISTEN,
                StartError::Store(_) => code::DATA,
            };
            Failure::new(code, error)
        })?;
        say(&format!("utterd listening on {}", server.addr()));
        asked_to_stop().await;
        server.stop().await;
        Ok(())
    })
}
