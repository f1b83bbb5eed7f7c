//! The way out of a connection: `transport::Outbox` beside a plain queue.

use std::collections::VecDeque;

use bytes::Bytes;
use utterd::transport::{Frame, Outbox, Refusal};

use super::script::Script;

pub fn run(input: &[u8]) {
    let mut script = Script::new(input);
    let (frames_max, bytes_max) = (script.pick(9), usize::from(script.any::<u16>()) % 2_000);
    let real: std::sync::Arc<Outbox<u32>> = Outbox::new(frames_max, bytes_max);
    let mut twin: VecDeque<(u32, usize)> = VecDeque::new();
    let (mut closed, mut request, mut next) = (false, None, 0);
    while !script.is_over() {
        match script.pick(8) {
            0..=3 => {
                let len = usize::from(script.any::<u16>()) % script.of(&[1, 100, 2_100]);
                next += 1;
                let held: usize = twin.iter().map(|(_, len)| len).sum();
                let wanted = match () {
                    () if closed => Some(Refusal::Closed),
                    () if twin.len() >= frames_max || held + len > bytes_max => Some(Refusal::Full),
                    () => None,
                };
                let pushed = real.push(Frame { text: Bytes::from(vec![b'x'; len]), tag: next });
                assert_eq!(pushed.as_ref().err().map(|refused| refused.why), wanted);
                match pushed {
                    Ok(()) => twin.push_back((next, len)),
                    Err(refused) => assert!(
                        refused.frame.tag == next && refused.frame.text.len() == len,
                        "what is refused is given back whole"
                    ),
                }
            }
            4 | 5 => {
                let popped = real.pop().map(|frame| (frame.tag, frame.text.len()));
                assert_eq!(popped, twin.pop_front());
            }
            6 => {
                real.close();
                closed = true;
            }
            _ => {
                let code = 1_000 + u16::from(script.any::<u8>());
                real.request_close(code, "asked");
                closed = true;
                request = request.or(Some(code));
            }
        }
        assert_eq!(real.frames(), twin.len());
        assert_eq!(real.bytes(), twin.iter().map(|(_, len)| len).sum::<usize>());
        assert_eq!(real.is_closed(), closed);
        assert_eq!(real.is_drained(), closed && twin.is_empty());
        assert_eq!(real.close_requested().map(|asked| asked.code), request);
        assert_eq!(real.bytes_max(), bytes_max);
    }
}
