//! A node that answers each job with what it heard. It comes back after every kill, and sometimes
//! goes by itself.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fastrand::Rng;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::audio::hear;
use super::ledger::text;
use super::world::{ANSWER, Broken, Came, Wire, World};
use crate::support::{heartbeat_message, register_message};

const LANGUAGES: [&str; 2] = ["zh", "en"];
const BEAT: Duration = Duration::from_secs(2);

/// What a node can say about its jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// Nothing: it answers and forgets.
    Plain,
    /// What it runs and what it has not had acknowledged.
    Acked,
}

/// A job and one of its attempts.
type Task = (String, u64);

struct Worker {
    world: Arc<World>,
    rng: Rng,
    id: String,
    style: Style,
    /// New whenever it forgets what it had.
    boot: u64,
    /// When which answer will be ready.
    doing: Vec<(Instant, Task, Value)>,
    /// Answers given and not acknowledged.
    unacked: BTreeMap<Task, Value>,
    /// The highest attempt seen of each job.
    seen: BTreeMap<String, u64>,
    /// The server's life, as its attempts tell.
    life: u64,
}

/// Works until nobody needs it any more.
pub async fn run(world: Arc<World>, seed: u64, id: String, style: Style) {
    let mut worker = Worker {
        world,
        rng: Rng::with_seed(seed),
        id,
        style,
        boot: seed,
        doing: Vec::new(),
        unacked: BTreeMap::new(),
        seen: BTreeMap::new(),
        life: 0,
    };
    loop {
        if let Some(mut wire) = Wire::dial(worker.world.addr, "/ws/node").await {
            worker.work(&mut wire).await;
        }
        worker.gone();
        sleep(Duration::from_micros(worker.rng.u64(500..10_000))).await;
    }
}

impl Worker {
    /// The connection is gone; what becomes of the jobs in hand is chance.
    fn gone(&mut self) {
        let forgets = match self.style {
            // It goes on, and what it says then comes too late.
            Style::Plain => self.rng.bool(),
            Style::Acked => self.rng.u8(0..16) == 0,
        };
        if forgets {
            self.boot = self.boot.wrapping_add(1);
            self.doing.clear();
            self.unacked.clear();
        }
    }

    fn register(&self) -> Value {
        let mut message = register_message(Some(&self.id), &LANGUAGES);
        message["max_concurrent_jobs"] = 32.into();
        if self.style == Style::Acked {
            let entry = |(job, attempt): &Task| json!({"job_id": job, "attempt_id": attempt});
            let inflight: Vec<Value> = self.doing.iter().map(|(_, task, _)| entry(task)).collect();
            let unacked: Vec<Value> = self.unacked.keys().map(entry).collect();
            message["extensions"] = json!(["result_ack"]);
            message["boot_id"] = format!("{:x}", self.boot).into();
            message["inflight"] = inflight.into();
            message["unacked"] = unacked.into();
        }
        message
    }

    async fn work(&mut self, wire: &mut Wire) {
        if !wire.say(self.register()).await {
            return;
        }
        let mut beat = Instant::now() + BEAT;
        let mut life = None;
        loop {
            let due = self.doing.iter().map(|(at, ..)| *at).min().unwrap_or(beat).min(beat);
            tokio::select! {
                came = wire.next() => {
                    let Came::Said(message) = came else { return };
                    let goes_on = self.hear(wire, &message, &mut life).await;
                    if !goes_on || self.world.storm() && self.rng.u16(0..1_500) == 0 {
                        return;
                    }
                }
                () = tokio::time::sleep_until(due.into()) => {
                    if beat <= Instant::now() {
                        beat = Instant::now() + BEAT;
                        if !wire.say(heartbeat_message(&self.id, &LANGUAGES)).await {
                            return;
                        }
                    } else if !self.answer(wire).await {
                        return;
                    }
                }
            }
        }
    }

    /// False when the connection is gone.
    async fn hear(&mut self, wire: &mut Wire, message: &Value, life: &mut Option<u64>) -> bool {
        let task = task_of(message);
        match message["type"].as_str() {
            Some("job_assign") => self.take(message, task, life),
            Some("job_cancel") => self.doing.retain(|(_, (job, _), _)| *job != task.0),
            Some("result_ack") => {
                self.world.reason(format!("result_ack {}", message["status"]));
                if message["status"] == "committed" {
                    self.world.committed(&task.0, self.life);
                }
                self.unacked.remove(&task);
            }
            Some("node_register_ack") => {
                for order in message["jobs"].as_array().into_iter().flatten() {
                    if !self.obey(wire, order).await {
                        return false;
                    }
                }
            }
            _ => {}
        }
        true
    }

    /// Keeps a job, forgets it, or sends its answer again.
    async fn obey(&mut self, wire: &mut Wire, order: &Value) -> bool {
        let task = task_of(order);
        self.world.reason(format!("hello {}", order["action"]));
        match order["action"].as_str() {
            Some("keep") => true,
            Some("send") => match self.unacked.get(&task) {
                Some(answer) => wire.say(answer.clone()).await,
                None => true,
            },
            Some("cancel") => {
                self.doing.retain(|(_, doing, _)| *doing != task);
                self.unacked.remove(&task);
                true
            }
            _ => {
                self.world.broken(Broken::Rule, format!("a node is told {order}"));
                true
            }
        }
    }

    /// Begins a job: checks what it is given, and has its answer ready after a while.
    fn take(&mut self, job: &Value, task: Task, life: &mut Option<u64>) {
        let (id, attempt) = &task;
        self.world.assigned(id, *attempt);
        let before = self.seen.insert(id.clone(), *attempt);
        if before >= Some(*attempt) {
            self.rule(format!("attempt {attempt} of {id} after {before:?}"));
        }
        let boot = attempt >> 8;
        if *life.get_or_insert(boot) != boot || boot < self.life {
            self.rule(format!("boot epoch {boot} after {}", self.life));
        }
        self.life = boot;
        let audio = base64_simd::STANDARD.decode_to_vec(job["audio"].as_str().unwrap_or_default());
        let heard = match hear(&audio.unwrap_or_default()) {
            Ok(heard) => heard,
            Err(why) => return self.world.broken(Broken::Audio, format!("{id}: {why}")),
        };
        let session = job["session_id"].as_str().unwrap_or_default();
        let index = job["utterance_index"].as_u64().unwrap_or(u64::MAX);
        let answer = json!({"type": "job_result", "job_id": id, "attempt_id": attempt,
            "node_id": self.id, "session_id": session, "utterance_index": index, "success": true,
            "text_asr": text(session, index, *attempt, heard), "text_translated": "said",
            "tts_audio": "QUJDRA==", "tts_format": "pcm16", "extra": {}, "processing_time_ms": 5,
            "trace_id": job["trace_id"]});
        let at = Instant::now() + Duration::from_micros(self.rng.u64(0..30_000));
        self.doing.push((at, task, answer));
    }

    fn rule(&self, how: String) {
        self.world.broken(Broken::Rule, format!("{}: {how}", self.id));
    }

    /// Gives the answers that are ready; false when the connection is gone.
    async fn answer(&mut self, wire: &mut Wire) -> bool {
        let now = Instant::now();
        let ready: Vec<_> = self.doing.extract_if(.., |(at, ..)| *at <= now).collect();
        for (_, task, answer) in ready {
            if self.style == Style::Acked {
                self.unacked.insert(task, answer.clone());
            }
            let sent = tokio::time::timeout(ANSWER, wire.say(answer)).await;
            if sent != Ok(true) {
                return false;
            }
        }
        true
    }
}

fn task_of(message: &Value) -> Task {
    let job = message["job_id"].as_str().unwrap_or_default().to_owned();
    (job, message["attempt_id"].as_u64().unwrap_or_default())
}
