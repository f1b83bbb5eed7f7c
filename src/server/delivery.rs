//! What a session has its client told, kept and confirmed: the effects of the core on socket and
//! disk.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tracing::{debug, warn};

use super::perform::{Words, record, tell_rooms, when_kept};
use super::rooms::{present, tell_others};
use super::session::SessionTask;
use super::shared::{Mail, SessionHandle, SessionTag, read_store};
use crate::protocol::{JobId, SessionId};
use crate::session::{Effect, Input, News, Refused, RoomInput};
use crate::store::{Done, Store, TerminalRow, Why, Write};
use crate::telemetry::{Now, Stage};
use crate::transport::{Frame, Outbox};

/// How long a full store lane is waited for before it is tried again.
const STORE_RETRY: Duration = Duration::from_millis(2);
/// How long to wait before owed frames that could not be read are read again.
const READ_RETRY: Duration = Duration::from_secs(1);
/// Bytes waiting for one client beyond which it is told nothing that it can do without.
const REMARK_BYTES_MAX: usize = 1 << 20;

/// What a session has to wait for before anything else of it is performed. Boxed, for it is rare,
/// and a session at rest is not to pay for it.
pub(super) type Wait = Pin<Box<dyn Future<Output = ()> + Send>>;

impl SessionTask {
    /// Performs an effect, or begins to: the rest is to be waited for.
    pub(super) fn perform_one(&mut self, effect: Effect, now: Now) -> Option<Wait> {
        let metrics = &self.shared.metrics;
        match effect {
            Effect::Send(text, None) => self.push(Frame { text, tag: SessionTag::Plain }),
            Effect::Send(text, Some(job)) => self.last_word(text, job, None),
            Effect::Deliver { frame, job, seq } => self.last_word(frame, job, Some(seq)),
            Effect::Remark(text) => drop(self.remark(text)),
            Effect::Progress(job, text) => self.progress(job, text),
            Effect::Replay { after, frames } => self.replay(after, frames),
            Effect::Barrier(seq) => self.ping(seq),
            Effect::Prove(text, number) => {
                self.push(Frame { text, tag: SessionTag::Prove(number) });
            }
            Effect::Acknowledged(through) => self.confirmed(through),
            Effect::Forfeit(through_seq) => self.forfeit(through_seq),
            Effect::Submit(cutting) => self.submit(*cutting, now),
            Effect::Record { index, job, frame, heard } => {
                return self.record(index, job, Words { outbox: frame, heard });
            }
            Effect::Said(said) => tell_rooms(&self.shared, RoomInput::Said(said)),
            Effect::Refuse(refused) => return self.keep_refusal(*refused, now),
            Effect::Cancel(jobs) => self.cancel(jobs, now),
            Effect::EndTurn(turn) => {
                if let Some(open) = &self.open {
                    open.speaker.end_turn(turn);
                    open.lanes.iter().for_each(|(lang, lane)| lane.end_turn(turn.into_lang(*lang)));
                }
            }
            Effect::Silence(cut, bytes) => {
                metrics.silences.with_label_values(&[cut.as_str()]).inc();
                metrics.audio_dropped.with_label_values(&["silence"]).inc_by(bytes as u64);
            }
            Effect::Dropped(why, bytes) => {
                metrics.audio_dropped.with_label_values(&[why]).inc_by(bytes as u64);
            }
            Effect::WasCut(cut) => {
                metrics.cuts.with_label_values(&[cut.as_str()]).inc();
                let earlier =
                    if cut == crate::protocol::job::Cut::Manual { "send" } else { "timeout" };
                metrics.finalized.with_label_values(&[earlier]).inc();
            }
            Effect::Foreign => metrics.foreign.with_label_values(&["session"]).inc(),
            Effect::Detached => metrics.resumes.with_label_values(&["detached"]).inc(),
            Effect::Farewell(text, owed) => self.farewell(text, owed),
            Effect::Ended => self.forget_session(),
        }
        None
    }

    /// Sends what the client must have; one that does not read loses its connection.
    pub(super) fn push(&mut self, frame: Frame<SessionTag>) {
        let Some(line) = &self.line else { return };
        if line.outbox.push(frame).is_err() && !line.outbox.is_closed() {
            warn!(peer = %line.peer, "a client is too slow: closing its connection");
            self.shared.metrics.progress_dropped.with_label_values(&["outbox_full"]).inc();
            line.outbox.request_close(4408, "too slow");
        }
    }

    fn last_word(&mut self, text: Bytes, job: JobId, seq: Option<u64>) {
        let result = text.starts_with(b"{\"type\":\"translation_result\"");
        let kind = if result { "result" } else { "missing" };
        self.shared.metrics.results_out.with_label_values(&[kind]).inc();
        if let Some(line) = &mut self.line {
            line.late.remove(&job);
        }
        self.push(Frame { text, tag: SessionTag::Word(job, seq) });
    }

    /// Sends what the client can do without, if it keeps up; else hands it back.
    fn remark(&mut self, text: Bytes) -> Option<Bytes> {
        let line = self.line.as_ref()?;
        let keeps_up = keeps_up(&line.outbox);
        let frame = Frame { text, tag: SessionTag::Plain };
        let left = match keeps_up {
            true => line.outbox.push(frame).err().map(|refused| refused.frame),
            false => Some(frame),
        };
        if left.is_some() {
            self.shared.metrics.progress_dropped.with_label_values(&["slow_client"]).inc();
        }
        left.map(|frame| frame.text)
    }

    /// Sends how a job is coming along, or keeps the newest of it until the client has room.
    fn progress(&mut self, job: JobId, text: Bytes) {
        if let Some(text) = self.remark(text)
            && let Some(line) = &mut self.line
        {
            line.late.insert(job, text);
        }
    }

    fn send_late_progress(&mut self) {
        let Some(line) = &mut self.line else { return };
        while keeps_up(&line.outbox)
            && let Some((_, text)) = line.late.pop_first()
        {
            if line.outbox.push(Frame { text, tag: SessionTag::Plain }).is_err() {
                return;
            }
        }
    }

    /// Reads back what the client is owed; the answer comes by mail.
    fn replay(&mut self, after: u64, frames: usize) {
        let (Some(store), Some(open)) = (&self.shared.store, &self.open) else { return };
        self.shared.metrics.replays.inc();
        tokio::spawn(read_back(store.clone(), Arc::clone(&open.handle), after, frames));
    }

    fn ping(&mut self, seq: u64) {
        if let Some(line) = &mut self.line {
            line.connection.ping(Bytes::copy_from_slice(&seq.to_be_bytes()));
        }
    }

    fn farewell(&mut self, text: Bytes, owed: Option<u64>) {
        let Some(open) = &self.open else { return };
        let tag = owed.map_or(SessionTag::Plain, |seq| SessionTag::Farewell(open.handle.id, seq));
        self.push(Frame { text, tag });
    }

    /// The client has everything up to this number. If that cannot be noted now it is later; if it
    /// never is, the client is told again.
    fn confirmed(&mut self, through: u64) {
        let Some(open) = &mut self.open else { return };
        open.confirmed = open.confirmed.max(Some(through));
        open.confirmed_through = open.confirmed_through.max(through);
        let now_us = self.shared.now().us;
        while let Some((seq, job)) = open.unconfirmed.front()
            && *seq <= through
        {
            if let Some(job) = self.shared.scheduler.job(*job) {
                job.stamps.mark(Stage::Acknowledged, now_us);
            }
            open.unconfirmed.pop_front();
        }
        self.note_confirmed();
    }

    fn note_confirmed(&mut self) {
        let (Some(store), Some(open)) = (&self.shared.store, &mut self.open) else { return };
        if let Some(through_seq) = open.confirmed
            && delivered(store, open.handle.id, through_seq)
        {
            open.confirmed = None;
        }
    }

    fn forfeit(&mut self, through_seq: u64) {
        let (Some(store), Some(open)) = (&self.shared.store, &self.open) else { return };
        let session = open.handle.id;
        warn!(%session, through_seq, "results that were never confirmed become dead letters");
        if store.submit(Write::Forfeit { session, through_seq, why: "overflow" }, None).is_err() {
            debug!(%session, "they stay where they are for now");
        }
    }

    /// Keeps the last word on a job; the client is told when that is done, and so are others.
    fn record(&mut self, index: u64, id: JobId, mut words: Words) -> Option<Wait> {
        let open = self.open.as_mut()?;
        let job = open.settled.remove(&id)?;
        if !words.heard.is_empty() {
            words.heard = present(&self.shared, words.heard);
        }
        let mailbox = words.outbox.is_some().then(|| Arc::clone(&open.handle));
        if self.shared.store.is_none() {
            // Nothing to wait for.
            tell_others(&self.shared, id, &words.heard, None);
            if let Some(mailbox) = &mailbox {
                mailbox.deliver(Mail::News(News::Durable { job: id, seq: None }));
            }
        }
        let (shared, heard) = (Arc::clone(&self.shared), words.heard.clone());
        let done: Done = when_kept(&self.shared, &job, move |committed| {
            tell_others(&shared, id, &heard, Some(&committed.heard_seqs));
            if let Some(mailbox) = mailbox {
                let seq = committed.outbox_seq;
                mailbox.deliver(Mail::News(News::Durable { job: id, seq }));
            }
        });
        debug!(job = %id, index, "outcome on its way to the disk");
        let mut done = record(&self.shared, &job, words.clone(), Some(done)).err()?;
        let shared = Arc::clone(&self.shared);
        // A full lane means that results come faster than the disk takes them: this session waits.
        Some(Box::pin(async move {
            loop {
                tokio::time::sleep(STORE_RETRY).await;
                match record(&shared, &job, words.clone(), done) {
                    Ok(()) => return,
                    Err(back) => done = back,
                }
            }
        }))
    }

    /// Keeps that an utterance was refused; the client is told when that is done.
    fn keep_refusal(&mut self, refused: Refused, now: Now) -> Option<Wait> {
        let Refused { index, job, code, why, chunks, frame } = refused;
        let (store, open) = (self.shared.store.as_ref()?, self.open.as_ref()?);
        let mailbox = Arc::clone(&open.handle);
        let place = (mailbox.id, index);
        let terminal = TerminalRow::refusal(job, place, (code.as_str(), why), now.unix_ms);
        let done: Done = Box::new(move |committed| {
            let seq = committed.outbox_seq;
            mailbox.deliver(Mail::News(News::Durable { job, seq }));
        });
        let (terminal, refused) = (Box::new(terminal), Some(chunks));
        let write = Write::SettleJob {
            terminal,
            outbox: Some(frame),
            heard: Vec::new(),
            dead: false,
            refused,
        };
        let mut back = store.submit(write, Some(done)).err()?;
        let store = store.clone();
        Some(Box::pin(async move {
            while back.why == Why::Full {
                tokio::time::sleep(STORE_RETRY).await;
                match store.submit(back.write, back.done) {
                    Ok(()) => return,
                    Err(again) => back = again,
                }
            }
        }))
    }

    /// The socket took a frame.
    pub(super) async fn written(&mut self, tag: SessionTag) {
        match tag {
            SessionTag::Plain => {}
            SessionTag::Prove(number) => self.ping(number),
            SessionTag::Word(job, seq) => {
                self.delivered(job, seq);
                self.input(Input::Flushed(job, seq)).await;
            }
            SessionTag::Farewell(session, through) => {
                if let Some(line) = &mut self.line {
                    line.farewell = Some((session, through));
                }
                self.ping(through);
            }
        }
        self.send_late_progress();
        self.note_confirmed();
    }

    fn delivered(&mut self, id: JobId, seq: Option<u64>) {
        let Some(job) = self.shared.scheduler.job(id) else { return };
        // Of what somebody else said, the speaker's own frame is what counts.
        if self.open.as_ref().is_some_and(|open| open.handle.id != job.spec.session) {
            return;
        }
        let now_us = self.shared.now().us;
        if let (Some(open), Some(seq)) = (&mut self.open, seq) {
            // A socket tells what it has read before what it has written.
            if seq <= open.confirmed_through {
                job.stamps.mark(Stage::Acknowledged, now_us);
            } else {
                // Of more than are looked at, the oldest are not known to be confirmed.
                if open.unconfirmed.len() == UNCONFIRMED_MAX {
                    open.unconfirmed.pop_front();
                }
                open.unconfirmed.push_back((seq, id));
            }
        }
        job.stamps.mark(Stage::Delivered, now_us);
        if let Some(us) = job.stamps.between(Stage::Settled, Stage::Delivered) {
            self.shared.metrics.deliver_seconds.observe(us as f64 / 1e6);
        }
    }

    /// The client's WebSocket stack answered a ping sent behind some result: it has that one.
    pub(super) async fn ponged(&mut self, payload: &[u8]) {
        let Ok(bytes) = <[u8; 8]>::try_from(payload) else { return };
        let seq = u64::from_be_bytes(bytes);
        if let (Some(line), Some(store)) = (&mut self.line, &self.shared.store)
            && let Some((session, through)) = line.farewell.take_if(|(_, through)| *through == seq)
        {
            // Kept as a dead letter if it cannot be noted.
            debug!(%session, noted = delivered(store, session, through), "farewell confirmed");
        }
        self.input(Input::Ponged(seq)).await;
    }
}

/// Results of one session whose confirmation is noted with their job.
const UNCONFIRMED_MAX: usize = 256;

fn delivered(store: &Store, session: SessionId, through_seq: u64) -> bool {
    store.submit(Write::Delivered { session, through_seq }, None).is_ok()
}

/// Whether the client takes what it is sent.
fn keeps_up(outbox: &Outbox<SessionTag>) -> bool {
    outbox.frames() < outbox.frames_max().div_ceil(2) && outbox.bytes() < REMARK_BYTES_MAX
}

/// Reads what a session is owed behind `after`, so many frames, off the path, until it can be read.
async fn read_back(store: Store, handle: Arc<SessionHandle>, after: u64, frames: usize) {
    while !handle.is_over() {
        let session = handle.id;
        match read_store(&store, move |s| s.outbox(session, after, frames)).await {
            Ok(Ok(rows)) => {
                let frames = rows.into_iter().map(|r| (r.seq, r.job, Bytes::from(r.frame)));
                let frames = frames.collect();
                return handle.deliver(Mail::Replayed { after, frames });
            }
            Ok(Err(fault)) => warn!(%session, %fault, "what a session is owed cannot be read"),
            Err(panic) => warn!(%session, %panic, "reading what a session is owed failed"),
        }
        tokio::time::sleep(READ_RETRY).await;
    }
}
