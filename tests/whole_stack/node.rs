//! Workers: they hear who spoke what, answer after a while, lose connections and memories.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use fastrand::Rng;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::client;
use super::support::{heartbeat_message, register_message};
use super::wire::{Came, Wire};
use super::world::{World, between};

const LANGUAGES: [&str; 2] = ["zh", "en"];
const BEAT: Duration = Duration::from_millis(1_500);

/// What a node can say about its jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// Nothing. It refuses what it has seen.
    Plain,
    /// What it runs and what it has not had acknowledged.
    Acked,
}

/// A job and one of its attempts.
type Task = (String, u64);

struct Node {
    world: Rc<World>,
    rng: Rng,
    id: String,
    style: Style,
    /// Milliseconds that an answer takes at most.
    work_ms: u64,
    boot: u64,
    /// When which answer will be ready.
    doing: Vec<(Instant, Task, Value)>,
    unacked: BTreeMap<Task, Value>,
    /// Of a plain node: sessions and utterances it has seen.
    seen: BTreeSet<(String, u64)>,
}

/// Works until its machine dies.
pub async fn run(
    world: Rc<World>,
    mut rng: Rng,
    id: String,
    style: Style,
    work_ms: u64,
) -> turmoil::Result {
    let boot = rng.u64(..);
    let (doing, unacked, seen) = Default::default();
    let mut node = Node { world, rng, id, style, work_ms, boot, doing, unacked, seen };
    loop {
        if let Some(mut wire) = Wire::dial("/ws/node").await {
            node.work(&mut wire).await;
            if node.style == Style::Plain {
                node.doing.clear();
            }
        }
        sleep(between(&mut node.rng, 20, 1_500)).await;
    }
}

impl Node {
    fn register(&self) -> Value {
        let mut message = register_message(Some(&self.id), &LANGUAGES);
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
        if !self.say(wire, &self.register()).await {
            return;
        }
        let mut beat = Instant::now() + BEAT;
        loop {
            let due = self.doing.iter().map(|(at, ..)| *at).min().unwrap_or(beat).min(beat);
            tokio::select! {
                biased;
                came = wire.next() => match came {
                    Came::Said(message) => {
                        self.world.note_message(&self.id, "hears", &message);
                        if !self.hear(wire, &message).await {
                            return;
                        }
                    }
                    Came::Closed(_) | Came::Lost => return,
                },
                () = tokio::time::sleep_until(due) => {
                    if !self.world.calm.get() && self.rng.u16(..400) == 0 {
                        self.world.count("node drops its connection");
                        return;
                    }
                    let goes_on = match beat <= Instant::now() {
                        true => {
                            beat = Instant::now() + BEAT;
                            wire.say(&heartbeat_message(&self.id, &LANGUAGES)).await
                        }
                        false => self.answer(wire).await,
                    };
                    if !goes_on {
                        return;
                    }
                }
            }
        }
    }

    async fn say(&self, wire: &mut Wire, message: &Value) -> bool {
        self.world.note_message(&self.id, "says", message);
        wire.say(message).await
    }

    /// False when the connection is gone.
    async fn hear(&mut self, wire: &mut Wire, message: &Value) -> bool {
        let task = task_of(message);
        match message["type"].as_str() {
            Some("job_assign") => return self.take(wire, message, task).await,
            Some("job_cancel") => self.doing.retain(|(_, (job, _), _)| *job != task.0),
            Some("result_ack") => self.acked(message, &task),
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

    /// The server has the result, or does not want it.
    fn acked(&mut self, message: &Value, task: &Task) {
        let status = message["status"].as_str().unwrap_or_default();
        self.world.count(&format!("result {status}"));
        let answer = self.unacked.remove(task);
        let succeeded = answer.is_none_or(|answer| answer["success"] == true);
        if matches!(status, "committed" | "duplicate") && succeeded {
            self.world.told_of_end(&self.id, &task.0);
        }
    }

    async fn obey(&mut self, wire: &mut Wire, order: &Value) -> bool {
        let task = task_of(order);
        self.world.count(&format!("hello {}", order["action"].as_str().unwrap_or_default()));
        match order["action"].as_str() {
            Some("keep") => true,
            Some("send") => match self.unacked.get(&task).cloned() {
                Some(answer) => self.say(wire, &answer).await,
                None => true,
            },
            Some("cancel") => {
                self.doing.retain(|(_, doing, _)| *doing != task);
                self.unacked.remove(&task);
                true
            }
            _ => {
                self.world.fault(&self.id, &format!("is told {order}"));
                true
            }
        }
    }

    async fn take(&mut self, wire: &mut Wire, job: &Value, task: Task) -> bool {
        let (id, attempt) = &task;
        if !self.world.book.borrow_mut().attempts.insert(task.clone()) {
            self.world.fault(&self.id, &format!("attempt {attempt} of {id} is given twice"));
        }
        let session = job["session_id"].as_str().unwrap_or_default().to_owned();
        let index = job["utterance_index"].as_u64().unwrap_or(u64::MAX);
        let audio = base64_simd::STANDARD.decode_to_vec(job["audio"].as_str().unwrap_or_default());
        let Some((voice, number)) = client::heard(&audio.unwrap_or_default()) else {
            self.world.fault(&self.id, &format!("{id} has other audio than was said"));
            return true;
        };
        let mut answer = json!({"type": "job_result", "job_id": id, "attempt_id": attempt,
            "node_id": self.id, "session_id": session, "utterance_index": index, "success": true,
            "text_asr": format!("{voice} {number}"), "text_translated": "said",
            "tts_audio": "QUJDRA==", "tts_format": "pcm16", "extra": {}, "processing_time_ms": 5,
            "trace_id": job["trace_id"]});
        let refuses = self.style == Style::Plain && !self.seen.insert((session, index));
        if refuses || self.rng.u8(..40) == 0 {
            let (code, message) = match refuses {
                true => ("PROCESSING_ERROR", "DUPLICATE_UTTERANCE_INDEX: seen before"),
                false => ("PROCESSING_ERROR", "not understood"),
            };
            self.world.count(message);
            answer["success"] = false.into();
            answer["error"] = json!({"code": code, "message": message, "details": {}});
        }
        let took = between(&mut self.rng, 1, self.work_ms);
        self.doing.push((Instant::now() + took, task, answer));
        self.rng.bool() || {
            let ack = json!({"type": "job_ack", "job_id": job["job_id"],
                "attempt_id": job["attempt_id"], "node_id": self.id});
            wire.say(&ack).await
        }
    }

    /// Gives the answers that are ready; false when the connection is gone.
    async fn answer(&mut self, wire: &mut Wire) -> bool {
        let now = Instant::now();
        let ready: Vec<_> = self.doing.extract_if(.., |(at, ..)| *at <= now).collect();
        for (_, task, answer) in ready {
            if self.style == Style::Acked {
                self.unacked.insert(task, answer.clone());
            }
            if !self.say(wire, &answer).await {
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
