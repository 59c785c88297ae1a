//! The device, the tensors of a case, and their bytes.

use half::{bf16, f16};
use spts::ggml::Tensor;
use spts::ggml::arena::{Arena, TensorId, read_bytes};
use spts::ggml::backend::Backend;
use spts::ggml::ops::Ops;
use spts::gguf::GgmlType;

/// Bytes of what is not written yet: NaN in every float type, -1 in I32.
pub const POISON: u8 = 0xff;

/// A device, and the tensors of one case.
pub struct Gpu {
    pub backend: Backend,
    pub arena: Arena,
}

impl Gpu {
    pub fn start() -> Self {
        Self { backend: Backend::start("CUDA0", 1).unwrap(), arena: Arena::new(0) }
    }

    /// Frees the tensors of the case before.
    pub fn clear(&mut self) {
        self.arena = Arena::new(16);
    }

    pub fn tensor(&mut self, ty: GgmlType, ne: [usize; 2], bytes: &[u8]) -> TensorId {
        let id = self.arena.declare("", ty, &ne);
        self.arena.allocate(&[id], self.backend.buffer_type(), "a test").unwrap();
        self.arena.set(id, 0, bytes);
        id
    }

    pub fn f32(&mut self, ne: [usize; 2], values: &[f32]) -> TensorId {
        self.tensor(GgmlType::F32, ne, &bytes_of(values, f32::to_le_bytes))
    }

    pub fn f16(&mut self, ne: [usize; 2], values: &[f32]) -> TensorId {
        self.tensor(GgmlType::F16, ne, &bytes_of(values, |x| f16::from_f32(x).to_le_bytes()))
    }

    pub fn bf16(&mut self, ne: [usize; 2], values: &[f32]) -> TensorId {
        self.tensor(GgmlType::BF16, ne, &bytes_of(values, |x| bf16::from_f32(x).to_le_bytes()))
    }

    pub fn i32(&mut self, values: &[i32]) -> TensorId {
        self.tensor(GgmlType::I32, [values.len(), 1], &bytes_of(values, i32::to_le_bytes))
    }

    pub fn poison(&mut self, ty: GgmlType, ne: [usize; 2]) -> TensorId {
        self.tensor(ty, ne, &vec![POISON; ne[0] * ne[1] * ty.type_size()])
    }

    /// What an operation writes in memory of its own.
    pub fn fresh(&mut self, build: impl for<'a> FnOnce(&'a Ops, &'a Arena) -> Tensor<'a>) -> Vec<u8> {
        let ops = Ops::new(64);
        let out = build(&ops, &self.arena);
        let len = n_bytes(out);
        ops.output(out);
        ops.expand(out);
        self.backend.allocate(&ops).unwrap();
        self.backend.write(out, &vec![POISON; len]);
        self.backend.compute(&ops).unwrap();
        self.backend.synchronize();
        read_bytes(out, 0, len)
    }

    /// The whole of a tensor, after an operation wrote somewhere in it.
    pub fn within(&mut self, whole: TensorId, build: impl for<'a> FnOnce(&'a Ops, &'a Arena) -> Tensor<'a>) -> Vec<u8> {
        let ops = Ops::new(64);
        ops.expand(build(&ops, &self.arena));
        self.backend.allocate(&ops).unwrap();
        self.backend.compute(&ops).unwrap();
        self.backend.synchronize();
        self.arena.read(whole, 0, n_bytes(self.arena.get(whole)))
    }
}

/// Of a type without blocks.
pub fn n_bytes(t: Tensor<'_>) -> usize {
    t.n_elements() * t.ty().type_size()
}

pub fn bytes_of<T: Copy, const N: usize>(values: &[T], bytes: impl Fn(T) -> [u8; N]) -> Vec<u8> {
    values.iter().flat_map(|x| bytes(*x)).collect()
}

pub fn values_of<T, const N: usize>(bytes: &[u8], value: impl Fn([u8; N]) -> T) -> Vec<T> {
    let (values, rest) = bytes.as_chunks();
    assert!(rest.is_empty());
    values.iter().map(|b| value(*b)).collect()
}

pub fn f32s(bytes: &[u8]) -> Vec<f32> {
    values_of(bytes, f32::from_le_bytes)
}

pub fn i32s(bytes: &[u8]) -> Vec<i32> {
    values_of(bytes, i32::from_le_bytes)
}

/// F16 or BF16, or F32.
pub fn floats(ty: GgmlType, bytes: &[u8]) -> Vec<f32> {
    match ty {
        GgmlType::F16 => values_of(bytes, |b| f16::from_le_bytes(b).to_f32()),
        GgmlType::BF16 => values_of(bytes, |b| bf16::from_le_bytes(b).to_f32()),
        _ => f32s(bytes),
    }
}
