//! A speaker that comes back to its session after every loss, and believes nothing it is not told.

use std::rc::Rc;

use fastrand::Rng;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::support::speech;
use super::wire::{Came, Wire};
use super::world::{Owed, Verdict, World, between};

/// A last word: of which utterance, and what it says.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Word {
    index: u64,
    late: bool,
    said: String,
}

/// How an utterance stands.
#[derive(Debug, Clone, Default)]
struct Said {
    /// The connection it was last said on.
    on: Option<u64>,
    /// Its job, once it was accepted.
    job: Option<String>,
    ended: bool,
}

/// How a connection ended.
enum End {
    /// The session is over, and so is the speaker's work.
    Closed,
    Lost,
}

/// One speaker and its session.
struct Client {
    world: Rc<World>,
    rng: Rng,
    name: String,
    voice: u64,
    /// Milliseconds between two utterances, at most.
    pause_ms: u64,
    /// None before the server has named it.
    session: Option<(String, u64, String)>,
    utterances: Vec<Said>,
    /// Last words by number, from 1.
    words: Vec<Word>,
    /// Number of the next last word on the connection in hand.
    next_here: u64,
    /// The highest utterance that ended in its turn.
    highest: Option<u64>,
    acked: u64,
    /// It was asked to end; whether it did may be unknown.
    closing: bool,
    /// The connection on which it was last asked to.
    bye_on: u64,
    /// Number of the connection in hand, from 1.
    connection: u64,
    /// A connection that is still open while a newer one takes over.
    older: Option<Wire>,
}

/// Speaks so many utterances and stays until each has had its last word.
pub async fn run(world: Rc<World>, mut rng: Rng, voice: u64, count: usize) -> turmoil::Result {
    let pause_ms = [10, 100, 600, 2_000][rng.usize(..4)];
    sleep(between(&mut rng, 0, 2_000)).await;
    let mut client = Client {
        name: format!("client-{voice}"),
        world: Rc::clone(&world),
        rng,
        voice,
        pause_ms,
        session: None,
        utterances: vec![Said::default(); count],
        words: Vec::new(),
        next_here: 1,
        highest: None,
        acked: 0,
        closing: false,
        bye_on: 0,
        connection: 0,
        older: None,
    };
    if let Err(how) = client.live().await {
        world.fault(&client.name, &how);
    }
    world.speaking.set(world.speaking.get() - 1);
    Ok(())
}

/// What a speaker says: who it is and which utterance this is, in the first samples.
pub fn sound(voice: u64, number: u64) -> Vec<u8> {
    let mut audio = speech(40);
    audio[..8].copy_from_slice(&voice.to_le_bytes());
    audio[8..16].copy_from_slice(&number.to_le_bytes());
    audio
}

/// The reverse; none if it is not what was said.
pub fn heard(audio: &[u8]) -> Option<(u64, u64)> {
    let number = |at: usize| Some(u64::from_le_bytes(audio.get(at..at + 8)?.try_into().ok()?));
    let (voice, index) = (number(0)?, number(8)?);
    (audio == sound(voice, index)).then_some((voice, index))
}

impl Client {
    async fn live(&mut self) -> Verdict<()> {
        loop {
            if let Some(mut wire) = Wire::dial("/ws/session").await {
                self.connection += 1;
                if self.greet(&mut wire).await? {
                    self.older = None;
                    if let End::Closed = self.talk(&mut wire).await? {
                        return self.audit();
                    }
                    // A connection that this side has forgotten may still be open.
                    if self.rng.bool() {
                        self.older = Some(wire);
                    }
                } else if self.closing && self.session.is_none() {
                    return self.audit();
                }
            }
            sleep(between(&mut self.rng, 0, 800)).await;
        }
    }

    /// All was said, all has ended; once and in order was seen to on the way.
    fn audit(&self) -> Verdict<()> {
        match self.utterances.iter().position(|said| !said.ended) {
            None => Ok(()),
            Some(index) => Err(format!("closed without the end of #{index}")),
        }
    }

    fn told(&self) -> u64 {
        self.words.len() as u64
    }

    async fn say(&self, wire: &mut Wire, message: &Value) -> bool {
        self.world.note_message(&self.name, "says", message);
        wire.say(message).await
    }

    async fn hears(&self, wire: &mut Wire) -> Came {
        let came = wire.next().await;
        if let Came::Said(message) = &came {
            self.world.note_message(&self.name, "hears", message);
        }
        came
    }

    /// Opens the session or comes back to it; false when that is to be tried again.
    async fn greet(&mut self, wire: &mut Wire) -> Verdict<bool> {
        loop {
            // What was told and not acknowledged may be asked for again.
            let last_seq =
                if self.rng.bool() { self.told() } else { self.rng.u64(self.acked..=self.told()) };
            let greeting = match &self.session {
                Some((session, epoch, secret)) => {
                    json!({"type": "session_resume", "session_id": session, "epoch": epoch,
                        "resume_secret": secret, "last_seq": last_seq})
                }
                None => init(&["resume", "accepted"]),
            };
            self.acknowledged(if self.session.is_some() { last_seq } else { 0 });
            if !self.say(wire, &greeting).await {
                return Ok(false);
            }
            let Came::Said(answer) = self.hears(wire).await else { return Ok(false) };
            match answer["type"].as_str() {
                Some("session_init_ack") if self.session.is_none() => {
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
                _ => return Err(format!("greeted with {answer}")),
            }
        }
    }

    fn opened(&mut self, answer: &Value) -> Verdict<()> {
        let text = |key: &str| answer[key].as_str().map(str::to_owned);
        let (Some(session), Some(secret), Some(epoch)) =
            (text("session_id"), text("resume_secret"), answer["epoch"].as_u64())
        else {
            return Err(format!("not a session to come back to: {answer}"));
        };
        self.session = Some((session, epoch, secret));
        (self.acked, self.next_here, self.highest) = (0, 1, None);
        self.words.clear();
        Ok(())
    }

    fn resumed(&mut self, answer: &Value, last_seq: u64) -> Verdict<()> {
        let epoch = self.session.as_ref().map(|session| session.1);
        if answer["epoch"].as_u64() != epoch || answer["from_seq"] != last_seq + 1 {
            return Err(format!("after {last_seq}: {answer}"));
        }
        self.world.count("resumed");
        self.next_here = last_seq + 1;
        let listed = |index: u64, job: &str| {
            let of = |u: &Value| u["utterance_index"] == index && u["job_id"] == job;
            answer["utterances"].as_array().is_some_and(|list| list.iter().any(of))
        };
        for (index, said) in self.utterances.iter().enumerate() {
            let Some(job) = said.job.as_ref().filter(|_| !said.ended) else { continue };
            // Those whose last word is about to come again are not unfinished.
            self.world.count(match listed(index as u64, job) {
                true => "resumed to an unfinished utterance",
                false => "resumed to a finished utterance",
            });
        }
        Ok(())
    }

    /// Only a session to which nothing was promised may be unknown, or one that was to end.
    fn forgotten(&mut self, answer: &Value) -> Verdict<()> {
        if answer["from_seq"].is_u64() {
            return Err(format!("a gap: {answer}"));
        }
        let promised = self.told() > 0 || self.utterances.iter().any(|said| said.job.is_some());
        if promised && !self.closing {
            return Err(format!("the session with its promises is gone: {answer}"));
        }
        self.world.count("forgotten");
        self.session = None;
        for said in self.utterances.iter_mut().filter(|said| !said.ended) {
            said.on = None;
        }
        Ok(())
    }

    /// Speaks and listens until the connection ends.
    async fn talk(&mut self, wire: &mut Wire) -> Verdict<End> {
        let mut say_at = Instant::now();
        let mut ack_at = None;
        loop {
            let tick = ack_at.map_or(say_at, |at: Instant| at.min(say_at));
            tokio::select! {
                biased;
                came = self.hears(wire) => match came {
                    Came::Said(message) => {
                        if self.hear(&message)? {
                            return Ok(End::Closed);
                        }
                        let lag = between(&mut self.rng, 0, 900);
                        ack_at = ack_at.or_else(|| Some(Instant::now() + lag));
                    }
                    Came::Closed(code) => return self.closed(code),
                    Came::Lost => return Ok(End::Lost),
                },
                () = tokio::time::sleep_until(tick) => {
                    if !self.world.calm.get() && self.rng.u16(..120) == 0 {
                        self.world.count("client drops its connection");
                        return Ok(End::Lost);
                    }
                    let goes_on = if ack_at.is_some_and(|at| at <= Instant::now()) {
                        ack_at = None;
                        self.ack(wire).await
                    } else {
                        say_at = Instant::now() + between(&mut self.rng, 1, self.pause_ms);
                        self.speak(wire).await
                    };
                    if !goes_on {
                        return Ok(End::Lost);
                    }
                }
            }
        }
    }

    /// A close by the server says that another connection took over, or that nothing was heard.
    fn closed(&self, code: u16) -> Verdict<End> {
        self.world.count(&format!("closed with {code}"));
        match code {
            1001 | 1005 | 1008 | 1011 | 4409 => Ok(End::Lost),
            _ => Err(format!("closed with {code}")),
        }
    }

    fn acknowledged(&mut self, seq: u64) {
        self.acked = self.acked.max(seq);
        self.entered(|owed| owed.acked = owed.acked.max(seq));
    }

    /// Changes what the judges know of the session.
    fn entered(&self, change: impl FnOnce(&mut Owed)) {
        if let Some((session, ..)) = &self.session {
            change(self.world.book.borrow_mut().sessions.entry(session.clone()).or_default());
        }
    }

    async fn ack(&mut self, wire: &mut Wire) -> bool {
        let Some((session, ..)) = self.session.clone() else { return true };
        let here = self.next_here - 1;
        if here <= self.acked {
            return true;
        }
        let seq = if self.rng.bool() { here } else { self.rng.u64(self.acked + 1..=here) };
        self.acknowledged(seq);
        self.say(wire, &json!({"type": "ack", "session_id": session, "seq": seq})).await
    }

    async fn speak(&mut self, wire: &mut Wire) -> bool {
        let Some((session, ..)) = self.session.clone() else { return true };
        if self.utterances.iter().all(|said| said.ended) {
            if self.acked < self.told() {
                return self.ack(wire).await;
            }
            if self.bye_on == self.connection {
                return true;
            }
            (self.closing, self.bye_on) = (true, self.connection);
            self.entered(|owed| owed.closing = true);
            let bye = json!({"type": "session_close", "session_id": session, "reason": "done"});
            return self.say(wire, &bye).await;
        }
        let Some(index) = self.choose() else { return true };
        if self.utterances[index].on.is_some() {
            self.world.count("said again");
        }
        self.utterances[index].on = Some(self.connection);
        let audio = base64_simd::STANDARD.encode_to_string(sound(self.voice, index as u64));
        let utterance = json!({"type": "utterance", "session_id": session,
            "utterance_index": index, "manual_cut": true, "src_lang": "zh", "tgt_lang": "en",
            "audio": audio, "audio_format": "pcm16", "sample_rate": 16_000,
            "idempotency_key": format!("{}-{index}", self.voice)});
        self.say(wire, &utterance).await
    }

    /// The first utterance that was not said on this connection and not accepted; now and then one
    /// that was accepted.
    fn choose(&mut self) -> Option<usize> {
        let again = self.rng.u8(..12) == 0;
        let connection = self.connection;
        let open = |said: &Said| !said.ended && said.on != Some(connection);
        self.utterances.iter().position(|said| open(said) && (again || said.job.is_none()))
    }

    /// True when the session is over.
    fn hear(&mut self, message: &Value) -> Verdict<bool> {
        match message["type"].as_str() {
            Some("translation_result" | "missing_result") => self.word(message)?,
            Some("utterance_accepted") => self.accepted(message)?,
            Some("session_close_ack") => return Ok(self.closing),
            Some("error") => return Err(format!("is told {message}")),
            _ => {}
        }
        Ok(false)
    }

    fn accepted(&mut self, message: &Value) -> Verdict<()> {
        let job = message["job_id"].as_str().unwrap_or_default();
        let index = message["utterance_index"].as_u64().unwrap_or(u64::MAX);
        let Some(said) = self.utterances.get_mut(index as usize) else {
            return Err(format!("never said: {message}"));
        };
        match &said.job {
            Some(known) if known != job => return Err(format!("a second job: {message}")),
            Some(_) => self.world.count("accepted again"),
            None => self.world.count("accepted"),
        }
        said.job = Some(job.to_owned());
        self.world.book.borrow_mut().accepted.insert(job.to_owned());
        Ok(())
    }

    /// A last word. The announcement of a gap is none, and has no number.
    fn word(&mut self, message: &Value) -> Verdict<()> {
        let odd = |why: &str| Err(format!("{why}: {message}"));
        let reason = message["reason"].as_str().unwrap_or_default();
        let index = message["utterance_index"].as_u64().unwrap_or(u64::MAX);
        let late = message["late"] == true;
        let said = match message["type"].as_str() {
            Some("missing_result") => reason.to_owned(),
            _ => message["text_asr"].as_str().unwrap_or_default().to_owned(),
        };
        let Some(utterance) = self.utterances.get_mut(index as usize) else {
            return odd("never said");
        };
        let word = Word { index, late, said };
        let epoch = self.session.as_ref().map(|session| session.1);
        let seq = match (message["epoch"].as_u64(), message["seq"].as_u64()) {
            (None, None) if reason == "gap_timeout" => return Ok(()),
            (None, None) if reason == "overloaded" && utterance.job.is_none() => {
                self.world.count("refused");
                utterance.ended = true;
                return Ok(());
            }
            (of, Some(seq)) if of == epoch => seq,
            _ => return odd("epoch or seq is not right"),
        };
        if seq != self.next_here {
            return odd(&format!("number {seq}, awaited {}", self.next_here));
        }
        self.next_here += 1;
        if let Some(before) = self.words.get(seq as usize - 1) {
            self.world.count("repeated");
            return if *before == word { Ok(()) } else { odd(&format!("it was {before:?}")) };
        }
        if std::mem::replace(&mut utterance.ended, true) {
            return odd("a second last word");
        }
        if message["type"] == "translation_result" {
            let job = message["job_id"].as_str().unwrap_or_default();
            if utterance.job.as_ref().is_some_and(|accepted| accepted != job) {
                return odd("another job was accepted");
            }
            if word.said != format!("{} {index}", self.voice) {
                return odd("the answer to something else");
            }
            self.world.told_of_end(&self.name, job);
        } else if let Some(job) = &utterance.job {
            self.world.told_of_end(&self.name, job);
        }
        if !late && self.highest >= Some(index) {
            return odd(&format!("out of order, after {:?}", self.highest));
        }
        self.highest = if late { self.highest } else { Some(index) };
        self.world.count(if late { "late" } else { "told" });
        self.words.push(word);
        self.entered(|owed| owed.told = seq);
        Ok(())
    }
}

/// The first message of a session.
pub fn init(extensions: &[&str]) -> Value {
    json!({"type": "session_init", "client_version": "t", "platform": "cli", "src_lang": "zh",
        "tgt_lang": "en", "audio_format": "pcm16", "sample_rate": 16_000,
        "extensions": extensions})
}
