//! ggml's conversions between block formats and floats, and which formats it computes with.

use ggml_sys as sys;

use super::type_id;
use crate::gguf::GgmlType;

/// True if ggml multiplies by weights of this type (CPU kernels; integers and f64 it does not).
pub fn can_multiply(ty: GgmlType) -> bool {
    if ty == GgmlType::F32 {
        return true;
    }
    init_tables();
    // SAFETY: the id is one of ggml's own.
    unsafe {
        let traits = sys::ggml_get_type_traits_cpu(type_id(ty));
        !traits.is_null() && (*traits).vec_dot.is_some()
    }
}

/// Dequantizes whole rows: `bytes` of `n` elements to floats.
///
/// # Panics
/// If `bytes` has another size than `n` elements of this type, or the type has no conversion ([`can_multiply`]).
pub fn dequantize(ty: GgmlType, bytes: &[u8], n: usize) -> Vec<f32> {
    // SAFETY: the id is one of ggml's own; the size is checked before the conversion reads.
    unsafe {
        assert_eq!(bytes.len(), sys::ggml_row_size(type_id(ty), n as i64), "bytes of {n} elements of {}", ty.name());
        let mut out = vec![0f32; n];
        if ty == GgmlType::F32 {
            for (o, c) in out.iter_mut().zip(bytes.chunks_exact(4)) {
                *o = f32::from_le_bytes([c[0], c[1], c[2], c[3]]);
            }
            return out;
        }
        init_tables();
        let traits = sys::ggml_get_type_traits(type_id(ty));
        let to_float = (*traits).to_float.expect("a type with a conversion");
        to_float(bytes.as_ptr().cast(), out.as_mut_ptr(), n as i64);
        out
    }
}

/// Quantizes whole rows of `n_per_row` floats.
///
/// # Panics
/// If the data is no whole number of rows, or a row no whole number of blocks.
pub fn quantize(ty: GgmlType, data: &[f32], n_per_row: usize) -> Vec<u8> {
    assert!(
        n_per_row > 0 && data.len().is_multiple_of(n_per_row) && n_per_row.is_multiple_of(ty.block_size()),
        "whole rows of whole blocks"
    );
    let n_rows = data.len() / n_per_row;
    // SAFETY: source and destination have the sizes that ggml computes from rows and type.
    unsafe {
        let row = sys::ggml_row_size(type_id(ty), n_per_row as i64);
        let mut out = vec![0u8; row * n_rows];
        sys::ggml_quantize_init(type_id(ty));
        let written = sys::ggml_quantize_chunk(
            type_id(ty),
            data.as_ptr(),
            out.as_mut_ptr().cast(),
            0,
            n_rows as i64,
            n_per_row as i64,
            std::ptr::null(),
        );
        assert_eq!(written, out.len(), "bytes written by ggml");
        out
    }
}

/// Bytes of `n` elements in this type.
pub fn row_size(ty: GgmlType, n: usize) -> usize {
    // SAFETY: pure arithmetic on a known type.
    unsafe { sys::ggml_row_size(type_id(ty), n as i64) }
}

/// The F16 lookup tables of the CPU kernels.
fn init_tables() {
    static START: std::sync::Once = std::sync::Once::new();
    // SAFETY: no preconditions.
    START.call_once(|| unsafe { sys::ggml_cpu_init() });
}
