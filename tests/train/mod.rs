mod bits;
mod fixture;
mod reference_cache;
mod refusals;
mod schedule;
mod step;
