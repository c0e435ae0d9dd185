mod bits;
mod files;
mod fixture;
mod refusals;
mod schedule;
mod step;
