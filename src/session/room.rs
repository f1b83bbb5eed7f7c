//! Rooms: who is in which, in which language each listens, and what was said there lately.
//!
//! One owner has them all and is given inputs one after the other; what it decides comes out as
//! effects. Members get a view that is replaced whole. Nothing here knows sockets, and nothing
//! here is on the path of an utterance: a session knows from its view who hears it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::{Duration, UNIX_EPOCH};

use arc_swap::ArcSwapOption;
use bytes::Bytes;

use crate::config::{self, Live};
use crate::protocol::room::{EXPIRED, Participant, RoomEvent, RoomFault, RoomRequest, Seat};
use crate::protocol::{Lang, RoomCode, SessionId};
use crate::store::{MemberRow, RoomRow};

use super::audience::{Hearers, Said};

/// How long the last wrong codes of one session count, in milliseconds.
const WRONG_CODES_MS: u64 = 60_000;
/// Wrong codes within that time after which a session may not try more.
const WRONG_CODES_MAX: usize = 5;
/// Random codes tried before the free ones are looked for in order.
const CODE_TRIES: usize = 16;

/// What reaches the rooms.
#[derive(Debug)]
pub enum RoomInput {
    /// A session asks for something. With it, the language its own translations are in.
    Request(SessionId, Lang, RoomRequest),
    /// A session is over.
    Gone(SessionId),
    /// Something was said in a room.
    Said(Box<Said>),
    /// Time has passed.
    Tick,
}

/// What is to be done about it.
#[derive(Debug)]
pub enum RoomEffect {
    /// Send the session this frame.
    Say(SessionId, Bytes),
    /// The session is in this room now, or in none; the view replaces the one before.
    View(SessionId, Option<Arc<RoomView>>),
    /// Put the room on disk.
    Keep(RoomRow),
    /// The room is no more.
    Drop(RoomCode),
    /// A request was refused: for the metric.
    Refused(RoomFault),
}

/// A room as its members see it.
#[derive(Debug)]
pub struct RoomView {
    /// The number by which it is joined.
    pub code: RoomCode,
    /// What all members are told of it.
    pub frame: Bytes,
    /// When somebody in it last spoke, Unix milliseconds; whoever speaks moves it on.
    spoken_unix_ms: Arc<AtomicU64>,
    members: Vec<MemberRow>,
}

impl RoomView {
    /// Who hears this session.
    pub fn hearers(&self, session: SessionId) -> Option<Hearers> {
        let seat = self.members.iter().find(|member| member.session == session)?.seat;
        let others = self.members.iter().filter(|member| member.session != session);
        let members = others.map(|member| (member.session, member.lang)).collect();
        Some(Hearers { room: self.code, seat, members })
    }

    /// Whether one member may call another: both are in the room, and the one called did not say
    /// that it does not want the other's own voice. What follows an offer is not held back, or
    /// calls would be left half made.
    pub fn relays(&self, from: SessionId, to: SessionId, is_offer: bool) -> bool {
        let member = |id: SessionId| self.members.iter().find(|member| member.session == id);
        let (Some(_), Some(to)) = (member(from), member(to)) else { return false };
        let unwanted = to.raw_voice.iter().any(|(other, wanted)| *other == from && !wanted);
        from != to.session && !(is_offer && unwanted)
    }

    /// Those who are in it, in the order in which they came.
    pub fn members(&self) -> impl Iterator<Item = &MemberRow> {
        self.members.iter()
    }
}

/// The room a session is in, published whole: its owner replaces it, and the session looks.
#[derive(Debug, Default)]
pub struct Whereabouts {
    view: ArcSwapOption<RoomView>,
    /// The room is another than the one looked at last.
    changed: AtomicBool,
}

impl Whereabouts {
    /// The session is there now, or in no room.
    pub fn show(&self, view: Option<Arc<RoomView>>) {
        self.view.store(view);
        self.look_again();
    }

    /// Has the session look, if it is in a room: it may have missed who came and went.
    pub fn look_again(&self) {
        self.changed.store(true, SeqCst);
    }

    /// The room, if it has changed since this was last asked.
    pub fn changed(&self) -> Option<Option<Arc<RoomView>>> {
        // Asked after every message: what is not set is only read.
        let changed = self.changed.load(SeqCst) && self.changed.swap(false, SeqCst);
        changed.then(|| self.view())
    }

    /// The room.
    pub fn view(&self) -> Option<Arc<RoomView>> {
        self.view.load_full()
    }

    /// The session speaks: its room is in use.
    pub fn spoke(&self, unix_ms: u64) {
        if let Some(view) = self.view.load().as_ref() {
            view.spoken_unix_ms.fetch_max(unix_ms, SeqCst);
        }
    }
}

struct Room {
    row: RoomRow,
    spoken_unix_ms: Arc<AtomicU64>,
    history: VecDeque<Said>,
    /// Since when nobody is in it.
    empty_since_ms: Option<u64>,
}

/// All rooms.
pub struct Rooms {
    config: Live<config::Room>,
    rooms: BTreeMap<RoomCode, Room>,
    /// Where each session is: a session is in one room at most.
    of: BTreeMap<SessionId, RoomCode>,
    /// When each session last tried wrong codes, Unix milliseconds.
    wrong: BTreeMap<SessionId, VecDeque<u64>>,
}

impl Rooms {
    /// With what an earlier life of the server had. Who can not come back is not there any more;
    /// a room stays although nobody is in it, for those who join it again.
    pub fn restored(
        config: impl Into<Live<config::Room>>,
        rows: Vec<RoomRow>,
        is_there: impl Fn(SessionId) -> bool,
        now_ms: u64,
        effects: &mut Vec<RoomEffect>,
    ) -> Self {
        let mut rooms = Self {
            config: config.into(),
            rooms: BTreeMap::new(),
            of: BTreeMap::new(),
            wrong: BTreeMap::new(),
        };
        for mut row in rows {
            row.members.retain(|member| is_there(member.session));
            for member in &row.members {
                rooms.of.insert(member.session, row.code);
            }
            let code = row.code;
            // The time during which there was no server does not count.
            rooms.rooms.insert(code, Room::of(RoomRow { active_unix_ms: now_ms, ..row }, now_ms));
            rooms.changed(code, effects);
        }
        rooms
    }

    /// Takes one input, at this Unix time in milliseconds.
    pub fn apply(&mut self, input: RoomInput, now_ms: u64, effects: &mut Vec<RoomEffect>) {
        match input {
            RoomInput::Request(session, lang, request) => {
                if let Err(fault) = self.request(session, lang, request, now_ms, effects) {
                    effects.push(RoomEffect::Refused(fault));
                    effects.push(RoomEffect::Say(session, RoomEvent::fault(fault).encode()));
                }
            }
            RoomInput::Gone(session) => {
                self.wrong.remove(&session);
                self.leave(session, true, now_ms, effects);
            }
            RoomInput::Said(said) => {
                if let Some(room) = self.rooms.get_mut(&said.room) {
                    room.history.push_back(*said);
                    let history_max = self.config.with(|room| room.history_max);
                    while room.history.len() > history_max {
                        room.history.pop_front();
                    }
                }
            }
            RoomInput::Tick => self.tick(now_ms, effects),
        }
    }

    /// The sessions that are in a room.
    pub fn sessions(&self) -> impl Iterator<Item = SessionId> {
        self.of.keys().copied()
    }

    /// Rooms there are, and sessions in them.
    pub fn len(&self) -> (usize, usize) {
        (self.rooms.len(), self.of.len())
    }

    fn request(
        &mut self,
        session: SessionId,
        lang: Lang,
        request: RoomRequest,
        now_ms: u64,
        effects: &mut Vec<RoomEffect>,
    ) -> Result<(), RoomFault> {
        match request {
            RoomRequest::Create(seat) => self.create(session, lang, seat, now_ms, effects),
            RoomRequest::Join(text, seat) => {
                self.may_try(session, now_ms)?;
                let code = self.find(&text).inspect_err(|_| {
                    self.wrong.entry(session).or_default().push_back(now_ms);
                })?;
                self.join(code, session, lang, seat, now_ms, effects)
            }
            RoomRequest::Leave(text) => {
                let code = self.find(&text)?;
                if self.of.get(&session) == Some(&code) {
                    self.leave(session, false, now_ms, effects);
                }
                Ok(())
            }
            RoomRequest::RawVoice { code, target, receive } => {
                let (code, member) = self.member(session, &code)?;
                let Ok(target) = target.parse::<SessionId>() else { return Ok(()) };
                member.raw_voice.retain(|(other, _)| *other != target);
                if member.raw_voice.len() < config::ROOM_MEMBERS_MAX {
                    member.raw_voice.push((target, receive));
                }
                self.changed(code, effects);
                Ok(())
            }
            RoomRequest::Prefer { code, lang } => {
                let (code, _) = self.member(session, &code)?;
                let members = &self.rooms[&code].row.members;
                self.has_room_for(members.iter().filter(|m| m.session != session), lang)?;
                let (_, member) = self.member(session, &code.to_string())?;
                (member.preferred_lang, member.lang) = (Some(lang), lang);
                self.changed(code, effects);
                Ok(())
            }
            RoomRequest::History { code, last } => {
                let (code, member) = self.member(session, &code)?;
                let lang = member.lang;
                let results = self.rooms[&code].last_said(lang, last);
                let event = RoomEvent::RoomHistory { room_code: code, results };
                effects.push(RoomEffect::Say(session, event.encode()));
                Ok(())
            }
        }
    }

    fn find(&self, text: &str) -> Result<RoomCode, RoomFault> {
        let code: RoomCode = text.parse().map_err(|_| RoomFault::RoomNotFound)?;
        self.rooms.contains_key(&code).then_some(code).ok_or(RoomFault::RoomNotFound)
    }

    /// A member of the room of that code. To others the room is not there.
    fn member(
        &mut self,
        session: SessionId,
        text: &str,
    ) -> Result<(RoomCode, &mut MemberRow), RoomFault> {
        let code = self.find(text)?;
        let room = self.rooms.get_mut(&code).ok_or(RoomFault::RoomNotFound)?;
        let member = room.row.members.iter_mut().find(|member| member.session == session);
        member.map(|member| (code, member)).ok_or(RoomFault::RoomNotFound)
    }

    /// Codes are short: who tries many may not go on.
    fn may_try(&mut self, session: SessionId, now_ms: u64) -> Result<(), RoomFault> {
        let Some(wrong) = self.wrong.get_mut(&session) else { return Ok(()) };
        wrong.retain(|at| now_ms.saturating_sub(*at) < WRONG_CODES_MS);
        if wrong.len() >= WRONG_CODES_MAX { Err(RoomFault::RateLimited) } else { Ok(()) }
    }

    fn has_room_for<'a>(
        &self,
        others: impl Iterator<Item = &'a MemberRow>,
        lang: Lang,
    ) -> Result<(), RoomFault> {
        let mut langs: Vec<Lang> = others.map(|member| member.lang).collect();
        let (members_max, languages_max) =
            self.config.with(|room| (room.members_max, room.languages_max));
        let full = langs.len() >= members_max;
        langs.push(lang);
        langs.sort_unstable();
        langs.dedup();
        if full || langs.len() > languages_max {
            return Err(RoomFault::RoomFull);
        }
        Ok(())
    }

    fn create(
        &mut self,
        session: SessionId,
        lang: Lang,
        seat: Seat,
        now_ms: u64,
        effects: &mut Vec<RoomEffect>,
    ) -> Result<(), RoomFault> {
        if self.rooms.len() >= self.config.with(|room| room.rooms_max) {
            return Err(RoomFault::Overloaded);
        }
        let code = self.free_code().ok_or(RoomFault::Overloaded)?;
        let row = RoomRow {
            code,
            room_id: uuid::Uuid::new_v4().as_u128(),
            active_unix_ms: now_ms,
            next_seat: 1,
            members: Vec::new(),
        };
        self.rooms.insert(code, Room::of(row, now_ms));
        self.join(code, session, lang, seat, now_ms, effects)
    }

    fn free_code(&self) -> Option<RoomCode> {
        let random = (0..CODE_TRIES).map(|_| fastrand::u32(RoomCode::ALL));
        random.chain(RoomCode::ALL).map(RoomCode).find(|code| !self.rooms.contains_key(code))
    }

    fn join(
        &mut self,
        code: RoomCode,
        session: SessionId,
        lang: Lang,
        seat: Seat,
        now_ms: u64,
        effects: &mut Vec<RoomEffect>,
    ) -> Result<(), RoomFault> {
        if self.of.get(&session) == Some(&code) {
            return Err(RoomFault::AlreadyInRoom);
        }
        let Seat { display_name, preferred_lang } = seat;
        let lang = preferred_lang.unwrap_or(lang);
        let room = self.rooms.get(&code).ok_or(RoomFault::RoomNotFound)?;
        self.has_room_for(room.row.members.iter(), lang)?;
        self.leave(session, false, now_ms, effects);
        let Some(room) = self.rooms.get_mut(&code) else { return Err(RoomFault::RoomNotFound) };
        room.row.members.push(MemberRow {
            session,
            seat: room.row.next_seat,
            display_name,
            preferred_lang,
            lang,
            raw_voice: Vec::new(),
            joined_unix_ms: now_ms,
        });
        room.row.next_seat += 1;
        room.row.active_unix_ms = now_ms;
        room.empty_since_ms = None;
        // The existing page knows from this message alone that it is in a room, also as a joiner.
        let room_id = uuid::Uuid::from_u128(room.row.room_id).to_string();
        let ack = RoomEvent::RoomCreateAck { room_code: code, room_id };
        effects.push(RoomEffect::Say(session, ack.encode()));
        self.of.insert(session, code);
        self.changed(code, effects);
        Ok(())
    }

    /// A room that was left goes with its last member; one whose last member was lost stays a
    /// while, for a client that comes again.
    fn leave(
        &mut self,
        session: SessionId,
        lost: bool,
        now_ms: u64,
        effects: &mut Vec<RoomEffect>,
    ) {
        let Some(code) = self.of.remove(&session) else { return };
        let Some(room) = self.rooms.get_mut(&code) else { return };
        room.row.members.retain(|member| member.session != session);
        for member in &mut room.row.members {
            member.raw_voice.retain(|(other, _)| *other != session);
        }
        effects.push(RoomEffect::View(session, None));
        if room.row.members.is_empty() && !lost {
            self.rooms.remove(&code);
            effects.push(RoomEffect::Drop(code));
            return;
        }
        if room.row.members.is_empty() {
            room.empty_since_ms = Some(now_ms);
        }
        self.changed(code, effects);
    }

    /// Keeps the room and shows it to its members.
    fn changed(&self, code: RoomCode, effects: &mut Vec<RoomEffect>) {
        let Some(room) = self.rooms.get(&code) else { return };
        effects.push(RoomEffect::Keep(room.row.clone()));
        let view = Arc::new(room.view());
        for member in &room.row.members {
            effects.push(RoomEffect::View(member.session, Some(Arc::clone(&view))));
        }
    }

    fn tick(&mut self, now_ms: u64, effects: &mut Vec<RoomEffect>) {
        let (expire_ms, empty_after_ms) = self.config.with(|room| (room.expire_ms, room.empty_ms));
        let mut over = Vec::new();
        for (code, room) in &mut self.rooms {
            let spoken = room.spoken_unix_ms.load(SeqCst);
            if spoken > room.row.active_unix_ms {
                room.row.active_unix_ms = spoken;
                effects.push(RoomEffect::Keep(room.row.clone()));
            }
            let quiet_ms = now_ms.saturating_sub(room.row.active_unix_ms);
            let empty_ms = room.empty_since_ms.map(|since| now_ms.saturating_sub(since));
            if quiet_ms >= expire_ms || empty_ms.is_some_and(|empty_ms| empty_ms >= empty_after_ms)
            {
                over.push(*code);
            }
        }
        for code in over {
            let Some(room) = self.rooms.remove(&code) else { continue };
            let event = RoomEvent::RoomExpired { room_code: code, message: EXPIRED };
            for member in room.row.members {
                self.of.remove(&member.session);
                effects.push(RoomEffect::Say(member.session, event.encode()));
                effects.push(RoomEffect::View(member.session, None));
            }
            effects.push(RoomEffect::Drop(code));
        }
        self.wrong.retain(|_, wrong| {
            wrong.retain(|at| now_ms.saturating_sub(*at) < WRONG_CODES_MS);
            !wrong.is_empty()
        });
    }
}

impl Room {
    fn of(row: RoomRow, now_ms: u64) -> Self {
        Self {
            spoken_unix_ms: Arc::new(AtomicU64::new(row.active_unix_ms)),
            history: VecDeque::new(),
            empty_since_ms: row.members.is_empty().then_some(now_ms),
            row,
        }
    }

    fn view(&self) -> RoomView {
        let members = self.row.members.iter().map(participant).collect();
        let event = RoomEvent::RoomMembers { room_code: self.row.code, members };
        RoomView {
            code: self.row.code,
            frame: event.encode(),
            spoken_unix_ms: Arc::clone(&self.spoken_unix_ms),
            members: self.row.members.clone(),
        }
    }

    /// The last utterances, oldest first, each in this language if it was said in it, else as it
    /// was spoken.
    fn last_said(&self, lang: Lang, last: usize) -> Vec<Box<serde_json::value::RawValue>> {
        let mut chosen: Vec<&Said> = Vec::new();
        for said in self.history.iter().rev() {
            let place = chosen.iter().position(|chosen| chosen.place == said.place);
            match place {
                Some(place) if said.lang == lang => chosen[place] = said,
                Some(_) => {}
                None if said.lang != lang && !said.is_transcript => {}
                None if chosen.len() < last => chosen.push(said),
                None => {}
            }
        }
        let text = |said: &Said| String::from_utf8(said.frame.to_vec()).ok();
        let raw = |said| serde_json::value::RawValue::from_string(text(said)?).ok();
        chosen.into_iter().rev().filter_map(raw).collect()
    }
}

fn participant(member: &MemberRow) -> Participant {
    let preferences = member.raw_voice.iter().map(|(other, wanted)| (other.to_string(), *wanted));
    let joined = UNIX_EPOCH + Duration::from_millis(member.joined_unix_ms);
    Participant {
        participant_id: member.session,
        session_id: member.session,
        display_name: member.display_name.clone(),
        preferred_lang: member.preferred_lang,
        raw_voice_preferences: preferences.collect(),
        joined_at: humantime::format_rfc3339_millis(joined).to_string(),
    }
}

#[cfg(test)]
mod tests;
