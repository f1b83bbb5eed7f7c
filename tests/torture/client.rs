//! A client that comes back to its session after every kill, and believes nothing it is not told.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fastrand::Rng;
use serde_json::{Value, json};
use tokio::time::sleep;

use super::ledger::{Ledger, Verdict, broken};
use super::plan::{Kind, Plan};
use super::world::{ANSWER, Broken, Came, Wire, World, count};

/// How long a session may take to have its last promise kept once the server is left alone.
const DRAIN: Duration = Duration::from_secs(25);
/// Messages shown of a session that went wrong.
const TRAIL: usize = 120;
/// Refusals that only say: later.
const LATER: [&str; 2] = ["OVERLOADED", "SHUTTING_DOWN"];

/// Speaks one session after the other until the server is left alone, and then ends the last one.
pub async fn run(world: Arc<World>, seed: u64, kind: Kind) {
    let mut rng = Rng::with_seed(seed);
    while world.storm() {
        let mut life = Life::new(Arc::clone(&world), rng.fork(), kind);
        if let Err((what, how)) = life.live().await {
            world.broken(what, format!("{how}\n    {}", life.state()));
            return;
        }
        count(&world.tally.sessions);
    }
}

/// How a connection ended.
enum End {
    /// The session is over.
    Closed,
    /// It was torn, or closed by the server.
    Lost,
    /// This side has had enough of it.
    Dropped,
}

/// One session.
struct Life {
    world: Arc<World>,
    rng: Rng,
    kind: Kind,
    plan: Plan,
    /// None before the server has named the session.
    ledger: Option<Ledger>,
    secret: String,
    /// Last words acknowledged.
    acked: u64,
    /// It was asked to end; whether it did may be unknown.
    closing: bool,
    /// And was so on this connection.
    bye: bool,
    trail: Vec<String>,
    born: Instant,
    /// Since when the server is left alone.
    calm: Option<Instant>,
    /// A connection of this side's that is still open while a newer one takes over.
    older: Option<Wire>,
}

impl Life {
    fn new(world: Arc<World>, mut rng: Rng, kind: Kind) -> Self {
        let plan = Plan::new(kind, &mut rng);
        let (secret, acked) = (String::new(), 0);
        Self {
            world,
            rng,
            kind,
            plan,
            ledger: None,
            secret,
            acked,
            closing: false,
            bye: false,
            trail: Vec::new(),
            born: Instant::now(),
            calm: None,
            older: None,
        }
    }

    /// Where it stands and how it came there, for whoever has to find the fault.
    fn state(&self) -> String {
        let (kind, trail) = (self.kind, self.trail.join("\n      "));
        let Some(ledger) = &self.ledger else { return format!("{kind:?}, unopened {trail}") };
        let (session, owed, plan) = (&ledger.session, ledger.owed(), self.plan.state());
        let audit = self.plan.audit(ledger).err();
        format!("{kind:?} {session}, owed {owed:?}, {plan}, {audit:?}\n      {trail}")
    }

    /// Remembers what was lately said and heard.
    fn note(&mut self, mark: &str, message: &Value) {
        let mut short = message.clone();
        for key in ["audio", "payload", "trace_id", "resume_secret", "extra"] {
            short.as_object_mut().and_then(|fields| fields.remove(key));
        }
        if self.trail.len() == TRAIL {
            self.trail.remove(0);
        }
        self.trail.push(format!("{:?} {mark} {short}", self.born.elapsed()));
    }

    async fn live(&mut self) -> Verdict<()> {
        loop {
            self.in_time()?;
            let Some(mut wire) = Wire::dial(self.world.addr, "/ws/session").await else {
                sleep(Duration::from_micros(self.rng.u64(500..12_000))).await;
                continue;
            };
            if self.greet(&mut wire).await? {
                drop(self.older.take());
                match self.talk(&mut wire).await? {
                    End::Closed => return self.audit(),
                    End::Lost => {}
                    End::Dropped if self.leaves() => return Ok(()),
                    End::Dropped if self.rng.bool() => self.older = Some(wire),
                    End::Dropped => {}
                }
            } else if self.closing && self.ledger.is_none() {
                return Ok(());
            }
            sleep(Duration::from_micros(self.rng.u64(0..8_000))).await;
        }
    }

    /// Whether it forgets the session, promises and all.
    fn leaves(&mut self) -> bool {
        let one_in = self.world.pace.leaves_one_in;
        let leaves = one_in > 0 && self.rng.u64(0..one_in) == 0;
        if leaves {
            count(&self.world.tally.left);
        }
        leaves
    }

    /// Faults a promise not kept in time.
    fn in_time(&mut self) -> Verdict<()> {
        if self.world.storm() {
            return Ok(());
        }
        let since = *self.calm.get_or_insert_with(Instant::now);
        match since.elapsed() > DRAIN {
            true => broken(Broken::Lost, format!("not finished {DRAIN:?} after the last kill")),
            false => Ok(()),
        }
    }

    /// Everything ended: once, in order, whole.
    fn audit(&self) -> Verdict<()> {
        let Some(ledger) = &self.ledger else { return Ok(()) };
        match ledger.owed()[..] {
            [] => self.plan.audit(ledger),
            ref owed => broken(Broken::Lost, format!("closed without {owed:?}")),
        }
    }

    /// Opens the session or comes back to it; false when that is to be tried again.
    async fn greet(&mut self, wire: &mut Wire) -> Verdict<bool> {
        loop {
            // What was told and not acknowledged may be asked for again.
            let told = self.ledger.as_ref().map_or(0, Ledger::told);
            let last_seq = if self.rng.bool() { told } else { self.rng.u64(self.acked..=told) };
            let greeting = match &self.ledger {
                Some(ledger) => json!({"type": "session_resume", "session_id": ledger.session,
                    "epoch": ledger.epoch, "resume_secret": self.secret, "last_seq": last_seq}),
                None => init(),
            };
            self.note("says", &greeting);
            if !wire.say(greeting).await {
                return Ok(false);
            }
            let answer = match tokio::time::timeout(ANSWER, wire.next()).await {
                Ok(Came::Said(answer)) => answer,
                Ok(Came::Closed(code)) => return self.closed(code).map(|_| false),
                Ok(Came::Lost) => return Ok(false),
                Err(_) => return broken(Broken::Rule, "no answer to a greeting"),
            };
            self.note("hears", &answer);
            match answer["type"].as_str() {
                Some("session_init_ack") if self.ledger.is_none() => {
                    self.opened(&answer)?;
                    return Ok(true);
                }
                Some("session_resume_ack") if answer["recovered"] == true => {
                    self.resumed(&answer, last_seq)?;
                    return Ok(true);
                }
                Some("session_resume_ack") => {
                    self.forgotten(&answer)?;
                    if self.closing {
                        return Ok(false);
                    }
                }
                Some("go_away") => return Ok(false),
                Some("error") if is_later(&answer) => return Ok(false),
                _ => return broken(Broken::Rule, format!("greeted with {answer}")),
            }
        }
    }

    fn opened(&mut self, answer: &Value) -> Verdict<()> {
        let odd = || (Broken::Rule, format!("not a session to come back to: {answer}"));
        let session = answer["session_id"].as_str().ok_or_else(odd)?.to_owned();
        let epoch = answer["epoch"].as_u64().ok_or_else(odd)?;
        let secret = answer["resume_secret"].as_str().filter(|s| s.len() == 64).ok_or_else(odd)?;
        for word in ["resume", "accepted", "audio_ack"] {
            let granted = answer["extensions"].as_array().ok_or_else(odd)?;
            if !granted.iter().any(|granted| granted == word) {
                return Err(odd());
            }
        }
        self.secret = secret.to_owned();
        self.acked = 0;
        self.ledger = Some(Ledger::new(self.world.voice(), session, epoch));
        Ok(())
    }

    fn resumed(&mut self, answer: &Value, last_seq: u64) -> Verdict<()> {
        let Some(ledger) = &mut self.ledger else {
            return broken(Broken::Rule, "came back to no session");
        };
        if answer["epoch"] != ledger.epoch || answer["from_seq"] != last_seq + 1 {
            return broken(Broken::Gap, format!("after {last_seq}: {answer}"));
        }
        ledger.resumed(last_seq);
        self.acked = last_seq;
        self.bye = false;
        let through = answer["chunks_through"].as_u64().unwrap_or(0);
        let all = self.rng.u8(0..4) == 0;
        let again = self.plan.resumed(ledger, through, all)?;
        self.world.tally.resent.fetch_add(again, std::sync::atomic::Ordering::Relaxed);
        count(&self.world.tally.resumed);
        Ok(())
    }

    /// Only a session to which nothing was promised may be unknown, or one that was to end.
    fn forgotten(&mut self, answer: &Value) -> Verdict<()> {
        let nothing = self.ledger.as_ref().is_none_or(Ledger::is_promised_nothing);
        let of_sound = self.plan.acked();
        if answer["from_seq"].is_u64() {
            return broken(Broken::Gap, format!("{answer}"));
        }
        if !(self.closing || nothing && of_sound == 0) {
            return broken(Broken::Lost, format!("the session with its promises: {answer}"));
        }
        if self.closing {
            self.audit()?;
        }
        count(&self.world.tally.forgotten);
        self.ledger = None;
        self.plan.restart();
        Ok(())
    }

    /// Speaks and listens until the connection ends.
    async fn talk(&mut self, wire: &mut Wire) -> Verdict<End> {
        let mut say_at = Instant::now();
        let mut ack_at = None;
        loop {
            self.in_time()?;
            let tick = ack_at.map_or(say_at, |at: Instant| at.min(say_at));
            tokio::select! {
                came = wire.next() => match came {
                    Came::Said(message) => {
                        self.note("hears", &message);
                        if self.hear(&message)? {
                            return Ok(End::Closed);
                        }
                        let lag = Duration::from_millis(self.rng.u64(0..80));
                        ack_at = ack_at.or_else(|| Some(Instant::now() + lag));
                    }
                    Came::Closed(code) => return self.closed(code),
                    Came::Lost => return Ok(End::Lost),
                },
                () = tokio::time::sleep_until(tick.into()) => {
                    if self.world.storm() && self.rng.u16(0..600) == 0 {
                        return Ok(End::Dropped);
                    }
                    if ack_at.is_some_and(|at| at <= Instant::now()) {
                        ack_at = None;
                        if !self.ack(wire).await {
                            return Ok(End::Lost);
                        }
                    } else {
                        let pause_us = self.rng.u64(0..self.world.pace.pause_us);
                        say_at = Instant::now() + Duration::from_micros(pause_us);
                        if !self.speak(wire).await {
                            return Ok(End::Lost);
                        }
                    }
                }
            }
        }
    }

    /// A close by the server says that it goes, or that another connection took over.
    fn closed(&self, code: u16) -> Verdict<End> {
        self.world.reason(format!("close {code}"));
        match code {
            1001 | 4409 => Ok(End::Lost),
            _ => broken(Broken::Rule, format!("closed with {code}")),
        }
    }

    async fn ack(&mut self, wire: &mut Wire) -> bool {
        let Some(ledger) = &self.ledger else { return true };
        let told = ledger.told_here();
        if told <= self.acked {
            return true;
        }
        // Some of what was told, at least one more than before.
        self.acked = if self.rng.bool() { told } else { self.rng.u64(self.acked + 1..=told) };
        let ack = json!({"type": "ack", "session_id": ledger.session, "seq": self.acked});
        self.note("says", &ack);
        wire.say(ack).await
    }

    async fn speak(&mut self, wire: &mut Wire) -> bool {
        let Some(ledger) = &self.ledger else { return true };
        if self.bye {
            return true;
        }
        if self.closing || self.plan.is_done(ledger) {
            self.closing = true;
            self.bye = true;
            let bye = json!({"type": "session_close", "session_id": ledger.session,
                "reason": "done"});
            self.note("says", &bye);
            return wire.say(bye).await;
        }
        match self.plan.next(ledger) {
            Some(message) => {
                self.note("says", &message);
                wire.say(message).await
            }
            None => true,
        }
    }

    /// True when the session is over.
    fn hear(&mut self, message: &Value) -> Verdict<bool> {
        let Some(ledger) = &mut self.ledger else { return Ok(false) };
        match message["type"].as_str() {
            Some("translation_result" | "missing_result") => {
                ledger.word(message, &self.world)?;
                self.plan.check(ledger)?;
            }
            Some("utterance_accepted") => {
                let job = message["job_id"].as_str().unwrap_or_default();
                match message["utterance_index"].as_u64() {
                    Some(index) => ledger.accept(index, job, &self.world)?,
                    None => return broken(Broken::Rule, format!("accepted what: {message}")),
                }
            }
            Some("audio_ack") => {
                self.plan.audio_ack(message["through"].as_u64().unwrap_or(u64::MAX))?;
            }
            Some("session_close_ack") => return Ok(self.closing),
            Some("error") if !is_later(message) => {
                return broken(Broken::Rule, format!("{:?} is told {message}", self.kind));
            }
            Some("error") => self.world.reason("error"),
            _ => {}
        }
        Ok(false)
    }
}

fn is_later(message: &Value) -> bool {
    message["code"].as_str().is_some_and(|code| LATER.contains(&code))
}

fn init() -> Value {
    json!({"type": "session_init", "client_version": "torture", "platform": "cli",
        "src_lang": "zh", "tgt_lang": "en", "audio_format": "pcm16", "sample_rate": 16_000,
        "extensions": ["resume", "accepted", "audio_ack", "go_away"]})
}

/// A client that knows nothing of all this: it speaks a sentence, waits a moment for the answer and
/// goes. Nothing it does not know may be sent to it.
pub async fn run_plain(world: Arc<World>, seed: u64) {
    let mut rng = Rng::with_seed(seed);
    while world.storm() {
        sleep(Duration::from_micros(rng.u64(500..12_000))).await;
        let Some(mut wire) = Wire::dial(world.addr, "/ws/session").await else { continue };
        let mut greeting = init();
        greeting["extensions"] = json!([]);
        wire.say(greeting).await;
        let until = Instant::now() + Duration::from_millis(rng.u64(5..150));
        loop {
            let Ok(came) = tokio::time::timeout_at(until.into(), wire.next()).await else { break };
            let Came::Said(message) = came else { break };
            let of = |key: &str| message[key].is_null();
            if !(of("epoch") && of("seq") && of("resume_secret")) {
                world.broken(Broken::Rule, format!("told to a plain client: {message}"));
            }
            match message["type"].as_str() {
                Some("session_init_ack") => {
                    let voice = world.voice();
                    let audio = super::audio::speech(voice, 0, rng.u32(1..5));
                    let payload = base64_simd::STANDARD.encode_to_string(audio);
                    wire.say(json!({"type": "audio_chunk", "session_id": message["session_id"],
                        "seq": 0, "is_final": true, "payload": payload}))
                        .await;
                }
                Some("translation_result") => {
                    world.reason("plain results");
                    break;
                }
                _ => {}
            }
        }
    }
}
