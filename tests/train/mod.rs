mod bits;
mod files;
mod fixture;
mod paths;
mod reference_cache;
mod refusals;
mod schedule;
mod step;
