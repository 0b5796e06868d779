//! The seal of a row: a checksum that detects flipped bits.

/// A CRC-32 over the fields of a row. The checksum also covers the length of each text or blob. So two rows
/// with different fields never have the same input bytes.
pub(in crate::store) struct Seal {
    summed: crc32fast::Hasher,
    /// A buffer for short fields, because hashing many short slices costs several times as much as hashing
    /// one long slice.
    waiting: [u8; WAITING],
    len: usize,
}

/// 256 bytes: enough for all fields of most rows except the body.
const WAITING: usize = 256;

impl Default for Seal {
    fn default() -> Self {
        Self {
            summed: crc32fast::Hasher::new(),
            waiting: [0; WAITING],
            len: 0,
        }
    }
}

impl Seal {
    pub(in crate::store) fn number(mut self, value: i64) -> Self {
        self.add(&value.to_le_bytes());
        self
    }

    pub(in crate::store) fn bytes(self, value: impl AsRef<[u8]>) -> Self {
        let value = value.as_ref();
        let mut sealed = self.number(i64::try_from(value.len()).unwrap_or(-1));
        sealed.add(value);
        sealed
    }

    pub(in crate::store) fn maybe(self, value: Option<impl AsRef<[u8]>>) -> Self {
        match value {
            Some(value) => self.bytes(value),
            None => self.number(-1),
        }
    }

    pub(in crate::store) fn end(mut self) -> i64 {
        self.sum_up();
        i64::from(self.summed.finalize())
    }

    fn add(&mut self, bytes: &[u8]) {
        if bytes.len() > WAITING - self.len {
            self.sum_up();
        }
        match self.waiting.get_mut(self.len..self.len + bytes.len()) {
            Some(free) => {
                free.copy_from_slice(bytes);
                self.len += bytes.len();
            }
            None => self.summed.update(bytes),
        }
    }

    fn sum_up(&mut self) {
        self.summed.update(&self.waiting[..self.len]);
        self.len = 0;
    }
}
