//! What the compiler made of the kernels: registers from the embedded cubins, and the instructions in the loops that
//! multiply, where there is a disassembler.

use std::{collections::BTreeMap, env, fs, path::Path, process::Command};

use warpo::device::cuda::{Cubin, EMBEDDED};

/// Registers a thread of every entry point of a cubin, as the launch reserves them.
pub fn registers(cubin: &Cubin) -> BTreeMap<String, u32> {
    let elf = Elf(&cubin.image.0);
    let (info, symbols, names) = (elf.section(".nv.info"), elf.section(".symtab"), elf.section(".strtab"));
    attributes(info)
        .filter(|(attribute, _)| *attribute == REGISTER_COUNT)
        .map(|(_, payload)| {
            let symbol = &symbols[SYMBOL_BYTES * word(payload, 0)..];
            (text(&names[word(symbol, 0)..]).to_string(), word(payload, 4) as u32)
        })
        .collect()
}

/// Of the attributes in a cubin's `.nv.info`: payload symbol, count.
const REGISTER_COUNT: u8 = 0x2f;
const SYMBOL_BYTES: usize = 24;

/// Records of a format byte and an attribute byte; format 4 is followed by a length and as many bytes, others by two.
fn attributes(mut info: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    std::iter::from_fn(move || {
        let (&[format, attribute, low, high], rest) = info.split_first_chunk::<4>()?;
        let length = if format == 4 { u16::from_le_bytes([low, high]) as usize } else { 0 };
        let (payload, rest) = rest.split_at(length);
        info = rest;
        Some((attribute, payload))
    })
}

/// A 64-bit little-endian ELF file.
struct Elf<'a>(&'a [u8]);

impl<'a> Elf<'a> {
    fn section(&self, name: &str) -> &'a [u8] {
        let (headers, count, of_names) = (long(self.0, 0x28), half(self.0, 0x3c), half(self.0, 0x3e));
        let header = |i: usize| &self.0[headers + 64 * i..];
        let body = |header: &[u8]| &self.0[long(header, 24)..long(header, 24) + long(header, 32)];
        let names = body(header(of_names));
        let found = (0..count).map(header).find(|header| text(&names[word(header, 0)..]) == name);
        body(found.unwrap_or_else(|| panic!("a cubin without {name}")))
    }
}

fn half(from: &[u8], at: usize) -> usize {
    u16::from_le_bytes(from[at..at + 2].try_into().unwrap()) as usize
}

fn word(from: &[u8], at: usize) -> usize {
    u32::from_le_bytes(from[at..at + 4].try_into().unwrap()) as usize
}

fn long(from: &[u8], at: usize) -> usize {
    u64::from_le_bytes(from[at..at + 8].try_into().unwrap()) as usize
}

fn text(from: &[u8]) -> &str {
    std::str::from_utf8(from.split(|&byte| byte == 0).next().unwrap()).unwrap()
}

/// `nvdisasm` by `NVDISASM`, or from the path. The wheels of the compiler lack it.
fn disassembler() -> Option<String> {
    let program = env::var("NVDISASM").unwrap_or("nvdisasm".into());
    let works = Command::new(&program).arg("--version").output().is_ok_and(|output| output.status.success());
    assert!(works || env::var_os("NVDISASM").is_none(), "NVDISASM={program}: it does not run");
    works.then_some(program)
}

/// What may not stand in a loop that multiplies: local memory is a spill, the others wait for all of memory or forget the
/// first cache.
const UNWANTED: [&str; 4] = ["LDL", "STL", "MEMBAR", "CCTL"];
/// Nor this between its products: it moves a value that ought to be uniform from a thread's register and waits for it. Before
/// them a kernel may learn so which tile it has got.
const UNWANTED_BETWEEN: &str = "R2UR";

/// Entry points of files for Hopper that multiply nothing.
const ADDS_ONLY: [&str; 1] = ["gemm_add_slices"];

#[test]
fn loops_that_multiply_hold_nothing_else() {
    let Some(program) = disassembler() else {
        eprintln!("skipped: no nvdisasm; set NVDISASM to one");
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let hopper: Vec<_> = EMBEDDED.cubins.iter().filter(|cubin| cubin.module.ends_with("_sm90")).collect();
    for cubin in &hopper {
        let kernels = disassemble(&program, folder.path(), cubin);
        assert_eq!(kernels.len(), registers(cubin).len(), "{}: entry points", cubin.module);
        for (name, code) in &kernels {
            let holds = |what: &str| code.lines.iter().any(|line| line.contains(what));
            assert!(!holds("LDL") && !holds("STL"), "{name}: local memory");
            if ADDS_ONLY.contains(&name.as_str()) {
                continue;
            }
            assert!(holds("HGMMA") && holds("UTMALDG"), "{name}: no wgmma, or no bulk tensor copy");
            let loops = code.loops_that_multiply();
            assert!(!loops.is_empty(), "{name}: no loop of products");
            for body in loops {
                let (fences, body) = take_fences(body);
                // Attention reads words of its slots, which copies overwrite: one fence a tile.
                assert_eq!(
                    fences,
                    usize::from(name.starts_with("attention_")),
                    "{name}: proxy fences in a loop of products"
                );
                let unwanted = body.iter().find(|line| UNWANTED.iter().any(|what| line.contains(what)));
                let product = |line: &&String| line.contains("HGMMA");
                let (first, last) = (body.iter().position(product), body.iter().rposition(product));
                let between = &body[first.unwrap()..last.unwrap()];
                let unwanted = unwanted.or(between.iter().find(|line| line.contains(UNWANTED_BETWEEN)));
                assert!(unwanted.is_none(), "{name}: `{}` in a loop of products", unwanted.unwrap());
            }
        }
    }
    assert!(EMBEDDED.cubins.is_empty() || !hopper.is_empty(), "no kernel with Hopper's units is embedded");
}

/// The number of proxy fences, and the other instructions. A fence is made of a wait for the thread's own accesses, no further
/// than its CTA sees them, and one for the asynchronous units.
fn take_fences(body: &[String]) -> (usize, Vec<&String>) {
    let begins = |at: usize| {
        body[at].contains("MEMBAR.ALL.CTA") && body.get(at + 1).is_some_and(|next| next.contains("FENCE.VIEW.ASYNC"))
    };
    let (fences, others): (Vec<usize>, Vec<usize>) = (0..body.len()).partition(|&at| begins(at));
    (fences.len(), others.into_iter().map(|at| &body[at]).collect())
}

/// One kernel's instructions.
#[derive(Default)]
struct Code {
    lines: Vec<String>,
    /// Which instruction a label stands before.
    labels: BTreeMap<String, usize>,
}

impl Code {
    /// The innermost loops with products. A wait that was moved out of the way and comes back is not one: it ends right after
    /// it tried again.
    fn loops_that_multiply(&self) -> Vec<&[String]> {
        let target = |line: &str| self.labels.get(line.split("BRA").nth(1)?.split(['(', ')']).nth(1)?).copied();
        let retries = |at: usize| self.lines[at.saturating_sub(3)..at].iter().any(|line| line.contains("PHASECHK"));
        let back = self.lines.iter().enumerate().filter(|(at, _)| !retries(*at));
        let spans = back.filter_map(|(at, line)| target(line).filter(|&start| start <= at).map(|start| (start, at)));
        let multiplies = |&(start, end): &(usize, usize)| self.lines[start..end].iter().any(|x| x.contains("HGMMA"));
        let spans: Vec<_> = spans.filter(multiplies).collect();
        let holds_another = |&(a, z): &(usize, usize)| spans.iter().any(|&(b, y)| (a, z) != (b, y) && a <= b && y <= z);
        spans.iter().filter(|span| !holds_another(span)).map(|&(start, end)| &self.lines[start..=end]).collect()
    }
}

fn disassemble(program: &str, folder: &Path, cubin: &Cubin) -> BTreeMap<String, Code> {
    let path = folder.join(cubin.module);
    fs::write(&path, &cubin.image.0).unwrap();
    let output = Command::new(program).arg("-c").arg(&path).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
    read(&String::from_utf8(output.stdout).unwrap())
}

/// Sections `.text.NAME`, labels `.L_x_1:` and instructions `/*0b50*/ BRA ;`.
fn read(listing: &str) -> BTreeMap<String, Code> {
    let mut kernels: BTreeMap<String, Code> = BTreeMap::new();
    let mut name = None;
    for line in listing.lines() {
        if let Some(kernel) = line.strip_prefix(".text.").and_then(|rest| rest.strip_suffix(':')) {
            name = Some(kernel.to_string());
        } else if line.trim_start().starts_with(".section") {
            name = None;
        }
        let Some(name) = &name else { continue };
        let code = kernels.entry(name.clone()).or_default();
        if let Some(label) = line.strip_suffix(':').filter(|label| label.starts_with(".L_")) {
            code.labels.insert(label.to_string(), code.lines.len());
        } else if let Some((_, instruction)) = line.trim_start().strip_prefix("/*").and_then(|x| x.split_once("*/")) {
            code.lines.push(instruction.trim().to_string());
        }
    }
    kernels
}
