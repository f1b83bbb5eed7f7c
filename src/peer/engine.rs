//! What a node does with a job: the engine is asked with [`JobInput`] and answers with
//! [`JobOutput`].
//!
//! An engine knows nothing of sockets, attempts or sessions; it may be dropped in the middle of a
//! job, which is how a job is cancelled, and must then leave nothing behind. Each job stands for
//! itself: slices of one turn are answered one by one.

use std::collections::BTreeSet;
use std::io;
use std::time::Duration;

use tokio::sync::mpsc;

use super::command::CommandEngine;
use super::wav::WavError;

/// Languages the echo engine claims when nobody says otherwise.
pub const ECHO_LANGUAGES: [&str; 7] = ["en", "es", "zh", "de", "fr", "ja", "ko"];
/// Milliseconds in one packet of the wire's Opus stream.
const OPUS_PACKET_MS: u64 = 20;

/// One job as an engine sees it.
#[derive(Debug, Clone, Default)]
pub struct JobInput {
    /// The speech, in the encoding named by `audio_format`.
    pub audio: Vec<u8>,
    /// `pcm16` or `opus`, as the wire says.
    pub audio_format: String,
    /// Samples per second of `audio`.
    pub sample_rate: u32,
    /// Language spoken, or `auto`.
    pub src_lang: String,
    /// Language wanted.
    pub tgt_lang: String,
    /// What `auto` may stand for; empty when the scheduler did not say.
    pub candidates: Vec<String>,
    /// Whether a translation is wanted; without one nothing is spoken either.
    pub use_nmt: bool,
    /// Whether speech is wanted.
    pub use_tts: bool,
}

/// An engine's answer. Empty texts and no audio mean that nobody spoke.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct JobOutput {
    /// What was said.
    pub text_asr: String,
    /// The same in the language wanted.
    pub text_translated: String,
    /// The translation spoken, in `tts_format`.
    pub tts_audio: Vec<u8>,
    /// `pcm16` (16 kHz mono) or `opus`.
    pub tts_format: String,
    /// Time spent recognising, in ms.
    pub asr_ms: u64,
    /// Time spent translating, in ms.
    pub nmt_ms: u64,
    /// Time spent speaking, in ms.
    pub tts_ms: u64,
}

/// A job failed in an engine; [`super::node`] turns this into the wire's codes.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The job asks for something this engine does not do.
    #[error("{0}")]
    Unsupported(String),
    /// A program the engine needs is not there.
    #[error("service {service_id} is not available: {reason}")]
    NotAvailable {
        /// Service as named in the registration.
        service_id: String,
        /// Its version as registered.
        service_version: String,
        /// What is missing.
        reason: String,
    },
    /// A program ended badly.
    #[error("{stage}: {program}: {what}{}", tail(.stderr))]
    Program {
        /// `asr`, `nmt`, `tts` or `decode`.
        stage: &'static str,
        /// The program's name as configured.
        program: String,
        /// What went wrong.
        what: String,
        /// The last it wrote to its standard error.
        stderr: String,
    },
    /// Audio could not be read or made.
    #[error("{stage}: {source}")]
    Audio {
        /// Stage that had the audio in hand.
        stage: &'static str,
        /// The fault.
        source: WavError,
    },
    /// The job's temporary directory.
    #[error("temporary files: {0}")]
    Scratch(#[from] io::Error),
}

fn tail(stderr: &str) -> String {
    if stderr.is_empty() { String::new() } else { format!(": {stderr}") }
}

/// The engine's way to say what it has so far. Cheap to clone; silent when nobody listens.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    to: Option<mpsc::Sender<Partial>>,
    job_id: String,
}

/// Recognised text of a job still being worked on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partial {
    /// Job it belongs to.
    pub job_id: String,
    /// The words so far.
    pub text: String,
    /// No more words will come.
    pub is_final: bool,
}

impl Progress {
    /// Reports go to `to`, under the name of this job.
    pub fn new(to: mpsc::Sender<Partial>, job_id: String) -> Self {
        Self { to: Some(to), job_id }
    }

    /// For jobs whose partial texts nobody asked for.
    pub fn silent() -> Self {
        Self::default()
    }

    /// Tells what was recognised; waits while the listener is busy.
    pub async fn partial(&self, text: &str, is_final: bool) {
        let Some(to) = &self.to else { return };
        let partial = Partial { job_id: self.job_id.clone(), text: text.to_owned(), is_final };
        if to.send(partial).await.is_err() {
            tracing::debug!(job_id = self.job_id, "nobody listens to partial texts any more");
        }
    }
}

/// One thing a node offers, as it is registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    /// Name of the implementation.
    pub service_id: String,
    /// `asr`, `nmt` or `tts`.
    pub kind: &'static str,
    /// Free text.
    pub version: String,
}

/// The directions an engine serves; at least one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Languages {
    /// (source, target), without repetition.
    pub pairs: BTreeSet<(String, String)>,
}

impl Languages {
    /// Every ordered pair of two different languages of a list.
    pub fn all_pairs_of<S: AsRef<str>>(list: &[S]) -> Self {
        let mut pairs = BTreeSet::new();
        for src in list {
            for tgt in list.iter().filter(|tgt| tgt.as_ref() != src.as_ref()) {
                pairs.insert((src.as_ref().to_owned(), tgt.as_ref().to_owned()));
            }
        }
        Self { pairs }
    }

    /// Languages understood, sorted.
    pub fn sources(&self) -> Vec<&str> {
        let distinct: BTreeSet<&str> = self.pairs.iter().map(|(src, _)| src.as_str()).collect();
        distinct.into_iter().collect()
    }

    /// Languages spoken, sorted.
    pub fn targets(&self) -> Vec<&str> {
        let distinct: BTreeSet<&str> = self.pairs.iter().map(|(_, tgt)| tgt.as_str()).collect();
        distinct.into_iter().collect()
    }
}

/// The engines there are.
#[derive(Debug)]
pub enum Engine {
    /// Gives the speaker's own voice back.
    Echo(EchoEngine),
    /// Runs three programs.
    Command(CommandEngine),
}

impl Engine {
    /// Directions served.
    pub fn languages(&self) -> Languages {
        match self {
            Self::Echo(echo) => Languages::all_pairs_of(&echo.languages),
            Self::Command(command) => command.languages(),
        }
    }

    /// What to register.
    pub fn services(&self) -> Vec<Service> {
        match self {
            Self::Echo(_) => ["asr", "nmt", "tts"]
                .map(|kind| Service {
                    service_id: format!("echo-{kind}"),
                    kind,
                    version: env!("CARGO_PKG_VERSION").to_owned(),
                })
                .into(),
            Self::Command(command) => command.services(),
        }
    }

    /// Does one job. Dropping the future cancels it.
    pub async fn process(
        &self,
        job: &JobInput,
        progress: &Progress,
    ) -> Result<JobOutput, EngineError> {
        match self {
            Self::Echo(echo) => Ok(echo.process(job, progress).await),
            Self::Command(command) => command.process(job, progress).await,
        }
    }
}

/// Answers with the audio it was given: shows that the way there and back works, and nothing more.
#[derive(Debug, Clone)]
pub struct EchoEngine {
    /// Languages it pretends to know; every ordered pair is offered.
    pub languages: Vec<String>,
    /// How long it pretends to work on each job.
    pub delay: Duration,
}

impl Default for EchoEngine {
    fn default() -> Self {
        Self { languages: ECHO_LANGUAGES.map(str::to_owned).into(), delay: Duration::ZERO }
    }
}

impl EchoEngine {
    async fn process(&self, job: &JobInput, progress: &Progress) -> JobOutput {
        let text_asr = match speech_ms(job) {
            Some(ms) => format!("[echo] {:.2} s of {} speech", ms as f64 / 1e3, job.audio_format),
            None => format!("[echo] {} bytes of {}", job.audio.len(), job.audio_format),
        };
        progress.partial(&text_asr, true).await;
        if !self.delay.is_zero() {
            tokio::time::sleep(self.delay).await;
        }
        let translated = "[echo] the speaker's own audio, not a translation";
        JobOutput {
            text_asr,
            text_translated: if job.use_nmt { translated.to_owned() } else { String::new() },
            tts_audio: if job.use_tts { job.audio.clone() } else { Vec::new() },
            tts_format: job.audio_format.clone(),
            asr_ms: u64::try_from(self.delay.as_millis()).unwrap_or(u64::MAX),
            nmt_ms: 0,
            tts_ms: 0,
        }
    }
}

/// How long the speech lasts, as far as the encoding tells.
fn speech_ms(job: &JobInput) -> Option<u64> {
    match job.audio_format.as_str() {
        "pcm16" => (job.audio.len() as u64 / 2 * 1000).checked_div(u64::from(job.sample_rate)),
        "opus" => opus_packets(&job.audio).map(|packets| packets * OPUS_PACKET_MS),
        _ => None,
    }
}

/// Counts the packets of a stream in which each is led by its length (u16, little-endian).
fn opus_packets(mut stream: &[u8]) -> Option<u64> {
    let mut packets = 0;
    while let Some((length, rest)) = stream.split_first_chunk() {
        stream = rest.get(usize::from(u16::from_le_bytes(*length))..)?;
        packets += 1;
    }
    stream.is_empty().then_some(packets)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(audio: Vec<u8>, audio_format: &str) -> JobInput {
        JobInput {
            audio,
            audio_format: audio_format.to_owned(),
            sample_rate: 16_000,
            src_lang: "en".to_owned(),
            tgt_lang: "es".to_owned(),
            use_nmt: true,
            use_tts: true,
            ..JobInput::default()
        }
    }

    #[tokio::test]
    async fn echo_gives_the_same_audio_back_and_says_how_long_it_is() {
        let engine = Engine::Echo(EchoEngine::default());
        let pcm = job(vec![7; 38_400], "pcm16");
        let out = engine.process(&pcm, &Progress::silent()).await.unwrap();
        assert_eq!(out.tts_audio, pcm.audio);
        assert_eq!(out.tts_format, "pcm16");
        assert_eq!(out.text_asr, "[echo] 1.20 s of pcm16 speech");
        assert_eq!(out.text_translated, "[echo] the speaker's own audio, not a translation");

        let opus = job([[3, 0, 1, 2, 3].as_slice(), &[1, 0, 9]].concat(), "opus");
        let out = engine.process(&opus, &Progress::silent()).await.unwrap();
        assert_eq!(out.text_asr, "[echo] 0.04 s of opus speech");
        let broken = job(vec![9, 0, 1], "opus");
        let out = engine.process(&broken, &Progress::silent()).await.unwrap();
        assert_eq!(out.text_asr, "[echo] 3 bytes of opus");
    }

    #[tokio::test]
    async fn echo_leaves_out_what_the_pipeline_does_not_want() {
        let engine = Engine::Echo(EchoEngine::default());
        let mut only_text = job(vec![0; 320], "pcm16");
        only_text.use_tts = false;
        let out = engine.process(&only_text, &Progress::silent()).await.unwrap();
        assert!(out.tts_audio.is_empty() && !out.text_translated.is_empty());
    }

    #[test]
    fn seven_languages_are_forty_two_directions() {
        let languages = Engine::Echo(EchoEngine::default()).languages();
        assert_eq!(languages.pairs.len(), 42);
        assert_eq!(languages.sources(), ["de", "en", "es", "fr", "ja", "ko", "zh"]);
        assert!(!languages.pairs.contains(&("en".to_owned(), "en".to_owned())));
    }
}
