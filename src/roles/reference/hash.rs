//! A 64-bit hash that notices accidental change: FNV-1a over words, mixed as MurmurHash3 ends.

/// Order matters, and the result is the same on every machine.
pub struct Hasher(u64);

impl Default for Hasher {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher {
    /// Takes one word in.
    pub fn word(&mut self, word: u64) {
        self.0 = (self.0 ^ mix(word)).wrapping_mul(0x0000_0100_0000_01b3);
    }

    /// The hash of everything so far.
    pub fn finish(&self) -> u64 {
        mix(self.0)
    }
}

fn mix(mut word: u64) -> u64 {
    word = (word ^ (word >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    word = (word ^ (word >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    word ^ (word >> 33)
}
