//! Typed, shared views of device memory.

use std::{marker::PhantomData, ops::Range, sync::Arc};

use bytemuck::Pod;
use half::bf16;

use super::{cuda, host};

/// Element types kernels read and write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DType {
    /// 32 bits, IEEE.
    F32,
    /// 16 bits: the upper half of an f32.
    Bf16,
    /// 64 bits, IEEE.
    F64,
    /// Signed.
    I32,
    /// Unsigned.
    U32,
    /// Sixteen bits, unsigned.
    U16,
    /// Bytes.
    U8,
}

/// A type that may stand in a buffer.
pub trait Element: Pod + Send + Sync + PartialEq + std::fmt::Debug {
    /// Which type it is.
    const DTYPE: DType;
}

macro_rules! element {
    ($($ty:ty => $dtype:ident),*) => { $(impl Element for $ty { const DTYPE: DType = DType::$dtype; })* };
}
element!(f32 => F32, bf16 => Bf16, f64 => F64, i32 => I32, u32 => U32, u16 => U16, u8 => U8);

/// The two types activations and weights come in. A kernel `op_pass` for `T` is the entry `op_pass_f32` or
/// `op_pass_bf16`.
pub trait Float: Element + Default {
    /// The nearest value, ties to even.
    fn from_f32(value: f32) -> Self;
    /// The same value: both types fit f32.
    fn to_f32(self) -> f32;
    /// A trained weight of this f32 master, and what more the master has: to nearest, ties away from zero, and the 16 bits that
    /// [`join`](Self::join) takes. In f32 the weight is the master.
    fn split(master: f32) -> (Self, u16);
    /// The master of a weight and its low bits: exact, but for the payload of a NaN.
    fn join(self, low: u16) -> f32;
}

impl Float for f32 {
    fn from_f32(value: f32) -> Self {
        value
    }
    fn to_f32(self) -> f32 {
        self
    }
    fn split(master: f32) -> (Self, u16) {
        (master, 0)
    }
    fn join(self, _low: u16) -> f32 {
        self
    }
}

impl Float for bf16 {
    /// Rounds to nearest, ties to even, as the kernels do.
    fn from_f32(value: f32) -> Self {
        bf16::from_f32(value)
    }
    fn to_f32(self) -> f32 {
        bf16::to_f32(self)
    }
    /// Ties to even would need one value more than 16 bits have. The twin of `kernels/lib/split_master.cuh`.
    fn split(master: f32) -> (Self, u16) {
        if !master.is_finite() {
            return (bf16::from_f32(master), 0);
        }
        let bits = master.to_bits();
        (bf16::from_bits(((bits + 0x8000) >> 16) as u16), bits as u16)
    }
    fn join(self, low: u16) -> f32 {
        let high = u32::from(self.to_bits()).wrapping_sub(u32::from(low >> 15));
        f32::from_bits(high << 16 | u32::from(low))
    }
}

pub(super) enum Memory {
    Host(host::HostMemory),
    Cuda(cuda::CudaMemory),
}

impl Memory {
    fn address(&self) -> u64 {
        match self {
            Self::Host(memory) => memory.address(),
            Self::Cuda(memory) => memory.address(),
        }
    }

    fn owner(&self) -> u64 {
        match self {
            Self::Host(memory) => memory.owner(),
            Self::Cuda(_) => 0,
        }
    }
}

/// A run of elements in device memory. Clones and slices share the allocation, which lives as long as any of them.
/// The bytes are only reached through a device, never as a Rust reference.
pub struct Buffer<T> {
    memory: Arc<Memory>,
    offset: usize,
    len: usize,
    element: PhantomData<T>,
}

impl<T> Clone for Buffer<T> {
    fn clone(&self) -> Self {
        Self { memory: self.memory.clone(), ..*self }
    }
}

impl<T: Element> Buffer<T> {
    pub(super) fn new(memory: Arc<Memory>, len: usize) -> Self {
        Self { memory, offset: 0, len, element: PhantomData }
    }

    /// Elements.
    pub fn len(&self) -> usize {
        self.len
    }

    /// True for a buffer of no elements.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.len * size_of::<T>()
    }

    /// Device address of the first element.
    pub fn address(&self) -> u64 {
        self.memory.address() + (self.offset * size_of::<T>()) as u64
    }

    /// Which host device the memory is of; 0 for a GPU's.
    pub(super) fn owner(&self) -> u64 {
        self.memory.owner()
    }

    /// Address and owner.
    pub(super) fn place(&self) -> host::Place {
        host::Place { address: self.address(), owner: self.owner() }
    }

    /// A view of some of the elements.
    ///
    /// # Panics
    /// The range does not lie within the buffer.
    pub fn slice(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len, "slice {range:?} of {} elements", self.len);
        Self { memory: self.memory.clone(), offset: self.offset + range.start, len: range.len(), element: PhantomData }
    }

    /// The same bytes as elements of another type: an arena hands out its parts this way.
    ///
    /// # Panics
    /// The bytes do not divide, or the address is not aligned for `U`.
    pub fn cast<U: Element>(&self) -> Buffer<U> {
        assert_eq!(self.bytes() % size_of::<U>(), 0, "cast of {} bytes", self.bytes());
        let start = self.offset * size_of::<T>();
        assert_eq!(start % size_of::<U>(), 0, "cast at byte {start}");
        Buffer {
            memory: self.memory.clone(),
            offset: start / size_of::<U>(),
            len: self.bytes() / size_of::<U>(),
            element: PhantomData,
        }
    }
}
