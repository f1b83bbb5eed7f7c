//! Rooms against what members see of them.

use proptest::prelude::*;

use super::*;
use crate::protocol::JobId;
use crate::session::Answer;

const SECOND: u64 = 1_000;

fn lang(tag: &str) -> Lang {
    tag.parse().unwrap()
}

/// Rooms, and what each session was last told.
struct World {
    rooms: Rooms,
    now_ms: u64,
    said: Vec<(SessionId, serde_json::Value)>,
    views: BTreeMap<SessionId, Option<Arc<RoomView>>>,
    disk: BTreeMap<RoomCode, RoomRow>,
    refused: Vec<RoomFault>,
}

impl World {
    fn new(change: impl Fn(&mut config::Room)) -> Self {
        let mut config = config::Room::default();
        change(&mut config);
        Self::restored(config, Vec::new(), |_| false, SECOND)
    }

    fn restored(
        config: config::Room,
        rows: Vec<RoomRow>,
        is_there: impl Fn(SessionId) -> bool,
        now_ms: u64,
    ) -> Self {
        let mut effects = Vec::new();
        let rooms = Rooms::restored(config, rows, is_there, now_ms, &mut effects);
        let (said, views) = (Vec::new(), BTreeMap::new());
        let mut world =
            Self { rooms, now_ms, said, views, disk: BTreeMap::new(), refused: Vec::new() };
        world.perform(effects);
        world
    }

    fn apply(&mut self, input: RoomInput) {
        let mut effects = Vec::new();
        self.rooms.apply(input, self.now_ms, &mut effects);
        self.perform(effects);
    }

    fn perform(&mut self, effects: Vec<RoomEffect>) {
        for effect in effects {
            match effect {
                RoomEffect::Say(session, frame) => {
                    self.said.push((session, serde_json::from_slice(&frame).unwrap()));
                }
                RoomEffect::View(session, view) => drop(self.views.insert(session, view)),
                RoomEffect::Keep(row) => drop(self.disk.insert(row.code, row)),
                RoomEffect::Drop(code) => drop(self.disk.remove(&code)),
                RoomEffect::Refused(fault) => self.refused.push(fault),
            }
        }
    }

    fn ask(&mut self, session: u64, request: RoomRequest) -> Result<(), RoomFault> {
        let before = self.refused.len();
        self.apply(RoomInput::Request(SessionId(session), lang("en"), request));
        self.refused.get(before).map_or(Ok(()), |fault| Err(*fault))
    }

    fn create(&mut self, session: u64, hears: &str) -> String {
        let seat = Seat { display_name: None, preferred_lang: Some(lang(hears)) };
        self.ask(session, RoomRequest::Create(seat)).unwrap();
        self.view(session).expect("it is in its room").code.to_string()
    }

    fn join(&mut self, session: u64, code: &str, hears: &str) -> Result<(), RoomFault> {
        let seat = Seat { display_name: None, preferred_lang: Some(lang(hears)) };
        self.ask(session, RoomRequest::Join(code.to_owned(), seat))
    }

    fn view(&self, session: u64) -> Option<&Arc<RoomView>> {
        self.views.get(&SessionId(session))?.as_ref()
    }

    fn in_room(&self, session: u64) -> Vec<u64> {
        self.view(session).map_or(vec![], |v| v.members().map(|m| m.session.0).collect())
    }
}

#[test]
fn a_joiner_is_told_like_a_creator_and_everybody_sees_who_is_there() {
    let mut world = World::new(|_| {});
    let code = world.create(1, "en");
    world.join(2, &code, "es").unwrap();
    for (at, session) in [1, 2].into_iter().enumerate() {
        let (told, ack) = &world.said[at];
        assert_eq!((told.0, ack["type"].as_str()), (session, Some("room_create_ack")));
        assert_eq!(ack["room_code"], code.as_str());
        assert_eq!(world.in_room(session), [1, 2]);
    }
    let frame: serde_json::Value = serde_json::from_slice(&world.view(1).unwrap().frame).unwrap();
    assert_eq!(frame["members"][1]["preferred_lang"], "es");
    assert_eq!(frame["members"][1]["joined_at"], "1970-01-01T00:00:01.000Z");
    assert_eq!(world.join(2, &code, "es"), Err(RoomFault::AlreadyInRoom));
    assert_eq!(world.join(3, "000000", "es"), Err(RoomFault::RoomNotFound));
    assert_eq!(world.said.last().unwrap().1["message"], "房间不存在");
}

#[test]
fn a_session_is_in_one_room_and_a_room_that_is_left_by_all_is_gone() {
    let mut world = World::new(|_| {});
    let first = world.create(1, "en");
    world.join(2, &first, "es").unwrap();
    let second = world.create(2, "es");
    assert_eq!((world.in_room(1), world.in_room(2)), (vec![1], vec![2]));
    world.ask(1, RoomRequest::Leave(second.clone())).expect("it is not there, which is no fault");
    assert_eq!(world.in_room(1), [1]);
    world.ask(1, RoomRequest::Leave(first.clone())).unwrap();
    assert!(world.view(1).is_none());
    assert_eq!(world.ask(1, RoomRequest::Leave(first)), Err(RoomFault::RoomNotFound));
    assert_eq!(world.disk.keys().map(ToString::to_string).collect::<Vec<_>>(), [second]);
}

#[test]
fn who_is_lost_is_not_there_any_more_and_may_come_again() {
    let mut world = World::new(|config| config.empty_ms = 10 * SECOND);
    let code = world.create(1, "en");
    world.join(2, &code, "es").unwrap();
    world.apply(RoomInput::Gone(SessionId(2)));
    assert_eq!(world.in_room(1), [1]);
    world.apply(RoomInput::Gone(SessionId(1)));
    world.now_ms += 9 * SECOND;
    world.apply(RoomInput::Tick);
    world.join(3, &code, "es").expect("the room waits for its own");
    world.apply(RoomInput::Gone(SessionId(3)));
    world.now_ms += 10 * SECOND;
    world.apply(RoomInput::Tick);
    assert_eq!(world.join(4, &code, "es"), Err(RoomFault::RoomNotFound));
    assert!(world.disk.is_empty());
}

#[test]
fn a_room_in_which_nobody_speaks_expires() {
    let mut world = World::new(|config| config.expire_ms = 60 * SECOND);
    let code = world.create(1, "en");
    world.join(2, &code, "es").unwrap();
    for _ in 0..5 {
        world.now_ms += 59 * SECOND;
        world.view(1).unwrap().spoken_unix_ms.store(world.now_ms, SeqCst);
        world.apply(RoomInput::Tick);
    }
    assert_eq!(world.disk.values().next().unwrap().active_unix_ms, world.now_ms);
    world.now_ms += 60 * SECOND;
    world.said.clear();
    world.apply(RoomInput::Tick);
    let told: Vec<_> = world.said.iter().map(|(id, event)| (id.0, &event["type"])).collect();
    assert_eq!(told, [(1, &"room_expired".into()), (2, &"room_expired".into())]);
    assert!(world.view(1).is_none() && world.view(2).is_none() && world.disk.is_empty());
}

#[test]
fn a_room_has_room_for_so_many_members_and_languages() {
    let mut world = World::new(|config| {
        (config.members_max, config.languages_max, config.rooms_max) = (3, 2, 1);
    });
    let code = world.create(1, "en");
    world.join(2, &code, "es").unwrap();
    assert_eq!(world.join(3, &code, "de"), Err(RoomFault::RoomFull));
    world.join(3, &code, "es").unwrap();
    assert_eq!(world.join(4, &code, "es"), Err(RoomFault::RoomFull));
    let prefer =
        |lang: &str| RoomRequest::Prefer { code: code.clone(), lang: lang.parse().unwrap() };
    assert_eq!(world.ask(3, prefer("de")), Err(RoomFault::RoomFull));
    world.ask(3, prefer("en")).unwrap();
    assert_eq!(world.ask(5, RoomRequest::Create(Seat::default())), Err(RoomFault::Overloaded));
}

#[test]
fn who_guesses_codes_may_not_go_on() {
    let mut world = World::new(|_| {});
    let code = world.create(1, "en");
    for _ in 0..WRONG_CODES_MAX {
        assert_eq!(world.join(2, "999999x", "es"), Err(RoomFault::RoomNotFound));
    }
    assert_eq!(world.join(2, &code, "es"), Err(RoomFault::RateLimited));
    world.join(3, &code, "es").expect("others are not kept out");
    world.now_ms += WRONG_CODES_MS;
    world.join(2, &code, "es").unwrap();
}

#[test]
fn calls_pass_between_members_alone_and_not_to_those_who_do_not_want_them() {
    let mut world = World::new(|_| {});
    let code = world.create(1, "en");
    world.join(2, &code, "es").unwrap();
    let (one, two, three) = (SessionId(1), SessionId(2), SessionId(3));
    let relays = |world: &World, from, to, offer| world.view(1).unwrap().relays(from, to, offer);
    assert!(relays(&world, one, two, true) && relays(&world, two, one, true));
    assert!(!relays(&world, three, two, true) && !relays(&world, one, three, false));
    assert!(!relays(&world, one, one, true));
    let target = two.to_string();
    world.ask(1, RoomRequest::RawVoice { code: code.clone(), target, receive: false }).unwrap();
    assert!(!relays(&world, two, one, true), "an offer to who does not want it");
    assert!(relays(&world, two, one, false), "an answer to its own offer");
    assert!(relays(&world, one, two, true));
    let target = one.to_string();
    let foreign = RoomRequest::RawVoice { code, target, receive: false };
    assert_eq!(world.ask(3, foreign), Err(RoomFault::RoomNotFound));
}

#[test]
fn a_restart_keeps_rooms_and_those_who_can_come_back() {
    let mut world = World::new(|_| {});
    let code = world.create(1, "en");
    world.join(2, &code, "es").unwrap();
    let rows: Vec<RoomRow> = world.disk.into_values().collect();
    let config = config::Room::default();
    let mut later = World::restored(config, rows, |id| id == SessionId(2), 500 * SECOND);
    assert_eq!(later.in_room(2), [2]);
    later.join(7, &code, "en").expect("the code is as good as before");
    let seats: Vec<u32> = later.view(2).unwrap().members().map(|member| member.seat).collect();
    assert_eq!(seats, [2, 3], "a seat is given once");
}

fn said(room: &str, place: u64, tag: &str, is_transcript: bool) -> RoomInput {
    let frame = Bytes::from(format!("{{\"place\":{place},\"lang\":\"{tag}\"}}"));
    let room = room.parse().unwrap();
    RoomInput::Said(Box::new(Said { room, place, lang: lang(tag), is_transcript, frame }))
}

#[test]
fn who_comes_later_can_ask_what_was_said_and_gets_it_in_its_language() {
    let mut world = World::new(|config| config.history_max = 7);
    let code = world.create(1, "es");
    world.apply(said(&code, 1, "es", false));
    for place in [2, 3] {
        world.apply(said(&code, place, "en", true));
        world.apply(said(&code, place, "de", false));
    }
    world.apply(said(&code, 3, "es", false));
    world.apply(said(&code, 4, "de", false));
    world.apply(said("999998", 9, "es", false));
    world.ask(1, RoomRequest::History { code: code.clone(), last: 2 }).unwrap();
    let results = world.said.last().unwrap().1["results"].clone();
    assert_eq!(
        results,
        serde_json::json!([
            {"place": 2, "lang": "en"}, {"place": 3, "lang": "es"},
        ])
    );
    world.ask(1, RoomRequest::History { code: code.clone(), last: 99 }).unwrap();
    assert_eq!(world.said.last().unwrap().1["results"].as_array().unwrap().len(), 3);
    assert_eq!(world.ask(2, RoomRequest::History { code, last: 1 }), Err(RoomFault::RoomNotFound));
}

#[test]
fn nothing_is_told_of_what_was_nothing() {
    let others = ForOthersScene::new();
    let (heard, said) = others.told(&Answer::Nothing("silence_detected"));
    assert!(heard.is_empty() && said.is_empty());
}

/// A job that others hear.
struct ForOthersScene(crate::session::ForOthers);

impl ForOthersScene {
    fn new() -> Self {
        let audience = crate::protocol::job::Audience {
            room: RoomCode(123_456),
            seat: 2,
            primary: true,
            wanted: true,
            listeners: vec![SessionId(1)],
            readers: vec![SessionId(2)],
        };
        Self(crate::session::ForOthers { audience, src: lang("en"), tgt: lang("es") })
    }

    fn told(&self, answer: &Answer) -> (Vec<crate::protocol::job::Heard>, Vec<Said>) {
        self.0.told(answer, JobId(1), (SessionId(9), 5), "trace", 7)
    }
}

#[test]
fn a_failure_is_told_to_listeners_and_readers_alike() {
    let answer = Answer::Failed {
        code: "JOB_TIMEOUT".into(),
        known: None,
        message: String::new(),
        reason: "job_timeout",
    };
    let (heard, said) = ForOthersScene::new().told(&answer);
    assert_eq!(heard[0].listeners, [SessionId(1), SessionId(2)]);
    let frame: serde_json::Value = serde_json::from_slice(&heard[0].frame).unwrap();
    assert_eq!(
        (&frame["type"], &frame["reason"]),
        (&"missing_result".into(), &"job_timeout".into())
    );
    assert_eq!(frame["utterance_index"], (2_u64 << 32) + 5);
    assert!(said.is_empty() && heard.len() == 1);
}

#[derive(Debug, Clone)]
enum Step {
    Create(u64),
    Join(u64, usize),
    Leave(u64),
    Gone(u64),
    Pass(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0_u64..6).prop_map(Step::Create),
        (0_u64..6, 0_usize..4).prop_map(|(session, room)| Step::Join(session, room)),
        (0_u64..6).prop_map(Step::Leave),
        (0_u64..6).prop_map(Step::Gone),
        (0_u64..50).prop_map(Step::Pass),
    ]
}

proptest! {
    /// Whatever happens, each session is in one room at most, sees what its fellows see, and the
    /// disk has the rooms there are.
    #[test]
    fn all_see_the_same(steps in prop::collection::vec(step(), 0..60)) {
        let mut world = World::new(|config| {
            (config.expire_ms, config.empty_ms, config.members_max) = (60_000, 20_000, 3);
        });
        for step in steps {
            let codes: Vec<String> = world.disk.keys().map(ToString::to_string).collect();
            match step {
                Step::Create(session) => {
                    let _outcome = world.ask(session, RoomRequest::Create(Seat::default()));
                }
                Step::Join(session, at) => {
                    if let Some(code) = codes.get(at) {
                        let _outcome = world.join(session, code, "en");
                    }
                }
                Step::Leave(session) => {
                    if let Some(view) = world.view(session) {
                        let code = view.code.to_string();
                        world.ask(session, RoomRequest::Leave(code)).unwrap();
                    }
                }
                Step::Gone(session) => world.apply(RoomInput::Gone(SessionId(session))),
                Step::Pass(seconds) => {
                    world.now_ms += seconds * SECOND;
                    world.apply(RoomInput::Tick);
                }
            }
            let mut seated = BTreeMap::new();
            for row in world.disk.values() {
                prop_assert!(row.members.len() <= 3);
                for member in &row.members {
                    prop_assert!(seated.insert(member.session, row.code).is_none());
                    let view = world.view(member.session.0).expect("a member sees its room");
                    prop_assert_eq!(view.code, row.code);
                    prop_assert!(view.members().eq(&row.members));
                }
            }
            for (session, view) in &world.views {
                prop_assert_eq!(view.as_ref().map(|v| v.code), seated.get(session).copied());
            }
            prop_assert_eq!(world.rooms.len(), (world.disk.len(), seated.len()));
        }
    }
}
