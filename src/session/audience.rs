//! Who else hears what a session says, and in which language.
//!
//! An utterance said in a room becomes one job for each language that somebody there hears,
//! however many hear it. One of them is the *primary*: the speaker waits for its end. The others
//! run in lanes of their own, each in the order of the utterances, so that a language that lags
//! holds up no other. What is told to listeners is built once for each language.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::protocol::job::{Audience, Heard, JobSpec};
use crate::protocol::room::InRoom;
use crate::protocol::session::{Event, TranslationResult};
use crate::protocol::{JobId, Lang, RoomCode, SessionId};
use crate::telemetry::Now;

use super::answers::late;
use super::sequencer::{Release, Sequencer};
use super::{Answer, Effect, Effects, Past, Session};

/// The others in a speaker's room.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hearers {
    /// The room.
    pub room: RoomCode,
    /// The speaker's seat in it.
    pub seat: u32,
    /// Who is there beside the speaker, each with the language to be heard in.
    pub members: Vec<(SessionId, Lang)>,
}

impl Hearers {
    /// The jobs of an utterance: the primary, and one for each further language. Members who hear
    /// the language spoken read what was said, for which the primary is enough.
    fn jobs(&self, spec: JobSpec) -> (JobSpec, Vec<JobSpec>) {
        let mut listeners: BTreeMap<Lang, Vec<SessionId>> = BTreeMap::new();
        let mut readers = Vec::new();
        for (session, lang) in &self.members {
            match *lang == spec.src {
                true => readers.push(*session),
                false => listeners.entry(*lang).or_default().push(*session),
            }
        }
        let own = spec.tgt;
        let primary = match listeners.first_key_value() {
            Some((first, _)) if !listeners.contains_key(&own) => *first,
            _ => own,
        };
        let mut job = |lang: Lang| {
            let primary = lang == primary;
            let audience = Audience {
                room: self.room,
                seat: self.seat,
                primary,
                wanted: lang == own,
                listeners: listeners.remove(&lang).unwrap_or_default(),
                readers: if primary { std::mem::take(&mut readers) } else { Vec::new() },
            };
            JobSpec {
                tgt: lang,
                turn: if lang == own { spec.turn } else { spec.turn.into_lang(lang) },
                // Each has a direction of its own, whatever two the session speaks.
                mode: spec.mode.as_ref().map(|_| "one_way".into()),
                audience: Some(Box::new(audience)),
                ..spec.clone()
            }
        };
        let first = job(primary);
        let langs: Vec<Lang> = self.members.iter().map(|(_, lang)| *lang).collect();
        let mut rest: Vec<Lang> =
            langs.into_iter().filter(|lang| *lang != spec.src && *lang != primary).collect();
        rest.sort_unstable();
        rest.dedup();
        (first, rest.into_iter().map(job).collect())
    }
}

/// What ends an utterance: for the speaker, if it is the primary's end, and for listeners.
#[derive(Debug)]
pub(super) struct Word {
    pub(super) job: JobId,
    pub(super) frame: Option<Bytes>,
    pub(super) heard: Vec<Heard>,
}

impl Word {
    /// Marked as one that comes after what it should have come before.
    pub(super) fn late(self) -> Self {
        let mark = |heard: Heard| Heard { frame: late(&heard.frame), ..heard };
        Self {
            job: self.job,
            frame: self.frame.as_ref().map(late),
            heard: self.heard.into_iter().map(mark).collect(),
        }
    }
}

/// A session's utterances in one further language.
#[derive(Debug)]
pub(super) struct Lane {
    pub(super) open: BTreeMap<u64, JobId>,
    sequencer: Sequencer<Word>,
}

impl Lane {
    pub(super) fn new(gap_wait_ms: u64) -> Self {
        Self { open: BTreeMap::new(), sequencer: Sequencer::new(gap_wait_ms) }
    }

    pub(super) fn opened(&mut self, index: u64, job: JobId) {
        self.open.insert(index, job);
        self.sequencer.open(index);
    }

    fn reopened(&mut self, index: u64, job: JobId) {
        self.open.insert(index, job);
        self.sequencer.expect_late(index);
    }

    pub(super) fn gap_over_at(&self) -> Option<u64> {
        self.sequencer.gap_over_at()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.open.is_empty() && self.sequencer.is_empty()
    }
}

/// What of a job is for others than its speaker.
#[derive(Debug, Clone)]
pub struct ForOthers {
    /// Who.
    pub audience: Audience,
    /// The language spoken.
    pub src: Lang,
    /// The language of the translation.
    pub tgt: Lang,
}

/// Something that was said in a room, for those who come later.
#[derive(Debug, Clone)]
pub struct Said {
    /// The room.
    pub room: RoomCode,
    /// Tells the utterance from all others of the room, and sorts those of one speaker.
    pub place: u64,
    /// The language of the text.
    pub lang: Lang,
    /// Whether it is what was said, not a translation.
    pub is_transcript: bool,
    /// As the listeners were told, without the speech.
    pub frame: Bytes,
}

impl ForOthers {
    /// Of this job, if others hear it.
    pub fn of(spec: &JobSpec) -> Option<Box<Self>> {
        let audience = spec.audience.as_deref()?.clone();
        Some(Box::new(Self { audience, src: spec.src, tgt: spec.tgt }))
    }

    /// What others are told about the end of the job, each frame once, and what later ones may
    /// ask for. Nothing, if there is nothing to hear and nothing is wrong.
    pub fn told(
        &self,
        answer: &Answer,
        job: JobId,
        speaker: (SessionId, u64),
        trace_id: &str,
        unix_ms: u64,
    ) -> (Vec<Heard>, Vec<Said>) {
        let Audience { room, seat, listeners, readers, .. } = &self.audience;
        let (session_id, utterance_index) = speaker;
        // Clients tell results apart by this number alone, whoever spoke.
        let place = u64::from(*seat) << 32 | (utterance_index & u64::from(u32::MAX));
        let mut heard = Vec::new();
        let mut tell = |listeners: &[SessionId], frame: Bytes| {
            if !listeners.is_empty() {
                heard.push(Heard { listeners: listeners.to_vec(), frame });
            }
        };
        let result = match answer {
            Answer::Result(result) => result,
            Answer::Nothing(_) => return Default::default(),
            Answer::Failed { reason, .. } => {
                let (trace_id, utterance_index) = (trace_id.to_owned(), place);
                let (reason, created_at_ms) = (*reason, unix_ms);
                let event = Event::MissingResult {
                    session_id,
                    utterance_index,
                    reason,
                    created_at_ms,
                    trace_id,
                };
                tell(&[listeners.as_slice(), readers].concat(), event.encode());
                return (heard, Vec::new());
            }
        };
        let frame_in = |lang: Lang| {
            let room = InRoom { code: *room, utterance_index, src_lang: self.src, lang };
            let place = (session_id, place);
            let plain = TranslationResult::plain(job, place, trace_id, result, unix_ms);
            TranslationResult { room: Some(room), ..plain }
        };
        let translation = frame_in(self.tgt);
        tell(listeners, translation.encode(&result.tts_audio));
        let transcript = TranslationResult { text_translated: "", ..frame_in(self.src) };
        let has_text = !result.text_asr.trim().is_empty();
        if has_text {
            tell(readers, transcript.encode(b""));
        }
        let text_of = |frame: &TranslationResult<'_>, lang, is_transcript| {
            let frame = frame.encode(b"");
            Said { room: *room, place, lang, is_transcript, frame }
        };
        let mut said = vec![text_of(&translation, self.tgt, false)];
        if self.audience.primary && has_text {
            said.push(text_of(&transcript, self.src, true));
        }
        (heard, said)
    }
}

impl Past {
    /// One of its jobs is taken back: who hears it hears the rest of its turn.
    pub fn remember_hearers(&mut self, spec: &JobSpec) {
        let Some(audience) = spec.audience.as_deref() else { return };
        if audience.primary {
            self.shared.insert(spec.utterance_index);
        }
        let room = (audience.room, audience.seat);
        let hearers =
            self.hearers.get_or_insert(Hearers { room: room.0, seat: room.1, members: Vec::new() });
        if (hearers.room, hearers.seat) != room {
            return;
        }
        let listeners = audience.listeners.iter().map(|session| (*session, spec.tgt));
        let readers = audience.readers.iter().map(|session| (*session, spec.src));
        for member in listeners.chain(readers) {
            if !hearers.members.contains(&member) {
                hearers.members.push(member);
            }
        }
    }
}

impl Session {
    /// The room was entered, left, or has others in it now. An utterance that has begun goes to
    /// those who were there then.
    pub(super) fn surround(&mut self, hearers: Option<Hearers>) {
        self.hearers = hearers;
        self.lanes.retain(|_, lane| !lane.is_empty());
    }

    /// The jobs of an utterance that begins now, or goes on.
    pub(super) fn jobs_of(&mut self, spec: JobSpec, goes_on: bool) -> (JobSpec, Vec<JobSpec>) {
        if !goes_on {
            self.turn_hearers = self.hearers.clone();
        }
        let hearers = self.turn_hearers.as_ref().filter(|hearers| !hearers.members.is_empty());
        let Some(hearers) = hearers else { return (spec, Vec::new()) };
        self.shared.insert(spec.utterance_index);
        hearers.jobs(spec)
    }

    /// The jobs of a whole recording, which is no part of a turn.
    pub(super) fn jobs_of_whole(&mut self, spec: JobSpec) -> (JobSpec, Vec<JobSpec>) {
        let hearers = self.hearers.as_ref().filter(|hearers| !hearers.members.is_empty());
        let Some(hearers) = hearers else { return (spec, Vec::new()) };
        self.shared.insert(spec.utterance_index);
        hearers.jobs(spec)
    }

    /// The submission of `index` into a further language made a job.
    pub fn submitted_for_others(&mut self, index: u64, lang: Lang, job: JobId) {
        self.lane(lang).opened(index, job);
    }

    /// The utterance, which listeners of that language were told of, is done again for them.
    pub fn reopened_for_others(&mut self, index: u64, lang: Lang, job: JobId) {
        self.lane(lang).reopened(index, job);
    }

    fn lane(&mut self, lang: Lang) -> &mut Lane {
        let gap_wait_ms = self.config.result_gap_wait_ms;
        self.lanes.entry(lang).or_insert_with(|| Lane::new(gap_wait_ms))
    }

    /// A job for others than the speaker has ended.
    pub(super) fn settled_for_others(
        &mut self,
        (index, job): (u64, JobId),
        answer: &Answer,
        others: &ForOthers,
        now: Now,
        effects: &mut Effects,
    ) {
        let heard = self.told_others((index, job), answer, others, now, effects);
        let Some(lane) = self.lanes.get_mut(&others.tgt) else { return };
        if lane.open.get(&index) == Some(&job) {
            lane.open.remove(&index);
            let word = Word { job, frame: None, heard };
            lane.sequencer.settle(index, word, now.us, &mut self.releases);
            self.release_lanes(now, effects);
        }
    }

    /// What others are told about the end of a job.
    pub(super) fn told_others(
        &mut self,
        (index, job): (u64, JobId),
        answer: &Answer,
        others: &ForOthers,
        now: Now,
        effects: &mut Effects,
    ) -> Vec<Heard> {
        let trace = self.trace(index);
        let (heard, said) = others.told(answer, job, (self.id, index), trace, now.unix_ms);
        effects.extend(said.into_iter().map(|said| Effect::Said(Box::new(said))));
        heard
    }

    /// Has what the lanes let go kept and told.
    pub(super) fn release_lanes(&mut self, now: Now, effects: &mut Effects) {
        for lane in self.lanes.values_mut() {
            lane.sequencer.release(now.us, &mut self.releases);
            for release in self.releases.drain(..) {
                let (index, word) = match release {
                    Release::InOrder(index, word) => (index, word),
                    Release::Late(index, word) => (index, word.late()),
                    // Listeners are told of results; what is late says so itself.
                    Release::Gap(_) => continue,
                };
                let Word { job, frame, heard } = word;
                effects.push(Effect::Record { index, job, frame, heard });
            }
        }
    }

    /// The session ends: everything settled is kept and told.
    pub(super) fn drain_lanes(&mut self, effects: &mut Effects) {
        for lane in self.lanes.values_mut() {
            for (index, Word { job, frame, heard }) in lane.sequencer.drain() {
                effects.push(Effect::Record { index, job, frame, heard });
            }
        }
    }

    /// What somebody else said in the room is on disk, under this number; or is only told.
    pub(super) fn hear(
        &mut self,
        job: JobId,
        frame: &Bytes,
        seq: Option<u64>,
        effects: &mut Effects,
    ) {
        let Some(seq) = seq else { return effects.push(Effect::Send(frame.clone(), Some(job))) };
        if self.delivery.recorded(seq, frame.len(), false) {
            effects.push(Effect::Deliver { frame: self.numbered(frame, seq), job, seq });
        }
        // A client that does not acknowledge what it hears cannot be asked to speak less.
        let (frames, bytes) = (2 * self.config.owed_frames_max, 2 * self.config.owed_bytes_max);
        if let Some(through) = self.delivery.give_up_beyond(frames, bytes) {
            effects.push(Effect::Forfeit(through));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::job::samples::spec;

    const TAGS: [&str; 5] = ["en", "es", "de", "zh", "fr"];

    fn lang(tag: &str) -> Lang {
        tag.parse().unwrap()
    }

    fn jobs(src: &str, tgt: &str, members: Vec<(SessionId, Lang)>) -> (JobSpec, Vec<JobSpec>) {
        Hearers { room: RoomCode(123_456), seat: 1, members }.jobs(spec(src, tgt))
    }

    proptest! {
        /// There is a job for each language heard, one of them primary, and everybody is in one.
        #[test]
        fn each_member_is_served_once_and_each_language_done_once(
            src in 0_usize..5,
            tgt in 0_usize..5,
            members in prop::collection::vec(0_usize..5, 1..8),
        ) {
            let members: Vec<(SessionId, Lang)> = members
                .into_iter()
                .enumerate()
                .map(|(id, tag)| (SessionId(id as u64), lang(TAGS[tag])))
                .collect();
            let (primary, others) = jobs(TAGS[src], TAGS[tgt], members.clone());
            let all: Vec<&JobSpec> = std::iter::once(&primary).chain(&others).collect();
            prop_assert!(primary.is_primary() && others.iter().all(|job| !job.is_primary()));
            let mut heard: Vec<Lang> = members.iter().map(|(_, lang)| *lang).collect();
            heard.retain(|lang| *lang != primary.src);
            heard.sort_unstable();
            heard.dedup();
            prop_assert_eq!(all.len(), heard.len().max(1));
            for (session, wants) in members {
                let serves = |job: &&JobSpec| {
                    let audience = job.audience.as_ref().unwrap();
                    let listens = audience.listeners.contains(&session);
                    let reads = audience.readers.contains(&session);
                    assert!(!listens || job.tgt == wants);
                    assert!(!reads || job.src == wants);
                    listens || reads
                };
                prop_assert_eq!(all.iter().copied().filter(serves).count(), 1);
            }
            for (at, job) in all.iter().enumerate() {
                let wanted = job.audience.as_ref().unwrap().wanted;
                prop_assert_eq!(wanted, job.tgt == lang(TAGS[tgt]));
                prop_assert!(all[at + 1..].iter().all(|o| o.tgt != job.tgt && o.turn != job.turn));
            }
            let own = heard.is_empty() || heard.contains(&lang(TAGS[tgt]));
            prop_assert_eq!(primary.audience.as_ref().unwrap().wanted, own);
        }
    }
}
