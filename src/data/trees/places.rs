//! Ascending places in a file, four bytes each.

/// Where records begin. Each has the lower half of its place; how often the upper half rose before it is known for all.
#[derive(Clone, Debug, Default)]
pub struct Places {
    low: Vec<u32>,
    /// The numbers of the records before which the upper half rose by one.
    rises: Vec<u32>,
}

impl Places {
    pub fn with_capacity(count: usize) -> Self {
        Self { low: Vec::with_capacity(count), rises: Vec::new() }
    }

    pub fn len(&self) -> usize {
        self.low.len()
    }

    /// Adds a place, which is no smaller than the last.
    pub fn push(&mut self, place: u64) {
        while self.rises.len() < (place >> 32) as usize {
            self.rises.push(self.low.len() as u32);
        }
        self.low.push(place as u32);
    }

    pub fn get(&self, record: usize) -> u64 {
        let high = self.rises.partition_point(|&first| first as usize <= record) as u64;
        high << 32 | u64::from(self.low[record])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_of_any_size_come_back() {
        let all = [0, 7, 0xffff_ffff, 0x1_0000_0000, 0x1_0000_0001, 0x4_0000_0000, 0x4_ffff_ffff];
        let mut places = Places::default();
        all.iter().for_each(|&place| places.push(place));
        assert_eq!((0..places.len()).map(|record| places.get(record)).collect::<Vec<_>>(), all);
    }
}
