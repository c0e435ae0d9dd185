mod bits;
mod files;
pub mod fixture;
mod lists;
mod paths;
mod reference_cache;
mod refusals;
mod schedule;
mod step;
