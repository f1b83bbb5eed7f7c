//! What comes back: news of jobs, last words in order, and their way to the client.

use bytes::Bytes;

use crate::protocol::node::JobResult;
use crate::protocol::session::{Event, NetworkTimings, TranslationResult, UiEvent, with_fields};
use crate::protocol::{ErrorCode, JobId, SessionId};
use crate::telemetry::Now;

use super::audience::Word;
use super::delivery::Acked;
use super::sequencer::Release;
use super::{Answer, Effect, Effects, News, Refused, Session};

/// A last word on its way to the disk, or something said in between, which keeps its place.
#[derive(Debug)]
pub(super) struct Pending {
    index: u64,
    /// None of what is not kept.
    job: Option<JobId>,
    /// The utterance, if it was refused: once that is said, its speech is not awaited any more.
    refused: Option<u64>,
    frame: Bytes,
    /// It was sent before it was on disk.
    told: bool,
}

/// Something said between last words, all of which before it are on disk, that waits for them to
/// be sent.
#[derive(Debug)]
pub(super) struct Aside {
    /// Number of the last result before it.
    after: u64,
    frame: Bytes,
    /// The utterance, if it was refused.
    refused: Option<u64>,
}

/// A last word that was sent before it was on disk: its number and its flush come in either order.
#[derive(Debug)]
pub(super) struct Told {
    job: JobId,
    seq: Option<u64>,
    flushed: bool,
}

impl Session {
    pub(super) fn news(&mut self, news: News, now: Now, effects: &mut Effects) {
        match news {
            News::Dispatched(index, job) => {
                self.ui(UiEvent::Dispatched, index, Some(job), None, None, effects);
            }
            News::Accepted(index, job) => {
                self.ui(UiEvent::NodeAccepted, index, Some(job), None, None, effects);
            }
            News::Partial { index, job, text, is_final } => {
                let event = Event::AsrPartial {
                    session_id: self.id,
                    utterance_index: index,
                    job_id: job,
                    text,
                    is_final,
                    trace_id: self.trace(index).to_owned(),
                };
                effects.push(Effect::Progress(job, event.encode()));
                self.ui(UiEvent::AsrPartial, index, Some(job), None, None, effects);
            }
            News::Settled { index, job, answer, others: Some(others), .. }
                if !others.audience.primary =>
            {
                self.settled_for_others((index, job), &answer, &others, now, effects);
            }
            News::Settled { index, job, answer, elapsed_ms, network, others } => {
                if self.open.get(&index) == Some(&job) {
                    self.open.remove(&index);
                    self.shared.remove(&index);
                    self.kept.remove(&job);
                    let mut heard = Vec::new();
                    if let Some(others) = &others {
                        heard = self.told_others((index, job), &answer, others, now, effects);
                    }
                    let wanted = others.is_none_or(|others| others.audience.wanted);
                    let timing = (elapsed_ms, network);
                    let place = (index, wanted);
                    let frame = Some(self.last_word(place, job, answer, timing, now, effects));
                    self.traces.remove(&index);
                    let word = Word { job, frame, heard };
                    self.sequencer.settle(index, word, now.us, &mut self.releases);
                    self.release(now, effects);
                }
            }
            News::Heard { job, frame, seq } => self.hear(job, &frame, seq, effects),
            News::Kept(index, job) => {
                self.stream.kept(index);
                self.tell_chunks(effects);
                if self.open.get(&index) == Some(&job) {
                    self.kept.insert(job);
                    self.tell_accepted(index, job, effects);
                }
            }
            News::Durable { job, seq } => self.durable(job, seq, effects),
        }
    }

    /// The last word on the job is on disk, under this number if it is owed at all.
    fn durable(&mut self, job: JobId, seq: Option<u64>, effects: &mut Effects) {
        let Some(at) = self.pending.iter().position(|p| p.job == Some(job)) else { return };
        let Some(Pending { index, frame, told, .. }) = self.pending.remove(at) else { return };
        self.stream.kept(index);
        self.tell_chunks(effects);
        match seq {
            Some(seq) => {
                if self.delivery.recorded(seq, frame.len(), told) {
                    effects.push(Effect::Deliver { frame: self.numbered(&frame, seq), job, seq });
                }
                if let Some(mark) = self.told.iter_mut().find(|t| t.job == job) {
                    mark.seq = Some(seq);
                }
                self.settle_told();
                let (frames, bytes) = (self.config.owed_frames_max, self.config.owed_bytes_max);
                if let Some(through) = self.delivery.overflow(frames, bytes) {
                    effects.push(Effect::Forfeit(through));
                }
            }
            None if !told => effects.push(Effect::Send(frame, Some(job))),
            None => self.told.retain(|t| t.job != job),
        }
        self.say_pending(effects);
    }

    /// The frame as the client is to get it: numbered, if it counts.
    pub(super) fn numbered(&self, frame: &Bytes, seq: u64) -> Bytes {
        match self.profile.resume {
            true => with_fields(frame, &format!("\"epoch\":{},\"seq\":{seq}", self.epoch)),
            false => frame.clone(),
        }
    }

    /// The utterance was taken after all: that it was refused is not said any more.
    pub(super) fn void_refusal(&mut self, index: u64) {
        self.pending.retain(|said| said.refused != Some(index));
        self.asides.retain(|said| said.refused != Some(index));
        self.unproven.retain(|(_, said)| said.refused != Some(index));
    }

    /// Says what waited for last words before it to be on disk.
    fn say_pending(&mut self, effects: &mut Effects) {
        while self.pending.front().is_some_and(|p| p.job.is_none()) {
            if let Some(Pending { frame, refused, .. }) = self.pending.pop_front() {
                let after = self.delivery.next() - 1;
                self.asides.push_back(Aside { after, frame, refused });
            }
        }
        self.say_asides(effects);
    }

    /// Says what waited for the results before it to be sent, and for a client that is away and may
    /// come back.
    pub(super) fn say_asides(&mut self, effects: &mut Effects) {
        match self.is_attached() {
            true => self.say_asides_behind(self.delivery.sent(), effects),
            false if self.profile.resume => {}
            false => self.say_asides_behind(u64::MAX, effects),
        }
    }

    /// Says what waited for results up to this number.
    fn say_asides_behind(&mut self, sent: u64, effects: &mut Effects) {
        while self.asides.front().is_some_and(|said| said.after <= sent) {
            let Some(said) = self.asides.pop_front() else { return };
            match said.refused {
                // It is nowhere but here: until the client has heard it, it keeps the speech.
                Some(_) if self.says_again() => {
                    self.proof += 1;
                    effects.push(Effect::Prove(said.frame.clone(), self.proof));
                    self.unproven.push_back((self.proof, said));
                }
                Some(index) => {
                    effects.push(Effect::Send(said.frame, None));
                    self.stream.refused(index);
                }
                None => effects.push(Effect::Send(said.frame, None)),
            }
        }
    }

    /// The client has heard the refusals up to this proof: their speech is not awaited any more.
    pub(super) fn proven(&mut self, proof: u64, effects: &mut Effects) {
        while self.unproven.front().is_some_and(|(number, _)| *number <= proof) {
            if let Some((_, Aside { refused: Some(index), .. })) = self.unproven.pop_front() {
                self.stream.refused(index);
            }
        }
        self.tell_chunks(effects);
    }

    /// The connection is not the one on which they were said any more. What was behind them may
    /// have been heard before.
    pub(super) fn say_again_what_is_unproven(&mut self) {
        for (_, mut said) in std::mem::take(&mut self.unproven).into_iter().rev() {
            said.frame = late(&said.frame);
            self.asides.push_front(said);
        }
    }

    /// The socket took the last word on a job, and everything before it.
    pub fn flushed(&mut self, job: JobId, seq: Option<u64>) {
        match seq {
            Some(seq) => self.delivery.flushed(seq),
            None => {
                if let Some(mark) = self.told.iter_mut().find(|t| t.job == job) {
                    mark.flushed = true;
                }
                self.settle_told();
            }
        }
    }

    fn settle_told(&mut self) {
        while let Some(Told { seq: Some(seq), flushed: true, .. }) = self.told.front() {
            self.delivery.flushed(*seq);
            self.told.pop_front();
        }
    }

    /// Frames that were read back, by number and job; `after` as it was asked for.
    pub(super) fn replayed(
        &mut self,
        after: u64,
        frames: Vec<(u64, JobId, Bytes)>,
        effects: &mut Effects,
    ) {
        let seqs: Vec<u64> = frames.iter().map(|(seq, ..)| *seq).collect();
        let replay = self.delivery.replay(after, &seqs);
        for seq in &replay.lost {
            let text = format!("result {seq} was damaged on disk");
            self.error(ErrorCode::StorageCorrupt, &text, effects);
        }
        for (seq, job, frame) in frames {
            if replay.send.contains(&seq) {
                self.say_asides_behind(seq - 1, effects);
                effects.push(Effect::Deliver { frame: self.numbered(&frame, seq), job, seq });
            }
        }
        self.say_asides(effects);
    }

    /// The client says what it has processed.
    pub(super) fn ack_through(&mut self, seq: u64, effects: &mut Effects) {
        let acked = self.delivery.acked(seq);
        if acked == Acked::Impossible {
            let text = format!("ack of result {seq}, which was never sent");
            self.error(ErrorCode::InvalidMessage, &text, effects);
        }
        self.acknowledged(acked, effects);
    }

    pub(super) fn acknowledged(&mut self, acked: Acked, effects: &mut Effects) {
        if let Acked::Through(through) = acked {
            effects.push(Effect::Acknowledged(through));
        }
    }

    pub(super) fn tell_accepted(&mut self, index: u64, job: JobId, effects: &mut Effects) {
        if self.profile.accepted {
            let (session_id, utterance_index, job_id) = (self.id, index, job);
            self.send(&Event::UtteranceAccepted { session_id, utterance_index, job_id }, effects);
        }
    }

    /// Tells a client that numbers its chunks which it need not keep any longer.
    pub(super) fn tell_chunks(&mut self, effects: &mut Effects) {
        if let Some(through) = self.stream.told() {
            self.send(&Event::AudioAck { session_id: self.id, through }, effects);
        }
    }

    /// The frame that ends an utterance, after the events that announce it. If the translation is
    /// into a language that only others `wanted`, the speaker is told what was understood.
    fn last_word(
        &mut self,
        (index, wanted): (u64, bool),
        job: JobId,
        answer: Answer,
        (elapsed_ms, network): (u64, NetworkTimings),
        now: Now,
        effects: &mut Effects,
    ) -> Bytes {
        let elapsed = Some(elapsed_ms);
        match answer {
            Answer::Result(result) => {
                if !result.text_asr.trim().is_empty() {
                    self.ui(UiEvent::AsrFinal, index, Some(job), None, elapsed, effects);
                }
                if !result.text_translated.trim().is_empty() {
                    self.ui(UiEvent::NmtDone, index, Some(job), None, elapsed, effects);
                }
                match wanted {
                    true => self.translation(index, job, &result, network, now),
                    false => {
                        let understood = JobResult {
                            text_translated: String::new(),
                            tts_audio: Bytes::new(),
                            ..*result
                        };
                        self.translation(index, job, &understood, network, now)
                    }
                }
            }
            Answer::Nothing(reason) => self.missing(index, reason, now),
            Answer::Failed { code, known, message, reason } => {
                self.ui(UiEvent::Error, index, Some(job), Some(&code), elapsed, effects);
                if self.profile.typed_errors {
                    let event = Event::Error {
                        retryable: Some(known.is_none_or(ErrorCode::retryable)),
                        code,
                        message,
                        retry_after_ms: None,
                        phase: Some("job"),
                        trace_id: Some(self.profile.trace_id.clone()),
                        job_id: Some(job),
                    };
                    self.send(&event, effects);
                }
                self.missing(index, reason, now)
            }
        }
    }

    fn translation(
        &mut self,
        index: u64,
        job: JobId,
        result: &JobResult,
        network: NetworkTimings,
        now: Now,
    ) -> Bytes {
        let has_text = !result.text_asr.trim().is_empty();
        let (group_id, part_index) = has_text.then(|| self.groups.place(now)).unzip();
        let trace_id = self.traces.get(&index).unwrap_or(&self.profile.trace_id);
        let frame = TranslationResult {
            group_id,
            part_index,
            network_timings: (network != NetworkTimings::default()).then_some(network),
            ..TranslationResult::plain(job, (self.id, index), trace_id, result, now.unix_ms)
        };
        frame.encode(&result.tts_audio)
    }

    pub(super) fn missing(&self, index: u64, reason: &'static str, now: Now) -> Bytes {
        let event = Event::MissingResult {
            session_id: self.id,
            utterance_index: index,
            reason,
            created_at_ms: now.unix_ms,
            trace_id: self.trace(index).to_owned(),
        };
        event.encode()
    }

    /// Has what the sequencer lets go kept, and told when that is done; or told at once.
    pub(super) fn release(&mut self, now: Now, effects: &mut Effects) {
        self.sequencer.release(now.us, &mut self.releases);
        for release in std::mem::take(&mut self.releases) {
            match release {
                Release::InOrder(index, word) => self.keep(index, word, effects),
                Release::Late(index, word) => self.keep(index, word.late(), effects),
                Release::Gap(index) => {
                    let frame = self.missing(index, "gap_timeout", now);
                    self.say(frame, None, effects);
                }
            }
        }
    }

    /// What ends an utterance goes to the disk first, and then to the client.
    fn keep(&mut self, index: u64, word: Word, effects: &mut Effects) {
        let Word { job, frame: Some(frame), heard } = word else { return };
        if job == JobId(0) {
            // Refused, and may be said again: nothing is kept.
            return self.say(frame, Some(index), effects);
        }
        let told = self.tells_at_once;
        if told {
            effects.push(Effect::Send(frame.clone(), Some(job)));
            self.told.push_back(Told { job, seq: None, flushed: false });
        }
        self.pending.push_back(Pending {
            index,
            job: Some(job),
            refused: None,
            frame: frame.clone(),
            told,
        });
        effects.push(match self.refusals.remove(&job) {
            Some(refused) => Effect::Refuse(Box::new(Refused { frame, ..refused })),
            None => Effect::Record { index, job, frame: Some(frame), heard },
        });
    }

    /// Says something that is not kept, behind the last words before it.
    fn say(&mut self, frame: Bytes, refused: Option<u64>, effects: &mut Effects) {
        self.pending.push_back(Pending { index: 0, job: None, refused, frame, told: false });
        self.say_pending(effects);
    }
}

/// The frame that ends the utterance at that place, for a session that is not there any more. What
/// is no result is told only to those who may come back for it.
pub fn unheard(
    answer: &Answer,
    job: JobId,
    place: (SessionId, u64),
    trace_id: &str,
    comes_back: bool,
    unix_ms: u64,
) -> Option<Bytes> {
    let (session_id, utterance_index) = place;
    let reason = match answer {
        Answer::Result(result) => {
            let frame = TranslationResult::plain(job, place, trace_id, result, unix_ms);
            return Some(frame.encode(&result.tts_audio));
        }
        Answer::Nothing(reason) | Answer::Failed { reason, .. } => *reason,
    };
    let trace_id = trace_id.to_owned();
    let event = Event::MissingResult {
        session_id,
        utterance_index,
        reason,
        created_at_ms: unix_ms,
        trace_id,
    };
    comes_back.then(|| event.encode())
}

/// The frame, marked as one that comes after what it should have come before.
pub(super) fn late(frame: &Bytes) -> Bytes {
    const MARK: &str = "\"late\":true";
    match frame.strip_suffix(b"}").is_some_and(|fields| fields.ends_with(MARK.as_bytes())) {
        true => frame.clone(),
        false => with_fields(frame, MARK),
    }
}
