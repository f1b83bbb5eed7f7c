//! A fuzzer's bytes as a sequence of choices, read from front to back.

use arbitrary::{Arbitrary, Unstructured};

/// Choices. When the bytes are spent every further one is the first, or zero.
pub struct Script<'a>(Unstructured<'a>);

impl<'a> Script<'a> {
    pub fn new(input: &'a [u8]) -> Self {
        Self(Unstructured::new(input))
    }

    pub fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    /// A value of any size.
    pub fn any<T: Arbitrary<'a> + Default>(&mut self) -> T {
        self.0.arbitrary().unwrap_or_default()
    }

    /// One of `n`, from one byte: what was added to a list last does not change what the others
    /// mean, as long as there are fewer than 256.
    pub fn pick(&mut self, n: usize) -> usize {
        usize::from(self.any::<u8>()) % n.max(1)
    }

    /// One of those.
    pub fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.pick(choices.len())]
    }

    /// One time in `n`.
    pub fn seldom(&mut self, n: usize) -> bool {
        self.pick(n) == n - 1
    }

    /// As many bytes as the next two say, or as there are.
    pub fn bytes(&mut self, most: usize) -> &'a [u8] {
        let wanted = usize::from(self.any::<u16>()) % (most + 1);
        let len = wanted.min(self.0.len());
        self.0.bytes(len).unwrap_or_default()
    }

    /// All that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        let len = self.0.len();
        self.0.bytes(len).unwrap_or_default()
    }
}
