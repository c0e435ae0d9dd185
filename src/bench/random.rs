//! Random numbers for benches: quick to draw, the same on every run.

/// xorshift64.
pub struct Random(pub u64);

impl Random {
    pub fn bits(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// From 0 to below 1.
    fn uniform(&mut self) -> f32 {
        (self.bits() >> 11) as f32 / (1u64 << 53) as f32
    }

    /// Normally distributed (Box-Muller).
    pub fn normal(&mut self) -> f32 {
        (-2.0 * (1.0 - self.uniform()).ln()).sqrt() * (std::f32::consts::TAU * self.uniform()).cos()
    }
}
