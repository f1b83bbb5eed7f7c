//! `utterd demo`: the whole way of one utterance, through real sockets, in one process.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use super::http::{Target, get_json};
use super::speak::show as tell;
use super::{Outcome, Signals, faulty, runtime, say, serve, show};
use crate::config::{self, Config, environment};
use crate::peer::dial::Trust;
use crate::peer::engine::{EchoEngine, Engine};
use crate::peer::node::{NodeEvent, NodeOptions};
use crate::peer::speaker::{Mode, SpeakOptions, speak};
use crate::peer::{voice, wav};
use crate::server::Server;
use crate::telemetry;

/// Length of the generated utterance, in seconds.
const UTTERANCE_SECONDS: f32 = 1.2;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Address to listen on; port 0 takes any free one.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:5010")]
    listen: String,
    /// Directory of the database; without one, a temporary one that is removed at the end.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// End after the utterance instead of serving on.
    #[arg(long)]
    once: bool,
}

pub(super) fn run(args: Args) -> Outcome {
    let temporary = std::env::temp_dir().join(format!("utterd-demo-{}", std::process::id()));
    let data = args.data.clone().unwrap_or_else(|| temporary.clone());
    let flags = [
        ("UTTERD_SERVER_LISTEN".to_owned(), args.listen.clone()),
        ("UTTERD_SERVER_DATA".to_owned(), data.display().to_string()),
    ];
    let environment: std::collections::BTreeMap<_, _> = environment().chain(flags).collect();
    let config = Config::load(None, environment.into_iter()).map_err(faulty)?;
    let _log = telemetry::log::init(&config::Log { level: "error".into(), ..config.log.clone() })?;
    let shown = runtime()?.block_on(show_all(&args, config));
    if args.data.is_none() && temporary.exists() {
        let gone = std::fs::remove_dir_all(&temporary);
        gone.with_context(|| format!("cannot remove {}", temporary.display()))?;
    }
    Ok(shown?)
}

async fn show_all(args: &Args, config: Config) -> anyhow::Result<()> {
    let server = Server::start(config).await?;
    let addr = server.addr();
    say(&format!("utterd listening on {addr}"));
    let (stop_node, stopped) = oneshot::channel::<()>();
    let (events, mut seen) = mpsc::channel(256);
    let options = NodeOptions {
        capacity: 4,
        ..NodeOptions::new(format!("ws://{addr}/ws/node"), Engine::Echo(EchoEngine::default()))
    };
    let node = tokio::spawn(async move {
        let until = async {
            // Either word ends the node: told, or nobody left to tell.
            stopped.await.unwrap_or_default();
        };
        crate::peer::node::run(options, until, Some(events)).await
    });
    let registered = async {
        loop {
            match seen.recv().await {
                Some(NodeEvent::Registered { node_id }) => break Ok(node_id),
                Some(_) => {}
                None => break Err(anyhow::anyhow!("the node ended before it was registered")),
            }
        }
    };
    let node_id = tokio::time::timeout(Duration::from_secs(10), registered)
        .await
        .context("the node was not registered in time")??;
    say(&format!(
        "node {node_id} joined; its engine is an echo: it gives the speaker's own audio back"
    ));
    utterance(&addr.to_string()).await?;
    let mut signals = Signals::caught();
    if !args.once {
        say(&format!("serving on http://{addr} until Ctrl-C: try /api/v1/nodes or /metrics there"));
        signals.next().await;
    }
    drop(stop_node);
    node.await.context("the node failed")??;
    serve::stop(server, &mut signals).await;
    Ok(())
}

async fn utterance(authority: &str) -> anyhow::Result<()> {
    say(&format!("speaking {UTTERANCE_SECONDS} s from en to es, in chunks, through a WebSocket"));
    let options = SpeakOptions {
        mode: Mode::Chunks { realtime: false },
        result_timeout: Duration::from_secs(20),
        ..SpeakOptions::new(format!("ws://{authority}/ws/session"), "en", "es")
    };
    let spoken =
        speak(voice::sine_speech(UTTERANCE_SECONDS), options, |event| tell(&event)).await?;
    let result = spoken.results.first().context("the utterance was not answered")?;
    let (samples, _) = spoken.pcm16();
    let seconds = samples.len() as f64 / f64::from(wav::RATE_HZ);
    say(&format!("  #{} speech:     {seconds:.2} s came back", result.utterance_index));
    let server = Target::new(authority, Trust::default());
    let job = get_json(&server, &format!("/api/v1/jobs/{}", result.job_id)).await?;
    timeline(&job);
    Ok(())
}

/// Prints when the job crossed which border, and who was considered for it.
fn timeline(job: &Value) {
    let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    say(&format!("timeline of {}:", text(&job["job_id"])));
    say(show::stamps(job).trim_end());
    say(show::placements(job).trim_end());
    say(&format!("  ended: {}", text(&job["ended"]["outcome"])));
}
