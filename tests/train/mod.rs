mod bits;
mod fixture;
mod refusals;
mod schedule;
mod step;
