//! Rotary frequencies and their scalings, by the formulas of transformers' `modeling_rope_utils`, in f64.

use std::f64::consts::TAU;

/// One table of rotary angles.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// Base of the frequencies.
    pub theta: f64,
    /// How frequencies are changed for longer texts.
    pub scaling: Scaling,
}

/// How a model was stretched to longer texts.
#[derive(Clone, Debug, PartialEq)]
pub enum Scaling {
    /// Positions as they are.
    None,
    /// All positions divided by `factor`.
    Linear {
        /// Positions are divided by it.
        factor: f64,
    },
    /// Llama 3.1: long waves divided by `factor`, short ones kept, a ramp between.
    Llama3 {
        /// Low frequencies are divided by it.
        factor: f64,
        /// Up to this many turns in the original positions a frequency is low.
        low_freq_factor: f64,
        /// From this many on it is high.
        high_freq_factor: f64,
        /// Longest path before scaling.
        original_positions: f64,
    },
    /// YaRN, Peng et al. 2023, arXiv 2309.00071. `attention_factor` multiplies sines and cosines.
    Yarn {
        /// Low frequencies are divided by it.
        factor: f64,
        /// Of cosines and sines.
        attention_factor: f64,
        /// Turns from which a frequency stays.
        beta_fast: f64,
        /// Turns up to which it is divided.
        beta_slow: f64,
        /// Whether the borders between both are whole numbers.
        truncate: bool,
        /// Longest path before scaling.
        original_positions: f64,
    },
}

impl Rope {
    /// Angle per position of each pair of a head: (head_dim / 2).
    pub fn frequencies(&self, head_dim: usize) -> Vec<f64> {
        let half = head_dim / 2;
        let plain = |i: usize| self.theta.powf(-((2 * i) as f64) / head_dim as f64);
        (0..half).map(|i| self.scaled(i, plain(i), head_dim)).collect()
    }

    /// What sines and cosines are multiplied by.
    pub fn amplitude(&self) -> f64 {
        match self.scaling {
            Scaling::Yarn { attention_factor, .. } => attention_factor,
            _ => 1.0,
        }
    }

    fn scaled(&self, i: usize, frequency: f64, head_dim: usize) -> f64 {
        match self.scaling {
            Scaling::None => frequency,
            Scaling::Linear { factor } => frequency / factor,
            Scaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_positions } => {
                let wavelength = TAU / frequency;
                if wavelength > original_positions / low_freq_factor {
                    frequency / factor
                } else if wavelength < original_positions / high_freq_factor {
                    frequency
                } else {
                    let smooth =
                        (original_positions / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    (1.0 - smooth) * frequency / factor + smooth * frequency
                }
            }
            Scaling::Yarn { factor, beta_fast, beta_slow, truncate, original_positions, .. } => {
                let (low, high) = self.correction_range(head_dim, [beta_fast, beta_slow], original_positions, truncate);
                let ramp = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                frequency / factor * ramp + frequency * (1.0 - ramp)
            }
        }
    }

    /// First and last pair of the ramp between kept and divided frequencies.
    fn correction_range(&self, head_dim: usize, rotations: [f64; 2], positions: f64, truncate: bool) -> (f64, f64) {
        let dim = head_dim as f64;
        let pair = |rotations: f64| dim * (positions / (rotations * TAU)).ln() / (2.0 * self.theta.ln());
        let [mut low, mut high] = rotations.map(pair);
        if truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, high) = (low.max(0.0), high.min(dim - 1.0));
        // A ramp of no length would divide by zero.
        if low == high { (low, high + 0.001) } else { (low, high) }
    }
}
