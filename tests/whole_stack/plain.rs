//! A speaker that knows nothing of coming back: it says again in a new session what was not
//! answered in the old one. Nothing it does not know may be sent to it.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::rc::Rc;
use std::time::Duration;

use fastrand::Rng;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::client::{init, sound};
use super::wire::{Came, Wire};
use super::world::{Verdict, World, between};

/// One speaker, over all its sessions.
struct Plain {
    world: Rc<World>,
    rng: Rng,
    name: String,
    voice: u64,
    /// What was not answered yet.
    open: Vec<u64>,
}

/// One session of it.
struct Talk {
    id: String,
    /// What is said in it, by the index it has here.
    numbers: Vec<u64>,
    said: usize,
    /// Last words, and whether they came late.
    ends: BTreeMap<u64, bool>,
    /// The highest index that ended in its turn.
    highest: Option<u64>,
}

/// Speaks until everything was answered.
pub async fn run(world: Rc<World>, mut rng: Rng, voice: u64, count: usize) -> turmoil::Result {
    sleep(between(&mut rng, 0, 2_000)).await;
    let name = format!("plain-{voice}");
    let mut plain = Plain { world, rng, name, voice, open: (0..count as u64).collect() };
    while !plain.open.is_empty() {
        if let Some(mut wire) = Wire::dial("/ws/session").await
            && let Err(how) = plain.session(&mut wire).await
        {
            plain.world.fault(&plain.name, &how);
            break;
        }
        sleep(between(&mut plain.rng, 0, 800)).await;
    }
    plain.world.speaking.set(plain.world.speaking.get() - 1);
    Ok(())
}

impl Plain {
    /// One session, to its end or to the loss of its connection.
    async fn session(&mut self, wire: &mut Wire) -> Verdict<()> {
        if !wire.say(&init(&[])).await {
            return Ok(());
        }
        let Came::Said(ack) = wire.next().await else { return Ok(()) };
        let Some(id) = ack["session_id"].as_str().map(str::to_owned) else {
            return Err(format!("greeted with {ack}"));
        };
        let (numbers, ends) = (self.open.clone(), BTreeMap::new());
        let mut talk = Talk { id, numbers, said: 0, ends, highest: None };
        let mut say_at = Instant::now();
        while talk.ends.len() < talk.numbers.len() {
            tokio::select! {
                biased;
                came = wire.next() => match came {
                    Came::Said(message) => self.hear(&mut talk, &message)?,
                    _ => return Ok(()),
                },
                () = tokio::time::sleep_until(say_at) => {
                    say_at = Instant::now() + between(&mut self.rng, 1, 700);
                    if self.say(&mut talk, wire).await.is_break() {
                        return Ok(());
                    }
                }
            }
        }
        let bye = json!({"type": "session_close", "session_id": talk.id, "reason": "done"});
        wire.say(&bye).await;
        // Its proof that it has what it was sent is the pong, which the socket sends by itself.
        let until = Instant::now() + Duration::from_secs(1);
        while let Ok(Came::Said(_)) = tokio::time::timeout_at(until, wire.next()).await {}
        Ok(())
    }

    /// Says the next utterance, if there is one; breaks when the connection is gone.
    async fn say(&mut self, talk: &mut Talk, wire: &mut Wire) -> ControlFlow<()> {
        if !self.world.calm.get() && self.rng.u8(..60) == 0 {
            return ControlFlow::Break(());
        }
        let Some(number) = talk.numbers.get(talk.said) else { return ControlFlow::Continue(()) };
        let audio = base64_simd::STANDARD.encode_to_string(sound(self.voice, *number));
        let utterance = json!({"type": "utterance", "session_id": talk.id,
            "utterance_index": talk.said, "manual_cut": true, "src_lang": "zh",
            "tgt_lang": "en", "audio": audio, "audio_format": "pcm16",
            "sample_rate": 16_000});
        talk.said += 1;
        self.world.note_message(&self.name, "says", &utterance);
        match wire.say(&utterance).await {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(()),
        }
    }

    fn hear(&mut self, talk: &mut Talk, message: &Value) -> Verdict<()> {
        self.world.note_message(&self.name, "hears", message);
        let odd = |why: &str| Err(format!("{why}: {message}"));
        match message["type"].as_str() {
            Some("translation_result" | "missing_result") => {}
            Some("utterance_accepted" | "audio_ack" | "go_away" | "error") => {
                return odd("never asked for");
            }
            _ => return Ok(()),
        }
        if !message["seq"].is_null() || !message["epoch"].is_null() {
            return odd("a number never asked for");
        }
        if message["reason"] == "gap_timeout" {
            return Ok(());
        }
        let index = message["utterance_index"].as_u64().unwrap_or(u64::MAX);
        let Some(number) = talk.numbers.get(index as usize) else { return odd("never said") };
        if message["type"] == "translation_result" {
            if message["text_asr"] != format!("{} {number}", self.voice) {
                return odd("the answer to something else");
            }
            self.world.told_of_end(&self.name, message["job_id"].as_str().unwrap_or_default());
        }
        let late = message["late"] == true;
        if talk.ends.insert(index, late).is_some() {
            return odd("a second last word");
        }
        if !late && talk.highest >= Some(index) {
            return odd(&format!("out of order, after {:?}", talk.highest));
        }
        talk.highest = if late { talk.highest } else { Some(index) };
        self.open.retain(|open| open != number);
        self.world.count("told plainly");
        Ok(())
    }
}
