//! Random weights, made in the type they are stored in: what quantizing random numbers would give, at the speed of a memory
//! copy.
//!
//! A quantized weight is a scale times a small integer. The integers are random bits, uniform over all their values; the
//! scales are chosen so that the weights have mean 0 and a given standard deviation:
//!
//! | type | weight | how the mean becomes 0 |
//! |---|---|---|
//! | Q4_0, Q5_0, Q8_0 | `d (q - half)` | the sign of `d` is random |
//! | Q5_1 | `d q + m` | `m = -15.5 d` |
//! | Q4_K, Q5_K | `d sc q - dmin m` | `m = sc`, `dmin = d (2^bits - 1) / 2` |
//! | Q6_K | `d sc (q - 32)` | the sign of `sc` is random |
//! | MXFP4 | `2^e` times one of 0.5 to 6 | the sign of each is random |
//!
//! No block is zero and no value is infinite, so that kernels that skip or slow down on such data do neither.

use half::f16;
use spts_quant::TensorType;

use crate::random::SplitMix64;

/// Scales that blocks draw from: ones within a quarter of the nominal one, as neighbouring blocks of a real weight have.
const N_SCALES: usize = 64;

/// Makes blocks of one type with one standard deviation.
pub struct RandomBlocks {
    ty: TensorType,
    sigma: f64,
    /// `d` of a block, and what goes with it (`m` of Q5_1, `dmin` of Q4_K and Q5_K).
    scales: [(f16, f16); N_SCALES],
}

impl RandomBlocks {
    /// Blocks of `ty` whose weights have mean 0 and standard deviation `sigma`.
    pub fn new(ty: TensorType, sigma: f64) -> Self {
        let nominal = sigma / root_mean_square(ty);
        let scales = std::array::from_fn(|i| {
            // Evenly spread over 0.75 to 1.25, whose mean square is 1 + 1/48.
            let jitter = (0.75 + (i as f64 + 0.5) / (2 * N_SCALES) as f64) / (1.0f64 + 1.0 / 48.0).sqrt();
            let d = f16::from_f64(nominal * jitter);
            (d, f16::from_f64(second_scale(ty, d.to_f64())))
        });
        Self { ty, sigma, scales }
    }

    /// Fills `out` with random blocks of the type.
    ///
    /// # Panics
    /// If `out` is no whole number of blocks.
    pub fn fill(&self, rng: &mut SplitMix64, out: &mut [u8]) {
        let size = self.ty.block_bytes() as usize;
        assert_eq!(out.len() % size, 0, "whole blocks of {}", self.ty.name());
        match self.ty {
            TensorType::F32 => self.floats(rng, out, 4, |x, o| o.copy_from_slice(&(x as f32).to_le_bytes())),
            TensorType::F16 => self.floats(rng, out, 2, |x, o| o.copy_from_slice(&f16::from_f64(x).to_le_bytes())),
            _ => {
                // Everything is random bits; then the scales are put in.
                rng.fill(out);
                for block in out.chunks_exact_mut(size) {
                    self.put_scales(rng, block);
                }
            }
        }
    }

    /// Uniform numbers with the standard deviation: as good as normal ones to a matrix product, and cheaper.
    fn floats(&self, rng: &mut SplitMix64, out: &mut [u8], size: usize, put: impl Fn(f64, &mut [u8])) {
        let width = self.sigma * 12f64.sqrt();
        for o in out.chunks_exact_mut(size) {
            put((rng.uniform() - 0.5) * width, o);
        }
    }

    fn put_scales(&self, rng: &mut SplitMix64, block: &mut [u8]) {
        let bits = rng.next();
        let (d, second) = self.scales[bits as usize % N_SCALES];
        let sign = if bits >> 63 == 0 { d } else { -d };
        match self.ty {
            TensorType::F32 | TensorType::F16 => unreachable!("no blocks"),
            TensorType::Q4_0 | TensorType::Q5_0 | TensorType::Q8_0 => put(block, 0, sign),
            TensorType::Q5_1 => {
                put(block, 0, d);
                put(block, 2, second);
            }
            TensorType::Q4_K | TensorType::Q5_K => {
                put(block, 0, d);
                put(block, 2, second);
                // Twelve bytes hold 6-bit scales and minimums of eight groups: bytes 0-3 the first four scales, 4-7 the first
                // four minimums, 8-11 the low bits of the others, whose high bits are the top bits of bytes 0-7. Scales from
                // 32 to 63 as in real files, and every minimum equal to its scale.
                for i in 0..4 {
                    let scale = block[4 + i] | 0b1010_0000;
                    block[4 + i] = scale;
                    block[8 + i] = scale;
                    block[12 + i] = (block[12 + i] & 15) * 17;
                }
            }
            TensorType::MXFP4 => {
                // Powers of two alone: the next one above in as many blocks as the spread asks for.
                let (exponent, above) = self.exponents();
                block[0] = exponent + u8::from(((bits >> 32) & 0xffff) as f64 / 65536.0 < above);
                // A code of 0 or 8 is zero.
                for codes in &mut block[1..] {
                    *codes |= u8::from(*codes & 7 == 0) | (u8::from(*codes & 0x70 == 0) << 4);
                }
            }
            TensorType::Q6_K => {
                // Signed scales of 64 to 127 in size.
                for scale in &mut block[192..208] {
                    let size = 64 + (*scale & 63) as i8;
                    *scale = if *scale & 64 == 0 { size } else { -size } as u8;
                }
                put(block, 208, d);
            }
        }
    }
}

impl RandomBlocks {
    /// MXFP4: the exponent (plus 127) of a block, and the share of blocks that have the next one above.
    fn exponents(&self) -> (u8, f64) {
        let nominal = self.sigma / root_mean_square(TensorType::MXFP4);
        let exponent = nominal.log2().floor();
        // Mean squares add up: 1 - p + 4 p for a share p of twice the size.
        let above = ((nominal / exponent.exp2()).powi(2) - 1.0) / 3.0;
        ((exponent + 127.0) as u8, above)
    }
}

fn put(block: &mut [u8], at: usize, x: f16) {
    block[at..at + 2].copy_from_slice(&x.to_le_bytes());
}

/// Root of the mean square of `q - centre` for integers uniform over `0..2^bits`.
fn spread(bits: i32, centre: f64) -> f64 {
    let n = 2f64.powi(bits);
    ((n * n - 1.0) / 12.0 + ((n - 1.0) / 2.0 - centre).powi(2)).sqrt()
}

/// Root mean square of a weight whose `d` is 1.
fn root_mean_square(ty: TensorType) -> f64 {
    // Uniform scales over 32 .. 63 and 64 .. 127.
    let (six_bits, signed) = ((47.5f64.powi(2) + 85.25).sqrt(), (95.5f64.powi(2) + 341.25).sqrt());
    match ty {
        TensorType::F32 | TensorType::F16 => 1.0,
        TensorType::Q4_0 => spread(4, 8.0),
        TensorType::Q5_0 => spread(5, 16.0),
        TensorType::Q5_1 => spread(5, 15.5),
        TensorType::Q8_0 => spread(8, 128.0),
        TensorType::Q4_K => six_bits * spread(4, 7.5),
        TensorType::Q5_K => six_bits * spread(5, 15.5),
        TensorType::Q6_K => signed * spread(6, 32.0),
        // 0.5 (twice as often as the others), 1, 1.5, 2, 3, 4 and 6.
        TensorType::MXFP4 => (34.375f64 / 4.0).sqrt(),
    }
}

/// What a block stores beside its `d`; 0 where there is nothing.
fn second_scale(ty: TensorType, d: f64) -> f64 {
    match ty {
        TensorType::Q5_1 => -15.5 * d,
        TensorType::Q4_K => 7.5 * d,
        TensorType::Q5_K => 15.5 * d,
        _ => 0.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ggml::quantize::dequantize;
    use crate::quantize::ggml_type;

    /// ggml itself reads the blocks: mean, spread and size are those that were asked for.
    #[test]
    fn ggml_reads_what_was_meant() {
        const N: usize = 1 << 18;
        for ty in TensorType::ALL {
            // The widest and the narrowest rows of an 8B model.
            for n_in in [64.0f64, 14336.0] {
                let sigma = 1.0 / n_in.sqrt();
                let mut bytes = vec![0; N / ty.block_size() as usize * ty.block_bytes() as usize];
                RandomBlocks::new(ty, sigma).fill(&mut SplitMix64(7), &mut bytes);
                let x = dequantize(ggml_type(ty), &bytes, N);
                let mean = x.iter().map(|&x| f64::from(x)).sum::<f64>() / N as f64;
                let rms = (x.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / N as f64).sqrt();
                let largest = x.iter().fold(0f32, |m, x| m.max(x.abs()));
                // Blocks of 256 share a scale, so that there are few independent ones.
                assert!((rms / sigma - 1.0).abs() < 0.02, "{}: spread {rms}, expected {sigma}", ty.name());
                assert!(mean.abs() < 0.02 * sigma, "{}: mean {mean}, spread {sigma}", ty.name());
                assert!(f64::from(largest) < 4.5 * sigma, "{}: largest {largest}, spread {sigma}", ty.name());
                let zeros = x.iter().filter(|&&x| x == 0.0).count();
                assert!(zeros < N / 10, "{}: {zeros} zeros", ty.name());
            }
        }
    }
}
