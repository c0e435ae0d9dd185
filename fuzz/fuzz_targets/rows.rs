#![no_main]

mod common;

use libfuzzer_sys::fuzz_target;
use warpo_fuzz::rows::Rows;

static TARGET: common::Life<Rows> = common::Life::new();

fuzz_target!(init: TARGET.begin(), |bytes: &[u8]| TARGET.run(bytes));
