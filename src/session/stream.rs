//! Which numbered chunks of the audio stream are safe.
//!
//! ```text
//!   chunk:   1    2    3    4    5
//!   bytes: ├────┼────┼────┼────┼────┤
//!   cut:   ├──────────┤ job a: through 2, 2 bytes of 3     then committed: 1 and 2 are safe
//! ```
//! A chunk is safe when all of it went into jobs that are on disk, or was silence. It knows numbers
//! and lengths, never audio.

use std::collections::VecDeque;

use crate::protocol::job::ChunkMark;

/// The chunks of one session. Bytes leave in the order they came.
#[derive(Debug, Default)]
pub(super) struct Stream {
    /// The last chunk that came, 0 for none.
    last: u64,
    /// Bytes of the chunk behind `last` that an earlier life of the server has committed.
    had: u32,
    /// Where each chunk that is still held ends, counted in bytes since the beginning.
    ends: VecDeque<(u64, u64)>,
    came: u64,
    left: u64,
    /// End of the last chunk that has left whole, and its number.
    passed: (u64, u64),
    /// Cuts from the first on whose job is not on disk yet.
    unkept: VecDeque<Cut>,
    /// The last safe chunk, and the last that the client was told.
    safe: u64,
    told: u64,
}

/// What became one utterance.
#[derive(Debug)]
struct Cut {
    index: u64,
    /// The last chunk that is whole in it and in those before it.
    through: u64,
    /// It is on disk.
    kept: bool,
    /// As it is committed.
    mark: ChunkMark,
}

impl Stream {
    /// Of a session that an earlier life of the server has committed up to `mark`.
    pub(super) fn restored(mark: Option<ChunkMark>) -> Self {
        let mark = mark.unwrap_or_default();
        let last = mark.through;
        Self { last, had: mark.skip, passed: (0, last), safe: last, told: last, ..Self::default() }
    }

    /// The last chunk that need not be sent again.
    pub(super) fn last(&self) -> u64 {
        self.last
    }

    /// A chunk comes: none if it came before, else how many of its bytes did.
    pub(super) fn arrive(&mut self, seq: u64, len: usize) -> Option<usize> {
        if seq <= self.last {
            return None;
        }
        let had = if seq == self.last + 1 { len.min(self.had as usize) } else { 0 };
        self.last = seq;
        self.had = 0;
        self.came += had as u64;
        self.left += had as u64;
        Some(had)
    }

    /// So many bytes of the chunk were taken in.
    pub(super) fn took(&mut self, seq: u64, len: usize) {
        self.came += len as u64;
        match self.ends.back_mut() {
            Some((end, last)) if *end == self.came => *last = seq,
            _ => self.ends.push_back((self.came, seq)),
        }
    }

    fn leave(&mut self, bytes: usize) {
        self.left += bytes as u64;
        while let Some((end, seq)) = self.ends.front().copied().filter(|(end, _)| *end <= self.left)
        {
            self.passed = (end, seq);
            self.ends.pop_front();
        }
    }

    /// So many bytes went as silence.
    pub(super) fn silent(&mut self, bytes: usize) {
        self.leave(bytes);
        self.nothing_lost(self.passed.1);
    }

    /// What was behind the last cut and up to `through` needs no disk.
    fn nothing_lost(&mut self, through: u64) {
        match self.unkept.back_mut() {
            Some(cut) => cut.through = through.max(cut.through),
            None => self.safe = through.max(self.safe),
        }
    }

    /// So many bytes were cut into this utterance; the mark to commit with them.
    pub(super) fn cut(&mut self, index: u64, bytes: usize) -> Option<ChunkMark> {
        if self.came == 0 {
            return None;
        }
        self.leave(bytes);
        let (end, through) = self.passed;
        let skip = u32::try_from(self.left - end).unwrap_or(u32::MAX);
        let mark = ChunkMark { through, skip };
        self.unkept.push_back(Cut { index, through, kept: false, mark });
        Some(mark)
    }

    /// The utterance was refused, and the client told: its audio is not awaited any more.
    pub(super) fn refused(&mut self, index: u64) {
        let Some(at) = self.unkept.iter().position(|cut| cut.index == index) else { return };
        let Some(refused) = self.unkept.remove(at) else { return };
        match at.checked_sub(1).and_then(|before| self.unkept.get_mut(before)) {
            Some(cut) => cut.through = refused.through.max(cut.through),
            None => self.safe = refused.through.max(self.safe),
        }
    }

    /// The mark of the utterance, if it was cut from the stream and is not on disk.
    pub(super) fn unkept(&self, index: u64) -> Option<ChunkMark> {
        self.unkept.iter().find(|cut| cut.index == index && !cut.kept).map(|cut| cut.mark)
    }

    /// The job of this utterance, or its end, is on disk.
    pub(super) fn kept(&mut self, index: u64) {
        if let Some(cut) = self.unkept.iter_mut().find(|cut| cut.index == index) {
            cut.kept = true;
        }
        while let Some(cut) = self.unkept.front().filter(|cut| cut.kept) {
            self.safe = self.safe.max(cut.through);
            self.unkept.pop_front();
        }
    }

    /// The client may not have got what it was told.
    pub(super) fn tell_again(&mut self) {
        self.told = 0;
    }

    /// The last safe chunk, if the client has not been told of it.
    pub(super) fn told(&mut self) -> Option<u64> {
        let news = self.safe > self.told;
        self.told = self.safe;
        news.then_some(self.safe)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(stream: &mut Stream, seq: u64, len: usize) {
        assert_eq!(stream.arrive(seq, len), Some(0));
        stream.took(seq, len);
    }

    #[test]
    fn a_chunk_is_safe_when_all_of_it_is_on_disk() {
        let mut stream = Stream::default();
        (1..=3).for_each(|seq| take(&mut stream, seq, 10));
        assert_eq!(stream.cut(0, 25), Some(ChunkMark { through: 2, skip: 5 }));
        assert_eq!(stream.told(), None);
        stream.kept(0);
        assert_eq!((stream.told(), stream.told()), (Some(2), None));
        take(&mut stream, 4, 0);
        assert_eq!(stream.cut(1, 5), Some(ChunkMark { through: 4, skip: 0 }));
        stream.kept(1);
        assert_eq!(stream.told(), Some(4));
    }

    #[test]
    fn silence_is_safe_once_what_was_before_it_is() {
        let mut stream = Stream::default();
        (1..=4).for_each(|seq| take(&mut stream, seq, 10));
        stream.silent(10);
        assert_eq!(stream.told(), Some(1));
        stream.cut(0, 10);
        stream.silent(10);
        assert_eq!(stream.told(), None);
        stream.kept(0);
        assert_eq!(stream.told(), Some(3));
    }

    #[test]
    fn cuts_become_safe_in_order_and_a_refused_one_blocks_nothing() {
        let mut stream = Stream::default();
        (1..=3).for_each(|seq| take(&mut stream, seq, 10));
        for index in 0..3 {
            stream.cut(index, 10);
        }
        stream.kept(0);
        assert_eq!(stream.told(), Some(1));
        stream.refused(1);
        assert_eq!(stream.told(), Some(2));
        stream.kept(2);
        assert_eq!(stream.told(), Some(3));
    }

    #[test]
    fn a_cut_that_is_not_on_disk_holds_back_those_behind_it() {
        let mut stream = Stream::default();
        (1..=2).for_each(|seq| take(&mut stream, seq, 10));
        for index in 0..2 {
            stream.cut(index, 10);
        }
        stream.kept(1);
        assert_eq!(stream.told(), None);
        stream.kept(0);
        assert_eq!(stream.told(), Some(2));
    }

    #[test]
    fn after_a_restart_the_rest_of_a_cut_chunk_is_taken_and_no_more() {
        let mut stream = Stream::restored(Some(ChunkMark { through: 2, skip: 4 }));
        assert_eq!(stream.arrive(2, 10), None);
        assert_eq!(stream.arrive(3, 10), Some(4));
        stream.took(3, 6);
        assert_eq!(stream.cut(7, 2), Some(ChunkMark { through: 2, skip: 6 }));
        assert_eq!(stream.cut(8, 4), Some(ChunkMark { through: 3, skip: 0 }));
    }
}
