//! What a fuzzer's bytes say to do.

/// Numbers and bytes from the input, in order. Past its end all are zero.
#[derive(Debug, Clone)]
pub struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    /// The script in `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Script(bytes)
    }

    /// Whether nothing is left.
    pub fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    /// The next `count` bytes, or what is left.
    pub fn bytes(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    /// All that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        self.bytes(usize::MAX)
    }

    fn number(&mut self, count: usize) -> u64 {
        let mut bytes = [0; 8];
        let taken = self.bytes(count);
        bytes[..taken.len()].copy_from_slice(taken);
        u64::from_le_bytes(bytes)
    }

    pub fn u8(&mut self) -> u8 {
        self.number(1) as u8
    }

    pub fn u16(&mut self) -> u16 {
        self.number(2) as u16
    }

    pub fn u32(&mut self) -> u32 {
        self.number(4) as u32
    }

    pub fn u64(&mut self) -> u64 {
        self.number(8)
    }

    pub fn flag(&mut self) -> bool {
        self.u8() & 1 != 0
    }

    /// A number of one byte, in which small ones and those at the borders of words are likely, or any other.
    pub fn value(&mut self) -> u64 {
        match self.u8() {
            0xf8 => self.u64(),
            0xf9 => self.u32().into(),
            0xfa => self.u16().into(),
            0xfb => u64::MAX - u64::from(self.u8()),
            0xfc => u64::from(u32::MAX) - u64::from(self.u8()),
            0xfd => 1 << (self.u8() % 64),
            0xfe => 0x8000,
            0xff => 0xffff,
            small => small.into(),
        }
    }

    /// 1, 2, 4 or 8.
    pub fn size(&mut self) -> u8 {
        1 << (self.u8() % 4)
    }

    /// One of `choices`.
    pub fn pick<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[usize::from(self.u8()) % choices.len()]
    }

    /// Text, of whatever is UTF-8 in it.
    pub fn text(&mut self) -> String {
        let count = self.u8().into();
        String::from_utf8_lossy(self.bytes(count)).into_owned()
    }
}
