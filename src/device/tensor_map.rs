//! Tensor maps: how a bulk copy walks a tensor in global memory. Opaque to kernels, which pass them on by address.

use anyhow::{Result, ensure};

/// Where the 16-byte chunks of a box lie in shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swizzle {
    /// Row after row.
    None,
    /// Rows of 128 bytes; the chunks of row r are exchanged by `chunk ^ (r & 7)`, as wgmma reads them without conflicts.
    Bytes128,
}

/// A tensor and the box that one copy moves. The first dimension is the contiguous one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorShape {
    /// Elements of each dimension, at most four.
    pub dims: Vec<usize>,
    /// Elements from one index of dimension 1, 2, .. to the next.
    pub pitches: Vec<usize>,
    /// Elements of the box.
    pub tile: Vec<usize>,
    /// How the box lies in shared memory.
    pub swizzle: Swizzle,
}

impl TensorShape {
    /// A row-major matrix whose rows are `pitch` elements apart, and boxes of `tile` rows by columns for wgmma.
    pub fn matrix(rows: usize, columns: usize, pitch: usize, tile: [usize; 2]) -> Self {
        Self {
            dims: vec![columns, rows],
            pitches: vec![pitch],
            tile: vec![tile[1], tile[0]],
            swizzle: Swizzle::Bytes128,
        }
    }

    /// Elements from the first to the last, that one included.
    pub fn span(&self) -> usize {
        let steps = self.pitches.iter().zip(&self.dims[1..]).map(|(pitch, dim)| pitch * dim.saturating_sub(1));
        steps.sum::<usize>() + self.dims[0]
    }

    /// The rules of the hardware.
    pub(super) fn check(&self, address: u64, element: usize) -> Result<()> {
        let Self { dims, pitches, tile, swizzle } = self;
        let rank = dims.len();
        ensure!((1..=4).contains(&rank) && tile.len() == rank && pitches.len() + 1 == rank, "{self:?}: ranks differ");
        ensure!(
            address.is_multiple_of(16),
            "{self:?}: the tensor starts {} bytes after a multiple of 16",
            address % 16
        );
        ensure!(dims.iter().all(|&dim| dim > 0 && dim < 1 << 31), "{self:?}: a dimension of no or too many elements");
        let rows = pitches.iter().map(|pitch| pitch * element);
        let fits = |bytes: usize| bytes > 0 && bytes.is_multiple_of(16) && bytes < 1 << 40;
        ensure!(rows.into_iter().all(fits), "{self:?}: a pitch is no multiple of 16 bytes");
        ensure!(tile.iter().all(|side| (1..=256).contains(side)), "{self:?}: a box has 1 to 256 elements a dimension");
        let inner = tile[0] * element;
        ensure!(inner.is_multiple_of(16), "{self:?}: rows of the box have {inner} bytes, no multiple of 16");
        let whole = *swizzle == Swizzle::None || inner == 128;
        ensure!(whole, "{self:?}: rows of a swizzled box have 128 bytes, not {inner}");
        Ok(())
    }
}

/// What the host device keeps in the words of a map, or what the driver encoded.
#[repr(C, align(128))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorMap(pub(super) [u64; 16]);

/// The first word of a map of the host device.
const MAGIC: u64 = 0x7465_6e73_6f72_6d61;

/// A map of the host device, read back.
#[derive(Clone, Copy, Debug)]
pub(super) struct HostMap {
    pub address: u64,
    pub element: usize,
    pub rank: usize,
    pub swizzled: bool,
    pub dims: [usize; 4],
    /// Bytes.
    pub pitches: [usize; 4],
    pub tile: [usize; 4],
}

impl TensorMap {
    pub(super) fn for_host(address: u64, element: usize, shape: &TensorShape) -> Self {
        let mut words = [0; 16];
        let rank = shape.dims.len();
        words[0] = MAGIC;
        words[1] = address;
        words[2] = element as u64 | (rank as u64) << 8 | u64::from(shape.swizzle == Swizzle::Bytes128) << 16;
        for i in 0..rank {
            words[3 + i] = shape.dims[i] as u64;
            words[7 + i] = shape.tile[i] as u64;
            words[11 + i] = if i == 0 { element as u64 } else { (shape.pitches[i - 1] * element) as u64 };
        }
        Self(words)
    }

    /// Where the tensor of a map of the host device begins.
    pub(super) fn host_address(&self) -> u64 {
        self.0[1]
    }

    /// `None` if these are not the words of a map.
    pub(super) fn read(words: &[u64; 16]) -> Option<HostMap> {
        let four = |from: usize| std::array::from_fn(|i| words[from + i] as usize);
        (words[0] == MAGIC).then(|| HostMap {
            address: words[1],
            element: (words[2] & 0xff) as usize,
            rank: (words[2] >> 8 & 0xff) as usize,
            swizzled: words[2] >> 16 & 1 == 1,
            dims: four(3),
            tile: four(7),
            pitches: four(11),
        })
    }
}

impl HostMap {
    /// Bytes of a whole box, also where it reaches over the tensor's edges.
    pub fn bytes(&self) -> usize {
        self.element * self.tile[..self.rank].iter().product::<usize>()
    }

    /// Visits every row of the box at `at`: its first byte in the box, the first byte of the row that lies in the tensor,
    /// how many do, and where they are in global memory. What is `written` ends with whole 16 bytes, beyond the tensor's last
    /// column if need be, as the hardware has it; what is read ends with the last column.
    pub fn rows(&self, at: &[i32; 4], written: bool, mut visit: impl FnMut(usize, usize, usize, u64)) {
        let row_bytes = self.tile[0] * self.element;
        let columns = if written { self.dims[0].next_multiple_of(16 / self.element) } else { self.dims[0] };
        let (from, to) = (at[0].max(0) as i64, (i64::from(at[0]) + self.tile[0] as i64).min(columns as i64));
        let skipped = (from - i64::from(at[0])) as usize * self.element;
        let bytes = (to - from).max(0) as usize * self.element;
        for row in 0..self.bytes() / row_bytes {
            let (mut rest, mut address, mut inside) = (row, self.address, true);
            for (i, &first) in at.iter().enumerate().take(self.rank).skip(1) {
                let index = i64::from(first) + (rest % self.tile[i]) as i64;
                rest /= self.tile[i];
                inside &= index >= 0 && index < self.dims[i] as i64;
                address = address.wrapping_add_signed(index * self.pitches[i] as i64);
            }
            let bytes = if inside { bytes } else { 0 };
            visit(row * row_bytes, skipped, bytes, address.wrapping_add_signed(from * self.element as i64));
        }
    }

    /// Where a byte of a box that begins at `start` lies.
    pub fn place(&self, start: usize, byte: usize) -> usize {
        let linear = start + byte;
        if self.swizzled { linear ^ (linear >> 7 & 7) << 4 } else { linear }
    }
}
