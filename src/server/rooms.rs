//! The one task that owns the rooms: it is given what sessions ask, one after the other, and
//! performs what comes of it. No utterance waits for it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;

use serde_json::{Value, json};
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::session::{Open, SessionTask};
use super::shared::{Mail, Shared};
use crate::job::{Submission, Submitted};
use crate::protocol::job::{Heard, JobSpec};
use crate::protocol::room::{RoomEvent, RoomFault, RoomRequest, Signal};
use crate::protocol::{JobId, RoomCode, SessionId};
use crate::session::{Answer, Cutting, ForOthers, Input, News, RoomEffect, RoomInput, Rooms};
use crate::store::{RoomRow, Write};
use crate::telemetry::Now;
use crate::transport::Frame;

use super::shared::SessionTag;

/// How often quiet rooms are looked for.
const ROUND_MS: u64 = 1_000;
/// Requests and news that may wait for the rooms.
pub(super) const INPUTS_MAX: usize = 16_384;
/// Requests of one session that may wait to be answered.
const REQUESTS_MAX: usize = 16;

pub(super) struct RoomsTask {
    shared: Arc<Shared>,
    rooms: Rooms,
    inbox: mpsc::Receiver<RoomInput>,
    /// What the store had no place for; none is a room that is no more.
    unkept: BTreeMap<RoomCode, Option<RoomRow>>,
}

impl RoomsTask {
    /// With the rooms of an earlier life of the server, whose sessions are back by now.
    pub(super) fn new(
        shared: Arc<Shared>,
        inbox: mpsc::Receiver<RoomInput>,
        rows: Vec<RoomRow>,
    ) -> Self {
        let mut effects = Vec::new();
        let is_there = |id: SessionId| {
            shared.sessions.pin().get(&id).is_some_and(|session| session.profile.resume)
        };
        let config = shared.settings.part(|version| &version.config.room);
        let now_ms = shared.now().unix_ms;
        let rooms = Rooms::restored(config, rows, is_there, now_ms, &mut effects);
        let mut task = Self { shared, rooms, inbox, unkept: BTreeMap::new() };
        task.perform(effects);
        task
    }

    /// Runs until the server goes down.
    pub(super) async fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let mut next_round_us = 0;
        loop {
            let mut effects = Vec::new();
            let input = tokio::select! {
                input = self.inbox.recv() => match input {
                    Some(input) => input,
                    None => return,
                },
                () = shared.clock.sleep_until(Some(next_round_us)) => {
                    next_round_us = shared.now().after_ms(ROUND_MS);
                    RoomInput::Tick
                }
            };
            if let RoomInput::Request(session, ..) = &input
                && let Some(handle) = shared.sessions.pin().get(session)
            {
                handle.room_requests.fetch_sub(1, SeqCst);
            }
            if matches!(input, RoomInput::Tick) {
                self.make_up(&mut effects);
            }
            self.rooms.apply(input, shared.now().unix_ms, &mut effects);
            self.perform(effects);
        }
    }

    /// Makes up for what did not get through: to the disk, or here.
    fn make_up(&mut self, effects: &mut Vec<RoomEffect>) {
        for (code, row) in std::mem::take(&mut self.unkept) {
            self.keep(code, row);
        }
        if self.shared.rooms_overrun.swap(false, SeqCst) {
            let sessions = self.shared.sessions.pin();
            let gone = self.rooms.sessions().filter(|id| !sessions.contains_key(id));
            for session in gone.collect::<Vec<_>>() {
                let now_ms = self.shared.now().unix_ms;
                self.rooms.apply(RoomInput::Gone(session), now_ms, effects);
            }
        }
    }

    fn perform(&mut self, effects: Vec<RoomEffect>) {
        for effect in effects {
            match effect {
                RoomEffect::Say(session, frame) => {
                    let session = self.shared.sessions.pin().get(&session).map(Arc::clone);
                    if let Some(session) = session {
                        session.deliver(Mail::Frame(frame));
                    }
                }
                RoomEffect::View(session, view) => {
                    let session = self.shared.sessions.pin().get(&session).map(Arc::clone);
                    if let Some(session) = session {
                        session.show_room(view);
                    }
                }
                RoomEffect::Keep(row) => self.keep(row.code, Some(row)),
                RoomEffect::Drop(code) => self.keep(code, None),
                RoomEffect::Refused(fault) => {
                    self.shared.metrics.room_faults.with_label_values(&[fault.as_str()]).inc();
                }
            }
        }
        let (rooms, members) = self.rooms.len();
        self.shared.metrics.rooms.set(rooms as i64);
        self.shared.metrics.room_members.set(members as i64);
    }

    /// Puts the room on disk, or takes it away.
    fn keep(&mut self, code: RoomCode, row: Option<RoomRow>) {
        let seen = self.shared.rooms_seen.pin();
        match &row {
            Some(row) => drop(seen.insert(code, Arc::new(row.clone()))),
            None => drop(seen.remove(&code)),
        }
        self.unkept.remove(&code);
        let Some(store) = &self.shared.store else { return };
        let write = match row.clone() {
            Some(row) => Write::Room(row),
            None => Write::DropRoom(code),
        };
        if store.submit(write, None).is_err() {
            self.unkept.insert(code, row);
        }
    }
}

/// The rooms for operators.
pub(super) fn listed(shared: &Shared, rows_max: usize) -> Value {
    let seen = shared.rooms_seen.pin();
    let mut rows: Vec<Arc<RoomRow>> = seen.values().map(Arc::clone).collect();
    rows.sort_by_key(|row| row.code);
    let shown: Vec<Value> = rows.iter().take(rows_max).map(|row| room_json(row)).collect();
    json!({"rooms": shown, "total": rows.len()})
}

/// One room for operators.
pub fn room_json(row: &RoomRow) -> Value {
    let members: Vec<Value> = row
        .members
        .iter()
        .map(|member| {
            json!({
                "session_id": member.session,
                "seat": member.seat,
                "display_name": member.display_name,
                "hears": member.lang,
                "joined_unix_ms": member.joined_unix_ms,
            })
        })
        .collect();
    json!({
        "room_code": row.code,
        "room_id": uuid::Uuid::from_u128(row.room_id).to_string(),
        "active_unix_ms": row.active_unix_ms,
        "members": members,
    })
}

/// Others hear how a job ended: at once, or when it is on disk under these numbers.
pub(super) fn tell_others(shared: &Shared, job: JobId, heard: &[Heard], seqs: Option<&[u64]>) {
    let mut at = 0;
    let sessions = shared.sessions.pin();
    for Heard { listeners, frame } in heard {
        for listener in listeners {
            let seq = seqs.and_then(|seqs| seqs.get(at).copied());
            at += 1;
            // A job that had ended before was told then.
            if seqs.is_some() && seq.is_none() {
                continue;
            }
            if let Some(session) = sessions.get(listener) {
                session.hears(News::Heard { job, frame: frame.clone(), seq });
            }
        }
    }
}

/// Those who are still there to hear it.
pub(super) fn present(shared: &Shared, mut heard: Vec<Heard>) -> Vec<Heard> {
    let sessions = shared.sessions.pin();
    for one in &mut heard {
        one.listeners.retain(|listener| sessions.contains_key(listener));
    }
    heard.retain(|one| !one.listeners.is_empty());
    heard
}

impl SessionTask {
    /// The client asks something about rooms. The answer comes by mail.
    pub(super) fn room(&mut self, request: RoomRequest) {
        if let Err(fault) = self.ask_rooms(request) {
            self.shared.metrics.room_faults.with_label_values(&[fault.as_str()]).inc();
            self.send_frame(RoomEvent::fault(fault).encode());
        }
    }

    fn ask_rooms(&mut self, request: RoomRequest) -> Result<(), RoomFault> {
        let Some(open) = &mut self.open else { return Err(RoomFault::InternalError) };
        let enters = matches!(request, RoomRequest::Create(_) | RoomRequest::Join(..));
        // What a listener is owed is kept: so is who it is.
        let store = self.shared.store.as_ref();
        if enters && store.is_some() && !open.store_session(store) {
            return Err(RoomFault::Overloaded);
        }
        let handle = &open.handle;
        let room = |waiting: usize| (waiting < REQUESTS_MAX).then_some(waiting + 1);
        if handle.room_requests.fetch_update(SeqCst, SeqCst, room).is_err() {
            return Err(RoomFault::RateLimited);
        }
        handle.knows_rooms.store(true, SeqCst);
        let input = RoomInput::Request(handle.id, open.session.profile.tgt, request);
        self.shared.rooms.try_send(input).map_err(|_| {
            handle.room_requests.fetch_sub(1, SeqCst);
            RoomFault::Overloaded
        })
    }

    /// Passes on what one member says to another to set up a call.
    pub(super) fn signal(&mut self, signal: &Signal) {
        let Some(open) = &self.open else {
            return self.send_frame(RoomEvent::fault(RoomFault::InternalError).encode());
        };
        let (from, view) = (open.handle.id, open.handle.room.view());
        let relayed = (|| {
            let view = view.filter(|view| view.code.to_string() == signal.room_code)?;
            let to = signal.to.parse().ok()?;
            if !view.relays(from, to, signal.is_offer()) {
                return None;
            }
            let other = self.shared.sessions.pin().get(&to).map(Arc::clone)?;
            other.offer(Mail::Frame(signal.relayed(from))).then_some(())
        })();
        let outcome = if relayed.is_some() { "relayed" } else { "dropped" };
        self.shared.metrics.signals.with_label_values(&[outcome]).inc();
    }

    /// Looks whether the room has changed, and tells the client.
    pub(super) fn look_round(&mut self) {
        let Some(open) = &mut self.open else { return };
        let Some(view) = open.handle.room.changed() else { return };
        open.lanes.retain(|_, speaker| !speaker.is_idle());
        let hearers = view.as_ref().and_then(|view| view.hearers(open.handle.id));
        if let Some(view) = &view {
            self.send_frame(view.frame.clone());
        }
        let now = self.shared.now();
        if let Some(open) = &mut self.open {
            open.session.apply(Input::Room(hearers), now, &mut self.effects);
        }
    }

    pub(super) fn send_frame(&mut self, text: bytes::Bytes) {
        self.push(Frame { text, tag: SessionTag::Plain });
    }

    /// Submits an utterance into the languages that only others hear.
    pub(super) fn submit_for_others(&mut self, cutting: &mut Cutting, now: Now) {
        if let Some(open) = &self.open {
            open.handle.room.spoke(now.unix_ms);
        }
        for spec in std::mem::take(&mut cutting.for_others) {
            let (index, lang) = (spec.utterance_index, spec.tgt);
            let submission = Submission {
                spec: spec.clone(),
                audio: cutting.audio.clone(),
                received_us: cutting.received_us,
                cut_us: now.us,
                chunks: None,
                key: None,
            };
            let Some(open) = &mut self.open else { return };
            let account = Arc::clone(&open.speaker.account);
            let fresh = || self.shared.scheduler.speaker(open.handle.id, account);
            let speaker = Arc::clone(open.lanes.entry(lang).or_insert_with(fresh));
            match self.try_submit(&speaker, submission, now) {
                Ok(Submitted::New(job)) => {
                    if let Some(Open { session, .. }) = &mut self.open {
                        session.submitted_for_others(index, lang, job.id);
                    }
                }
                Ok(Submitted::Repeated(_)) => {}
                Err(denied) => {
                    self.shared.metrics.jobs_refused.with_label_values(&[denied.as_str()]).inc();
                    warn!(utterance = index, %lang, %denied, "refused for those who listen");
                    if spec.cut.closes_turn() {
                        speaker.end_turn(spec.turn);
                    }
                    self.tell_refused(&spec, now);
                }
            }
        }
    }

    /// Those who listen are told, once, that they will not hear this; nothing of it is kept.
    fn tell_refused(&self, spec: &JobSpec, now: Now) {
        let Some(others) = ForOthers::of(spec) else { return };
        let (known, message) = (None, String::new());
        let answer =
            Answer::Failed { code: "OVERLOADED".to_owned(), known, message, reason: "overloaded" };
        let place = (spec.session, spec.utterance_index);
        let (heard, _) = others.told(&answer, JobId(0), place, &spec.trace_id, now.unix_ms);
        let sessions = self.shared.sessions.pin();
        for Heard { listeners, frame } in heard {
            for session in listeners.iter().filter_map(|listener| sessions.get(listener)) {
                if !session.offer(Mail::Frame(frame.clone())) {
                    info!(session = %session.id, "a listener was not told of a refusal");
                }
            }
        }
    }
}
