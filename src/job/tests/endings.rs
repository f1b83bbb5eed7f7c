//! What must not keep a job for ever: a turn without an end, a node that speaks and falls silent.

use super::*;
use crate::protocol::node::{AsrPartial, JobMark};

fn slice(world: &mut World, speaker: &Arc<Speaker>) -> Arc<Job> {
    world.submit(speaker, 0, 1, Cut::MaxDuration);
    world.flush();
    Arc::clone(&world.jobs[0])
}

#[test]
fn a_slice_whose_turn_can_get_no_end_is_tried_again_and_then_failed() {
    let mut world = World::new(small());
    let a = world.join("a");
    let b = world.join("b");
    let speaker = world.speaker(SessionId(1));
    let job = slice(&mut world, &speaker);
    world.advance(120_000);
    assert!(world.assigned.is_empty() && world.settled.is_empty(), "the turn may go on");
    speaker.end_turn(TurnId(2));
    world.advance(120_000);
    assert!(world.assigned.is_empty(), "another turn ended");
    speaker.end_turn(TurnId(1));
    for _ in 0..10 {
        world.advance(30_600);
        world.flush();
    }
    assert_eq!(settled(&world, &job), Some(Outcome::Failed));
    assert_eq!(job.ended().unwrap().code, Some(ErrorCode::JobTimeout));
    assert_eq!(job.ended().unwrap().attempts, 2, "each node had it once");
    assert_eq!((a.node.slots().0, b.node.slots().0), (0, 0));
    world.audit();
}

#[test]
fn a_recording_between_two_slices_of_a_turn_does_not_leave_the_first_one_open() {
    let mut world = World::new(small());
    world.join("a");
    let speaker = world.speaker(SessionId(1));
    let first = slice(&mut world, &speaker);
    world.submit(&speaker, 7, 2, Cut::Whole);
    world.submit(&speaker, 1, 1, Cut::Manual);
    world.flush();
    assert_eq!(world.held.len(), 3);
    // The node answers the recording and the end, and keeps the slice to itself.
    world.answer_with(2, |_| {});
    world.answer_with(1, |_| {});
    world.advance(10_000);
    assert_eq!(settled(&world, &first), Some(Outcome::Merged), "its turn is over");
    world.audit();
}

#[test]
fn a_turn_that_another_one_follows_is_over() {
    let mut world = World::new(small());
    world.join("a");
    let speaker = world.speaker(SessionId(1));
    let first = slice(&mut world, &speaker);
    world.submit(&speaker, 1, 2, Cut::MaxDuration);
    world.flush();
    for _ in 0..10 {
        world.advance(30_600);
        world.flush();
    }
    assert_eq!(settled(&world, &first), Some(Outcome::Failed), "nothing more comes of its turn");
    assert_eq!(world.jobs[1].state().outcome(), None, "the other may go on");
    world.audit();
}

#[test]
fn a_restart_closes_the_turns_behind_the_last_one() {
    let mut world = World::new(small());
    world.join("a");
    let speaker = world.speaker(SessionId(1));
    for (id, turn) in [(1, 1), (2, 2)] {
        let spec = JobSpec {
            session: speaker.session,
            utterance_index: id as u64,
            turn: TurnId(turn),
            cut: Cut::MaxDuration,
            ..spec("zh", "en")
        };
        let audio = Audio::Raw(Bytes::from_static(b"audio"));
        let (received_us, cut_us) = (1, 1);
        let submission = Submission { spec, audio, received_us, cut_us, chunks: None, key: None };
        world.scheduler.restore(JobId(id), &speaker, submission, world.now);
        world.jobs.push(world.scheduler.job(JobId(id)).unwrap());
    }
    let mut effects = Effects::new();
    world.scheduler.release_restored(world.now, &mut effects);
    world.perform(effects);
    world.flush();
    for _ in 0..4 {
        world.advance(30_600);
    }
    let jobs: Vec<_> = world.jobs.iter().map(|job| settled(&world, job)).collect();
    assert_eq!(jobs, [Some(Outcome::Failed), None], "only the last turn can go on");
    world.audit();
}

/// The socket reports what it has written after what it has read: a node can be faster.
#[test]
fn a_node_that_speaks_before_the_socket_does_has_a_lease_and_is_told_of() {
    let mark = |job: &Job, attempt| JobMark { job_id: job.id, attempt_id: Some(attempt) };
    for partial in [false, true] {
        let mut world = World::new(small());
        world.join("a");
        world.join("b");
        let speaker = world.speaker(SessionId(1));
        world.submit(&speaker, 0, 1, Cut::Manual);
        let (job, node, attempt) = world.assigned[0].clone();
        let mut effects = Effects::new();
        if partial {
            let partial = AsrPartial { job_id: job.id, text: String::new(), is_final: false };
            world.scheduler.partial(node, partial, world.now, &mut effects);
        } else {
            world.scheduler.started(node, &mark(&job, attempt), world.now, &mut effects);
        }
        let told = |e: &Effect| matches!(e, Effect::Progress(_, Progress::Dispatched));
        assert_eq!(effects.iter().filter(|e| told(e)).count(), 1);
        world.perform(effects);
        // Now the socket says it as well, and nothing more follows from that.
        world.flush();
        world.advance(120_000);
        let moved = world.assigned.iter().find(|(moved, ..)| moved.id == job.id);
        assert!(moved.is_some_and(|(_, other, _)| *other != node), "it went to the other node");
        world.audit();
    }
}
