//! The cheapest way to fit a run into the memory there is: what each layer computes again, and how many rows of logits the head
//! has at a time. A pure function of shapes, sizes and rates.

use anyhow::Result;

use super::{Demand, RunPlan};
use crate::model::{Capacity, LayerFlops, ModelConfig, Rung};

/// Fewer rows of logits at a time cost more traffic than they save memory.
const LEAST_CHUNK_ROWS: usize = 2048;
/// Rungs whose cost of a byte is so much alike are climbed one by one.
const ALIKE: f64 = 1.05;
const AUTO: &str = "train.recompute = \"auto\"";
/// What a smaller micro-batch is a multiple of.
const TOKENS_STEP: usize = 256;

/// FLOP/s that are reckoned with: what an H100 was seen to do. Only their ratio decides anything.
#[derive(Clone, Copy, Debug)]
pub struct Rates {
    /// Of products with weights.
    pub products: f64,
    /// Of attention.
    pub attention: f64,
    /// Bytes a second of a link to the host, each way at once: what is left of the 64 of PCIe 5 by its data sheet, not measured.
    pub link: f64,
}

impl Default for Rates {
    fn default() -> Self {
        Self { products: 700e12, attention: 400e12, link: 50e9 }
    }
}

/// What is to fit, and into what.
pub struct Planner<'a> {
    /// The models.
    pub demand: Demand<'a>,
    /// The largest micro-batch, with the rows of the head's chunk if memory is no concern.
    pub capacity: Capacity,
    /// Tokens of the longest row: no micro-batch is smaller.
    pub longest_row: usize,
    /// Keys that a token sees on average.
    pub mean_keys: f64,
    /// Bytes that may be used; 0 if nobody knows.
    pub free: usize,
    /// What was asked for, if anything was.
    pub levels: Option<Vec<Rung>>,
    /// Whether the head's chunk is as it is.
    pub chunk_is_fixed: bool,
    /// What the device does a second.
    pub rates: Rates,
    /// Changes of the run that make its state smaller, the best first: their words, and the models with it and those before it.
    pub savings: Vec<(String, Demand<'a>)>,
}

/// What was found.
#[derive(Clone, Debug)]
pub struct Decision {
    /// The plan that fits, or of all that were allowed the smallest.
    pub plan: RunPlan,
    /// Time for what layers compute again, relative to a step in which nothing is.
    pub more_work: f64,
    /// The same for logits, beside what the usual chunk of the head computes again.
    pub head_more_work: f64,
    /// Seconds of the link for what an update copies to the device and back, beside which it does its other work.
    pub link_seconds: f64,
    /// With nothing computed again, and the usual chunk.
    pub without: RunPlan,
    /// Tokens of the largest micro-batch that fits with nothing computed again, where this one does not.
    pub tokens_without: Option<usize>,
    /// Tokens of the longest row.
    pub longest_row: usize,
    /// Rows of the head's chunk if memory is no concern.
    pub usual_chunk_rows: usize,
    /// Bytes that may be used; 0 if nobody knows.
    pub free: usize,
    /// Where nothing fits: what would help, with the bytes of each, the cheapest first.
    pub remedies: Vec<Remedy>,
}

/// A change of the run, and what it would take then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remedy {
    /// In the words of the configuration.
    pub change: String,
    /// In all.
    pub total: usize,
}

/// A place on the ladder, and the seconds for what layers compute again there.
struct Way {
    plan: RunPlan,
    seconds: f64,
}

impl Planner<'_> {
    /// The cheapest plan that fits.
    ///
    /// # Errors
    /// The kernels cannot index the micro-batch, or there is not one rung a layer.
    pub fn decide(&self) -> Result<Decision> {
        let none = vec![Rung::None; self.demand.shape.layers];
        let without = self.demand.plan(self.capacity, &none)?;
        // A byte of logits costs what a byte of a layer's product does. So the fewest layers are chosen, and of chunks the largest.
        let mut best: Option<Way> = None;
        for capacity in self.capacities(self.capacity) {
            let Some(way) = self.climb(capacity)? else { continue };
            if best.as_ref().is_none_or(|best| way.seconds < best.seconds) {
                best = Some(way);
            }
        }
        let way = match best {
            Some(way) => way,
            None => self.way(self.least(self.capacity), self.most())?,
        };
        let tokens_without = if self.fits(without.total()) { None } else { self.tokens(&none)? };
        let step = self.step_seconds(self.capacity);
        let head = self.head_again(way.plan.policy.capacity) - self.head_again(self.capacity);
        Ok(Decision {
            more_work: way.seconds / step,
            head_more_work: head / step,
            link_seconds: way.plan.on_host as f64 / self.rates.link,
            remedies: if self.fits(way.plan.total()) { Vec::new() } else { self.remedies()? },
            plan: way.plan,
            without,
            tokens_without,
            longest_row: self.longest_row,
            usual_chunk_rows: self.capacity.head_chunk_rows,
            free: self.free,
        })
    }

    fn fits(&self, bytes: usize) -> bool {
        self.free == 0 || bytes <= self.free
    }

    /// The lowest place on the ladder that fits.
    fn climb(&self, capacity: Capacity) -> Result<Option<Way>> {
        for levels in self.ladder(capacity)? {
            let way = self.way(capacity, levels)?;
            if self.fits(way.plan.total()) {
                return Ok(Some(way));
            }
        }
        Ok(None)
    }

    /// All places, the cheapest first: layer after layer takes the next rung.
    fn ladder(&self, capacity: Capacity) -> Result<Vec<Vec<Rung>>> {
        if let Some(levels) = &self.levels {
            return Ok(vec![levels.clone()]);
        }
        let layers = self.demand.shape.layers;
        let mut found = vec![vec![Rung::None; layers]];
        let mut at = Rung::None;
        for next in self.rungs(capacity)? {
            found.extend((1..=layers).map(|count| [vec![next; count], vec![at; layers - count]].concat()));
            at = next;
        }
        Ok(found)
    }

    /// The rungs that are worth a stop, by what a byte costs from the one before.
    fn rungs(&self, capacity: Capacity) -> Result<Vec<Rung>> {
        let layers = self.demand.shape.layers;
        let saved = |rung| -> Result<f64> { Ok(self.demand.plan(capacity, &vec![rung; layers])?.policy.saved as f64) };
        let layer = self.layer(capacity, None);
        let mut points = Vec::new();
        for rung in Rung::ALL {
            points.push((rung, saved(rung)?, self.seconds(&layer, rung)));
        }
        let mut stops = vec![points[0]];
        while let Some(&(at, bytes, seconds)) = stops.last() {
            let above: Vec<_> = points.iter().filter(|(rung, saved, _)| *rung > at && *saved < bytes).collect();
            let price = |point: &(Rung, f64, f64)| (point.2 - seconds) / (bytes - point.1);
            let least = above.iter().map(|point| price(point)).fold(f64::INFINITY, f64::min);
            let Some(next) = above.into_iter().find(|point| price(point) <= ALIKE * least) else { break };
            stops.push(*next);
        }
        Ok(stops.into_iter().skip(1).map(|(rung, ..)| rung).collect())
    }

    /// The head's chunks that compete, from the largest.
    fn capacities(&self, capacity: Capacity) -> Vec<Capacity> {
        let most = capacity.head_chunk_rows.min(capacity.rows);
        let halves = std::iter::successors(Some(most.next_power_of_two() / 2), |rows| Some(rows / 2));
        let smaller = halves.take_while(|&rows| rows >= LEAST_CHUNK_ROWS && !self.chunk_is_fixed);
        let with = |head_chunk_rows| Capacity { head_chunk_rows, ..capacity };
        [most].into_iter().chain(smaller.filter(|&rows| rows < most)).map(with).collect()
    }

    fn least(&self, capacity: Capacity) -> Capacity {
        self.capacities(capacity).last().copied().unwrap_or(capacity)
    }

    /// The rungs that take least.
    fn most(&self) -> Vec<Rung> {
        self.levels.clone().unwrap_or_else(|| vec![Rung::Block; self.demand.shape.layers])
    }

    fn way(&self, capacity: Capacity, levels: Vec<Rung>) -> Result<Way> {
        let shape = self.demand.shape;
        // The last layer's slot is still whole when the backward pass begins.
        let again = shape.layer_kinds.iter().zip(&levels).take(shape.layers.saturating_sub(1));
        let again = again.map(|(kind, rung)| self.seconds(&self.layer(capacity, kind.window), *rung));
        Ok(Way { plan: self.demand.plan(capacity, &levels)?, seconds: again.sum() })
    }

    /// For logits that are computed twice: all but those of the last chunk.
    fn head_again(&self, capacity: Capacity) -> f64 {
        let rows = capacity.rows.saturating_sub(capacity.head_chunk_rows);
        head(self.demand.shape, rows) / self.rates.products
    }

    /// Of a step in which nothing is computed twice.
    fn step_seconds(&self, capacity: Capacity) -> f64 {
        let shape = self.demand.shape;
        let layer = |window| self.layer(capacity, window);
        let pass = |layer: LayerFlops| {
            (layer.all() - layer.attention) / self.rates.products + layer.attention / self.rates.attention
        };
        let layers: f64 = shape.layer_kinds.iter().map(|kind| pass(layer(kind.window))).sum();
        3.0 * (layers + head(shape, capacity.rows) / self.rates.products)
    }

    fn layer(&self, capacity: Capacity, window: Option<usize>) -> LayerFlops {
        let keys = window.map_or(self.mean_keys, |window| self.mean_keys.min(window as f64));
        let tokens = capacity.tokens as f64;
        LayerFlops::new(self.demand.shape, tokens, tokens * keys)
    }

    /// Of all that a rung computes again.
    fn seconds(&self, layer: &LayerFlops, rung: Rung) -> f64 {
        let attention = if rung >= Rung::Attention { layer.attention } else { 0.0 };
        (layer.again(rung) - attention) / self.rates.products + attention / self.rates.attention
    }

    /// As many tokens fewer.
    fn smaller(&self, tokens: usize) -> Capacity {
        let rows = (self.capacity.rows * tokens).div_ceil(self.capacity.tokens);
        Capacity { tokens, rows, ..self.capacity }
    }

    /// Tokens of the largest micro-batch that fits with these rungs, and holds the longest row.
    fn tokens(&self, levels: &[Rung]) -> Result<Option<usize>> {
        let total = |tokens| -> Result<usize> {
            let capacity = self.smaller(tokens);
            let nothing = levels.iter().all(|rung| *rung == Rung::None);
            let capacity = if nothing { capacity } else { self.least(capacity) };
            Ok(self.demand.plan(capacity, levels)?.total())
        };
        let [mut low, mut high] = [self.longest_row.div_ceil(TOKENS_STEP), self.capacity.tokens / TOKENS_STEP];
        if low > high || !self.fits(total(low * TOKENS_STEP)?) {
            return Ok(None);
        }
        while low < high {
            let middle = (low + high).div_ceil(2);
            match self.fits(total(middle * TOKENS_STEP)?) {
                true => low = middle,
                false => high = middle - 1,
            }
        }
        Ok(Some(low * TOKENS_STEP))
    }

    /// What would help where nothing fits, in the order of what it costs.
    fn remedies(&self) -> Result<Vec<Remedy>> {
        let mut found = Vec::new();
        let block = vec![Rung::Block; self.demand.shape.layers];
        let mut add = |change: String, capacity: Capacity| -> Result<()> {
            let total = self.demand.plan(self.least(capacity), &block)?.total();
            found.push(Remedy { change, total });
            Ok(())
        };
        let smaller = self.tokens(&block)?.filter(|&tokens| tokens < self.capacity.tokens);
        if let Some(tokens) = smaller {
            add(format!("batch.tokens = {tokens} and everything computed again"), self.smaller(tokens))?;
        }
        let mut open = String::new();
        if self.levels.as_ref().is_some_and(|levels| *levels != block) {
            let total = self.with(self.demand).decide()?.plan.total();
            found.insert(0, Remedy { change: AUTO.into(), total });
            open = format!(" and {AUTO}");
        }
        for (change, demand) in &self.savings {
            let total = self.with(*demand).decide()?.plan.total();
            found.push(Remedy { change: format!("{change}{open}"), total });
        }
        Ok(found)
    }

    /// The same for other models, with what to recompute left open.
    fn with<'b>(&self, demand: Demand<'b>) -> Planner<'b> {
        let Self { capacity, longest_row, mean_keys, free, chunk_is_fixed, rates, .. } = *self;
        let (levels, savings) = (None, Vec::new());
        Planner { demand, capacity, longest_row, mean_keys, free, levels, chunk_is_fixed, rates, savings }
    }
}

/// FLOPs of the head's product over so many rows.
fn head(shape: &ModelConfig, rows: usize) -> f64 {
    2.0 * rows as f64 * shape.hidden as f64 * shape.vocab as f64
}
