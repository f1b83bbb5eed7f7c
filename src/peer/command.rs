//! The command engine: speech to text, text to text and text to speech by three programs of the
//! operator's choice.
//!
//! Knows how to hand each program its input and take its answer ([`CommandConfig`] says which
//! programs), and that a job leaves neither processes nor files behind, however it ends. Does not
//! decode Opus itself.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::engine::{EngineError, JobInput, JobOutput, Languages, Progress, Service};
use super::program::{Blanks, Fault, Run, Scratch, UnclosedQuote};
use super::wav::{self, WavError};

pub use super::program::split_words;

/// Text a program may answer with.
pub const TEXT_BYTES_MAX: usize = 1 << 20;
/// Sound a program may answer with, in a file or on its standard output.
pub const SOUND_BYTES_MAX: usize = 64 << 20;
/// Time a program has unless its section says otherwise.
pub const TIMEOUT_MS: u64 = 20_000;
/// Version under which the programs are registered; they are not asked for their own.
const SERVICE_VERSION: &str = "1.0.0";

/// The programs, as a TOML file or a command line names them.
///
/// In each argument `{src}` and `{tgt}` stand for the languages of the job, `{wav}` for the path of
/// a WAV file (for `asr` the speech to read, 16 kHz mono; for `tts` and `decode` the file to write)
/// and `{text}` for the text. Text is also given on standard input, and so is the speech where
/// `asr` does not name `{wav}`; answers are taken from standard output.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommandConfig {
    /// Speech to text.
    pub asr: SpokenProgram,
    /// Text to text.
    pub nmt: TranslationPrograms,
    /// Text to speech.
    pub tts: SpokenProgram,
    /// Turns `opus` audio, given on standard input, into a WAV; without it such jobs are refused.
    pub decode: Option<DecodeProgram>,
}

/// A program and the languages it hears or speaks.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpokenProgram {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Languages, named as on the wire.
    pub languages: Vec<String>,
    /// Time it has for one job, in ms.
    #[serde(default = "default_timeout_ms")]
    pub timeout_ms: u64,
}

/// The program or programs that translate.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TranslationPrograms {
    /// One program for every pair of a plain list of pairs.
    pub command: Option<Vec<String>>,
    /// Directions as `src:tgt`.
    pub pairs: Pairs,
    /// Time for one job, in ms.
    #[serde(default = "default_timeout_ms")]
    pub timeout_ms: u64,
}

/// Directions, with a program each or with one for all.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Pairs {
    /// `["en:es", "en:fr"]`, served by `command`.
    Listed(Vec<String>),
    /// `{ "en:es" = ["apertium", "-u", "eng-spa"] }`.
    Programs(BTreeMap<String, Vec<String>>),
}

/// A program that decodes Opus.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecodeProgram {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Time it has for one job, in ms.
    #[serde(default = "default_timeout_ms")]
    pub timeout_ms: u64,
}

/// The same from command-line flags, each a line that [`split_words`] takes apart.
#[derive(Debug, Clone, Default)]
pub struct CommandLines {
    /// Speech to text.
    pub asr: String,
    /// Text to text.
    pub nmt: String,
    /// Text to speech.
    pub tts: String,
    /// Opus to WAV, if there is such a program.
    pub decode: Option<String>,
    /// Directions as `src:tgt`; the languages of the other two follow.
    pub pairs: Vec<String>,
}

/// The programs were not described well.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not of the right form.
    #[error("{}: {source}", path.display())]
    Syntax {
        /// Which file.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
    /// A flag is not a command line.
    #[error("{flag}: {source}")]
    Words {
        /// Which flag.
        flag: &'static str,
        /// Why.
        source: UnclosedQuote,
    },
    /// `asr`, `nmt`, `tts` or `decode` names no program.
    #[error("[{0}] names no program")]
    NoProgram(&'static str),
    /// Not `src:tgt`.
    #[error("{0:?} is not a pair of languages such as \"en:es\"")]
    BadPair(String),
    /// No direction has a program for each of its three steps.
    #[error("no pair of languages is heard by [asr], translated by [nmt] and spoken by [tts]")]
    NothingServed,
}

fn default_timeout_ms() -> u64 {
    TIMEOUT_MS
}

impl CommandConfig {
    /// Reads a TOML file.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        toml::from_str(&text)
            .map_err(|e| ConfigError::Syntax { path: path.to_owned(), source: Box::new(e) })
    }

    /// Reads flags.
    pub fn from_lines(lines: &CommandLines) -> Result<Self, ConfigError> {
        let words = |flag, line: &str| {
            split_words(line).map_err(|source| ConfigError::Words { flag, source })
        };
        let pairs =
            lines.pairs.iter().map(|p| parse_pair(p)).collect::<Result<BTreeSet<_>, _>>()?;
        let served = Languages { pairs };
        let owned = |list: Vec<&str>| list.into_iter().map(str::to_owned).collect();
        let spoken = |command, languages| SpokenProgram {
            command,
            languages: owned(languages),
            timeout_ms: TIMEOUT_MS,
        };
        let decode = |line: &String| -> Result<_, ConfigError> {
            Ok(DecodeProgram { command: words("--decode", line)?, timeout_ms: TIMEOUT_MS })
        };
        Ok(Self {
            asr: spoken(words("--asr", &lines.asr)?, served.sources()),
            nmt: TranslationPrograms {
                command: Some(words("--nmt", &lines.nmt)?),
                pairs: Pairs::Listed(lines.pairs.clone()),
                timeout_ms: TIMEOUT_MS,
            },
            tts: spoken(words("--tts", &lines.tts)?, served.targets()),
            decode: lines.decode.as_ref().map(decode).transpose()?,
        })
    }
}

fn parse_pair(text: &str) -> Result<(String, String), ConfigError> {
    let two = text.split_once(':').map(|(src, tgt)| (src.trim(), tgt.trim()));
    match two {
        Some((src, tgt)) if !src.is_empty() && !tgt.is_empty() && !tgt.contains(':') => {
            Ok((src.to_owned(), tgt.to_owned()))
        }
        _ => Err(ConfigError::BadPair(text.to_owned())),
    }
}

/// One configured program.
#[derive(Debug, Clone)]
struct Step {
    stage: &'static str,
    command: Vec<String>,
    limit: Duration,
}

impl Step {
    fn new(stage: &'static str, command: &[String], limit_ms: u64) -> Result<Self, ConfigError> {
        if command.first().is_none_or(String::is_empty) {
            return Err(ConfigError::NoProgram(stage));
        }
        Ok(Self { stage, command: command.to_vec(), limit: Duration::from_millis(limit_ms) })
    }

    fn service_id(&self) -> String {
        let program = Path::new(&self.command[0]).file_name().unwrap_or_default();
        format!("{}-{}", self.stage, program.to_string_lossy())
    }

    fn names_wav(&self) -> bool {
        self.command.iter().any(|argument| argument.contains("{wav}"))
    }

    async fn run(
        &self,
        blanks: Blanks<'_>,
        stdin: &[u8],
        stdout_bytes_max: usize,
    ) -> Result<Vec<u8>, EngineError> {
        let argv = blanks.fill(&self.command);
        let run = Run { argv: &argv, stdin, limit: self.limit, stdout_bytes_max };
        run.output().await.map_err(|e| match e.fault {
            Fault::NotFound => EngineError::NotAvailable {
                service_id: self.service_id(),
                service_version: SERVICE_VERSION.to_owned(),
                reason: "not_installed".to_owned(),
            },
            fault => EngineError::Program {
                stage: self.stage,
                program: self.command[0].clone(),
                what: fault.to_string(),
                stderr: e.stderr,
            },
        })
    }

    async fn text(&self, blanks: Blanks<'_>, stdin: &[u8]) -> Result<String, EngineError> {
        let bytes = self.run(blanks, stdin, TEXT_BYTES_MAX).await?;
        let text = String::from_utf8_lossy(&bytes);
        Ok(text.split_whitespace().collect::<Vec<_>>().join(" "))
    }

    /// Sound from `{wav}` if the program wrote that, else from its standard output; 16 kHz mono.
    async fn sound(
        &self,
        blanks: Blanks<'_>,
        stdin: &[u8],
        file: &Path,
    ) -> Result<Vec<i16>, EngineError> {
        let streamed = self.run(blanks, stdin, SOUND_BYTES_MAX).await?;
        let stage = self.stage;
        let fault = |source: WavError| EngineError::Audio { stage, source };
        let bytes = match tokio::fs::metadata(file).await {
            Ok(meta) if meta.len() > SOUND_BYTES_MAX as u64 => {
                return Err(EngineError::Program {
                    stage,
                    program: self.command[0].clone(),
                    what: Fault::TooMuch(SOUND_BYTES_MAX).to_string(),
                    stderr: String::new(),
                });
            }
            Ok(meta) if meta.len() > 0 => tokio::fs::read(file).await?,
            _ => streamed,
        };
        // Seconds of sound take milliseconds, but not on the thread that serves the socket.
        let decoded = tokio::task::spawn_blocking(move || wav::decode_wav(bytes)).await;
        decoded.map_err(std::io::Error::other)?.map_err(fault)
    }
}

/// Runs the three programs for each job.
#[derive(Debug)]
pub struct CommandEngine {
    asr: Step,
    /// Only directions whose other two steps are served too; never empty.
    nmt: BTreeMap<(String, String), Step>,
    tts: Step,
    decode: Option<Step>,
    /// Where jobs keep their files.
    scratch_root: PathBuf,
}

impl CommandEngine {
    /// Checks the description; whether the programs exist shows when they are run.
    pub fn new(config: CommandConfig) -> Result<Self, ConfigError> {
        let CommandConfig { asr, nmt, tts, decode } = config;
        let programs = match (nmt.pairs, nmt.command) {
            (Pairs::Programs(programs), _) => programs,
            (Pairs::Listed(pairs), Some(command)) => {
                pairs.into_iter().map(|pair| (pair, command.clone())).collect()
            }
            (Pairs::Listed(_), None) => return Err(ConfigError::NoProgram("nmt")),
        };
        let mut steps = BTreeMap::new();
        for (pair, command) in programs {
            let (src, tgt) = parse_pair(&pair)?;
            let step = Step::new("nmt", &command, nmt.timeout_ms)?;
            if asr.languages.contains(&src) && tts.languages.contains(&tgt) {
                steps.insert((src, tgt), step);
            }
        }
        if steps.is_empty() {
            return Err(ConfigError::NothingServed);
        }
        Ok(Self {
            asr: Step::new("asr", &asr.command, asr.timeout_ms)?,
            nmt: steps,
            tts: Step::new("tts", &tts.command, tts.timeout_ms)?,
            decode: decode.map(|d| Step::new("decode", &d.command, d.timeout_ms)).transpose()?,
            scratch_root: std::env::temp_dir(),
        })
    }

    /// Keeps the jobs' files under another directory than the system's temporary one.
    #[cfg(test)]
    fn with_scratch_root(mut self, directory: PathBuf) -> Self {
        self.scratch_root = directory;
        self
    }

    /// Directions for which all three steps have a program.
    pub fn languages(&self) -> Languages {
        Languages { pairs: self.nmt.keys().cloned().collect() }
    }

    /// One service for each program.
    pub fn services(&self) -> Vec<Service> {
        let mut services: Vec<Service> = Vec::new();
        for step in [&self.asr].into_iter().chain(self.nmt.values()).chain([&self.tts]) {
            let service_id = step.service_id();
            if services.iter().all(|known| known.service_id != service_id) {
                let version = SERVICE_VERSION.to_owned();
                services.push(Service { service_id, kind: step.stage, version });
            }
        }
        services
    }

    /// Does one job.
    pub async fn process(
        &self,
        job: &JobInput,
        progress: &Progress,
    ) -> Result<JobOutput, EngineError> {
        let ((src, tgt), translator) = self.direction(job)?;
        // Declared first, so dropped last: the programs are dead when their files go.
        let scratch = Scratch::new(&self.scratch_root)?;
        let blanks = Blanks { src, tgt, ..Blanks::default() };
        let mut out = JobOutput { tts_format: "pcm16".to_owned(), ..JobOutput::default() };

        let started = Instant::now();
        out.text_asr = self.recognise(job, blanks, &scratch).await?;
        out.asr_ms = elapsed_ms(started);
        if out.text_asr.is_empty() {
            return Ok(out);
        }
        progress.partial(&out.text_asr, true).await;
        if !job.use_nmt {
            return Ok(out);
        }

        let started = Instant::now();
        let said = Blanks { text: &out.text_asr, ..blanks };
        out.text_translated = translator.text(said, out.text_asr.as_bytes()).await?;
        out.nmt_ms = elapsed_ms(started);
        if !job.use_tts || out.text_translated.is_empty() {
            return Ok(out);
        }

        let started = Instant::now();
        let file = scratch.file("answer.wav");
        let wav = file.to_string_lossy();
        let blanks = Blanks { text: &out.text_translated, wav: &wav, ..blanks };
        let spoken = self.tts.sound(blanks, out.text_translated.as_bytes(), &file).await?;
        out.tts_audio = wav::pcm16_bytes(&spoken);
        out.tts_ms = elapsed_ms(started);
        Ok(out)
    }

    /// The direction and its translator. `auto` is a language only where no choice is left.
    fn direction(&self, job: &JobInput) -> Result<((&str, &str), &Step), EngineError> {
        let possible = |src: &str| {
            if job.src_lang != "auto" {
                return src == job.src_lang;
            }
            job.candidates.is_empty() || job.candidates.iter().any(|c| c == src)
        };
        let mut fits =
            self.nmt.iter().filter(|((src, tgt), _)| *tgt == job.tgt_lang && possible(src));
        match (fits.next(), fits.next()) {
            (Some(((src, tgt), step)), None) => Ok(((src, tgt), step)),
            (None, _) => {
                let asked = format!("{} to {}", job.src_lang, job.tgt_lang);
                Err(EngineError::Unsupported(format!("no program for {asked}")))
            }
            (Some(_), Some(_)) => Err(EngineError::Unsupported(
                "the command engine cannot find out which language is spoken".to_owned(),
            )),
        }
    }

    async fn recognise(
        &self,
        job: &JobInput,
        blanks: Blanks<'_>,
        scratch: &Scratch,
    ) -> Result<String, EngineError> {
        let speech = self.speech(job, blanks, scratch).await?;
        let fault = |source| EngineError::Audio { stage: "asr", source };
        let file = scratch.file("speech.wav");
        let bytes = wav::encode_wav(&speech).map_err(fault)?;
        let stdin = if self.asr.names_wav() {
            tokio::fs::write(&file, &bytes).await?;
            Vec::new()
        } else {
            bytes
        };
        self.asr.text(Blanks { wav: &file.to_string_lossy(), ..blanks }, &stdin).await
    }

    /// The job's audio as 16 kHz mono samples.
    async fn speech(
        &self,
        job: &JobInput,
        blanks: Blanks<'_>,
        scratch: &Scratch,
    ) -> Result<Vec<i16>, EngineError> {
        let fault = |source| EngineError::Audio { stage: "asr", source };
        match (job.audio_format.as_str(), &self.decode) {
            ("pcm16", _) => {
                let samples = wav::pcm16_samples(&job.audio);
                wav::pcm16_at_16k(samples, job.sample_rate).map_err(fault)
            }
            ("opus", Some(decode)) => {
                let file = scratch.file("decoded.wav");
                let wav = file.to_string_lossy();
                decode.sound(Blanks { wav: &wav, ..blanks }, &job.audio, &file).await
            }
            (other, _) => Err(EngineError::Unsupported(format!(
                "the command engine takes pcm16, not {other}"
            ))),
        }
    }
}

fn elapsed_ms(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::voice;
    use super::*;

    fn sh(script: &str) -> Vec<String> {
        ["sh", "-c", script].map(str::to_owned).into()
    }

    fn spoken(script: &str, language: &str) -> SpokenProgram {
        let languages = vec![language.to_owned()];
        SpokenProgram { command: sh(script), languages, timeout_ms: 5_000 }
    }

    /// English to Spanish by three scripts.
    fn config(asr: &str, nmt: &str, tts: &str) -> CommandConfig {
        let programs = [("en:es".to_owned(), sh(nmt))].into();
        CommandConfig {
            asr: spoken(asr, "en"),
            nmt: TranslationPrograms {
                command: None,
                pairs: Pairs::Programs(programs),
                timeout_ms: 5_000,
            },
            tts: spoken(tts, "es"),
            decode: None,
        }
    }

    /// An engine with a directory of its own, so that what stays behind shows.
    fn engine(config: CommandConfig) -> (CommandEngine, tempfile::TempDir) {
        let root = tempfile::tempdir().unwrap();
        let scratch = root.path().join("scratch");
        std::fs::create_dir(&scratch).unwrap();
        (CommandEngine::new(config).unwrap().with_scratch_root(scratch), root)
    }

    fn left_behind(root: &tempfile::TempDir) -> usize {
        std::fs::read_dir(root.path().join("scratch")).unwrap().count()
    }

    fn job() -> JobInput {
        JobInput {
            audio: wav::pcm16_bytes(&voice::sine_speech(0.5)),
            audio_format: "pcm16".to_owned(),
            sample_rate: 16_000,
            src_lang: "en".to_owned(),
            tgt_lang: "es".to_owned(),
            use_nmt: true,
            use_tts: true,
            ..JobInput::default()
        }
    }

    async fn process(engine: &CommandEngine, job: &JobInput) -> Result<JobOutput, EngineError> {
        engine.process(job, &Progress::silent()).await
    }

    async fn until(what: &str, mut condition: impl FnMut() -> bool) {
        for _ in 0..500 {
            if condition() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("never: {what}");
    }

    /// A process that was killed may wait, as a zombie, for whoever adopted it.
    fn is_dead(pid: &str) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.trim()));
        stat.map_or(true, |stat| stat.rsplit(')').next().unwrap_or("").trim().starts_with('Z'))
    }

    #[tokio::test]
    async fn each_program_gets_the_answer_of_the_one_before() {
        let answer = tempfile::tempdir().unwrap();
        let path = answer.path().join("a.wav");
        wav::write_wav(&path, &voice::sine_speech(0.25)).unwrap();
        let asr = "echo \"  {src}: $(wc -c < {wav}) \"; echo bytes";
        let nmt = "tr a-z A-Z; echo '{text}' | tr -d '[:space:]'";
        let tts =
            format!("read line; test \"$line\" = '{{text}}' && cp {} {{wav}}", path.display());
        let (engine, root) = engine(config(asr, nmt, &tts));
        let out = process(&engine, &job()).await.unwrap();
        assert_eq!(out.text_asr, "en: 16044 bytes");
        assert_eq!(out.text_translated, "EN: 16044 BYTESen:16044bytes");
        assert_eq!(wav::pcm16_samples(&out.tts_audio), voice::sine_speech(0.25));
        assert_eq!(out.tts_format, "pcm16");
        assert_eq!(left_behind(&root), 0);
    }

    #[tokio::test]
    async fn sound_may_come_and_go_through_the_pipes_and_at_another_rate() {
        let answer = tempfile::tempdir().unwrap();
        let path = answer.path().join("a.wav");
        wav::write_wav(&path, &voice::sine_speech(0.25)).unwrap();
        let tts = format!("cat {}", path.display());
        let (engine, _root) = engine(config("wc -c", "cat", &tts));
        let half_rate = JobInput { sample_rate: 8_000, ..job() };
        let out = process(&engine, &half_rate).await.unwrap();
        assert_eq!(out.text_asr, "32044");
        assert_eq!(out.tts_audio.len(), 8_000);
    }

    #[tokio::test]
    async fn what_the_pipeline_leaves_out_is_not_run_and_silence_ends_early() {
        let (heard, _a) = engine(config("echo hi", "echo ho", "echo broken >&2; exit 1"));
        let text_only = JobInput { use_tts: false, ..job() };
        let out = process(&heard, &text_only).await.unwrap();
        assert_eq!((out.text_asr.as_str(), out.text_translated.as_str()), ("hi", "ho"));
        assert!(out.tts_audio.is_empty());
        let (silence, _b) = engine(config("echo '  '", "exit 1", "exit 1"));
        let out = process(&silence, &job()).await.unwrap();
        assert_eq!((out.text_asr.as_str(), out.tts_audio.len()), ("", 0));
    }

    #[tokio::test]
    async fn a_failing_program_is_named_with_its_last_words() {
        let noisy = "seq 1 100000 >&2; echo 'no such model: ñandú' >&2; exit 3";
        let (engine, root) = engine(config("echo hi", noisy, "true"));
        let error = process(&engine, &job()).await.unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("nmt: sh: exit status: 3"), "{text}");
        assert!(text.ends_with("no such model: ñandú"), "{text}");
        assert!(text.len() < 3_000, "{}", text.len());
        assert_eq!(left_behind(&root), 0);
    }

    #[tokio::test]
    async fn a_program_that_never_ends_is_killed_with_all_it_started() {
        let pids = tempfile::tempdir().unwrap();
        let file = pids.path().join("pids");
        let asr = format!("sleep 60 & echo $! $$ > {0}.new; mv {0}.new {0}; wait", file.display());
        let mut slow = config(&asr, "cat", "cat");
        slow.asr.timeout_ms = 150;
        let (engine, root) = engine(slow);
        let error = process(&engine, &job()).await.unwrap_err();
        assert!(error.to_string().contains("no answer within 150 ms"), "{error}");
        let pids = std::fs::read_to_string(&file).unwrap();
        assert_eq!(pids.split_whitespace().count(), 2);
        until("both are dead", || pids.split_whitespace().all(is_dead)).await;
        assert_eq!(left_behind(&root), 0);
    }

    #[tokio::test]
    async fn a_cancelled_job_leaves_neither_processes_nor_files() {
        let pids = tempfile::tempdir().unwrap();
        let file = pids.path().join("pids");
        let asr = format!(
            "test -s {{wav}} || exit 1; sleep 60 & echo $! $$ > {0}.new; mv {0}.new {0}; wait",
            file.display()
        );
        let (engine, root) = engine(config(&asr, "cat", "cat"));
        let task = tokio::spawn(async move { process(&engine, &job()).await });
        until("it runs", || file.exists()).await;
        assert_eq!(left_behind(&root), 1);
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
        let pids = std::fs::read_to_string(&file).unwrap();
        until("both are dead", || pids.split_whitespace().all(is_dead)).await;
        assert_eq!(left_behind(&root), 0);
    }

    #[tokio::test]
    async fn endless_output_is_stopped_at_the_bound() {
        let (engine, root) = engine(config("yes", "cat", "cat"));
        let error = process(&engine, &job()).await.unwrap_err();
        assert!(error.to_string().contains("more than 1048576 bytes"), "{error}");
        assert_eq!(left_behind(&root), 0);
    }

    #[tokio::test]
    async fn a_missing_program_is_a_missing_model() {
        let mut absent = config("true", "cat", "cat");
        absent.asr.command = vec!["/nowhere/recognise-it".to_owned()];
        let (engine, _root) = engine(absent);
        let error = process(&engine, &job()).await.unwrap_err();
        let EngineError::NotAvailable { service_id, reason, .. } = error else {
            panic!("{error:?}");
        };
        assert_eq!((service_id.as_str(), reason.as_str()), ("asr-recognise-it", "not_installed"));
        assert!(engine.services().iter().any(|s| s.service_id == service_id));
    }

    #[tokio::test]
    async fn opus_is_refused_unless_a_program_decodes_it() {
        let answer = tempfile::tempdir().unwrap();
        let path = answer.path().join("a.wav");
        wav::write_wav(&path, &voice::sine_speech(1.0)).unwrap();
        let opus = JobInput { audio: b"opus!".to_vec(), audio_format: "opus".to_owned(), ..job() };
        let mut scripts = config("wc -c < {wav}", "cat", "cat");
        let (without, _a) = engine(scripts.clone());
        let error = process(&without, &opus).await.unwrap_err();
        assert!(error.to_string().contains("the command engine takes pcm16"), "{error}");
        let decode = format!("test \"$(cat)\" = 'opus!' && cat {}", path.display());
        scripts.decode = Some(DecodeProgram { command: sh(&decode), timeout_ms: 5_000 });
        let (with, _b) = engine(scripts);
        let text_only = JobInput { use_tts: false, ..opus };
        assert_eq!(process(&with, &text_only).await.unwrap().text_asr, "32044");
    }

    #[tokio::test]
    async fn auto_is_served_only_where_one_language_is_left() {
        let mut two = config("echo {src}", "cat", "cat");
        two.asr.languages = vec!["en".to_owned(), "fr".to_owned()];
        let programs = ["en:es", "fr:es"].map(|pair| (pair.to_owned(), sh("cat")));
        two.nmt.pairs = Pairs::Programs(programs.into());
        let (engine, _root) = engine(two);
        let auto = JobInput { src_lang: "auto".to_owned(), use_nmt: false, ..job() };
        let error = process(&engine, &auto).await.unwrap_err();
        assert!(error.to_string().contains("cannot find out"), "{error}");
        let candidates = vec!["fr".to_owned(), "es".to_owned()];
        let out = process(&engine, &JobInput { candidates, ..auto }).await.unwrap();
        assert_eq!(out.text_asr, "fr");
        let foreign = JobInput { tgt_lang: "ja".to_owned(), ..job() };
        let error = process(&engine, &foreign).await.unwrap_err();
        assert_eq!(error.to_string(), "no program for en to ja");
    }

    const TOML: &str = r#"
        [asr]
        command = ["pocketsphinx_continuous", "-infile", "{wav}", "-logfn", "/dev/null"]
        languages = ["en"]
        [nmt]
        pairs = { "en:es" = ["apertium", "-u", "eng-spa"], "es:en" = ["apertium", "spa-eng"] }
        timeout_ms = 5000
        [tts]
        command = ["espeak-ng", "-v", "{tgt}", "-w", "{wav}", "--stdin"]
        languages = ["es", "en"]
    "#;

    #[test]
    fn a_file_gives_only_the_pairs_that_all_three_programs_serve() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("engine.toml");
        std::fs::write(&path, TOML).unwrap();
        let config = CommandConfig::load(&path).unwrap();
        assert_eq!((config.asr.timeout_ms, config.nmt.timeout_ms), (TIMEOUT_MS, 5_000));
        let engine = CommandEngine::new(config.clone()).unwrap();
        let pairs: Vec<_> = engine.languages().pairs.into_iter().collect();
        assert_eq!(pairs, [("en".to_owned(), "es".to_owned())]);
        let names: Vec<_> = engine.services().into_iter().map(|s| s.service_id).collect();
        assert_eq!(names, ["asr-pocketsphinx_continuous", "nmt-apertium", "tts-espeak-ng"]);

        let mut nothing = config.clone();
        nothing.tts.languages.clear();
        assert!(matches!(CommandEngine::new(nothing), Err(ConfigError::NothingServed)));
        let mut nameless = config;
        nameless.tts.command.clear();
        assert!(matches!(CommandEngine::new(nameless), Err(ConfigError::NoProgram("tts"))));
        std::fs::write(&path, TOML.replace("timeout_ms", "time_out")).unwrap();
        let error = CommandConfig::load(&path).unwrap_err();
        assert!(matches!(error, ConfigError::Syntax { .. }), "{error}");
    }

    #[test]
    fn flags_say_the_same_as_a_file() {
        let lines = CommandLines {
            asr: "hear --lang {src} {wav}".to_owned(),
            nmt: "turn '{src} to {tgt}'".to_owned(),
            tts: "say".to_owned(),
            decode: None,
            pairs: vec!["en:es".to_owned(), "en:fr".to_owned()],
        };
        let config = CommandConfig::from_lines(&lines).unwrap();
        assert_eq!(config.asr.command, ["hear", "--lang", "{src}", "{wav}"]);
        assert_eq!(config.asr.languages, ["en"]);
        assert_eq!(
            config.nmt.command.as_deref(),
            Some(&["turn", "{src} to {tgt}"].map(str::to_owned)[..])
        );
        assert_eq!(config.tts.languages, ["es", "fr"]);
        assert_eq!(CommandEngine::new(config).unwrap().languages().pairs.len(), 2);
        for bad in ["enes", "en:", ":es", "en:es:fr"] {
            let lines = CommandLines { pairs: vec![bad.to_owned()], ..lines.clone() };
            let error = CommandConfig::from_lines(&lines).unwrap_err();
            assert!(matches!(error, ConfigError::BadPair(_)), "{bad}: {error}");
        }
        let open = CommandLines { tts: "say 'it".to_owned(), ..lines };
        let error = CommandConfig::from_lines(&open).unwrap_err();
        assert!(matches!(error, ConfigError::Words { flag: "--tts", .. }), "{error}");
    }
}
