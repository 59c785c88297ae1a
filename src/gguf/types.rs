//! The element types a tensor of a GGUF file can have.
//!
//! Ids, block lengths and block sizes are those of ggml 0.26 (`enum ggml_type` and the block
//! structures of `ggml-common.h`). A *block* is the smallest unit a type can be cut into: 1 element for
//! plain numbers, 32 to 256 elements that share scales for quantized ones. Rows (the fastest dimension,
//! `shape[0]`) always hold whole blocks.

use std::fmt;

/// One table, so that an id, its name and its sizes cannot drift apart.
macro_rules! ggml_types {
    ($($(#[$doc:meta])* $variant:ident = $id:literal, $name:literal, $block:literal, $bytes:literal;)+) => {
        /// Element type of a tensor, with ggml's numbering.
        #[allow(non_camel_case_types)]
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum GgmlType {
            $($(#[$doc])* $variant = $id,)+
        }

        impl GgmlType {
            /// Every type, by ascending id.
            pub const ALL: &'static [GgmlType] = &[$(GgmlType::$variant),+];

            /// The type with ggml's number `id`; `None` if ggml 0.26 has no such type.
            pub fn from_id(id: u32) -> Option<GgmlType> {
                match id {
                    $($id => Some(GgmlType::$variant),)+
                    _ => None,
                }
            }

            /// Name as in file names and tables, for example `Q4_K`.
            pub fn name(self) -> &'static str {
                match self {
                    $(GgmlType::$variant => $name,)+
                }
            }

            /// Elements per block.
            pub fn block_size(self) -> usize {
                match self {
                    $(GgmlType::$variant => $block,)+
                }
            }

            /// Bytes per block.
            pub fn type_size(self) -> usize {
                match self {
                    $(GgmlType::$variant => $bytes,)+
                }
            }
        }
    };
}

ggml_types! {
    /// IEEE 754 single precision.
    F32 = 0, "F32", 1, 4;
    /// IEEE 754 half precision.
    F16 = 1, "F16", 1, 2;
    /// 4 bits, one half-precision scale per 32.
    Q4_0 = 2, "Q4_0", 32, 18;
    /// 4 bits, scale and minimum per 32.
    Q4_1 = 3, "Q4_1", 32, 20;
    /// 5 bits, scale per 32.
    Q5_0 = 6, "Q5_0", 32, 22;
    /// 5 bits, scale and minimum per 32.
    Q5_1 = 7, "Q5_1", 32, 24;
    /// 8 bits, scale per 32.
    Q8_0 = 8, "Q8_0", 32, 34;
    /// 8 bits, scale and sum per 32; an intermediate of ggml's products.
    Q8_1 = 9, "Q8_1", 32, 36;
    /// 2-bit k-quant.
    Q2_K = 10, "Q2_K", 256, 84;
    /// 3-bit k-quant.
    Q3_K = 11, "Q3_K", 256, 110;
    /// 4-bit k-quant.
    Q4_K = 12, "Q4_K", 256, 144;
    /// 5-bit k-quant.
    Q5_K = 13, "Q5_K", 256, 176;
    /// 6-bit k-quant.
    Q6_K = 14, "Q6_K", 256, 210;
    /// 8-bit k-quant; an intermediate of ggml's products.
    Q8_K = 15, "Q8_K", 256, 292;
    /// 2.06 bits per weight, codebook.
    IQ2_XXS = 16, "IQ2_XXS", 256, 66;
    /// 2.31 bits per weight, codebook.
    IQ2_XS = 17, "IQ2_XS", 256, 74;
    /// 3.06 bits per weight, codebook.
    IQ3_XXS = 18, "IQ3_XXS", 256, 98;
    /// 1.56 bits per weight, codebook.
    IQ1_S = 19, "IQ1_S", 256, 50;
    /// 4 bits, non-linear levels, scale per 32.
    IQ4_NL = 20, "IQ4_NL", 32, 18;
    /// 3.44 bits per weight, codebook.
    IQ3_S = 21, "IQ3_S", 256, 110;
    /// 2.56 bits per weight, codebook.
    IQ2_S = 22, "IQ2_S", 256, 82;
    /// 4.25 bits per weight, non-linear levels.
    IQ4_XS = 23, "IQ4_XS", 256, 136;
    /// Signed 8-bit integer.
    I8 = 24, "I8", 1, 1;
    /// Signed 16-bit integer.
    I16 = 25, "I16", 1, 2;
    /// Signed 32-bit integer.
    I32 = 26, "I32", 1, 4;
    /// Signed 64-bit integer.
    I64 = 27, "I64", 1, 8;
    /// IEEE 754 double precision.
    F64 = 28, "F64", 1, 8;
    /// 1.75 bits per weight, codebook.
    IQ1_M = 29, "IQ1_M", 256, 56;
    /// The upper half of a single-precision number.
    BF16 = 30, "BF16", 1, 2;
    /// Ternary, 1.69 bits per weight.
    TQ1_0 = 34, "TQ1_0", 256, 54;
    /// Ternary, 2.06 bits per weight.
    TQ2_0 = 35, "TQ2_0", 256, 66;
    /// OCP microscaling 4-bit float, one exponent per 32.
    MXFP4 = 39, "MXFP4", 32, 17;
    /// 4-bit float with an E4M3 scale per 16, four such groups per block.
    NVFP4 = 40, "NVFP4", 64, 36;
    /// 1 bit, scale per 128.
    Q1_0 = 41, "Q1_0", 128, 18;
    /// 2 bits, scale per 64.
    Q2_0 = 42, "Q2_0", 64, 18;
}

impl GgmlType {
    /// ggml's number for this type.
    pub fn id(self) -> u32 {
        self as u32
    }

    /// Name of a type that older ggml could read and that 0.26 no longer knows.
    pub fn removed_name(id: u32) -> Option<&'static str> {
        Some(match id {
            4 => "Q4_2",
            5 => "Q4_3",
            31 => "Q4_0_4_4",
            32 => "Q4_0_4_8",
            33 => "Q4_0_8_8",
            36 => "IQ4_NL_4_4",
            37 => "IQ4_NL_4_8",
            38 => "IQ4_NL_8_8",
            _ => return None,
        })
    }

    /// The type called `name`, case ignored.
    pub fn from_name(name: &str) -> Option<GgmlType> {
        Self::ALL.iter().copied().find(|t| t.name().eq_ignore_ascii_case(name))
    }

    /// Whether a block holds more than one element.
    pub fn is_quantized(self) -> bool {
        self.block_size() > 1
    }

    /// Bytes of a row of `n` elements; `None` if `n` is no multiple of the block or the product overflows.
    pub fn row_size(self, n: u64) -> Option<u64> {
        let block = self.block_size() as u64;
        if !n.is_multiple_of(block) {
            return None;
        }
        (n / block).checked_mul(self.type_size() as u64)
    }
}

impl fmt::Display for GgmlType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Most dimensions a ggml tensor has.
pub const MAX_DIMS: usize = 4;
/// ggml keeps a tensor's name in 64 bytes, the terminating zero included.
pub const MAX_TENSOR_NAME: usize = 63;

/// Bytes of a tensor of `shape` (ggml order: fastest dimension first) and type `ty`.
///
/// The one place that judges a shape; reader and writer share it. The error is the problem in words.
pub(super) fn checked_nbytes(shape: &[u64], ty: GgmlType) -> Result<u64, String> {
    if shape.is_empty() || shape.len() > MAX_DIMS {
        return Err(format!("{} dimensions, expected 1 to {MAX_DIMS}", shape.len()));
    }
    if let Some(d) = shape.iter().position(|&n| n == 0) {
        return Err(format!("dimension {d} of shape {shape:?} is zero"));
    }
    // ggml counts elements and bytes in signed 64-bit integers.
    let fits = |n: &u64| i64::try_from(*n).is_ok();
    let overflow = || format!("the size of shape {shape:?} in {ty} overflows 63 bits");
    shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d).filter(fits)).ok_or_else(overflow)?;
    if !shape[0].is_multiple_of(ty.block_size() as u64) {
        return Err(format!(
            "rows of {} elements are not a multiple of the block of {} ({} elements)",
            shape[0],
            ty,
            ty.block_size()
        ));
    }
    let row = ty.row_size(shape[0]).ok_or_else(overflow)?;
    shape[1..].iter().try_fold(row, |n, &d| n.checked_mul(d)).filter(fits).ok_or_else(overflow)
}

/// What is wrong with a tensor's name, in words; `None` if it is fine.
pub(super) fn name_problem(name: &str) -> Option<String> {
    if name.is_empty() {
        Some("the name is empty".into())
    } else if name.len() > MAX_TENSOR_NAME {
        Some(format!("the name has {} bytes, ggml allows {MAX_TENSOR_NAME}", name.len()))
    } else if name.contains('\0') {
        // A C string would end there, and two names could become one.
        Some("the name contains a zero byte".into())
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_and_names_round_trip() {
        assert_eq!(GgmlType::ALL.len(), 35);
        for &ty in GgmlType::ALL {
            assert_eq!(GgmlType::from_id(ty.id()), Some(ty));
            assert_eq!(GgmlType::from_name(&ty.name().to_lowercase()), Some(ty));
            assert_eq!(GgmlType::removed_name(ty.id()), None);
        }
        let known = (0..100).filter_map(GgmlType::from_id).count();
        assert_eq!(known, GgmlType::ALL.len());
        assert_eq!(GgmlType::removed_name(31), Some("Q4_0_4_4"));
    }

    /// Sizes recomputed from the fields of ggml's block structures: scales, minimums, bits.
    #[test]
    fn block_bytes_follow_from_the_fields() {
        const HALF: usize = 2;
        let bits = |n: usize, per: usize| n * per / 8;
        let cases = [
            (GgmlType::Q4_0, HALF + bits(32, 4)),
            (GgmlType::Q4_1, 2 * HALF + bits(32, 4)),
            (GgmlType::Q5_0, HALF + bits(32, 5)),
            (GgmlType::Q5_1, 2 * HALF + bits(32, 5)),
            (GgmlType::Q8_0, HALF + bits(32, 8)),
            (GgmlType::Q8_1, 2 * HALF + bits(32, 8)),
            (GgmlType::Q2_K, 2 * HALF + 16 + bits(256, 2)),
            (GgmlType::Q3_K, HALF + 12 + bits(256, 3)),
            (GgmlType::Q4_K, 2 * HALF + 12 + bits(256, 4)),
            (GgmlType::Q5_K, 2 * HALF + 12 + bits(256, 5)),
            (GgmlType::Q6_K, HALF + 16 + bits(256, 6)),
            (GgmlType::Q8_K, 4 + 256 + 16 * 2),
            (GgmlType::IQ4_XS, HALF + 2 + 4 + bits(256, 4)),
            (GgmlType::TQ2_0, HALF + bits(256, 2)),
            (GgmlType::MXFP4, 1 + bits(32, 4)),
            (GgmlType::NVFP4, 4 + bits(64, 4)),
            (GgmlType::Q1_0, HALF + bits(128, 1)),
            (GgmlType::Q2_0, HALF + bits(64, 2)),
        ];
        for (ty, bytes) in cases {
            assert_eq!(ty.type_size(), bytes, "{ty}");
        }
    }

    #[test]
    fn nbytes() {
        assert_eq!(checked_nbytes(&[256, 3], GgmlType::Q4_K), Ok(432));
        assert_eq!(checked_nbytes(&[5], GgmlType::F32), Ok(20));
        for (shape, ty, text) in [
            (&[][..], GgmlType::F32, "0 dimensions"),
            (&[1; 5], GgmlType::F32, "5 dimensions"),
            (&[4, 0], GgmlType::F32, "dimension 1 of shape [4, 0] is zero"),
            (&[33], GgmlType::Q8_0, "not a multiple of the block of Q8_0"),
            (&[1 << 62], GgmlType::F32, "overflows"),
            (&[1 << 32, 1 << 32], GgmlType::I8, "overflows"),
            (&[u64::MAX], GgmlType::Q4_0, "overflows"),
        ] {
            let problem = checked_nbytes(shape, ty).unwrap_err();
            assert!(problem.contains(text), "{problem}");
        }
    }
}
