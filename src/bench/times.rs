//! Milliseconds of the runs of a case, and what is said of them.

/// Ascending, at least one.
pub struct Times(Vec<f64>);

impl Times {
    /// `None` of no runs.
    pub fn of(mut runs: Vec<f64>) -> Option<Self> {
        runs.sort_by(f64::total_cmp);
        (!runs.is_empty()).then_some(Self(runs))
    }

    pub fn median(&self) -> f64 {
        self.0[self.0.len() / 2]
    }

    /// The ends of the middle four fifths.
    pub fn spread(&self) -> [f64; 2] {
        let tenth = self.0.len() / 10;
        [self.0[tenth], self.0[self.0.len() - 1 - tenth]]
    }

    /// The ends of all.
    pub fn ends(&self) -> [f64; 2] {
        [self.0[0], self.0[self.0.len() - 1]]
    }
}
