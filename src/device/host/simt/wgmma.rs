//! Products of warp groups: operands by descriptor from swizzled shared memory or from registers, accumulators spread
//! over the 128 threads, done when they are issued or when they are waited for.
//!
//! Only what the kernels use is decoded: bf16, 128-byte swizzle, patterns that begin at multiples of 1024 bytes.

use std::{collections::VecDeque, ops::Range};

use super::{Completion, Place, Status, Worker, cluster::GROUP, strict::Knowledge};

const M: usize = 64;
const K: usize = 16;
/// Flags of `simt_wgmma`: A and B have their other index contiguous, and the product is added.
const A_ACROSS: u32 = 1;
const B_ACROSS: u32 = 2;
const ADDS: u32 = 4;

/// What a warp group does together.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(in crate::device::host) enum Step {
    Product { n: usize, flags: u32, a_matrix: Option<u64>, b_matrix: u64 },
    Commit,
    Wait { pending: u32 },
}

/// Registers of one thread: accumulators, and fragments of A if they are there.
#[derive(Clone, Copy)]
pub(in crate::device::host) struct Fragments {
    pub d: *mut f32,
    pub a: *const u32,
}

impl Fragments {
    pub const NONE: Self = Self { d: std::ptr::null_mut(), a: std::ptr::null() };
}

/// A matrix in shared memory as a descriptor tells it.
#[derive(Clone, Copy)]
struct Operand {
    /// First byte in the cluster's shared memory.
    start: usize,
    leading: usize,
    stride: usize,
    across: bool,
}

impl Operand {
    /// Byte of element (`outer`, `k`) in the cluster's shared memory.
    fn byte(&self, outer: usize, k: usize) -> usize {
        let linear = if self.across {
            self.start + (outer >> 6) * self.leading + (k >> 3) * self.stride + (k & 7) * 128 + 2 * (outer & 63)
        } else {
            self.start + (outer >> 3) * self.stride + (outer & 7) * 128 + 2 * k
        };
        linear ^ (linear >> 7 & 7) << 4
    }

    /// Its bytes, in pieces of 16.
    fn ranges(&self, outer: usize) -> Vec<Range<usize>> {
        let piece = |byte: usize| byte..byte + 16;
        if self.across {
            (0..K).flat_map(|k| (0..outer).step_by(8).map(move |o| piece(self.byte(o, k)))).collect()
        } else {
            (0..outer).flat_map(|o| (0..K).step_by(8).map(move |k| piece(self.byte(o, k)))).collect()
        }
    }
}

enum A {
    Matrix(Operand),
    /// As the threads held them at the issue.
    Registers(Vec<[u32; 4]>),
}

struct Product {
    n: usize,
    adds: bool,
    a: A,
    b: Operand,
    threads: Vec<Fragments>,
    ranges: Vec<Range<usize>>,
    group: u64,
    done: bool,
    at: u32,
}

#[derive(Default)]
pub(super) struct WarpGroup {
    came: Vec<(usize, Fragments)>,
    step: Option<(Step, Place)>,
    products: VecDeque<Product>,
    committed: u64,
    agent: Option<usize>,
}

impl Worker {
    /// A thread of a warp group comes to an instruction that the group executes together. Returns whether it goes on.
    pub(in crate::device::host) fn group_step(
        &mut self,
        step: Step,
        own: Fragments,
        place: Place,
    ) -> Result<bool, String> {
        let running = self.running;
        let index = running / GROUP;
        // Warps after the last whole group may do other work; groups of a cluster are counted through.
        let (thread, threads) = (running % self.cta_threads, self.cta_threads);
        let counted = threads.is_multiple_of(GROUP) || running < threads;
        if (thread / GROUP + 1) * GROUP > threads || !counted {
            return Err(format!("wgmma at {place}: thread {thread} of {threads} is in no whole warp group"));
        }
        let group = &mut self.groups[index];
        match group.step {
            None => group.step = Some((step, place)),
            Some((other, elsewhere)) if other != step || !elsewhere.same(place) => {
                return Err(format!(
                    "warp group divergence: this thread is at {place} with {step:?}, others at {elsewhere} with {other:?}"
                ));
            }
            Some(_) => {}
        }
        group.came.push((running, own));
        self.threads[running].status = Status::AtGroup;
        self.threads[running].place = place;
        if group.came.len() < GROUP {
            return Ok(false);
        }
        let mut came = std::mem::take(&mut group.came);
        group.step = None;
        came.sort_unstable_by_key(|&(thread, _)| thread);
        let fragments = || came.iter().map(|&(_, fragments)| fragments).collect();
        match step {
            Step::Product { n, flags, a_matrix, b_matrix } => {
                self.issue(index, n, flags, a_matrix, b_matrix, fragments(), place)?;
            }
            Step::Commit => self.groups[index].committed += 1,
            Step::Wait { pending } => self.wait_products(index, pending, place)?,
        }
        self.threads[running].status = Status::Running;
        let mut others: Vec<usize> = came.iter().map(|&(thread, _)| thread).filter(|&t| t != running).collect();
        Ok(self.release(&mut others))
    }

    #[allow(clippy::too_many_arguments)]
    fn issue(
        &mut self,
        index: usize,
        n: usize,
        flags: u32,
        a_matrix: Option<u64>,
        b_matrix: u64,
        threads: Vec<Fragments>,
        place: Place,
    ) -> Result<(), String> {
        if !n.is_multiple_of(8) || !(8..=256).contains(&n) {
            return Err(format!("wgmma at {place}: n = {n} is no multiple of 8 up to 256"));
        }
        let at = self.strict.place(place);
        let (b, mut ranges) = self.operand("B", b_matrix, flags & B_ACROSS != 0, n, place)?;
        let a = match a_matrix {
            Some(matrix) => {
                let (operand, own) = self.operand("A", matrix, flags & A_ACROSS != 0, M, place)?;
                ranges.extend(own);
                A::Matrix(operand)
            }
            None if flags & A_ACROSS != 0 => {
                return Err(format!("wgmma at {place}: fragments of A cannot be transposed"));
            }
            // SAFETY: every thread of the group waits here and lends its registers.
            None => A::Registers(threads.iter().map(|own| unsafe { own.a.cast::<[u32; 4]>().read() }).collect()),
        };
        if self.groups[index].agent.is_none() {
            let agent = self.strict.new_agent(|| format!("a product of warp group {index}"))?;
            self.groups[index].agent = Some(agent);
        }
        self.strict.start_read(self.running, &ranges, at)?;
        for (thread, own) in (index * GROUP..).zip(&threads) {
            self.strict.product_takes(thread, registers(own.d, n / 2), false, at)?;
            if a_matrix.is_none() {
                self.strict.product_takes(thread, registers(own.a.cast(), 4), true, at)?;
            }
        }
        let group = self.groups[index].committed;
        let mut product = Product { n, adds: flags & ADDS != 0, a, b, threads, ranges, group, done: false, at };
        if self.grid().options.completion == Completion::Early {
            self.multiply(&mut product);
        }
        self.groups[index].products.push_back(product);
        Ok(())
    }

    /// Reads a descriptor bit for bit; also returns the operand's bytes.
    fn operand(
        &self,
        what: &str,
        bits: u64,
        across: bool,
        outer: usize,
        place: Place,
    ) -> Result<(Operand, Vec<Range<usize>>), String> {
        let bad = |why: &str| Err(format!("descriptor of {what} {bits:#018x} at {place}: {why}"));
        let field = |from: u32| ((bits >> from & 0x3fff) << 4) as usize;
        let (start, leading, stride) = (field(0), field(16), field(32));
        const RESERVED: u64 = 0b11 << 14 | 0b11 << 30 | 0b111 << 46 | 0x3ff << 52;
        if bits & RESERVED != 0 {
            return bad("reserved bits are set");
        }
        if bits >> 62 != 1 {
            return bad("only the 128-byte swizzle is used here");
        }
        if bits >> 49 & 7 != 0 {
            return bad("the base offset is not 0");
        }
        if start & 0x380 != 0 || across && start & 0x7f != 0 || !start.is_multiple_of(32) {
            return bad("the start is not on the swizzle pattern");
        }
        if !stride.is_multiple_of(1024) || stride == 0 {
            return bad("the stride offset is no multiple of 1024");
        }
        if across && outer > 64 && (!leading.is_multiple_of(1024) || leading == 0) {
            return bad("the leading offset is no multiple of 1024");
        }
        let rank = self.rank_of(self.running);
        let operand = Operand { start: rank * self.stride + start, leading, stride, across };
        let ranges = operand.ranges(outer);
        let end = ranges.iter().map(|range| range.end).max().unwrap_or(0) - rank * self.stride;
        let room = self.grid().launch.smem_bytes as usize;
        if end > room {
            return bad(&format!("out of bounds: it ends at byte {end} of {room} bytes of shared memory"));
        }
        Ok((operand, ranges))
    }

    fn element(&self, byte: usize) -> f32 {
        let shared: *const u8 = self.shared.as_ptr().cast();
        // SAFETY: `operand` checked the range.
        let bits = unsafe { shared.add(byte).cast::<u16>().read_unaligned() };
        f32::from_bits(u32::from(bits) << 16)
    }

    /// Does what the tensor cores do; products of bf16 are exact in f32, the order of the additions is not the hardware's.
    fn multiply(&self, product: &mut Product) {
        let n = product.n;
        let mut a = vec![[0.0f32; K]; M];
        match &product.a {
            A::Matrix(operand) => {
                a.iter_mut().enumerate().for_each(|(m, row)| {
                    row.iter_mut().enumerate().for_each(|(k, x)| *x = self.element(operand.byte(m, k)));
                });
            }
            A::Registers(registers) => {
                for (thread, own) in registers.iter().enumerate() {
                    for (i, &pair) in own.iter().enumerate() {
                        let (m, k) = (row_of(thread) + 8 * (i % 2), 2 * (thread % 4) + 8 * (i / 2));
                        a[m][k] = f32::from_bits(pair << 16);
                        a[m][k + 1] = f32::from_bits(pair & 0xffff_0000);
                    }
                }
            }
        }
        let mut b = vec![0.0f32; K * n];
        for (at, x) in b.iter_mut().enumerate() {
            *x = self.element(product.b.byte(at % n, at / n));
        }
        let mut d = vec![0.0f32; M * n];
        if product.adds {
            each_accumulator(&product.threads, n, |at, register| d[at] = *register);
        }
        for (a, d) in a.iter().zip(d.chunks_exact_mut(n)) {
            for (&a, b) in a.iter().zip(b.chunks_exact(n)) {
                d.iter_mut().zip(b).for_each(|(d, &b)| *d += a * b);
            }
        }
        each_accumulator(&product.threads, n, |at, register| *register = d[at]);
        product.done = true;
    }

    fn wait_products(&mut self, index: usize, pending: u32, place: Place) -> Result<(), String> {
        let committed = self.groups[index].committed;
        if self.groups[index].products.back().is_some_and(|product| product.group == committed) {
            return Err(format!("wait without commit at {place}: products of this warp group belong to no group"));
        }
        let threads = index * GROUP..(index + 1) * GROUP;
        let Some(agent) = self.groups[index].agent else {
            return Ok(());
        };
        let landed = |product: &Product| product.group + u64::from(pending) < committed;
        while self.groups[index].products.front().is_some_and(landed) {
            let Some(mut product) = self.groups[index].products.pop_front() else {
                break;
            };
            if !product.done {
                self.multiply(&mut product);
            }
            self.strict.end_read(agent, &product.ranges, product.at);
            for (thread, own) in threads.clone().zip(&product.threads) {
                self.strict.product_returns(thread, &registers(own.d, product.n / 2));
                if matches!(product.a, A::Registers(_)) {
                    self.strict.product_returns(thread, &registers(own.a.cast(), 4));
                }
            }
        }
        let mut known = Knowledge::default();
        self.strict.release_agent(agent, &mut known);
        for thread in threads {
            self.strict.acquire(thread, &known);
            self.strict.product_wait(thread);
        }
        Ok(())
    }

    /// Refuses to let a thread go before its products are done.
    pub(super) fn check_products(&self, thread: usize) -> Result<(), String> {
        let unfinished = self.groups.get(thread / GROUP).is_some_and(|group| !group.products.is_empty());
        if unfinished { Err("exits before the wait for the products of its warp group".into()) } else { Ok(()) }
    }
}

/// Row of the first accumulator of a thread of the group.
fn row_of(thread: usize) -> usize {
    16 * (thread / 32) + thread % 32 / 4
}

/// Addresses of `count` 32-bit registers.
fn registers(first: *const f32, count: usize) -> Range<u64> {
    let start = first as u64;
    start..start + 4 * count as u64
}

/// Visits every accumulator with its place in the (64, n) product.
fn each_accumulator(threads: &[Fragments], n: usize, mut visit: impl FnMut(usize, &mut f32)) {
    for (thread, own) in threads.iter().enumerate() {
        for i in 0..n / 2 {
            let (m, column) = (row_of(thread) + 8 * (i / 2 % 2), 8 * (i / 4) + 2 * (thread % 4) + i % 2);
            // SAFETY: the thread has n / 2 accumulators there and waits, or has lent them until it waits.
            visit(m * n + column, unsafe { &mut *own.d.add(i) });
        }
    }
}
