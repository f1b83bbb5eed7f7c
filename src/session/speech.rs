//! What is said: from messages of the client to utterances submitted.

use crate::protocol::ErrorCode;
use crate::protocol::audio;
use crate::protocol::job::{Audio, Cut, JobSpec};
use crate::protocol::session::{AudioChunk, Event, UiEvent, Utterance};
use crate::protocol::trace::Traced;
use crate::protocol::{JobId, TurnId};
use crate::telemetry::Now;

use super::audience::Word;
use super::profile::boxed;
use super::segmenter::{Out, Piece};
use super::{ClientKey, Cutting, Effect, Effects, Held, Refusal, Refused, Session};
use super::{HELD_BYTES_MAX, INDEX_MAX, PAUSE_APART_US};

impl Session {
    pub(super) fn audio_chunk(&mut self, chunk: AudioChunk, now: Now, effects: &mut Effects) {
        if !self.owns(&chunk.session_id, effects) || !self.takes_speech(effects) {
            return;
        }
        if self.comes_again_with_speech() {
            return effects.push(Effect::Dropped("draining", chunk.audio.len()));
        }
        let AudioChunk { seq, mut audio, client_timestamp_ms, is_final, .. } = chunk;
        if self.profile.audio_ack {
            match self.stream.arrive(seq, audio.len()) {
                // It came before: the client did not know.
                None => return,
                Some(had) => drop(audio.split_to(had)),
            }
        }
        if !audio.is_empty() {
            self.turn_until = None;
        } else if is_final && self.turn_until.is_some() {
            self.end_turn(effects);
        }
        let taken = self.segmenter.push(&audio, client_timestamp_ms, now, &mut self.cuts);
        if self.profile.audio_ack {
            self.stream.took(seq, if taken.is_ok() { audio.len() } else { 0 });
        }
        if is_final {
            self.segmenter.end(now, &mut self.cuts);
        }
        self.cut(now, effects);
        if let Err(fault) = taken {
            effects.push(Effect::Dropped("invalid", audio.len()));
            self.error(ErrorCode::InvalidMessage, &fault.to_string(), effects);
        }
    }

    fn takes_speech(&self, effects: &mut Effects) -> bool {
        if self.closing_until.is_some() {
            self.error(ErrorCode::SessionClosed, "The session is closing", effects);
        }
        self.closing_until.is_none()
    }

    /// Turns what the segmenter gave out into submissions.
    pub(super) fn cut(&mut self, now: Now, effects: &mut Effects) {
        for out in std::mem::take(&mut self.cuts) {
            match out {
                Out::Silence { cut, bytes } => {
                    effects.push(Effect::Silence(cut, bytes));
                    self.stream.silent(bytes);
                }
                Out::Trimmed(bytes) => {
                    effects.push(Effect::Dropped("leading_silence", bytes));
                    self.stream.silent(bytes);
                }
                Out::Piece(piece) => {
                    effects.push(Effect::WasCut(piece.cut));
                    let cutting = self.cutting_of(piece);
                    effects.push(Effect::Submit(Box::new(cutting)));
                }
            }
        }
        self.submit_held(effects);
        self.tell_chunks(effects);
        self.release(now, effects);
    }

    fn cutting_of(&mut self, piece: Piece) -> Cutting {
        // A recording that waits for its turn has its place already.
        while self.held.contains_key(&self.next_index) {
            self.next_index += 1;
        }
        let index = self.next_index;
        self.next_index += 1;
        match self.stream_indices.last_mut() {
            Some(range) if range.end == index => range.end += 1,
            _ => self.stream_indices.push(index..index + 1),
        }
        let goes_on = self.turn.is_some();
        let turn = self.turn.take().unwrap_or_else(|| TurnId::fresh(fastrand::u128(..)));
        if !piece.cut.closes_turn() {
            self.turn = Some(turn);
        }
        let padding_ms = match piece.cut {
            Cut::Manual => self.padding_manual_ms,
            Cut::MaxBytes => 0,
            _ => self.padding_auto_ms,
        };
        let spec = JobSpec {
            audio_format: piece.format.as_str().into(),
            sample_rate: self.profile.sample_rate,
            audio_ms: piece.audio_ms,
            padding_ms: Some(padding_ms),
            cut: piece.cut,
            client_sent_ms: piece.client_sent_ms,
            ..self.spec(index, turn)
        };
        let chunks = self.stream.cut(index, piece.audio.len());
        let (audio, received_us) = (Audio::Raw(piece.audio), piece.received_us);
        let (spec, for_others) = self.jobs_of(spec, goes_on);
        Cutting { spec, for_others, audio, received_us, chunks, key: None }
    }

    /// A job description with the session's own values.
    fn spec(&self, utterance_index: u64, turn: TurnId) -> JobSpec {
        let p = &self.profile;
        JobSpec {
            session: self.id,
            utterance_index,
            turn,
            tenant: boxed(p.tenant.as_ref()),
            src: p.src,
            tgt: p.tgt,
            dialect: boxed(p.dialect.as_ref()),
            mode: boxed(p.mode.as_ref()),
            lang_a: p.lang_a,
            lang_b: p.lang_b,
            auto_langs: p.auto_langs.clone(),
            features: p.features,
            pipeline: p.pipeline,
            audio_format: "".into(),
            sample_rate: p.sample_rate,
            audio_ms: 0,
            trace_id: p.trace_id.as_str().into(),
            traced: Traced(p.traceparent),
            padding_ms: None,
            cut: Cut::Whole,
            streaming_asr: p.streaming_asr,
            partial_interval_ms: p.partial_interval_ms,
            client_sent_ms: None,
            paired: p.paired.clone(),
            audience: None,
        }
    }

    pub(super) fn utterance(&mut self, utterance: Utterance, now: Now, effects: &mut Effects) {
        let index = utterance.head.utterance_index;
        if !self.owns(&utterance.head.session_id, effects) || !self.takes_speech(effects) {
            return;
        }
        if index > INDEX_MAX || self.stream_indices.iter().any(|r| r.contains(&index)) {
            let text = format!("utterance_index {index} cannot be used");
            return self.error(ErrorCode::InvalidMessage, &text, effects);
        }
        let held_bytes: usize = self.held.values().map(|h| h.cutting.audio.held_len()).sum();
        let full = self.held.len() >= self.config.jobs_max || held_bytes > HELD_BYTES_MAX;
        if full && index > self.expected && !self.held.contains_key(&index) {
            let text = "Too many utterances wait for the ones before them";
            return self.error(ErrorCode::Overloaded, text, effects);
        }
        let cutting = Box::new(self.cutting_of_whole(utterance, now));
        if index > self.expected {
            self.held.entry(index).or_insert(Held { cutting, since_us: now.us });
            return;
        }
        effects.push(Effect::WasCut(cutting.spec.cut));
        effects.push(Effect::Submit(cutting));
        self.advance(index, effects);
    }

    fn cutting_of_whole(&mut self, utterance: Utterance, now: Now) -> Cutting {
        let Utterance { head, audio } = utterance;
        if let Some(trace) = head.trace_id.clone() {
            self.traces.entry(head.utterance_index).or_insert(trace);
        }
        let own = self.spec(head.utterance_index, TurnId::fresh(fastrand::u128(..)));
        let audio_ms = audio::estimate_ms(&head.audio_format, head.sample_rate, audio.len());
        let spec = JobSpec {
            src: head.src_lang,
            tgt: head.tgt_lang,
            dialect: boxed(head.dialect.as_ref()).or(own.dialect),
            mode: boxed(head.mode.as_ref()).or(own.mode),
            lang_a: head.lang_a.or(own.lang_a),
            lang_b: head.lang_b.or(own.lang_b),
            auto_langs: head.auto_langs.or(own.auto_langs),
            features: head.features.or(own.features),
            pipeline: head.pipeline.unwrap_or(own.pipeline),
            audio_format: head.audio_format.as_str().into(),
            sample_rate: head.sample_rate,
            audio_ms,
            trace_id: head.trace_id.map_or(own.trace_id, |t| t.as_str().into()),
            traced: Traced(head.traceparent.or(own.traced.0)),
            cut: if head.manual_cut { Cut::Manual } else { Cut::Whole },
            ..own
        };
        let key =
            head.idempotency_key.map(|text| ClientKey { text, digest: digest(&audio, &spec) });
        let (spec, for_others) = self.jobs_of_whole(spec);
        let audio = Audio::Base64(audio);
        Cutting { spec, for_others, audio, received_us: now.us, chunks: None, key }
    }

    /// The recording `index` went out: what waited for it follows.
    fn advance(&mut self, index: u64, effects: &mut Effects) {
        self.expected = self.expected.max(index + 1);
        self.submit_held(effects);
    }

    /// Submits the recordings whose turn it is; places that streamed speech took are passed over.
    fn submit_held(&mut self, effects: &mut Effects) {
        loop {
            let streamed = self.stream_indices.iter().find(|r| r.contains(&self.expected));
            if let Some(range) = streamed {
                self.expected = range.end;
            } else if let Some(held) = self.held.remove(&self.expected) {
                effects.push(Effect::WasCut(held.cutting.spec.cut));
                effects.push(Effect::Submit(held.cutting));
                self.expected += 1;
            } else {
                break;
            }
        }
        self.next_index = self.next_index.max(self.expected);
    }

    /// What is still missing before the oldest held recording will not be waited for any longer.
    pub(super) fn skip_to_held(&mut self, effects: &mut Effects) {
        if let Some(index) = self.held.keys().next().copied() {
            self.expected = index;
            if let Some(held) = self.held.remove(&index) {
                effects.push(Effect::WasCut(held.cutting.spec.cut));
                effects.push(Effect::Submit(held.cutting));
                self.advance(index, effects);
            }
        }
    }

    /// The submission of `index` made a job.
    pub fn submitted(&mut self, index: u64, job: JobId) {
        self.void_refusal(index);
        self.sequencer.open(index);
        self.open.insert(index, job);
    }

    /// The utterance, whose last word was told, is done again: its result will come late.
    pub fn reopened(&mut self, index: u64, job: JobId) {
        self.sequencer.expect_late(index);
        self.open.insert(index, job);
    }

    /// The submission of `index` found the job that exists: nothing new is owed. If that job is on
    /// disk, the client may not have heard so.
    pub fn repeated(&mut self, index: u64, job: JobId, effects: &mut Effects) {
        if !self.open.contains_key(&index) {
            self.traces.remove(&index);
        }
        if self.kept.contains(&job) {
            self.tell_accepted(index, job, effects);
        }
    }

    /// The submission of `index` named a key that was used for something else.
    pub fn conflicting(&mut self, index: u64, effects: &mut Effects) {
        self.traces.remove(&index);
        let text = "The idempotency key was used for another utterance";
        self.error(ErrorCode::IdempotencyConflict, text, effects);
    }

    /// The submission of `index` was refused: the client is told, in order, and asked to pause if
    /// it is speaking. Of speech that came in numbered chunks this is a last word like any other,
    /// for the client does not say it again; of the rest nothing is kept.
    pub fn refused(&mut self, index: u64, refusal: Refusal, now: Now, effects: &mut Effects) {
        let going_down = refusal.code == ErrorCode::ShuttingDown;
        let chunks = self.stream.unkept(index).filter(|_| self.says_again());
        if going_down && chunks.is_some() {
            // Its chunks stay unacknowledged: the next server is sent them, and cuts them anew.
            self.traces.remove(&index);
            return;
        }
        self.sequencer.open(index);
        let (code, reason) = (refusal.code.as_str(), refusal.reason());
        self.ui(UiEvent::Error, index, None, Some(code), None, effects);
        if self.profile.typed_errors {
            let event = Event::Error {
                code: code.to_owned(),
                message: refusal.why.clone(),
                retryable: Some(true),
                retry_after_ms: Some(refusal.retry_after_ms),
                phase: Some("submit"),
                trace_id: Some(self.profile.trace_id.clone()),
                job_id: None,
            };
            self.send(&event, effects);
        }
        let frame = self.missing(index, reason, now);
        self.traces.remove(&index);
        self.shared.remove(&index);
        let mut job = JobId(0);
        // A client that does not acknowledge what it has is not owed more.
        if let Some(chunks) = chunks.filter(|_| refusal.stored && !self.owes_acks()) {
            job = JobId::fresh(now.unix_ms, fastrand::u128(..));
            let Refusal { code, why, .. } = refusal;
            let frame = bytes::Bytes::new();
            self.refusals.insert(job, Refused { index, job, code, why, chunks, frame });
        }
        let word = Word { job, frame: Some(frame), heard: Vec::new() };
        self.sequencer.settle(index, word, now.us, &mut self.releases);
        if self.segmenter.next_tick().is_some() {
            self.pause(refusal.retry_after_ms, now, effects);
        }
        self.release(now, effects);
    }

    /// Asks a client that is speaking to pause for so many milliseconds, unless it was asked just
    /// now.
    pub fn pause(&mut self, resume_after_ms: u64, now: Now, effects: &mut Effects) {
        if now.us.saturating_sub(self.paused_us) > PAUSE_APART_US {
            self.paused_us = now.us;
            self.send(&Event::Backpressure { action: "PAUSE", resume_after_ms }, effects);
        }
    }
}

/// What tells one body of an idempotency key from another.
fn digest(audio: &[u8], spec: &JobSpec) -> u32 {
    let langs = format!("{}:{}", spec.src, spec.tgt);
    crc32c::crc32c_append(crc32c::crc32c(audio), langs.as_bytes())
}
