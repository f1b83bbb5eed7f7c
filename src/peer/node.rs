//! The node agent: registers an engine with a scheduler, does the jobs it is given, and comes back
//! whenever the connection is lost, for ever.
//!
//! Decides which job runs when and turns an engine's answer or failure into the wire's words; knows
//! nothing of speech. Lost connection: with a scheduler that acknowledges results it goes on
//! working and says what it has when it is back. With another, what runs is stopped, for that
//! gives the work of a vanished node to another and nobody would wait for the answer.

use std::collections::{HashMap, VecDeque};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, Id, JoinError, JoinSet};
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{self, Message, Utf8Bytes};

use super::answer::{Failure, job_result};
use super::dial::Trust;
use super::engine::{Engine, EngineError, JobInput, JobOutput, Partial, Progress};
use super::machine::Machine;
use super::unacked::Unacked;
use super::wire::{self, Action, Assign, Attempt, Dial, Ident, Instruction, Socket, ToNode, merge};

/// Jobs that may wait for each one that runs.
const WAITING_PER_RUNNING: usize = 4;
/// Partial texts on their way from the engine to the socket.
const PARTIALS_MAX: usize = 64;
/// The extension by which results are acknowledged and a node says what it has.
const RESULT_ACK: &str = "result_ack";
/// Attempts a scheduler reads from each list of what a node has.
const LISTED_MAX: usize = 1_024;
/// Heartbeats after which a result that was not acknowledged is sent again.
const RESEND_BEATS: u32 = 2;
/// Time for a connection to be made, and for a polite goodbye.
const CONNECT_TIME: Duration = Duration::from_secs(10);
const GOODBYE_TIME: Duration = Duration::from_secs(1);
/// How to run a node.
#[derive(Debug, Clone)]
pub struct NodeOptions {
    /// Where the scheduler listens: `ws://127.0.0.1:5010/ws/node`.
    pub url: String,
    /// Shown to the scheduler, if it asks for one.
    pub key: Option<String>,
    /// Certificates, for a `wss://` address.
    pub trust: Trust,
    /// Name to ask for; without one the scheduler chooses, and its choice is kept until the process
    /// ends.
    pub node_id: Option<String>,
    /// Jobs done at the same time; at least 1.
    pub capacity: u32,
    /// Does the work.
    pub engine: Arc<Engine>,
    /// Time between two heartbeats.
    pub heartbeat: Duration,
    /// A scheduler not heard for this long, though each heartbeat asks for a sign, is gone; several
    /// heartbeats.
    pub silence: Duration,
    /// Wait before the first attempt to come back; each failure doubles it.
    pub reconnect_min: Duration,
    /// Longest wait.
    pub reconnect_max: Duration,
}

impl NodeOptions {
    /// One job at a time, a heartbeat every 15 s, gone after a minute's silence, back after 0.2 s
    /// to 10 s.
    pub fn new(url: impl Into<String>, engine: Engine) -> Self {
        Self {
            url: url.into(),
            key: None,
            trust: Trust::default(),
            node_id: None,
            capacity: 1,
            engine: Arc::new(engine),
            heartbeat: Duration::from_secs(15),
            silence: Duration::from_secs(60),
            reconnect_min: Duration::from_millis(200),
            reconnect_max: Duration::from_secs(10),
        }
    }
}

/// What a node tells whoever watches it. Events are dropped while the watcher is behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeEvent {
    /// The scheduler took the registration.
    Registered {
        /// Name from now on.
        node_id: String,
    },
    /// The scheduler has something against this node.
    Refused {
        /// Its words.
        message: String,
    },
    /// A job came.
    Assigned {
        /// Which.
        job_id: String,
        /// `src:tgt`.
        pair: String,
    },
    /// A job was answered.
    Finished {
        /// Which.
        job_id: String,
        /// `None` when it succeeded.
        failure: Option<String>,
        /// Time it ran.
        took: Duration,
    },
    /// The scheduler no longer wants a job.
    Cancelled {
        /// Which.
        job_id: String,
    },
    /// The connection is lost or could not be made.
    Disconnected {
        /// Why.
        reason: String,
        /// Wait before the next attempt.
        retry_in: Duration,
    },
}

/// A node that cannot work, however often it tries.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The address cannot be dialled.
    #[error("{url}: {source}")]
    Address {
        /// The address.
        url: String,
        /// Why.
        source: Box<tungstenite::Error>,
    },
    /// Nothing could ever run.
    #[error("a node needs a capacity of at least 1")]
    NoCapacity,
}

/// Serves until `shutdown` completes.
pub async fn run(
    options: NodeOptions,
    shutdown: impl Future,
    events: Option<mpsc::Sender<NodeEvent>>,
) -> Result<(), NodeError> {
    if options.capacity == 0 {
        return Err(NodeError::NoCapacity);
    }
    let dial = Dial::to(&options.url, &options.trust, options.key.as_deref())
        .map_err(|e| NodeError::Address { url: options.url.clone(), source: Box::new(e) })?;
    let mut agent = Agent::new(options, events);
    {
        let mut shutdown = pin!(shutdown);
        let mut life = Box::pin(agent.live(dial));
        tokio::select! {
            never = &mut life => match never {},
            _ = &mut shutdown => {}
        }
    }
    agent.leave().await;
    Ok(())
}

/// Nothing is of this type.
enum Never {}

/// Why a connection ended.
type Ended = String;

struct Agent {
    options: NodeOptions,
    events: Option<mpsc::Sender<NodeEvent>>,
    /// Last name acknowledged, or the one to ask for.
    node_id: Option<String>,
    /// The name is acknowledged on the present connection.
    registered: bool,
    machine: Machine,
    /// Names this run of the program.
    boot_id: String,
    /// The scheduler last spoken to acknowledges results.
    is_acked: bool,
    jobs: Jobs,
    unacked: Unacked,
    socket: Option<Socket>,
}

/// Jobs given to this node.
struct Jobs {
    /// At most `capacity`, by job id.
    running: HashMap<String, Running>,
    /// At most `WAITING_PER_RUNNING` times as many, oldest first.
    waiting: VecDeque<Assign>,
    tasks: JoinSet<Result<JobOutput, EngineError>>,
    partials_in: mpsc::Sender<Partial>,
    partials: mpsc::Receiver<Partial>,
}

struct Running {
    ident: Ident,
    task: AbortHandle,
    since: Instant,
}

/// One thing that happened on a connection.
enum Step {
    Heard(Option<Result<Message, tungstenite::Error>>),
    Partial(Partial),
    Done(Done),
    Beat,
}

/// A task that has ended, and how; or one that was stopped or broke.
type Done = Result<(Id, Result<JobOutput, EngineError>), JoinError>;

impl Agent {
    fn new(options: NodeOptions, events: Option<mpsc::Sender<NodeEvent>>) -> Self {
        let (partials_in, partials) = mpsc::channel(PARTIALS_MAX);
        Self {
            node_id: options.node_id.clone(),
            options,
            events,
            registered: false,
            machine: Machine::new(),
            boot_id: format!("{:032x}", fastrand::u128(..)),
            is_acked: false,
            unacked: Unacked::default(),
            jobs: Jobs {
                running: HashMap::new(),
                waiting: VecDeque::new(),
                tasks: JoinSet::new(),
                partials_in,
                partials,
            },
            socket: None,
        }
    }

    fn tell(&self, event: NodeEvent) {
        tracing::debug!(?event, "node");
        if let Some(events) = &self.events
            && let Err(e) = events.try_send(event)
        {
            tracing::trace!(error = %e, "an event nobody took");
        }
    }

    async fn live(&mut self, dial: Dial) -> Never {
        let mut failures = 0;
        loop {
            self.registered = false;
            let reason = match self.meanwhile(open(&dial)).await {
                Ok(socket) => {
                    self.socket = Some(socket);
                    self.serve().await
                }
                Err(reason) => reason,
            };
            self.socket = None;
            failures = if self.registered { 0 } else { failures + 1 };
            self.registered = false;
            if !self.is_acked {
                self.jobs.stop_all();
            }
            let retry_in = self.wait_after(failures);
            self.tell(NodeEvent::Disconnected { reason, retry_in });
            self.meanwhile(tokio::time::sleep(retry_in)).await;
        }
    }

    /// Goes on with the work for as long as `what` takes. There is nobody to tell about it.
    async fn meanwhile<T>(&mut self, what: impl Future<Output = T>) -> T {
        let mut what = pin!(what);
        loop {
            let done = tokio::select! {
                result = &mut what => return result,
                Some(_) = self.jobs.partials.recv() => continue,
                Some(done) = self.jobs.tasks.join_next_with_id() => done,
            };
            if let Err(reason) = self.finish(done).await {
                tracing::debug!(reason, "said to nobody");
            }
        }
    }

    /// Doubles with each failure; the upper half of it is drawn, so that many nodes do not return
    /// as one.
    fn wait_after(&self, failures: u32) -> Duration {
        let doubled = self.options.reconnect_min.saturating_mul(1 << failures.min(20));
        doubled.min(self.options.reconnect_max).mul_f64(0.5 + 0.5 * fastrand::f64())
    }

    /// One connection, from the registration to its end.
    async fn serve(&mut self) -> Ended {
        let mut beat = tokio::time::interval(self.options.heartbeat);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        beat.reset();
        let mut heard = Instant::now();
        if let Err(reason) = self.send(&self.registration()).await {
            return reason;
        }
        loop {
            let step = self.next_step(&mut beat).await;
            if matches!(step, Step::Heard(_)) {
                heard = Instant::now();
            } else if heard.elapsed() > self.options.silence {
                return "the scheduler is silent".to_owned();
            }
            if let Err(reason) = self.take(step, &mut beat).await {
                return reason;
            }
        }
    }

    async fn next_step(&mut self, beat: &mut Interval) -> Step {
        let Some(socket) = &mut self.socket else { return Step::Heard(None) };
        tokio::select! {
            message = socket.next() => Step::Heard(message),
            Some(partial) = self.jobs.partials.recv() => Step::Partial(partial),
            Some(done) = self.jobs.tasks.join_next_with_id() => Step::Done(done),
            _ = beat.tick() => Step::Beat,
        }
    }

    async fn take(&mut self, step: Step, beat: &mut Interval) -> Result<(), Ended> {
        match step {
            Step::Heard(None) => Err("the scheduler closed the connection".to_owned()),
            Step::Heard(Some(Err(e))) => Err(e.to_string()),
            Step::Heard(Some(Ok(Message::Close(_)))) => {
                Err("the scheduler said goodbye".to_owned())
            }
            Step::Heard(Some(Ok(message))) => match wire::text_of(&message) {
                Some(text) => self.hear(text, beat).await,
                None => Ok(()),
            },
            Step::Partial(partial) => self.send_partial(&partial).await,
            Step::Done(done) => self.finish(done).await,
            Step::Beat => self.heartbeat().await,
        }
    }

    async fn hear(&mut self, text: &str, beat: &mut Interval) -> Result<(), Ended> {
        match serde_json::from_str(text) {
            Ok(ToNode::NodeRegisterAck { node_id, extensions, jobs }) => {
                self.node_id = Some(node_id.clone());
                self.registered = true;
                self.tell(NodeEvent::Registered { node_id });
                beat.reset();
                self.heartbeat().await?;
                self.welcomed(extensions.iter().any(|e| e == RESULT_ACK), jobs).await
            }
            Ok(ToNode::ResultAck(attempt)) => {
                self.unacked.forget(&attempt);
                Ok(())
            }
            Ok(ToNode::JobAssign(job)) => self.accept(*job).await,
            Ok(ToNode::JobCancel { job_id }) => {
                if self.jobs.cancel(&job_id) {
                    self.tell(NodeEvent::Cancelled { job_id });
                }
                self.start_waiting().await
            }
            Ok(ToNode::Error { code, message }) => {
                self.tell(NodeEvent::Refused { message: format!("{code}: {message}") });
                Ok(())
            }
            Ok(ToNode::Unknown) => Ok(()),
            Err(e) => {
                tracing::warn!(error = %e, "a message that cannot be read");
                Ok(())
            }
        }
    }

    /// The scheduler says what it wants of what this node has; or it does not know of such things.
    async fn welcomed(&mut self, is_acked: bool, jobs: Vec<Instruction>) -> Result<(), Ended> {
        self.is_acked = is_acked;
        if !is_acked {
            self.jobs.stop_all();
            self.unacked.clear();
            return Ok(());
        }
        for Instruction { attempt, action } in jobs {
            match action {
                // It may have been done since the scheduler was told that it is being worked on.
                Action::Keep if self.unacked.is_unsent(&attempt) => self.deliver(&attempt).await?,
                Action::Keep | Action::Unknown => {}
                Action::Send => self.deliver(&attempt).await?,
                Action::Cancel => {
                    self.unacked.forget(&attempt);
                    if self.jobs.cancel_attempt(&attempt) {
                        self.tell(NodeEvent::Cancelled { job_id: attempt.job_id });
                    }
                }
            }
        }
        self.start_waiting().await
    }

    /// Sends a result that is kept, if the scheduler can be reached and is ready to hear of it.
    async fn deliver(&mut self, attempt: &Attempt) -> Result<(), Ended> {
        if !self.registered {
            return Ok(());
        }
        match self.unacked.take_turn(attempt) {
            Some(message) => self.write(Message::Text(message)).await,
            None => Ok(()),
        }
    }

    async fn accept(&mut self, job: Assign) -> Result<(), Ended> {
        if !self.registered {
            tracing::warn!(job_id = job.ident.job_id, "a job before the registration");
            return Ok(());
        }
        let pair = format!("{}:{}", job.src_lang, job.tgt_lang);
        self.tell(NodeEvent::Assigned { job_id: job.ident.job_id.clone(), pair });
        let attempt = job.ident.attempt();
        if self.jobs.holds(&attempt) || self.unacked.holds(&attempt) {
            return Ok(()); // The same attempt told twice is one attempt.
        }
        // A new attempt takes the place of an older one of the same job.
        self.jobs.cancel(&job.ident.job_id);
        self.send(&wire::job_step("job_ack", self.name(), &job.ident)).await?;
        let ident = job.ident.clone();
        if self.unacked.is_full() {
            let full = Failure::overloaded("too many results were not acknowledged".to_owned());
            return self.refuse(&ident, full).await;
        }
        if self.jobs.waiting.len() >= self.options.capacity as usize * WAITING_PER_RUNNING {
            let full = Failure::processing("too many jobs wait at this node".to_owned());
            return self.refuse(&ident, full).await;
        }
        self.jobs.waiting.push_back(job);
        self.start_waiting().await
    }

    async fn start_waiting(&mut self) -> Result<(), Ended> {
        while self.jobs.running.len() < self.options.capacity as usize {
            let Some(job) = self.jobs.waiting.pop_front() else { break };
            if self.registered {
                self.send(&wire::job_step("job_started", self.name(), &job.ident)).await?;
            }
            self.jobs.start(job, Arc::clone(&self.options.engine));
        }
        Ok(())
    }

    async fn finish(&mut self, done: Done) -> Result<(), Ended> {
        let (id, outcome) = match done {
            Ok((id, outcome)) => (id, outcome.map_err(|e| Failure::from(&e))),
            Err(e) => (e.id(), Err(Failure::processing(format!("the engine broke: {e}")))),
        };
        // What a job said while it ran goes out before its answer.
        let mut said = Ok(());
        while let Ok(partial) = self.jobs.partials.try_recv() {
            if said.is_ok() {
                said = self.send_partial(&partial).await;
            }
        }
        let Some(done) = self.jobs.take(id) else { return said }; // Cancelled: nobody waits.
        let took = done.since.elapsed();
        let failure = outcome.as_ref().err().map(|f| f.message.clone());
        let message = job_result(self.name(), &done.ident, outcome, took).to_string();
        let attempt = done.ident.attempt();
        self.unacked.keep(attempt.clone(), Utf8Bytes::from(message));
        if said.is_ok() {
            said = self.deliver(&attempt).await;
        }
        if !self.is_acked {
            self.unacked.forget(&attempt);
        }
        self.tell(NodeEvent::Finished { job_id: done.ident.job_id, failure, took });
        said?;
        self.start_waiting().await
    }

    /// Says at once that this node will not do a job. That is not kept: a refusal that is lost is
    /// as good as a job that is.
    async fn refuse(&mut self, ident: &Ident, why: Failure) -> Result<(), Ended> {
        let (failure, took) = (Some(why.message.clone()), Duration::ZERO);
        self.send(&job_result(self.name(), ident, Err(why), took)).await?;
        self.tell(NodeEvent::Finished { job_id: ident.job_id.clone(), failure, took });
        Ok(())
    }

    async fn send_partial(&mut self, partial: &Partial) -> Result<(), Ended> {
        let Some(job) = self.jobs.running.get(&partial.job_id) else { return Ok(()) };
        if !self.registered {
            return Ok(());
        }
        let message = json!({
            "type": "asr_partial",
            "node_id": self.name(),
            "session_id": job.ident.session_id,
            "utterance_index": job.ident.utterance_index,
            "job_id": partial.job_id,
            "text": partial.text,
            "is_final": partial.is_final,
            "trace_id": job.ident.trace_id,
        });
        self.send(&message).await
    }

    /// A heartbeat, and a ping because a heartbeat is never answered.
    async fn heartbeat(&mut self) -> Result<(), Ended> {
        if self.registered {
            let load = self.machine.load();
            let mut message = json!({
                "type": "node_heartbeat",
                "node_id": self.name(),
                "timestamp": wire::now_ms(),
                "resource_usage": {
                    "cpu_percent": load.cpu_percent,
                    "gpu_percent": 0.0,
                    "mem_percent": load.mem_percent,
                    "running_jobs": self.jobs.running.len(),
                },
            });
            merge(&mut message, offer(&self.options.engine));
            self.send(&message).await?;
            self.send_overdue().await?;
        }
        self.write(Message::Ping(Vec::new().into())).await
    }

    /// An acknowledgement may be lost where the result was not: asks again, about one at a time.
    async fn send_overdue(&mut self) -> Result<(), Ended> {
        let since = Instant::now().checked_sub(self.options.heartbeat * RESEND_BEATS);
        match since.and_then(|since| self.unacked.overdue(since)) {
            Some(attempt) => self.deliver(&attempt).await,
            None => Ok(()),
        }
    }

    fn registration(&self) -> Value {
        let inflight: Vec<_> = self.jobs.idents().map(Ident::attempt).take(LISTED_MAX).collect();
        let unacked: Vec<_> = self.unacked.attempts().take(LISTED_MAX).collect();
        let mut message = json!({
            "type": "node_register",
            "node_id": self.node_id,
            "version": env!("CARGO_PKG_VERSION"),
            "capability_schema_version": "2.0",
            "platform": std::env::consts::OS,
            "hardware": {
                "cpu_cores": self.machine.cpu_cores(),
                "memory_gb": self.machine.memory_gb(),
            },
            "installed_models": [],
            "features_supported": {},
            "accept_public_jobs": true,
            "max_concurrent_jobs": self.options.capacity,
            "extensions": [RESULT_ACK],
            "boot_id": self.boot_id,
            "inflight": inflight,
            "unacked": unacked,
        });
        merge(&mut message, offer(&self.options.engine));
        message
    }

    fn name(&self) -> &str {
        self.node_id.as_deref().unwrap_or_default()
    }

    async fn send(&mut self, message: &Value) -> Result<(), Ended> {
        self.write(Message::text(message.to_string())).await
    }

    async fn write(&mut self, message: Message) -> Result<(), Ended> {
        match &mut self.socket {
            Some(socket) => socket.send(message).await.map_err(|e| e.to_string()),
            None => Err("no connection".to_owned()),
        }
    }

    /// Stops what runs and says goodbye.
    async fn leave(mut self) {
        self.jobs.stop_all();
        if let Some(mut socket) = self.socket.take() {
            let goodbye = tokio::time::timeout(GOODBYE_TIME, socket.close(None)).await;
            if !matches!(goodbye, Ok(Ok(()))) {
                tracing::debug!("the scheduler did not hear the goodbye");
            }
        }
        // Tasks just told to stop get to drop what they hold: their programs and files.
        let ends = async { while self.jobs.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(GOODBYE_TIME, ends).await.is_err() {
            tracing::warn!("some jobs did not stop in time");
        }
    }
}

async fn open(dial: &Dial) -> Result<Socket, Ended> {
    let opening = dial.open(WebSocketConfig::default());
    let socket = tokio::time::timeout(CONNECT_TIME, opening).await;
    let socket = socket.map_err(|_| "no connection in time".to_owned())?;
    socket.map_err(|e| e.to_string())
}

impl Jobs {
    fn start(&mut self, job: Assign, engine: Arc<Engine>) {
        let ident = job.ident.clone();
        let progress = match job.enable_streaming_asr {
            Some(true) => Progress::new(self.partials_in.clone(), ident.job_id.clone()),
            _ => Progress::silent(),
        };
        let task = self.tasks.spawn(async move { work(job, &engine, &progress).await });
        let job_id = ident.job_id.clone();
        self.running.insert(job_id, Running { ident, task, since: Instant::now() });
    }

    /// Everything that runs, then everything that waits.
    fn idents(&self) -> impl Iterator<Item = &Ident> {
        self.running.values().map(|r| &r.ident).chain(self.waiting.iter().map(|w| &w.ident))
    }

    fn holds(&self, attempt: &Attempt) -> bool {
        self.idents().any(|ident| ident.attempt() == *attempt)
    }

    /// Whether there was such an attempt.
    fn cancel_attempt(&mut self, attempt: &Attempt) -> bool {
        self.holds(attempt) && self.cancel(&attempt.job_id)
    }

    fn take(&mut self, id: Id) -> Option<Running> {
        let job_id = self.running.iter().find(|(_, r)| r.task.id() == id)?.0.clone();
        self.running.remove(&job_id)
    }

    /// Whether there was such a job.
    fn cancel(&mut self, job_id: &str) -> bool {
        let running = self.running.remove(job_id);
        if let Some(running) = &running {
            running.task.abort();
        }
        let before = self.waiting.len();
        self.waiting.retain(|w| w.ident.job_id != job_id);
        running.is_some() || self.waiting.len() < before
    }

    fn stop_all(&mut self) {
        self.waiting.clear();
        self.running.clear();
        self.tasks.abort_all();
        while self.partials.try_recv().is_ok() {}
    }
}

async fn work(job: Assign, engine: &Engine, progress: &Progress) -> Result<JobOutput, EngineError> {
    let Some(audio) = wire::from_base64(&job.audio) else {
        return Err(EngineError::Unsupported("the audio is not base64".to_owned()));
    };
    if job.pipeline.is_some_and(|p| !p.use_asr) {
        return Err(EngineError::Unsupported("nothing to do without recognition".to_owned()));
    }
    let two_way = [job.lang_a, job.lang_b].into_iter().flatten();
    let input = JobInput {
        audio,
        audio_format: job.audio_format,
        sample_rate: job.sample_rate,
        src_lang: job.src_lang,
        tgt_lang: job.tgt_lang,
        candidates: two_way.chain(job.auto_langs.unwrap_or_default()).collect(),
        use_nmt: job.pipeline.is_none_or(|p| p.use_nmt),
        use_tts: job.pipeline.is_none_or(|p| p.use_tts),
    };
    engine.process(&input, progress).await
}

/// What registrations and heartbeats both say of the engine.
fn offer(engine: &Engine) -> Value {
    let services: Vec<Value> = engine
        .services()
        .into_iter()
        .map(|s| {
            json!({
                "service_id": s.service_id,
                "type": s.kind,
                "device": "cpu",
                "status": "running",
                "version": s.version,
            })
        })
        .collect();
    let capabilities = ["asr", "nmt", "tts"]
        .map(|kind| json!({ "type": kind, "ready": true, "devices": ["cpu"] }));
    let languages = engine.languages();
    let pairs: Vec<String> = languages.pairs.iter().map(|(s, t)| format!("{s}:{t}")).collect();
    json!({
        "installed_services": services,
        "capability_by_type": capabilities,
        "language_capabilities": {
            "asr_languages": languages.sources(),
            "semantic_languages": languages.targets(),
            "tts_languages": languages.targets(),
            "semantic_core_ready": true,
            "pairs": pairs,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_with_jitter_up_to_the_longest() {
        let engine = Engine::Echo(super::super::engine::EchoEngine::default());
        let agent = Agent::new(NodeOptions::new("ws://localhost/", engine), None);
        for (failures, longest_ms) in [(0, 200), (1, 400), (3, 1_600), (6, 10_000), (99, 10_000)] {
            for _ in 0..50 {
                let wait = agent.wait_after(failures).as_secs_f64() * 1e3;
                let longest = f64::from(longest_ms);
                assert!((longest / 2.0..=longest).contains(&wait), "{failures}: {wait}");
            }
        }
    }
}
