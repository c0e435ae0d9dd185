#![no_main]

mod common;

use libfuzzer_sys::fuzz_target;
use warpo_fuzz::safetensors::Safetensors;

static TARGET: common::Life<Safetensors> = common::Life::new();

fuzz_target!(init: TARGET.begin(), |bytes: &[u8]| TARGET.run(bytes));
