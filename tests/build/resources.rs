//! The tables of registers and shared memory in kernels/README.md are written from the embedded kernels and their plans.

use std::{collections::BTreeMap, env, fmt::Write as _, fs, path::Path, sync::PoisonError};

use warpo::{
    device::cuda::EMBEDDED,
    ops::{
        attention::sm90 as attention_sm90,
        attention::{Dims, Pass},
        gemm::Gemm,
        gemm::sm90 as gemm_sm90,
    },
};

use super::machine_code::registers;

const BEGIN: &str =
    "<!-- written by UPDATE_CATALOGUE=1 cargo test --release -- build::resources, by nvcc 13.0.88 -->\n";
const END: &str = "<!-- end of resources -->\n";

#[test]
fn registers_and_shared_memory_are_up_to_date() {
    let _alone = super::README.lock().unwrap_or_else(PoisonError::into_inner);
    if !BEGIN.contains(EMBEDDED.toolchain) || EMBEDDED.toolchain.is_empty() {
        eprintln!("skipped: the kernels are by {:?}, another compiler than the table's", EMBEDDED.toolchain);
        return;
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/README.md");
    let readme = fs::read_to_string(&path).unwrap();
    let (head, rest) = readme.split_once(BEGIN).expect("kernels/README.md has no beginning of the resources");
    let (old, tail) = rest.split_once(END).expect("kernels/README.md has no end of the resources");
    let tables = rings() + &register_table();
    if env::var_os("UPDATE_CATALOGUE").is_some() {
        fs::write(&path, format!("{head}{BEGIN}{tables}{END}{tail}")).unwrap();
    } else {
        let differs = tables.lines().zip(old.lines()).find(|(new, old)| new != old);
        assert!(tables == old, "kernels/README.md differs from the kernels: {differs:?}; write it by {BEGIN}");
    }
}

/// Shared memory of the kernels whose launches are planned.
fn rings() -> String {
    let mut text = String::from(
        "\n| kernel | tile | slots | bytes of shared memory a CTA | CTAs an SM |\n| --- | --- | --- | --- | --- |\n",
    );
    let gemm = Gemm::nt(4096, 4096, 4096);
    for tile in gemm_sm90::Tile::ALL {
        let (plan, [m, n]) = (gemm_sm90::Plan::with_tile(&gemm, tile, 132), tile.sides());
        let _ =
            writeln!(text, "| `gemm_sm90`, `swiglu_sm90` | {m} x {n} | {} | {} | 1 |", plan.stages, plan.smem_bytes());
    }
    for (stem, pass) in [("fwd", Pass::Fwd), ("bwd_dq", Pass::Dq), ("bwd_dkdv", Pass::Dkdv)] {
        for head_dim in [64, 128] {
            let dims = Dims { tokens: 4096, heads: 8, kv_heads: 8, head_dim, window: None, softcap: None };
            for &tile in attention_sm90::Tile::all(pass, head_dim) {
                let plan = attention_sm90::Plan::with_tile(pass, &dims, tile);
                let ([own, walked], bytes) = (plan.sides(), plan.smem_bytes(head_dim));
                let _ = writeln!(
                    text,
                    "| `attention_{stem}_hd{head_dim}` | {own} x {walked} | {} | {bytes} | {} |",
                    plan.stages,
                    tile.ctas_per_sm()
                );
            }
        }
    }
    text
}

fn register_table() -> String {
    let mut entries: BTreeMap<String, BTreeMap<&str, u32>> = BTreeMap::new();
    for cubin in EMBEDDED.cubins.iter().filter(|cubin| !cubin.arch.starts_with("compute")) {
        for (name, count) in registers(cubin) {
            entries.entry(name).or_default().insert(cubin.arch, count);
        }
    }
    let mut text = String::from("\n| entry point | registers on 8.0 | on 9.0 |\n| --- | --- | --- |\n");
    for (name, counts) in entries {
        let count = |arch| counts.get(arch).map_or("".into(), u32::to_string);
        let _ = writeln!(text, "| `{name}` | {} | {} |", count("80"), count("90a"));
    }
    text
}
