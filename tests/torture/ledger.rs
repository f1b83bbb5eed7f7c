//! The oracle of one session: what it was promised and what it was told, from its socket alone.

use std::collections::BTreeMap;

use serde_json::Value;

use super::audio::Heard;
use super::world::{Broken, World, count};

/// What went against a promise, and which.
pub type Verdict<T> = Result<T, (Broken, String)>;

pub fn broken<T>(what: Broken, how: impl Into<String>) -> Verdict<T> {
    Err((what, how.into()))
}

/// A last word.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Word {
    pub index: u64,
    /// Of a result; failures name no job.
    pub job: Option<String>,
    pub late: bool,
    pub said: Said,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// A node heard these packets.
    Heard(Heard, u64),
    /// A typed failure.
    Missing(String),
}

pub struct Ledger {
    pub voice: u32,
    pub session: String,
    pub epoch: u64,
    /// Utterances promised to end, with their jobs.
    accepted: BTreeMap<u64, String>,
    /// All last words; the one with number n is at n - 1.
    words: Vec<Word>,
    /// Which number ended an utterance; none for one that was refused, which has no number.
    ended: BTreeMap<u64, Option<u64>>,
    /// Number of the next last word on the connection in hand.
    next_here: u64,
    /// Highest utterance ended in its turn.
    highest: Option<u64>,
}

impl Ledger {
    pub fn new(voice: u32, session: String, epoch: u64) -> Self {
        Self {
            voice,
            session,
            epoch,
            accepted: BTreeMap::new(),
            words: Vec::new(),
            ended: BTreeMap::new(),
            next_here: 1,
            highest: None,
        }
    }

    /// Last words had so far, without a hole.
    pub fn told(&self) -> u64 {
        self.words.len() as u64
    }

    /// How far the connection in hand has come: what was asked for again is not had until it came.
    pub fn told_here(&self) -> u64 {
        self.next_here - 1
    }

    pub fn is_promised_nothing(&self) -> bool {
        self.accepted.is_empty() && self.words.is_empty()
    }

    pub fn is_accepted(&self, index: u64) -> bool {
        self.accepted.contains_key(&index)
    }

    pub fn has_ended(&self, index: u64) -> bool {
        self.ended.contains_key(&index)
    }

    pub fn owed(&self) -> Vec<u64> {
        self.accepted.keys().copied().filter(|index| !self.has_ended(*index)).collect()
    }

    /// Utterances before the last one that ended that did not, though nobody said they had to.
    pub fn unended(&self) -> Vec<u64> {
        let end = self.ended.keys().last().map_or(0, |last| last + 1);
        (0..end).filter(|index| !self.has_ended(*index)).collect()
    }

    /// Results in the order of their utterances; none where there is a failure, or nothing yet.
    pub fn heard(&self) -> Vec<Option<Heard>> {
        let end = self.ended.keys().last().map_or(0, |last| last + 1);
        let of = |index| match &self.word_of(index)?.said {
            Said::Heard(heard, _) => Some(*heard),
            Said::Missing(_) => None,
        };
        (0..end).map(of).collect()
    }

    fn word_of(&self, index: u64) -> Option<&Word> {
        let seq = (*self.ended.get(&index)?)?;
        self.words.get(usize::try_from(seq).ok()?.checked_sub(1)?)
    }

    /// A new connection that goes on after that number.
    pub fn resumed(&mut self, last_seq: u64) {
        self.next_here = last_seq + 1;
    }

    pub fn accept(&mut self, index: u64, job: &str, world: &World) -> Verdict<()> {
        let known = self.accepted.entry(index).or_insert_with(|| {
            count(&world.tally.accepted);
            job.to_owned()
        });
        let known = known.clone();
        let known = self.word_of(index).and_then(|word| word.job.clone()).unwrap_or(known);
        if known != job {
            return broken(Broken::Twice, format!("#{index} accepted as {known} and as {job}"));
        }
        match self.ended.get(&index) {
            Some(None) => broken(Broken::Rule, format!("#{index} accepted after it was refused")),
            _ => Ok(()),
        }
    }

    /// Takes a frame with a last word. The announcement of a gap is none, and has no number.
    pub fn word(&mut self, frame: &Value, world: &World) -> Verdict<()> {
        let word = read(frame)?;
        let seq = match (frame["epoch"].as_u64(), frame["seq"].as_u64()) {
            (Some(epoch), Some(seq)) if epoch == self.epoch => seq,
            (None, None) => return self.unnumbered(&word, frame, world),
            _ => return broken(Broken::Rule, format!("epoch or seq is not right: {frame}")),
        };
        if seq != self.next_here {
            let what = if seq > self.next_here { Broken::Gap } else { Broken::Twice };
            return broken(what, format!("number {seq}, awaited {}: {frame}", self.next_here));
        }
        self.next_here += 1;
        if let Some(before) = self.words.get(seq as usize - 1) {
            count(&world.tally.repeats);
            return match *before == word {
                true => Ok(()),
                false => broken(Broken::Twice, format!("number {seq} was {before:?}: {frame}")),
            };
        }
        self.take(seq, word, world).or_else(|(what, how)| broken(what, format!("{how}: {frame}")))
    }

    /// What is not kept is not numbered: that there is a gap, and that an utterance was refused,
    /// which may only be before it was accepted.
    fn unnumbered(&mut self, word: &Word, frame: &Value, world: &World) -> Verdict<()> {
        let Said::Missing(reason) = &word.said else {
            return broken(Broken::Rule, format!("a result without a number: {frame}"));
        };
        world.reason(format!("unnumbered {reason}"));
        if reason == "gap_timeout" {
            return Ok(());
        }
        if self.is_accepted(word.index) {
            return broken(Broken::Lost, format!("refused after it was accepted: {frame}"));
        }
        count(&world.tally.refused);
        if reason == "shutting_down" {
            // To be said again to the next life of the server.
            return Ok(());
        }
        match self.ended.insert(word.index, None) {
            None | Some(None) => Ok(()),
            Some(_) => broken(Broken::Twice, format!("refused after it ended: {frame}")),
        }
    }

    fn take(&mut self, seq: u64, word: Word, world: &World) -> Verdict<()> {
        let index = word.index;
        self.words.push(word.clone());
        if self.ended.insert(index, Some(seq)).is_some() {
            return broken(Broken::Twice, format!("a second last word for #{index}"));
        }
        if let (Some(job), Some(accepted)) = (&word.job, self.accepted.get(&index))
            && job != accepted
        {
            return broken(Broken::Twice, format!("#{index} was accepted as {accepted}"));
        }
        match word.late {
            true => count(&world.tally.late),
            false if self.highest >= Some(index) => {
                return broken(Broken::Order, format!("#{index} after {:?}", self.highest));
            }
            false => self.highest = Some(index),
        }
        match &word.said {
            Said::Heard(heard, attempt) => {
                count(&world.tally.results);
                if heard.voice != self.voice {
                    return broken(Broken::Audio, format!("voice {} heard", heard.voice));
                }
                if !world.was_assigned(word.job.as_deref().unwrap_or_default(), *attempt) {
                    return broken(Broken::Rule, "an attempt no node was given");
                }
            }
            Said::Missing(reason) => {
                count(&world.tally.failed);
                world.reason(reason);
            }
        }
        Ok(())
    }
}

/// What a node says of a job: all that the oracle needs to know.
pub fn text(session: &str, index: u64, attempt: u64, heard: Heard) -> String {
    let Heard { voice, first, end } = heard;
    format!("{session} {index} {attempt} {voice} {first} {end}")
}

fn read(frame: &Value) -> Verdict<Word> {
    let odd = || (Broken::Rule, format!("cannot be read: {frame}"));
    let index = frame["utterance_index"].as_u64().ok_or_else(odd)?;
    let late = frame["late"] == true;
    if frame["type"] == "missing_result" {
        let reason = frame["reason"].as_str().ok_or_else(odd)?.to_owned();
        return Ok(Word { index, job: None, late, said: Said::Missing(reason) });
    }
    let text = frame["text_asr"].as_str().ok_or_else(odd)?;
    let mut words = text.split(' ');
    let session = words.next();
    let numbers: Vec<u64> = words.filter_map(|word| word.parse().ok()).collect();
    let [of, attempt, voice, first, end] = numbers[..] else { return Err(odd()) };
    if session != frame["session_id"].as_str() || of != index {
        return broken(Broken::Audio, format!("the answer to another utterance: {frame}"));
    }
    let narrow = |n: u64| u32::try_from(n).map_err(|_| odd());
    let heard = Heard { voice: narrow(voice)?, first: narrow(first)?, end: narrow(end)? };
    let job = frame["job_id"].as_str().map(str::to_owned);
    Ok(Word { index, job, late, said: Said::Heard(heard, attempt) })
}
