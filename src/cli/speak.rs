//! `utterd speak`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;

use super::http::trust;
use super::{Failure, Outcome, code, runtime, say};
use crate::config;
use crate::peer::speaker::{Mode, SpeakEvent, SpeakOptions, Spoken, speak};
use crate::peer::{voice, wav};
use crate::telemetry;

/// Longest sound that is made up, in seconds.
const GENERATED_MAX: f32 = 3_600.0;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The speech: WAV of any rate and number of channels.
    #[arg(required_unless_present = "generated")]
    file: Option<PathBuf>,
    /// Say so many seconds of a made-up sound instead of a file.
    #[arg(long, value_name = "SECONDS", conflicts_with = "file")]
    generated: Option<f32>,
    /// Where the server listens: ws:// or wss://.
    #[arg(long, default_value = "ws://127.0.0.1:5010/ws/session")]
    url: String,
    /// Key of the server's to show, if it asks for one.
    #[arg(long, env = "UTTERD_KEY", hide_env_values = true)]
    api_key: Option<String>,
    /// Certificates to believe of a wss:// server, and no others (PEM).
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Language spoken.
    #[arg(long, value_name = "LANG")]
    from: String,
    /// Language wanted.
    #[arg(long, value_name = "LANG")]
    to: String,
    /// Stream it in chunks and let the server cut it (the default).
    #[arg(long, conflicts_with = "utterance")]
    chunks: bool,
    /// Send it as one message.
    #[arg(long)]
    utterance: bool,
    /// Send chunks as fast as they are taken, not at the pace of speech.
    #[arg(long)]
    fast: bool,
    /// Save the returned speech to this WAV file.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Tear the connection once, after this many seconds, to see the session go on.
    #[arg(long, value_name = "SECONDS")]
    drop_after: Option<f64>,
    /// Longest wait for answers after the end of the file, in seconds.
    #[arg(long, default_value_t = 60)]
    timeout: u64,
}

pub(super) fn run(args: Args) -> Outcome {
    let _log =
        telemetry::log::init(&config::Log { level: "warn".into(), ..config::Log::default() })?;
    let unread = |e| Failure::new(code::USAGE, anyhow::Error::from(e));
    let pcm = match &args.file {
        Some(file) => wav::read_wav(file).map_err(unread)?,
        None => voice::sine_speech(args.generated.unwrap_or_default().clamp(0.0, GENERATED_MAX)),
    };
    let mode = match args.utterance {
        true => Mode::Utterance,
        false => Mode::Chunks { realtime: !args.fast },
    };
    let drop_after = args.drop_after.map(Duration::try_from_secs_f64).transpose();
    let drop_after = drop_after.map_err(|e| Failure::new(code::USAGE, anyhow::Error::from(e)))?;
    let options = SpeakOptions {
        trust: trust(args.ca.as_deref(), None)?,
        mode,
        drop_after,
        key: args.api_key.clone(),
        result_timeout: Duration::from_secs(args.timeout),
        ..SpeakOptions::new(args.url.clone(), args.from.clone(), args.to.clone())
    };
    let spoken = runtime()?.block_on(speak(pcm, options, |event| show(&event)))?;
    finish(&args, &spoken)
}

fn finish(args: &Args, spoken: &Spoken) -> Outcome {
    let (samples, undecoded) = spoken.pcm16();
    if let Some(out) = &args.out {
        wav::write_wav(out, &samples).with_context(|| format!("cannot write {}", out.display()))?;
        let seconds = samples.len() as f64 / f64::from(wav::RATE_HZ);
        say(&format!("saved {seconds:.2} s of speech to {}", out.display()));
    }
    if undecoded > 0 {
        say(&format!("{undecoded} answers came as Opus, which is not decoded here"));
    }
    if !spoken.unanswered.is_empty() || (spoken.results.is_empty() && !spoken.missing.is_empty()) {
        let text = format!(
            "no answer for utterances {:?}",
            spoken.unanswered.iter().chain(spoken.missing.keys()).collect::<Vec<_>>()
        );
        return Err(anyhow::Error::msg(text).into());
    }
    Ok(())
}

pub(super) fn show(event: &SpeakEvent) {
    say(&line(event));
}

fn line(event: &SpeakEvent) -> String {
    match event {
        SpeakEvent::Ready { session_id } => format!("session {session_id}"),
        SpeakEvent::Sent => "all sent".to_owned(),
        SpeakEvent::Step { utterance_index, event, error_code, .. } => match error_code {
            Some(code) => format!("  #{utterance_index} {event} {code}"),
            None => format!("  #{utterance_index} {event}"),
        },
        SpeakEvent::Partial { utterance_index, text, .. } => {
            format!("  #{utterance_index} … {text}")
        }
        SpeakEvent::Result { utterance_index, text_asr, text_translated, .. } => {
            format!(
                "  #{utterance_index} heard:      {text_asr}\n  \
                 #{utterance_index} translated: {text_translated}"
            )
        }
        SpeakEvent::Missing { utterance_index, reason } => {
            format!("  #{utterance_index} no result: {reason}")
        }
        SpeakEvent::Error { code, message } => format!("  error {code}: {message}"),
        SpeakEvent::Paused { .. } => "  the server asks to pause".to_owned(),
        SpeakEvent::GoingAway => "the server is going to stop".to_owned(),
        SpeakEvent::Lost { why } => format!("connection lost: {why}"),
        SpeakEvent::Resumed { recovered, from_result, from_chunk } => {
            let results = match recovered {
                true => format!("resumed: recovered, from result {from_result}"),
                false => format!("resumed: results before number {from_result} are gone"),
            };
            let chunks = from_chunk.map_or(String::new(), |seq| format!(", from chunk {seq}"));
            results + &chunks
        }
    }
}
